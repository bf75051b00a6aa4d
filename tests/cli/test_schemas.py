"""Every kind of JSON file that a stage reads, damaged in many ways, is used or refused in one line.

tests/data/test_records.py tests `manifest.json`.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cli import json_files, work_dirs
from cli.errors import InputError
from data.preprocessing import Preprocessing
from evaluation import classifiers, compare, history, imagenet, tables
from experiments import study
from serving import assets, batching, card, export, lite, serve, settings
from training import estimates, metrics_log, model_dir, models
from weights import weight_files
from workflow import label_shards, loop, pseudo_label, quickstart, running, shard_jobs

VALUES = [None, True, -1, 1.5, "x", [], {}, [1], 10**15, "\ud800"]
TEXTS = [
    "",
    '"x"',
    "[]",
    "{}",
    "null",
    "[" * 100_000,
    "NaN",
    "-Infinity",
    "1e999",
    "9" * 5000,
    '{"a": 1',
    b'{"\xff": 1}',
]

SPEC = model_dir.ModelSpec(
    {"name": "b0", "width": 0.5, "strides": [1] * 7, "dropout": None},
    Preprocessing(image_size=8),
    ("a", "b"),
)
MODEL = {
    "architecture": SPEC.architecture,
    "preprocessing": SPEC.preprocessing.to_dict(),
    "label_names": ["a", "b"],
    "metadata": {},
}
STORED = {
    "model": "0",
    "preprocessing": MODEL["preprocessing"],
    "weights": "float32",
    "optimize": False,
    "max_pixels": 9,
    "deviation": 1e-6,
}
STORED |= {
    "deviation_images": 16,
    "license": "mine",
    "evaluation": {"split": "test", "examples": 9, "metrics": {"top1": 0.5}},
}
PREPARED = {"labeled": {"images": 9, "per_class": {"a": 4, "b": 5}}, "unlabeled": {"images": 9}}
PREPARED = {
    "splits": PREPARED,
    "label_names": ["a", "b"],
    "median_height": 9.5,
    "median_width": 9,
    "source": "digits",
}
RESULT = {"top1": 0.5, "ece": 0.1, "top1_interval": [0.4, 0.6], "nll": 0.1}
SUITES = {
    "c": {
        "mean_error": 0.5,
        "mean_error_interval": [0.4, 0.6],
        "mce": 50.0,
        "reference": "AlexNet",
    },
    "adversarial": {"pgd_top1": 0.1},
}
EVALUATION = {
    "models": {"teacher": {**RESULT, **SUITES}, "student_1": RESULT},
    "examples": 9,
    "split": "test",
}
EVALUATION |= {
    "classes": 2,
    "chance": 0.5,
    "majority": {"class": "a", "top1": 0.6},
    "classes_without_examples": ["b"],
}
EVALUATION |= {"figures": {"summary": "s.png"}, "report": "r.html"}
LOOP = {
    "teacher": RESULT,
    "students": [RESULT],
    "seconds": {"prepare": 1.5, "export": 2},
    "validation_top1": [0.5, 0.6],
}
METRICS = {"step": 1, "seconds": 1.5, "loss": 0.1, "eval_top1": 0.5}
BALANCED = {
    "label_names": ["a"],
    "above_threshold": [1],
    "below_threshold": [1],
    "total": [1],
    "images": 2,
    "threshold": 0.3,
}
NUMBERS = {"values": [1.5, 2.5], "mean": 2.0, "interval": [1.0, 3.0]}
COMPARED = {
    "models": ["a", "b"],
    "numbers": {"top1": {"a": NUMBERS, "b": NUMBERS}},
    "runs": {"seed_0": "x"},
}
COMPARED |= {"gains": {"top1": {**NUMBERS, "p_value": 0.5}}}
LITE = {
    "kind": "int8",
    "top1": 0.5,
    "agreement": 0.9,
    "deviation": 0.1,
    "bytes": 10,
    "milliseconds": 1.5,
}
TIMM = {
    "architecture": "tf_efficientnet_b0",
    "pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
}


def read_model(path: Path) -> None:
    models.builder(model_dir.read_spec(path.parent).architecture)


def read_export(path: Path) -> None:
    for name in ("0/assets.extra/export.json", "0/saved_model.pb"):
        (path.parent / name).parent.mkdir(parents=True, exist_ok=True)
    (path.parent / "0" / "saved_model.pb").touch()
    (path.parent / "0" / "assets.extra" / "export.json").write_bytes(path.read_bytes())
    (path.parent / "0" / "assets.extra" / "labels.txt").write_text("a\nb\n", encoding="utf-8")
    (path.parent / "summary.json").write_text('{"steps": 3}', encoding="utf-8")
    classifiers.open_candidate("a", path.parent / "0", "small")
    export._find_version(path.parent, {"model": "0"})
    assets.tell(path.parent / "0", SPEC, path.parent, {"license": "another"})


def read_prepared(path: Path) -> None:
    estimates.images(None, path.parent)  # type: ignore[arg-type]


def read_evaluation(path: Path) -> None:
    (path.parent.parent / "export").mkdir(exist_ok=True)
    (path.parent.parent / "export" / "summary.json").write_text('{"export": "e"}', encoding="utf-8")
    (path.parent.parent / "seconds.json").write_text('{"prepare": 1}', encoding="utf-8")
    loop.table(loop.summarize(path.parent.parent, 1))
    work_dirs.shown(
        path.parent, work_dirs.require_finished(path.parent, "evaluation", ""), tables.table
    )
    with json_files.reading(path):
        compare.aggregate(
            [json_files.read_json(path, {"models": {"teacher": dict}})["models"]], ["teacher"]
        )


def read_evaluation_for_card(path: Path) -> None:
    digest = work_dirs.fingerprint(path.parent)
    (path.parent / "config.json").write_text(
        json.dumps({"models": {"teacher": digest}}), encoding="utf-8"
    )
    told = export._evaluation(str(path.parent), path.parent)
    stored = {**STORED, "evaluation": told}
    card.text("a", 1, SPEC, json_files.read_json(path, card.TRAINING), stored)


def read_loop(path: Path) -> None:
    work_dirs.finish(path.parent.parent / "other", {})
    (path.parent / "config.json").unlink(missing_ok=True)
    done = work_dirs.start(path.parent, {}, summary_schema=loop.SUMMARY, shared=True)
    assert done
    loop.table(done)
    with json_files.reading(path):
        quickstart.compare([json_files.read_json(path, quickstart.SUMMARY)])
        study.value(json_files.read_json(path, dict), "students.-1.top1")


def read_metrics(path: Path) -> None:
    text = path.read_text(encoding="utf-8", errors="surrogateescape").replace("\n", " ") + "\n"
    (path.parent / "metrics.jsonl").write_text(text, encoding="utf-8", errors="surrogateescape")
    list(history.training({"a": path.parent}))
    metrics_log.best(path.parent)
    metrics_log.truncate(path.parent / "metrics.jsonl", 5)


def read_balanced(path: Path) -> None:
    counts = json_files.read_json(path, history.BALANCED)
    assert isinstance(counts["total"], list)


def read_note(path: Path) -> None:
    class Job:
        def outputs(self, shard: int) -> list[str]:
            return []

    notes = shard_jobs.Notes(path.parent)
    notes.path(0).write_bytes(path.read_bytes())
    if shard_jobs._is_done(Job(), notes, 0):  # type: ignore[arg-type]
        results = shard_jobs.run(
            Job(),  # type: ignore[arg-type]
            1,
            path.parent,
            result=label_shards.note(3),
        )
        pseudo_label.summarize(results, ["a", "b", "c"])


NOTE = {
    "images": 3,
    "sha256": "0",
    "seconds": 1.5,
    "predicted": [1, 1, 1],
    "confidence_sum": 2.5,
    "histogram": [0] * 20,
}

KINDS: dict[str, tuple[Any, str, Callable[[Path], Any]]] = {
    "model": (MODEL, "model/model.json", read_model),
    "export": (STORED, "export/export.json", read_export),
    "prepared data": (PREPARED, "data/summary.json", read_prepared),
    "evaluation": (EVALUATION, "evaluation/summary.json", read_evaluation),
    "evaluation for the card": (EVALUATION, "evaluation/summary.json", read_evaluation_for_card),
    "loop": (LOOP, "loop/summary.json", read_loop),
    "seconds": (
        {"prepare": 1.5},
        "seconds.json",
        lambda path: running._add_seconds(path, "prepare", 1.0),
    ),
    "metrics": (METRICS, "run/line.json", read_metrics),
    "balance": (BALANCED, "pseudo_labeled_1/summary.json", read_balanced),
    "comparison": (
        COMPARED,
        "w/summary.json",
        lambda path: work_dirs.shown(path.parent, json_files.read_json(path, dict), compare.table),
    ),
    "lite": (
        {"rows": [LITE], "examples": 3, "split": "test", "calibration_images": 3},
        "w/summary.json",
        lambda path: work_dirs.shown(path.parent, json_files.read_json(path, dict), lite.table),
    ),
    "shard's note": ({"bytes": [], "result": NOTE}, "progress/note.json", read_note),
    "timm": (
        TIMM,
        "config.json",
        lambda path: weight_files._describe_timm(path.with_name("b0.safetensors")),
    ),
    "ReaL": (
        [[1, 2], []],
        "real.json",
        lambda path: imagenet.real_labels(path, ["ILSVRC2012_val_00000001"]),
    ),
}


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yields the path of every part of a JSON value but itself; of a list, of its first two."""
    for key in (
        value
        if isinstance(value, dict)
        else range(len(value))[:2]
        if isinstance(value, list)
        else ()
    ):
        yield (*at, key)
        yield from places(value[key], (*at, key))


def damaged(value: Any) -> Iterator[str | bytes]:
    """Yields texts that are cut or no JSON.

    Also yields `value` with a part left out or replaced, as JSON.
    """
    yield from TEXTS
    text = json.dumps(value)
    yield from (text[: len(text) * i // 7] for i in range(1, 7))
    for *path, last in places(value):
        for i in range(-2, len(VALUES)):
            changed = copy.deepcopy(value)
            part = changed
            for key in path:
                part = part[key]
            if i == -2:
                del part[last]
            else:
                part[last] = float("nan") if i == -1 else VALUES[i]
            yield json.dumps(changed)


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def message(read: Callable[[Path], Any], path: Path) -> str | None:
    """Returns the line with which `read` refuses a file, if it does."""
    try:
        read(path)
    except InputError as error:
        return str(error)
    except Exception as error:
        pytest.fail(f"{type(error).__name__}: {error} for {path.read_bytes()[:300]!r}")
    return None


SETTINGS: dict[str, Callable[[Path], Any]] = {
    "models.config": lambda path: (
        settings.read_models(path.parent),
        serve.bare_config(path.parent),
    ),
    "batching_parameters.txt": batching.parameters,
}


@pytest.mark.parametrize("name", SETTINGS)
def test_damaged_settings_of_tf_serving(name: str, tmp_path: Path) -> None:
    (tmp_path / "a" / "1").mkdir(parents=True)
    (tmp_path / "a" / "1" / "saved_model.pb").touch()
    settings.write(tmp_path, "a")
    whole = (tmp_path / name).read_bytes()
    SETTINGS[name](tmp_path / name)
    texts = [
        b"",
        b"\xff",
        b"{" * 100_000,
        whole.replace(b": 1", b": " + b"9" * 5000),
        *(whole[: len(whole) * i // 9] for i in range(1, 9)),
    ]
    lines = [message(SETTINGS[name], write(tmp_path / name, text)) for text in texts]
    assert sum(line is not None for line in lines) >= 3 and all(
        "\n" not in (line or "") for line in lines
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_used_or_refused_in_one_line(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    value, name, read = KINDS[kind]
    path = tmp_path / "root" / name
    path.parent.mkdir(parents=True)
    read(write(path, json.dumps(value)))
    refused = 0
    for text in damaged(value):
        line = message(read, write(path, text))
        assert line is None or ("\n" not in line and len(line) < 1500), text
        refused += line is not None
    assert refused >= len(TEXTS) - 2
