"""Images that show nothing, or too little, are counted; where most do, that is an error."""

from __future__ import annotations

import numpy as np
import PIL.Image
import pytest

from cli.errors import InputError
from data import prepare, sources
from tests.data.recipes import config, pixels


def write(path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(image).save(path)


@pytest.fixture
def folders(tmp_path):
    for i in range(6):
        for role in ("labeled/a", "labeled/b", "unlabeled"):
            write(tmp_path / role / f"{i}.png", pixels(100 * len(role) + 10 * ord(role[-1]) + i))
    return tmp_path


def opened(folders) -> sources.Source:
    return prepare.open_source(
        config(
            "image_folder", labeled=str(folders / "labeled"), unlabeled=str(folders / "unlabeled")
        )
    )


def icon(shade: int, color: int = 0) -> np.ndarray:
    """Returns an icon with its shape in the alpha channel alone."""
    return np.dstack([np.full((12, 10, 3), color, np.uint8), pixels(shade)[..., 0]])


def test_a_few_odd_images_are_counted_and_told(folders, caplog):
    write(folders / "unlabeled/transparent.png", icon(1))
    write(folders / "unlabeled/night.png", np.zeros((12, 10, 3), np.uint8))
    write(folders / "unlabeled/12_bits.png", (pixels(3)[..., 0].astype(np.uint16) * 16))
    write(folders / "unlabeled/16_bits.png", (pixels(3)[..., 0].astype(np.uint16) * 256))
    with caplog.at_level("WARNING", "absl"):
        source = opened(folders)
    assert source.facts["remarks"] == {
        "--labeled": {},
        "--unlabeled": {"dim": 1, "plain": 1, "transparent": 1},
    }
    for line in (
        "transparent.png); training and the exported model compose them over white",
        "night.png); check the files",
        "12_bits.png); scale their values",
    ):
        assert "--unlabeled: 1 of 10 images" in caplog.text and line in caplog.text


def test_images_to_be_turned_are_counted_and_told(folders, caplog):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.fromarray(pixels(5)).save(folders / "unlabeled/camera.jpg", exif=exif)
    with caplog.at_level("WARNING", "absl"):
        assert opened(folders).facts["remarks"]["--unlabeled"] == {"exif_orientation": 1}
    assert (
        "--unlabeled: 1 of 7 images carry an EXIF orientation that turns or mirrors them (first: "
        in caplog.text
    )


def test_images_of_other_kinds_under_a_wrong_name_are_counted(folders, caplog):
    for i in range(3):
        PIL.Image.fromarray(pixels(i)).save(folders / f"unlabeled/{i}.png", "webp")
    PIL.Image.fromarray(pixels(4)).quantize(9).save(folders / "unlabeled/3.png", "bmp")
    with pytest.raises(
        InputError,
        match=(
            r"0.png: it is not a JPEG.* it is WebP.*\(among the next 1,000 images: 2 WebP, 1 BMP"
            r" with a table"
        ),
    ) as caught:
        opened(folders)
    assert "\n" not in str(caught.value)
    recipe = config(
        "image_folder",
        labeled=str(folders / "labeled"),
        unlabeled=str(folders / "unlabeled"),
        on_error="skip",
    )
    with caplog.at_level("WARNING", "absl"):
        assert len(prepare.open_source(recipe).facts["skipped"]) == 4
    assert (
        "--unlabeled: 3 WebP, 1 BMP with a table of colors files are skipped; convert them to"
        " JPEG or PNG" in caplog.text
    )


def test_icons_in_the_alpha_channel_are_images(folders):
    for path in folders.rglob("*.png"):
        write(path, icon(int(path.stem) + 100 * ord(path.parts[-2][-1])))
    assert opened(folders).facts["remarks"] == {
        "--labeled": {"transparent": 12},
        "--unlabeled": {"transparent": 6},
    }


ODD = {
    "white shapes over white": (
        lambda i: icon(i, 255),
        "are plain: .* are transparent and are composed over white",
    ),
    "black": (
        lambda i: np.zeros((12, 10), np.uint8),
        "images are plain: all pixels of an image have one value",
    ),
    "8 bits in 16": (lambda i: pixels(i)[..., 0].astype(np.uint16), "images are plain"),
    "12 bits in 16": (
        lambda i: pixels(i)[..., 0].astype(np.uint16) * 16,
        "at most 14 of the 16 bits.*; scale their values",
    ),
}


@pytest.mark.parametrize("where", ["labeled", "unlabeled"])
@pytest.mark.parametrize("case", ODD)
def test_most_images_are_odd(folders, case, where):
    make, message = ODD[case]
    for i, path in enumerate(sorted((folders / where).rglob("*.png"))[:-1]):
        write(path, make(i))
    with pytest.raises(InputError, match=f"--{where}: .*{message}") as caught:
        opened(folders)
    assert "\n" not in str(caught.value)


def test_a_class_of_plain_images(folders):
    for path in (folders / "labeled/b").iterdir():
        write(path, np.full((12, 10, 3), int(path.stem), np.uint8))
    with pytest.raises(
        InputError, match=r"--labeled: 6 of 12 images are plain.*; class b has no other images"
    ):
        opened(folders)


def test_all_images_alike(folders):
    for path in (folders / "unlabeled").iterdir():
        write(path, pixels(1))
    with pytest.raises(
        InputError, match="--unlabeled: all 6 images have the same pixels once they are decoded"
    ):
        opened(folders)
