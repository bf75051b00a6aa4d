"""Transparency is composed over white; opaque images keep TensorFlow's pixels to the bit."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
from sklearn.datasets import load_sample_image

from data import transparency
from data.preprocessing import Preprocessing, decode, eval_image, train_image
from data.transparency import decode_opaque

PHOTO = PIL.Image.fromarray(load_sample_image("flower.jpg")).resize((60, 45))
COLORS = PHOTO.quantize(32)
ALPHA = np.random.Generator(np.random.PCG64(1)).integers(0, 256, (45, 60), dtype=np.uint8)
in_a_graph = tf.function(decode, input_signature=[tf.TensorSpec([], tf.string)])


def saved(image: PIL.Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def with_alpha(image: PIL.Image.Image) -> PIL.Image.Image:
    image.putalpha(PIL.Image.fromarray(ALPHA))
    return image


def deep(rgba: np.ndarray) -> bytes:
    """Returns a PNG of 16 bits from uint16 [H, W, 4]."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rgba)
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", rgba.shape[1], rgba.shape[0], 16, 6, 0, 0, 0),
        b"IDAT": zlib.compress(rows),
        b"IEND": b"",
    }
    parts = (
        struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c))
        for n, c in chunks.items()
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def gif(
    canvas: tuple[int, int], frame: tuple[int, int, int, int], index: int | None, local: bool
) -> bytes:
    """Returns a GIF with colors 0 (red) and 1 (green) in turns.

    Args:
      canvas: width and height.
      frame: left, top, width, height.
      index: index of the transparent color.
      local: whether the frame has its own table of colors; the global one is then blue.
    """
    image = PIL.Image.new("P", frame[2:])
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putdata([i % 2 for i in range(frame[2] * frame[3])])
    whole = saved(image, "gif")
    pixels = whole[whole.index(b"\x2c\0\0\0\0") + 10 :]
    table, blue = bytes([255, 0, 0, 0, 255, 0]), bytes([0, 0, 255] * 2)
    content = b"GIF89a" + struct.pack("<HHBBB", *canvas, 0x80, 0, 0) + (blue if local else table)
    content += b"\x21\xfe\x05hello\x00"
    if index is not None:
        content += b"\x21\xf9\x04" + bytes([1, 0, 0, index]) + b"\x00"
    return (
        content
        + b"\x2c"
        + struct.pack("<HHHHB", *frame, 0x80 if local else 0)
        + (table if local else b"")
        + pixels
    )


TRANSPARENT = {
    "RGBA": saved(with_alpha(PHOTO.copy()), "png"),
    "black under alpha": saved(with_alpha(PIL.Image.new("RGB", PHOTO.size)), "png"),
    "gray and alpha": saved(with_alpha(PHOTO.convert("L")), "png"),
    "palette, an alpha for each color": saved(COLORS, "png", transparency=bytes(range(0, 256, 8))),
    "gray, one level transparent": saved(
        PHOTO.convert("L"), "png", transparency=int(np.asarray(PHOTO.convert("L"))[20, 20])
    ),
    "RGB, one color transparent": saved(PHOTO, "png", transparency=PHOTO.getpixel((20, 20))),
    "colors after much text": saved(
        COLORS, "png", transparency=3, icc_profile=np.random.default_rng(0).bytes(9000)
    ),
    "GIF": saved(COLORS, "gif", transparency=COLORS.getpixel((20, 20))),
    "animated GIF": saved(
        COLORS,
        "gif",
        transparency=COLORS.getpixel((20, 20)),
        save_all=True,
        append_images=[COLORS.rotate(180)],
        comment=b"x" * 700,
    ),
}
OPAQUE = {
    f"{kind} {mode}": saved(PHOTO.convert(mode), kind)
    for kind, modes in {
        "png": ("RGB", "L", "1", "RGBA", "LA"),
        "jpeg": ("RGB", "L", "CMYK"),
        "bmp": ("RGB", "L", "RGBA"),
        "gif": ("L",),
    }.items()
    for mode in modes
}
OPAQUE |= {
    "png P": saved(COLORS, "png"),
    "gif P": saved(COLORS, "gif", save_all=True, append_images=[COLORS.rotate(180)]),
}
OPAQUE["png with much text"] = saved(PHOTO, "png", icc_profile=np.random.default_rng(0).bytes(9000))


@pytest.mark.parametrize("case", TRANSPARENT)
def test_transparency_is_composed_over_white(case):
    rgba = np.asarray(PIL.Image.open(io.BytesIO(TRANSPARENT[case])).convert("RGBA")).astype(float)
    alpha = rgba[..., 3:] / 255
    assert alpha.min() < 1
    expected = np.floor(rgba[..., :3] * alpha + 255 * (1 - alpha) + 0.5)
    np.testing.assert_array_equal(decode(tf.constant(TRANSPARENT[case])), expected)
    np.testing.assert_array_equal(in_a_graph(TRANSPARENT[case]), expected)


@pytest.mark.parametrize("case", OPAQUE)
def test_opaque_images_keep_their_pixels(case):
    expected = tf.io.decode_image(OPAQUE[case], channels=3, expand_animations=False)
    np.testing.assert_array_equal(decode_opaque(OPAQUE[case]), expected)
    np.testing.assert_array_equal(decode(tf.constant(OPAQUE[case])), expected)
    np.testing.assert_array_equal(in_a_graph(OPAQUE[case]), expected)


def test_16_bits_with_alpha():
    rgba = np.random.Generator(np.random.PCG64(2)).integers(0, 2**16, (5, 4, 4), dtype=np.uint16)
    upper = (rgba >> 8).astype(float)
    alpha = upper[..., 3:] / 255
    np.testing.assert_array_equal(
        in_a_graph(deep(rgba)), np.floor(upper[..., :3] * alpha + 255 * (1 - alpha) + 0.5)
    )


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("index", [None, 0, 1, 7])
def test_gifs_with_a_frame_that_is_smaller_than_the_canvas(index, local):
    frame = [
        [(255, 0, 0), (0, 255, 0)][(4 * row + column) % 2]
        for row in range(3)
        for column in range(4)
    ]
    whole = np.reshape(
        [(255, 255, 255) if i % 2 == index else pixel for i, pixel in enumerate(frame)], (3, 4, 3)
    )
    expected = np.full((3, 4, 3), 255)  # TensorFlow's canvas is as large as the largest frame
    expected[2:, 1:] = whole[:1, :3]
    encoded = gif((9, 8), (1, 2, 4, 3), index, local)
    np.testing.assert_array_equal(decode(tf.constant(encoded)), expected)
    np.testing.assert_array_equal(in_a_graph(encoded), expected)


def test_training_and_evaluation_see_the_composed_image():
    encoded = TRANSPARENT["black under alpha"]
    flat = saved(PIL.Image.fromarray(decode(tf.constant(encoded)).numpy()), "png")
    for style in ("small", "imagenet"):
        settings = Preprocessing(32, style=style)
        seed = tf.constant([1, 2], tf.int64)
        np.testing.assert_array_equal(eval_image(encoded, settings), eval_image(flat, settings))
        np.testing.assert_array_equal(
            train_image(encoded, seed, settings), train_image(flat, seed, settings)
        )


@pytest.mark.parametrize(
    "encoded",
    [b"", b"\x89PNG", b"GIF8", b"GIF89a", TRANSPARENT["GIF"][:40], TRANSPARENT["RGBA"][:60]],
)
def test_files_that_are_cut_off_are_errors(encoded):
    for function in (decode, in_a_graph):
        with pytest.raises(tf.errors.InvalidArgumentError):
            function(tf.constant(encoded))


def test_images_of_several_blocks_are_composed_alike(monkeypatch):
    rgba = np.random.default_rng(3).integers(0, 256, (37, 11, 4)).astype(np.uint8)
    whole = transparency.over_white(tf.constant(rgba)).numpy()
    alpha = rgba[..., 3:].astype(float)
    np.testing.assert_array_equal(
        whole, np.rint((rgba[..., :3] * alpha + 255 * (255 - alpha)) / 255)
    )
    for block in (1, 11, 60, 37 * 11):
        monkeypatch.setattr(transparency, "BLOCK", block)
        np.testing.assert_array_equal(transparency.over_white(tf.constant(rgba)), whole)
