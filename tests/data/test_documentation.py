"""The stage takes each command of docs/data.md, and the TFDS data sets in them exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import tensorflow_datasets as tfds

from cli import app, commands
from data import prepare, sources, splits

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text()
RECIPE = re.search(r"`C=(--config=\S+)`", PAGE)[1]
COMMANDS = re.findall(r"^\./run_prepare_data\.sh \$C (.*)", PAGE.replace("\\\n", " "), re.MULTILINE)


def resolved(command: str):
    arguments = shlex.split(command, comments=True)
    values = app.parse(commands.TABLE["prepare_data"], [RECIPE, *arguments])
    config, _ = values.pop("config"), values.pop("workdir")
    return prepare.with_locations(config, values).data


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_are_taken(command):
    splits._check_config(resolved(command))


def test_the_data_sets_are_there():
    found = {}
    for data in map(resolved, COMMANDS):
        for role in ("labeled", "unlabeled", "test"):
            location = data[role]
            if location and sources.split_location(location, data.source)[0] == "tfds":
                with tfds.testing.mock_data(num_examples=3):
                    found[location] = sources.open_collection(location, role, data).label_names
    assert {name: len(names) for name, names in found.items()} == {
        "oxford_flowers102/train": 102,
        "oxford_flowers102/test": 102,
        "cifar10/train": 10,
        "cifar10/test": 10,
        "svhn_cropped/train": 10,
        "svhn_cropped/extra": 0,
        "svhn_cropped/test": 10,
        "imagenet2012/train": 1000,
        "imagenet2012/validation": 1000,
    }
    # As in the released checkpoints.
    assert list(found["imagenet2012/train"]) == sorted(found["imagenet2012/train"])
