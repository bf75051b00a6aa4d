"""Counts and times of the development server, under TF Serving's names, as Prometheus reads them.

Names, labels and bounds are those of TF Serving 2.15 and of TensorFlow's batching kernels:
tensorflow_serving/servables/tensorflow/util.cc, tensorflow/core/kernels/batching_util/
batch_resource_base.cc. The text is that of tensorflow_serving/util/prometheus_exporter.cc.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from typing import NamedTuple

PATH = "/monitoring/prometheus/metrics"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class _Metric(NamedTuple):
    """Labels of a name and, for a histogram, the upper bounds of its buckets."""

    labels: tuple[str, ...]
    bounds: tuple[float, ...] = ()


def _exponential(scale: float, growth: float, count: int) -> tuple[float, ...]:
    return tuple(scale * growth**i for i in range(count))


_MICROSECONDS = _exponential(10, 1.8, 33)
REQUESTS = ":tensorflow:serving:request_count"
LATENCY = ":tensorflow:serving:request_latency"
RUNTIME = ":tensorflow:serving:runtime_latency"
LOGGED = ":tensorflow:serving:request_log_count"
WARMUP = ":tensorflow:serving:model_warmup_latency"
BATCH = ":tensorflow:serving:batching:batch_size"
PROCESSED = ":tensorflow:serving:batching:processed_batch_size_v2"
DELAY = ":tensorflow:serving:batching:batch_delay_us_v2"

_METRICS = {
    REQUESTS: _Metric(("model_name", "status")),
    LOGGED: _Metric(("model_name", "status_code")),
    LATENCY: _Metric(("model_name", "API", "entrypoint"), _MICROSECONDS),
    RUNTIME: _Metric(("model_name", "API", "runtime"), _MICROSECONDS),
    WARMUP: _Metric(("model_path", "status"), _MICROSECONDS),
    BATCH: _Metric(("model_name", "op_name"), _exponential(1, 1.5, 20)),
    PROCESSED: _Metric(("model_name", "op_name", "batch_size")),
    DELAY: _Metric(("model_name", "op_name", "processed_batch_size"), _exponential(1, 2, 27)),
}
"""Times are in microseconds. `op_name` is the signature. `batch_size` counts images, without the
rows that fill a batch up; `processed_batch_size_v2` counts batches by their size with those rows.
"""


class _Histogram:
    """Counts by bucket, and the sum of all values."""

    def __init__(self, buckets: int):
        self.counts, self.sum = [0] * (buckets + 1), 0.0


class Metrics:
    """All counts and times of one server. Safe to call from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters: dict[str, dict[tuple[str, ...], int]] = {}
        self._histograms: dict[str, dict[tuple[str, ...], _Histogram]] = {}

    def count(self, name: str, *labels: str) -> None:
        """Adds 1 to the counter `name` with these values of its labels."""
        with self._lock:
            values = self._counters.setdefault(name, {})
            values[labels] = values.get(labels, 0) + 1

    def observe(self, name: str, value: float, *labels: str) -> None:
        """Adds `value` to the histogram `name` with these values of its labels."""
        bounds = _METRICS[name].bounds
        bucket = bisect_left(bounds, value)
        with self._lock:
            values = self._histograms.setdefault(name, {})
            histogram = values.get(labels) or values.setdefault(labels, _Histogram(len(bounds)))
            histogram.counts[bucket] += 1
            histogram.sum += value

    def text(self) -> str:
        """Returns everything in Prometheus's text format."""
        with self._lock:
            return "".join(f"{line}\n" for name in _METRICS for line in self._lines(name))

    def _lines(self, name: str) -> list[str]:
        names, bounds = _METRICS[name]
        lines = [f"# TYPE {name} {'histogram' if bounds else 'counter'}"]
        for labels, count in self._counters.get(name, {}).items():
            lines.append(f"{name}{{{_text(names, labels)}}} {count}")
        for labels, histogram in self._histograms.get(name, {}).items():
            text, total = _text(names, labels), 0
            for bound, count in zip((*(f"{b:g}" for b in bounds), "+Inf"), histogram.counts):
                total += count
                lines.append(f'{name}_bucket{{{text},le="{bound}"}} {total}')
            lines.append(f"{name}_sum{{{text}}} {histogram.sum:g}")
            lines.append(f"{name}_count{{{text}}} {total}")
        return lines


def _text(names: tuple[str, ...], values: tuple[str, ...]) -> str:
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in zip(names, values))


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
