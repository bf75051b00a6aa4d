"""Reads which share each class is to have of the pseudo-labeled images, and counts exactly.

The paper keeps as many images of each class. That suits data in which the classes are equally
frequent, as in its evaluation. Other shares suit a classifier that will meet other frequencies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from cli.errors import InputError

UNIFORM, LABELED = "uniform", "labeled"
"""Named priors: equal shares, and the shares of the labeled images."""


def weights(text: str) -> dict[str, float]:
    """Reads `NAME:WEIGHT,NAME:WEIGHT` into weights by class.

    Raises:
      InputError: a part has no weight, or one that is not a number above 0; a class comes twice.
    """
    found: dict[str, float] = {}
    for part in text.split(","):
        name, colon, number = part.strip().rpartition(":")
        try:
            weight = float(number) if colon else math.nan
        except ValueError:
            weight = math.nan
        if not (0 < weight < math.inf):
            raise InputError(
                f"config.balance.priors is {text!r}; it must be {UNIFORM}, {LABELED} or a weight"
                " above 0 for each class, such as cat:3,dog:1"
            )
        if name in found:
            raise InputError(f"config.balance.priors names the class {name} twice")
        found[name] = weight
    return found


def check_priors(text: str) -> None:
    """Raises InputError where priors cannot be right, whatever the classes are."""
    if text not in (UNIFORM, LABELED):
        weights(text)


def shares(text: str, labeled: Mapping[str, int], label_names: Sequence[str]) -> np.ndarray | None:
    """Returns the share of each class, float64 [K], of sum 1; None for equal shares.

    Args:
      text: `UNIFORM`, `LABELED`, or weights as `weights` reads them.
      labeled: number of labeled images of each class by name, for `LABELED`.
      label_names: the K classes in order.

    Raises:
      InputError: a class has no weight or no labeled image; or a name is not a class.
    """
    if text == UNIFORM:
        return None
    given = labeled if text == LABELED else weights(text)
    missing = [name for name in label_names if not given.get(name)]
    if missing and text == LABELED:
        raise InputError(
            f"config.balance.priors=labeled: class {missing[0]} has no labeled image; give weights,"
            " such as cat:3,dog:1"
        )
    if missing:
        raise InputError(f"config.balance.priors has no weight for the class {missing[0]}")
    unknown = [name for name in given if name not in label_names]
    if unknown and text != LABELED:
        raise InputError(
            f"config.balance.priors names {unknown[0]}, which is not a class; the classes are "
            f"{', '.join(label_names[:10])}{', ...' if len(label_names) > 10 else ''}"
        )
    found = np.array([given[name] for name in label_names], np.float64)
    return found / found.sum()


def quotas(priors: np.ndarray, total: int) -> np.ndarray:
    """Returns how many of `total` images each class gets, int64 [K], at least 1 each.

    The numbers add up to `total`: each share is rounded down, and the largest remainders get one
    more; among equal remainders the first classes do. A class that would get none takes one from
    the class that has most.

    Args:
      priors: share of each class, above 0, of sum 1.
      total: number of images, at least K.
    """
    exact = priors * total
    counts = np.floor(exact + 1e-9).astype(np.int64)  # 0.29 * 100 is less than 29
    order = np.argsort(counts - exact, kind="stable")
    counts[order[: total - counts.sum()]] += 1
    while (counts == 0).any():
        counts[np.argmax(counts)] -= 1
        counts[np.argmin(counts)] += 1
    return counts


def median(priors: np.ndarray, available: np.ndarray) -> int:
    """Returns the mean number of images a class with which the median class is just filled.

    It is the median, over the classes that have images, of the images that there are, divided by
    K times the class's share. With equal shares that is the median class's number of images.

    Args:
      priors: share of each class, above 0, of sum 1.
      available: number of images of each class, int [K]; some class has one.
    """
    there = available > 0
    return max(1, int(np.median(available[there] / (len(priors) * priors[there])) + 1e-9))
