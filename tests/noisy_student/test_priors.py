"""Shares of the classes: their text, their counts by brute force, and the selection with them."""

import itertools

import numpy as np
import pytest

from cli.errors import InputError
from noisy_student import priors, selection
from tests.noisy_student.test_selection import CLASSES, _brute_force, _corpus, _counts, _cut

NAMES = ("ant", "bee", "cat")


def test_named_shares_and_weights():
    labeled = {"bee": 1, "ant": 6, "cat": 3}
    assert priors.shares("uniform", labeled, NAMES) is None
    np.testing.assert_allclose(priors.shares("labeled", labeled, NAMES), [0.6, 0.1, 0.3])
    np.testing.assert_allclose(
        priors.shares("cat:1, ant:0.5,bee:0.5", labeled, NAMES), [0.25, 0.25, 0.5]
    )
    assert priors.weights("a:b:2,c:1e-1") == {"a:b": 2.0, "c": 0.1}  # a class may have a colon


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("unifrom", "must be uniform, labeled or a weight above 0 for each class"),
        ("ant:0,bee:1,cat:1", "a weight above 0"),
        ("ant:nan,bee:1,cat:1", "a weight above 0"),
        ("ant:1,ant:2", "names the class ant twice"),
        ("ant:1,bee:1", "has no weight for the class cat"),
        (
            "ant:1,bee:1,cat:1,dog:1",
            "names dog, which is not a class; the classes are ant, bee, cat",
        ),
        ("labeled", "class cat has no labeled image; give weights"),
    ],
)
def test_shares_that_cannot_be(text, message):
    with pytest.raises(InputError, match=message):
        priors.shares(text, {"ant": 1, "bee": 2, "cat": 0}, NAMES)


def nearest(shares, total):
    """Finds the counts of at least 1 with the least sum of squared deviations, by trying all."""
    rows = [
        (row, np.sum((np.array(row) - shares * total) ** 2))
        for row in itertools.product(range(1, total + 1), repeat=len(shares))
        if sum(row) == total
    ]
    return min(deviation for _, deviation in rows)


@pytest.mark.parametrize("seed", range(20))
def test_counts_are_the_nearest_whole_numbers(seed):
    generator = np.random.default_rng(seed)
    shares = generator.dirichlet(np.full(3, 0.7))
    total = int(generator.integers(3, 25))
    found = priors.quotas(shares, total)
    assert found.sum() == total and found.min() >= 1
    deviation = np.sum((found - shares * total) ** 2)
    if (shares * total).min() >= 1:
        assert deviation == pytest.approx(nearest(shares, total))


def test_equal_shares_are_the_equal_counts():
    for classes, each in ((3, 7), (10, 130_000), (7, 1)):
        shares = np.full(classes, 1 / classes)
        np.testing.assert_array_equal(priors.quotas(shares, classes * each), each)
    available = np.array([5, 0, 9, 14])
    assert priors.median(np.full(4, 0.25), available) == 9
    # With these shares, 8 a class on average are 4, 8, 8 and 12 images.
    assert priors.median(np.array([1, 2, 2, 3]) / 8, np.array([4, 100, 8, 12])) == 8


@pytest.mark.parametrize("mean", [1, 40, 300])
def test_the_selection_with_shares_equals_sorting(mean):
    """Class by class, as if each were balanced alone to its own number."""
    corpus = _corpus(seed=mean)
    shares = np.array([0.02, 0.3, 0.03, 0.25, 0.1, 0.2, 0.1])
    targets = priors.quotas(shares, mean * CLASSES)
    expected = np.zeros(len(corpus["classes"]), np.int64)
    for k, target in enumerate(targets.tolist()):
        own = corpus["classes"] == k
        expected[own] = _brute_force(corpus, target)[own]
    shards = _cut(corpus, [1000, 0, 1999, 1])
    chosen = selection.select(shards, _counts(corpus), targets, threshold=0.3)
    np.testing.assert_array_equal(
        np.concatenate([chosen.copies(shard) for shard in shards]), expected
    )
    np.testing.assert_array_equal(chosen.totals, np.where(_counts(corpus) > 0, targets, 0))
