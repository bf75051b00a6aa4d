"""Files that are whole or absent, full disks, and paths that a library takes for patterns."""

import errno
import os

import pytest

from cli import app
from cli.errors import InputError, one_line, write_failure
from cli.files import atomic_path, plain_path


@pytest.mark.parametrize(
    ("number", "what"),
    [
        (errno.ENOSPC, "no space left"),
        (errno.EDQUOT, "no disk quota left"),
        (errno.EFBIG, "file size limit reached"),
        (errno.EROFS, "read-only file system"),
    ],
)
def test_a_disk_that_takes_no_more_is_one_line(tmp_path, capsys, number, what):
    def fail(workdir):
        # HDF5's text of the error.
        raise RuntimeError(f"Can't write data (file write failed: {os.strerror(number)})")

    def write():
        with atomic_path(tmp_path / "name") as temporary:
            temporary.write_bytes(b"half")
            raise OSError(number, os.strerror(number))

    with pytest.raises(
        InputError, match=f"^{what} on the disk of .*name; .* run the same command again"
    ):
        write()
    assert not list(tmp_path.iterdir())
    with pytest.raises(SystemExit) as end:
        app.guarded(lambda: fail("w"))
    error = capsys.readouterr().err
    assert (
        end.value.code == 2
        and error.startswith(f"error: {what} (RuntimeError:")
        and error.count("\n") == 1
    )


def test_the_reason_of_an_error_of_tensorflow_is_not_cut_off():
    node = (
        "{{function_node"
        " __wrapped__SaveV2_dtypes_9_device_/job:localhost/replica:0/task:0/device:CPU:0}}"
    )
    assert one_line(ValueError(f"{node} {'a/' * 60}ckpt; Permission denied")).endswith(
        "ckpt; Permission denied"
    )


def test_other_errors_are_none_of_the_disk_s():
    assert write_failure(OSError(errno.EIO, "Input/output error")) is None
    assert write_failure(ValueError("nothing")) is None


def test_a_path_that_would_be_taken_for_a_pattern(tmp_path):
    plain = tmp_path / "with space, 100% é"
    plain.mkdir()
    assert plain_path(plain) == plain
    for name in ("run [v1]", "a*", "b?", "{a,b}", "c\\d"):
        directory = tmp_path / name
        directory.mkdir()
        (directory / "file").write_text(name)
        linked = plain_path(directory)
        assert (linked / "file").read_text() == name and not set("[]*?{}\\") & set(str(linked))
    for ending in ("index", "data-00000-of-00001"):
        (tmp_path / f"model [1].{ending}").write_text(ending)
        linked = plain_path(tmp_path / "model [1]")
        assert linked.with_name(f"{linked.name}.{ending}").read_text() == ending
