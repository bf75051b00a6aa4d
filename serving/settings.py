"""The files beside the exported versions: TF Serving's settings and the requests that warm it up.

    SERVING_DIR/models.config             which models and versions are served, and the labels `stable` and `canary`
    SERVING_DIR/batching_parameters.txt   how requests are batched
    SERVING_DIR/monitoring.config         metrics for Prometheus
    SERVING_DIR/NAME/1/assets.extra/tf_serving_warmup_requests

Paths in `models.config` are those of the official image, which sees SERVING_DIR as `/models`. A person may edit the three
files: an export leaves the last two alone where they exist, and changes in the first only the entry of its own model.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tensorflow as tf
from google.protobuf import text_format
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2
from tensorflow_serving.config import model_server_config_pb2

from cli.errors import InputError
from cli.files import atomic_path
from serving import BATCHING, MONITORING, MOUNT
from serving.versions import MODELS_CONFIG, versions

STABLE, CANARY = "stable", "canary"

ALLOWED_BATCH_SIZES = (1, 2, 4, 6, 8, 12, 16, 24, 32)
"""A server fills a batch up to the next of these; the last one is also the largest request."""

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
    """Writes or completes the three files for the model `name`, whose newest version becomes `canary`.

    `stable` stays where it was, on the version before where it was nowhere, on the only version where there is one.

    Raises:
      InputError: a `models.config` that cannot be parsed.
    """
    for file, text in ((BATCHING, _BATCHING_TEXT), (MONITORING, _MONITORING_TEXT)):
        if not (serving_dir / file).exists():
            _write_text(serving_dir / file, text)
    config = read_models(serving_dir) if (serving_dir / MODELS_CONFIG).exists() else model_server_config_pb2.ModelServerConfig()
    before = text_format.MessageToString(config)
    entries = {entry.name: entry for entry in config.model_config_list.config}
    if name not in entries:
        entries[name] = config.model_config_list.config.add(name=name, base_path=f"{MOUNT}/{name}", model_platform="tensorflow")
    entry, numbers = entries[name], versions(serving_dir / name)
    stable = dict(entry.version_labels).get(STABLE)
    if stable not in numbers:
        stable = numbers[-2] if len(numbers) > 1 else numbers[-1]
    entry.version_labels[STABLE], entry.version_labels[CANARY] = stable, numbers[-1]
    served = entry.model_version_policy.specific.versions
    del served[:]
    served.extend(sorted({*entry.version_labels.values()} & {*numbers}))
    text = text_format.MessageToString(config)
    if text != before:
        head = "# ModelServerConfig of TF Serving (--model_config_file=...). To make another version stable, change its number.\n"
        _write_text(serving_dir / MODELS_CONFIG, head + text)


def read_models(serving_dir: Path) -> model_server_config_pb2.ModelServerConfig:
    """`models.config` as TF Serving's own message.

    Raises:
      InputError: there is none, or it cannot be parsed.
    """
    path = serving_dir / MODELS_CONFIG
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), model_server_config_pb2.ModelServerConfig())
    except FileNotFoundError as error:
        raise InputError(f"{serving_dir} holds no {MODELS_CONFIG}; make it with run_export.sh") from error
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be parsed ({' '.join(str(error).split())}); mend it, or delete it and export again") from error


def write_warmup(version: Path, name: str, image_size: int) -> None:
    """Writes one request for each signature of bytes and each allowed batch size; TF Serving answers them before any client's."""
    extra = version / "assets.extra"
    extra.mkdir(exist_ok=True)
    ramp = np.linspace(0, 255, image_size).astype(np.uint8)
    image = tf.io.encode_png(np.stack(np.broadcast_arrays(ramp, ramp[:, None], 128), axis=-1).astype(np.uint8)).numpy()
    with tf.io.TFRecordWriter(str(extra / WARMUP)) as writer:
        for signature in WARM_SIGNATURES:
            for size in ALLOWED_BATCH_SIZES:
                request = predict_pb2.PredictRequest()
                request.model_spec.name, request.model_spec.signature_name = name, signature
                request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto([image] * size))
                log = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
                writer.write(log.SerializeToString())


def _write_text(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
