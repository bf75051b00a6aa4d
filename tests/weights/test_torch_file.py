"""PyTorch's old state dicts: what is read of them, and that nothing in them is executed."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from cli.errors import InputError
from data.preprocessing import Preprocessing
from tests.weights import legacy
from training import model_dir
from weights import import_weights, names, torch_file, weight_files

STORAGE = {"0": np.arange(12, dtype=np.float32)}


def file(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    return path


def test_views_of_storages(tmp_path: Path) -> None:
    """Covers tensors that are not contiguous, as in the published files."""
    views = {
        "whole": legacy.tensor("0", "FloatStorage", 12, 0, (3, 4), (4, 1)),
        "turned": legacy.tensor("0", "FloatStorage", 12, 0, (4, 3), (1, 4)),
        "part": legacy.tensor("0", "FloatStorage", 12, 5, (2,), (3,)),
        "number": legacy.tensor("0", "FloatStorage", 12, 11, (), ()),
    }
    values = torch_file.read(file(tmp_path, legacy.content(legacy.state_dict(views), STORAGE)))
    whole = np.arange(12, dtype=np.float32).reshape(3, 4)
    expected = {
        "whole": whole,
        "turned": whole.T,
        "part": np.array([5.0, 8.0]),
        "number": np.array(11.0),
    }
    assert values.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(values[name], value)
        assert values[name].base is None  # its own array, which outlives the file


class Harm:
    """Runs when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return open, (str(self.path), "w")


def test_nothing_in_the_file_is_executed(tmp_path: Path) -> None:
    for place in range(3):  # the magic number, the dict, the keys
        parts = [
            pickle.dumps(legacy.MAGIC, 2),
            pickle.dumps(legacy.VERSION, 2),
            pickle.dumps({"little_endian": True}, 2),
        ]
        harm = pickle.dumps(Harm(tmp_path / "harm"), 2)
        content = (
            harm
            if place == 0
            else b"".join([*parts, harm] if place == 1 else [*parts, legacy.state_dict({}), harm])
        )
        with pytest.raises(
            pickle.UnpicklingError, match=r"it asks for (io|_io|builtins|__builtin__)\.open"
        ):
            torch_file.read(file(tmp_path, content))
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "EOF|Ran out|exhausted|STOP"),
        (b"PK\x03\x04", "release 1.6 and later"),
        (pickle.dumps(1), "no state dict as PyTorch saved it"),
        (b"\x80\x02" + b"r\xff\xff\xff\x7f.", "wants to remember 2147483647 objects"),
        (legacy.content(pickle.dumps([1, 2], 2), {}), "something else than a dict of tensors"),
        (legacy.content(pickle.dumps({"a": 1}, 2), {}), "something else than a dict of tensors"),
        (
            legacy.content(
                legacy.state_dict({"a": legacy.tensor("0", "FloatStorage", 12, 0, (13,), (1,))}),
                STORAGE,
            ),
            "beyond its storage",
        ),
        (
            legacy.content(
                legacy.state_dict({"a": legacy.tensor("0", "FloatStorage", 12, 3, (4, 3), (1, 4))}),
                STORAGE,
            ),
            "beyond its storage",
        ),
        (
            legacy.content(
                legacy.state_dict({"a": legacy.tensor("0", "FloatStorage", 12, -1, (2,), (1,))}),
                STORAGE,
            ),
            "impossible shape",
        ),
        (
            legacy.content(
                legacy.state_dict({"a": legacy.tensor("0", "FloatStorage", 99, 0, (99,), (1,))}),
                STORAGE,
            ),
            "another size",
        ),
        (
            legacy.content(
                legacy.state_dict({"a": legacy.tensor("1", "FloatStorage", 12, 0, (2,), (1,))}),
                STORAGE,
            ),
            "do not fit",
        ),
        (
            legacy.content(
                legacy.state_dict({"a": legacy.tensor("0", "FloatStorage", 12, 0, (2,), (1,))}),
                STORAGE,
            )[:-4],
            "buffer",
        ),
        (
            legacy.content(
                legacy.state_dict({"a": legacy.tensor("0", "FloatStorage", 12, 0, (2,), (1,))}),
                STORAGE,
            )
            + b"x",
            "after the last",
        ),
    ],
)
def test_damaged_and_foreign_files_are_refused(
    content: bytes, message: str, tmp_path: Path
) -> None:
    path = file(tmp_path, content)
    with pytest.raises(
        InputError, match=rf"--source: .*w\.pth is not a readable PyTorch file \(.*({message})"
    ):
        weight_files.open_weights(path, average=True)


@pytest.mark.parametrize("name", ["lite0", "b0"])
def test_a_state_dict_of_efficientnet_pytorch(name: str, tmp_path: Path) -> None:
    architecture = {"name": name, "width": 0.25, "depth": 0.5}
    table = names.of_architecture(architecture, 5)
    rng = np.random.default_rng(0)
    state = {row.pytorch: rng.uniform(0.5, 1.5, row.timm_shape).astype(np.float32) for row in table}
    assert len(state) == len(table)
    assert ("_blocks.1._se_reduce.bias" in state) == (name == "b0")
    tracked = {
        key.replace("running_var", "num_batches_tracked"): np.array(7)
        for key in state
        if key.endswith("running_var")
    }
    opened = weight_files.open_weights(
        legacy.save(tmp_path / "w.pth", {**state, **tracked}), average=True
    )
    spec = model_dir.ModelSpec(architecture, Preprocessing(image_size=32), tuple("abcde"))
    model = import_weights.convert(opened, spec)
    values = {weight.name.partition(":")[0]: weight.numpy() for weight in model.weights}
    np.testing.assert_array_equal(
        values["stem_conv/kernel"][0, 1, 2, 5], state["_conv_stem.weight"][5, 2, 0, 1]
    )
    np.testing.assert_array_equal(
        values["block1a_bn/moving_mean"], state["_blocks.0._bn1.running_mean"]
    )
    np.testing.assert_array_equal(values["block2a_expand_bn/gamma"], state["_blocks.1._bn0.weight"])
    np.testing.assert_array_equal(
        values["block2a_expand_conv/kernel"][0, 0, 3, 5],
        state["_blocks.1._expand_conv.weight"][5, 3, 0, 0],
    )
    np.testing.assert_array_equal(
        values["block2a_dwconv/depthwise_kernel"][1, 2, 6, 0],
        state["_blocks.1._depthwise_conv.weight"][6, 0, 1, 2],
    )
    np.testing.assert_array_equal(values["block2a_project_bn/beta"], state["_blocks.1._bn2.bias"])
    np.testing.assert_array_equal(values["top_bn/moving_variance"], state["_bn1.running_var"])
    np.testing.assert_array_equal(values["predictions/kernel"], state["_fc.weight"].T)
