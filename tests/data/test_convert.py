"""Images of other kinds become PNG files of the same pixels."""

from __future__ import annotations

import io
import sys

import numpy as np
import PIL.features
import PIL.Image
import pytest

from data import convert
from data.convert import to_png
from data.image_folder import images_below, open_folder
from data.sources import Request

PIXELS = np.random.default_rng(0).integers(0, 256, (11, 13, 3), np.uint8)


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(png, mode="RGB"):
    assert png[:4] == b"\x89PNG"
    return np.asarray(PIL.Image.open(io.BytesIO(png)).convert(mode))


RGB = PIL.Image.fromarray(PIXELS)
GRAY = RGB.convert("L")


@pytest.mark.parametrize(
    ("image", "kind", "options"),
    [
        (RGB, "webp", {"lossless": True}),
        (RGB, "tiff", {}),
        (RGB.convert("CMYK"), "tiff", {}),
        (GRAY, "tiff", {"compression": "tiff_lzw"}),
        (RGB.quantize(9), "bmp", {}),
        (RGB.convert("1"), "bmp", {}),
        (RGB, "jpeg2000", {"irreversible": False}),
    ],
)
def test_pixels_stay(image, kind, options):
    found = pixels(to_png(encoded(image, kind, **options)))
    np.testing.assert_array_equal(found, np.asarray(image.convert("RGB")))


def test_what_can_be_read_stays_as_it_is():
    for kind in ("png", "jpeg", "gif", "bmp"):
        file = encoded(RGB, kind)
        assert to_png(file) is file
    assert to_png(b"no image") == b"no image" and to_png(b"") == b""


def test_depth_transparency_and_orientation_are_kept():
    deep = np.arange(143, dtype=np.uint16).reshape(11, 13) * 400
    np.testing.assert_array_equal(
        pixels(to_png(encoded(PIL.Image.fromarray(deep), "tiff")), "I"), deep
    )
    clear = RGB.convert("RGBA")
    clear.putalpha(GRAY)
    found = pixels(to_png(encoded(clear, "webp", lossless=True, exact=True)), "RGBA")
    np.testing.assert_array_equal(found, np.asarray(clear))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    turned = PIL.Image.open(io.BytesIO(to_png(encoded(RGB, "webp", exif=exif, lossless=True))))
    assert turned.size == RGB.size and turned.getexif()[0x0112] == 6
    plain = PIL.Image.open(io.BytesIO(to_png(encoded(RGB, "webp", lossless=True))))
    assert not plain.getexif()


@pytest.mark.skipif(not PIL.features.check("avif"), reason="this Pillow reads no AVIF")
def test_avif():
    found = pixels(to_png(encoded(GRAY.resize((64, 64)), "avif", quality=100)), "L")
    assert np.abs(found.astype(int) - np.asarray(GRAY.resize((64, 64)))).mean() < 4


def test_why_not(monkeypatch):
    webp = encoded(RGB, "webp")
    assert "it is WebP and cannot be read" in to_png(webp[:40])
    floats = encoded(PIL.Image.fromarray(np.ones((3, 3), np.float32)), "tiff")
    assert "its pixels are 32-bit numbers" in to_png(floats)
    monkeypatch.setattr(convert, "MAX_PIXELS", 100)
    assert "13 x 11 pixels" in to_png(webp)


HEIC = b"\0\0\0\x18ftypheic" + b"\0" * 100


def test_heic_needs_a_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    convert._can_read_heic.cache_clear()
    try:
        assert "pip install pillow-heif" in to_png(HEIC) and "\n" not in to_png(HEIC)
    finally:
        convert._can_read_heic.cache_clear()


def test_heic():
    pillow_heif = pytest.importorskip("pillow_heif")
    buffer = io.BytesIO()
    pillow_heif.from_pillow(GRAY.resize((64, 64)).convert("RGB")).save(buffer, quality=100)
    found = pixels(to_png(buffer.getvalue()), "L")
    assert np.abs(found.astype(int) - np.asarray(GRAY.resize((64, 64)))).mean() < 4
    assert "it is HEIC and cannot be read" in to_png(HEIC)


def test_a_folder_with_and_without(tmp_path, caplog):
    for name, kind in {
        "cat/a.webp": "webp",
        "cat/b.png": "png",
        "dog/c": "tiff",
        "dog/d.png": "png",
        "dog/e.bmp": "bmp",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(encoded(RGB.quantize(9) if kind == "bmp" else RGB, kind))
    (tmp_path / "dog" / "f.cr2").write_bytes(b"raw")
    with caplog.at_level("WARNING", "absl"):
        plain = open_folder(Request(str(tmp_path), "labeled"))
    assert [file.key for file in plain.files()] == ["cat/b.png", "dog/d.png", "dog/e.bmp"]
    assert (
        "1 TIFF, 1 WebP, 1 camera raw files are skipped; convert them to JPEG or PNG, or let"
        " them be converted with" in caplog.text
    )
    found = open_folder(Request(str(tmp_path), "labeled", convert=True))
    assert [file.key for file in found.files()] == [
        "cat/a.webp",
        "cat/b.png",
        "dog/c",
        "dog/d.png",
        "dog/e.bmp",
    ]
    assert all(read[:4] == b"\x89PNG" for read in found.read(range(5)))
    assert images_below(str(tmp_path)) == [file.path for file in found.files()]
