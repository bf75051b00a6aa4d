"""Replicas of several TPU cores: the shapes, and the calls that TensorFlow gets. No TPU is here."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from cli.errors import InputError
from tests.networks import two_blocks
from training import spatial, strategy
from training.optimizers import RMSProp
from training.supervised import Supervised


@pytest.mark.parametrize(
    ("mesh", "cores", "expected"),
    [
        ((4, 4, 1, 2), 2, [1, 1, 1, 2]),
        ((4, 4, 1, 2), 16, [4, 2, 1, 2]),
        ((16, 16, 1, 2), 16, [4, 2, 1, 2]),  # a TPU v3-512, the papers' replicas
        ((4, 4, 1, 1), 4, [2, 2, 1, 1]),
        ((4, 4, 1, 1), 16, [4, 4, 1, 1]),
    ],
)
def test_blocks_fill_the_mesh(mesh: tuple[int, ...], cores: int, expected: list[int]) -> None:
    shape = spatial.block(mesh, cores)
    assert shape == expected and np.prod(shape) == cores
    assert all(side % part == 0 for side, part in zip(mesh, shape))


@pytest.mark.parametrize(("mesh", "cores"), [((2, 2, 1, 2), 16), ((3, 1, 1, 1), 2)])
def test_a_mesh_without_such_blocks(mesh: tuple[int, ...], cores: int) -> None:
    with pytest.raises(InputError, match=rf"--replica_cores={cores}: a TPU of {mesh[0]} x "):
        spatial.block(mesh, cores)


@pytest.mark.parametrize(
    ("cores", "expected"), [(2, [1, 2, 1, 1]), (4, [1, 2, 2, 1]), (16, [1, 4, 4, 1])]
)
def test_images_are_split_by_height_and_width(cores: int, expected: list[int]) -> None:
    assert spatial.parts(cores) == expected


@pytest.mark.parametrize(
    ("name", "cores", "message"),
    [
        ("mirrored", 4, "--replica_cores=4 is for --strategy=tpu, not --strategy=mirrored"),
        ("auto", 2, "--replica_cores=2 is for --strategy=tpu"),
        ("tpu", 6, "--replica_cores=6 is not a power of 2"),
    ],
)
def test_unusable_flags(name: str, cores: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        strategy.create(name, replica_cores=cores)


def test_what_tensorflow_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    resolver, topology = object(), SimpleNamespace(mesh_shape=np.array([4, 4, 1, 2]))
    asked: dict[str, Any] = {}

    def build(topology: Any, **options: Any) -> str:
        asked.update(topology=topology, **options)
        return "assignment"

    monkeypatch.setattr(strategy, "_tpu", lambda name: (resolver, topology))
    monkeypatch.setattr(tf.tpu.experimental.DeviceAssignment, "build", staticmethod(build))
    monkeypatch.setattr(
        tf.distribute, "TPUStrategy", lambda resolver, **options: (resolver, options)
    )
    assert strategy.create("tpu") == (resolver, {})  # as before
    made = strategy.create("tpu", replica_cores=16)
    assert asked == {
        "topology": topology,
        "computation_shape": [4, 2, 1, 2],
        "num_replicas": 2,
    }
    options = {
        "experimental_device_assignment": "assignment",
        "experimental_spmd_xla_partitioning": True,
    }
    assert made == (resolver, options)


def test_the_step_is_the_same_and_its_images_are_split() -> None:
    """The stand-in gives the tensor back, as TensorFlow's annotation does."""
    split: list[tuple[tuple[int, ...], list[int]]] = []

    def annotate(tensor: tf.Tensor, dimensions: list[int]) -> tf.Tensor:
        split.append((tuple(tensor.shape), dimensions))
        return tf.identity(tensor)

    stand_in: Any = SimpleNamespace(experimental_split_to_logical_devices=annotate)
    batch = (
        tf.random.stateless_uniform([4, 8, 8, 3], [0, 1], 0.0, 255.0),
        tf.constant([0, 1, 2, 0], tf.int64),
    )
    losses = []
    for cores in (1, 4):
        trainer = Supervised(two_blocks(3, (0.0,) * 3, (255.0,) * 3, seed=0))
        trainer.compile(RMSProp(0.01))
        trainer.build_optimizers()
        if cores > 1:
            trainer.train_step = spatial.splitting(trainer.train_step, stand_in, cores)
        losses.append(float(trainer.make_train_function()(iter([batch]))["loss"]))
    assert losses[0] == losses[1]
    assert split == [((4, 8, 8, 3), [1, 2, 2, 1])]
