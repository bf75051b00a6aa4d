"""The machine's memory, within a container's limit, and the room on a disk."""

from __future__ import annotations

import os

import pytest

from cli import machine

TOTAL = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
GIB = 2**30


@pytest.mark.parametrize(
    ("own", "files", "limit"),
    [
        ("0::/\n", {"memory.max": "max"}, None),
        ("0::/\n", {"memory.max": str(GIB)}, GIB),
        (
            "0::/jobs/one\n",
            {"jobs/one/memory.max": "max", "jobs/memory.max": str(2 * GIB)},
            2 * GIB,
        ),
        (
            "4:memory:/a\n3:cpu,cpuacct:/b\n",
            {"memory/a/memory.limit_in_bytes": str(GIB), "memory/b/memory.limit_in_bytes": "5"},
            GIB,
        ),
        ("4:memory:/\n", {"memory/memory.limit_in_bytes": "9223372036854771712"}, None),
        (None, {}, None),
    ],
)
def test_memory_is_the_least_limit_of_the_groups_around_the_process(tmp_path, own, files, limit):
    for name, text in files.items():
        (tmp_path / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fs" / name).write_text(text)
    if own:
        (tmp_path / "own").write_text(own)
    assert machine.memory(tmp_path / "fs", tmp_path / "own") == min(TOTAL, limit or TOTAL)


def test_the_room_for_a_directory_that_is_not_there_yet(tmp_path):
    assert (
        0
        < machine.disk_free(tmp_path / "not" / "yet")
        <= os.statvfs(tmp_path).f_blocks * os.statvfs(tmp_path).f_frsize
    )
