"""The selection against sorting everything at once."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from noisy_student import selection

CLASSES = 7


def _corpus(seed: int, size: int = 3000, steps: int = 50) -> dict[str, np.ndarray]:
    """Returns unevenly filled classes (the last one is empty).

    Confidences are on a coarse grid, so there are many ties.
    """
    generator = np.random.Generator(np.random.PCG64([seed]))
    return {
        "classes": generator.choice(
            CLASSES, size, p=[0.4, 0.25, 0.2, 0.1, 0.045, 0.005, 0.0]
        ).astype(np.int32),
        "confidence": (0.3 + 0.7 * generator.integers(1, steps + 1, size) / steps).astype(
            np.float32
        ),
        "hash": generator.integers(0, 2**64, size, dtype=np.uint64),
    }


def _cut(corpus: dict[str, np.ndarray], sizes: list[int]) -> list[dict[str, np.ndarray]]:
    edges = np.cumsum([0, *sizes])
    return [
        {name: column[a:b] for name, column in corpus.items()}
        for a, b in zip(edges[:-1], edges[1:])
    ]


def _brute_force(corpus: dict[str, np.ndarray], target: int) -> np.ndarray:
    """Returns the copies of each image, by sorting each class."""
    copies = np.zeros(len(corpus["classes"]), np.int64)
    for k in range(CLASSES):
        members = np.flatnonzero(corpus["classes"] == k)
        if len(members) > target:
            order = np.lexsort((corpus["hash"][members], -corpus["confidence"][members]))
            copies[members[order[:target]]] = 1
        elif len(members):
            order = np.argsort(corpus["hash"][members])
            copies[members] = target // len(members)
            copies[members[order[: target % len(members)]]] += 1
    return copies


def _counts(corpus: dict[str, np.ndarray]) -> np.ndarray:
    return np.bincount(corpus["classes"], minlength=CLASSES)


@pytest.mark.parametrize("target", [1, 7, 100, 333, 750, 5000])
@pytest.mark.parametrize(("steps", "entries"), [(50, 2**22), (1, 2**22), (10**6, 2**6), (50, 2**4)])
def test_equals_sorting(
    monkeypatch: pytest.MonkeyPatch, target: int, steps: int, entries: int
) -> None:
    """All confidences are equal, take a few values, or are (nearly) all different.

    The histograms resolve at once or in many passes.
    """
    monkeypatch.setattr(selection, "HISTOGRAM_ENTRIES", entries)
    corpus = _corpus(seed=target, steps=steps)
    shards = _cut(corpus, [1000, 0, 1999, 1])
    chosen = selection.select(shards, _counts(corpus), target, threshold=0.3)
    copies = np.concatenate([chosen.copies(shard) for shard in shards])
    np.testing.assert_array_equal(copies, _brute_force(corpus, target))
    np.testing.assert_array_equal(
        np.bincount(corpus["classes"], copies, CLASSES), np.where(_counts(corpus) > 0, target, 0)
    )
    np.testing.assert_array_equal(chosen.totals, np.where(_counts(corpus) > 0, target, 0))
    np.testing.assert_array_equal(
        chosen.kept, np.bincount(corpus["classes"][copies > 0], minlength=CLASSES)
    )


@pytest.mark.parametrize("target", [None, 20, 333, 5000])
def test_a_limit_before_the_target_equals_sorting(target: int | None) -> None:
    """Each class has its own limit, as if the other images were not there."""
    corpus = _corpus(seed=8)
    counts = _counts(corpus)
    most = np.ceil(counts * np.array([0.1, 0.5, 1.0, 0.01, 0.3, 0.2, 1.0])).astype(np.int64)
    left = np.concatenate(
        [
            members[
                np.lexsort((corpus["hash"][members], -corpus["confidence"][members]))[: most[k]]
            ]
            for k, members in enumerate(
                np.flatnonzero(corpus["classes"] == k) for k in range(CLASSES)
            )
        ]
    )
    expected = np.zeros(len(corpus["classes"]), np.int64)
    expected[left] = (
        1
        if target is None
        else _brute_force({name: column[left] for name, column in corpus.items()}, target)
    )
    shards = _cut(corpus, [1500, 1500])
    chosen = selection.select(shards, counts, target, 0.3, most)
    np.testing.assert_array_equal(
        np.concatenate([chosen.copies(shard) for shard in shards]), expected
    )
    assert chosen.totals.sum() == expected.sum()


def test_order_and_shards_do_not_matter() -> None:
    corpus = _corpus(seed=1)
    expected = selection.select([corpus], _counts(corpus), 200).copies(corpus)
    order = np.random.Generator(np.random.PCG64([2])).permutation(len(expected))
    shuffled = _cut({name: column[order] for name, column in corpus.items()}, [10] * 300)
    chosen = selection.select(shuffled, _counts(corpus), 200)
    np.testing.assert_array_equal(
        np.concatenate([chosen.copies(shard) for shard in shuffled]), expected[order]
    )


def test_most_confident_are_kept() -> None:
    corpus = _corpus(seed=3, steps=10**6)
    copies = selection.select([corpus], _counts(corpus), 200).copies(corpus)
    kept, dropped = (
        corpus["confidence"][(corpus["classes"] == 0) & chosen]
        for chosen in (copies > 0, copies == 0)
    )
    assert kept.min() >= dropped.max()


def test_no_target_keeps_all_once() -> None:
    corpus = _corpus(seed=4)
    chosen = selection.select([corpus], _counts(corpus), None)
    assert (chosen.copies(corpus) == 1).all()
    np.testing.assert_array_equal(chosen.totals, _counts(corpus))


def test_extreme_values() -> None:
    """Covers confidence 1 and the least float above 0, and the smallest and the largest hash."""
    corpus: dict[str, np.ndarray] = {
        "classes": np.zeros(4, np.int32),
        "confidence": np.array([1, 1, 1, np.finfo(np.float32).tiny], np.float32),
        "hash": np.array([2**64 - 1, 0, 5, 3], np.uint64),
    }
    for target, expected in [
        (1, [0, 1, 0, 0]),
        (2, [0, 1, 1, 0]),
        (3, [1, 1, 1, 0]),
        (4, [1, 1, 1, 1]),
        (5, [1, 2, 1, 1]),
        (7, [1, 2, 2, 2]),
    ]:
        copies = selection.select([corpus], np.array([4]), target).copies(corpus)
        np.testing.assert_array_equal(copies, expected, err_msg=str(target))


def test_equal_hashes_at_the_cut_are_refused() -> None:
    corpus: dict[str, np.ndarray] = {
        "classes": np.zeros(3, np.int32),
        "confidence": np.full(3, 0.5, np.float32),
        "hash": np.array([1, 9, 9], np.uint64),
    }
    assert selection.select([corpus], np.array([3]), 1).copies(corpus).tolist() == [
        1,
        0,
        0,
    ]  # the cut is elsewhere
    with pytest.raises(ValueError, match="class 0: several images have the same hash"):
        selection.select([corpus], np.array([3]), 2)


def test_wrong_counts_are_noticed() -> None:
    corpus = _corpus(seed=5)
    with pytest.raises(ValueError, match="more values wanted"):
        selection.select([corpus], _counts(corpus) * 10, _counts(corpus).max() + 1)


@pytest.mark.parametrize("window", [2**22, 64])
def test_shared_values(window: int) -> None:
    generator = np.random.Generator(np.random.PCG64([6]))
    shards = [
        np.sort(generator.integers(0, 2**64, size, dtype=np.uint64)) for size in (500, 0, 1, 700)
    ]
    assert not list(selection.shared_values(shards, window))
    shared = [int(shards[0][3]), int(shards[0][499])]
    shards[3] = np.sort(np.append(shards[3], np.array(shared, np.uint64)))
    shards[0] = np.sort(np.append(shards[0], shards[0][7]))
    assert sorted(selection.shared_values(shards, window)) == sorted([*shared, int(shards[0][7])])


def test_shared_values_takes_the_memory_of_three_windows() -> None:
    """This holds however many values there are; docs/scaling.md reckons with it."""
    window = 2**14
    shards = [
        np.arange(shard, 2**64, 2**64 // (4 * window), dtype=np.uint64) for shard in range(4)
    ]  # 16 windows
    tracemalloc.start()
    assert not list(selection.shared_values(shards, window))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 2.5 * 8 * window < peak < 3.2 * 8 * window


@pytest.mark.parametrize("records", [1, 500, 1999, 2000])
def test_a_sample_is_as_large_as_asked_and_even(records: int) -> None:
    """Compares with a sort of all records' numbers, SplitMix64's as written for whole numbers."""
    corpus = _corpus(seed=5)
    shards = _cut(corpus, [1000, 0, 2000])
    chosen = selection.select(shards, _counts(corpus), 400, threshold=0.3)
    drawn = selection.sample(shards, chosen, records)
    copies = np.concatenate([drawn.copies(shard) for shard in shards])
    whole = np.concatenate([chosen.copies(shard) for shard in shards])
    numbers = sorted(
        (_split_mix(int(corpus["hash"][i]) + c * 0x9E3779B97F4A7C15), i)
        for i in range(3000)
        for c in range(1, whole[i] + 1)
    )
    expected = np.bincount([i for _, i in numbers[:records]], minlength=3000)
    np.testing.assert_array_equal(copies, expected)
    np.testing.assert_array_equal(drawn.totals, np.bincount(corpus["classes"], copies, CLASSES))
    np.testing.assert_array_equal(
        drawn.kept, np.bincount(corpus["classes"][copies > 0], minlength=CLASSES)
    )


def _split_mix(value: int) -> int:
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        value %= 2**64
        value = (value ^ (value >> shift)) * factor
    value %= 2**64
    return value ^ (value >> 31)
