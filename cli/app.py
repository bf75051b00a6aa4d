"""From a command line to a call: the flags and exit codes that every stage shares.

Exit codes: 0 done; 2 wrong usage or unusable input, after one line on stderr and no traceback; 75 another worker of the run was
lost; 143 ended by SIGTERM, 130 by Ctrl-C; 141 nobody reads the output any more; anything else is a bug.
"""

from __future__ import annotations

import difflib
import errno
import importlib
import logging as standard_logging
import runpy
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Union

from absl import flags, logging
from ml_collections import ConfigDict, FieldReference, config_flags

from cli import output, settings
from cli.errors import InputError, one_line, write_failure
from cli.smoke import reduced

ROOT = Path(__file__).resolve().parent.parent
"""The checkout; `configs/...` is looked up here when the current directory has none."""

CONFIG_HELP = "Recipe: configs/....py[:argument]. It is Python and is executed: run nobody else's before you have read it."

RECIPE = "workflow.settings:of_recipe"
"""Declares the settings of the stages' recipes; as text, since this room imports none above it."""

Beam = Union[bool, Callable[[Sequence[str]], Sequence[str]]]
"""How a stage treats options of Apache Beam; see `parse`."""


def _find_config(argument: str) -> tuple[str, ConfigDict]:
    """Finds the recipe of `--config=PATH[:argument]`, and makes it once.

    ml_collections makes it again, and does not tell its errors from a mistake in an override.

    Returns:
      The argument with PATH made absolute, and the recipe before its overrides.

    Raises:
      InputError: there is no such file, or it makes no recipe.
    """
    path, colon, rest = argument.partition(":")
    for candidate in (Path(path), ROOT / path):
        if candidate.is_file():
            return f"{candidate.resolve()}{colon}{rest}", _recipe(candidate, [rest] if colon else [])
    raise InputError(f"--config: no file {path}; the recipes are in configs/")


def _recipe(path: Path, arguments: Sequence[str]) -> ConfigDict:
    try:
        recipe = runpy.run_path(str(path))["get_config"](*arguments)
    except ValueError as error:  # the recipe's own answer to its argument
        raise InputError(f"--config: {' '.join(str(error).split())}") from error
    except Exception as error:
        raise InputError(f"--config={path} cannot be read as a recipe ({one_line(error)}); see configs/ for some") from error
    if not isinstance(recipe, ConfigDict):
        raise InputError(f"--config={path}: its get_config returns no ConfigDict; see configs/ for recipes")
    return recipe


def _nearest(name: str, known: Iterable[str], prefix: str = "--") -> str:
    """Returns "did you mean --NAME?", where a name of `known` is similar to `name`, else nothing."""
    found = difflib.get_close_matches(name.lower(), sorted(known), n=1)
    return f"did you mean {prefix}{found[0]}?" if found else ""


def _check_flags(argv: Sequence[str], values: flags.FlagValues, beam: Beam) -> None:
    """Raises InputError for a flag that neither the stage nor Beam has, and for one that is not UTF-8."""
    unknown, words = [], iter(argv[1:])
    for word in words:
        if word == "--":
            break
        if not word.startswith("-") or word == "-":
            continue
        try:
            word.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{word} is not UTF-8, which TensorFlow needs; rename the file or folder") from error
        name, equals, _ = word.lstrip("-").partition("=")
        if name in values:
            if not equals and not values[name].boolean:
                next(words, None)  # its value
        elif not (name.startswith("config.") and "config" in values) and not (
            name.startswith("no") and name[2:] in values and values[name[2:]].boolean
        ):
            unknown.append(word)
    if beam is not False:
        unknown = list(beam(unknown)) if unknown and beam is not True else []
    for word in unknown:
        flag = word.partition("=")[0]
        whose = " of this stage or of Apache Beam" if beam else ""
        near = _nearest(flag.lstrip("-"), values)
        raise InputError(f"{flag}: no such flag{whose}; {near or '--help lists the flags'}")


def _check_keys(argv: Sequence[str], recipe: ConfigDict) -> None:
    """Raises InputError for the first `--config.KEY=VALUE` whose KEY the recipe lacks."""
    for word in argv:
        key = word[len("--config.") :].partition("=")[0]
        if word.startswith("--config.") and "[" not in key:  # ml_collections reads --config.list[0]
            _require_key(recipe, key)


def _require_key(recipe: ConfigDict, key: str) -> None:
    """Raises InputError where the recipe lacks `key`, written with dots."""
    within: Any = recipe
    prefix = "--config."
    for part in key.split("."):
        known = within if isinstance(within, ConfigDict) else {}
        if part not in known:
            near = _nearest(part, known, prefix)
            raise InputError(f"--config: the recipe has no key {key!r}; {near or 'its file lists the keys'}")
        within, prefix = known[part], f"{prefix}{part}."


def parse(
    argv: Sequence[str],
    flag_help: Mapping[str, str],
    optional: Mapping[str, str | bool | None] | None = None,
    *,
    config: bool | str = True,
    needs: Sequence[str] = (),
    positional: bool = False,
    beam: Beam = False,
    schema: str = "",
) -> dict[str, Any]:
    """Parses a stage's command line.

    Args:
      argv: program name and arguments.
      flag_help: name -> help of each flag; `workdir` is one of them where a stage has it.
      optional: name -> default of those flags that may be left out; every other one is required. False makes a switch (`--name`), all
        others are strings.
      config: whether the stage takes `--config` (and its overrides, `--config.key=value`); a path is the recipe where it is not given.
      needs: keys that the config must have; a file of another kind lacks one.
      positional: whether words that are no flags are taken, as the list `arguments`.
      beam: whether unknown `--options` are passed on to Apache Beam, as the list `beam_options`. A
        function is given them, and returns those that Beam does not know either.
      schema: `module:function` that gets the recipe and returns the declarations of its settings;
        "": the recipe is not checked.

    Returns:
      The values by name, `config` a locked ConfigDict.

    Raises:
      InputError: a missing, unknown or malformed flag, an unknown config key, or a word that is no flag.
    """
    optional = dict(optional or {})
    values = flags.FlagValues()
    values.set_gnu_getopt(True)  # flags may follow other words
    for name, text in flag_help.items():
        define = flags.DEFINE_boolean if optional.get(name) is False else flags.DEFINE_string
        define(name, optional.get(name), text, flag_values=values)
    flags.DEFINE_boolean("help", False, "Show this text.", flag_values=values)
    argv = _joined(argv)
    if config:
        config_flags.DEFINE_config_file("config", None, CONFIG_HELP, flag_values=values)
    _check_flags(argv, values, beam)
    if config:
        named = [a.partition("=")[2] for a in argv if a.startswith("--config=")] or ([] if config is True else [str(config)])
        if not named and "--help" not in argv:
            raise InputError("--config is missing; name a recipe, such as --config=configs/noisy_student/digits.py")
        others = [a for a in argv[1:] if not a.startswith("--config=")]
        argv = [argv[0], *others]
        for argument in named[-1:]:
            found, plain = _find_config(argument)
            _check_keys(others, plain)
            argv.insert(1, f"--config={found}")  # before its overrides
    # ml_collections looks for the overrides in sys.argv (its release for Python 3.9 takes no argument for it) and refuses one given twice:
    # the last one counts, as with any other flag.
    last = {a.partition("=")[0]: i for i, a in enumerate(argv)}
    argv = [a for i, a in enumerate(argv) if not a.startswith("--config.") or last[a.partition("=")[0]] == i]
    emptied = [a[len("--config.") : -len("=None")] for a in argv if a.startswith("--config.") and a.endswith("=None")]
    argv = [a for a in argv if not (a.startswith("--config.") and a.endswith("=None"))]
    actual, sys.argv = sys.argv, list(argv)
    try:
        rest = values(argv, known_only=bool(beam))[1:]
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(" ".join(str(error).split())) from error
    finally:
        sys.argv = actual
    if values.help:
        for key in rest if schema else ():  # --help KEY
            print(settings.describe(_declared(schema, {}), key))
        if not (schema and rest):
            print(values.main_module_help() or values.get_help())
        raise SystemExit(0)
    missing = [f"--{name}" for name in flag_help if name not in optional and not values[name].value]
    if missing:
        raise InputError(f"{', '.join(missing)} missing; --help lists the flags")
    parsed = {name: values[name].value for name in flag_help}
    if config:
        recipe: Any = values["config"].value
        for key in emptied:
            _empty(recipe, key)
        absent = [key for key in needs if key not in recipe]
        if absent:
            raise InputError(f"--config={named[-1]} is of another kind than this command reads: it has no {', '.join(absent)}")
        if schema:
            settings.check(recipe, _declared(schema, recipe))
        parsed["config"] = (reduced(recipe) if recipe.get("smoke") else recipe).lock()
    if beam:
        parsed["beam_options"] = [a for a in rest if a.startswith("--")]
        rest = [a for a in rest if not a.startswith("--")]
    if positional:
        parsed["arguments"] = rest
    elif rest:
        raise InputError(f"unexpected argument {rest[0]!r}; flags are written --name=value")
    return parsed


def _declared(schema: str, recipe: Mapping[str, Any]) -> settings.Section:
    module, _, name = schema.partition(":")
    return getattr(importlib.import_module(module), name)(recipe)


def _empty(recipe: Any, key: str) -> None:
    """Sets `key`, with dots, to None. Raises InputError where the recipe has no such key, or None is no value of it."""
    _require_key(recipe, key)
    *path, last = key.split(".")
    for part in path:
        recipe = recipe[part]
    field = dict(recipe.items(preserve_field_references=True))[last]
    if field is not None and not isinstance(field, FieldReference):  # a `placeholder` is one, whatever it holds now
        raise InputError(f"--config.{key}=None: it needs a value")
    recipe[last] = None


def whole_number(name: str, text: str, least: int = 0) -> int:
    """The value of flag `name`. Raises InputError where it is no whole number of at least `least`."""
    if not (text.isascii() and text.isdecimal() and int(text) >= least):
        raise InputError(f"--{name} is {text!r}; it must be a whole number from {least} on")
    return int(text)


def recipe_flags() -> list[str]:
    """The `--config` flags of this process, to hand on to the stages that it starts."""
    return [a for a in _joined(sys.argv)[1:] if a.startswith(("--config=", "--config."))]


def _joined(argv: Sequence[str]) -> list[str]:
    """`--config PATH` as the one word `--config=PATH`, an override and its value as one, and `--noconfig.KEY` as `--config.KEY=False`."""
    joined: list[str] = []
    for a in argv:
        before = joined[-1] if joined else ""
        if before == "--config" or (before.startswith("--config.") and "=" not in before and not a.startswith("--")):
            joined[-1] = f"{before}={a}"
        elif a.startswith("--noconfig."):
            joined.append(f"--config.{a[len('--noconfig.') :]}=False")
        else:
            joined.append(a)
    return joined


def run(
    main: Callable[..., None], flag_help: Mapping[str, str], optional: Mapping[str, str | bool | None] | None = None, **options: Any
) -> None:
    """Parses `sys.argv` (see `parse`) and calls `main(**values)`; the last line of every stage's module."""
    output.prepare()
    flags.FLAGS.mark_as_parsed()  # or absl warns of logging before flag parsing: our flags are not global
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    logging.get_absl_handler().setFormatter(standard_logging.Formatter("%(message)s"))
    standard_logging.getLogger("tensorflow").setLevel(standard_logging.WARNING)  # a line for each all-reduce is no news
    started = time.time()
    try:
        try:
            main(**parse(sys.argv, flag_help, optional, **options))
        finally:
            sys.stdout.flush()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:  # a full disk has another class in each library
        if isinstance(error, BrokenPipeError) and output.reader_is_gone():
            sys.exit(output.READER_GONE)
        failure = write_failure(error)
        if failure:
            what, remedy = failure
            print(f"error: {what} ({one_line(error)}); {remedy} and run the same command again", file=sys.stderr)
        elif isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            print(f"error: {one_line(error)}", file=sys.stderr)  # a path of the command line: all others are our own
        else:
            raise
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"interrupted after {time.time() - started:.0f} s; run the same command again to finish", file=sys.stderr)
        sys.exit(130)
