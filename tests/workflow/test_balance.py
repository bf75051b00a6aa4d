"""Filter and balance on hand-made shards."""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from ml_collections import ConfigDict

import workflow.predictions
from cli.errors import InputError
from cli.json_files import read_json, write_json
from data.protos import make_example, make_prediction, read_prediction
from data.records import (
    Manifest,
    read_manifest,
    read_shard,
    write_manifest,
    write_shard,
    write_split,
)
from workflow import balance, shard_jobs

LABEL_NAMES = ("ant", "bee", "cat", "dog")
PER_CLASS = {0: 30, 1: 12, 2: 5}  # no "dog"
THRESHOLD = 0.5


def _confidences() -> dict[str, tuple[int, float]]:
    """Returns key -> (class, confidence).

    Each class has distinct confidences from just above the threshold, and three not above it.
    """
    images = {}
    for label, count in PER_CLASS.items():
        for i in range(count):
            images[f"é/{label}-{i}.png"] = (label, 0.51 + 0.4 * (i + 1) / count)
        for i in range(3):
            # The last one is exactly at the threshold.
            images[f"low/{label}-{i}.png"] = (label, 0.4 + 0.05 * i)
    return images


def _distribution(label: int, confidence: float) -> np.ndarray:
    probabilities = np.full(len(LABEL_NAMES), (1 - confidence) / (len(LABEL_NAMES) - 1), np.float32)
    probabilities[label] = confidence
    if confidence == 0.5:  # sums to 1 in float16, too: reading it changes nothing
        probabilities[:] = 0
        probabilities[label : label + 2] = 0.5
    return probabilities


def _make_inputs(
    root: Path, shuffled: bool = False, keys: list[str] | None = None, shards: int = 4
) -> None:
    """Writes root/data and root/predictions, in shards.

    A key's image and its prediction are in shards of the same number.
    """
    images = _confidences()
    if keys is None:
        keys = [
            list(images)[i]
            for i in np.random.Generator(np.random.PCG64([0])).permutation(len(images))
        ]
    prediction_keys = keys
    if shuffled:
        edges = [i * len(keys) // shards for i in range(shards + 1)]
        prediction_keys = [
            key for a, b in zip(edges[:-1], edges[1:]) for key in reversed(keys[a:b])
        ]
    examples = (make_example(b"image of " + key.encode(), key) for key in keys)
    write_split(
        root / "data" / "unlabeled", "unlabeled", examples, shards, len(keys), kind="unlabeled"
    )
    predictions = (make_prediction(key, _distribution(*images[key]), 0) for key in prediction_keys)
    write_split(
        root / "predictions",
        "predictions",
        predictions,
        shards,
        len(keys),
        kind="predictions",
        label_names=LABEL_NAMES,
    )
    for name in ("data", "predictions"):
        write_json(root / name / "summary.json", {})


def _config(**settings: Any) -> ConfigDict:
    return ConfigDict(
        {
            "seed": 3,
            "balance": {
                **{
                    "threshold": THRESHOLD,
                    "images_per_class": 8,
                    "balance": True,
                    "max_confidence": 1.0,
                    "fraction": 1.0,
                },
                **{"share_per_class": 1.0, "sample_images": None, "copy_images": True},
                **{"priors": "uniform", **settings},
            },
        }
    )


def _run(root: Path, workdir: str = "balanced", config: ConfigDict | None = None) -> Path:
    balance.main(
        config or _config(), str(root / workdir), str(root / "data"), str(root / "predictions")
    )
    return root / workdir


def _copies(directory: Path) -> dict[str, int]:
    """Returns key -> how often it was written; checks every record and the manifest on the way."""
    manifest = read_manifest(directory, "pseudo_labeled")
    assert manifest.label_names == LABEL_NAMES
    copies: dict[str, int] = {}
    for path, count in zip(manifest.paths, manifest.records):
        for serialized in read_shard(path, num_records=count):
            features = tf.train.Example.FromString(serialized).features.feature
            key = features["image/key"].bytes_list.value[0].decode()
            label, confidence = _confidences()[key]
            assert features["image/encoded"].bytes_list.value[0] == b"image of " + key.encode()
            assert features["label"].int64_list.value[0] == label
            np.testing.assert_allclose(
                features["prob"].float_list.value[0], confidence, atol=1e-3
            )  # float16
            np.testing.assert_allclose(
                features["probabilities"].float_list.value,
                _distribution(label, confidence),
                atol=1e-3,
            )
            copies[key] = copies.get(key, 0) + 1
    return copies


def _files(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


@pytest.fixture(name="root", scope="module")
def _root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Makes the inputs, and root/balanced, an uninterrupted run."""
    root = tmp_path_factory.mktemp("balance")
    _make_inputs(root)
    _run(root)
    return root


def test_exact_counts(root: Path) -> None:
    copies = _copies(root / "balanced")
    expected = {f"é/0-{i}.png": 1 for i in range(22, 30)}  # the 8 most confident of 30
    expected.update({f"é/1-{i}.png": 1 for i in range(4, 12)})
    assert {key: n for key, n in copies.items() if "/2-" not in key} == expected
    assert sorted(n for key, n in copies.items() if "/2-" in key) == [
        1,
        1,
        2,
        2,
        2,
    ]  # 5 images, 8 records


def test_summary(root: Path) -> None:
    summary = balance.work_dirs.require_finished(root / "balanced", "", "")
    assert summary["above_threshold"] == [30, 12, 5, 0]
    assert summary["below_threshold"] == [3, 3, 3, 0]
    assert summary["unique"] == [8, 8, 5, 0]
    assert summary["total"] == [8, 8, 8, 0]
    assert (summary["num_records"], summary["num_unique"], summary["images"]) == (24, 21, 56)
    assert (
        summary["threshold"],
        summary["images_per_class"],
        summary["classes_without_images"],
    ) == (THRESHOLD, 8, ["dog"])
    assert (root / "balanced" / "pseudo_labels.png").read_bytes().startswith(b"\x89PNG")
    assert not (root / "balanced" / "progress").exists()


def test_median_by_default(root: Path) -> None:
    summary = balance.work_dirs.require_finished(
        _run(root, "median", _config(images_per_class=None)), "", ""
    )
    assert summary["images_per_class"] == 12
    assert summary["total"] == [12, 12, 12, 0]


def test_filter_only(root: Path) -> None:
    directory = _run(root, "filtered", _config(balance=False))
    assert _copies(directory) == {
        key: 1 for key, (_, confidence) in _confidences().items() if confidence > THRESHOLD
    }


def test_a_confidence_band(root: Path) -> None:
    directory = _run(root, "band", _config(balance=False, max_confidence=0.7))
    assert _copies(directory) == {
        key: 1 for key, (_, confidence) in _confidences().items() if THRESHOLD < confidence <= 0.7
    }


def test_images_are_drawn_from_the_balanced_set(root: Path) -> None:
    """`sample_images` draws exactly that many records of the balanced set, copies included.

    The number does not depend on `fraction`.
    """
    whole = _copies(_run(root, "whole", _config()))
    directory = _run(root, "drawn", _config(sample_images=11))
    drawn, summary = _copies(directory), read_json(directory / "summary.json")
    assert sum(drawn.values()) == sum(summary["total"]) == summary["num_records"] == 11
    assert len(drawn) == sum(summary["unique"]) == summary["num_unique"]
    assert all(count <= whole[key] for key, count in drawn.items())
    with pytest.raises(
        InputError, match=f"sample_images is 999, but the selection has only {sum(whole.values())} "
    ):
        _run(root, "too_many", _config(sample_images=999))


def test_a_share_of_each_class(root: Path) -> None:
    """Keeps half of 30, 12 and 5 images, rounded up.

    Then the 15, 6 and 3 images become 6 each, of the most confident.
    """
    half = _copies(_run(root, "share", _config(balance=False, share_per_class=0.5)))
    expected = {
        f"é/{label}-{i}.png" for label, count in PER_CLASS.items() for i in range(count // 2, count)
    }
    assert half == dict.fromkeys(expected, 1)
    filled = _copies(
        _run(root, "share_filled", _config(images_per_class=None, share_per_class=0.5))
    )
    assert set(filled) == {key for key in expected if "/0-" not in key} | {
        f"é/0-{i}.png" for i in range(24, 30)
    }
    assert all(filled[f"é/2-{i}.png"] == 2 for i in range(2, 5))


def test_a_fraction_is_drawn_by_seed(root: Path) -> None:
    half = _copies(_run(root, "half", _config(balance=False, fraction=0.5)))
    kept = {key for key, (_, confidence) in _confidences().items() if confidence > THRESHOLD}
    hashes = dict(zip(kept, balance.image_hashes(3, [key.encode() for key in kept])))
    assert set(half) == {key for key, value in hashes.items() if value <= 2**63}
    assert 0 < len(half) < len(kept)
    quarter = _copies(_run(root, "quarter", _config(balance=False, fraction=0.25)))
    assert set(quarter) < set(half)
    assert balance.work_dirs.require_finished(root / "half", "", "")["drawn"] < len(_confidences())


def test_seed_chooses_the_copies(root: Path) -> None:
    """Checks that seeds differ: 3 of 5 images are doubled, in one of ten ways."""

    def doubled(directory: Path) -> set[str]:
        return {key for key, n in _copies(directory).items() if n == 2}

    def with_seed(seed: int) -> ConfigDict:
        config = _config()
        config.seed = seed
        return config

    first = doubled(root / "balanced")
    assert any(doubled(_run(root, f"seed{seed}", with_seed(seed))) != first for seed in range(4, 8))


def test_hash_is_the_same_on_every_machine() -> None:
    assert balance.image_hashes(0, ["é/0.png".encode()]).tolist() == [13700739281895537276]
    assert (
        len({int(value) for seed in (0, 1) for value in balance.image_hashes(seed, [b"a", b"b"])})
        == 4
    )


def test_join_is_by_key(root: Path, tmp_path: Path) -> None:
    _make_inputs(tmp_path, shuffled=True)
    assert _copies(_run(tmp_path)) == _copies(root / "balanced")
    names = [f"pseudo_labeled-{i:05d}-of-00004" for i in range(4)]
    assert [(tmp_path / "balanced" / n).read_bytes() for n in names] == [
        (root / "balanced" / n).read_bytes() for n in names
    ]


def test_missing_key(tmp_path: Path) -> None:
    keys = list(_confidences())
    _make_inputs(tmp_path, keys=keys)
    images = [*keys[:20], "stranger.png", *keys[21:]]
    examples = (make_example(b"", key) for key in images)
    write_split(
        tmp_path / "data" / "unlabeled", "unlabeled", examples, 4, len(keys), kind="unlabeled"
    )
    with pytest.raises(
        InputError,
        match=(
            r"predictions-00001-of-00004: no prediction for image stranger\.png of"
            r" .*unlabeled-00001-of-00004"
        ),
    ):
        _run(tmp_path)
    assert not (tmp_path / "balanced" / "manifest.json").exists()


@pytest.mark.parametrize("second", [1, 40])
def test_doubled_key(tmp_path: Path, second: int) -> None:
    """A key is doubled in one shard, or in two."""
    keys = list(_confidences())
    keys[second] = keys[0]
    _make_inputs(tmp_path, keys=keys)
    with pytest.raises(
        InputError, match=r"image key é/0-0\.png appears twice, in .*predictions-00000-of-00004"
    ):
        _run(tmp_path)


def test_doubled_keys_are_found_with_few_open_files(tmp_path: Path) -> None:
    """A machine allows a process 1,024 open files, and a split has up to 16,384 shards."""
    files = tuple(f"predictions-{shard:05d}-of-00200" for shard in range(200))
    manifest = Manifest(
        tmp_path,
        "predictions",
        files,
        (1,) * 200,
        LABEL_NAMES,
        0,
        "predictions",
        {},
        ("",) * 200,
        trusted=True,
    )
    job = balance.ScoreShards(manifest, tmp_path / "columns", THRESHOLD, 3)
    keys = [f"{shard}.png" for shard in range(199)] + ["7.png"]
    for shard, key in enumerate(keys):
        write_shard(manifest.paths[shard], [make_prediction(key, _distribution(0, 0.9), 0)])
        balance._save(job.hashes_path(shard), balance.image_hashes(3, [key.encode()]))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    open_now = len(os.listdir("/dev/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + 50, hard))
    try:
        with pytest.raises(
            InputError, match=r"7\.png appears twice, in .*00007-of-00200 and .*00199-of-00200"
        ):
            balance.require_unique_keys(job)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_join_needs_each_key_once_on_both_sides() -> None:
    def join(images: str, predictions: str) -> list[tuple[str, bytes, Any]]:
        return list(
            balance.join_by_key(
                [(k, k.encode()) for k in images],
                [(k, k.upper()) for k in predictions],
                "images",
                "predictions",
            )
        )

    assert join("abc", "cab") == [("a", b"a", "A"), ("b", b"b", "B"), ("c", b"c", "C")]
    for images, predictions, message in [
        ("ab", "a", "predictions: no prediction for image b of images"),
        ("a", "ab", "predictions: there is a prediction for b, but images has no such image"),
        ("aa", "ab", "images: image key a appears twice"),
        ("ab", "aab", "predictions: image key a appears twice"),
        ("ba", "aab", "predictions: image key a appears twice"),
        ("ab", "aba", "predictions: image key a appears twice"),
    ]:
        with pytest.raises(InputError, match=message):
            join(images, predictions)


def test_nothing_above_threshold(root: Path) -> None:
    with pytest.raises(
        InputError, match=r"no image above threshold 0\.95; lower config\.balance\.threshold"
    ):
        _run(root, "none", _config(threshold=0.95))
    _run(root, "none", _config(threshold=0.5))


def test_empty_class_is_warned_of(
    root: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("absl"), "propagate", True)
    with caplog.at_level(logging.WARNING, "absl"):
        _run(root, "warned")
    assert "no image above threshold 0.5 for 1 of 4 classes: dog" in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"threshold": 1.0}, "below 1"), ({"images_per_class": 0}, "at least 1")],
)
def test_bad_settings(root: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        _run(root, "bad", _config(**settings))
    assert not (root / "bad").exists()


def test_truncated_predictions(tmp_path: Path) -> None:
    _make_inputs(tmp_path)
    path = tmp_path / "predictions" / "predictions-00002-of-00004"
    os.truncate(path, path.stat().st_size - 5)
    with pytest.raises(
        InputError, match=r"predictions-00002-of-00004: record 13 \(counting from 0\) is truncated"
    ):
        _run(tmp_path)
    assert not list((tmp_path / "balanced").glob("pseudo_labeled*"))


def test_predictions_of_other_data(root: Path, tmp_path: Path) -> None:
    _make_inputs(tmp_path, keys=list(_confidences())[:-1])
    with pytest.raises(InputError, match="was not made from"):
        balance.main(
            _config(), str(tmp_path / "balanced"), str(root / "data"), str(tmp_path / "predictions")
        )


def test_predictions_of_another_teacher(tmp_path: Path) -> None:
    """One of the other teacher's shards replaces ours: as many records, with the same keys."""
    _make_inputs(tmp_path)
    path = tmp_path / "predictions" / "predictions-00002-of-00004"
    keys = [read_prediction(record, len(LABEL_NAMES))[0] for record in read_shard(path)]
    write_shard(path, [make_prediction(key, _distribution(1, 0.9), 0) for key in keys])
    with pytest.raises(
        InputError,
        match=r"predictions-00002-of-00004 is not the file that manifest\.json describes",
    ):
        _run(tmp_path)
    assert not list((tmp_path / "balanced").glob("pseudo_labeled*"))


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"images": "0" * 64}, "was not made from the shards that .* has now"),
        ({"teacher": "b"}, "is of another teacher than .*config.json"),
    ],
)
def test_a_manifest_of_other_predictions(
    root: Path, tmp_path: Path, extra: dict[str, str], words: str
) -> None:
    _make_inputs(tmp_path)
    write_json(tmp_path / "predictions" / "config.json", {"inputs": {"teacher": "a"}})
    manifest = read_manifest(tmp_path / "predictions")
    right = {"images": read_manifest(tmp_path / "data" / "unlabeled").digest, "teacher": "a"}
    write_manifest(dataclasses.replace(manifest, extra=right))
    _run(tmp_path)
    write_manifest(dataclasses.replace(manifest, extra={**right, **extra}))
    with pytest.raises(InputError, match=words):
        _run(tmp_path, "other")
    write_manifest(dataclasses.replace(manifest, extra=right))
    write_json(tmp_path / "predictions" / "config.json", "x")
    with pytest.raises(InputError, match=r"is of another teacher than .*config\.json"):
        _run(tmp_path, "another")


@pytest.mark.parametrize("top_k", [0, 2])
def test_the_threshold_itself_is_not_higher(tmp_path: Path, top_k: int) -> None:
    """float16 has 0.30005 for 0.3, which is above the threshold.

    Each image is in one of two neighboring bands.
    """
    confidences = np.array(
        [0.2995, 0.2999, 0.3, 0.3004, 0.31, 0.5996, 0.6, 0.6005, 0.7], np.float32
    )
    rows = np.stack([confidences, *[(1 - confidences) / 4] * 4], axis=1)
    rows[confidences < 0.32, 1:] = (
        np.array([0.2, 0.2, 0.2, 0.1], np.float32)
        / np.float32(0.7)
        * (1 - confidences[confidences < 0.32, None])
    )
    records = [make_prediction(str(i), row, top_k) for i, row in enumerate(rows)]
    predictions = write_split(
        tmp_path / "p",
        "predictions",
        records,
        1,
        len(rows),
        kind="predictions",
        label_names=list("abcde"),
    )
    kept = []
    for least, most in ((0.3, 0.6), (0.6, 1.0)):
        job = balance.ScoreShards(predictions, tmp_path / str(most), least, 3, max_confidence=most)
        job.run(0)
        with np.load(job.columns_path(0)) as columns:
            kept.append(confidences[columns["position"]].tolist())
    assert kept == [confidences[3:7].tolist(), confidences[7:].tolist()]


def test_unknown_beam_option(root: Path) -> None:
    for options in (["--runer=DirectRunner"], ["--config.balance.treshold=0.2"]):
        with pytest.raises(
            InputError, match="neither a flag of this stage nor an option of Apache Beam"
        ):
            balance.main(
                _config(),
                str(root / "option"),
                str(root / "data"),
                str(root / "predictions"),
                beam_options=options,
            )


def test_finished_is_left_alone(root: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (root / "balanced").rglob("*")}
    _run(root)
    assert {path: path.stat().st_mtime_ns for path in (root / "balanced").rglob("*")} == before


class _Killed(BaseException):
    """Like a signal, passes every `except Exception`."""


@pytest.mark.parametrize(
    ("module", "function", "calls"),
    [
        (workflow.predictions, "_top", 2),  # pass 1, in shard 2
        (shard_jobs, "write_json", 2),  # pass 1, a shard's files are there but not its note
        (balance, "make_example", 9),  # pass 2, in a shard
        (shard_jobs, "write_json", 6),  # pass 2, before the note of shard 1
        (balance, "write_manifest", 0),
        (balance.work_dirs, "finish", 0),
        (balance.shard_jobs, "forget", 0),
    ],
)
def test_continues_after_an_interruption(
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    function: str,
    calls: int,
) -> None:
    workdir = root / tmp_path.name
    original, count = getattr(module, function), 0

    def killed(*arguments: Any, **keywords: Any) -> Any:
        nonlocal count
        count += 1
        if count > calls:
            raise _Killed
        return original(*arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(module, function, killed)
        with pytest.raises((_Killed, RuntimeError)):  # Beam wraps what a worker raises
            _run(root, workdir.name)
    assert count > calls
    _run(root, workdir.name)
    assert _files(workdir) == _files(root / "balanced")


KILLED_RUN = """
import os, signal, sys
from workflow import balance
from tests.workflow import test_balance
original, calls = balance.make_example, 0
def make_example(*arguments, **keywords):
    global calls
    calls += 1
    if calls > 9:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments, **keywords)
balance.make_example = make_example
test_balance._run(test_balance.Path(sys.argv[1]), "sigkill")
"""


def test_continues_after_sigkill(root: Path) -> None:
    """Sends a real SIGKILL in the middle of a shard.

    What the earlier shards wrote is not written again.
    """
    repository = Path(__file__).resolve().parents[2]
    run = subprocess.run(
        [sys.executable, "-c", KILLED_RUN, str(root)],
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == -signal.SIGKILL, run.stderr
    first = root / "sigkill" / "pseudo_labeled-00000-of-00004"
    written = first.stat().st_mtime_ns
    assert list((root / "sigkill").glob(".pseudo_labeled-*.tmp-*"))
    _run(root, "sigkill")
    assert _files(root / "sigkill") == _files(root / "balanced")
    assert first.stat().st_mtime_ns == written


def test_a_full_disk(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fills the disk in the middle of a shard of training records.

    The stage ends with one line, and leaves nothing half-written. When there is room, the same
    command goes on.
    """
    workdir = root / tmp_path.name
    original, calls = balance.make_example, 0

    def full(*arguments: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 9:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "shard")
        return original(*arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(balance, "make_example", full)
        with pytest.raises(
            InputError,
            match=(
                r"^no space left on the disk of .*/pseudo_labeled-0000\d-of-00004; make room and"
                r" run "
            ),
        ):
            _run(root, workdir.name)
    assert (
        not [path for path in workdir.rglob(".*") if path.is_file()]
        and not (workdir / "manifest.json").exists()
    )
    written = {path: path.stat().st_mtime_ns for path in workdir.glob("pseudo_labeled-*")}
    assert 0 < len(written) < 4
    _run(root, workdir.name)
    assert _files(workdir) == _files(root / "balanced")
    assert all(path.stat().st_mtime_ns == time for path, time in written.items())
