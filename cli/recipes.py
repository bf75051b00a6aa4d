"""Recipes: `--config=configs/….py[:argument]` and its overrides, `--config.KEY=VALUE`."""

from __future__ import annotations

import ast
import runpy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, FieldReference

from cli import commands, flags
from cli.effect import require_effect
from cli.errors import InputError, one_line
from cli.settings import Section, check_settings

SMOKE = "training.smoke:reduced"
"""Function that cuts a recipe down to a run of a minute."""
ROOT = Path(__file__).resolve().parent.parent
"""The checkout; `configs/...` is looked up here when the current directory has none."""


def load(
    argument: str,
    overrides: Mapping[str, str | None],
    needs: Sequence[str] = (),
    declared: Callable[[ConfigDict], Section] | None = None,
    replaced: Mapping[str, str] | None = None,
) -> ConfigDict:
    """Makes the recipe `PATH[:argument]` and applies overrides to it, in their order.

    Args:
      argument: path of the recipe's file; after a colon, the argument of its `get_config`.
      overrides: key with dots -> text of the value; None turns a true-or-false setting on.
      needs: keys that the recipe must have; a recipe for another command lacks one.
      declared: function that returns the declarations of a recipe's settings. The recipe is
        checked by them.
      replaced: setting or section -> flag of the command that takes its place.

    Returns:
      The recipe, locked.

    Raises:
      InputError: no such file, no recipe, one of another kind, no such key, no value of its type,
        one that `declared` does not allow, or an override that another setting or a flag switches
        off.
    """
    recipe = _make(argument)
    for key, text in overrides.items():
        _override(recipe, key, text)
    absent = [key for key in needs if key not in recipe]
    if absent:
        raise InputError(
            f"--config={argument} is not a recipe for this command: it has no {', '.join(absent)}"
        )
    if declared:
        declarations = declared(recipe)
        check_settings(recipe, declarations)
        require_effect(recipe, declarations, overrides, replaced)
    return (commands.load(SMOKE)(recipe) if recipe.get("smoke") else recipe).lock()


def from_flags(
    *words: str,
    declared: Callable[[ConfigDict], Section] | None = None,
    replaced: Mapping[str, str] | None = None,
) -> ConfigDict:
    """Returns the recipe of a command line's `--config…` words. Raises InputError: see `load`."""
    given = flags.read(words, (), takes_recipe=True)
    if given.unknown or given.words:
        raise InputError(f"{[*given.unknown, *given.words][0]} is not a --config flag")
    if given.recipe is None:
        raise InputError(
            "--config is missing; name a recipe, such as --config=configs/noisy_student/digits.py"
        )
    return load(given.recipe, given.overrides, declared=declared, replaced=replaced)


def overrides(*words: str) -> Mapping[str, str | None]:
    """Returns key -> text of each `--config.KEY` of a command line; None: it has no value."""
    return flags.read(words, (), takes_recipe=True).overrides


def _make(argument: str) -> ConfigDict:
    name, colon, rest = argument.partition(":")
    path = next((path for path in (Path(name), ROOT / name) if path.is_file()), None)
    if path is None:
        raise InputError(f"--config: there is no file {name}; the recipes are in configs/")
    try:
        recipe = runpy.run_path(str(path))["get_config"](*([rest] if colon else []))
    except ValueError as error:  # the recipe itself refuses its argument
        raise InputError(f"--config: {' '.join(str(error).split())}") from error
    except Exception as error:
        raise InputError(
            f"--config={path} cannot be read as a recipe ({one_line(error)}); see configs/ for some"
        ) from error
    if not isinstance(recipe, ConfigDict):
        raise InputError(
            f"--config={path}: its get_config returns no ConfigDict; see configs/ for recipes"
        )
    return recipe


def _override(recipe: ConfigDict, key: str, text: str | None) -> None:
    section, last = _find(recipe, key)
    kind, word = section.get_type(last), f"--config.{key}" + ("" if text is None else f"={text}")
    if text is None and kind is not bool:
        raise InputError(f"{word} has no value; write {word}=VALUE")
    if text == "None":
        held = dict(section.items(preserve_field_references=True))[last]
        # A `placeholder` is a FieldReference, whatever it holds now.
        if held is not None and not isinstance(held, FieldReference):
            raise InputError(f"{word}: it needs a value")
        section[last] = None
        return
    try:
        section[last] = _TYPES.get(kind, _literal)("true" if text is None else text)
    except (ValueError, TypeError, SyntaxError) as error:
        raise InputError(f"{word}: it must be {_NAMES.get(kind, f'a {kind.__name__}')}") from error


def _find(recipe: ConfigDict, key: str) -> tuple[ConfigDict, str]:
    """Returns the section that holds the dotted `key`, and its last part. Raises InputError."""
    within: Any = recipe
    prefix = "--config."
    *path, last = key.split(".")
    for part in [*path, last]:
        section = within
        if not isinstance(section, ConfigDict) or part not in section:
            near = flags.nearest(part, section, prefix) if isinstance(section, ConfigDict) else ""
            raise InputError(
                f"--config: the recipe has no key {key!r}; {near or 'its file lists the keys'}"
            )
        within, prefix = section[part], f"{prefix}{part}."
    return section, last


def _switch(text: str) -> bool:
    value = flags.as_switch(text)
    if value is None:
        raise ValueError(text)
    return value


def _tuple(text: str) -> tuple[Any, ...]:
    """Reads a tuple: `(1, 2)` or `1,2`; for names also `a,b` or `a`, without quotes."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        if any(mark in text for mark in "()[]{}'\""):
            raise
        value = tuple(word.strip() for word in text.split(","))
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def _literal(text: str) -> Any:
    return ast.literal_eval(text)


def _section(text: str) -> Any:
    raise ValueError(text)


_TYPES: Mapping[type, Callable[[str], Any]] = {
    **{bool: _switch, int: int, float: float, str: str},
    **{tuple: _tuple, ConfigDict: _section},
}
_NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    tuple: "a tuple, such as 1,2",
    ConfigDict: "set by its own keys",
}
