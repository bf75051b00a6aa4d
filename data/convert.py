"""Turns images that TensorFlow does not decode into PNG files.

The kinds are WebP, TIFF, AVIF, HEIC, JPEG 2000 and odd BMPs. `config.data.convert` does so with
whatever is prepared. `run_predict.sh` and the client do so with what they read. Pillow decodes;
HEIC also needs the package pillow-heif (`pip install pillow-heif`). Pixels stay as stored, but TIFF
and HEIC files are turned as they ask for. Of an animation the first frame counts.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from typing import Any

from cli.errors import one_line
from data.formats import CONVERTIBLE, HEAD, kind_of

MAX_PIXELS = 100_000_000
"""Same value as `data.preprocessing.MAX_PIXELS`. That module needs TensorFlow, this one does
not."""

_AS_STORED = ("1", "L", "RGB", "RGBA", "I;16")
_WITH_ALPHA = ("LA", "La", "PA", "RGBa")


def to_png(encoded: bytes) -> bytes | str:
    """Returns an image file as PNG.

    Args:
      encoded: any file.

    Returns:
      The PNG; the file itself if it is of no kind that is converted; or, as text, why it cannot be
      converted.
    """
    kind = kind_of(encoded[:HEAD])
    if kind not in CONVERTIBLE or (kind == "BMP" and _is_plain(encoded)):
        return encoded
    import PIL.Image

    if kind == "HEIC" and not _can_read_heic():
        return (
            "it is HEIC, which needs the package pillow-heif; install it (pip install pillow-heif),"
            " or convert it to JPEG or PNG"
        )
    try:
        with PIL.Image.open(io.BytesIO(encoded), formats=[CONVERTIBLE[kind]]) as image:
            if image.width * image.height > MAX_PIXELS:
                return (
                    f"it claims to have {image.width} x {image.height} pixels, more than"
                    f" {MAX_PIXELS:,}"
                )
            image.load()
            if image.mode in ("I", "F"):
                return f"it is {kind} and its pixels are 32-bit numbers; save it with 8 or 16 bits"
            return _png(image)
    except Exception as error:
        # Many decoders, each with its own exceptions.
        return f"it is {kind} and cannot be read ({one_line(error)}); convert it to JPEG or PNG"


def _png(image: Any) -> bytes:
    import PIL.Image

    if image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    elif image.mode not in _AS_STORED:
        image = image.convert(
            "I" if image.mode.startswith("I;16") else "RGBA" if image.mode in _WITH_ALPHA else "RGB"
        )
    turned, exif = image.getexif().get(0x0112, 1), PIL.Image.Exif()
    # Kept, so that the orientation is remarked on as with other files.
    if turned in range(2, 9):
        exif[0x0112] = turned
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=exif, icc_profile=None, compress_level=1)
    return buffer.getvalue()


def _is_plain(bmp: bytes) -> bool:
    """Tells whether a BMP has 24 or 32 bits a pixel and no compression.

    TensorFlow decodes such files.
    """
    long = bmp[14:18] != b"\x0c\0\0\0"
    return long and bmp[28:30] in (b"\x18\0", b"\x20\0") and bmp[30:34] == b"\0\0\0\0"


@functools.cache
def _can_read_heic() -> bool:
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True


def converting(read: Callable[[int], bytes | str]) -> Callable[[int], bytes | str]:
    """Returns a reader of images, by index, that converts what `read` gives."""

    def converted(index: int) -> bytes | str:
        encoded = read(index)
        return encoded if isinstance(encoded, str) else to_png(encoded)

    return converted
