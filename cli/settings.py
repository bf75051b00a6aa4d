"""Settings, each declared once. Recipes, checks, help and docs/settings.md come from there.

A declaration is a `Section` of `Setting`s and sections. Each room declares its own in a
`settings.py` that imports no TensorFlow, so that a recipe is made and checked at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import numbers
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Union

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from cli.errors import InputError

_KINDS = {bool: "True or False", int: "a whole number", float: "a number", str: "text"}
_PLURAL = {int: "whole numbers", float: "numbers", str: "names"}


@dataclasses.dataclass(frozen=True)
class When:
    """Condition on another setting, without which a setting or a section has no effect.

    Attributes:
      key: the other setting, in the section that holds this one. A `^` before it goes one section
        up, a `/` to the recipe's first level; dots go down.
      values: values of the other setting that give an effect; (): any value that is not False, 0,
        None or empty.
      test: function that tells whether a value gives an effect, instead of `values`.
      words: what the value must be, in words; by default made from `values`.
    """

    key: str
    values: tuple[Any, ...] = ()
    test: Callable[[Any], bool] | None = None
    words: str = ""

    def holds(self, value: Any) -> bool:
        """Returns whether there is an effect where the other setting is `value`."""
        if self.test:
            return self.test(value)
        return value in self.values if self.values else bool(value)

    def wanted(self, value: Any) -> str:
        """Returns in words what to set the other setting to; `value` is what it is now."""
        return self.words or _or(
            self.values or ("True" if isinstance(value, bool) else "a value above 0",)
        )


Conditions = tuple[Union[When, tuple[When, ...]], ...]
"""Conditions that must all hold; of a tuple among them, one condition must."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """One value of a recipe: what it may be, and what it means.

    Attributes:
      default: the value where a recipe says nothing else.
      meaning: a sentence or two, for people.
      type: bool, int, float, str or tuple; by default the type of `default`.
      items: type of a tuple's values; by default the type of the first value of `default`.
      none: what None means; where it is empty, None is not allowed.
      choices: the only values. For a tuple, the choices and the four bounds are those of its items.
      at_least: the least value.
      above: a value below all allowed ones.
      at_most: the largest value.
      below: a value above all allowed ones.
      length: least and largest number of a tuple's values; None: no limit.
      unit: unit of the number.
      source: where `default` is from.
      when: what other settings must be for this one to have an effect; see `cli.effect`.
    """

    default: Any
    meaning: str
    type: Any = None
    items: Any = None
    none: str = ""
    choices: tuple[Any, ...] = ()
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    length: tuple[int, int | None] = (0, None)
    unit: str = ""
    source: str = ""
    when: Conditions = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "type", self.type or type(self.default))
        if self.type is tuple:
            object.__setattr__(self, "items", self.items or type(self.default[0]))
        if self.default is None and not self.none:
            raise ValueError(f"say what None means: {self.meaning}")
        if not self.allows(self.default):
            raise ValueError(f"the default {self.default!r} is not allowed: {self.meaning}")

    def but(self, **changes: Any) -> Setting:
        """Returns the same setting with some attributes changed."""
        return dataclasses.replace(self, **changes)

    def has_type_of(self, value: Any) -> bool:
        """Returns whether `value` is of the type; None is, where it is allowed."""
        if value is None:
            return bool(self.none)
        if self.type is tuple:
            return isinstance(value, (tuple, list)) and all(_is(item, self.items) for item in value)
        return _is(value, self.type)

    def allows(self, value: Any) -> bool:
        """Returns whether a recipe may have `value`."""
        if not self.has_type_of(value):
            return False
        if value is None:
            return True
        if self.type is not tuple:
            return self._allows_one(value)
        least, most = self.length
        if len(value) < least or (most is not None and len(value) > most):
            return False
        return all(map(self._allows_one, value))

    def _allows_one(self, value: Any) -> bool:
        if self.choices and value not in self.choices:
            return False
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )

    def allowed(self) -> str:
        """Returns the allowed values in words, such as "at least 0 and below 1, or None"."""
        bounds = {
            "at least": self.at_least,
            "above": self.above,
            "at most": self.at_most,
            "below": self.below,
        }
        given = [f"{word} {bound:g}" for word, bound in bounds.items() if bound is not None]
        words = _or(self.choices) if self.choices else " and ".join(given)
        if self.type is tuple:
            least, most = self.length
            count = f"{least} " if least == most else f"{least} or more " if least else ""
            words = f"{count}{_PLURAL[self.items]}{f', each {words}' if words else ''}"
        return f"{words or _KINDS[self.type]}{', or None' if self.none else ''}"

    def refusal(self, value: Any) -> str:
        """Returns what a user reads about a `value` that is not allowed."""
        found = difflib.get_close_matches(str(value), list(map(str, self.choices)), n=1)
        near = f"; did you mean {found[0]!r}?" if found else ""
        wrong_type = not (self.has_type_of(value) or self.choices or self.type is tuple)
        words, kind = self.allowed(), _KINDS.get(self.type, "")
        if wrong_type and not words.startswith(kind):
            words = f"{kind}, {words}"
        return f"is {value!r}; it {'can' if self.choices else 'must'} be {words}{near}"


class Section(dict[str, Any]):
    """Settings and sections by name.

    Attributes:
      meaning: what the section is about, for people.
      more: settings and sections that a recipe may have besides; `make` leaves them out.
      others: what keys without a declaration mean; where it is empty, there must be none.
      when: what other settings must be for this section to have an effect.
      inherits: section of the recipe's first level that has the value where one here is None.
    """

    def __init__(
        self,
        meaning: str,
        settings: Mapping[str, Any],
        more: Mapping[str, Any] | None = None,
        others: str = "",
        when: Conditions = (),
        inherits: str = "",
    ) -> None:
        super().__init__(settings)
        self.meaning, self.more, self.others = meaning, dict(more or {}), others
        self.when, self.inherits = when, inherits

    @property
    def all(self) -> dict[str, Any]:
        """Returns the settings that a recipe may have."""
        return {**self, **self.more}

    def but(self, **changes: Any) -> Section:
        """Returns the same section with other defaults; a mapping changes a section's."""
        changed = {}
        for name, new in changes.items():
            changed[name] = self[name].but(**new if isinstance(new, Mapping) else {"default": new})
        return Section(
            self.meaning, {**self, **changed}, self.more, self.others, self.when, self.inherits
        )

    def walk(self, prefix: str = "") -> Iterator[tuple[str, Setting]]:
        """Yields each setting with its key, written with dots."""
        for name, declared in self.all.items():
            key = f"{prefix}.{name}" if prefix else name
            if isinstance(declared, Section):
                yield from declared.walk(key)
            else:
                yield key, declared


def make(section: Section, **overrides: Any) -> ConfigDict:
    """Makes the part of a recipe that a section declares.

    Args:
      section: the declarations; a default of None becomes a placeholder of the setting's type.
      **overrides: values instead of defaults; ConfigDict refuses another type with TypeError.
    """
    config = ConfigDict()
    for name, declared in section.items():
        if isinstance(declared, Section):
            config[name] = make(declared)
        else:
            open_value = declared.default is None
            config[name] = placeholder(declared.type) if open_value else declared.default
    config.update(overrides)
    return config


def check_settings(config: Mapping[str, Any], section: Section, prefix: str = "config") -> None:
    """Finds the first impossible value of a recipe, or of a part of it.

    Args:
      config: the values; keys may be missing, and are then not looked at.
      section: their declarations.
      prefix: what stands before the keys in the message.

    Raises:
      InputError: a value is not allowed, or a key is not declared.
    """
    known = section.all
    unknown = [name for name in config if name not in known]
    if unknown and not section.others:
        raise InputError(f"{prefix}.{unknown[0]} is not a setting; {nearest(unknown[0], known)}")
    for name, declared in known.items():
        if name not in config:
            continue
        key, value = f"{prefix}.{name}", config[name]
        if isinstance(declared, Section):
            if not isinstance(value, (Mapping, ConfigDict)):
                keys = ", ".join(declared)
                raise InputError(f"{key} is {value!r}; it must be a section, with {keys}")
            check_settings(value, declared, key)
        elif not declared.allows(value):
            raise InputError(f"{key} {declared.refusal(value)}")


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns "did you mean …?", or the known names where none is similar."""
    names = list(known)
    found = difflib.get_close_matches(name, names, n=1)
    if not found and not names:
        return "it is a setting, not a section"
    return f"did you mean {found[0]}?" if found else f"known: {', '.join(names)}"


def describe(section: Section, key: str) -> str:
    """Returns the text of `--help KEY`: about one setting, or about each of a section.

    Args:
      section: the declarations of a whole recipe.
      key: written with dots, such as `balance.threshold`; with or without `config.` before it.

    Raises:
      InputError: there is no such key.
    """
    found: Any = section
    parts = key.removeprefix("--").removeprefix("config.").split(".") if key else []
    for i, part in enumerate(parts):
        known = found.all if isinstance(found, Section) else {}
        if part not in known:
            name = ".".join(parts[: i + 1])
            raise InputError(f"--help {key}: there is no setting {name!r}; {nearest(part, known)}")
        found = known[part]
    if isinstance(found, Setting):
        return "\n".join(_lines(".".join(parts), found))
    lines = textwrap.wrap(found.meaning, 100)
    for name, setting in found.walk(".".join(parts)):
        lines += ["", *_lines(name, setting)]
    return "\n".join(lines)


def table(settings: Iterable[tuple[str, Setting]]) -> str:
    """Returns settings with their keys as a Markdown table: default, allowed values, meaning."""
    rows = ["| setting | default | allowed | meaning |", "|---|---|---|---|"]
    for key, setting in settings:
        default, meaning = f"`{_shown(setting.default)}`", " ".join(_sentences(setting))
        cells = (f"`{key}`", default, setting.allowed(), meaning.replace("|", "\\|"))
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _lines(key: str, setting: Setting) -> list[str]:
    head = f"--config.{key}={_shown(setting.default)}    ({setting.allowed()})"
    text = textwrap.wrap(" ".join(_sentences(setting)), 96)
    return [head, *(f"    {line}" for line in text)]


def _sentences(setting: Setting) -> Iterator[str]:
    yield setting.meaning
    if setting.none:
        yield f"None: {setting.none}."
    if setting.unit:
        yield f"Unit: {setting.unit}."
    if setting.source:
        yield f"Source: {setting.source}."
    yield from _conditions(setting.when)


def _conditions(when: Conditions) -> Iterator[str]:
    """Yields a sentence about each condition of a setting."""
    for condition in when:
        alternatives = condition if isinstance(condition, tuple) else (condition,)
        words = [f"`{one.key.lstrip('^/')}`{_is_wanted(one)}" for one in alternatives]
        yield f"No effect without {' or '.join(words)}."


def _is_wanted(one: When) -> str:
    return f" {one.words or _or(one.values)}" if one.words or one.values else ""


def _shown(value: Any) -> str:
    """Returns a default as a person writes it: a computed float with six digits."""
    if isinstance(value, tuple):
        return f"({', '.join(map(_shown, value))}{',' if len(value) == 1 else ''})"
    return f"{value:.6g}" if isinstance(value, float) and value != round(value) else str(value)


def _is(value: Any, kind: Any) -> bool:
    if kind in (int, float):
        number = numbers.Integral if kind is int else numbers.Real
        return isinstance(value, number) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, kind)


def _or(words: Iterable[Any]) -> str:
    *most, last = map(str, words)
    return f"{', '.join(most)} or {last}" if most else last
