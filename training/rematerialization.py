"""Memory for time: a training pass that keeps each block's input only, and computes the rest again for the backward pass.

A network's maps before and after every normalisation and activation are what a training step's
memory goes to. Kept are here the blocks' inputs and the maps outside of them; a block's own come to
life once more while its gradient is taken (Chen et al., "Training Deep Nets with Sublinear Memory
Cost", 2016). The network itself, its weights and its saved form know nothing of it.

`tf.recompute_grad` does the work, and leaves three things to its user:

- the second pass must draw the noise of the first, wherever the gradient is taken
  (`nets.noise.repeated_noise`);
- BatchNorm's moving statistics must move once (`statistics_kept`);
- a gradient of the gradient is refused by it. `derivative_pass` gives what Meta Pseudo Labels needs
  in its place: the derivative of the logits along a change of the weights, block by block.
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
    """The model in training mode, as it is or rematerialised block by block. The latter is to be called within `model_noise`.

    Args:
      model: of this project's builders, if it is to be rematerialised: what belongs to a block
        shows in its layers' names.
      rematerialize: whether the blocks' insides are computed twice.

    Raises:
      UnfitNetwork: a model without blocks, with noise that cannot be repeated, or with more than
        one tensor between blocks.
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
"""(images (B, H, W, 3), direction v by variable reference) -> logits and d/dε logits(θ + εv), both (B, K)."""


def derivative_pass(model: tf.keras.Model, rematerialize: bool) -> Derivative:
    """Returns the model in training mode with its derivative along a change v of its weights θ.

    The derivative passes from the images to the logits, in one go with the pass itself: of each
    block it takes J_x·ẋ + J_θ·v, with ẋ the derivative of the block's input. Nothing is kept for a
    backward pass, so that only one block at a time is in memory. BatchNorm's moving statistics
    stay.

    Args:
      model: of this project's builders, if it is to be rematerialised.
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
            # The next block waits for this one's derivative: a graph would otherwise run all passes
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
    """Returns a block's output y, and its derivative where that of its input is `slope`. None: it is 0.

    The gradient g(u) = (J_x, J_θ)ᵀu is linear in u, and its own gradient by u along (ẋ, v) is J_x·ẋ
    + J_θ·v.
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
    if not gradients:  # nothing in it is trained
        return y, None
    return y, outer.gradient(gradients, u, output_gradients=along, unconnected_gradients="zero")


@contextlib.contextmanager
def weights_of(variables: Sequence[tf.Variable], values: Sequence[tf.Tensor]) -> Iterator[None]:
    """Within it the variables have other values. Call in replica context.

    Args:
      variables: trainable ones, with the same value on each replica.
      values: theirs for the time being.
    """
    kept = [v.read_value() for v in variables]
    _assign(variables, values)
    yield
    _assign(variables, kept)


def _assign(variables: Sequence[tf.Variable], values: Sequence[tf.Tensor]) -> None:
    """Assigns in replica context, where a mirrored variable takes a value from all replicas at once only."""

    def everywhere(strategy: tf.distribute.Strategy, values: Sequence[tf.Tensor]) -> None:
        for variable, value in zip(variables, values):
            strategy.extended.update(
                variable, lambda v, new: v.assign(new), args=(value,), group=False
            )

    tf.distribute.get_replica_context().merge_call(everywhere, args=(list(values),))


@contextlib.contextmanager
def statistics_kept(model: tf.keras.Model) -> Iterator[None]:
    """Puts back what a pass in training mode does to BatchNorm's moving statistics.

    Not by switching the layers' momentum off for the moment: under MirroredStrategy the replicas
    are traced in turns, and one would see the other's switch.
    """
    variables = [v for v in model.non_trainable_variables if v.dtype.is_floating]
    kept = [v.read_value() for v in variables]
    yield
    for variable, value in zip(variables, kept):
        variable.assign(value)


def _recomputed(block: tf.keras.Model) -> Pass:
    """One call of a block, whose second run is the backward pass's."""
    noise = repeated_noise()
    runs = 0

    def run(x: tf.Tensor) -> tf.Tensor:
        nonlocal runs
        runs += 1
        with noise(), statistics_kept(block) if runs > 1 else contextlib.nullcontext():
            return block(x, training=True)

    return tf.recompute_grad(run)


def _split(model: tf.keras.Model) -> list[tuple[str | None, tf.keras.Model]]:
    """The model as a chain: (the block's name or None, a model of the same layers) from the images to the logits."""
    maker = {
        id(tensor): layer for layer in model.layers for tensor in tf.nest.flatten(layer.output)
    }
    entering: dict[
        str | None, dict[int, tf.Tensor]
    ] = {}  # block, or None for what follows the last -> tensors from before it
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
