"""The numbers of serving are those of `run_evaluate.sh`.

Every label and probability of the same 100 images is compared.
"""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from data import protos, records
from data.records import read_manifest
from evaluation import predict
from evaluation.classifiers import open_candidate
from evaluation.examples import from_records
from serving.answers import OK

from .conftest import NAMES


@pytest.mark.parametrize("batch_size", [32])
def test_100_images(exported, encoded_images, tmp_path, batch_size):
    """Takes formats, sizes and colors that people have through shards and SavedModel."""
    kinds = [
        ("PNG", (16, 16), "RGB"),
        ("PNG", (61, 40), "L"),
        ("JPEG", (90, 33), "RGB"),
        ("JPEG", (16, 48), "L"),
        ("GIF", (25, 25), "RGB"),
    ]
    encoded = [
        image for format, size, mode in kinds for image in encoded_images(format, size, mode, n=20)
    ]
    order = np.random.Generator(np.random.PCG64([5])).permutation(100)
    encoded = [encoded[i] for i in order]
    labels = np.arange(100) % len(NAMES)
    examples = [
        protos.make_example(image, f"{i:03d}", int(label))
        for i, (image, label) in enumerate(zip(encoded, labels))
    ]
    records.write_split(tmp_path, "test", examples, 3, 100, label_names=NAMES, kind="labeled")
    manifest = read_manifest(tmp_path, "labeled")
    classifier = open_candidate("student", exported.directory, "small").load()
    ((_, evaluated),) = predict.predict(classifier, [from_records(manifest, "clean")], batch_size)
    by_key = dict(zip(evaluated.keys, evaluated.values["probabilities"]))

    answers = [
        exported.serve(image_bytes=tf.constant(encoded[i : i + batch_size]))
        for i in range(0, 100, batch_size)
    ]
    served = {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}
    assert (served["status"] == OK).all()
    expected = np.stack([by_key[f"{i:03d}"] for i in range(100)])
    np.testing.assert_allclose(served["probabilities"], expected, atol=1e-5, rtol=0)
    np.testing.assert_array_equal(served["classes"][:, 0], expected.argmax(axis=1))
    assert len(set(served["classes"][:, 0])) > 1  # not one class for all
