"""Kinds of files: images that can be read, images of other kinds, names never looked at.

The first bytes decide. A file is opened for them only if its name says nothing: its ending is
neither that of an image nor of a well-known other file. That costs one open and one read of 300
bytes: about 12 microseconds of CPU time if the file is in the page cache (`./run_benchmarks.sh
file_checks`), and a round trip or two on a network share. Imports only Python's own library.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

READABLE = ("JPEG", "PNG", "GIF", "BMP")
"""Kinds that TensorFlow decodes."""

CONVERTIBLE = {
    "WebP": "WEBP",
    "TIFF": "TIFF",
    "AVIF": "AVIF",
    "HEIC": "HEIF",
    "JPEG 2000": "JPEG2000",
    "BMP": "BMP",
}
"""Kinds that `data.convert` turns into PNG -> Pillow's names. BMP: only what TensorFlow cannot
read."""

ENDINGS = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".jfif", ".jpe")
"""Endings of names that are taken for images that can be read. Such files are not opened."""

HEAD = 300
"""Number of bytes at the start of a file that tell its kind."""

_OTHER_ENDINGS = {
    "WebP": ".webp",
    "TIFF": ".tif .tiff",
    "HEIC": ".heic .heif .hif",
    "AVIF": ".avif",
    "JPEG XL": ".jxl",
    "JPEG 2000": ".jp2 .j2k .jpx .jpf",
    "PSD": ".psd .psb",
    "SVG": ".svg .svgz",
    "camera raw": ".cr2 .cr3 .crw .nef .nrw .arw .srf .sr2 .dng .orf .rw2 .raf .pef .srw .3fr .iiq",
    "video": ".mp4 .m4v .mov .avi .mkv .webm .mpg .mpeg .wmv .mts .m2ts .3gp",
    "icon": ".ico .cur .icns",
    "portable pixmap": ".pbm .pgm .ppm .pnm .pfm",
    "OpenEXR": ".exr",
    "Targa": ".tga",
    "DICOM": ".dcm",
}
_OTHER = {ending: kind for kind, endings in _OTHER_ENDINGS.items() for ending in endings.split()}

_NEVER_ENDINGS = {
    "text and tables": (
        ".txt .json .jsonl .xml .csv .tsv .md .html .htm .css .js .log .yaml .yml .toml .ini .cfg"
        " .cls .url .lnk .xmp .aae"
    ),
    "programs": ".py .pyc .ipynb .sh .bat .exe .dll",
    "data": (
        ".npy .npz .pkl .mat .h5 .hdf5 .tfrecord .parquet .db .zip .tar .gz .tgz .bz2 .xz .7z .rar"
        " .pdf .doc .docx .xls .xlsx"
    ),
    "halves of files, and copies": ".tmp .part .crdownload .swp .bak .orig .thm",
}
_NEVER = frozenset(ending for endings in _NEVER_ENDINGS.values() for ending in endings.split())

_SYSTEM = frozenset(
    [
        *(
            "@eadir",
            "@tmp",
            "@sharebin",
            "@recycle",
            "@recently-snapshot",
            "@__thumb",
            "#recycle",
            "#snapshot",
        ),  # network storage
        *("__macosx", "network trash folder", "temporary items", "lost+found", "__pycache__"),
        *("$recycle.bin", "system volume information", "found.000"),
    ]
)
"""Folders that computers make by themselves: thumbnails, waste, copies. In lower case."""

_FTYP = {
    "AVIF": b"avif avis",
    "HEIC": b"heic heix heim heis hevc hevx mif1 msf1",
    "camera raw": b"crx ",
}
_BRANDS = {
    brand: kind
    for kind, brands in _FTYP.items()
    for brand in (brands[i : i + 4] for i in range(0, len(brands), 5))
}

_MAGIC = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"8BPS", "PSD"),
    (b"IIRO", "camera raw"),
    (b"IIRS", "camera raw"),
    (b"IIU\0", "camera raw"),
    (b"FUJIFILMCCD-RAW", "camera raw"),
    (b"\x1aE\xdf\xa3", "video"),
    (b"\x76\x2f\x31\x01", "OpenEXR"),
)


def kind_of(head: bytes) -> str:
    """Returns the kind of an image by its first `HEAD` bytes, such as "JPEG"; "" for none."""
    for start, kind in _MAGIC:
        if head.startswith(start):
            return kind
    if head[:4] == b"RIFF":
        return {b"WEBP": "WebP", b"AVI ": "video"}.get(head[8:12], "")
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12], "video")
    # Two letters are not enough for a BMP: its second header must have one of the known sizes.
    if head[:2] == b"BM" and head[14:18] in {
        bytes([size, 0, 0, 0]) for size in (12, 16, 40, 52, 56, 64, 108, 124)
    }:
        return "BMP"
    if head[128:132] == b"DICM":
        return "DICOM"
    if head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"<" and b"<svg" in head.lower():
        return "SVG"
    return ""


def ending_of(name: str) -> str:
    """Returns the part of a file name from its last dot on, in lower case; "" if there is none."""
    return os.path.splitext(name)[1].lower()


def kind_by_name(name: str) -> str | None:
    """Returns what a file's name alone says.

    Returns:
      "image" for an image that can be read, another kind's name, "" for no image; None: the bytes
      must decide.
    """
    ending = ending_of(name)
    if ending in ENDINGS:
        return "image"
    if ending in _NEVER or name.endswith("~"):
        return ""
    return _OTHER.get(ending)


def is_system(name: str) -> bool:
    """Tells whether a computer makes this folder by itself, such as `@eaDir` or a bin."""
    return name.lower() in _SYSTEM


def in_words(kinds: Mapping[str, int]) -> str:
    """Lists counts by kind, the largest first: "12 HEIC, 3 WebP"."""
    return ", ".join(
        f"{count:,} {kind}"
        for kind, count in sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
    )


def passed_over(kinds: Mapping[str, int], setting: bool = False) -> str:
    """Says that images cannot be read, by kind; "" if there are none.

    `setting`: whether to name the setting that converts them, if it can.
    """
    if not kinds:
        return ""
    text = (
        f"{in_words(kinds)} {'file is' if sum(kinds.values()) == 1 else 'files are'} skipped; "
        "convert them to JPEG or PNG"
    )
    can = any(kind in CONVERTIBLE or kind.startswith("BMP") for kind in kinds)
    return (
        f"{text}, or let them be converted with --config.data.convert=True"
        if setting and can
        else text
    )
