"""Images found again by their bytes, their pixels and their looks."""

from __future__ import annotations

import io

import numpy as np
import PIL.Image
import pytest
from sklearn.datasets import load_digits, load_sample_image

from data.duplicates import NEAR, KnownImages, identical, join_look_alikes
from data.examine import Examined, examine
from data.likeness import CORRELATION, DIFFERENCE, perceptual_hash, thumbnails_alike
from tests.data.recipes import encode, pixels


def saved(image: PIL.Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def examined(*images: np.ndarray) -> list[Examined]:
    results = [examine(encode(image)) for image in images]
    assert all(isinstance(result, Examined) for result in results)
    return results


def bits_between(one: bytes, other: bytes) -> int:
    return bin(int.from_bytes(one, "big") ^ int.from_bytes(other, "big")).count("1")


def crops(count: int) -> list[np.ndarray]:
    """Returns different pieces of two photographs."""
    photos = [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]
    rng = np.random.Generator(np.random.PCG64(7))
    result = []
    for i in range(count):
        top, left = rng.integers(0, 300), rng.integers(0, 500)
        result.append(photos[i % 2][top : top + 120, left : left + 140])
    return result


def test_the_hash_by_hand():
    image = np.repeat(
        np.arange(9, dtype=np.uint8)[None] * 20, 9, 0
    )  # lighter to the right, constant downwards
    assert perceptual_hash(PIL.Image.fromarray(image)) == b"\xff" * 8 + b"\0" * 8
    assert perceptual_hash(PIL.Image.fromarray(image.T)) == b"\0" * 8 + b"\xff" * 8


def test_scaled_and_recompressed_images_are_found_and_others_are_not():
    held_out, others = crops(40), crops(80)[40:]
    seen = KnownImages([str(i) for i in range(40)], examined(*held_out), near=True)
    changed = []
    for image in held_out:
        smaller = PIL.Image.fromarray(image).resize((100, 90), PIL.Image.Resampling.LANCZOS)
        result = examine(saved(smaller, "jpeg", quality=70))
        assert isinstance(result, Examined)
        changed.append(result)
    found = seen.find(changed)
    assert len(found) >= 37 and all(
        found[i]["of"] == str(i) and found[i]["bits"] >= 0 for i in found
    )
    assert seen.find(examined(*others)) == {}
    assert {
        i: entry["bits"] for i, entry in seen.find(examined(*held_out)).items()
    } == dict.fromkeys(range(40), -1)


def on_white(digit: np.ndarray) -> np.ndarray:
    """Draws a handwritten digit that fills half the side of a white image."""
    image = PIL.Image.new("L", (128, 128), 255)
    drawn = PIL.Image.fromarray(255 - np.rint(digit * 255 / 16).astype(np.uint8))
    image.paste(drawn.resize((64, 64), PIL.Image.Resampling.BICUBIC), (32, 32))
    return np.asarray(image.convert("RGB"))


def test_different_things_on_one_background_are_different():
    images = [on_white(digit) for digit in load_digits().images[:120]]
    held_out, known, others = images[:60], examined(*images[:60]), examined(*images[60:])
    assert all(
        min(bits_between(other.hash, one.hash) for one in known) <= NEAR for other in others
    )  # by the hash alone all would go
    seen = KnownImages([str(i) for i in range(60)], known, near=True)
    assert seen.find(others) == {}
    copies = [
        examine(saved(PIL.Image.fromarray(image).resize((100, 90)), "jpeg", quality=70))
        for image in held_out
    ]
    assert {i: entry["of"] for i, entry in seen.find(copies).items()} == {
        i: str(i) for i in range(60)
    }


def test_images_that_are_read_almost_black_are_not_compared_by_their_looks():
    black, other = examined(np.zeros((80, 80, 3), np.uint8), np.full((80, 80, 3), 1, np.uint8))
    assert KnownImages(["k"], [black], near=True).find([other])
    assert not KnownImages(["k"], [black], near=True).find([other._replace(remarks=("dim",))])


def test_plain_images_are_compared_by_their_means():
    gray = examined(*(np.full((80, 80, 3), level, np.uint8) for level in (100, 103, 140)))
    assert seen_bits(gray[0], *gray[1:]) == {0: 0}
    step = np.full((80, 80, 3), 100, np.uint8)
    step[40:] = 104
    assert seen_bits(gray[0], *examined(step)) == {}  # a picture that shows something is not plain


def seen_bits(one: Examined, *others: Examined) -> dict[int, str | int]:
    return {
        i: entry["bits"] for i, entry in KnownImages(["k"], [one], near=True).find(others).items()
    }


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
    np.testing.assert_array_equal(thumbnails_alike(ones, others, i, j)[0], expected)
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
    found = KnownImages([str(i) for i in range(300)], seen, near=True).find(pool)
    for i, candidate in enumerate(pool):
        distances = [bits_between(candidate.hash, one.hash) for one in seen]
        assert (i in found) == (min(distances) <= NEAR)
        if i in found:
            assert found[i]["bits"] == min(distances) == distances[int(found[i]["of"])]
    assert 200 < len(found) < 600


@pytest.mark.parametrize("size, near", [((64, 64), False), ((64, 63), True)])
def test_only_identical_files_where_looks_do_not_count(size, near):
    image, other = examined(pixels(0, size), pixels(1, size))
    seen = KnownImages(["k"], [image], near)
    assert seen.find([other, image]) == {1: {"of": "k", "bits": -1}}
    assert seen.find([image._replace(digest=b"x" * 16, pixels=b"x" * 16)]) == {}
    assert KnownImages([], [], near=True).find([image]) == {}


# Frames of one scene


def frame(
    scene: np.ndarray, number: int, place: tuple[int, int] = (60, 40), side: int = 20
) -> np.ndarray:
    """Draws a small digit before `scene`, with the noise of a sensor."""
    rng = np.random.Generator(np.random.PCG64([number, *place]))
    image = scene + rng.normal(0, 2, scene.shape)
    digit = PIL.Image.fromarray((load_digits().images[number] * 255 / 16).astype(np.uint8)).resize(
        (side, side)
    )
    image[place[0] : place[0] + side, place[1] : place[1] + side] = np.asarray(digit)[
        ..., np.newaxis
    ]
    return np.clip(image, 0, 255).astype(np.uint8)


def jpeg(image: np.ndarray, quality: int) -> Examined:
    result = examine(saved(PIL.Image.fromarray(image), "jpeg", quality=quality))
    assert isinstance(result, Examined)
    return result


@pytest.mark.parametrize("photo", ["china.jpg", "flower.jpg"])
def test_frames_of_a_camera_that_does_not_move_are_different_pictures(photo):
    scene = load_sample_image(photo)[100:300, 200:400].astype(float)
    held_out = [jpeg(frame(scene, number), 92) for number in range(10)]
    seen = KnownImages([str(i) for i in range(10)], held_out, near=True)
    others = [jpeg(frame(scene, number), 92) for number in range(10, 30)]
    assert all(
        min(bits_between(other.hash, one.hash) for one in held_out) <= NEAR for other in others
    )  # by the hash alone all would go
    assert seen.find(others) == {}
    again = [
        jpeg(frame(scene, number), 40) for number in range(10)
    ]  # the same frames, compressed anew
    assert {i: entry["of"] for i, entry in seen.find(again).items()} == {
        i: str(i) for i in range(10)
    }


def test_copies_of_photographs_are_found():
    images = crops(12)
    seen = KnownImages([str(i) for i in range(12)], examined(*images), near=True)
    changes = {
        "quality 30": lambda image: image,
        "half": lambda image: np.asarray(PIL.Image.fromarray(image).resize((70, 64))),
        "double": lambda image: np.asarray(PIL.Image.fromarray(image).resize((280, 240))),
        "cropped by 2 %": lambda image: image[1:-1, 2:],
    }
    for name, change in changes.items():
        found = seen.find(
            [jpeg(change(image), 30 if name == "quality 30" else 85) for image in images]
        )
        assert all(found[i]["of"] == str(i) for i in found) and len(found) >= 11, name


def test_the_same_pixels_in_another_format_are_identical():
    for size in ((12, 10), (80, 90)):
        image = PIL.Image.fromarray(pixels(3, size))
        kinds = [examine(saved(image, kind)) for kind in ("png", "bmp")]
        assert KnownImages(["k"], kinds[:1], near=False).find(kinds[1:]) == {
            0: {"of": "k", "bits": -1}
        }
        assert identical(kinds).first.tolist() == [0, 0]
    turned = [examine(encode(np.zeros(shape, np.uint8))) for shape in ((8, 16, 3), (16, 8, 3))]
    assert identical(turned).first.tolist() == [0, 1]


def test_groups_of_images_that_look_alike():
    images = crops(6)
    known = examined(*images, images[2])
    known += [jpeg(images[0], 50), jpeg(images[0], 80), jpeg(images[2], 60)]
    groups = identical(known)
    assert groups.first.tolist() == [0, 1, 2, 3, 4, 5, 2, 7, 8, 9]
    together, pairs = join_look_alikes(known, groups)
    assert together.first.tolist() == [0, 1, 2, 3, 4, 5, 2, 0, 0, 2]
    assert len(pairs) == together.repeated() - groups.repeated() == 3
