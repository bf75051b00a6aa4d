"""The table of training methods: what a recipe's train section may have as its `method`."""

from __future__ import annotations

import importlib

from cli.errors import InputError
from training.method import Method

METHODS = {
    "supervised": "training.supervised:SUPERVISED",
    "noisy_student": "noisy_student.method:NOISY_STUDENT",
    "uda": "training.uda:UNSUPERVISED_DATA_AUGMENTATION",
    "fixmatch": "fixmatch.method:FIXMATCH",
    "meta_pseudo_labels": "meta_pseudo_labels.method:META_PSEUDO_LABELS",
    "reduced_meta_pseudo_labels": "meta_pseudo_labels.method:REDUCED",
}
"""Name -> where its `Method` is."""


def find(name: str) -> Method:
    """Returns the method of this name. Raises InputError where there is none."""
    if name not in METHODS:
        raise InputError(f"method: no {name!r}; known: {', '.join(METHODS)}")
    module, value = METHODS[name].split(":")
    method: Method = getattr(importlib.import_module(module), value)
    return method
