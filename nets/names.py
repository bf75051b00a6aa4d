"""Names of blocks: a contract between the architectures, rematerialization and frozen blocks."""

from __future__ import annotations

import re
from typing import Any


def repeat_letter(repeat: int) -> str:
    """Returns the letters of a block's repeat: a to z, then aa, ab and so on.

    l2 needs 22 letters, but any depth can be chosen.
    """
    letter = chr(ord("a") + repeat % 26)
    return letter if repeat < 26 else repeat_letter(repeat // 26 - 1) + letter


def block_name(layer: Any) -> str | None:
    """Returns the block of a layer of these networks (`block2a`); None for stem and head."""
    match = re.match(r"block\d+[a-z]+(?=_)", layer.name)
    return match.group() if match else None
