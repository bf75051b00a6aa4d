"""Odd image files, each with its outcome; and held-out images found again by their looks."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import PIL.Image
import pytest
from sklearn.datasets import load_sample_image

from data import examine as module
from data.examine import NEAR, Examined, Seen, examine, perceptual_hash
from data.preprocessing import decode
from tests.data.recipes import encode, pixels

PHOTO = np.asarray(PIL.Image.fromarray(load_sample_image("china.jpg")).resize((160, 120)))


def saved(image: PIL.Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def with_jpeg_size(height: int, width: int) -> bytes:
    """A small JPEG that claims another size."""
    content = bytearray(encode(PHOTO, "jpg"))
    place = content.find(b"\xff\xc0") + 5
    content[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(content)


def with_png_size(height: int, width: int) -> bytes:
    header = struct.pack(">II", width, height) + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + b"\0" * 100


ORIENTED = PIL.Image.Exif()
ORIENTED[0x0112] = 6  # "turn me by 90 degrees"
DEEP = (np.arange(120 * 160, dtype=np.uint32).reshape(120, 160) * 3).astype(np.uint16)
GREY = np.asarray(PIL.Image.fromarray(PHOTO).convert("L"))

# What becomes of an image that can be used: (file, its pixels, mean difference of them at most).
USABLE = {
    "16-bit PNG: the upper 8 bits": (saved(PIL.Image.fromarray(DEEP), "png"), np.repeat((DEEP >> 8)[..., None], 3, -1), 0),
    "grey: three equal channels": (saved(PIL.Image.fromarray(GREY), "png"), np.repeat(GREY[..., None], 3, -1), 0),
    "grey BMP": (saved(PIL.Image.fromarray(GREY), "bmp"), np.repeat(GREY[..., None], 3, -1), 0),
    "transparent: dropped": (saved(PIL.Image.fromarray(np.dstack([PHOTO, GREY])), "png"), PHOTO, 0),
    "animated GIF: the first frame": (
        saved(PIL.Image.fromarray(GREY), "gif", save_all=True, append_images=[PIL.Image.fromarray(255 - GREY)] * 3),
        np.repeat(GREY[..., None], 3, -1),
        0,
    ),
    "palette PNG": (
        saved(PIL.Image.fromarray(PHOTO).quantize(32), "png"),
        np.asarray(PIL.Image.fromarray(PHOTO).quantize(32).convert("RGB")),
        0,
    ),
    "CMYK JPEG": (saved(PIL.Image.fromarray(PHOTO).convert("CMYK"), "jpeg", quality=100, subsampling=0), PHOTO, 3),
    "EXIF orientation: not applied": (saved(PIL.Image.fromarray(PHOTO), "jpeg", quality=100, subsampling=0, exif=ORIENTED), PHOTO, 3),
}

# And of one that cannot: (file, why).
UNUSABLE = {
    "0 bytes": (b"", "the file is empty"),
    "cut JPEG": (encode(PHOTO, "jpg")[:2000], "the image is damaged or cut off"),
    "cut PNG": (encode(PHOTO)[:2000], "the image is damaged or cut off"),
    "a few bytes": (b"\xff\xd8\xff", "the image is damaged or cut off"),
    "JPEG bomb": (with_jpeg_size(65500, 65500), "it claims to have 65500 x 65500 pixels"),
    "JPEG bomb that TensorFlow would decode": (with_jpeg_size(13000, 13000), "it claims to have 13000 x 13000 pixels"),
    "PNG bomb": (with_png_size(20000, 30000), "it claims to have 30000 x 20000 pixels"),
    "palette BMP": (saved(PIL.Image.fromarray(PHOTO).quantize(32), "bmp"), "it is a BMP with a table of colours"),
    "1-bit BMP": (saved(PIL.Image.fromarray(PHOTO).convert("1"), "bmp"), "TensorFlow cannot decode it"),
    "WebP": (saved(PIL.Image.fromarray(PHOTO), "webp"), "it is no JPEG, PNG, GIF or BMP"),
    "text": (b"hello, world", "it is no JPEG, PNG, GIF or BMP"),
}


@pytest.mark.parametrize("case", USABLE)
def test_odd_images_that_can_be_used(case):
    encoded, expected, difference = USABLE[case]
    result = examine(encoded)
    assert isinstance(result, Examined), result
    assert (result.height, result.width) == expected.shape[:2]
    assert np.abs(decode(encoded).numpy().astype(int) - expected).mean() <= difference


@pytest.mark.parametrize("case", UNUSABLE)
def test_odd_images_that_cannot(case):
    encoded, why = UNUSABLE[case]
    result = examine(encoded)
    assert isinstance(result, str)
    assert result.startswith(why) and "\n" not in result


# Duplicates


def examined(*images: np.ndarray) -> list[Examined]:
    results = [examine(encode(image)) for image in images]
    assert all(isinstance(result, Examined) for result in results)
    return results


def bits_between(one: bytes, other: bytes) -> int:
    return bin(int.from_bytes(one, "big") ^ int.from_bytes(other, "big")).count("1")


def crops(count: int) -> list[np.ndarray]:
    """Different pieces of two photographs."""
    photos = [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]
    rng = np.random.Generator(np.random.PCG64(7))
    result = []
    for i in range(count):
        top, left = rng.integers(0, 300), rng.integers(0, 500)
        result.append(photos[i % 2][top : top + 120, left : left + 140])
    return result


def test_the_hash_by_hand():
    image = np.repeat(np.arange(9, dtype=np.uint8)[None, :, None] * 20, 9, 0).repeat(3, 2)  # lighter to the right, constant downwards
    assert perceptual_hash(image) == b"\xff" * 8 + b"\0" * 8
    assert perceptual_hash(image.transpose(1, 0, 2)) == b"\0" * 8 + b"\xff" * 8


def test_scaled_and_recompressed_images_are_found_and_others_are_not():
    held_out, others = crops(40), crops(80)[40:]
    seen = Seen([str(i) for i in range(40)], examined(*held_out), near=True)
    changed = []
    for image in held_out:
        smaller = PIL.Image.fromarray(image).resize((100, 90), PIL.Image.Resampling.LANCZOS)
        result = examine(saved(smaller, "jpeg", quality=70))
        assert isinstance(result, Examined)
        changed.append(result)
    found = seen.find(changed)
    assert len(found) >= 37 and all(found[i]["of"] == str(i) and found[i]["bits"] >= 0 for i in found)
    assert seen.find(examined(*others)) == {}
    assert {i: entry["bits"] for i, entry in seen.find(examined(*held_out)).items()} == dict.fromkeys(range(40), -1)


def test_the_search_is_the_brute_force():
    rng = np.random.Generator(np.random.PCG64(8))
    hashes = rng.integers(0, 256, [300, 16], dtype=np.uint8)
    near = hashes[rng.integers(0, 300, 600)].copy()
    for row in near:
        for bit in rng.choice(128, rng.integers(0, 20), replace=False):
            row[bit // 8] ^= 1 << (bit % 8)
    seen = [Examined(64, 64, b"%016d" % i, bytes(row)) for i, row in enumerate(hashes)]
    pool = [Examined(64, 64, b"p%015d" % i, bytes(row)) for i, row in enumerate(near)]
    found = Seen([str(i) for i in range(300)], seen, near=True).find(pool)
    for i, candidate in enumerate(pool):
        distances = [bits_between(candidate.hash, one.hash) for one in seen]
        assert (i in found) == (min(distances) <= NEAR)
        if i in found:
            assert found[i]["bits"] == min(distances) == distances[int(found[i]["of"])]
    assert 200 < len(found) < 600


@pytest.mark.parametrize("size, near", [((64, 64), False), ((64, 63), True)])
def test_only_identical_files_where_looks_do_not_count(size, near):
    image, other = examined(pixels(0, size), pixels(1, size))
    seen = Seen(["k"], [image], near)
    assert seen.find([other, image]) == {1: {"of": "k", "bits": -1}}
    assert seen.find([image._replace(digest=b"x" * 16)]) == {}
    assert Seen([], [], near=True).find([image]) == {}


def test_the_limit_is_the_modules(monkeypatch):
    monkeypatch.setattr(module, "MAX_PIXELS", 120 * 160 - 1)
    assert str(examine(encode(PHOTO, "jpg"))).startswith("it claims to have 160 x 120 pixels")
