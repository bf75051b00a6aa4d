"""mCE, mFR, ReaL and ImageNet-A against brute force, published values and arithmetic by hand."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation import results, robustness, tables
from evaluation.imagenet import A_CLASSES, wnids
from evaluation.robustness import (
    ALEXNET_ERRORS,
    ALEXNET_EXTRA_ERRORS,
    ALEXNET_EXTRA_FLIPS,
    ALEXNET_FLIPS,
    CORRUPTIONS,
)

# AlexNet's mean error on each corruption has its own column in the published table. The
# severities beside it must come to that mean.
AVERAGES = (0.886428, 0.894468, 0.922640, 0.819880, 0.826268, 0.785948, 0.798360, 0.866816)
AVERAGES += (0.826572, 0.819324, 0.564592, 0.853204, 0.646056, 0.717840, 0.606500)
EXTRA_AVERAGES = (0.845388, 0.787108, 0.717512, 0.658248)
# AlexNet's flip probabilities in percent, as the paper of ImageNet-P rounds them (Table 7 there):
# noise, blur, weather, digital.
FLIPS = {
    "gaussian_noise": 23.65,
    "shot_noise": 30.06,
    "motion_blur": 9.30,
    "zoom_blur": 5.94,
    "snow": 11.93,
    "brightness": 4.89,
}
FLIPS |= {"translate": 11.01, "rotate": 13.10, "tilt": 7.05, "scale": 23.53}


def test_the_published_tables():
    for errors, averages in ((ALEXNET_ERRORS, AVERAGES), (ALEXNET_EXTRA_ERRORS, EXTRA_AVERAGES)):
        for row, average in zip(errors.values(), averages):
            assert np.mean(row) == pytest.approx(average, abs=5e-7)
    assert {name: round(100 * value, 2) for name, value in ALEXNET_FLIPS.items()} == FLIPS
    assert not set(ALEXNET_ERRORS) & set(ALEXNET_EXTRA_ERRORS) and not set(ALEXNET_FLIPS) & set(
        ALEXNET_EXTRA_FLIPS
    )
    assert (len(ALEXNET_ERRORS), len(ALEXNET_FLIPS)) == (15, 10)


def test_alexnet_itself_has_mce_100_and_mfr_100():
    ce = robustness.corruption_errors(ALEXNET_ERRORS, ALEXNET_ERRORS)
    assert robustness.mean_or_none(list(ce.values())) == pytest.approx(100)
    rates = robustness.flip_rates(ALEXNET_FLIPS, ALEXNET_FLIPS)
    assert robustness.mean_or_none(list(rates.values())) == pytest.approx(100)


def test_mce_is_the_mean_of_ratios_of_sums():
    rng = np.random.Generator(np.random.PCG64(0))
    errors = {name: rng.random(5).tolist() for name in CORRUPTIONS}
    total = 0.0
    for name, average in zip(CORRUPTIONS, AVERAGES):
        total += 100 * (sum(errors[name]) / 5) / average
    ours = robustness.mean_or_none(
        list(robustness.corruption_errors(errors, ALEXNET_ERRORS).values())
    )
    assert ours == pytest.approx(total / 15, rel=1e-6)
    unnormalized = 100 * np.mean(list(errors.values()))
    assert ours != pytest.approx(unnormalized, rel=0.1)  # the common mistake


def test_a_reference_without_mistakes_gives_no_number():
    ce = robustness.corruption_errors(
        {"fog": [0.1] * 5, "snow": [0.2] * 5}, {"fog": [0.0] * 5, "snow": [0.4] * 5}
    )
    assert ce == {"fog": None, "snow": pytest.approx(50)}
    assert robustness.mean_or_none(list(ce.values())) is None
    assert robustness.flip_rates({"tilt": 0.1}, {"tilt": 0.0}) == {"tilt": None}
    with pytest.raises(ValueError, match="severities"):
        robustness.corruption_errors({"fog": [0.1]}, ALEXNET_ERRORS)


@pytest.mark.parametrize("difficulty", [1, 2, 3])
def test_flips_against_the_authors_loops(difficulty):
    """The published evaluation walks every offset with a stride.

    Where the perturbation is noise, it compares with the first frame.
    """
    answers = np.random.Generator(np.random.PCG64(1)).integers(0, 3, (5, 31))
    for n, row in enumerate(answers):
        changes = comparisons = 0
        for offset in range(difficulty):
            previous = row[offset]
            for answer in row[offset::difficulty][1:]:
                changes += int(answer != previous)
                comparisons += 1
                previous = answer
        assert robustness.flips(answers, noise=False, difficulty=difficulty)[n] == pytest.approx(
            changes / comparisons
        )
        assert robustness.flips(answers, noise=True)[n] == pytest.approx(
            sum(a != row[0] for a in row[1:]) / 30
        )


def test_flips_by_hand():
    answers = np.array([[0, 1, 1, 0], [2, 2, 2, 2]])
    assert robustness.flips(answers, noise=False).tolist() == [pytest.approx(2 / 3), 0]
    assert robustness.flips(answers, noise=True).tolist() == [pytest.approx(2 / 3), 0]
    assert robustness.flips(answers, noise=False, difficulty=2).tolist() == [1.0, 0]
    assert robustness.is_noise("shot_noise") and not robustness.is_noise("snow")
    with pytest.raises(ValueError, match="answers"):
        robustness.flips(answers[:, :1], noise=True)


@pytest.mark.parametrize(("difficulty", "same"), [(1, True), (2, True), (1, False)])
def test_flips_are_divided_and_averaged_only_where_they_can_be(tmp_path, difficulty, same):
    """AlexNet's table is for difficulty 1; other images' sequences have no mean image by image."""
    answers = np.random.Generator(np.random.PCG64(2)).integers(0, 3, (4, 9))
    (tmp_path / "p").mkdir()
    for name in ("tilt", "snow"):
        digest = "x" if same else name
        np.savez(
            tmp_path / "p" / f"{name}.npz",
            answers=answers,
            labels=answers[:, 0],
            keys_digest=digest,
        )
    row, scores = results.perturbations(tmp_path, ["tilt", "snow"], difficulty)
    assert ("mean_flip_interval" in row) == ("p" in scores) == same
    mean = np.mean(answers[:, difficulty:] != answers[:, :-difficulty])
    assert row["mean_flip"] == pytest.approx(mean)
    for released in (True, False):
        rows = {"m": {"p": dict(row)}}
        results.relative_to(rows, "m", False, released)
        told = tables.table({"split": "t", "examples": None, "top_k": 5, "models": rows})
        if released and difficulty > 1:
            assert not {"mfr", "mfr_of_part", "fr"} & set(rows["m"]["p"])
            assert (
                "the mean at difficulty 2 is not normalized" in told and f"{100 * mean:.2f}" in told
            )
        else:
            flips = [ALEXNET_FLIPS["tilt"], ALEXNET_FLIPS["snow"]] if released else [mean] * 2
            assert rows["m"]["p"]["mfr_of_part" if released else "mfr"] == pytest.approx(
                np.mean([100 * mean / flip for flip in flips])
            )
            assert f"in percent of those of {'AlexNet' if released else 'm'}" in told


def test_top1_under_perturbations_is_the_mean_over_all_frames(tmp_path):
    """Tests Table 5: a set with longer sequences weighs more, and the extra sets don't count."""
    (tmp_path / "p").mkdir()
    for name, answers in (
        ("tilt", [[0, 0, 1]]),
        ("translate", [[0, 1, 1, 1, 1]]),
        ("shear", [[0] * 3]),
    ):
        np.savez(
            tmp_path / "p" / f"{name}.npz",
            answers=np.array(answers),
            labels=np.array([0]),
            keys_digest="x",
        )
    row, _ = results.perturbations(tmp_path, ["tilt", "translate", "shear"], 1)
    assert row["top1"] == pytest.approx((2 + 1) / (3 + 5))
    rows = {"m": {"p": row}}
    results.relative_to(rows, "m", False, True)
    told = tables.table({"split": "t", "examples": None, "top_k": 5, "models": rows})
    assert "P top-1 %" in told and "37.50" in told
    assert results.perturbations(tmp_path, ["shear"], 1)[0]["top1"] is None


def test_real_leaves_out_the_empty_lists():
    right, places = robustness.real_precision(np.array([3, 1, 5, 7]), [[1, 3], [], [4], [7, 7]])
    assert right.tolist() == [True, False, True] and places.tolist() == [0, 2, 3]
    with pytest.raises(ValueError, match="lists"):
        robustness.real_precision(np.array([3]), [])


def test_imagenet_a_has_200_classes():
    assert len(A_CLASSES) == len(set(A_CLASSES.tolist())) == 200 and (np.diff(A_CLASSES) > 0).all()
    assert (A_CLASSES[[0, 1, -1]] == [6, 11, 988]).all()
    names = wnids()
    # First and last folder of the released archive, and one from the middle: stingray, goldfinch, …
    # acorn.
    assert names[6] == "n01498041" and names[11] == "n01531178" and names[988] == "n12267677"
