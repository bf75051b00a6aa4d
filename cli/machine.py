"""Tells what this machine has: memory, and room on its disks."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

GIB = 2.0**30

_CGROUPS = Path("/sys/fs/cgroup")
_NO_LIMIT = 2**60
"""Limit in bytes; Linux states a number this large where a container has no limit."""


def memory(cgroups: Path = _CGROUPS, cgroup_file: Path = Path("/proc/self/cgroup")) -> int | None:
    """Returns the bytes of memory that a process can have: the machine's, or the container's limit.

    Args:
      cgroups: where Linux shows the limits of control groups.
      cgroup_file: the file that names the control groups of this process.

    Returns:
      None where the system does not tell.
    """
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
    return min([total, *_limits(cgroups, cgroup_file)])


def _limits(cgroups: Path, cgroup_file: Path) -> list[int]:
    """Returns the limits of this process's control groups and of the groups around them.

    Reads version 1 and version 2 of Linux's control groups.
    """
    try:
        lines = cgroup_file.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    files = [cgroups / "memory.max", cgroups / "memory" / "memory.limit_in_bytes"]
    for line in lines:  # NUMBER:CONTROLLERS:PATH
        _, controllers, path = line.split(":", 2)
        root, name = (
            (cgroups, "memory.max")
            if not controllers
            else (cgroups / "memory", "memory.limit_in_bytes")
        )
        if controllers and "memory" not in controllers.split(","):
            continue
        folder = root / path.lstrip("/")
        files += [place / name for place in (folder, *folder.parents) if place.is_relative_to(root)]
    found = []
    for file in files:
        try:
            found.append(int(file.read_text(encoding="utf-8")))
        except (OSError, ValueError):  # not there, or "max"
            continue
    return [limit for limit in found if 0 < limit < _NO_LIMIT]


def disk_free(path: str | os.PathLike[str]) -> int:
    """Returns the free bytes of the file system that `path` is or will be on."""
    place = Path(path).absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free
