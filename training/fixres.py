"""Fine-tuning at a larger resolution: frozen shallow blocks, and models at another image size.

Noisy Student's last step trains for 1.5 epochs on unaugmented labeled images at a larger
resolution, with the shallow layers fixed (Xie et al. 2020, Section 3.1). It follows Touvron et al.,
"Fixing the train-test resolution discrepancy", NeurIPS 2019.

    ./run_tool.sh fixres --model=DIR --output=DIR --image_size=600

writes a model with the same weights, fed at the other resolution. It shows what a network trained
at a smaller resolution does without fine-tuning.
"""

from __future__ import annotations

import cli  # noqa: F401  (before TensorFlow: it sets TensorFlow's log level)

# isort: split

import dataclasses
from pathlib import Path

import tensorflow as tf

from cli import work_dirs
from cli.errors import InputError
from nets.names import block_name
from training import model_dir


def freeze_blocks(model: tf.keras.Model, count: int) -> None:
    """Freezes the stem and the first `count` blocks: weights, BatchNorm statistics and noise.

    A frozen BatchNorm normalizes with its moving averages, in training too (Keras's meaning of
    `trainable`). A frozen layer of noise passes its input on (the meaning in `nets.noise`). The
    layers after the frozen blocks, the head's BatchNorm included, train as usual.

    The frozen weights keep the model's present values: load it first. Call before compiling.

    Args:
      model: a network with layers named by blocks (`training.architectures`).
      count: number of blocks; 0 leaves the whole model as it is, the stem included.

    Raises:
      InputError: the model has fewer blocks.
    """
    blocks = list(dict.fromkeys(name for layer in model.layers if (name := block_name(layer))))
    if not 0 <= count <= len(blocks):
        why = "" if blocks else "; name the layers of a block block1a_… (training/architectures.py)"
        raise InputError(f"frozen_blocks={count}: {model.name} has {len(blocks)} blocks{why}")
    if count:
        for layer in model.layers:
            if layer.name.partition("_")[0] in ("stem", *blocks[:count]):
                layer.trainable = False


def freeze_batch_norm(model: tf.keras.Model) -> None:
    """Freezes every BatchNorm: it normalizes with its moving averages, in training too.

    Its moving averages, scale and shift stay as they are. Call before compiling.
    """
    for layer in model.submodules:
        if isinstance(layer, tf.keras.layers.BatchNormalization):
            layer.trainable = False


def at_resolution(spec: model_dir.ModelSpec, image_size: int) -> model_dir.ModelSpec:
    """Returns the spec of the same model fed with squares of `image_size` pixels.

    The networks built from it take any size. Raises InputError if the preprocessing refuses the
    size.
    """
    fixed = {key: value for key, value in spec.architecture.items() if key != "image_size"}
    return dataclasses.replace(
        spec,
        architecture=fixed,
        preprocessing=dataclasses.replace(spec.preprocessing, image_size=image_size),
    )


def main(model: str, output: str, image_size: int) -> None:
    """Writes `output`; see the module. Raises InputError."""
    network, spec = model_dir.load(model)
    before = spec.preprocessing.image_size
    spec = at_resolution(spec, image_size)
    if network.input_shape[1:3] != (None, None):
        spec.build()  # raises InputError where the network takes no other size
    settings = {"stage": "fixres", "preprocessing": spec.preprocessing.to_dict()}
    if work_dirs.start(output, settings, {"model": model_dir.run_directory(model)}):
        print(f"{output} is done: {model} at {image_size} px")
        return
    model_dir.save(Path(output) / "model", network, spec)
    work_dirs.finish(
        output, {"image_size": spec.preprocessing.image_size, "parameters": network.count_params()}
    )
    print(f"{model}, trained at {before} px, in {output}, fed at {image_size} px")
