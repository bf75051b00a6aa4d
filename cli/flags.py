"""Defines commands and flags, and reads the words of a command line. Imports no TensorFlow."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, Final

from cli.errors import InputError

REQUIRED: Final = object()
"""The default of a flag that must be given."""


@dataclasses.dataclass(frozen=True)
class Flag:
    """One flag of a command.

    Attributes:
      name: without dashes.
      help: what it is, one sentence.
      type: `str`, `int`, `float` or `bool`; `bool` is a switch (`--name`).
      default: the value without the flag; `REQUIRED` if there is none.
      choices: the values that it can have; () for any.
      least: smallest `int`; a `float` must be above 0.
      value: what `--help` shows for the value; by default the type's name.
      finished: the value names one finished work directory, or several separated by commas.
      named: the value may also be a file or a name.
      address: the value may be, or hold, the address of a server or a page.
      replaces: setting or section of the recipe that the flag replaces; "" for none.
    """

    name: str
    help: str
    type: type = str
    default: Any = REQUIRED
    choices: tuple[str, ...] = ()
    least: int = 0
    value: str = ""
    finished: bool = False
    named: bool = False
    address: bool = False
    replaces: str = ""

    @property
    def shown(self) -> str:
        """Returns how the flag is written: `--name=VALUE`, or `--name` for a switch."""
        if self.type is bool:
            return f"--{self.name}"
        names = {int: "N", float: "NUMBER"}
        return (
            f"--{self.name}={self.value or '|'.join(self.choices) or names.get(self.type, 'TEXT')}"
        )

    def parse(self, text: str) -> Any:
        """Returns the value that `text` stands for. Raises InputError."""
        if self.choices and text not in self.choices:
            near = nearest(text, self.choices, "")
            raise InputError(
                f"--{self.name} is {text!r}; it can be {', '.join(self.choices)}"
                + (f" ({near})" if near else "")
            )
        if self.type is int:
            if not (re.fullmatch("[0-9]+", text) and int(text) >= self.least):
                raise InputError(
                    f"--{self.name} is {text!r}; it must be a whole number, {self.least} or more"
                )
            return int(text)
        if self.type is float:
            number = _number(text)
            if number is None or not 0 < number < math.inf:
                raise InputError(f"--{self.name} is {text!r}; it must be a number above 0")
            return number
        if self.type is bool:
            switch = as_switch(text)
            if switch is None:
                raise InputError(f"--{self.name} is {text!r}; it must be true or false")
            return switch
        return text


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def as_switch(text: str) -> bool | None:
    """Returns the truth value that a text names; None where it names none."""
    return {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}.get(
        text.lower()
    )


def nearest(name: str, known: Iterable[str], prefix: str = "--") -> str:
    """Returns "did you mean --NAME?" where a name of `known` is similar to `name`, else ""."""
    found = difflib.get_close_matches(name.lower(), sorted(known), n=1)
    return f"did you mean {prefix}{found[0]}?" if found else ""


@dataclasses.dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
      name: `./run_NAME.sh`, or the name after `./run_GROUP.sh`.
      target: `module:function` that gets the flags' values by name; imported after they are read.
      summary: what it does, one line.
      does: what it reads and leaves, for `--help`.
      flags: the command's own flags.
      examples: command lines without the script, ready to paste; two, where there are flags.
      group: "", "experiment" or "tool".
      recipes: patterns, below configs/, of the recipes that fit; () if it takes no `--config`.
      recipe: the recipe without `--config`; "" if one must be named.
      needs: keys that its recipe must have.
      settings: `module:function` that gets the recipe and returns the declarations of its settings;
        "": the recipe is not checked.
      words: what its words without dashes are, such as "IMAGE…"; "" if it takes none.
      beam: takes the options of Apache Beam, too.
      kept: patterns, below `--workdir`, of the files that a finished directory keeps; see
        `cli.again`.
      prepared: where, below `--workdir`, data are that must still have their source images; "" if
        nowhere.
    """

    name: str
    target: str
    summary: str
    does: str
    flags: tuple[Flag, ...]
    examples: tuple[str, ...]
    group: str = ""
    recipes: tuple[str, ...] = ()
    recipe: str = ""
    needs: tuple[str, ...] = ()
    settings: str = "workflow.settings:of_recipe"
    words: str = ""
    beam: bool = False
    kept: tuple[str, ...] = ()
    prepared: str = ""

    @property
    def script(self) -> str:
        """Returns how a user starts it from the checkout."""
        return f"./run_{self.group}.sh {self.name}" if self.group else f"./run_{self.name}.sh"


@dataclasses.dataclass
class Given:
    """A command line, read word by word; nothing is checked beyond the names.

    Attributes:
      texts: flag -> text; the last one counts.
      recipe: text of `--config`.
      overrides: key -> text of each `--config.KEY`; None where it has no value.
      words: the words that are not flags.
      recipe_words: the words of `recipe` and `overrides`, each as one word with `=`.
      unknown: the flags that the command does not have, as they were written.
      help: whether `--help` is there.
      force: whether `--force` is there, which every command has; see `cli.places`.
    """

    texts: dict[str, str] = dataclasses.field(default_factory=dict)
    recipe: str | None = None
    overrides: dict[str, str | None] = dataclasses.field(default_factory=dict)
    words: list[str] = dataclasses.field(default_factory=list)
    recipe_words: list[str] = dataclasses.field(default_factory=list)
    unknown: list[str] = dataclasses.field(default_factory=list)
    help: bool = False
    force: bool = False


def read(argv: Sequence[str], flags: Sequence[Flag], takes_recipe: bool) -> Given:
    """Reads a command line.

    A value follows its flag after `=` or as the next word. `--noNAME` turns the switch NAME off.
    Flags may follow other words; `--` ends them.

    Args:
      argv: the words, without the program's name.
      flags: flags of the command.
      takes_recipe: whether `--config` and `--config.KEY` are flags, too.

    Raises:
      InputError: a flag lacks its value, or a word is not UTF-8.
    """
    given, words, known = Given(), deque(argv), {flag.name: flag for flag in flags}
    while words:
        word = words.popleft()
        if word == "--":
            given.words += words
            break
        if word == "-" or not word.startswith("-"):
            given.words.append(word)
            continue
        name, equals, text = word.lstrip("-").partition("=")
        flag, off = known.get(name), known.get(name[2:]) if name.startswith("no") else None
        if name == "help":
            given.help = True
        elif name == "force" and not equals:
            given.force = True
        elif flag is not None and flag.type is bool:
            given.texts[name] = _utf8(word, text) if equals else "true"
        elif flag is not None:
            given.texts[name] = _utf8(word, text) if equals else _next(words, name)
        elif off is not None and off.type is bool and not equals:
            given.texts[off.name] = "false"
        elif takes_recipe and name == "config":
            given.recipe = _utf8(word, text) if equals else _next(words, name)
            given.recipe_words.append(f"--config={given.recipe}")
        elif takes_recipe and name.startswith("config."):
            follows = not equals and bool(words) and not words[0].startswith("--")
            _override(
                given,
                name[len("config.") :],
                text if equals else words.popleft() if follows else None,
            )
        elif takes_recipe and name.startswith("noconfig."):
            _override(given, name[len("noconfig.") :], "False")
        else:
            given.unknown.append(_utf8(word, word))
    return given


def _override(given: Given, key: str, text: str | None) -> None:
    given.overrides[key] = text
    given.recipe_words.append(f"--config.{key}" + ("" if text is None else f"={text}"))


def _next(words: deque[str], name: str) -> str:
    if not words:
        raise InputError(f"--{name} has no value; write --{name}=VALUE")
    return _utf8(words[0], words.popleft())


def _utf8(word: str, text: str) -> str:
    try:
        word.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{word} is not UTF-8, which TensorFlow needs; rename the file or folder"
        ) from error
    return text
