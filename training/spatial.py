"""One replica on several cores of a TPU: the cores share each image, as the papers' did.

TensorFlow's SPMD partitioner gets one annotation, on the images of a step. From it XLA derives how
every later operation is split, and which borders the cores exchange. The step is unchanged.

It exists on TPUs only, and no TPU was at hand: it is untried on hardware.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from cli.errors import InputError


def block(mesh: Sequence[int], cores: int) -> list[int]:
    """Returns the shape of a replica's block of cores in a TPU's mesh, as square as it can be.

    Args:
      mesh: chips in x, y and z, and cores of a chip.
      cores: cores of a replica, a power of 2.

    Raises:
      InputError: the mesh has no such blocks.
    """
    shape, left = [1] * len(mesh), cores
    while left > 1:
        # The cores of a chip first: they are nearest to each other.
        able = [axis for axis in range(len(mesh)) if mesh[axis] % (2 * shape[axis]) == 0]
        if left % 2 or not able:
            raise InputError(
                f"--replica_cores={cores}: a TPU of {' x '.join(map(str, mesh))} cores cannot be"
                " cut into such replicas; take a smaller power of 2"
            )
        axis = min(able, key=lambda axis: (axis != len(mesh) - 1, shape[axis]))
        shape[axis], left = 2 * shape[axis], left // 2
    return shape


def parts(cores: int) -> list[int]:
    """Returns into how many parts each dimension of images (B, H, W, 3) is split."""
    across = 1 << (cores.bit_length() - 1) // 2
    return [1, cores // across, across, 1]


def create(
    resolver: tf.distribute.cluster_resolver.TPUClusterResolver, topology: Any, cores: int
) -> tf.distribute.TPUStrategy:
    """Makes the strategy of replicas that have `cores` cores each.

    Args:
      resolver: the TPU.
      topology: what `tf.tpu.experimental.initialize_tpu_system` returned.
      cores: cores of a replica, a power of 2 above 1.

    Raises:
      InputError: see `block`.
    """
    mesh = [int(side) for side in topology.mesh_shape]
    shape, total = block(mesh, cores), 1
    for side in mesh:
        total *= side
    assignment = tf.tpu.experimental.DeviceAssignment.build(
        topology, computation_shape=shape, num_replicas=total // cores
    )
    return tf.distribute.TPUStrategy(
        resolver,
        experimental_device_assignment=assignment,
        experimental_spmd_xla_partitioning=True,
    )


def splitting(
    step: Callable[[Any], Any], strategy: tf.distribute.Strategy, cores: int
) -> Callable[[Any], Any]:
    """Returns the step with the images of its batch split over the replica's cores.

    Args:
      step: function of a replica's batch.
      strategy: what `create` returned.
      cores: cores of a replica.
    """

    def split(value: tf.Tensor) -> tf.Tensor:
        if value.shape.rank != 4:  # no images
            return value
        return strategy.experimental_split_to_logical_devices(value, parts(cores))

    return lambda batch: step(tf.nest.map_structure(split, batch))
