"""Makes another exported version the stable one, after a check, and takes that back.

    ./run_tool.sh promote --serving_dir=SERVING_DIR --data=DATA_DIRECTORY [--split=test]
        [--version=N] [--drop=1] [--agreement=70] [--slower=1.5]
    ./run_tool.sh rollback --serving_dir=SERVING_DIR [--version=N]

`promote` asks the stable version and the candidate about the same held-out images. Where accuracy,
agreement and time are within the limits, it replaces `models.config`, which is a single rename. A
server that reads the file again loads the version before it drops the other one. `rollback` returns
to the version that was stable before. SERVING_DIR/promotions.jsonl has a line for each change.
"""

from __future__ import annotations

import datetime
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from cli.errors import InputError
from cli.files import atomic_path
from cli.json_files import read_json_lines, to_json
from cli.work_dirs import require_finished
from data.records import Manifest, read_manifest, require_same_classes
from serving import settings, versions
from serving.lite import encoded_examples

LOG = "promotions.jsonl"
RECORD = {"model": str, "from": int, "to": int, "what": str}
BATCH = 32
TIMED = 50
"""Number of single-image requests that are timed, for each version."""


class Check(NamedTuple):
    """Measurements of a comparison. Pairs are (stable, candidate).

    Attributes:
      examples: images.
      top1: accuracies in 0–1.
      agreement: share of the images to which both give the same class, in 0–1.
      milliseconds: median time of a request of one image.
    """

    examples: int
    top1: tuple[float, float]
    agreement: float
    milliseconds: tuple[float, float]


def promote(
    serving_dir: str,
    data: str,
    split: str = "test",
    name: str = "classifier",
    version: int | None = None,
    drop: float = 1.0,
    agreement: float = 70.0,
    slower: float = 1.5,
) -> None:
    """Makes another version of a model stable, where it passes the check.

    Args:
      serving_dir: directory of exported models.
      data: data directory.
      split: a labeled split of `data` that the models were not trained on.
      name: the model.
      version: the candidate; default the newest.
      drop: percentage points by which the candidate's accuracy may be below the stable version's.
      agreement: percentage of images to which both must give the same class.
      slower: how many times the stable version's time a request may take.

    Raises:
      InputError: a check that failed (`models.config` stays as it is), unusable flags, a version
        or data that cannot be used.
    """
    folder, before = Path(serving_dir), settings.stable(Path(serving_dir), name)
    candidate = versions.versions(folder / name)[-1] if version is None else version
    if candidate == before:
        print(f"version {before} of {name} is stable already; nothing to promote")
        return
    _require_version(folder / name, candidate)
    require_finished(data, "data directory", "run_prepare_data.sh")
    manifest = read_manifest(Path(data) / split, "labeled")
    paths = [folder / name / str(number) for number in (before, candidate)]
    for path in paths:
        names = manifest.label_names
        require_same_classes(_labels(path), str(path), names, str(manifest.directory))
    measured = measure_versions(paths[0], paths[1], manifest)
    print(table(measured, before, candidate))
    reasons = faults(measured, drop, agreement, slower)
    if reasons:
        raise InputError(
            f"version {candidate} of {name} is not promoted: {'; '.join(reasons)}. Version"
            f" {before} stays stable."
        )
    _change(folder, name, before, candidate, "promote", measured)


def rollback(serving_dir: str, name: str = "classifier", version: int | None = None) -> None:
    """Makes `version` stable, or else the version that was stable before the last promotion.

    Raises:
      InputError: there is no promotion to take back, or the version is missing or damaged.
    """
    folder, now = Path(serving_dir), settings.stable(Path(serving_dir), name)
    if version is None:
        made = {"model": name, "what": "promote", "to": now}
        log = [record for record in _read_log(folder) if made.items() <= record.items()]
        version = log[-1]["from"] if log else None
    if version is None:
        raise InputError(
            f"{folder / LOG} has no promotion of {name} to its version {now}; name the version with"
            " --version"
        )
    if version == now:
        print(f"version {now} of {name} is stable already; nothing to roll back")
        return
    _require_version(folder / name, version)
    versions.verify(folder / name / str(version))
    _change(folder, name, now, version, "rollback", None)


def measure_versions(stable: Path, candidate: Path, manifest: Manifest) -> Check:
    """Measures two SavedModels on a labeled split.

    Raises InputError for damaged records or none.
    """
    loaded = [versions.load(path) for path in (stable, candidate)]
    functions = [model.signatures["serving_default"] for model in loaded]
    given: list[list[np.ndarray]] = [[], []]
    labels: list[int] = []
    for images, of_images in _batches(manifest):
        for classes, function in zip(given, functions):
            classes.append(function(image_bytes=images)["classes"][:, 0].numpy())  # -1: no image
        labels += of_images
    if not labels:
        raise InputError(f"{manifest.directory} holds no examples; make the data again")
    ours, theirs = (np.concatenate(classes) for classes in given)
    top1 = float(np.mean(ours == labels)), float(np.mean(theirs == labels))
    return Check(len(labels), top1, float(np.mean(ours == theirs)), _times(functions, manifest))


def _batches(manifest: Manifest) -> Iterator[tuple[tf.Tensor, list[int]]]:
    examples = encoded_examples(manifest)
    while batch := list(itertools.islice(examples, BATCH)):
        yield tf.stack([encoded for _, encoded, _ in batch]), [label for _, _, label in batch]


def _times(functions: list[Any], manifest: Manifest) -> tuple[float, float]:
    """Returns the functions' median milliseconds for a request of one image, asked by turns."""
    examples = itertools.islice(encoded_examples(manifest), TIMED)
    images = [encoded[tf.newaxis] for _, encoded, _ in examples]
    seconds: list[list[float]] = [[], []]
    for image in [images[0], *images]:  # the first request of a shape is slower
        for function, times in zip(functions, seconds):
            began = time.perf_counter()
            function(image_bytes=image)
            times.append(time.perf_counter() - began)
    first, second = (1000 * float(np.median(times[1:])) for times in seconds)
    return first, second


def faults(measured: Check, drop: float, agreement: float, slower: float) -> list[str]:
    """Returns in words what is beyond a limit of `promote`."""
    (before, after), (old, new) = measured.top1, measured.milliseconds
    result = []
    if 100 * (before - after) > drop + 1e-9:
        result.append(
            f"top-1 falls from {100 * before:.2f} to {100 * after:.2f} %, and"
            f" --drop={drop:g} points are allowed"
        )
    if 100 * measured.agreement < agreement - 1e-9:
        result.append(
            f"it agrees with the stable version on {100 * measured.agreement:.2f} % of the images,"
            f" below --agreement={agreement:g}"
        )
    if new > slower * old:
        result.append(
            f"a request takes {new:.1f} ms instead of {old:.1f} ms, more than"
            f" --slower={slower:g} times as long"
        )
    return result


def table(measured: Check, before: int, candidate: int) -> str:
    """Returns the Markdown table of a check."""
    rows = zip(
        (f"stable: version {before}", f"candidate: version {candidate}"),
        measured.top1,
        measured.milliseconds,
    )
    head = ["| | top-1 % | ms a request of one image |", "|---|---|---|"]
    lines = [f"| {name} | {100 * top1:.2f} | {time:.2f} |" for name, top1, time in rows]
    same = f"both give the same class to {100 * measured.agreement:.2f} % of them"
    return "\n".join([*head, *lines, "", f"{measured.examples:,} images; {same}"])


def _labels(version: Path) -> list[str]:
    """Returns the class names of a version. Raises InputError where they cannot be read."""
    path = version / "assets.extra" / "labels.txt"
    try:
        return path.read_text(encoding="utf-8").split("\n")[:-1]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} cannot be read; export the model again with run_export.sh"
        ) from error


def _require_version(folder: Path, version: int) -> None:
    found = versions.versions(folder)
    if version not in found:
        there = ", ".join(map(str, found))
        raise InputError(f"--version: {folder} holds no version {version}; there are {there}")


def _read_log(serving_dir: Path) -> list[dict[str, Any]]:
    path = serving_dir / LOG
    return [record for _, record in read_json_lines(path, RECORD)] if path.exists() else []


def _change(
    serving_dir: Path,
    name: str,
    before: int,
    after: int,
    what: str,
    measured: Check | None,
) -> None:
    """Writes the log, then `models.config`, which counts: a log ahead of it changes nothing."""
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    record = {
        "what": what,
        "model": name,
        "from": before,
        "to": after,
        "time": now,
        "check": measured and measured._asdict(),
    }
    with atomic_path(serving_dir / LOG) as temporary:
        lines = [to_json(line) + "\n" for line in [*_read_log(serving_dir), record]]
        temporary.write_text("".join(lines), encoding="utf-8")
    settings.set_stable(serving_dir, name, after)
    print(
        f"version {after} of {name} is stable now, instead of version {before}; running servers"
        " follow within 30 s"
    )
