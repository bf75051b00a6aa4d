"""Digits and folders: the split of each image, and the messages about unusable folders."""

from __future__ import annotations

import io
import os
import unicodedata
from collections import Counter

import numpy as np
import PIL.Image
import pytest
from sklearn.datasets import load_digits

from cli.errors import InputError
from data import prepare, sources
from tests.data import recipes
from tests.data.recipes import save


def config(source: str, seed: int = 0, **data):
    ours = {"labeled_per_class": 5, "out_of_domain": 20} if source == "digits" else {}
    return recipes.config(source, seed, **{**ours, **data})


def digits(seed: int = 0, **data) -> dict[str, list[sources.Image]]:
    return {
        name: list(split)
        for name, split in prepare.open_source(config("digits", seed, **data)).splits().items()
    }


def keys(images) -> set[str]:
    return {image.key for image in images}


# Digits


def test_digits_are_all_there_once():
    splits = digits(validation_size=100, out_of_domain=30)
    assert {name: len(split) for name, split in splits.items()} == {
        "labeled": 50,
        "unlabeled": 1247 + 30,
        "test": 400,
        "validation": 100,
    }
    everything = [image.key for split in splits.values() for image in split]
    assert len(set(everything)) == len(everything)
    assert {key for key in everything if key.startswith("digits/")} == {
        f"digits/{i:05d}" for i in range(1797)
    }
    assert Counter(image.label for image in splits["labeled"]) == dict.fromkeys(range(10), 5)
    assert Counter(image.label for image in splits["test"]) == dict.fromkeys(range(10), 40)
    assert Counter(image.label for image in splits["validation"]) == dict.fromkeys(range(10), 10)
    assert {image.label for image in splits["unlabeled"]} == {None}


def test_digits_have_their_own_pixels_and_labels():
    loaded = load_digits()
    for image in digits()["test"]:
        index = int(image.key.split("/")[1])
        pixels = np.asarray(PIL.Image.open(io.BytesIO(image.encoded)))
        np.testing.assert_array_equal(pixels, np.rint(loaded.images[index] * 255 / 16))
        assert image.label == loaded.target[index]


def test_digits_are_a_function_of_the_seed_and_the_test_images_are_not():
    one, again, other = (
        digits(0, validation_size=50),
        digits(0, validation_size=50),
        digits(1, validation_size=50),
    )
    assert one == again
    assert one["test"] == other["test"]
    for name in ("labeled", "validation", "unlabeled"):
        assert keys(one[name]) != keys(other[name])
    assert keys(digits(0, test_seed=1)["test"]) != keys(one["test"])
    assert keys(digits(0, validation_size=0)["labeled"]) == keys(one["labeled"])


def test_uneven_counts_differ_by_one():
    counts = Counter(image.label for image in digits(test_size=403)["test"])
    assert sorted(counts.values()) == [40] * 7 + [41] * 3


def test_all_digits_labeled():
    splits = digits(labeled_per_class=None, validation_size=100)
    assert len(splits["labeled"]) == 1797 - 400 - 100
    assert len(splits["unlabeled"]) == 20


def test_out_of_domain_crops():
    pool = digits(out_of_domain=40)["unlabeled"]
    crops = [image for image in pool if not image.key.startswith("digits/")]
    assert keys(crops) == {
        f"{name}/{i:06d}" for i in range(40) for name in [("china.jpg", "flower.jpg")[i % 2]]
    }
    # Size and color type do not give the crops away: byte 25 of a PNG is its color type, 0 for
    # gray.
    assert {(image.encoded[16:24], image.encoded[25]) for image in pool} == {
        (b"\0\0\0\x08\0\0\0\x08", 0)
    }
    assert len({image.encoded for image in crops}) == 40
    places = [i for i, image in enumerate(pool) if not image.key.startswith("digits/")]
    assert min(places) < len(pool) / 4
    assert max(places) > len(pool) * 3 / 4  # mixed in, not appended


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"labeled_per_class": 200}, "labeled_per_class asks for 200 images of digit"),
        ({"test_size": 1790}, "test_size asks for 179 images of digit"),
        ({"validation_size": 1400}, "validation_size asks for"),
        ({"test_size": 0}, "test_size is 0"),
        ({"labeled": "/somewhere"}, "--labeled needs your own images"),
    ],
)
def test_digits_errors(data, message):
    with pytest.raises(InputError, match=message):
        digits(**data)


def test_unknown_source():
    with pytest.raises(InputError, match="it can be digits, image_folder"):
        prepare.open_source(config("cifar11"))


# Image folder


@pytest.fixture
def folders(tmp_path):
    """Writes two classes of 5 and 10 images, and 6 unlabeled images."""
    for name, first, count in (("cat", 10, 5), ("dog", 20, 10)):
        for i in range(count):
            save(tmp_path / "labeled" / name / f"{i}.png", first + i)
    for i in range(6):
        save(tmp_path / "unlabeled" / f"{i}.jpg", 30 + i)
    return tmp_path


def opened(folders, seed: int = 0, **data) -> sources.Source:
    data = {"labeled": str(folders / "labeled"), "unlabeled": str(folders / "unlabeled"), **data}
    return prepare.open_source(config("image_folder", seed, **data))


def all_keys(source: sources.Source) -> set[str]:
    return {image.key for split in source.splits().values() for image in split}


def split_keys(source: sources.Source) -> dict[str, list[str]]:
    return {name: sorted(image.key for image in split) for name, split in source.splits().items()}


def test_hold_out(folders):
    source = opened(folders, validation_size=3)
    assert source.label_names == ("cat", "dog")
    splits = {name: list(split) for name, split in source.splits().items()}
    counts = {name: Counter(image.label for image in split) for name, split in splits.items()}
    assert counts["test"] == {0: 1, 1: 2}  # a fifth of each
    assert counts["validation"] == {0: 1, 1: 2}  # 3 spread over 3 : 7 that can be spared
    assert counts["labeled"] == {0: 3, 1: 6}
    assert counts["unlabeled"] == {None: 6}
    everything = [image.key for name in ("labeled", "test", "validation") for image in splits[name]]
    assert len(set(everything)) == len(everything) == 15
    for image in splits["labeled"]:
        assert image.encoded == (folders / "labeled" / image.key).read_bytes()
        assert source.label_names[image.label] == image.key.split("/")[0]


def test_hold_out_is_the_same_for_every_seed(folders):
    one, again, other = opened(folders, 0), opened(folders, 0), opened(folders, 1)
    assert list(one.splits()["labeled"]) == list(again.splits()["labeled"])
    assert list(one.splits()["test"]) == list(other.splits()["test"])
    assert list(one.splits()["labeled"]) != list(other.splits()["labeled"])  # in another order
    assert split_keys(one) != split_keys(opened(folders, 0, test_seed=1))


def test_every_class_keeps_an_image_and_gives_one(folders):
    splits = {
        name: list(split) for name, split in opened(folders, test_fraction=0.999).splits().items()
    }
    assert Counter(image.label for image in splits["labeled"]) == {0: 1, 1: 1}
    splits = {
        name: list(split) for name, split in opened(folders, test_fraction=0.001).splits().items()
    }
    assert Counter(image.label for image in splits["test"]) == {0: 1, 1: 1}


def test_so_many_test_images_of_each_class(folders):
    splits = {
        name: list(split) for name, split in opened(folders, test_per_class=2).splits().items()
    }
    assert Counter(image.label for image in splits["test"]) == {0: 2, 1: 2}
    assert Counter(image.label for image in splits["labeled"]) == {0: 3, 1: 8}
    few = {
        "test_per_class": 2,
        "labeled_per_class": 1,
        "labeled_as_unlabeled": "rest",
        "unlabeled": None,
    }
    one, other = (split_keys(opened(folders, seed, **few)) for seed in (0, 3))
    assert one["test"] == other["test"] and one["labeled"] != other["labeled"]
    assert {name: len(keys) for name, keys in one.items()} == {
        "labeled": 2,
        "unlabeled": 9,
        "test": 4,
    }
    with pytest.raises(
        InputError, match=r"class cat has 5 usable images, too few for .*test_per_class=5"
    ):
        opened(folders, test_per_class=5)


def test_own_test_folder(folders):
    save(folders / "test" / "dog" / "a.png", 1)
    save(folders / "test" / "cat" / "a.png", 2)
    source = opened(folders, test=str(folders / "test"))
    assert {(image.key, image.label) for image in source.splits()["test"]} == {
        ("dog/a.png", 1),
        ("cat/a.png", 0),
    }
    assert len(source.splits()["labeled"]) == 15


def test_all_formats_nested_and_in_any_case(folders):
    names = ["a.JPG", "b.JPEG", "c/d.gif", "c/e/f.BMP", "c/e/g.Png"]
    for name in names:
        save(folders / "labeled" / "cat" / name, 100)
    assert {f"cat/{name}" for name in names} <= all_keys(opened(folders))


def test_other_files_are_ignored_and_counted(folders, caplog):
    for name in (
        "labeled/cat/notes.txt",
        "labeled/cat/Thumbs.db",
        "labeled/cat/x/README",
        "labeled/classes.csv",
    ):
        (folders / name).parent.mkdir(exist_ok=True)
        (folders / name).write_text("x")
    save(folders / "labeled" / ".trash" / "a.png")
    save(folders / "labeled" / "cat" / ".hidden.png")
    with caplog.at_level("INFO", "absl"):
        source = opened(folders)
    assert source.label_names == ("cat", "dog")
    assert sum(len(source.splits()[name]) for name in ("labeled", "test")) == 15
    assert source.facts["ignored"]["--labeled"] == {
        ".txt": 1,
        ".db": 1,
        "(no ending)": 1,
        "(outside the class folders)": 1,
        "(hidden)": 2,
    }
    assert "--labeled: ignored files that are not images by name or place: 6" in caplog.text


def test_unicode_names(folders):
    decomposed = unicodedata.normalize("NFD", "größe")
    save(folders / "labeled" / decomposed / f"{decomposed} 1.png")
    save(folders / "labeled" / decomposed / "日本.png", 1)
    source = opened(folders)
    assert source.label_names == ("cat", "dog", "größe")
    found = all_keys(source)
    assert {"größe/größe 1.png", "größe/日本.png"} <= found
    save(folders / "labeled" / decomposed / "größe 1.png")
    with pytest.raises(InputError, match="different Unicode forms"):
        opened(folders)


def test_symbolic_links_are_followed_but_not_in_circles(folders):
    save(folders / "elsewhere" / "z.png")
    os.symlink(folders / "elsewhere", folders / "labeled" / "cat" / "link")
    os.symlink(folders / "labeled" / "cat", folders / "labeled" / "cat" / "link2")
    os.symlink(folders / "labeled" / "cat" / "0.png", folders / "labeled" / "cat" / "same.png")
    found = all_keys(opened(folders))
    assert {key for key in found if key.startswith("cat/")} == {
        f"cat/{name}.png" for name in ["0", "1", "2", "3", "4", "link/z", "same"]
    }


def test_median_size(folders):
    for i in range(20):
        save(folders / "labeled" / "cat" / f"large{i}.png", size=(30, 50))
    source = opened(folders)
    assert (source.facts["median_height"], source.facts["median_width"]) == (30, 50)


def test_held_out_images_leave_an_overlapping_pool(folders):
    source = opened(folders, unlabeled=str(folders))
    test = {f"labeled/{key}" for key in split_keys(source)["test"]}
    assert len(test) == 3
    assert (
        set(split_keys(source)["unlabeled"])
        == {path.relative_to(folders).as_posix() for path in folders.rglob("*.*g")} - test
    )  # every image but the test's
    left_out = source.facts["held_out_images_left_out_of_unlabeled"]
    assert {entry["file"] for entry in left_out} == {str(folders / key) for key in test}
    assert {f"labeled/{entry['of']}" for entry in left_out} == test


def broken_files(folders) -> list[tuple[str, str]]:
    """Makes three files that are not images; returns (path, why)."""
    whole = (folders / "unlabeled" / "0.jpg").read_bytes()
    contents = {
        "labeled/cat/text.jpg": (b"not an image", "it is not a JPEG, PNG, GIF or BMP"),
        "labeled/dog/cut.jpg": (whole[: len(whole) * 2 // 3], "the image is damaged or cut off"),
        "unlabeled/empty.png": (b"", "the file is empty"),
    }
    for name, (content, _) in contents.items():
        (folders / name).write_bytes(content)
    return [(str(folders / name), why) for name, (_, why) in contents.items()]


def test_broken_files_are_errors(folders):
    for path, why in broken_files(folders):
        with pytest.raises(InputError) as caught:
            opened(folders)
        assert str(caught.value).startswith(f"{path}: {why}")
        assert "on_error=skip" in str(caught.value)
        os.unlink(path)
    opened(folders)


def test_broken_files_are_skipped_and_listed(folders):
    broken = broken_files(folders)
    source = opened(folders, on_error="skip")
    assert [entry["file"] for entry in source.facts["skipped"]] == [path for path, _ in broken]
    assert all(
        entry["why"].startswith(why) for entry, (_, why) in zip(source.facts["skipped"], broken)
    )
    assert {name: len(split) for name, split in source.splits().items()} == {
        "labeled": 12,
        "unlabeled": 6,
        "test": 3,
    }


def test_a_class_of_broken_files_is_an_error_even_when_they_are_skipped(folders):
    (folders / "labeled" / "ant").mkdir()
    (folders / "labeled" / "ant" / "a.png").write_bytes(b"")
    with pytest.raises(InputError, match="ant has no image that can be decoded"):
        opened(folders, on_error="skip")


def test_dangling_link_and_bytes_that_are_no_text(folders):
    os.symlink(folders / "nowhere", folders / "labeled" / "cat" / "gone.png")
    save(folders / "labeled" / "cat" / "x.png")
    os.rename(
        folders / "labeled" / "cat" / "x.png",
        os.fsencode(folders / "labeled" / "cat") + b"/\xff.png",
    )
    why = {
        entry["file"].rsplit("/", 1)[1]: entry["why"]
        for entry in opened(folders, on_error="skip").facts["skipped"]
    }
    assert why == {
        "gone.png": "it cannot be read: No such file or directory",
        "\\xff.png": "its name is not plain UTF-8",
    }


def remove(path) -> None:
    for child in sorted(path.rglob("*"), reverse=True):
        child.rmdir() if child.is_dir() else child.unlink()
    path.rmdir()


def keep_one(folder) -> None:
    for path in sorted(folder.iterdir())[1:]:
        path.unlink()


BAD = {
    "no --labeled": (lambda f: {"labeled": None}, "--labeled is missing"),
    "no --unlabeled": (lambda f: {"unlabeled": None}, "--unlabeled is missing"),
    "missing folder": (
        lambda f: {"labeled": str(f / "nowhere")},
        "--labeled: there is no folder .*/nowhere",
    ),
    "missing pool": (
        lambda f: {"unlabeled": str(f / "nowhere")},
        "--unlabeled: there is no folder .*/nowhere",
    ),
    "missing test": (
        lambda f: {"test": str(f / "nowhere")},
        "--test: there is no folder .*/nowhere",
    ),
    "a file": (lambda f: {"labeled": str(f / "unlabeled" / "0.jpg")}, "0.jpg is a file"),
    "no classes": (lambda f: {"labeled": str(f / "unlabeled")}, "no class folders"),
    "one class": (lambda f: remove(f / "labeled" / "dog"), r"only one class \(cat\)"),
    "empty class": (
        lambda f: (f / "labeled" / "ant").mkdir(),
        "the class folder .*/ant holds no images",
    ),
    "empty pool": (
        lambda f: remove(f / "unlabeled") or (f / "unlabeled").mkdir(),
        "unlabeled holds no images",
    ),
    "pool of another type": (
        lambda f: (
            [path.rename(path.with_suffix(".webp")) for path in (f / "unlabeled").iterdir()]
            and None
        ),
        r"holds no images .*only other files \(.webp 6\)",
    ),
    "single image": (
        lambda f: keep_one(f / "labeled" / "cat"),
        "cat has one usable image, so none can be held out for testing",
    ),
    "unknown test class": (
        lambda f: save(f / "test" / "cow" / "a.png") or {"test": str(f / "test")},
        "class cow, which --labeled lacks",
    ),
    "empty test": (
        lambda f: (f / "test" / "cat").mkdir(parents=True) or {"test": str(f / "test")},
        "--test: .* holds no images",
    ),
    "test is labeled": (
        lambda f: {"test": str(f / "labeled")},
        "names the same images as --labeled",
    ),
    "much validation": (
        lambda f: {"validation_size": 11},
        "validation_size is 11, but only 10 labeled images can be held out",
    ),
    "fraction": (lambda f: {"test_fraction": 1.0}, "test_fraction is 1.0"),
    "per class": (
        lambda f: {"labeled_per_class": 5},
        "labeled_per_class asks for 5 images of class cat; 4 are left",
    ),
    "no class": (lambda f: {"labeled_per_class": 0}, "labeled_per_class is 0"),
    "as unlabeled": (lambda f: {"labeled_as_unlabeled": "some"}, "it can be nothing, rest or all"),
    "nothing is unlabeled": (
        lambda f: {"unlabeled": None, "labeled_as_unlabeled": "rest"},
        "--unlabeled is missing",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_folders(folders, case):
    spoil, message = BAD[case]
    data = spoil(folders) or {}
    with pytest.raises(InputError, match=message) as caught:
        opened(folders, **data)
    assert "\n" not in str(caught.value)


def test_folder_without_permission(folders, monkeypatch):
    """Uses a stand-in for the system call: the tests may run as root, who may read everything."""
    scandir = os.scandir

    def forbidden(folder):
        if str(folder).endswith("dog"):
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", forbidden)
    with pytest.raises(
        InputError, match=r"dog cannot be read .Permission denied.; check its permissions"
    ):
        opened(folders)


def test_links_in_circles_and_names_too_long(folders):
    with pytest.raises(InputError, match=r"--unlabeled: .* cannot be read .File name too long."):
        opened(folders, unlabeled=str(folders / ("x" * 300)))
    os.symlink("circle", folders / "labeled" / "cat" / "circle")
    with pytest.raises(
        InputError,
        match=r"circle cannot be read .Too many levels of symbolic links.; mend or remove it",
    ):
        opened(folders)


def test_a_pool_that_only_looks_like_the_test(folders):
    x, y = np.meshgrid(np.arange(80), np.arange(80))
    waves = np.stack([128 + 60 * np.sin(x / 9 + k) * np.cos(y / 11) for k in range(3)], -1).astype(
        np.uint8
    )
    for name, ending in (("test/cat/a", "png"), ("test/dog/b", "png"), ("pool/a", "jpg")):
        (folders / name).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(waves if name.endswith("a") else waves.transpose(1, 0, 2)).save(
            folders / f"{name}.{ending}"
        )
    data = {"test": str(folders / "test"), "unlabeled": str(folders / "pool")}
    with pytest.raises(
        InputError,
        match=(
            r"1 were left out .*pool/a.jpg, for cat/a.png.; .* --config.data.near_duplicates=False"
        ),
    ):
        opened(folders, **data)
    assert len(opened(folders, near_duplicates=False, **data).splits()["unlabeled"]) == 1


def test_a_version_of_a_data_set_is_no_format():
    assert sources.split_location("cifar10:3.0.2/train", "tfds") == ("tfds", "cifar10:3.0.2/train")
    assert sources.split_location("tfds:cifar10:3.*.*/train", "image_folder") == (
        "tfds",
        "cifar10:3.*.*/train",
    )
    assert sources.absolute("tfds:cifar10:3.0.2/train", "tfds") == "cifar10:3.0.2/train"
    assert sources.split_location("cifar10:/data/3.0.2/x", "tfds") == ("cifar10", "/data/3.0.2/x")


# The thread pool


def test_ordered_map_keeps_order_and_holds_few_results():
    started = []

    def square(x: int) -> int:
        started.append(x)
        return x * x

    results = sources.ordered_map(square, range(1000), threads=2)
    assert [next(results) for _ in range(3)] == [0, 1, 4]
    assert len(started) <= 3 + 4 * 2
    assert list(results) == [x * x for x in range(3, 1000)]
