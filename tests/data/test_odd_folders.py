"""Odd folders and archives: files other than images, and roots that hold splits."""

from __future__ import annotations

import io
import os
import socket
import tarfile

import PIL.Image
import pytest

from cli.errors import InputError
from cli.json_files import write_json
from data import split_names
from data.archives import open_archives
from data.image_folder import open_folder
from data.sources import Request
from tests.data.recipes import encode, pixels, save


def folder(root, role: str = "labeled"):
    return open_folder(Request(str(root), role))


def archive(path, files: dict[str, bytes], role: str = "labeled"):
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        pipe = tarfile.TarInfo("pipe.jpg")
        pipe.type = tarfile.FIFOTYPE
        tar.addfile(pipe)
    return open_archives(Request(str(path), role))


def keys(images) -> set[str]:
    return {images.key(i) for i in range(len(images.labels))}


@pytest.fixture
def labeled(tmp_path):
    for name in ("cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png"):
        save(tmp_path / "labeled" / name)
    return tmp_path / "labeled"


SYSTEM = (
    "@eaDir/0.png/SYNOPHOTO_THUMB_M.jpg",
    "__MACOSX/a.jpg",
    "lost+found/a.png",
    "$RECYCLE.BIN/a.png",
    "#recycle/a.png",
)
HIDDEN = (
    "._0.png",
    ".thumbnails/a.png",
    ".ipynb_checkpoints/a.png",
    ".AppleDouble/0.png",
    ".DS_Store",
)


def test_what_computers_leave_in_folders_is_passed_over_and_counted(labeled):
    for name in (*SYSTEM, *HIDDEN):
        for place in ("", "cat/"):
            (labeled / place / name).parent.mkdir(parents=True, exist_ok=True)
            (labeled / place / name).write_bytes(encode(pixels(1), "jpg"))
    expected = {
        "(@eaDir)": 2,
        "(__MACOSX)": 2,
        "(lost+found)": 2,
        "($RECYCLE.BIN)": 2,
        "(#recycle)": 2,
        "(hidden)": 10,
    }
    images = folder(labeled)
    assert images.label_names == ("cat", "dog") and len(images.labels) == 4
    assert images.ignored == expected
    pool = folder(labeled, "unlabeled")
    assert (keys(pool), pool.ignored) == (keys(images), expected)


def test_what_computers_leave_in_archives_is_passed_over_and_counted(tmp_path):
    names = [f"data/{place}{name}" for place in ("", "cat/") for name in (*SYSTEM, *HIDDEN)]
    files = {
        name: encode(pixels(1), "jpg") for name in (*names, "data/cat/0.jpg", "data/dog/0.jpg")
    }
    expected = {f"({name.partition('/')[0]})": 2 for name in SYSTEM} | {
        "(hidden)": 10,
        "(named pipe)": 1,
    }
    images = archive(tmp_path / "a.tar", files)
    assert images.label_names == ("cat", "dog") and images.ignored == expected
    assert archive(tmp_path / "b.tar", files, "unlabeled").ignored == expected


ODD_NAMES = ("a.jfif", "b.jpe", "no_ending", "c.jpg_large", "d.JPG.1", "e.img")


def test_the_bytes_decide_where_the_name_says_nothing(labeled, tmp_path):
    contents = {name: encode(pixels(1), "jpg") for name in ODD_NAMES}
    contents |= {
        "README": b"This is text.",
        "f.dat": b"BM and more text",
        "empty": b"",
        "g.txt": encode(pixels(1), "jpg"),
    }
    for name, content in contents.items():
        (labeled / "cat" / name).write_bytes(content)
    images = folder(labeled)
    assert keys(images) == {f"cat/{name}" for name in (*ODD_NAMES, "0.png", "1.png")} | {
        "dog/0.png",
        "dog/1.png",
    }
    assert images.ignored == {"(no ending)": 2, ".dat": 1, ".txt": 1}
    packed = archive(
        tmp_path / "a.tar",
        {f"cat/{name}": content for name, content in contents.items()},
        "unlabeled",
    )
    assert keys(packed) == {f"a.tar/cat/{name}" for name in ODD_NAMES}


def test_a_class_of_other_files_says_what_it_holds(labeled):
    for path in (labeled / "dog").iterdir():
        path.rename(path.with_suffix(".docx"))
    with pytest.raises(
        InputError, match=r"the class folder .*/dog holds no images, only other files \(.docx 2\)"
    ):
        folder(labeled)


def test_images_of_other_kinds_are_counted_by_kind(labeled, tmp_path, caplog):
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels(1)).save(buffer, "webp")
    contents = {
        "a.webp": buffer.getvalue(),
        "b.HEIC": b"x",
        "c.heif": b"x",
        "photo": buffer.getvalue(),
        "d.tif": b"",
        "e.CR2": b"",
    }
    for name, content in contents.items():
        (labeled / "cat" / name).write_bytes(content)
    with caplog.at_level("WARNING", "absl"):
        folder(labeled)
        archive(
            tmp_path / "a.tar",
            {f"cat/{name}": content for name, content in contents.items()}
            | {"x.png": encode(pixels(2))},
            "unlabeled",
        )
    line = "2 HEIC, 2 WebP, 1 TIFF, 1 camera raw files are skipped; convert them to JPEG or PNG"
    assert f"--labeled: {line}" in caplog.text and f"--unlabeled: {line}" in caplog.text


def test_what_is_no_regular_file_is_passed_over_and_counted(labeled):
    os.mkfifo(labeled / "cat" / "pipe.jpg")
    os.mkfifo(labeled / "cat" / "pipe")
    os.symlink(labeled / "cat" / "pipe", labeled / "cat" / "link.png")
    os.symlink("/dev/zero", labeled / "cat" / "zero.png")
    os.symlink("nowhere", labeled / "cat" / "gone")
    os.symlink(labeled, labeled / "cat" / "loop")
    with socket.socket(socket.AF_UNIX) as server:
        place = os.getcwd()
        os.chdir(labeled / "cat")  # the path of a socket must be short
        try:
            server.bind("s.png")
        finally:
            os.chdir(place)
    images = folder(labeled)
    assert (
        len(images.labels) == 4 + 2
    )  # the loop leads to the root, and from there to dog/, but not to cat/ again
    assert images.ignored == {
        "(named pipe)": 3,
        "(socket)": 1,
        "(device)": 1,
        "(broken link)": 1,
        "(link in a circle)": 1,
    }


def test_a_pipe_that_takes_a_files_place_is_not_waited_for(labeled):
    images = folder(labeled)
    path = labeled / "cat" / "0.png"
    path.unlink()
    os.mkfifo(path)
    assert next(images.read([0])) == "it cannot be read: it is not a regular file"


def test_work_directories_below_a_source_are_passed_over(labeled, caplog):
    finished, preparing, evaluation = (labeled / name for name in ("cat/run", "w", "report"))
    for directory, names in (
        (finished, ("config.json", "summary.json")),
        (evaluation, ("report.html", "summary.json")),
    ):
        save(directory / "figures" / "confusion.png")
        for name in names:
            write_json(directory / name, {})
    write_json(preparing / "config.json", {"seed": 0, "data": {}})
    save(preparing / "test" / "not_ours.png")
    with caplog.at_level("WARNING", "absl"):
        assert (
            keys(folder(labeled))
            == keys(folder(labeled, "unlabeled"))
            == {f"{c}/{i}.png" for c in ("cat", "dog") for i in (0, 1)}
        )
    assert folder(labeled).ignored == {"(work directory)": 3}
    assert f"{finished} is the work directory of a run, so it is skipped" in caplog.text
    write_json(labeled / "dog" / "config.json", {"color": "brown"})  # a folder of the user's
    assert folder(labeled).label_names == ("cat", "dog")


# Roots that hold splits


def tree(root, *names: str):
    for i, name in enumerate(names):
        save(root / name / f"{i}.png")
    return root


SPLIT_ROOTS = {
    "train, val, test": (
        [f"{s}/{c}" for s in ("train", "val", "test") for c in "ab"],
        "the subfolders a, b; name .*/train as --labeled and .*/test as",
    ),
    "other names": (
        ["images_train/a", "images_train/b", "images_valid/a", "images_valid/b"],
        "name .*/images_train as --labeled and .*/images_valid",
    ),
    "numbers": (
        ["train2017/a", "val2017/a"],
        "name .*/train2017 as --labeled and .*/val2017 as --test",
    ),
    "capitals": (["Training/x/a", "Testing/x/a"], "named as splits"),
    "this project's own": (["all/a", "labeled/a", "test/a"], "as --test"),
    "labeled and unlabeled": (["labeled/a", "unlabeled/a"], "/labeled as --labeled"),
    "the data set's name": (["birds_train/a", "birds_test/a"], "named as splits"),
    "without classes": (["train", "test"], "sort the images of each into folders"),
    "with another folder": (
        ["train/a", "train/b", "test/a", "test/b", "unlabeled"],
        "with the subfolders a, b",
    ),
    "deeper": (
        ["flowers/train/a", "flowers/test/a"],
        "has only one class .flowers.; if the classes are test, train",
    ),
}


@pytest.mark.parametrize("case", SPLIT_ROOTS)
def test_roots_of_splits_are_refused(tmp_path, case):
    names, message = SPLIT_ROOTS[case]
    with pytest.raises(InputError, match=f"--labeled: .*{message}") as caught:
        folder(tree(tmp_path, *names))
    assert "\n" not in str(caught.value)


WARNED = {
    "two classes of three": (
        ["train", "test", "bus"],
        "the class folders test, train are named as splits",
    ),
    "any folders with the same subfolders": (
        ["fold1/a", "fold1/b", "fold2/a", "fold2/b"],
        "has the same subfolders (a, b)",
    ),
    "splits in each class": (
        ["cat/train", "cat/test", "dog/train", "dog/test"],
        "images in folders of several splits (test, train)",
    ),
}


@pytest.mark.parametrize("case", WARNED)
def test_roots_that_may_be_wrong_are_warned_of(tmp_path, case, caplog):
    names, message = WARNED[case]
    with caplog.at_level("WARNING", "absl"):
        assert len(folder(tree(tmp_path, *names)).labels) == len(names)
    assert message in caplog.text


@pytest.mark.parametrize(
    "names",
    [
        ["train", "bus", "car"],
        ["test 1", "test 2"],
        ["positive_test", "negative_test"],
        ["a/originals", "b/originals"],
        ["a/x", "b"],
    ],
)
def test_other_roots_are_taken_as_they_are(tmp_path, names, caplog):
    with caplog.at_level("WARNING", "absl"):
        assert len(folder(tree(tmp_path, *names)).labels) == len(names)
    assert not caplog.text


def test_splits_in_archives(tmp_path, caplog):
    image = encode(pixels(1))
    with pytest.raises(
        InputError, match=r"a\.tar has class folders that are named as splits \(test, train\)"
    ):
        archive(tmp_path / "a.tar", {"train/0.png": image, "test/1.png": image})
    with caplog.at_level("WARNING", "absl"):
        archive(
            tmp_path / "b.tar",
            {"x/train/cat/0.png": image, "x/test/cat/1.png": image, "x/train/dog/1.png": image},
        )
    assert "--labeled: there are images in folders of several splits (test, train)" in caplog.text


def test_words_of_splits():
    assert split_names.splits_among(["trainA", "trainB", "testA"]) == {
        "train": "trainA",
        "test": "testA",
    }
    assert split_names.splits_among(["valid", "invalid"]) == {"validation": "valid"}
    assert split_names.splits_among(["train_cat", "test_dog"]) == {}
