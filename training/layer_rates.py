"""Makes the steps of deeper layers smaller, and lets the classifier learn alone at first.

Both are habits of fine-tuning on few images.

The step of each variable is multiplied by a factor, whatever the optimizer. All optimizers of a
recipe make steps that are multiples of the learning rate. So the factor acts as the variable's own
learning rate. Decoupled weight decay belongs to the step. The optimizer's slots are as without
factors, so the first step after the start finds them filled.

The parts of a network are, from below: the stem, each block, the layers after the last block, and
the classifier. The classifier is the last layer that has weights. With decay λ, the part that is n
parts below the classifier has the factor λ**n (Clark et al., "ELECTRA", ICLR 2020; Bao et al.,
"BEiT", ICLR 2022).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import tensorflow as tf

from cli.errors import InputError
from nets.names import block_name
from training.rematerialization import assign


def parts_below(model: tf.keras.Model) -> dict[str, int]:
    """Returns how many parts each layer with weights is below the classifier, by the layer's name.

    Args:
      model: a network with layers named by blocks (`training.architectures`).

    Raises:
      InputError: the model has no blocks.
    """
    layers = [layer for layer in model.layers if layer.weights]
    blocks = list(dict.fromkeys(name for layer in model.layers if (name := block_name(layer))))
    if not blocks:
        raise InputError(
            f"layer_decay: {model.name} has no blocks; name the layers of a block block1a_…"
            " (training/architectures.py)"
        )
    top = len(blocks) + 1
    found, seen = {}, 0
    for layer in layers[:-1]:
        block = block_name(layer)
        part = blocks.index(block) + 1 if block else (top if seen >= len(blocks) else 0)
        seen = max(seen, part)
        found[layer.name] = top + 1 - part
    return {**found, layers[-1].name: 0}


@dataclasses.dataclass(frozen=True)
class LayerRates:
    """Factors of the steps of a model's trainable variables.

    Attributes:
      factors: factor of each variable's step, in (0, 1].
      of_head: whether a variable is the classifier's.
      head_steps: number of first steps in which only the classifier moves.
    """

    factors: tuple[float, ...]
    of_head: tuple[bool, ...]
    head_steps: int = 0

    def scaled(self, values: Sequence[tf.Tensor | None], step: tf.Tensor) -> list[tf.Tensor | None]:
        """Returns one tensor of each variable times the factor of that variable.

        Args:
          values: one tensor of each variable, such as its gradient; None stays None.
          step: number of the step, 1 for the first.
        """
        found: list[tf.Tensor | None] = []
        for value, factor, of_head in zip(values, self.factors, self.of_head):
            if value is not None and factor != 1:
                value = value * tf.cast(factor, value.dtype)
            if value is not None and self.head_steps and not of_head:
                value = tf.where(step > self.head_steps, value, tf.zeros_like(value))
            found.append(value)
        return found

    def shorten(
        self, variables: Sequence[tf.Variable], before: Sequence[tf.Tensor], step: tf.Tensor
    ) -> None:
        """Multiplies the step that an optimizer has just made. Call in replica context.

        Args:
          variables: the model's trainable variables.
          before: their values before the step.
          step: number of the step, 1 for the first.
        """
        rows = [
            (v, b, factor, of_head)
            for v, b, factor, of_head in zip(variables, before, self.factors, self.of_head)
            if factor != 1 or (self.head_steps and not of_head)
        ]
        after = []
        for v, b, factor, of_head in rows:
            value = v.read_value()
            if factor != 1:
                value = b + tf.cast(factor, value.dtype) * (value - b)
            if self.head_steps and not of_head:
                value = tf.where(step > self.head_steps, value, b)
            after.append(value)
        if rows:
            assign([v for v, *_ in rows], after)


def find(model: tf.keras.Model, decay: float, head_steps: int) -> LayerRates | None:
    """Returns the factors of a model's trainable variables; None where all of them are always 1.

    Args:
      model: the network; frozen layers have no trainable variables.
      decay: λ in (0, 1]; 1 gives all layers one learning rate, and needs no blocks.
      head_steps: number of first steps in which only the classifier moves.

    Raises:
      InputError: decay is below 1, and the model has no blocks.
    """
    if decay == 1 and not head_steps:
        return None
    layers = [layer for layer in model.layers if layer.weights]
    below = parts_below(model) if decay != 1 else {layer.name: 0 for layer in layers}
    factor = {id(v): decay ** below[layer.name] for layer in layers for v in layer.weights}
    head = {id(v) for v in layers[-1].weights}
    trained = model.trainable_variables
    return LayerRates(
        tuple(factor[id(v)] for v in trained), tuple(id(v) in head for v in trained), head_steps
    )
