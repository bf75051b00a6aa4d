"""Turns the words of a command line into names of image files: folders, globs, lists and files."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence

from cli.errors import InputError
from serving.answers import escaped


def expand(arguments: Sequence[str], stdin: bool = False) -> list[str]:
    """Returns the names of the image files that `arguments` name, in their order.

    A folder stands for the images below it, sorted. What is an image there, and what is passed
    over, is as for training (`data.image_folder`). A glob stands for the files that match, sorted,
    and a list (`data.image_list`) for the files that it names, in its order.

    Args:
      arguments: files, folders, lists and globs such as `photos/**/*.jpg`.
      stdin: whether `-` may stand for one image on standard input.

    Raises:
      InputError: an argument names no file, or there are no arguments.
    """
    if not arguments:
        raise InputError("no images; name one or more files: IMAGE…")
    names: list[str] = []
    for argument in arguments:
        names += _expanded(argument, stdin)
    if names.count("-") > 1 and stdin:
        raise InputError("- is named twice, and stdin holds one image")
    for name in names:  # before any work: a list or a broken link may name what is not there
        if not (stdin and name == "-") and not os.path.isfile(name):
            raise InputError(
                f"{escaped(name)} does not exist or is not a file; mend the list, or remove the"
                " link"
            )
    return names


def _expanded(argument: str, stdin: bool) -> list[str]:
    if argument.lower().endswith((".csv", ".json", ".jsonl")) and os.path.isfile(argument):
        from data.image_list import files_of

        found = files_of(argument)
        if not found:
            raise InputError(f"{escaped(argument)} names no files; it needs rows with a file")
        return found
    # Not pathlib's, which raises for a name that is too long.
    if (stdin and argument == "-") or os.path.isfile(argument):
        return [argument]
    if os.path.isdir(argument):
        from data.image_folder import images_below  # here: single files need nothing of it

        found = images_below(argument)
        if not found:
            raise InputError(f"{escaped(argument)} holds no images; name a folder with some")
        return found
    if os.path.exists(argument):
        raise InputError(f"{escaped(argument)} is not a regular file; name image files")
    if glob.has_magic(argument):
        found = sorted(name for name in glob.glob(argument, recursive=True) if os.path.isfile(name))
        if found:
            return found
        raise InputError(
            f"{escaped(argument)} matches no files; name image files, a folder, or a glob in quotes"
        )
    also = ", a glob in quotes, or - for stdin" if stdin else ", or a glob in quotes"
    raise InputError(f"{escaped(argument)} does not exist; name image files, a folder{also}")
