"""Runs one stage of a run in its own process, and notes its command and its seconds."""

from __future__ import annotations

import os
import shlex
import sys
import time
from pathlib import Path

from cli import buckets, start, termination
from cli.json_files import read_json, write_json
from workflow.loop_results import SECONDS
from workflow.stages import ENDING, Stage


def flags_of(stage: Stage, config_flags: list[str], beam_options: list[str]) -> list[str]:
    """Returns the words of a stage's command line, without its script."""
    flags = [
        f"--{name}={value}"
        for name, value in {"workdir": stage.directory, **stage.arguments}.items()
    ]
    if stage.name == "export":
        config_flags = []
    elif stage.unread:  # the stage would refuse settings of that section
        config_flags = [f for f in config_flags if not f.startswith(f"--config.{stage.unread}.")]
    return [*config_flags, *flags, *(beam_options if stage.beam else [])]


def run_stage(stage: Stage, workdir: Path, flags: list[str], created: bool) -> None:
    """Runs one stage; where it fails, exits with its exit code.

    The stage itself knows whether it is done with this config.

    Args:
      stage: the stage.
      workdir: work directory of the run.
      flags: the stage's flags, see `flags_of`.
      created: whether this process has made `workdir`; it is removed then if the data are unusable.
    """
    done_before = (stage.directory / "summary.json").exists()
    print(f"== {stage.name}: ./{stage.script} {' '.join(flags)}", flush=True)
    with open(workdir / "commands.txt", "a", encoding="utf-8") as f:  # for the report
        line = f"./{stage.script} {shlex.join(flags)}\n"
        f.write(buckets.as_urls(line) if buckets.holds(workdir) else line)
    buckets.publish(workdir / "commands.txt")
    began = time.time()
    try:
        code = termination.call(start.script(stage.script, *flags))
    finally:  # an interrupted stage's time counts too
        if not done_before:
            _add_seconds(workdir / "seconds.json", stage.counted or stage.name, time.time() - began)
    if code:
        if (
            created
            and stage.name == "prepare"
            and set(os.listdir(workdir)) == {"commands.txt", "config.json", "seconds.json"}
        ):
            buckets.remove_tree(workdir)  # after bad input, nothing half-written stays
        if code != 2:  # the stage itself has said in one line what is wrong
            ended = (
                "was stopped" if code == termination.EXIT_CODE else f"failed with exit code {code}"
            )
            print(
                f"== {stage.name} {ended}; the same command continues from there", file=sys.stderr
            )
        sys.exit(code)


def _add_seconds(path: Path, name: str, seconds: float) -> None:
    """Adds the seconds of a stage to the file, and keeps the stages in their order.

    Stages of further iterations go before the ending, which they repeat.
    """
    spent = read_json(path, SECONDS) if path.exists() else {}
    spent[name] = round(spent.get(name, 0) + seconds, 1)
    # The sort is stable.
    write_json(path, dict(sorted(spent.items(), key=lambda item: item[0] in ENDING)))
