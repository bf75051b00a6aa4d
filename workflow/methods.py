"""The table of training methods: what a recipe's train section may have as its `method`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, NamedTuple

from cli.settings import Section

if TYPE_CHECKING:
    from training.method import Method  # this module needs TensorFlow


class Row(NamedTuple):
    """Places of a method's parts, as `module:name`; imported when they are needed.

    Attributes:
      method: its `Method`.
      settings: the declarations of its train section, in a module without TensorFlow.
    """

    method: str
    settings: str


METHODS = {
    # The section of a Noisy Student recipe's teacher is like its students'.
    "supervised": Row("training.supervised:SUPERVISED", "noisy_student.settings:TRAIN"),
    "noisy_student": Row("noisy_student.method:NOISY_STUDENT", "noisy_student.settings:TRAIN"),
    "uda": Row("training.uda:UNSUPERVISED_DATA_AUGMENTATION", "training.settings:UDA_TRAIN"),
    "fixmatch": Row("fixmatch.method:FIXMATCH", "fixmatch:SETTINGS"),
    "meta_pseudo_labels": Row(
        "meta_pseudo_labels.method:META_PSEUDO_LABELS", "meta_pseudo_labels.settings:TRAIN"
    ),
    "reduced_meta_pseudo_labels": Row(
        "meta_pseudo_labels.method:REDUCED", "meta_pseudo_labels.settings:TRAIN"
    ),
}
"""Name of a method -> where its parts are."""


def find(name: str) -> Method:
    """Returns a method by its name in `METHODS`."""
    method: Method = _import(METHODS[name].method)
    return method


def settings_of(name: str) -> Section:
    """Returns the declarations of a train section by the name of its method in `METHODS`."""
    section: Section = _import(METHODS[name].settings)
    method = section["method"].but(choices=tuple(METHODS))
    return Section(section.meaning, {**section, "method": method}, section.more, section.others)


def _import(target: str) -> Any:
    module, name = target.split(":")
    return getattr(importlib.import_module(module), name)
