"""Image files for tests."""

from __future__ import annotations

import io

import PIL.Image


def png(pixels):
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
