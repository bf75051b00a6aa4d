"""Checkpoints that cannot be written, and directory names that TensorFlow takes for patterns."""

from pathlib import Path

import pytest
import tensorflow as tf

from cli import stack
from cli.errors import InputError
from training.checkpoints import Checkpoints


def checkpoints(directory, value=0.0):
    return Checkpoints(directory, tf.train.Checkpoint(variable=tf.Variable([value] * 1000)))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            tf.errors.OutOfRangeError(None, None, "a; File too large"),
            "file size limit reached for a checkpoint .*ulimit",
        ),
        (
            tf.errors.UnknownError(None, None, "a; Disk quota exceeded"),
            "no disk quota left for a checkpoint",
        ),
        (
            tf.errors.UnknownError(None, None, "a; Read-only file system"),
            "read-only file system for a checkpoint",
        ),
        (
            tf.errors.PermissionDeniedError(None, None, "denied"),
            "cannot write a checkpoint in .*denied.*same command",
        ),
        (OSError(5, "Input/output error"), "cannot write a checkpoint in .*Input/output error"),
    ],
)
def test_a_failed_write_is_one_line_and_leaves_the_one_before(
    tmp_path, monkeypatch, error, message
):
    kept = checkpoints(tmp_path, 4.0)
    kept.save(4)

    def fail(self, path, *_):
        Path(f"{path}.data-00000-of-00001").write_bytes(b"half")
        Path(f"{path}_temp").mkdir()
        raise error

    monkeypatch.setattr(tf.train.Checkpoint, "write", fail)
    with pytest.raises(InputError, match=message):
        kept.save(8)
    assert {path.name.partition(".")[0] for path in tmp_path.iterdir()} == {"ckpt-4"}


def test_a_file_size_limit(tmp_path, limited_files):
    with (
        limited_files(3000),
        pytest.raises(
            InputError, match=r"^file size limit reached for a checkpoint in .*ulimit -f"
        ),
    ):
        checkpoints(tmp_path).save(4)
    assert not list(tmp_path.iterdir())


def test_the_loss_of_another_worker_is_no_failed_write(tmp_path, monkeypatch):
    def fail(*_):
        raise tf.errors.UnavailableError(None, None, "gone")

    monkeypatch.setattr(tf.train.Checkpoint, "write", fail)
    with pytest.raises(tf.errors.UnavailableError):
        checkpoints(tmp_path).save(4)


def test_a_directory_named_with_characters_of_patterns(tmp_path):
    directory = tmp_path / "run [v1] {a,b} *? 100% é\\'\""
    checkpoints(directory, 4.0).save(4)
    found = checkpoints(directory)
    assert found.restore() == 4 and found.checkpoint.variable[0] == 4.0
    found.checkpoint.variable.assign([0.0] * 1000)
    found.restore_step(4)
    assert found.checkpoint.variable[0] == 4.0


@pytest.mark.parametrize("stored", ["TensorFlow 2.99, tf-keras 2.99", None])
def test_another_stack_does_not_continue(tmp_path, monkeypatch, stored):
    """Earlier versions stored no stack: their checkpoints were the classic stack's."""
    kept = checkpoints(tmp_path, 4.0)
    kept.save(4)
    named = tmp_path / "ckpt-4.stack"
    assert named.read_text(encoding="utf-8") == f"{stack.current()}\n"
    if stored:
        named.write_text(f"{stored}\n", encoding="utf-8")
    else:
        named.unlink()
        monkeypatch.setattr(stack, "current", lambda: "TensorFlow 2.98, tf-keras 2.98")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(
        InputError,
        match=(
            f"ckpt-4 was written with {stored or stack.CLASSIC}, but this is"
            f" {stack.current()}.*--workdir"
        ),
    ):
        kept.restore()
    assert sorted(tmp_path.iterdir()) == before


def test_a_stack_goes_with_its_checkpoint(tmp_path):
    kept = checkpoints(tmp_path)
    for step in (4, 8, 12):
        kept.save(step)
    assert sorted(path.name for path in tmp_path.glob("*.stack")) == [
        "ckpt-12.stack",
        "ckpt-8.stack",
    ]
