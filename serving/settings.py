"""The files beside the exported versions: TF Serving's settings and the requests that warm it up.

    SERVING_DIR/models.config             which versions are served, under which names: NAME and
                                          NAME-canary
    SERVING_DIR/batching_parameters.txt   how requests are batched
    SERVING_DIR/monitoring.config         metrics for Prometheus
    SERVING_DIR/NAME/1/assets.extra/tf_serving_warmup_requests

Paths in `models.config` are those of the official image, which sees SERVING_DIR as `/models`. A
person may edit the three files: an export leaves the last two alone where they exist, and changes
in the first only the entries of its own model.

TF Serving answers a request that names no version with the highest version that is loaded under the
name. So NAME loads the stable version alone, and a new export is loaded under NAME-canary.
`serving.promotion` changes which version is stable. There are no version labels: TF Serving refuses
a whole `models.config` that moves a label to a version not loaded yet.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf import text_format
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2
from tensorflow_serving.config import model_server_config_pb2

from cli.errors import InputError
from cli.files import atomic_path
from serving import BATCHING, MONITORING, MOUNT
from serving.versions import BARE_CONFIG, MODELS_CONFIG, bare_config, versions

FILES = (MODELS_CONFIG, BATCHING, MONITORING)
"""Files that an export leaves in SERVING_DIR beside the versions."""

CANARY_SUFFIX = "-canary"
"""Suffix of the name that serves the newest version, while NAME serves the stable one."""

_LABELS = ("stable", "canary")  # of earlier exports

ALLOWED_BATCH_SIZES = (1, 2, 4, 6, 8, 12, 16, 24, 32)
"""Sizes to which a server fills up a batch. The last one is also the largest request."""

WARMUP = "tf_serving_warmup_requests"
WARM_SIGNATURES = ("serving_default", "embed")

_BATCHING_TEXT = f"""\
# BatchingParameters of TF Serving (--enable_batching --batching_parameters_file=...).
max_batch_size {{ value: {ALLOWED_BATCH_SIZES[-1]} }}
# How long a request waits for others, in microseconds. 0: a batch begins when a thread is free.
batch_timeout_micros {{ value: 0 }}
# Batches that are computed at the same time. With 1 the next batch collects while one is computed,
# and TensorFlow uses all cores for each. More help where a batch does not keep the cores busy.
num_batch_threads {{ value: 1 }}
# Batches that may wait; beyond them a request is refused with 503 (UNAVAILABLE).
max_enqueued_batches {{ value: 100 }}
# The last one equals max_batch_size. Each of them has been warmed up.
""" + "".join(f"allowed_batch_sizes: {size}\n" for size in ALLOWED_BATCH_SIZES)

_MONITORING_TEXT = """\
# MonitoringConfig of TF Serving (--monitoring_config_file=...): metrics on the REST port.
prometheus_config {
  enable: true
  path: "/monitoring/prometheus/metrics"
}
"""


def write(serving_dir: Path, name: str) -> None:
    """Writes or completes the three files for the model `name`.

    NAME goes on serving its stable version; the first version becomes stable. From the second
    version on, NAME-canary serves the newest one.

    Raises:
      InputError: a `models.config` that cannot be parsed.
    """
    for file, text in ((BATCHING, _BATCHING_TEXT), (MONITORING, _MONITORING_TEXT)):
        if not (serving_dir / file).exists():
            _write_text(serving_dir / file, text)
    config = (
        read_models(serving_dir)
        if (serving_dir / MODELS_CONFIG).exists()
        else model_server_config_pb2.ModelServerConfig()
    )
    before, numbers = text_format.MessageToString(config), versions(serving_dir / name)
    stable = _stable(_entry(config, name), numbers)
    _serve(config, name, name, stable)
    if numbers[-1] != stable or find_entry(config, name + CANARY_SUFFIX):
        _serve(config, name + CANARY_SUFFIX, name, numbers[-1])
    if text_format.MessageToString(config) != before:
        write_models(serving_dir, config)


def set_stable(serving_dir: Path, name: str, version: int) -> None:
    """Makes `version` of the model `name` the stable one, by replacing `models.config` at once.

    Raises:
      InputError: `models.config` is missing, cannot be parsed, or has no such model.
    """
    config = read_models(serving_dir)
    stable(serving_dir, name)  # raises where there is no such model
    _serve(config, name, name, version)
    write_models(serving_dir, config)


def stable(serving_dir: Path, name: str) -> int:
    """Returns the version that NAME serves.

    Raises InputError where there is no such model or no version of it.
    """
    entry, folder = find_entry(read_models(serving_dir), name), serving_dir / name
    numbers = versions(folder) if folder.is_dir() else []
    if entry is None or not numbers:
        raise InputError(f"{serving_dir} has no model {name!r}; --name is that of run_export.sh")
    return _stable(entry, numbers)


def find_entry(config: Any, name: str) -> Any:
    """Returns the entry of a model in `models.config`; None where there is none."""
    return next((entry for entry in config.model_config_list.config if entry.name == name), None)


def _entry(config: Any, name: str) -> Any:
    """Returns the entry of a name, made where there is none."""
    return find_entry(config, name) or config.model_config_list.config.add(
        name=name, model_platform="tensorflow"
    )


def _stable(entry: Any, numbers: list[int]) -> int:
    """Returns the version of `numbers` that an entry serves as stable.

    The entry's policy names it, or the label of earlier exports.
    """
    label = dict(entry.version_labels).get(_LABELS[0])
    wanted = [label, *sorted(entry.model_version_policy.specific.versions, reverse=True)]
    return next(
        (version for version in wanted if version in numbers),
        numbers[0] if len(numbers) == 1 else numbers[-2],
    )


def _serve(config: Any, name: str, folder: str, version: int) -> None:
    """Makes the entry `name` serve one version of a folder, and nothing else."""
    entry = _entry(config, name)
    entry.base_path = entry.base_path or f"{MOUNT}/{folder}"
    for label in _LABELS:
        if label in entry.version_labels:
            del entry.version_labels[label]
            print(
                f"note: {MODELS_CONFIG} no longer has the label {label!r} of {name};"
                " docs/serving.md says why",
                file=sys.stderr,
            )
    del entry.model_version_policy.specific.versions[:]
    entry.model_version_policy.specific.versions.append(version)


def write_models(serving_dir: Path, config: Any) -> None:
    """Replaces `models.config` at once, and then the bare TF Serving's copy, where there is one."""
    head = (
        "# ModelServerConfig of TF Serving (--model_config_file=...). run_tool.sh promote makes"
        " another version stable.\n"
    )
    _write_text(serving_dir / MODELS_CONFIG, head + text_format.MessageToString(config))
    if (serving_dir / BARE_CONFIG).exists():
        bare_config(serving_dir)


def read_models(serving_dir: Path) -> model_server_config_pb2.ModelServerConfig:
    """Reads `models.config` as TF Serving's own message.

    Raises:
      InputError: there is none, or it cannot be parsed.
    """
    path = serving_dir / MODELS_CONFIG
    try:
        return text_format.Parse(
            path.read_text(encoding="utf-8"), model_server_config_pb2.ModelServerConfig()
        )
    except FileNotFoundError as error:
        raise InputError(
            f"{serving_dir} holds no {MODELS_CONFIG}; make it with run_export.sh"
        ) from error
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} cannot be parsed ({' '.join(str(error).split())}); mend it, or delete it and"
            " export again"
        ) from error


def write_warmup(version: Path, name: str, image_size: int) -> None:
    """Writes one request for each signature of bytes and each allowed batch size.

    TF Serving answers them before any client's request.
    """
    extra = version / "assets.extra"
    extra.mkdir(exist_ok=True)
    ramp = np.linspace(0, 255, image_size).astype(np.uint8)
    image = tf.io.encode_png(
        np.stack(np.broadcast_arrays(ramp, ramp[:, None], 128), axis=-1).astype(np.uint8)
    ).numpy()
    with tf.io.TFRecordWriter(str(extra / WARMUP)) as writer:
        for signature in WARM_SIGNATURES:
            for size in ALLOWED_BATCH_SIZES:
                request = predict_pb2.PredictRequest()
                request.model_spec.name, request.model_spec.signature_name = name, signature
                request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto([image] * size))
                log = prediction_log_pb2.PredictionLog(
                    predict_log=prediction_log_pb2.PredictLog(request=request)
                )
                writer.write(log.SerializeToString())


def _write_text(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
