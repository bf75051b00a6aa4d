"""The balancing stage with shares of the classes that are not equal."""

import numpy as np
import pytest

from cli.errors import InputError
from cli.json_files import read_json, write_json
from noisy_student import priors
from tests.workflow import test_balance
from workflow import balance

LABELED = {"ant": 2, "bee": 4, "cat": 1, "dog": 1}


@pytest.fixture
def inputs(tmp_path):
    """Writes the shards of test_balance: 30 ants, 12 bees, 5 cats and no dog."""
    test_balance._make_inputs(tmp_path)
    summary = {"splits": {"labeled": {"per_class": LABELED}}}
    write_json(tmp_path / "data" / "summary.json", summary)
    return tmp_path


def run(root, name, **settings):
    directory = test_balance._run(root, name, test_balance._config(**settings))
    return read_json(directory / "summary.json")


@pytest.mark.parametrize("text", ["labeled", "dog:1,cat:1,bee:4,ant:2"])
def test_each_class_has_its_share(inputs, text):
    found = run(inputs, "w", priors=text, images_per_class=6)
    assert found["targets"] == [6, 12, 3, 3]  # 24 in all, 6 a class on average
    assert found["total"] == [6, 12, 3, 0] and found["unique"] == [6, 12, 3, 0]


def test_a_class_with_fewer_images_is_filled_up(inputs):
    found = run(inputs, "w", priors="ant:1,bee:1,cat:5,dog:1", images_per_class=4)
    assert found["total"] == [2, 2, 10, 0] and found["unique"] == [2, 2, 5, 0]


def test_without_a_number_the_median_class_is_just_filled(inputs):
    """Divides 30 ants, 12 bees and 5 cats over 4 times the shares: 30, 6 and 10."""
    found = run(inputs, "w", priors="labeled", images_per_class=None)
    assert found["images_per_class"] == 10
    expected = priors.quotas(np.array([2, 4, 1, 1]) / 8, 40).tolist()
    assert found["targets"] == expected == [10, 20, 5, 5]
    assert found["total"] == [10, 20, 5, 0]


def test_equal_weights_are_the_uniform_balance(inputs):
    one = run(inputs, "one", images_per_class=8)
    other = run(inputs, "other", images_per_class=8, priors="ant:2,bee:2,cat:2,dog:2")
    assert one.pop("targets") is None and other.pop("targets") == [8] * 4
    assert one == other
    for path in sorted((inputs / "one").glob("pseudo_labeled-*")):
        assert path.read_bytes() == (inputs / "other" / path.name).read_bytes()


def test_shares_that_cannot_be_are_refused_at_once(inputs):
    with pytest.raises(InputError, match=r"priors has no weight for the class dog"):
        run(inputs, "w", priors="ant:1,bee:1,cat:1")
    assert not (inputs / "w").exists()
    with pytest.raises(InputError, match="a weight above 0 for each class"):
        balance.check_balance(test_balance._config(priors="ant").balance)
    settings = test_balance._config(priors="labeled", balance=False).balance
    assert balance._shares(settings, inputs, test_balance.LABEL_NAMES) is None
