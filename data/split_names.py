"""Notices folders of splits where folders of classes are expected.

Splits are `train/`, `val/`, `test/`, and the `labeled/` and `unlabeled/` of this project.

A data set's root, taken for the folder of the classes, would give a classifier of split names. The
stage stops where that is certain, and warns where a reader must decide.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from absl import logging

from data.sources import Request, printable

_WORDS = {
    "train": "train training trainset trainval trn",
    "validation": "val valid validation validate valset dev devel devset eval evaluation",
    "test": "test testing tests testset tst holdout heldout",
    "labeled": "labeled labeled",
    "unlabeled": "unlabeled unlabeled",
}
_ROLES = {word: role for role, words in _WORDS.items() for word in words.split()}
_NEUTRAL = frozenset(
    word
    for words in (
        (
            "image images img imgs picture pictures photo photos jpg jpeg png data dataset set"
            " split folder"
        ),
        "a b all full small raw",
    )
    for word in words.split()
)
"""Words beside a split's in a folder's name that say nothing: `images_train`, `train2017`,
`trainA`."""


def _split_of(name: str) -> tuple[str, tuple[str, ...]]:
    """Returns the split that a folder's name speaks of, and the name's other words.

    The split is "" if the name speaks of none.
    """
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)]
    found = [word for word in words if word in _ROLES]
    rest = tuple(word for word in words if word not in _ROLES and word not in _NEUTRAL)
    return (_ROLES[found[0]], rest) if len(found) == 1 else ("", rest)


def splits_among(names: Collection[str]) -> dict[str, str]:
    """Returns split -> the first folder that is named for it; the names' other words must agree."""
    found: dict[str, str] = {}
    rests = set()
    for name in sorted(names):
        split, rest = _split_of(name)
        if split:
            found.setdefault(split, name)
            rests.add(rest)
    return found if len(rests) == 1 else {}


def check_folder_names(
    request: Request, names: Collection[str], subfolders: Mapping[str, Collection[str]]
) -> None:
    """Checks that the folders of the classes are not splits.

    Args:
      request: for the messages.
      names: the classes.
      subfolders: class -> names of the folders in its folder that hold images; classes without such
        folders are left out.

    Raises:
      InputError: all names are those of splits, or at least two are, and these have the same
        subfolders.
    """
    found = splits_among(names)
    inside = [set(subfolders.get(name, ())) for name in found.values()]
    alike = bool(inside) and all(one == inside[0] for one in inside) and bool(inside[0])
    common = (
        set.intersection(*map(set, subfolders.values()))
        if len(subfolders) == len(names) > 1
        else set()
    )
    same = len(common) > 1 and all(set(subfolders[name]) == common for name in names)
    if len(found) > 1 and (alike or all(_split_of(name)[0] for name in names)):
        what = (
            "has class folders that are named as splits"
            f" ({_listed(found.values())}){_each_with(inside[0])}"
        )
        raise request.error(f"{what}; {_advice(request, found, inside[0])}")
    if len(found) > 1:
        logging.warning(
            "--%s: the class folders %s are named as splits; if they are not your classes, name"
            " one split's folder as --labeled",
            request.role,
            _listed(found.values()),
        )
    elif same and len(splits_among(common)) > 1:
        warn_of_inner_splits(request, common)
    elif same:
        logging.warning(
            "--%s: every class folder (%s) has the same subfolders (%s); if those are the classes,"
            " name %s/%s instead",
            request.role,
            _listed(names),
            _listed(common),
            printable(request.location),
            printable(min(names)),
        )


def warn_of_inner_splits(request: Request, names: Collection[str]) -> None:
    """Warns of folders of several splits, because all of them are taken for one role."""
    logging.warning(
        "--%s: there are images in folders of several splits (%s), and all of them are taken; keep"
        " those for testing apart, as --test",
        request.role,
        _listed(splits_among(names).values()),
    )


def _listed(names: Collection[str]) -> str:
    shown = sorted(map(printable, names))
    return ", ".join(shown[:5]) + (", ..." if len(shown) > 5 else "")


def _each_with(subfolders: Collection[str]) -> str:
    return f", each with the subfolders {_listed(subfolders)}" if subfolders else ""


def _advice(request: Request, found: Mapping[str, str], subfolders: Collection[str]) -> str:
    root = printable(request.location)
    if not subfolders:
        return (
            "sort the images of each into folders of their classes, SPLIT/CLASS/IMAGE, and name one"
            " split's folder"
        )
    first = found.get("train") or found.get("labeled") or next(iter(found.values()))
    test = found.get("test") or found.get("validation")
    also = f" and {root}/{printable(test)} as --test" if test and test != first else ""
    return f"name {root}/{printable(first)} as --labeled{also}"
