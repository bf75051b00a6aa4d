"""Decodes images from strangers inside the graph: a bad one gets a status, the others answers.

`tf.io.decode_image` fails the whole batch for one bad image, and a graph for TF Serving can hold no
Python function that catches the error. But tf.data can drop an element that fails, and it runs
inside a graph. So a batch becomes a `tf.data.Dataset` of (row, bytes). The rows that come out of it
are put back in their places, and the missing rows were not images.

An image must state its size before it is decoded: a few hundred bytes can declare gigabytes of
pixels. An image that TensorFlow would decode wrongly (see `serving.bmp`) is not decoded either.
"""

from __future__ import annotations

import tensorflow as tf

from data.preprocessing import Preprocessing, eval_image
from serving import bmp
from serving.answers import NOT_AN_IMAGE, OK, TOO_LARGE

MAX_PIXELS = 25_000_000
"""Default limit of an export: pixels of an image, or of all frames of a GIF.

Photographs of 24 megapixels pass. Decoding takes up to 12 bytes a pixel (a progressive JPEG in
CMYK; others 3 to 9), so 300 MB for an image at the limit."""

MAX_GIF_BLOCKS = 2**16
"""Blocks of a GIF that are walked at most.

A GIF is a chain of blocks of at most 255 bytes, which is walked to find its frames. A longer chain
is too large.
"""

_Walk = tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]
"""Place in a GIF, whether it is inside a chain of blocks, pixels so far, canvas [2] so far."""


def prepare(
    image_bytes: tf.Tensor, preprocessing: Preprocessing, max_pixels: int = MAX_PIXELS
) -> tuple[tf.Tensor, tf.Tensor]:
    """Decodes and prepares encoded images, as evaluation does.

    Args:
      image_bytes: string [N]; N may be 0.
      preprocessing: preprocessing of the model.
      max_pixels: an image that declares more is not decoded; at least 1.

    Returns:
      (float32 [N, S, S, 3] as `data.preprocessing.eval_image` gives them, zeros for images that
      cannot be decoded; `status` int32 [N], see `serving.answers`).
    """
    size = preprocessing.image_size
    nothing = tf.zeros([size, size, 3])
    count = tf.shape(image_bytes, out_type=tf.int64)[0]

    def one(row: tf.Tensor, encoded: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        status = header_status(encoded, max_pixels)
        image = tf.cond(
            tf.equal(status, OK), lambda: eval_image(encoded, preprocessing), lambda: nothing
        )
        return row, image, status

    answered = tf.data.Dataset.from_tensor_slices((tf.range(count), image_bytes))
    answered = answered.map(
        one, num_parallel_calls=tf.data.AUTOTUNE, deterministic=False
    ).ignore_errors()
    # A batch needs at least one row.
    spare = tf.data.Dataset.from_tensors((count, nothing, NOT_AN_IMAGE))
    options = tf.data.Options()
    # No tuning thread and no graph rewriting for each request: the cores give the parallelism.
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False
    batch = answered.concatenate(spare).batch(count + 1).with_options(options)
    # (M + 1,), (M + 1, S, S, 3), (M + 1,): M of the N images can be decoded.
    rows, images, statuses = batch.get_single_element()

    rows = rows[:, tf.newaxis]
    images = tf.scatter_nd(rows, images, tf.stack([count + 1, size, size, 3]))  # (N + 1, S, S, 3)
    # (N + 1,)
    statuses = tf.tensor_scatter_nd_update(tf.fill([count + 1], NOT_AN_IMAGE), rows, statuses)
    return tf.ensure_shape(images[:count], [None, size, size, 3]), statuses[:count]


def header_status(encoded: tf.Tensor, max_pixels: int) -> tf.Tensor:
    """Tells by its header alone whether an image may be decoded.

    Args:
      encoded: string scalar.
      max_pixels: the limit, at least 1.

    Returns:
      int32 scalar: OK, or the reason to refuse it, see `serving.answers`.

    Raises:
      tf.errors.InvalidArgumentError: a header that is cut off.
    """
    pixels = declared_pixels(encoded)
    is_bmp = tf.equal(tf.strings.substr(encoded, 0, 2), b"BM")
    kind = tf.cond(is_bmp, lambda: bmp.status(encoded), lambda: tf.constant(OK))
    image = (pixels > 0) & tf.not_equal(kind, NOT_AN_IMAGE)
    return tf.where(image, tf.where(pixels > max_pixels, TOO_LARGE, kind), NOT_AN_IMAGE)


def declared_pixels(encoded: tf.Tensor) -> tf.Tensor:
    """Returns height × width as the header states it, without decoding.

    The result is int64, and 0 for bytes in none of the four formats.

    Raises:
      tf.errors.InvalidArgumentError: a header that is cut off.
    """

    def product(sides: tf.Tensor) -> tf.Tensor:
        return tf.reduce_prod(tf.cast(sides, tf.int64))

    def png() -> tf.Tensor:
        # The decoder skips unknown chunks before the header. One could hold another size here.
        first = tf.equal(tf.strings.substr(encoded, 8, 8), b"\0\0\0\rIHDR")
        sides = tf.io.decode_raw(tf.strings.substr(encoded, 16, 8), tf.int32, little_endian=False)
        return tf.where(first & tf.reduce_all(sides > 0), product(sides), 0)  # below 2^31

    def bitmap() -> tf.Tensor:  # a negative height means rows from top to bottom
        sides = tf.cast(tf.io.decode_raw(tf.strings.substr(encoded, 18, 8), tf.int32), tf.int64)
        return tf.where(sides[0] > 0, product(tf.abs(sides)), 0)

    formats = [
        (b"\xff\xd8", lambda: product(tf.io.extract_jpeg_shape(encoded)[:2])),
        (b"\x89P", png),
        (b"BM", bitmap),
        (b"GI", lambda: _gif_pixels(encoded)),
    ]
    magic = tf.strings.substr(encoded, 0, 2)
    return tf.case(
        [(magic == start, pixels) for start, pixels in formats],
        default=lambda: tf.constant(0, tf.int64),
    )


def _gif_pixels(encoded: tf.Tensor) -> tf.Tensor:
    """Returns the pixels of all frames together, or those of the canvas if it has more.

    The canvas holds the screen and every frame: TensorFlow decodes all frames, and allocates an
    image as wide as the widest frame and as high as the highest.
    """
    content = tf.cast(tf.io.decode_raw(encoded, tf.uint8), tf.int64)  # (bytes,)
    length = tf.size(content, out_type=tf.int64)

    def table(flags: tf.Tensor) -> tf.Tensor:
        """Returns the bytes of the color table that `flags` announce."""
        return tf.where(
            flags >= 128, 3 * tf.bitwise.left_shift(tf.constant(2, tf.int64), flags % 8), 0
        )

    def sides(at: tf.Tensor) -> tf.Tensor:
        """Reads width and height, 2 bytes each: int64 [2]."""
        return tf.ensure_shape(content[at : at + 4 : 2] + 256 * content[at + 1 : at + 4 : 2], [2])

    def more(
        position: tf.Tensor, inside: tf.Tensor, pixels: tf.Tensor, canvas: tf.Tensor
    ) -> tf.Tensor:
        return position < length

    def step(position: tf.Tensor, inside: tf.Tensor, pixels: tf.Tensor, canvas: tf.Tensor) -> _Walk:
        first = content[position]

        def data_block() -> _Walk:  # its length, then its bytes; length 0 ends the chain
            return position + 1 + first, first > 0, pixels, canvas

        def frame() -> _Walk:  # ',', left, top, width, height (2 bytes each), flags
            size, flags = sides(position + 5), content[position + 9]
            return (
                position + 11 + table(flags),
                tf.constant(True),
                pixels + size[0] * size[1],
                tf.maximum(canvas, size),
            )

        def extension() -> _Walk:
            return position + 2, tf.constant(True), pixels, canvas

        def end() -> _Walk:
            return length, tf.constant(False), pixels, canvas

        return tf.case(
            [
                (inside, data_block),
                (tf.equal(first, 0x2C), frame),
                (tf.equal(first, 0x21), extension),
            ],
            default=end,
        )

    start = (13 + table(content[10]), tf.constant(False), tf.constant(0, tf.int64), sides(6))
    position, _, pixels, canvas = tf.while_loop(
        more, step, start, maximum_iterations=MAX_GIF_BLOCKS
    )
    return tf.where(position < length, tf.int64.max, tf.maximum(pixels, canvas[0] * canvas[1]))
