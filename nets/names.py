"""Names of blocks: a contract between the architectures, rematerialisation and frozen blocks."""

from __future__ import annotations

import re
from typing import Any


def repeat_letter(repeat: int) -> str:
    """Names the repeats a … z, then aa, ab …: l2 needs 22 letters, but depth is anyone's to choose."""
    letter = chr(ord("a") + repeat % 26)
    return letter if repeat < 26 else repeat_letter(repeat // 26 - 1) + letter


def block_name(layer: Any) -> str | None:
    """The block that a layer of these networks belongs to (`block2a`), or None: stem and head."""
    match = re.match(r"block\d+[a-z]+(?=_)", layer.name)
    return match.group() if match else None
