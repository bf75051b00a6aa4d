"""The table of commands: what each is called, what it takes and what it runs.

The table names functions as text, so that reading it imports neither TensorFlow nor a room above
this one.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from cli.flags import Command, nearest
from cli.stage_commands import STAGES
from cli.tool_commands import EXPERIMENTS, TOOLS

BEAM_OPTIONS = "workflow.shard_jobs:unknown_options"
"""Function that returns the given flags that are not options of Apache Beam."""

IMAGES_UNCHANGED = "data.fingerprint:unchanged"
"""Function that tells whether prepared data still have their source images."""

PROCESSOR = "training.processor:choose"
"""Function that chooses the kernels for this machine's CPU. Runs before TensorFlow is imported."""

TABLE = {command.name: command for command in (*STAGES, *EXPERIMENTS, *TOOLS)}
"""Every command by its name."""

GROUPS = {"experiment": EXPERIMENTS, "tool": TOOLS}
"""The scripts that take a name before the flags: `./run_GROUP.sh NAME`."""


def find(words: list[str]) -> tuple[Command | None, list[str], str]:
    """Finds the command that a line of words begins with.

    Args:
      words: NAME or GROUP NAME, then flags.

    Returns:
      (command, the words after its name, ""); (None, the words, what is wrong with the name).
    """
    group = words[0] if words and words[0] in GROUPS else ""
    rest = words[1:] if group else words
    table = {command.name: command for command in (GROUPS[group] if group else STAGES)}
    if rest and rest[0] in table:
        return table[rest[0]], rest[1:], ""
    if not rest or rest[0].startswith("-"):
        return None, rest, f"no {group or 'command'} is given; choose one of {', '.join(table)}"
    near = nearest(rest[0], table, "")
    return (
        None,
        rest,
        f"there is no {group or 'command'} {rest[0]!r}; {near or '--help lists them'}",
    )


def load(target: str) -> Callable[..., Any]:
    """Imports and returns the function of `module:function`."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)
