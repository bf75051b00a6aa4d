"""Weights that a training starts from, and what becomes of their classifier."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from cli.errors import InputError
from data import records
from training import model_dir

NEW_HEAD = 0.01
"""Scale of a new classifier's initial weights.

With initial weights of the usual size, trained features give logits far apart. The first loss is
then above that of a guess, and the gradients spoil the trained weights.
"""


class Initial(NamedTuple):
    """A network with weights, not yet loaded.

    Attributes:
      text: what the user named: a directory, a file, or published weights.
      spec: the network, its classes, and the normalization that its weights were trained with.
      load: builds the network and reads its weights. Raises InputError.
      source: what config and summary record about published weights. Empty for a directory: its
        fingerprint is recorded, as for every input.
    """

    text: str
    spec: model_dir.ModelSpec
    load: Callable[[], tf.keras.Model]
    source: Mapping[str, Any]

    def keeps_head(self, label_names: Sequence[str]) -> bool:
        """Tells whether the classifier is kept; published weights get a new one for other classes.

        Raises:
          InputError: the model was trained here and knows other classes.
        """
        if tuple(self.spec.label_names) == tuple(label_names):
            return True
        if "head" not in self.spec.metadata:  # `weights.import_weights` writes it
            records.require_same_classes(
                self.spec.label_names, f"--init={self.text}", label_names, "the data"
            )
        return False


def of_directory(directory: str) -> Initial:
    """Returns the model of a finished work directory. Raises InputError where there is none."""
    return Initial(
        directory, model_dir.read_spec(directory), lambda: model_dir.load(directory)[0], {}
    )


def start(
    network: tf.keras.Model, initial: Initial, loaded: tf.keras.Model, label_names: Sequence[str]
) -> None:
    """Gives a network the weights of `loaded`.

    A new classifier keeps its initial weights, scaled by `NEW_HEAD`.

    Args:
      network: a fresh network of the same architecture.
      initial: what `loaded` is.
      loaded: what `initial.load` returned.
      label_names: classes of `network`.

    Raises:
      InputError: see `Initial.keeps_head`; or the layers differ.
    """
    if initial.keeps_head(label_names):
        network.set_weights(loaded.get_weights())
        return
    pairs = [
        (layer, theirs)
        for layer, theirs in zip(network.layers, loaded.layers)
        if layer.weights or theirs.weights
    ]
    for layer, theirs in pairs[:-1]:  # the last layer with weights is the classifier
        if [weight.shape for weight in layer.weights] != [
            weight.shape for weight in theirs.weights
        ]:
            raise InputError(
                f"--init={initial.text}: its layer {theirs.name} does not fit {layer.name} of the"
                " network"
            )
        layer.set_weights(theirs.get_weights())
    head = pairs[-1][0]
    head.set_weights([NEW_HEAD * weight for weight in head.get_weights()])
