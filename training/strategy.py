"""Where a run computes: one device, all GPUs of a machine, several machines, or a TPU."""

from __future__ import annotations

import contextlib
import json
import os
import sys

import tensorflow as tf

from cli.errors import InputError, one_line
from training import gpus

NAMES = ("auto", "one_device", "mirrored", "multi_worker", "tpu")


def create(name: str = "auto", cpu_devices: int = 1, tpu: str = "") -> tf.distribute.Strategy:
    """Makes the strategy. Call before anything else touches TensorFlow's devices.

    Args:
      name: "auto" is "mirrored" with two or more GPUs, else "one_device".
      cpu_devices: with more than 1 and no GPU, the CPU is split into so many logical devices, to try out distribution.
        "mirrored" without a GPU needs more than 1.
      tpu: the TPU's name or address; "" finds the local one.

    A GPU that the machine has and TensorFlow cannot use is told on stderr, with the reason. GPU memory is taken as it is needed.

    Raises:
      InputError: unknown name, no such hardware, or a TF_CONFIG that names no workers.
    """
    if name not in NAMES:
        raise InputError(f"--strategy: no strategy {name!r}; known: {', '.join(NAMES)}")
    if cpu_devices > 1:
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * cpu_devices)
    found = tf.config.list_physical_devices("GPU")
    for gpu in found:
        with contextlib.suppress(RuntimeError):  # the process has used it already, in its own way
            tf.config.experimental.set_memory_growth(gpu, True)
    unusable = gpus.unusable() if name != "tpu" else None
    if name == "mirrored" and not found and cpu_devices == 1:
        why = f"TensorFlow cannot use this machine's GPU: {unusable}" if unusable else "TensorFlow sees no GPU"
        raise InputError(f"--strategy=mirrored: {why}; leave --strategy out to train on one CPU")
    if unusable:
        print(f"warning: TensorFlow cannot use this machine's GPU, so the CPU is used: {unusable}", file=sys.stderr, flush=True)
    if name == "auto":
        name = "mirrored" if len(found) > 1 else "one_device"
    if name == "one_device":
        # Not OneDeviceStrategy: it hands batches over through iterators of its own, whose autotuning `data.pipeline.untuned` cannot reach.
        return tf.distribute.get_strategy()
    if name == "mirrored":
        return tf.distribute.MirroredStrategy(None if found else [f"CPU:{i}" for i in range(cpu_devices)])
    if name == "multi_worker":
        return _multi_worker()
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu)
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except (ValueError, tf.errors.OpError) as error:
        raise InputError(f"--strategy=tpu: no TPU answers ({one_line(error)}); name it with --tpu") from error
    return tf.distribute.TPUStrategy(resolver)


def device_kind(strategy: tf.distribute.Strategy) -> str:
    """TPU, GPU or CPU: what each replica computes on."""
    if isinstance(strategy, tf.distribute.TPUStrategy):
        return "TPU"
    return "GPU" if tf.config.list_physical_devices("GPU") else "CPU"


def _multi_worker() -> tf.distribute.Strategy:
    """Waits until all workers of TF_CONFIG are there."""
    text = os.environ.get("TF_CONFIG", "")
    try:
        config = json.loads(text or "{}")
        task, cluster = config["task"], config["cluster"]
        address = cluster[task["type"]][int(task["index"])]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        raise InputError(
            f"--strategy=multi_worker: TF_CONFIG is {text!r}; it must name all workers and which one this is, as docs/scaling.md shows"
        ) from error
    print(f"{task['type']} {task['index']} of {sum(map(len, cluster.values()))}, waiting for the others", flush=True)
    try:
        return tf.distribute.MultiWorkerMirroredStrategy()
    except tf.errors.UnknownError as error:  # the port is taken
        raise InputError(f"--strategy=multi_worker: cannot listen on {address} ({one_line(error)})") from error
