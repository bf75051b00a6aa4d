"""Memory for time: a training pass that keeps each block's input only, and computes the rest again for the backward pass.

A network's maps before and after every normalisation and activation are what a training step's memory goes to. Kept are here
the blocks' inputs and the maps outside of them; a block's own come to life once more while its gradient is taken (Chen et al.,
"Training Deep Nets with Sublinear Memory Cost", 2016). The network itself, its weights and its saved form know nothing of it.

`tf.recompute_grad` does the work, and leaves three things to its user:

- the second pass must draw the noise of the first, wherever the gradient is taken (`nets.noise.repeated_noise`);
- BatchNorm's moving statistics must move once (`statistics_kept`);
- a gradient of the gradient is refused by it: Meta Pseudo Labels' student goes without where the feedback needs one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import tensorflow as tf

from nets.names import block_name
from nets.noise import repeated_noise
from training.architectures import UnfitNetwork

Pass = Callable[[tf.Tensor], tf.Tensor]
"""Images (B, H, W, 3) -> logits (B, K), in training mode."""


def training_pass(model: tf.keras.Model, rematerialize: bool) -> Pass:
    """The model in training mode, as it is or rematerialised block by block. The latter is to be called within `model_noise`.

    Args:
      model: of this project's builders, if it is to be rematerialised: what belongs to a block shows in its layers' names.
      rematerialize: whether the blocks' insides are computed twice.

    Raises:
      UnfitNetwork: a model without blocks, with noise that cannot be repeated, or with more than one tensor between blocks.
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


@contextlib.contextmanager
def statistics_kept(model: tf.keras.Model) -> Iterator[None]:
    """Puts back what a pass in training mode does to BatchNorm's moving statistics.

    Not by switching the layers' momentum off for the moment: under MirroredStrategy the replicas are traced in turns, and one
    would see the other's switch.
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
    maker = {id(tensor): layer for layer in model.layers for tensor in tf.nest.flatten(layer.output)}
    entering: dict[str | None, dict[int, tf.Tensor]] = {}  # block, or None for what follows the last -> tensors from before it
    for layer in model.layers:
        block = block_name(layer)
        if block and isinstance(layer, tf.keras.__internal__.layers.BaseRandomLayer):
            raise UnfitNetwork(
                f"rematerialize: {layer.name} of {model.name} draws from a generator, whose noise cannot be repeated; "
                "use the layers of nets.noise"
            )
        for tensor in tf.nest.flatten(layer.input):
            before = block_name(maker[id(tensor)])
            if before != block and (block or before):
                entering.setdefault(block, {})[id(tensor)] = tensor
    if not entering:
        raise UnfitNetwork(f"rematerialize: {model.name} has no blocks; name the layers of a block block1a_… (training/architectures.py)")
    if None not in entering or any(len(tensors) > 1 for tensors in entering.values()):
        raise UnfitNetwork(f"rematerialize: {model.name} has more than one tensor between two of its blocks; one may pass")
    names = [name for name in entering if name]
    ends = [model.input, *(next(iter(entering[name].values())) for name in [*names, None]), model.output]
    return [(name, tf.keras.Model(a, b)) for name, a, b in zip([None, *names, None], ends[:-1], ends[1:])]
