"""Turns a command line into a call; every command shares this module.

Exit codes:

- 0: done.
- 2: wrong usage or unusable input, after one line on stderr and no traceback.
- 75: another worker of the run was lost.
- 130: ended by Ctrl-C.
- 141: the reader of the output is gone.
- 143: ended by SIGTERM.
- Anything else is a bug.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cli import buckets, commands, flags, output, places
from cli.commands import BEAM_OPTIONS, load
from cli.errors import InputError, one_line, write_failure
from cli.flags import Command

ROOT = Path(__file__).resolve().parent.parent
"""The checkout."""


def main() -> None:
    """Runs the command that `sys.argv` names; see `cli.commands`."""
    command, rest, wrong = commands.find(sys.argv[1:])
    if command:
        sys.argv = [command.script, *rest]
        guarded(lambda: run(command, rest))
    else:
        guarded(lambda: _without_command(sys.argv[1:], rest, wrong))


def _without_command(words: Sequence[str], rest: Sequence[str], wrong: str) -> None:
    from cli import help

    if rest[:1] != ["--help"]:
        raise InputError(wrong)
    print(help.of_group(words[0] if words[0] in commands.GROUPS else ""))


def run(command: Command, argv: Sequence[str]) -> None:
    """Parses the words `argv` and calls the command's function. Raises InputError."""
    given = flags.read(argv, command.flags, bool(command.recipes))
    if given.help:
        from cli import help

        print(
            help.of_setting(given.words[0], command)
            if given.words and command.recipes
            else help.of_command(command)
        )
        return
    try:
        values = _values(command, given)
    except InputError:
        _require_known(command, given)  # a mistyped flag may be the reason
        raise
    if given.force or places.named(command, values):
        _require_known(command, given)  # before anything is fetched
    with places.staged(command, values, given.force) as staged:
        _call(command, given, staged)


def _call(command: Command, given: flags.Given, values: dict[str, Any]) -> None:
    """Calls the command's function, unless the command is done already. Raises InputError."""
    from cli import again

    request = again.Request(command, values)
    says = request.answer()
    if says is not None:
        print(says)
        return
    _require_known(command, given)
    log_plainly()
    commands.load(commands.PROCESSOR)(values.get("config"), values.get("data"))
    code = load(command.target)(**values)
    if code:
        sys.exit(code)
    request.keep()


def parse(command: Command, argv: Sequence[str]) -> dict[str, Any]:
    """Returns the values of a command line by name.

    The names are the command's flags, `config`, `arguments` and `beam_options`.

    Raises:
      InputError: a missing, unknown or malformed flag, an unknown key of the recipe, or a word that
        is not a flag.
    """
    given = flags.read(argv, command.flags, bool(command.recipes))
    _require_known(command, given)
    return _values(command, given)


def _values(command: Command, given: flags.Given) -> dict[str, Any]:
    if not command.beam:
        _require_known(command, given)
    if command.recipes and not (given.recipe or command.recipe):
        raise InputError(
            "--config is missing; name a recipe, such as --config=configs/noisy_student/digits.py"
        )
    values: dict[str, Any] = {}
    if command.recipes:
        # Imported only where it is needed: ml_collections takes a while to import.
        from cli import recipes

        declared = commands.load(command.settings) if command.settings else None
        recipe = given.recipe or command.recipe
        replaced = {
            flag.replaces: f"--{flag.name}={given.texts[flag.name]}"
            for flag in command.flags
            if flag.replaces and given.texts.get(flag.name)
        }
        values["config"] = recipes.load(recipe, given.overrides, command.needs, declared, replaced)
    required = [flag.name for flag in command.flags if flag.default is flags.REQUIRED]
    missing = [f"--{name}" for name in required if not given.texts.get(name)]
    if missing:
        raise InputError(f"{', '.join(missing)} must be given; --help lists the flags")
    for flag in command.flags:
        values[flag.name] = (
            flag.parse(given.texts[flag.name]) if flag.name in given.texts else flag.default
        )
    if command.beam:
        values["beam_options"] = given.unknown
    if command.words:
        values["arguments"] = given.words
    elif given.words:
        raise InputError(f"unexpected argument {given.words[0]!r}; flags are written --name=value")
    return values


def _require_known(command: Command, given: flags.Given) -> None:
    """Raises InputError for a flag that neither the command nor Beam has."""
    unknown = given.unknown
    if unknown and command.beam:
        unknown = load(BEAM_OPTIONS)(unknown)
    for word in unknown:
        name = word.partition("=")[0]
        whose = " of this stage or of Apache Beam" if command.beam else ""
        known = (
            [flag.name for flag in command.flags]
            + ["help"]
            + (["config"] if command.recipes else [])
        )
        near = flags.nearest(name.lstrip("-"), known)
        raise InputError(f"{name} is not a flag{whose}; {near or '--help lists the flags'}")


def recipe_flags() -> list[str]:
    """Returns the `--config` flags of this process, to hand on to the stages that it starts."""
    return flags.read(sys.argv[1:], (), takes_recipe=True).recipe_words


def log_plainly() -> None:
    """Makes log lines show only their text, from level INFO on."""
    import logging as standard_logging

    from absl import flags as absl_flags
    from absl import logging

    # Otherwise absl warns of logging before flag parsing: our flags are not global.
    absl_flags.FLAGS.mark_as_parsed()
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    logging.get_absl_handler().setFormatter(standard_logging.Formatter("%(message)s"))
    # TensorFlow 2.21 logs through absl how long it took to save.
    logging.get_absl_handler().addFilter(_is_news)
    # Hides TensorFlow's line for each all-reduce.
    standard_logging.getLogger("tensorflow").setLevel(standard_logging.WARNING)


def _is_news(record: Any) -> bool:
    """Tells whether to show a log record: all, except TensorFlow's own INFO records."""
    return record.levelname != "INFO" or "/site-packages/tensorflow/" not in record.pathname


def guarded(act: Callable[[], None]) -> None:
    """Calls `act`; turns an error that the user can mend into one line and an exit code."""
    output.prepare()
    if os.environ.get(buckets.CACHE):  # a stage of a run whose command line had URLs
        places.show_urls()
    started = time.time()
    try:
        try:
            act()
        finally:
            sys.stdout.flush()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:  # each library has its own class for a full disk
        if isinstance(error, BrokenPipeError) and output.reader_is_gone():
            sys.exit(output.READER_GONE)
        failure = write_failure(error)
        if failure:
            what, remedy = failure
            print(
                f"error: {what} ({one_line(error)}); {remedy} and run the same command again",
                file=sys.stderr,
            )
        elif isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            # The path is from the command line: all other paths are our own.
            print(f"error: {one_line(error)}", file=sys.stderr)
        else:
            raise
        sys.exit(2)
    except KeyboardInterrupt:
        print(
            f"interrupted after {time.time() - started:.0f} s; run the same command again to"
            " finish",
            file=sys.stderr,
        )
        sys.exit(130)
