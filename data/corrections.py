"""Labels that a person corrected or added: the list of `--labels`.

A row names a file and its label. The file is one of `--labeled`; or one of `--unlabeled`, which
becomes a labeled image; or any other file, which is added. The class must be one of the labeled
images'.

In a list with a column `checked`, such as `labels_N.csv` of a run (`workflow.labels`), a row counts
in two cases: its label differs from the list's `given` or `teacher`, or `checked` is not empty. In
any other list each row counts.

The test images held out of the labeled ones are drawn as without the corrections. So a run with
corrections can be compared with the run before. An added image is never held out for the test.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import ml_collections
import numpy as np
from absl import logging

from cli.errors import InputError
from data.image_folder import File, FolderImages
from data.image_list import Row, located, read_rows
from data.sources import Collection, open_collection, printable

if TYPE_CHECKING:
    from data.draws import Usable  # which needs TensorFlow

ADDED = "corrected/"
"""Prefix of the key of an added image."""


class Corrected(FolderImages):
    """The labeled images with corrections: those of `--labeled`, then the added ones.

    Attributes:
      given: int32 [m], labels of the first m images before the corrections.
    """

    given: np.ndarray

    def corrected(self) -> set[str]:
        """Returns the keys of the images that a person labeled."""
        changed = np.flatnonzero(self.labels[: len(self.given)] != self.given).tolist()
        return {self.key(i) for i in [*changed, *range(len(self.given), len(self.labels))]}


def open_collections(data: ml_collections.ConfigDict) -> dict[str, Collection]:
    """Lists the images of each role in `config.data`, with the corrections of `data.labels`.

    Raises:
      InputError: images cannot be listed; or corrections cannot be used, after a line about each.
    """
    listed = {
        role: open_collection(data[role], role, data)
        for role in ("labeled", "unlabeled", "test")
        if data[role]
    }
    return _corrected(listed, data) if data.get("labels") else listed


def open_role(role: str, data: ml_collections.ConfigDict) -> Collection:
    """Lists the images of one role, as `open_collections` does."""
    return (
        open_collections(data)[role]
        if data.get("labels")
        else open_collection(data[role], role, data)
    )


def _corrected(listed: dict[str, Any], data: ml_collections.ConfigDict) -> dict[str, Collection]:
    path, names = data.labels, listed["labeled"].label_names
    for role, collection in listed.items():
        if role != "test" and not isinstance(collection, FolderImages):
            raise InputError(
                f"--labels corrects folders and lists of files only; --{role} is neither"
            )
    files = {
        role: {os.path.normpath(file.path): i for i, file in enumerate(listed[role].files())}
        for role in listed
        if role != "test"
    }
    labels, moved, added, problems = listed["labeled"].labels.copy(), set(), [], []
    of: dict[str, str] = {}
    for row in _counting(path):
        place, key = located(path, row.values["file"])
        label = unicodedata.normalize("NFC", row.values["label"])
        why = _unusable(place, label, names, of.setdefault(place, label))
        if why:
            problems.append(
                {
                    "file": f"{printable(path)}, {row.place}",
                    "why": f"{printable(row.values['file'])} {why}",
                }
            )
            continue
        number = names.index(label)
        if place in files["labeled"]:
            labels[files["labeled"][place]] = number
            continue
        if place in files.get("unlabeled", {}):
            moved.add(files["unlabeled"][place])
            key = listed["unlabeled"].key(files["unlabeled"][place])
        added.append(
            File(place, ADDED + key, number, f"{printable(os.path.basename(path))}, {row.place}")
        )
    for problem in problems:
        logging.warning("--labels: %s: %s", problem["file"], problem["why"])
    if problems and data.on_error == "fail":
        raise InputError(
            f"--labels: {printable(path)} has {len(problems)} rows that cannot be used (the lines"
            " above say why); mend them, or leave such rows out with --config.data.on_error=skip"
        )
    changed = int((labels != listed["labeled"].labels).sum())
    logging.info(
        "--labels: %d labels changed, %d images added (%d of them were unlabeled)",
        changed,
        len(added),
        len(moved),
    )
    return _replaced(listed, labels, added, moved, problems)


def _replaced(
    listed: dict[str, Any],
    labels: np.ndarray,
    added: list[File],
    moved: set[int],
    problems: Sequence[dict[str, str]],
) -> dict[str, Collection]:
    old = listed["labeled"]
    files = [file._replace(label=int(label)) for file, label in zip(old.files(), labels)]
    unique = {file.path: file for file in added}.values()
    labeled = Corrected(
        files + sorted(unique, key=lambda file: file.key), old.label_names, old.ignored, old.convert
    )
    labeled.given, labeled.problems = old.labels, (*old.problems, *problems)
    result: dict[str, Collection] = {**listed, "labeled": labeled}
    if moved:
        pool = listed["unlabeled"]
        rest = FolderImages(
            [file for i, file in enumerate(pool.files()) if i not in moved],
            (),
            pool.ignored,
            pool.convert,
        )
        rest.problems = pool.problems
        result["unlabeled"] = rest
    return result


def _counting(path: str) -> list[Row]:
    """Returns the rows of a list that a person changed or checked. Raises InputError."""

    def error(message: str) -> InputError:
        return InputError(f"--labels: {printable(path)} {message}")

    rows = read_rows(path, ("file", "label"), error)
    mine = [row for row in rows if "checked" not in row.values or _touched(row.values)]
    if not mine:
        raise error(
            f"has no corrected row among {len(rows)}; change a label, or mark a right one in the"
            " column checked"
        )
    return mine


def _touched(values: dict[str, str]) -> bool:
    before = values.get("given") or values.get("teacher", "")
    return bool(values["checked"]) or values["label"] != before


def _unusable(place: str, label: str, names: Sequence[str], other: str) -> str:
    """Returns why a correction cannot be used; "" if it can."""
    if not label:
        return "has no label"
    if label not in names:
        shown = ", ".join(map(printable, names[:10])) + (", ..." if len(names) > 10 else "")
        return f"has the label {printable(label)}, which is not a class of --labeled ({shown})"
    if other != label:
        return f"has two labels, {printable(other)} and {printable(label)}"
    return "" if os.path.isfile(place) else "does not exist"


def hold_out(
    labeled: Usable, label_names: Sequence[str], data: ml_collections.ConfigDict
) -> tuple[Usable, Usable]:
    """Draws the test images as `data.draws.hold_out_test`; corrections do not change the draw.

    Returns:
      The test images and the others, with the corrected labels. An added image that repeats a test
      image is in neither.

    Raises:
      InputError: see `hold_out_test`.
    """
    from data.draws import hold_out_test

    collection = labeled.collection
    if not isinstance(collection, Corrected):
        return hold_out_test(labeled, label_names, data)
    final, count = collection.labels, len(collection.given)
    old = [place for place, index in enumerate(labeled.indices) if index < count]
    try:
        collection.labels = np.concatenate([collection.given, final[count:]])
        test, rest = hold_out_test(labeled.pick(old), label_names, data)
    finally:
        collection.labels = final
    kept, groups = set(rest.indices), set(test.groups.tolist())
    of_added = (
        index >= count and int(group) not in groups
        for index, group in zip(labeled.indices, labeled.groups)
    )
    places = [
        place
        for place, (index, is_added) in enumerate(zip(labeled.indices, of_added))
        if index in kept or is_added
    ]
    return test, labeled.pick(places)
