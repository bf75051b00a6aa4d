"""Reads the EXIF orientation of an image file, without decoding it and without any package.

Training, evaluation and exported models read pixels as they are stored. Preparation and the clients
say so where a camera asks to turn or mirror its image.
"""

from __future__ import annotations


def orientation(encoded: bytes) -> int:
    """Returns the EXIF orientation of a JPEG or PNG file.

    Returns:
      2 to 8 where the picture is to be turned or mirrored, else 1.
    """
    tiff = _exif(encoded)
    if tiff[:4] not in (b"II*\0", b"MM\0*"):
        return 1

    def number(place: int, size: int) -> int:
        return int.from_bytes(tiff[place : place + size], "little" if tiff[:1] == b"I" else "big")

    tags = number(4, 4)
    for place in range(tags + 2, tags + 2 + 12 * min(number(tags, 2), 1000), 12):
        if number(place, 2) == 0x0112:
            value = number(place + 8, 2)
            return value if 2 <= value <= 8 else 1
    return 1


def _exif(encoded: bytes) -> bytes:
    """Returns the EXIF part of a JPEG or PNG file; empty where it has none."""
    if encoded[:2] == b"\xff\xd8":
        place = 2
        while encoded[place : place + 1] == b"\xff" and encoded[place + 1 : place + 2] not in (
            b"\xda",
            b"\xd9",
            b"",
        ):
            end = place + 2 + int.from_bytes(encoded[place + 2 : place + 4], "big")
            if encoded[place + 1] == 0xE1 and encoded[place + 4 : place + 10] == b"Exif\0\0":
                return encoded[place + 10 : end]
            place = end
    elif encoded[:4] == b"\x89PNG":
        place = 8
        while place + 12 <= len(encoded):
            end = place + 8 + int.from_bytes(encoded[place : place + 4], "big")
            if encoded[place + 4 : place + 8] == b"eXIf":
                return encoded[place + 8 : end]
            place = end + 4  # after the checksum
    return b""
