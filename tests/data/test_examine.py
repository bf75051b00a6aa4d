"""Odd image files, each with its outcome."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import PIL.Image
import pytest
from sklearn.datasets import load_sample_image

from data.examine import Examined, _gif_frames, examine
from data.preprocessing import decode
from tests.data.recipes import encode

PHOTO = np.asarray(PIL.Image.fromarray(load_sample_image("china.jpg")).resize((160, 120)))


def saved(image: PIL.Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def with_jpeg_size(height: int, width: int) -> bytes:
    """Returns a small JPEG that claims another size."""
    content = bytearray(encode(PHOTO, "jpg"))
    place = content.find(b"\xff\xc0") + 5
    content[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(content)


def with_png_size(height: int, width: int) -> bytes:
    header = struct.pack(">II", width, height) + bytes([8, 2, 0, 0, 0])
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + b"IHDR"
        + header
        + struct.pack(">I", zlib.crc32(b"IHDR" + header))
        + b"\0" * 100
    )


def gif(screen: tuple[int, int], *frames: tuple[int, int]) -> bytes:
    """Returns a GIF with frames of the given sizes (width, height).

    Each frame has a table of colors, a comment before it and two pixels in it.
    """
    table = bytes([0, 0, 0, 255, 255, 255])
    content = b"GIF89a" + struct.pack("<HHBBB", *screen, 0x80, 0, 0) + table
    for size in frames:
        content += (
            b"\x21\xfe\x05hello\x00"
            + b"\x2c"
            + struct.pack("<HHHHB", 0, 0, *size, 0x80)
            + table
            + b"\x02\x02\x4c\x01\x00"
        )
    return content + b"\x3b"


ORIENTED = PIL.Image.Exif()
ORIENTED[0x0112] = 6  # "turn me by 90 degrees"
DEEP = (np.arange(120 * 160, dtype=np.uint32).reshape(120, 160) * 3).astype(np.uint16)
GRAY = np.asarray(PIL.Image.fromarray(PHOTO).convert("L"))

# What becomes of an image that can be used: (file, its pixels, mean difference of them at most).
USABLE = {
    "16-bit PNG: the upper 8 bits": (
        saved(PIL.Image.fromarray(DEEP), "png"),
        np.repeat((DEEP >> 8)[..., None], 3, -1),
        0,
    ),
    "gray: three equal channels": (
        saved(PIL.Image.fromarray(GRAY), "png"),
        np.repeat(GRAY[..., None], 3, -1),
        0,
    ),
    "gray BMP": (saved(PIL.Image.fromarray(GRAY), "bmp"), np.repeat(GRAY[..., None], 3, -1), 0),
    "transparent: over white": (
        saved(PIL.Image.fromarray(np.dstack([PHOTO, GRAY])), "png"),
        np.rint(PHOTO * (GRAY[..., None] / 255) + 255 - GRAY[..., None]),
        0,
    ),
    "animated GIF: the first frame": (
        saved(
            PIL.Image.fromarray(GRAY),
            "gif",
            save_all=True,
            append_images=[PIL.Image.fromarray(255 - GRAY)] * 3,
        ),
        np.repeat(GRAY[..., None], 3, -1),
        0,
    ),
    "palette PNG": (
        saved(PIL.Image.fromarray(PHOTO).quantize(32), "png"),
        np.asarray(PIL.Image.fromarray(PHOTO).quantize(32).convert("RGB")),
        0,
    ),
    "CMYK JPEG": (
        saved(PIL.Image.fromarray(PHOTO).convert("CMYK"), "jpeg", quality=100, subsampling=0),
        PHOTO,
        3,
    ),
    "EXIF orientation: not applied": (
        saved(PIL.Image.fromarray(PHOTO), "jpeg", quality=100, subsampling=0, exif=ORIENTED),
        PHOTO,
        3,
    ),
}

# What becomes of an image that cannot be used: (file, why).
UNUSABLE = {
    "0 bytes": (b"", "the file is empty"),
    "cut JPEG": (encode(PHOTO, "jpg")[:2000], "the image is damaged or cut off"),
    "cut PNG": (encode(PHOTO)[:2000], "the image is damaged or cut off"),
    "a few bytes": (b"\xff\xd8\xff", "the image is damaged or cut off"),
    "JPEG bomb": (with_jpeg_size(65500, 65500), "it claims to have 65500 x 65500 pixels"),
    "JPEG bomb that TensorFlow would decode": (
        with_jpeg_size(13000, 13000),
        "it claims to have 13000 x 13000 pixels",
    ),
    "PNG bomb": (with_png_size(20000, 30000), "it claims to have 30000 x 20000 pixels"),
    "palette BMP": (
        saved(PIL.Image.fromarray(PHOTO).quantize(32), "bmp"),
        "it is a BMP with a table of colors",
    ),
    "1-bit BMP": (
        saved(PIL.Image.fromarray(PHOTO).convert("1"), "bmp"),
        "TensorFlow cannot decode it",
    ),
    "PNG with text before its transparent colors": (
        saved(
            PIL.Image.fromarray(PHOTO).quantize(9),
            "png",
            transparency=3,
            icc_profile=np.random.default_rng(0).bytes(20_000),
        ),
        "its transparent colors stand behind 16,384 bytes of text",
    ),
    "WebP": (saved(PIL.Image.fromarray(PHOTO), "webp"), "it is not a JPEG, PNG, GIF or BMP"),
    "text": (b"hello, world", "it is not a JPEG, PNG, GIF or BMP"),
    "GIF bomb in a frame": (
        gif((1, 1), (60000, 60000)),
        "its frames claim to have 3,600,000,000 pixels together",
    ),
    "GIF bomb of many frames": (
        gif((5000, 5000), *[(5000, 5000)] * 5),
        "its frames claim to have 125,000,000 pixels together",
    ),
    "GIF bomb across frames": (
        gif((1, 1), (60000, 1), (1, 60000)),
        "it claims to have 60000 x 60000 pixels",
    ),
    "GIF bomb on its screen": (
        gif((60000, 60000), (1, 1)),
        "it claims to have 60000 x 60000 pixels",
    ),
    "cut GIF": (gif((1, 1), (1, 1))[:30], "the image is damaged or cut off"),
}


@pytest.mark.parametrize("case", USABLE)
def test_odd_images_that_can_be_used(case):
    encoded, expected, difference = USABLE[case]
    result = examine(encoded)
    assert isinstance(result, Examined), result
    assert (result.height, result.width) == expected.shape[:2]
    assert np.abs(decode(encoded).numpy().astype(int) - expected).mean() <= difference


def test_the_frames_of_a_gif_are_those_that_pil_wrote():
    frames = [PIL.Image.fromarray(GRAY), PIL.Image.fromarray(255 - GRAY)]
    encoded = saved(
        frames[0],
        "gif",
        save_all=True,
        append_images=[frames[1]] * 2 + [frames[0]],
        duration=[10, 20, 30, 40],
        loop=0,
    )
    assert list(_gif_frames(encoded))[:2] == [(160, 120)] * 2
    assert len(list(_gif_frames(encoded))) == PIL.Image.open(io.BytesIO(encoded)).n_frames


@pytest.mark.parametrize("case", UNUSABLE)
def test_odd_images_that_cannot(case):
    encoded, why = UNUSABLE[case]
    result = examine(encoded)
    assert isinstance(result, str)
    assert result.startswith(why) and "\n" not in result


def test_the_limit_is_the_modules(monkeypatch):
    monkeypatch.setattr("data.examine.MAX_PIXELS", 120 * 160 - 1)
    assert str(examine(encode(PHOTO, "jpg"))).startswith("it claims to have 160 x 120 pixels")
