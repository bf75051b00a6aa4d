"""Predictions read in batches are those read singly, and bad records are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cli.errors import InputError
from data.protos import make_prediction
from data.records import Manifest, write_split
from workflow import predictions

K = 7


def _distributions(count: int) -> np.ndarray:
    values = (
        np.random.Generator(np.random.PCG64([1])).gamma(0.3, size=[count, K]).astype(np.float32)
        + 1e-4
    )
    values[0] = 1 / K  # a tie of all classes
    return values / values.sum(axis=1, keepdims=True)


def _write(directory: Path, records: list[bytes], num_records: int | None = None) -> Manifest:
    names = [str(k) for k in range(K)]
    manifest = write_split(
        directory, "predictions", records, 1, len(records), kind="predictions", label_names=names
    )
    return (
        manifest
        if num_records is None
        else Manifest(**{**vars(manifest), "records": (num_records,)})
    )


@pytest.mark.parametrize("top_k", [0, 1, 3, K - 1])
def test_batches_are_the_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, top_k: int
) -> None:
    monkeypatch.setattr(predictions, "BATCH", 16)
    values = _distributions(50)
    manifest = _write(
        tmp_path, [make_prediction(f"é{i}", row, top_k) for i, row in enumerate(values)]
    )
    singly = list(predictions.read_predictions(manifest, 0))
    tops = list(predictions.read_tops(manifest, 0))
    assert [len(top.keys) for top in tops] == [16, 16, 16, 2]
    assert [key.decode() for top in tops for key in top.keys] == [key for key, _ in singly]
    np.testing.assert_array_equal(
        np.concatenate([top.classes for top in tops]), [np.argmax(row) for _, row in singly]
    )
    np.testing.assert_allclose(
        np.concatenate([top.confidence for top in tops]),
        [row.max() for _, row in singly],
        rtol=2e-7,
    )


GOOD = make_prediction("good", _distributions(3)[2], 2)
BAD = {
    "of other classes": (
        make_prediction("bad", np.full(K + 1, 1 / (K + 1)), 0),
        "is over 8 classes, not 7",
    ),
    "of a class too many": (
        make_prediction("bad", np.eye(K + 4)[K + 3], 2),
        "does not fit 7 classes",
    ),
    "no example": (b"\xff\xff", "is not a tf.train.Example"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("before", [0, 2])
def test_a_bad_record_is_named(tmp_path: Path, case: str, before: int) -> None:
    record, message = BAD[case]
    manifest = _write(tmp_path, [GOOD] * before + [record, GOOD])
    with pytest.raises(
        InputError,
        match=rf"predictions-00000-of-00001, record {before} .counting from 0.: .*{message}",
    ):
        list(predictions.read_tops(manifest, 0))


@pytest.mark.parametrize("announced", [2, 4])
def test_another_number_of_records(tmp_path: Path, announced: int) -> None:
    manifest = _write(tmp_path, [GOOD] * 3, announced)
    with pytest.raises(InputError, match=f"3 records, but its manifest.json says {announced}"):
        list(predictions.read_tops(manifest, 0))


def test_mixed_forms_are_read_singly_or_named(tmp_path: Path) -> None:
    """Covers a shard of both forms, which no stage of ours writes."""
    manifest = _write(tmp_path, [GOOD, make_prediction("other", _distributions(3)[1], 0)])
    with pytest.raises(AssertionError, match="all of them singly"):
        list(predictions.read_tops(manifest, 0))
