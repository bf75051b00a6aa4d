"""The training input pipeline against plain decoding and against peers that do the same work.

    ./run_benchmarks.sh input_pipeline [--images=512]

The work: JPEG of about 500x375 pixels -> random crop, bicubic to 224 -> flip -> two operations of
RandAugment at M = 9 -> batch of 64. The peers:

- decoding alone (the whole image, nothing else);
- the same pipeline with keras_cv.layers.RandAugment (two operations an image, rate 1; its own ten
  operations);
- PIL and timm's RandAugment with probability 1, in two worker processes, where torch and timm are
  installed (`PEERS=DIR`).

`box` is our pipeline up to the decoding of the random box, `plain` our pipeline without
RandAugment, both beside decoding alone: what is left for RandAugment to spend. `examine` is what
the preparation does to every image: decoding, hashes, a thumbnail. CPU milliseconds an image are
given beside the rates, since wall time varies on a shared machine.
"""

from __future__ import annotations

import cli  # noqa: F401  (before TensorFlow: it sets TensorFlow's log level)

# isort: split

import importlib.util
import io
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import tensorflow as tf
from sklearn.datasets import load_sample_image

from benchmarks import report
from benchmarks.models.torch_peers import load_torch
from data import protos, records
from data.examine import examine
from data.image_ops import to_uint8
from data.pipeline import prepared_batches
from data.preprocessing import Preprocessing, decode_random_box, train_pixels

SIZE, BATCH = 224, 64
ROUNDS = 3
NOISE = Preprocessing(
    SIZE, style="imagenet", flip=True, randaugment_layers=2, randaugment_magnitude=9.0
)
PLAIN = Preprocessing(SIZE, style="imagenet", flip=True)


def photographs(count: int) -> list[bytes]:
    """Returns JPEG files of 500x375 pixels: pieces of scikit-learn's two photographs."""
    sources = [PIL.Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]
    rng = np.random.Generator(np.random.PCG64(0))
    files = []
    for i in range(count):
        left, top, scale = rng.uniform(0, 100), rng.uniform(0, 20), rng.uniform(0.75, 1)
        box = (left, top, left + 540 * scale, top + 405 * scale)
        buffer = io.BytesIO()
        sources[i % 2].resize((500, 375), PIL.Image.Resampling.BICUBIC, box=box).save(
            buffer, "jpeg", quality=90
        )
        files.append(buffer.getvalue())
    return files


def dataset(path: str, prepare: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]) -> tf.data.Dataset:
    """Returns the records of a file, prepared in parallel as training does it."""

    def load(index: tf.Tensor, serialized: tf.Tensor) -> tf.Tensor:
        return prepare(index, protos.parse_example(serialized)["image/encoded"])

    return prepared_batches(tf.data.TFRecordDataset(path).enumerate(), load, BATCH)


def consume(batches: Any) -> Callable[[], report.Timer]:
    """Returns a function that times a pass over the batches but for the first one.

    Before the first batch functions are compiled and workers start.
    """

    def consumed() -> report.Timer:
        iterator = iter(batches)
        next(iterator)
        with report.Timer() as timer:
            for _ in iterator:
                pass
        return timer

    return consumed


def decode(_: tf.Tensor, encoded: tf.Tensor) -> tf.Tensor:
    """Decodes the whole image, and does nothing else; returns its size for the batch."""
    return tf.shape(tf.io.decode_jpeg(encoded, channels=3))


def decode_box(index: tf.Tensor, encoded: tf.Tensor) -> tf.Tensor:
    """Decodes the random box, and no more; returns its size for the batch."""
    return tf.shape(decode_random_box(encoded, SIZE, tf.stack([index, 0])))


def plain(index: tf.Tensor, encoded: tf.Tensor) -> tf.Tensor:
    """Does everything but RandAugment; returns whole numbers."""
    return to_uint8(train_pixels(encoded, tf.stack([index, 0]), PLAIN))


def ours(preprocessing: Preprocessing) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """Returns our pipeline's function."""

    def prepare(index: tf.Tensor, encoded: tf.Tensor) -> tf.Tensor:
        return train_pixels(encoded, tf.stack([index, 0]), preprocessing)

    return prepare


def keras_cv_prepare() -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """Returns our crop and flip, followed by keras_cv's RandAugment."""
    import keras_cv

    layer = keras_cv.layers.RandAugment(
        value_range=(0, 255), augmentations_per_image=2, magnitude=0.5, rate=1.0
    )
    # Its Equalize needs AutoGraph, which our pipeline turns off. So it is traced here.
    augment = tf.function(layer).get_concrete_function(tf.TensorSpec([SIZE, SIZE, 3]))

    def prepare(index: tf.Tensor, encoded: tf.Tensor) -> tf.Tensor:
        # Its Equalize fails on what bicubic resizing leaves outside 0-255.
        return augment(
            tf.clip_by_value(train_pixels(encoded, tf.stack([index, 0]), PLAIN), 0.0, 255.0)
        )

    return prepare


def timm_loader(files: list[bytes]) -> Callable[[], report.Timer]:
    """Returns a pass by PIL, torchvision's crop and flip, and timm's RandAugment.

    Two workers of a torch DataLoader run it.
    """
    torch = load_torch()
    from timm.data.auto_augment import rand_augment_transform
    from torchvision import transforms

    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(SIZE, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(),
            rand_augment_transform("rand-m9-n2-p1.0", {"img_mean": (128, 128, 128)}),
            transforms.PILToTensor(),
        ]
    )

    class Images(torch.utils.data.Dataset):  # type: ignore[misc,name-defined]
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, index: int) -> Any:
            return transform(PIL.Image.open(io.BytesIO(files[index])).convert("RGB"))

    return consume(torch.utils.data.DataLoader(Images(), batch_size=BATCH, num_workers=2))


def examined(files: list[bytes]) -> Callable[[], None]:
    """Returns the check that preparation makes of each image."""
    return lambda: [examine(encoded) for encoded in files] and None


def main(images: int = 512) -> None:
    """Measures with at least `images` JPEG files and prints the lines."""
    files = photographs(max(2, -(-images // BATCH)) * BATCH)  # whole batches
    count = len(files) - BATCH
    with tempfile.TemporaryDirectory() as directory:
        path = str(Path(directory) / "images")
        records.write_shard(
            path, (protos.make_example(encoded, str(i)) for i, encoded in enumerate(files))
        )
        work: dict[str, Callable[[], Any]] = {
            "ours": consume(dataset(path, ours(NOISE))),
            "decode": consume(dataset(path, decode)),
            "box": consume(dataset(path, decode_box)),
            "plain": consume(dataset(path, plain)),
            "examine": examined(files[:-BATCH]),
            "keras_cv": consume(dataset(path, keras_cv_prepare())),
        }
        if all(importlib.util.find_spec(name) for name in ("torch", "torchvision", "timm")):
            work["timm"] = timm_loader(files)
        else:
            print(
                "torch, torchvision and timm are not installed, so their pipeline is not measured",
                file=sys.stderr,
            )
        for function in work.values():
            function()  # traces, and fills the page cache
        times = report.interleaved(ROUNDS, **work)
    alone = "decode_jpeg alone"
    lines: dict[str, tuple[str, str, str, float]] = {
        "decode": ("ours", "decode", alone, 0.55),
        "keras_cv": ("ours", "keras_cv", "keras_cv.layers.RandAugment", 2.5),
        "timm": ("ours", "timm", "PIL + timm, 2 workers", 1.5),
        "box": ("box", "decode", alone, 1.0),
        "plain": ("plain", "decode", alone, 0.55),
        "examine": ("examine", "decode", f"{alone}, on all cores", 0.25),
    }
    for name, (left, right, peer_name, goal) in lines.items():
        if right in times:
            (wall, cpu), (peer_wall, peer_cpu) = times[left], times[right]
            known = right != "timm"  # its workers' time is not this process's
            report.line(
                f"input_pipeline/{name}",
                count / wall,
                count / peer_wall,
                peer_name,
                goal=goal,
                unit="images/s",
                ours_cpu_ms=round(cpu / count * 1e3, 3),
                peer_cpu_ms=round(peer_cpu / count * 1e3, 3) if known else None,
                cpu_ratio=round(peer_cpu / cpu, 3) if known else None,
            )
