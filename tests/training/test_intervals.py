"""Wilson's interval against published values."""

import pytest

from training.intervals import wilson_interval


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),  # Newcombe 1998, table I, method 3
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_against_published_values(successes, n, low, high):
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)
    mirrored = wilson_interval(n - successes, n)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_wilson_contains_the_share_and_widens_with_confidence():
    narrow, wide = wilson_interval(380, 400, 0.8), wilson_interval(380, 400, 0.99)
    assert wide[0] < narrow[0] < 0.95 < narrow[1] < wide[1]
