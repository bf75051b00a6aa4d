"""Evaluates models: how good, how well calibrated and how robust are they?

    ./run_evaluate.sh --workdir=W --model=TEACHER,STUDENT --data=D \
        [--split=test] [--suite=clean,c,p,adversarial]
    ./run_evaluate.sh --workdir=W --model=DIR_OR_SAVEDMODEL \
        --suite=clean,real,a,c,p,adversarial --data=VALIDATION --data_real=real.json \
        --data_a=imagenet-a --data_c=imagenet-c --data_p=imagenet-p

A -C or -P that is not given is built from the split (`evaluation.build`). Leaves in W, for each
model (NAME is the name of its directory):

    NAME/                  the answers of each suite, see `evaluation.suites`
    probe/                 the answers of the linear probe of --init
    NAME/metrics.json      with the reliability table, the confusion matrix and the accuracy of
                           each class
    progress.jsonl         a line for each finished set, to be read at any time
    figures/               reliability.png (all models), confusion.png (the last one), summary.png
                           (both and the accuracies)
    report.html            all of it on one page
    summary.json           last: `split`, `examples`, `suites`, `baseline`, `figures`, `report`,
                           and `models`: name -> numbers

Every example counts exactly once. A run that was killed goes on with the first set that has no
answers.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

import training.strategy
from cli.errors import InputError
from cli.files import atomic_path
from cli.json_files import read_json, write_json
from cli.work_dirs import finish, require_finished, say_done, shown, start
from data.records import MANIFEST, Manifest, read_manifest, require_same_classes
from evaluation import build, embedding, figures, imagenet, probe, report, results, suites
from evaluation.classifiers import Candidate, open_candidate
from evaluation.examples import from_records
from evaluation.metrics import Evaluation
from evaluation.settings import Settings
from evaluation.suites import Folder, Inputs
from evaluation.tables import table
from training import model_dir
from training.copies import Device

CONFIG = "configs/evaluation/default.py"

_RESERVED = ("figures", "cache", probe.NAME)  # names of other things in the work directory


def main(
    config: ml_collections.ConfigDict,
    workdir: str,
    model: str,
    data: str | None = None,
    split: str | None = None,
    suite: str = "clean",
    data_real: str | None = None,
    data_a: str | None = None,
    data_c: str | None = None,
    data_p: str | None = None,
    cache: str | None = None,
    init: str | None = None,
    strategy: str = "auto",
    cpu_devices: int = 1,
    tpu: str = "",
) -> None:
    """Evaluates each of the comma-separated directories `model`; see the module.

    The devices change no answer.

    Raises:
      InputError: unusable flags, models that are missing or unfinished or were made for other
        classes, damaged records.
    """
    settings = Settings.from_config(config.evaluate)
    split = split or settings.split
    chosen = _suites(suite, {"real": data_real, "a": data_a})
    has_preprocessing = bool(
        {"clean", "real", "adversarial"} & set(chosen)
        or ("c" in chosen and not data_c)
        or ("p" in chosen and not data_p)
    )
    if has_preprocessing and not data:
        raise InputError("--data is missing; name the directory of the images to evaluate on")
    # Before anything else uses TensorFlow:
    devices = training.strategy.devices(strategy, cpu_devices, tpu)
    manifest = _open_split(data, split) if has_preprocessing and data else None
    candidates = {
        name: open_candidate(name, path, settings.saved_model_style)
        for name, path in _named(model).items()
    }
    for candidate in candidates.values():
        _check_classes(candidate, manifest)
    baseline = settings.baseline or next(iter(candidates))
    if baseline not in candidates:
        raise InputError(
            f"evaluate.baseline: there is no model {baseline!r} among {', '.join(candidates)}"
        )

    began = time.monotonic()
    directory = Path(workdir)
    opened = _open_probe(init, data, candidates, manifest, directory, settings)
    tested = {**candidates, **({probe.NAME: opened} if opened else {})}
    places = {"real": data_real, "a": data_a, "c": data_c, "p": data_p}
    resolved = {
        "stage": "evaluate",
        "evaluate": settings.to_dict(),
        "split": split if has_preprocessing else None,
        "models": {name: candidate.digest for name, candidate in tested.items()},
        "suites": chosen,
        "places": {
            name: str(Path(path).resolve())
            for name, path in places.items()
            if path and name in chosen
        },
    }
    sets = _open_released(chosen, settings, data_a, data_c, data_p)
    if "real" in chosen and data_real:
        imagenet.real_labels(data_real, [])  # fails now, not after hours of work
    done = start(workdir, resolved, {"data": Path(data)} if has_preprocessing and data else None)
    if done is not None:
        say_done(workdir, f"{workdir} is done: nothing to evaluate\n{shown(workdir, done, table)}")
        return
    if manifest:
        sets |= {"clean": from_records(manifest, "clean")}
        sets |= _build(
            chosen, sets, manifest, settings, Path(cache) if cache else Path(workdir) / "cache"
        )
    inputs = Inputs(**sets)

    last = list(candidates)[-1]
    for name, candidate in tested.items():
        folder = Folder(directory / name, directory / "progress.jsonl")
        _measure(candidate, chosen, inputs, settings, folder, devices, embed=name == last)
    summary, evaluations = _summarize(
        directory, tested, chosen, inputs, settings, manifest, split, baseline, data_real
    )
    if probe.NAME in tested:
        summary["probe"] = probe.described(tested[probe.NAME], str(init))
    if evaluations:
        summary["figures"] = _draw(directory, [e for e in evaluations if e.name in candidates])
    seconds = time.monotonic() - began
    about_the_run = (evaluations, candidates, inputs, manifest, sys.argv, seconds)
    summary["report"] = str(report.write(directory, summary, *about_the_run))
    finish(workdir, summary, f"{workdir} is done: nothing to evaluate\n{table(summary)}")
    print(table(summary))
    print(f"report: {summary['report']}")


def _open_probe(
    init: str | None,
    data: str | None,
    candidates: dict[str, Candidate],
    manifest: Manifest | None,
    directory: Path,
    settings: Settings,
) -> Candidate | None:
    """Returns the linear probe on `init`, which learns from the labeled split of `data`.

    Returns None where no probe is asked for, or where it has nothing to learn from.
    """
    if not (init and data and manifest and settings.probe):
        return None
    if not (Path(data) / "labeled" / MANIFEST).exists():
        print(f"the {probe.NAME} is left out: {data} has no labeled split")
        return None
    labeled = read_manifest(Path(data) / "labeled", "labeled")
    names = manifest.label_names
    require_same_classes(
        labeled.label_names, str(labeled.directory), names, str(manifest.directory)
    )
    like, folder = next(iter(candidates.values())), directory / probe.NAME
    return probe.open_probe(init, like, labeled, folder, settings.batch_size, settings.seed)


def _suites(text: str, needed: dict[str, str | None]) -> list[str]:
    chosen = [part.strip() for part in text.split(",") if part.strip()]
    unknown = [name for name in chosen if name not in suites.SUITES]
    if unknown or not chosen:
        raise InputError(
            f"--suite={text}: it can be {', '.join(suites.SUITES)}, separated by commas"
        )
    for name, place in needed.items():
        if name in chosen and not place:
            raise InputError(f"--data_{name} is missing; the suite {name} needs it")
    return [name for name in suites.SUITES if name in chosen]


def _open_released(
    chosen: Sequence[str],
    settings: Settings,
    data_a: str | None,
    data_c: str | None,
    data_p: str | None,
) -> dict[str, Any]:
    """Returns fields of `Inputs`: ImageNet's own sets, as far as they are chosen and given."""
    sets: dict[str, Any] = {}
    if "a" in chosen and data_a:
        sets["a"] = imagenet.imagenet_a(data_a)
    if "c" in chosen and data_c:
        sets |= {"c": imagenet.imagenet_c(data_c), "released_c": True}
    if "p" in chosen and data_p:
        sets |= {"p": imagenet.imagenet_p(data_p, settings.difficulty), "released_p": True}
    return sets


def _build(
    chosen: Sequence[str], sets: dict[str, Any], manifest: Manifest, settings: Settings, cache: Path
) -> dict[str, Any]:
    """Returns fields of `Inputs`: a -C and a -P of the split, where chosen and not given."""
    built: dict[str, Any] = {}
    if "c" in chosen and "c" not in sets:
        built["unchanged"], built["c"] = build.corrupted_sets(manifest, cache, settings.seed)
    if "p" in chosen and "p" not in sets:
        built["p"] = build.sequence_sets(manifest, cache, settings.seed)
    return built


def suites_of(
    candidate: Candidate, chosen: Sequence[str], inputs: Inputs, settings: Settings
) -> list[str]:
    """Returns the chosen suites, without the suites that the paper leaves out for it."""
    left_out = {
        suite
        for suite, released in (("c", inputs.released_c), ("p", inputs.released_p))
        if released and candidate.finetuned and not settings.finetuned_on_c_and_p
    }
    return [suite for suite in chosen if suite not in left_out]


def _measure(
    candidate: Candidate,
    chosen: Sequence[str],
    inputs: Inputs,
    settings: Settings,
    folder: Folder,
    devices: Sequence[Device],
    *,
    embed: bool,
) -> None:
    """Runs the suites on a model, on `devices`.

    With `embed`, it also makes the map of the model's features of the clean split.
    """
    mine = suites_of(candidate, chosen, inputs, settings)
    left_out = [suite for suite in chosen if suite not in mine]
    if left_out:
        print(
            f"{candidate.name}: fine-tuned at {candidate.preprocessing.image_size} pixels, trained"
            f" at {candidate.trained_at}: left out of {', '.join(left_out)}, as in the paper"
            " (--config.evaluate.finetuned_on_c_and_p=True measures it all the same)"
        )
    path = folder.path / embedding.FILE
    embed = embed and "clean" in mine and not path.exists()
    if not (embed or suites.needed(folder, mine, inputs)):
        return
    classifier = candidate.load(devices)
    suites.run(classifier, mine, inputs, settings, folder)
    if embed and inputs.clean and classifier.network is not None:
        size = settings.batch_size
        found = embedding.mapped(classifier.network, classifier.preprocessing, inputs.clean, size)
        if found:
            with atomic_path(path) as temporary, open(temporary, "wb") as f:
                np.savez(f, **found)


def _summarize(
    directory: Path,
    candidates: dict[str, Candidate],
    chosen: Sequence[str],
    inputs: Inputs,
    settings: Settings,
    manifest: Manifest | None,
    split: str,
    baseline: str,
    data_real: str | None,
) -> tuple[dict[str, Any], list[Evaluation]]:
    """Returns the content of `summary.json`, and the clean evaluations.

    Also writes each model's `metrics.json`.
    """
    rows: dict[str, dict[str, Any]] = {}
    scores: dict[str, results.Scores] = {}
    evaluations: list[Evaluation] = []
    labels = None
    for name, candidate in candidates.items():
        mine, folder = suites_of(candidate, chosen, inputs, settings), directory / name
        row: dict[str, Any] = {}
        set_scores: results.Scores = {}
        if "clean" in mine or "real" in mine:
            assert manifest is not None
            evaluation, row, set_scores = results.clean(folder, name, manifest.label_names)
            evaluations.append(evaluation)
        if "real" in mine and data_real:
            labels = labels or imagenet.real_labels(
                data_real, results.load(folder / "predictions.npz")["keys"].tolist()
            )
            row["real"] = results.real(folder, labels)
        if "a" in mine:
            row["a"] = results.imagenet_a(folder)
        for suite, measured in (
            ("c", lambda folder=folder: results.corruptions(folder, list(inputs.c))),
            (
                "p",
                lambda folder=folder: results.perturbations(
                    folder, list(inputs.p), settings.difficulty
                ),
            ),
            ("adversarial", lambda folder=folder: results.attacks(folder)),
        ):
            if suite in mine:
                row[suite], more = measured()
                set_scores |= more
        rows[name], scores[name] = row, set_scores
    results.relative_to(rows, baseline, inputs.released_c, inputs.released_p)
    for name, differences in results.versus(scores, baseline).items():
        rows[name]["versus"] = differences
    if probe.NAME in rows and baseline != probe.NAME:
        for name, differences in results.versus(scores, probe.NAME).items():
            rows[name]["versus_probe"] = differences
    for name, row in rows.items():
        found = [evaluation for evaluation in evaluations if evaluation.name == name]
        write_json(
            directory / name / "metrics.json",
            {**row, **(results.details(found[0]) if found else {})},
        )
    summary = {
        "split": split,
        "examples": manifest.num_records if manifest else None,
        "left_out_of_training": _left_out_of_training(manifest.directory.parent) if manifest else 0,
        **(results.guesses(evaluations[0]) if evaluations else {}),
        "suites": list(chosen),
        "baseline": baseline,
        "models": rows,
    }
    return summary, evaluations


def _draw(directory: Path, evaluations: Sequence[Evaluation]) -> dict[str, str]:
    drawn = {
        name: directory / "figures" / f"{name}.png"
        for name in ("reliability", "confusion", "summary")
    }
    figures.reliability(evaluations, drawn["reliability"])
    figures.confusion(evaluations[-1], drawn["confusion"])
    figures.summary_figure(evaluations, drawn["summary"])
    return {name: str(path) for name, path in drawn.items()}


def _named(models: str) -> dict[str, Path]:
    """Returns the comma-separated directories by name.

    The name is that of the directory, or of its parent for a `model/`. A name that comes again gets
    -2, -3, …
    """
    parts = (
        [models] if os.path.exists(models) else models.split(",")
    )  # one directory may have a comma in its name
    directories = [Path(part) for part in parts if part.strip()]
    if not directories:
        raise InputError("--model names no directory; give one or more, separated by commas")
    named: dict[str, Path] = {}
    for directory in directories:
        name = stem = model_dir.run_directory(directory).resolve().name or "model"
        number = 1
        while name in named or name in _RESERVED:
            number += 1
            name = f"{stem}-{number}"
        named[name] = directory
    return named


def _open_split(data: str, split: str) -> Manifest:
    require_finished(data, "data directory", "run_prepare_data.sh")
    splits = sorted(path.parent.name for path in Path(data).glob(f"*/{MANIFEST}"))
    if split not in splits:
        raise InputError(
            f"--split: {data} has no split {split!r}; it has {', '.join(splits) or 'none'}"
        )
    return read_manifest(Path(data) / split, "labeled")


def _left_out_of_training(data: Path) -> int:
    """Counts the labeled images that were left out because they are, or look like, test images.

    `data` is a data directory.
    """
    key = "held_out_images_left_out_of_labeled"
    return len(read_json(data / "summary.json", {f"{key}?": list}).get(key, ()))


def _check_classes(candidate: Candidate, manifest: Manifest | None) -> None:
    ours = candidate.label_names
    if (
        not ours
    ):  # a SavedModel that does not say; the number of its answers is checked when it gives them
        return
    if manifest is None:
        if len(ours) != imagenet.NUM_CLASSES:
            raise InputError(
                f"{candidate.directory} has {len(ours)} classes, not ImageNet's "
                f"{imagenet.NUM_CLASSES}"
            )
        return
    require_same_classes(
        ours, str(candidate.directory), manifest.label_names, str(manifest.directory)
    )
