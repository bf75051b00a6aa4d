"""Metrics as Prometheus reads them, under the names, labels and bounds of TF Serving."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from serving import metrics

LINE = re.compile(r'([a-zA-Z_:][a-zA-Z0-9_:]*)\{((?:[a-zA-Z_]\w*="(?:[^"\\\n]|\\.)*",?)*)\} (\S+)')


def values(text):
    """Returns (name, labels) -> value of each line that is not a comment."""
    lines = [line for line in text.splitlines() if not line.startswith("# TYPE ")]
    matches = [LINE.fullmatch(line) for line in lines]
    assert all(matches), text
    return {(match[1], match[2]): float(match[3]) for match in matches}


def test_lines_of_tf_serving():
    """Tests two lines as TF Serving's issue 1959 shows them: names, labels, order, first bounds."""
    measured = metrics.Metrics()
    for _ in range(6):
        measured.count(metrics.REQUESTS, "test_model", "OK")
    measured.observe(metrics.LATENCY, 20.0, "test_model", "predict", "REST")
    measured.observe(metrics.RUNTIME, 9.0, "test_model", "Predict", "TF1")
    text = measured.text()
    assert ':tensorflow:serving:request_count{model_name="test_model",status="OK"} 6\n' in text
    for bound, count in (("10", 0), ("18", 0), ("32.4", 1)):
        labels = f'model_name="test_model",API="predict",entrypoint="REST",le="{bound}"'
        assert f":tensorflow:serving:request_latency_bucket{{{labels}}} {count}\n" in text
    assert (
        ':tensorflow:serving:runtime_latency_bucket{model_name="test_model",API="Predict",'
        'runtime="TF1",le="10"} 1\n' in text
    )


def test_histograms_count_everything_once():
    """Compares with numpy, from several threads at a time."""
    measured = metrics.Metrics()
    samples = np.random.Generator(np.random.PCG64(0)).lognormal(8, 4, 2000)

    def observe(value):
        measured.observe(metrics.LATENCY, float(value), "m", "Predict", "GRPC")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(observe, samples))
    found = values(measured.text())
    labels = 'model_name="m",API="Predict",entrypoint="GRPC"'
    buckets = [
        (re.search(r'le="(.+?)"', key[1])[1], value)
        for key, value in found.items()
        if key[0].endswith("_bucket")
    ]
    assert len(buckets) == 34 and buckets[-1] == ("+Inf", 2000)
    for bound, count in buckets[:-1]:
        assert (
            count == (samples <= float(bound)).sum() or abs(samples / float(bound) - 1).min() < 1e-5
        )
    assert found[f"{metrics.LATENCY}_count", labels] == 2000
    np.testing.assert_allclose(found[f"{metrics.LATENCY}_sum", labels], samples.sum(), rtol=1e-5)


def test_labels_are_escaped():
    measured = metrics.Metrics()
    measured.count(metrics.REQUESTS, 'a"b\\c\nd', "OK")
    assert values(measured.text()) == {
        (metrics.REQUESTS, 'model_name="a\\"b\\\\c\\nd",status="OK"'): 1
    }
