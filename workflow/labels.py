"""Writes what the loop thinks of each image, for a person to look at and to correct.

    ./run_tool.sh labels --workdir=W [--iteration=N] [--ask=20] [--tasks=FILE]

`W/labels_N.csv` has a row for each image that iteration N trained on or could have trained on. If a
selection is labeled again, these are the images of the selection. The columns are `COLUMNS`. The
rows to look at come first. `ask` says why to look:

- `looks_wrong`: a labeled image to which teacher and student, trained without it, both give
  another class (`workflow.crossfit`); the most confident first. Without cross-fitting there are
  none.
- `out_of_domain`: an unlabeled image of the lowest maximum probability (Hendrycks & Gimpel 2017,
  "A Baseline for Detecting Misclassified and Out-of-Distribution Examples"). It may show no class.
- `label_next`: an unlabeled image of the smallest margin between its two most probable classes
  (Scheffer et al. 2001), by turns over the predicted classes. Its label would tell the most.

`out_of_domain` and `label_next` use the mean of the teacher's and the student's distribution.

A person writes the right class into `label`, or anything into `checked` where it is right already.
The person gives the file back with `--labels` (`data.corrections`). With `--tasks` the images to
look at become tasks for Label Studio. `--labels` takes its export, too (`data.label_studio`).
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import ml_collections
from absl import logging

from cli import work_dirs
from cli.errors import InputError
from cli.files import atomic_path
from cli.json_files import read_json, write_json
from data import label_studio
from data.corrections import Corrected, open_collections
from data.records import read_manifest
from data.sources import split_location
from workflow import seen
from workflow.seen import ImageAnswers
from workflow.stages import ENDING, Stage, model_directories, selection_of

COLUMNS = (
    "file",
    "label",
    "confidence",
    "role",
    "kept",
    "why",
    "given",
    "teacher",
    "student",
    "ask",
    "checked",
)
"""Columns of the file.

- `file`: path of the image; its key where it is not in a separate file.
- `label`: the given label, or the pseudo-label. This is the column to correct.
- `confidence`: the label's probability by the teacher, 0-1. For a labeled image it is from
  cross-fitting, or empty.
- `role`: `labeled` or `unlabeled`.
- `kept`: how many times the student learned from the image.
- `why`: why the student did not learn from the image.
- `given`: the given label of a labeled image, as it was.
- `teacher`, `student`: the class that each names; for labeled images by cross-fitting.
- `ask`: see the module.
- `checked`: `EARLIER` where the label is a correction that this run was given. So a later run has
  the correction, too. Otherwise empty, for a person.
"""
EARLIER = "earlier"

ASK = 20
MOST = 500_000
"""Most unlabeled images for which the loop writes the file: a person has no use for more rows."""
FILES = ("image_folder", "manifest")
"""Formats with images in files, which a person can open."""


def main(workdir: str, iteration: int | None, ask: int, tasks: str | None = None) -> None:
    """Writes the file of an iteration, by default the last finished one. Raises InputError."""
    directory = Path(workdir).expanduser().resolve()
    work_dirs.require_finished(directory / "data", "data", "run_noisy_student.sh")
    if iteration is None:
        finished = [
            n
            for n in range(1, 1000)
            if (directory / f"pseudo_labeled_{n}" / "summary.json").exists()
        ]
        if not finished:
            raise InputError(
                f"{directory} has no pseudo-labels of a finished iteration; finish one with"
                " run_noisy_student.sh"
            )
        iteration = max(finished)
    answered = (directory / f"predictions_{iteration + 1}" / "summary.json").exists()
    # Otherwise the loop would keep this list, without the student's answers.
    if _wanted(directory) and not answered and not (directory / "summary.json").exists():
        raise InputError(
            f"{directory}: the student of iteration {iteration} has not answered yet; finish the"
            " run, or name an earlier --iteration"
        )
    print(write(directory, iteration, ask))
    if tasks:
        write_tasks(directory, iteration, Path(tasks).expanduser())


def write_tasks(workdir: Path, iteration: int, path: Path) -> None:
    """Writes the images to look at as Label Studio's tasks.

    Writes the labeling interface that the tasks need beside them, as `.xml`.

    Raises:
      InputError: there are no images to look at, or they are not in separate files.
    """
    with open(workdir / f"labels_{iteration}.csv", encoding="utf-8", newline="") as file:
        asked = [row for row in csv.DictReader(file) if row["ask"]]
    if not asked or not all(
        os.path.isabs(row["file"]) and os.path.isfile(row["file"]) for row in asked
    ):
        raise InputError(
            "--tasks: there are no images to look at, or they are not files; see labels_N.csv"
        )
    model = f"iteration {iteration}"
    made = [
        label_studio.task(
            row["file"], row["label"], float(row["confidence"] or 0), model, row["ask"]
        )
        for row in asked
    ]
    write_json(path, made)
    names = read_manifest(workdir / "data" / "labeled", "labeled").label_names
    with atomic_path(path.with_suffix(".xml")) as temporary:
        temporary.write_text(label_studio.interface(names), encoding="utf-8")
    print(
        f"{path}: {len(made)} tasks for Label Studio; its labeling interface is"
        f" {path.with_suffix('.xml')}"
    )


def write(workdir: Path, iteration: int, ask: int = ASK) -> str:
    """Writes the file of an iteration; returns what there is to look at, in words.

    Raises:
      InputError: the iteration is not finished; or the file exists and differs, since a person has
        edited it.
    """
    labeled = read_manifest(workdir / "data" / "labeled", "labeled")
    out_of_fold, remark = seen.out_of_fold(workdir, iteration)
    images = [*seen.labeled(labeled, out_of_fold), *seen.unlabeled(workdir, iteration)]
    asks = choose(images, ask)
    path = workdir / f"labels_{iteration}.csv"
    where, corrected = paths(workdir / "data")
    content = _table(images, asks, labeled.label_names, where, corrected).encode("utf-8")
    if path.exists() and path.read_bytes() != content:
        raise InputError(
            f"{path} exists, but was edited or has another --ask; give it back with --labels, or "
            "delete it"
        )
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    if not (workdir / f"predictions_{iteration + 1}" / "summary.json").exists():
        remark += (
            f"; the student's own answers are missing (there is no predictions_{iteration + 1}), "
            "so only the teacher's answers count"
        )
    counts = Counter(asks.values())
    roles = Counter(image.role for image in images)
    return (
        f"{path}: {roles['labeled']:,} labeled and {roles['unlabeled']:,} unlabeled images; to"
        f" look at: {counts['label_next']} to label next, {counts['out_of_domain']} perhaps out of"
        f" domain, {counts['looks_wrong']} with labels that look wrong{remark}"
    )


def write_after(finished: Path, workdir: Path) -> None:
    """Writes the file of an iteration, once the answers of its student are there.

    The loop calls it after each stage.

    Args:
      finished: directory of the stage that has ended.
      workdir: work directory of the loop.
    """
    number = re.fullmatch(r"predictions_([0-9]+)", finished.name)
    iteration = int(number[1]) - 1 if number and finished.parent == workdir else 0
    if iteration > 0 and _wanted(workdir) and not (workdir / f"labels_{iteration}.csv").exists():
        print(write(workdir, iteration), flush=True)


def answer_stages(config: ml_collections.ConfigDict, workdir: Path, students: int) -> list[Stage]:
    """Returns the stage in which the last student answers the unlabeled images.

    Returns no stage where the file is not wanted. The stage is the first stage of a further
    iteration.
    """
    if not (workdir / f"pseudo_labeled_{students}").is_dir() or not _wanted(workdir):
        return []
    return [_of_last(config, workdir, students)]


def foreseen(
    config: ml_collections.ConfigDict,
    workdir: Path,
    folders: Mapping[str, str],
    stages: Sequence[Stage],
    unlabeled: int,
) -> list[Stage]:
    """Returns the stages of a plan with the one of `answer_stages`, where it will come.

    Args:
      config: the recipe.
      workdir: work directory of the loop.
      folders: source directories by flag name.
      stages: what `stages.plan` returns.
      unlabeled: number of unlabeled images.
    """
    students = config.iterations
    location = folders.get("unlabeled") or folders.get("labeled")
    balanced = [stage.directory.name for stage in stages if stage.script == "run_balance.sh"]
    if (
        f"pseudo_labeled_{students}" not in balanced
        or not _of_files(location, config.data.source)
        or unlabeled > MOST
    ):
        return list(stages)
    at = next(i for i, stage in enumerate(stages) if stage.name in ENDING)
    return [*stages[:at], _of_last(config, workdir, students), *stages[at:]]


def _of_last(config: ml_collections.ConfigDict, workdir: Path, students: int) -> Stage:
    """Returns the stage in which student number `students` answers the unlabeled images."""
    predictions = workdir / f"predictions_{students + 1}"
    section = predictions.name.replace("predictions", "pseudo_label")
    arguments = {
        "section": section if section in config else "pseudo_label",
        "data": workdir / "data",
    }
    arguments |= selection_of(config, workdir, students + 1)
    teacher = model_directories(workdir, students)[-1]
    return Stage(
        "labels", "run_pseudo_label.sh", predictions, {**arguments, "teacher": teacher}, beam=True
    )


def _of_files(location: str | None, source: str) -> bool:
    """Tells whether the images of a location are separate files."""
    return bool(source != "digits" and location and split_location(location, source)[0] in FILES)


def _wanted(workdir: Path) -> bool:
    """Tells whether a person can look at the images: they are files, and not too many."""
    if not (workdir / "data" / "config.json").exists():
        return False
    data = read_json(workdir / "data" / "config.json", {"data": dict})["data"]
    if not _of_files(data["unlabeled"] or data["labeled"], data["source"]):
        return False
    return read_manifest(workdir / "data" / "unlabeled", "unlabeled").num_records <= MOST


def choose(images: Sequence[ImageAnswers], ask: int) -> dict[int, str]:
    """Chooses the images to look at.

    Args:
      images: all images.
      ask: largest number of images of each kind.

    Returns:
      Index of an image -> `looks_wrong`, `out_of_domain` or `label_next`, in the order of looking.
    """
    wrong = [
        i for i, image in enumerate(images) if image.role == "labeled" and _contradicted(image)
    ]
    pool = [i for i, image in enumerate(images) if image.role == "unlabeled"]
    strange = sorted(pool, key=lambda i: images[i].first)[:ask]
    by_class: dict[int, list[int]] = {}
    for i in sorted(set(pool).difference(strange), key=lambda i: (images[i].margin, i)):
        by_class.setdefault(images[i].predicted, []).append(i)
    turns = [
        places[turn] for turn in range(ask) for places in by_class.values() if turn < len(places)
    ]
    kinds = {
        "label_next": turns[:ask],
        "looks_wrong": sorted(wrong, key=lambda i: images[i].confidence or 0)[:ask],
        "out_of_domain": strange,
    }
    return {i: kind for kind, places in kinds.items() for i in places}


def _contradicted(image: ImageAnswers) -> bool:
    """Tells whether teacher and student both name another class than the label.

    False where their answers are unknown.
    """
    return image.teacher >= 0 and image.label not in (image.teacher, image.student)


def _table(
    images: Sequence[ImageAnswers],
    asks: Mapping[int, str],
    names: Sequence[str],
    path_of: Callable[[str, str], str],
    corrected: Set[str],
) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)

    def name(label: int) -> str:
        return names[label] if label >= 0 else ""

    for i in [*asks, *(i for i in range(len(images)) if i not in asks)]:
        one = images[i]
        confidence = "" if one.confidence is None else f"{one.confidence:.4f}"
        given = name(one.label) if one.role == "labeled" else ""
        answer_cells = (
            name(one.label),
            confidence,
            one.role,
            one.kept,
            one.why,
            given,
            name(one.teacher),
            name(one.student),
        )
        earlier = EARLIER if one.role == "labeled" and one.key in corrected else ""
        writer.writerow((path_of(one.role, one.key), *answer_cells, asks.get(i, ""), earlier))
    return text.getvalue()


def paths(data: Path) -> tuple[Callable[[str, str], str], Set[str]]:
    """Returns a function that finds an image's file, and the keys of corrected images.

    The function takes role and key of an image in prepared data. It returns the key where the image
    has no separate file, or where the sources are gone.
    """
    settings = ml_collections.ConfigDict(read_json(data / "config.json", {"data": dict})["data"])
    found: dict[str, dict[str, str]] = {"labeled": {}, "unlabeled": {}}
    corrected: Set[str] = set()
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # the preparation has reported what is passed over
    try:
        collections = open_collections(settings)
        if isinstance(collections["labeled"], Corrected):
            corrected = collections["labeled"].corrected()
        for role, files in found.items():
            if role in collections:
                files.update(_files(collections[role]))
    except InputError as error:
        print(f"note: the images' files cannot be listed ({error}); the column file has their keys")
    finally:
        logging.set_verbosity(verbosity)

    def of(role: str, key: str) -> str:
        pool, _, rest = key.partition("/")
        both = role == "unlabeled" and pool in found  # a pool of two parts, see `data.splits`
        file = found[pool].get(rest) if both else None
        return file or found[role].get(key) or found["labeled"].get(key) or key

    return of, corrected


def _files(collection: Any) -> Iterable[tuple[str, str]]:
    if hasattr(collection, "files"):
        return ((file.key, file.path) for file in collection.files())
    return ((collection.key(i), collection.describe(i)) for i in range(len(collection.labels)))
