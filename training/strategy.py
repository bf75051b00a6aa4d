"""The devices of a run: one device, all GPUs of a machine, several machines, or a TPU."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import tensorflow as tf

from cli.errors import InputError, one_line
from training import cluster, gpus, spatial

NAMES = ("auto", "one_device", "mirrored", "multi_worker", "tpu")


def create(
    name: str = "auto", cpu_devices: int = 1, tpu: str = "", replica_cores: int = 1
) -> tf.distribute.Strategy:
    """Makes the strategy. Call before anything else touches TensorFlow's devices.

    Args:
      name: "auto" is "mirrored" with two or more GPUs, else "one_device".
      cpu_devices: with more than 1 and no GPU, the CPU is split into that many logical devices, to
        try out distribution. "mirrored" without a GPU needs more than 1.
      tpu: the TPU's name or address; "" finds the local one.
      replica_cores: cores of a replica on a TPU, a power of 2; see `training.spatial`.

    If TensorFlow cannot use a GPU that the machine has, prints the reason on stderr. GPU memory is
    taken as it is needed.

    Raises:
      InputError: unknown name, no such hardware, or a TF_CONFIG that names no workers.
    """
    if replica_cores > 1 and name != "tpu":
        raise InputError(
            f"--replica_cores={replica_cores} is for --strategy=tpu, not --strategy={name}"
        )
    if replica_cores & (replica_cores - 1):
        raise InputError(f"--replica_cores={replica_cores} is not a power of 2, such as 16")
    found = _usable(name, cpu_devices)
    if name == "auto":
        name = "mirrored" if len(found) > 1 else "one_device"
    if name == "one_device":
        # Not OneDeviceStrategy: it hands batches over through its own iterators, whose
        # autotuning `data.pipeline.untuned` cannot reach.
        return tf.distribute.get_strategy()
    if name == "mirrored":
        return tf.distribute.MirroredStrategy(
            None if found else [f"CPU:{i}" for i in range(cpu_devices)]
        )
    if name == "multi_worker":
        return _multi_worker()
    resolver, topology = _tpu(tpu)
    if replica_cores > 1:
        return spatial.create(resolver, topology, replica_cores)
    return tf.distribute.TPUStrategy(resolver)


def devices(
    name: str = "auto", cpu_devices: int = 1, tpu: str = "", share: tuple[int, int] = (1, 0)
) -> tuple[str | None, ...]:
    """Returns the devices that answer side by side, for `training.copies`.

    Args:
      name: "auto" and "mirrored" take all GPUs, or the logical CPU devices; "tpu" takes all its
        cores.
      cpu_devices: see `create`.
      tpu: see `create`.
      share: (number of processes that share out this machine's GPUs, index of this one from 0).
        More processes than GPUs share a GPU. The others' GPUs are invisible to this process
        afterwards.

    Returns:
      Names of devices. (None,) if there is only one, which TensorFlow takes by itself.

    Raises:
      InputError: see `create`; also for "multi_worker".
    """
    if name == "multi_worker":
        raise InputError(
            "--strategy=multi_worker is for training; other stages share shards out by Beam"
            " (docs/scaling.md)"
        )
    gpus_found = _usable(name, cpu_devices)
    if name == "tpu":
        _tpu(tpu)
        return tuple(device.name for device in tf.config.list_logical_devices("TPU"))
    processes, index = share
    if gpus_found and processes > 1:
        gpus_found = gpus_found[index::processes] or [gpus_found[index % len(gpus_found)]]
        tf.config.set_visible_devices(gpus_found, "GPU")
    if name == "one_device":
        return (None,)
    kind, count = ("GPU", len(gpus_found)) if gpus_found else ("CPU", cpu_devices)
    return tuple(f"{kind}:{i}" for i in range(count)) if count > 1 else (None,)


def _usable(name: str, cpu_devices: int) -> list[tf.config.PhysicalDevice]:
    """Splits the CPU and returns the GPUs that TensorFlow can use. Raises InputError.

    If TensorFlow can use none of the machine's GPUs, prints why.
    """
    if name not in NAMES:
        raise InputError(f"--strategy: there is no strategy {name!r}; known: {', '.join(NAMES)}")
    if cpu_devices > 1:
        cpu = tf.config.list_physical_devices("CPU")[0]
        # A stage may ask twice.
        if len(tf.config.get_logical_device_configuration(cpu) or ()) != cpu_devices:
            tf.config.set_logical_device_configuration(
                cpu, [tf.config.LogicalDeviceConfiguration()] * cpu_devices
            )
    found = tf.config.list_physical_devices("GPU")
    for gpu in found:
        with contextlib.suppress(RuntimeError):  # the process has used it already, in its own way
            tf.config.experimental.set_memory_growth(gpu, True)
    unusable = gpus.unusable() if name != "tpu" else None
    if name == "mirrored" and not found and cpu_devices == 1:
        why = (
            f"TensorFlow cannot use this machine's GPU: {unusable}"
            if unusable
            else "TensorFlow sees no GPU"
        )
        raise InputError(f"--strategy=mirrored: {why}; leave --strategy out to train on one CPU")
    if unusable:
        print(
            f"warning: TensorFlow cannot use this machine's GPU, so the CPU is used: {unusable}",
            file=sys.stderr,
            flush=True,
        )
    return found


def _tpu(name: str) -> tuple[tf.distribute.cluster_resolver.TPUClusterResolver, Any]:
    """Connects to a TPU; returns it and its topology. Raises InputError where none answers."""
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(name)
        tf.config.experimental_connect_to_cluster(resolver)
        topology = tf.tpu.experimental.initialize_tpu_system(resolver)
    except (ValueError, tf.errors.OpError) as error:
        raise InputError(
            f"--strategy=tpu: no TPU answers ({one_line(error)}); name it with --tpu"
        ) from error
    return resolver, topology


def device_kind(strategy: tf.distribute.Strategy) -> str:
    """Returns what each replica computes on: TPU, GPU or CPU."""
    if isinstance(strategy, tf.distribute.TPUStrategy):
        return "TPU"
    return "GPU" if tf.config.list_physical_devices("GPU") else "CPU"


def _multi_worker() -> tf.distribute.Strategy:
    """Makes the strategy of several workers, and waits until all workers of TF_CONFIG are there."""
    task = cluster.task()
    print(f"{task.kind} {task.index} of {task.count}, waiting for the others", flush=True)
    try:
        return tf.distribute.MultiWorkerMirroredStrategy()
    except tf.errors.UnknownError as error:  # the port is taken
        raise InputError(
            f"--strategy=multi_worker: cannot listen on {task.address} ({one_line(error)})"
        ) from error
