"""Odd image files, each with its outcome; and held-out images found again by their looks."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import PIL.Image
import pytest
from sklearn.datasets import load_digits, load_sample_image

from data import examine as module
from data.examine import CORRELATION, DIFFERENCE, NEAR, Examined, Seen, examine, perceptual_hash
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


def gif(screen: tuple[int, int], *frames: tuple[int, int]) -> bytes:
    """A GIF of frames of the given sizes (width, height), each with a table of colours, a comment before it and two pixels in it."""
    table = bytes([0, 0, 0, 255, 255, 255])
    content = b"GIF89a" + struct.pack("<HHBBB", *screen, 0x80, 0, 0) + table
    for size in frames:
        content += b"\x21\xfe\x05hello\x00" + b"\x2c" + struct.pack("<HHHHB", 0, 0, *size, 0x80) + table + b"\x02\x02\x4c\x01\x00"
    return content + b"\x3b"


ORIENTED = PIL.Image.Exif()
ORIENTED[0x0112] = 6  # "turn me by 90 degrees"
DEEP = (np.arange(120 * 160, dtype=np.uint32).reshape(120, 160) * 3).astype(np.uint16)
GREY = np.asarray(PIL.Image.fromarray(PHOTO).convert("L"))

# What becomes of an image that can be used: (file, its pixels, mean difference of them at most).
USABLE = {
    "16-bit PNG: the upper 8 bits": (saved(PIL.Image.fromarray(DEEP), "png"), np.repeat((DEEP >> 8)[..., None], 3, -1), 0),
    "grey: three equal channels": (saved(PIL.Image.fromarray(GREY), "png"), np.repeat(GREY[..., None], 3, -1), 0),
    "grey BMP": (saved(PIL.Image.fromarray(GREY), "bmp"), np.repeat(GREY[..., None], 3, -1), 0),
    "transparent: over white": (
        saved(PIL.Image.fromarray(np.dstack([PHOTO, GREY])), "png"),
        np.rint(PHOTO * (GREY[..., None] / 255) + 255 - GREY[..., None]),
        0,
    ),
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
    "PNG with text before its transparent colours": (
        saved(PIL.Image.fromarray(PHOTO).quantize(9), "png", transparency=3, icc_profile=np.random.default_rng(0).bytes(20_000)),
        "its transparent colours stand behind 16,384 bytes of text",
    ),
    "WebP": (saved(PIL.Image.fromarray(PHOTO), "webp"), "it is no JPEG, PNG, GIF or BMP"),
    "text": (b"hello, world", "it is no JPEG, PNG, GIF or BMP"),
    "GIF bomb in a frame": (gif((1, 1), (60000, 60000)), "its frames claim to have 3,600,000,000 pixels together"),
    "GIF bomb of many frames": (gif((5000, 5000), *[(5000, 5000)] * 5), "its frames claim to have 125,000,000 pixels together"),
    "GIF bomb across frames": (gif((1, 1), (60000, 1), (1, 60000)), "it claims to have 60000 x 60000 pixels"),
    "GIF bomb on its screen": (gif((60000, 60000), (1, 1)), "it claims to have 60000 x 60000 pixels"),
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
    frames = [PIL.Image.fromarray(GREY), PIL.Image.fromarray(255 - GREY)]
    encoded = saved(frames[0], "gif", save_all=True, append_images=[frames[1]] * 2 + [frames[0]], duration=[10, 20, 30, 40], loop=0)
    assert list(module._gif_frames(encoded))[:2] == [(160, 120)] * 2
    assert len(list(module._gif_frames(encoded))) == PIL.Image.open(io.BytesIO(encoded)).n_frames


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
    image = np.repeat(np.arange(9, dtype=np.uint8)[None] * 20, 9, 0)  # lighter to the right, constant downwards
    assert perceptual_hash(PIL.Image.fromarray(image)) == b"\xff" * 8 + b"\0" * 8
    assert perceptual_hash(PIL.Image.fromarray(image.T)) == b"\0" * 8 + b"\xff" * 8


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


def on_white(digit: np.ndarray) -> np.ndarray:
    """A handwritten digit that fills half the side of a white image."""
    image = PIL.Image.new("L", (128, 128), 255)
    drawn = PIL.Image.fromarray(255 - np.rint(digit * 255 / 16).astype(np.uint8))
    image.paste(drawn.resize((64, 64), PIL.Image.Resampling.BICUBIC), (32, 32))
    return np.asarray(image.convert("RGB"))


def test_different_things_on_one_background_are_different():
    images = [on_white(digit) for digit in load_digits().images[:120]]
    held_out, known, others = images[:60], examined(*images[:60]), examined(*images[60:])
    assert all(min(bits_between(other.hash, one.hash) for one in known) <= NEAR for other in others)  # by the hash alone all would go
    seen = Seen([str(i) for i in range(60)], known, near=True)
    assert seen.find(others) == {}
    copies = [examine(saved(PIL.Image.fromarray(image).resize((100, 90)), "jpeg", quality=70)) for image in held_out]
    assert {i: entry["of"] for i, entry in seen.find(copies).items()} == {i: str(i) for i in range(60)}


def test_plain_images_are_compared_by_their_means():
    grey = examined(*(np.full((80, 80, 3), level, np.uint8) for level in (100, 103, 140)))
    assert seen_bits(grey[0], *grey[1:]) == {0: 0}
    step = np.full((80, 80, 3), 100, np.uint8)
    step[40:] = 104
    assert seen_bits(grey[0], *examined(step)) == {}  # one that shows something is no plain one


def seen_bits(one: Examined, *others: Examined) -> dict[int, str | int]:
    return {i: entry["bits"] for i, entry in Seen(["k"], [one], near=True).find(others).items()}


def test_thumbnails_are_compared_as_numpy_does():
    rng = np.random.Generator(np.random.PCG64(9))
    ones = rng.integers(0, 256, [40, 256], dtype=np.uint8)
    ones[20:] = ones[20:] // 16 + 60  # dim, so that the difference is small whatever they show
    scale = rng.uniform(0, 40, [40, 1]) * np.where(np.arange(40) < 20, 1, 1 / 16)[:, np.newaxis]
    others = np.clip(ones + rng.normal(0, 1, ones.shape) * scale, 0, 255).astype(np.uint8)
    i, j = np.repeat(np.arange(40), 40), np.tile(np.arange(40), 40)
    expected = []
    for one, other in zip(ones[i].astype(float), others[j].astype(float)):
        largest = np.abs((one - one.mean()) - (other - other.mean())).max()
        expected.append(np.corrcoef(one, other)[0, 1] > CORRELATION and largest <= DIFFERENCE)
    np.testing.assert_array_equal(module._alike(ones, others, i, j), expected)
    assert 3 < sum(expected[:800]) < 20 and 3 < sum(expected[800:]) < 20


def test_the_search_is_the_brute_force():
    rng = np.random.Generator(np.random.PCG64(8))
    hashes = rng.integers(0, 256, [300, 16], dtype=np.uint8)
    near = hashes[rng.integers(0, 300, 600)].copy()
    for row in near:
        for bit in rng.choice(128, rng.integers(0, 20), replace=False):
            row[bit // 8] ^= 1 << (bit % 8)
    seen = [Examined(64, 64, b"%016d" % i, bytes(row), bytes(256)) for i, row in enumerate(hashes)]
    pool = [Examined(64, 64, b"p%015d" % i, bytes(row), bytes(256)) for i, row in enumerate(near)]
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
