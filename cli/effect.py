"""Refuses a setting of the command line that another setting switches off.

Each setting declares what other settings must be for it to have an effect (`cli.settings.When`). A
recipe may hold values without effect, since it is made of shared parts. A person who gives a value
expects it to do something.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from cli.errors import InputError
from cli.settings import Section, When


class _Place(NamedTuple):
    """A section on the way to a setting: its key with a dot at the end, and its values."""

    prefix: str
    values: Mapping[str, Any]


def require_effect(
    recipe: Mapping[str, Any],
    declared: Section,
    overrides: Mapping[str, str | None],
    replaced: Mapping[str, str] | None = None,
) -> None:
    """Checks that each setting of the command line has an effect.

    Args:
      recipe: the recipe, with the overrides in it.
      declared: declarations of the recipe's settings.
      overrides: key with dots -> text, as `cli.flags.Given` has them. "None" leaves a setting open.
      replaced: setting or section -> flag of the command that takes its place, such as
        `{"init": "--init=FILE"}`.

    Raises:
      InputError: a setting has no effect. The message names the setting or the flag that switches
        it off.
    """
    replaced = replaced or {}
    recipe = dict(recipe.items())
    for name, flag in replaced.items():
        if name in recipe and not isinstance(declared.all.get(name), Section):
            recipe[name] = flag.partition("=")[2]
    for key, text in overrides.items():
        if text == "None":
            continue
        word = f"--config.{key}" + ("" if text is None else f"={text}")
        name = key.partition(".")[0]
        if name in replaced and name != key:
            raise InputError(f"{word} has no effect with {replaced[name]}; leave one of them out")
        reasons = list(_reasons(recipe, declared, key))
        if reasons and all(reasons):
            raise InputError(
                f"{word} has no effect while {reasons[0]}, or leave --config.{key} out"
            )


def _reasons(recipe: Mapping[str, Any], declared: Section, key: str) -> Iterable[str]:
    """Yields why a setting has no effect, for each section that reads it; "" where it has one."""
    yield _reason(recipe, declared, key)
    first, _, rest = key.partition(".")
    for name, section in declared.all.items():  # the sections that inherit it
        subsection = section.all.get(first) if isinstance(section, Section) and rest else None
        if (
            isinstance(subsection, Section)
            and subsection.inherits == first
            and first in recipe.get(name, {})
        ):
            value = recipe[name][first].get(rest)
            if value is None:
                yield _reason(recipe, declared, f"{name}.{key}")


def _reason(recipe: Mapping[str, Any], declared: Section, key: str) -> str:
    """Returns which setting takes the effect from `key`, and what to set it to; "" for none."""
    places, found = [_Place("", recipe)], declared
    for part in key.split("."):
        child = found.all.get(part) if isinstance(found, Section) else None
        if child is None:
            return ""  # an argument of a builder, for instance
        for condition in child.when:
            alternatives = condition if isinstance(condition, tuple) else (condition,)
            reasons = [_unmet(places, one) for one in alternatives]
            if all(reasons):
                return reasons[0]
        values = places[-1].values.get(part)
        if isinstance(child, Section):
            prefix = f"{places[-1].prefix}{part}."
            settings_here = (
                dict(values.items()) if isinstance(values, (Mapping, ConfigDict)) else {}
            )
            if child.inherits:
                given = {name: value for name, value in settings_here.items() if value is not None}
                settings_here = {**dict(recipe.get(child.inherits, {}).items()), **given}
            places.append(_Place(prefix, settings_here))
        found = child
    return ""


def _unmet(places: list[_Place], condition: When) -> str:
    """Returns the condition that is not met, and what to do; "" where it is met, or not known."""
    key, up = condition.key.lstrip("^"), len(condition.key) - len(condition.key.lstrip("^"))
    place = places[0] if key.startswith("/") else places[max(0, len(places) - 1 - up)]
    key = key.lstrip("/")
    value: Any = place.values
    for part in key.split("."):
        if not isinstance(value, (Mapping, ConfigDict)) or part not in value:
            return ""
        value = value[part]
    if condition.holds(value):
        return ""
    name = f"config.{place.prefix}{key}"
    return f"{name} is {value!r}; set --{name} to {condition.wanted(value)}"
