"""Tar archives: pools, WebDataset's shards, ImageNet's official files."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from collections import Counter

import numpy as np
import pytest
import scipy.io
import tensorflow as tf
from PIL import Image

from cli.errors import InputError
from data import prepare, sources
from data.archives import open_archives
from data.imagenet import open_imagenet
from data.preprocessing import Preprocessing, eval_image, train_image
from tests.data.recipes import config, encode, pixels, save


def tar(path, files: dict[str, bytes], mode: str = "w", **links: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for name, target in links.items():
            member = tarfile.TarInfo(name + ".png")
            member.type, member.linkname = tarfile.SYMTYPE, target
            archive.addfile(member)


@pytest.fixture
def folders(tmp_path):
    for label, name in enumerate("ab"):
        for i in range(5):
            save(tmp_path / "labeled" / name / f"{i}.png", 10 * label + i)
    return tmp_path


def opened(folders, source: str = "image_folder", **data):
    return prepare.open_source(config(source, **{"labeled": str(folders / "labeled"), **data}))


def test_a_pool_of_archives_is_read_in_place(folders):
    long = "d" * 120 + "/" + "e" * 120 + ".jpg"  # a name that needs its own headers
    tar(
        folders / "pool" / "p-0.tar",
        {"x/0.jpg": encode(pixels(50), "jpg"), "x/0.json": b"{}", long: encode(pixels(51), "jpg")},
    )
    tar(
        folders / "pool" / "p-1.tar",
        {"../../evil.png": encode(pixels(52)), "/etc/evil.png": encode(pixels(53))},
        evil="/etc/passwd",
    )
    before = {path for path in folders.rglob("*")}
    source = opened(folders, unlabeled=f"tar:{folders / 'pool'}")
    images = {image.key: image.encoded for image in source.splits()["unlabeled"]}
    assert images == {
        "p-0.tar/x/0.jpg": encode(pixels(50), "jpg"),
        f"p-0.tar/{long}": encode(pixels(51), "jpg"),
        "p-1.tar/../../evil.png": encode(pixels(52)),  # a name, and nothing else: no file is made
        "p-1.tar//etc/evil.png": encode(pixels(53)),
    }
    assert source.facts["ignored"]["--unlabeled"] == {"(link)": 1, ".json": 1}
    assert {path for path in folders.rglob("*")} == before and not os.path.exists("/etc/evil.png")


def test_hidden_files_and_hard_links_in_archives(folders):
    names = ("./x/1.png", "./x/._1.png", ".trash/2.png", "x/.hidden/3.png", "x/..4.png")
    tar(folders / "pool.tar", {name: encode(pixels(70 + i)) for i, name in enumerate(names)})
    with tarfile.open(folders / "pool.tar", "a") as archive:
        link = tarfile.TarInfo("x/5.png")
        link.type, link.linkname = tarfile.LNKTYPE, "./x/1.png"
        archive.addfile(link)
    source = opened(folders, unlabeled=f"tar:{folders / 'pool.tar'}")
    assert [image.key for image in source.splits()["unlabeled"]] == ["pool.tar/./x/1.png"]
    assert source.facts["ignored"]["--unlabeled"] == {"(hidden)": 4, "(link)": 1}


def test_names_in_archives_that_are_no_text(folders):
    odd = os.fsdecode(b"\xff")
    tar(folders / "pool.tar", {"x/0.png": encode(pixels(50)), f"x/{odd}.png": encode(pixels(51))})
    with pytest.raises(
        InputError,
        match=(
            r"pool\.tar: x/\\xff\.png: its name is not plain UTF-8; .* --config.data.on_error=skip"
        ),
    ):
        opened(folders, unlabeled=f"tar:{folders / 'pool.tar'}")
    source = opened(folders, unlabeled=f"tar:{folders / 'pool.tar'}", on_error="skip")
    assert len(source.splits()["unlabeled"]) == len(source.facts["skipped"]) == 1
    tar(
        folders / "l.tar",
        {
            f"{c}/{i}.png": encode(pixels(10 * j + i))
            for j, c in enumerate(["a", odd])
            for i in range(4)
        },
    )
    with pytest.raises(InputError, match=r"has a class folder \\xff, which is not plain UTF-8"):
        opened(
            folders,
            labeled=f"tar:{folders / 'l.tar'}",
            unlabeled=f"tar:{folders / 'pool.tar'}",
            on_error="skip",
        )
    (folders / "pool.tar").rename(folders / f"{odd}.tar")
    with pytest.raises(InputError, match=r"has a file .*\\xff\.tar whose name is not plain UTF-8"):
        opened(folders, unlabeled=f"tar:{folders}/*.tar")


@pytest.mark.skipif(
    not os.path.exists("/proc/self/mem"), reason="needs a file that cannot be read, whoever tries"
)
def test_archives_that_cannot_be_read(folders, imagenet):
    tar(folders / "pool" / "a.tar", {"0.png": encode(pixels(50))})
    os.symlink("/proc/self/mem", folders / "pool" / "b.tar")
    with pytest.raises(InputError, match=r"b\.tar cannot be read \(Input/output error\)"):
        opened(folders, unlabeled=f"tar:{folders / 'pool'}")
    source = opened(folders, unlabeled=f"tar:{folders / 'pool'}", on_error="skip")
    assert len(source.splits()["unlabeled"]) == len(source.facts["skipped"]) == 1
    (imagenet / "ILSVRC2012_img_train.tar").unlink()
    os.symlink("/proc/self/mem", imagenet / "ILSVRC2012_img_train.tar")
    with pytest.raises(
        InputError,
        match=r"has a ILSVRC2012_img_train.tar that cannot be read \(Input/output error\)",
    ):
        open_imagenet(sources.Request(str(imagenet), "labeled"))


def test_folders_of_archives_that_cannot_be_read(folders, imagenet, monkeypatch):
    """Uses a stand-in for the system call: the tests may run as root, who may read everything."""

    def forbidden(folder):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", forbidden)
    for location, function in ((folders, open_archives), (imagenet, open_imagenet)):
        with pytest.raises(
            InputError,
            match=(
                rf"--unlabeled: {location} cannot be read \(Permission denied\); check its"
                r" permissions"
            ),
        ):
            function(sources.Request(str(location), "unlabeled"))


def test_webdataset_with_classes(folders):
    files = {}
    for i in range(12):
        files[f"{i:04d}.seg.png" if i == 3 else f"{i:04d}.jpg"] = encode(
            pixels(i), "png" if i == 3 else "jpg"
        )
        files[f"{i:04d}.cls"] = b"%d\n" % (i % 3)
    tar(folders / "labeled.tar", files)
    tar(folders / "pool.tar", {f"{i}.png": encode(pixels(60 + i)) for i in range(3)})
    source = opened(
        folders, "tar", labeled=str(folders / "labeled.tar"), unlabeled=str(folders / "pool.tar")
    )
    assert source.label_names == ("0", "1", "2")
    for name in ("labeled", "test"):
        for image in source.splits()[name]:
            assert image.label == int(image.key.removeprefix("labeled.tar/")[:4]) % 3
    tar(folders / "labeled.tar", {**files, "zz.jpg": encode(pixels(99), "jpg")})
    with pytest.raises(
        InputError, match=r"zz.jpg has class .no .cls.; a number of at least 0 is needed"
    ):
        opened(
            folders,
            "tar",
            labeled=str(folders / "labeled.tar"),
            unlabeled=str(folders / "pool.tar"),
        )
    for number, message in (
        (b"2000000000", r"no image of class 3, but one of class 2000000000 \(.*zz.jpg\)"),
        (b"9" * 30, "zz.jpg has class 999"),
    ):
        tar(
            folders / "labeled.tar",
            {**files, "zz.jpg": encode(pixels(99), "jpg"), "zz.cls": number},
        )
        with pytest.raises(InputError, match=message):
            opened(
                folders,
                "tar",
                labeled=str(folders / "labeled.tar"),
                unlabeled=str(folders / "pool.tar"),
            )


def test_the_same_name_twice(folders):
    for name in ("one", "two"):
        tar(folders / name / "p.tar", {"0.png": encode(pixels(50))})
    with pytest.raises(
        InputError,
        match=(
            r"--unlabeled: two images have the key p.tar/0.png \(.*/one/p.tar: 0.png; .*/two/p.tar:"
            r" 0.png\)"
        ),
    ):
        opened(folders, unlabeled=f"tar:{folders}/*/p.tar")


def test_folders_in_archives_are_classes(folders):
    tar(
        folders / "l.tar",
        {
            f"data/{c}/{i}.png": encode(pixels(10 * j + i))
            for j, c in enumerate(["cat", "dog"])
            for i in range(4)
        },
    )
    source = opened(folders, labeled=f"tar:{folders / 'l.tar'}", unlabeled=str(folders / "labeled"))
    assert source.label_names == ("cat", "dog")
    assert Counter(image.label for image in source.splits()["labeled"]) == {0: 3, 1: 3}


def test_damaged_archives(folders):
    tar(folders / "pool" / "a.tar", {"0.png": encode(pixels(50)), "1.png": encode(pixels(51))})
    tar(folders / "pool" / "b.tar", {f"{i}.png": encode(pixels(60 + i)) for i in range(4)})
    path = folders / "pool" / "b.tar"
    content = bytearray(path.read_bytes())
    content[2048:] = (
        b"\1" * 3000
    )  # after two images of a header and a block each; what begins here is not a header
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"b\.tar is damaged or is not a tar archive"):
        opened(folders, unlabeled=f"tar:{folders / 'pool'}")
    source = opened(folders, unlabeled=f"tar:{folders / 'pool'}", on_error="skip")
    assert len(source.splits()["unlabeled"]) == 2 + 2
    assert {entry["file"].split(": ")[0] for entry in source.facts["skipped"]} == {str(path)}
    path.write_bytes(gzip.compress(bytes(content)))
    with pytest.raises(
        InputError, match=r"b\.tar is damaged or is not a tar archive .*; unpack it to \.tar first"
    ):
        opened(folders, unlabeled=f"tar:{folders / 'pool'}")


def test_compressed_archives_are_named(folders):
    tar(folders / "pool" / "a.tar.gz", {"0.png": encode(pixels(50))}, "w:gz")
    with pytest.raises(InputError, match=r"has no tar archives .*not compressed"):
        opened(folders, unlabeled=f"tar:{folders / 'pool'}")


# ImageNet's official files

SYNSETS = ("n02105855", "n01440764", "n03000000")  # in the competition's order, which is not theirs
TRUTH = (2, 1, 3, 3, 1)  # of the validation images, in the competition's numbers


def cmyk_jpeg(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).convert("CMYK").save(buffer, "jpeg", quality=95)
    return buffer.getvalue()


SMOOTH = np.asarray(Image.fromarray(pixels(3, (6, 5))).resize((60, 48), Image.Resampling.BICUBIC))


@pytest.fixture
def imagenet(tmp_path):
    outer: dict[str, bytes] = {}
    for j, synset in enumerate(SYNSETS):
        files = {
            f"{synset}_{i}.JPEG": encode(pixels(20 * j + i, (40, 50)), "jpg") for i in range(4)
        }
        if j == 0:
            files[f"{synset}_2933.JPEG"] = encode(SMOOTH)  # the PNG named .JPEG
            files[f"{synset}_77.JPEG"] = cmyk_jpeg(SMOOTH[::-1])
        tar(tmp_path / "inner.tar", files)
        outer[f"{synset}.tar"] = (tmp_path / "inner.tar").read_bytes()
    (tmp_path / "inner.tar").unlink()
    folder = tmp_path / "imagenet"
    tar(folder / "ILSVRC2012_img_train.tar", outer)
    names = [f"ILSVRC2012_val_{i + 1:08d}.JPEG" for i in range(len(TRUTH))]
    tar(
        folder / "ILSVRC2012_img_val.tar",
        {names[i]: encode(pixels(100 + i, (40, 50)), "jpg") for i in (3, 0, 4, 2, 1)},
    )
    kind = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O")]
    synsets = np.array(
        [[(i + 1, synset, "a word")] for i, synset in enumerate(SYNSETS)], dtype=kind
    )
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, {"synsets": synsets})
    truth = "".join(f"{number}\n" for number in TRUTH).encode()
    devkit = {
        "ILSVRC2012_devkit_t12/data/meta.mat": buffer.getvalue(),
        "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": truth,
    }
    tar(folder / "ILSVRC2012_devkit_t12.tar.gz", {**devkit, "../evil.txt": b"x"}, "w:gz")
    return folder


def test_imagenet_from_the_official_files(imagenet):
    before = {path for path in imagenet.parent.rglob("*")}
    source = prepare.open_source(
        config("imagenet", labeled=str(imagenet), test=str(imagenet), unlabeled=str(imagenet))
    )
    assert source.label_names == tuple(sorted(SYNSETS))
    splits = {name: list(split) for name, split in source.splits().items()}
    assert {name: len(split) for name, split in splits.items()} == {
        "labeled": 14,
        "unlabeled": 14,
        "test": 5,
    }
    for image in splits["labeled"]:
        assert image.key.split("/")[1].startswith(source.label_names[image.label] + "_")
    assert {image.label for image in splits["unlabeled"]} == {None}
    for image in splits["test"]:
        number = int(image.key[-13:-5])
        assert source.label_names[image.label] == SYNSETS[TRUTH[number - 1] - 1]
        assert image.encoded == encode(pixels(100 + number - 1, (40, 50)), "jpg")
    assert {path for path in imagenet.parent.rglob("*")} == before


def test_the_known_odd_files_are_decoded_right(imagenet):
    source = prepare.open_source(
        config("imagenet", labeled=str(imagenet), test=str(imagenet), unlabeled=str(imagenet))
    )
    images = {image.key.split("/")[1]: image.encoded for image in source.splits()["labeled"]}
    preprocessing = Preprocessing(48, style="imagenet")
    for name, expected in {
        "n02105855_2933.JPEG": SMOOTH,
        "n02105855_77.JPEG": SMOOTH[::-1],
    }.items():
        plain = eval_image(tf.constant(encode(np.ascontiguousarray(expected))), preprocessing)
        assert np.abs(eval_image(tf.constant(images[name]), preprocessing) - plain).mean() < 4
        assert train_image(tf.constant(images[name]), tf.constant([1, 2]), preprocessing).shape == (
            48,
            48,
            3,
        )


@pytest.mark.parametrize("place", [0.0, 0.3, 0.6, 0.99])
@pytest.mark.parametrize("how", ["cut", "flip"])
def test_a_damaged_devkit(imagenet, place, how):
    path = imagenet / "ILSVRC2012_devkit_t12.tar.gz"
    content = bytearray(path.read_bytes())
    at = int(place * len(content))
    content[at] ^= 64
    path.write_bytes(content[:at] if how == "cut" else content)
    with pytest.raises(
        InputError,
        match=r"--test: .* has a damaged ILSVRC2012_devkit_t12.tar.gz \(.*\); get it again",
    ) as caught:
        open_imagenet(sources.Request(str(imagenet), "test"))
    assert "\n" not in str(caught.value)


def test_a_devkit_that_is_another(imagenet):
    tar(
        imagenet / "ILSVRC2012_devkit_t12.tar.gz",
        {"data/meta.mat": b"x", "readme.txt": b"x"},
        "w:gz",
    )
    with pytest.raises(
        InputError,
        match=(
            r"damaged ILSVRC2012_devkit_t12.tar.gz .*it lacks"
            r" ILSVRC2012_validation_ground_truth.txt"
        ),
    ):
        open_imagenet(sources.Request(str(imagenet), "test"))


def test_incomplete_imagenet(imagenet):
    recipe = config("imagenet", labeled=str(imagenet), test=str(imagenet), unlabeled=str(imagenet))
    (imagenet / "ILSVRC2012_devkit_t12.tar.gz").rename(imagenet / "devkit")
    with pytest.raises(
        InputError,
        match=r"--test: .* has neither validation-00000-of-... nor ILSVRC2012_devkit_t12.tar.gz",
    ):
        prepare.open_source(recipe)
    (imagenet / "devkit").rename(imagenet / "ILSVRC2012_devkit_t12.tar.gz")
    tar(imagenet / "ILSVRC2012_img_val.tar", {"ILSVRC2012_val_00000001.JPEG": encode(pixels(0))})
    with pytest.raises(
        InputError, match=r"holds 1 images, but ILSVRC2012_devkit_t12.tar.gz lists 5"
    ):
        prepare.open_source(recipe)
