"""Trades time for memory: a training pass that keeps each block's input only.

Most memory of a training step goes to the network's maps before and after every normalization and
activation. This pass keeps the blocks' inputs and the maps outside of the blocks. A block's own
maps are computed again while its gradient is taken (Chen et al., "Training Deep Nets with Sublinear
Memory Cost", 2016). The network itself, its weights and its saved form do not change.

`tf.recompute_grad` does the work, and leaves three things to its user:

- the second pass must draw the noise of the first, wherever the gradient is taken
  (`nets.noise.repeated_noise`);
- BatchNorm's moving statistics must move once (`statistics_kept`);
- it refuses a gradient of the gradient. `derivative_pass` gives what Meta Pseudo Labels needs
  instead: the derivative of the logits along a change of the weights, block by block.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf

from nets.names import block_name
from nets.noise import repeated_noise
from training.architectures import UnfitNetwork

Pass = Callable[[tf.Tensor], tf.Tensor]
"""Images (B, H, W, 3) -> logits (B, K), in training mode."""


def training_pass(model: tf.keras.Model, rematerialize: bool) -> Pass:
    """Returns the model in training mode, as it is or rematerialized block by block.

    Call a rematerialized pass within `model_noise`.

    Args:
      model: the network. To be rematerialized, it must be of this project's builders: its layers'
        names tell what belongs to a block.
      rematerialize: whether the blocks' insides are computed twice.

    Raises:
      UnfitNetwork: the model has no blocks, noise that cannot be repeated, or more than one tensor
        between blocks.
    """
    if not rematerialize:
        return lambda images: model(images, training=True)
    parts = _split(model)

    def forward(images: tf.Tensor) -> tf.Tensor:
        x = images
        for name, part in parts:
            x = _recomputed(part)(x) if name else part(x, training=True)
        return x

    return forward


Derivative = Callable[[tf.Tensor, Mapping[Any, tf.Tensor]], "tuple[tf.Tensor, tf.Tensor]"]
"""Function (images (B, H, W, 3), direction v by variable reference) -> (logits, derivative).

The derivative is d/dε logits(θ + εv). Both results are (B, K).
"""


def derivative_pass(model: tf.keras.Model, rematerialize: bool) -> Derivative:
    """Returns the model in training mode with its derivative along a change v of its weights θ.

    The derivative is computed together with the pass, from the images to the logits. Each block
    gives J_x·ẋ + J_θ·v, with ẋ the derivative of the block's input. Nothing is kept for a backward
    pass, so that only one block at a time is in memory. BatchNorm's moving statistics stay as they
    are.

    Args:
      model: the network; of this project's builders, if it is to be rematerialized.
      rematerialize: False takes the whole model as one block.

    Raises:
      UnfitNetwork: see `training_pass`.
    """
    blocks = [block for _, block in _split(model)] if rematerialize else [model]

    def forward(
        images: tf.Tensor, direction: Mapping[Any, tf.Tensor]
    ) -> tuple[tf.Tensor, tf.Tensor]:
        x, slope = images, None
        for block in blocks:
            x, slope = _derivative(block, x, slope, direction)
            # The next block waits for this one's derivative. A graph would otherwise run all passes
            # first.
            with tf.control_dependencies([] if slope is None else [slope]):
                x = tf.identity(x)
        return x, tf.zeros_like(x) if slope is None else slope

    return forward


def _derivative(
    block: tf.keras.Model,
    x: tf.Tensor,
    slope: tf.Tensor | None,
    direction: Mapping[Any, tf.Tensor],
) -> tuple[tf.Tensor, tf.Tensor | None]:
    """Returns a block's output y and its derivative, given the derivative `slope` of its input.

    None stands for a derivative of 0.

    The gradient g(u) = (J_x, J_θ)ᵀu is linear in u. Its own gradient by u along (ẋ, v) is J_x·ẋ +
    J_θ·v.
    """
    sources = [v for v in block.trainable_variables if v.ref() in direction]
    along = [direction[v.ref()] for v in sources]
    with statistics_kept(block), tf.GradientTape(watch_accessed_variables=False) as outer:
        with tf.GradientTape() as tape:
            if slope is not None:
                tape.watch(x)
                sources, along = [x, *sources], [slope, *along]
            y = block(x, training=True)
        u = tf.zeros_like(y)
        outer.watch(u)
        gradients = tape.gradient(y, sources, output_gradients=u)
    along = [v for g, v in zip(gradients, along) if g is not None]
    gradients = [g for g in gradients if g is not None]
    if not gradients:  # nothing in the block is trained
        return y, None
    return y, outer.gradient(gradients, u, output_gradients=along, unconnected_gradients="zero")


@contextlib.contextmanager
def weights_of(variables: Sequence[tf.Variable], values: Sequence[tf.Tensor]) -> Iterator[None]:
    """Gives the variables other values within the context. Call in replica context.

    Args:
      variables: trainable variables, with the same value on each replica.
      values: values of the variables within the context.
    """
    kept = [v.read_value() for v in variables]
    assign(variables, values)
    yield
    assign(variables, kept)


def assign(variables: Sequence[tf.Variable], values: Sequence[tf.Tensor]) -> None:
    """Assigns values to variables in replica context.

    There a mirrored variable takes a value only from all replicas at once.
    """

    def everywhere(strategy: tf.distribute.Strategy, values: Sequence[tf.Tensor]) -> None:
        for variable, value in zip(variables, values):
            strategy.extended.update(
                variable, lambda v, new: v.assign(new), args=(value,), group=False
            )

    tf.distribute.get_replica_context().merge_call(everywhere, args=(list(values),))


@contextlib.contextmanager
def statistics_kept(model: tf.keras.Model) -> Iterator[None]:
    """Restores BatchNorm's moving statistics after a pass in training mode.

    Switching the layers' momentum off during the pass would not work. Under MirroredStrategy the
    replicas are traced in turns, and one would see the other's switch.
    """
    variables = [v for v in model.non_trainable_variables if v.dtype.is_floating]
    kept = [v.read_value() for v in variables]
    yield
    for variable, value in zip(variables, kept):
        variable.assign(value)


def _recomputed(block: tf.keras.Model) -> Pass:
    """Returns a function for one call of a block, which the backward pass runs a second time."""
    noise = repeated_noise()
    runs = 0

    def run(x: tf.Tensor) -> tf.Tensor:
        nonlocal runs
        runs += 1
        with noise(), statistics_kept(block) if runs > 1 else contextlib.nullcontext():
            return block(x, training=True)

    return tf.recompute_grad(run)


def _split(model: tf.keras.Model) -> list[tuple[str | None, tf.keras.Model]]:
    """Splits the model into a chain of models from the images to the logits.

    Returns:
      (the block's name or None, a model of the same layers) for each link of the chain.
    """
    maker = {
        id(tensor): layer for layer in model.layers for tensor in tf.nest.flatten(layer.output)
    }
    # Block, or None for what follows the last block -> tensors that come from before it.
    entering: dict[str | None, dict[int, tf.Tensor]] = {}
    for layer in model.layers:
        block = block_name(layer)
        if block and isinstance(layer, tf.keras.__internal__.layers.BaseRandomLayer):
            raise UnfitNetwork(
                f"rematerialize: {layer.name} of {model.name} draws from a generator, whose noise"
                " cannot be repeated; use the layers of nets.noise"
            )
        for tensor in tf.nest.flatten(layer.input):
            before = block_name(maker[id(tensor)])
            if before != block and (block or before):
                entering.setdefault(block, {})[id(tensor)] = tensor
    if not entering:
        raise UnfitNetwork(
            f"rematerialize: {model.name} has no blocks; name the layers of a block block1a_…"
            " (training/architectures.py)"
        )
    if None not in entering or any(len(tensors) > 1 for tensors in entering.values()):
        raise UnfitNetwork(
            f"rematerialize: {model.name} has more than one tensor between two of its blocks; one"
            " may pass"
        )
    names = [name for name in entering if name]
    ends = [
        model.input,
        *(next(iter(entering[name].values())) for name in [*names, None]),
        model.output,
    ]
    return [
        (name, tf.keras.Model(a, b))
        for name, a, b in zip([None, *names, None], ends[:-1], ends[1:])
    ]
