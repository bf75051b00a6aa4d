"""Kinds of files by their first bytes and by their names."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import PIL.Image
import pytest

from cli.exif import orientation
from cli.files import read_file
from data import formats
from data.formats import HEAD, kind_by_name, kind_of

IMAGE = PIL.Image.linear_gradient("L").resize((20, 10))


def saved(kind: str, mode: str = "RGB", **options) -> bytes:
    buffer = io.BytesIO()
    IMAGE.convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


KINDS = {
    "JPEG": saved("jpeg"),
    "PNG": saved("png"),
    "GIF": saved("gif"),
    "BMP": saved("bmp"),
    "BMP with a palette": saved("bmp", "P"),
    "WebP": saved("webp"),
    "TIFF": saved("tiff"),
    "big-endian TIFF": b"MM\0*\0\0\0\x08",
    "JPEG 2000": saved("jpeg2000"),
    "JPEG 2000 without a box": b"\xff\x4f\xff\x51\0",
    "JPEG XL": b"\xff\x0a\xfa\x7f",
    "JPEG XL in a box": b"\0\0\0\x0cJXL \r\n\x87\n\0",
    "AVIF": b"\0\0\0\x20ftypavif\0\0\0\0avifmif1",
    "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    "camera raw": b"\0\0\0\x18ftypcrx \0\0\0\1",
    "video": b"\0\0\0\x18ftypisom\0\0\2\0",
    "PSD": b"8BPS\0\1",
    "SVG": b'<?xml version="1.0"?>\n<!-- drawn -->\n<svg xmlns="http://www.w3.org/2000/svg">',
    "": b"BM is how this text begins, and it is no BMP",
}


@pytest.mark.parametrize("case", KINDS)
def test_the_first_bytes_tell_the_kind(case):
    known = ("BMP with a palette", "big-endian TIFF", "JPEG 2000 without a box", "JPEG XL in a box")
    expected = {
        name: name.removesuffix(" with a palette").removeprefix("big-endian ") for name in known
    }.get(case, case)
    assert kind_of(KINDS[case][:HEAD]) == expected.removesuffix(" without a box").removesuffix(
        " in a box"
    )


@pytest.mark.parametrize(
    "head", [b"", b"\xff\xd8", b"hello", bytes(300), b"<html>", b"RIFF\0\0\0\0WAVE"]
)
def test_other_bytes_are_no_image(head):
    assert kind_of(head) == ""


def test_names_tell_what_they_can():
    assert [kind_by_name(name) for name in ("a.JPG", "a.jfif", "a.b.jpe", "a.bmp")] == ["image"] * 4
    assert [kind_by_name(name) for name in ("a.webp", "a.HEIC", "a.cr2", "a.mov")] == [
        "WebP",
        "HEIC",
        "camera raw",
        "video",
    ]
    assert [kind_by_name(name) for name in ("a.txt", "Thumbs.db", "a.jpg~", "a.jpg.part")] == [
        ""
    ] * 4
    assert [kind_by_name(name) for name in ("a", "a.jpg_large", "a.JPG.1", "a.dat")] == [None] * 4


def test_folders_that_computers_make():
    made = (
        "@eaDir",
        "__MACOSX",
        "lost+found",
        "$RECYCLE.BIN",
        "$Recycle.Bin",
        "System Volume Information",
        "#recycle",
    )
    assert all(map(formats.is_system, made))
    assert not any(map(formats.is_system, ("recycled", "lost", "macosx", "system", "recycle")))


def test_the_line_about_what_is_passed_over():
    assert (
        formats.passed_over({"WebP": 3, "HEIC": 12})
        == "12 HEIC, 3 WebP files are skipped; convert them to JPEG or PNG"
    )
    assert (
        formats.passed_over({"TIFF": 1}).startswith("1 TIFF file is skipped")
        and formats.passed_over({}) == ""
    )


def test_the_module_needs_pythons_library_alone():
    """Tests that a client without TensorFlow can use the module."""
    code = (
        "import runpy, sys; runpy.run_path(sys.argv[1]); sys.exit(any(m in sys.modules for m in"
        " ('tensorflow', 'numpy', 'PIL')))"
    )
    assert subprocess.run([sys.executable, "-c", code, formats.__file__]).returncode == 0


def test_only_regular_files_are_read(tmp_path):
    (tmp_path / "a").write_bytes(b"0123456789")
    os.symlink(tmp_path / "a", tmp_path / "link")
    os.mkfifo(tmp_path / "pipe")
    os.symlink(tmp_path / "pipe", tmp_path / "link_to_pipe")
    assert (read_file(tmp_path / "a"), read_file(tmp_path / "link", 4)) == (b"0123456789", b"0123")
    for name, why in (
        ("pipe", "not a regular file"),
        ("link_to_pipe", "not a regular file"),
        (".", "directory"),
        ("gone", "No such file"),
    ):
        with pytest.raises(OSError, match=why):
            read_file(tmp_path / name)
    with pytest.raises(OSError, match="not a regular file"):
        read_file("/dev/zero")


def turned(kind: str, value: int, **options) -> bytes:
    exif = PIL.Image.Exif()
    exif[0x010E], exif[0x0112] = "a description", value
    return saved(kind, exif=exif, **options)


@pytest.mark.parametrize("kind", ["jpeg", "png"])
@pytest.mark.parametrize("value", range(10))
def test_the_orientation_is_the_files(kind, value):
    assert orientation(
        turned(kind, value, **({"comment": b"x" * 500} if kind == "jpeg" else {}))
    ) == (value if 2 <= value <= 8 else 1)


def test_files_without_an_orientation_are_upright():
    big_endian = b"MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\x08\0\0\0\0\0\0"
    with_it = b"\xff\xd8\xff\xe1\0\x22Exif\0\0" + big_endian + saved("jpeg")[2:]
    assert orientation(with_it) == 8
    for encoded in (*KINDS.values(), b"", *(with_it[:end] for end in range(30))):
        assert orientation(encoded) == 1
