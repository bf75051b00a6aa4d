"""Distribution alignment against the formula on all labels at once."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from ml_collections import ConfigDict

from cli.errors import InputError
from cli.json_files import write_json
from cli.workdir import require_finished
from data.protos import make_example, make_prediction
from data.records import read_manifest, read_shard, write_split
from workflow import alignment, balance

NAMES = ("ant", "bee", "cat", "dog")
LABELED = (5, 1, 3, 1)
COUNT = 60


def _labels() -> np.ndarray:
    """float16-exact distributions (n, 4); nobody believes in a dog."""
    q = np.random.Generator(np.random.PCG64([1])).dirichlet([1.5, 1.0, 0.7], COUNT)
    return np.pad(q, [(0, 0), (0, 1)]).astype(np.float16).astype(np.float32)


def _inputs(root: Path, order: np.ndarray, shards: int, labeled: tuple[int, ...] = LABELED) -> None:
    labels = _labels()
    examples = (make_example(b"", f"{i}.png") for i in order)
    write_split(root / "data" / "unlabeled", "unlabeled", examples, shards, COUNT, kind="unlabeled")
    predictions = (make_prediction(f"{i}.png", labels[i], 0) for i in order)
    write_split(root / "predictions", "predictions", predictions, shards, COUNT, kind="predictions", label_names=NAMES)
    write_json(root / "data" / "summary.json", {"splits": {"labeled": {"per_class": dict(zip(NAMES, labeled))}}})
    write_json(root / "predictions" / "summary.json", {})


def _run(root: Path, *, align: bool = True) -> list[tuple[str, np.ndarray]]:
    """Key and label of each record that `balance` writes; some images are left out, and some come twice."""
    settings = {"threshold": 0.3, "images_per_class": 25, "balance": True, "max_confidence": 1.0, "fraction": 1.0, "share_per_class": 1.0}
    workdir = root / f"balanced_{align}"
    balance.main(
        ConfigDict({"seed": 0, "balance": {**settings, "align_labels": align}}), str(workdir), str(root / "data"), str(root / "predictions")
    )
    found = []
    for path in read_manifest(workdir, "pseudo_labeled").paths:
        for serialized in read_shard(path):
            features = tf.train.Example.FromString(serialized).features.feature
            q = np.array(features["probabilities"].float_list.value, np.float32)
            assert features["label"].int64_list.value[0] == q.argmax() and features["prob"].float_list.value[0] == q.max()
            found.append((features["image/key"].bytes_list.value[0].decode(), q))
    return sorted(found, key=lambda pair: pair[0])


def test_equals_the_formula_whatever_the_order(tmp_path: Path) -> None:
    _inputs(tmp_path / "a", np.arange(COUNT), 3)
    plain, found = _run(tmp_path / "a", align=False), _run(tmp_path / "a")
    assert [key for key, _ in plain] == [key for key, _ in found]
    assert len(plain) > len({key for key, _ in plain}), "nothing is doubled, so the copies' weight is not tested"
    q = np.array([label for _, label in plain], np.float64)  # (n, K), copies included
    p = np.array(LABELED) / sum(LABELED)
    mean = np.array([float(sum(map(Fraction, column)) / len(column)) for column in q.T])
    expected = q * np.where(mean > 0, p / np.where(mean > 0, mean, 1), 1)
    expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose([label for _, label in found], expected, rtol=1e-6, atol=1e-9)
    after = np.mean([label for _, label in found], axis=0)
    assert np.abs(after - p)[:3].sum() < 0.5 * np.abs(mean - p)[:3].sum()
    assert require_finished(tmp_path / "a" / "balanced_True", "", "")["factors"][3] == 1.0

    _inputs(tmp_path / "b", np.random.Generator(np.random.PCG64([2])).permutation(COUNT), 5)
    again = _run(tmp_path / "b")
    assert all(np.array_equal(one[1], two[1]) and one[0] == two[0] for one, two in zip(found, again))


def test_labels_distributed_as_they_should_be_are_left() -> None:
    q = np.array([[0.7, 0.3], [0.3, 0.7]], np.float32)
    sums = [np.rint(row * 2.0**alignment.FRACTION_BITS).astype(int).tolist() for row in q]
    factors = alignment.class_factors(sums, [4, 4])
    np.testing.assert_allclose(alignment.aligned(q[0], factors), q[0], rtol=1e-6)
    np.testing.assert_allclose(alignment.aligned(q[0], alignment.class_factors(sums, [9, 1])), np.array([0.63, 0.03]) / 0.66, rtol=1e-6)


def test_a_class_without_labelled_images_is_refused(tmp_path: Path) -> None:
    _inputs(tmp_path, np.arange(COUNT), 1, labeled=(5, 1, 0, 1))
    with pytest.raises(InputError, match="/data has none of cat"):
        _run(tmp_path)
    assert not (tmp_path / "balanced_True").exists()


@pytest.mark.parametrize(
    "names, words",
    [(("ant", "bee", "cat"), "/data has 3 classes, predictions .* has 4"), (("ant", "cat", "bee", "dog"), "class 1 is 'cat'")],
)
def test_a_teacher_of_other_classes_is_refused(tmp_path: Path, names: tuple[str, ...], words: str) -> None:
    _inputs(tmp_path, np.arange(COUNT), 1)
    write_json(tmp_path / "data" / "summary.json", {"splits": {"labeled": {"per_class": dict.fromkeys(names, 3)}}})
    with pytest.raises(InputError, match=words):
        _run(tmp_path)
    assert not (tmp_path / "balanced_True").exists()
