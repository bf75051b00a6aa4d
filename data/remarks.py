"""Counts what is odd about the images of one role, and refuses a role if its images show nothing.

`data.examine` says what is odd about one image. A few such images are only counted: `summary.json`
has the numbers under `remarks`, and the log has one line for each remark.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from absl import logging

from cli.errors import InputError
from data.examine import DIM, PLAIN, TRANSPARENT, TURNED, Examined

WORDS = {
    TRANSPARENT: (
        "have transparent pixels",
        "training and the exported model compose them over white",
    ),
    PLAIN: ("are plain: all pixels of an image have one value", "check the files"),
    TURNED: (
        "carry an EXIF orientation that turns or mirrors them",
        (
            "training and serving read the pixels as stored; turn the files, for instance with "
            "mogrify -auto-orient"
        ),
    ),
    DIM: (
        "are 16-bit PNG files that use at most 14 of the 16 bits, and are read too dark",
        "scale their values to 0-65535, or save them with 8 bits",
    ),
}
"""Remark -> what is said of the images that have it, and what follows from it."""

_ALIKE_FROM = 4
"""Number of images that must show the same pixels before that is an error: two or three may be
copies in a tiny folder."""


class Remarks:
    """Remarks on the images of one role, counted one image at a time in constant memory.

    Args:
      role: "labeled", "unlabeled", "test" or "pseudo_labeled".
      label_names: name of each class; () if unknown.
    """

    def __init__(self, role: str, label_names: Sequence[str]) -> None:
        self._role, self._label_names = role, label_names
        self._counts: Counter[str] = Counter()
        self._first: dict[str, str] = {}
        self._total = 0
        self._of_class: Counter[int] = Counter()
        self._plain_of_class: Counter[int] = Counter()
        self._plain_transparent = 0
        self._pixels: bytes | None = None
        self._alike = True

    def add(self, image: Examined, label: int, where: str) -> None:
        """Counts an image of class `label` (-1: unknown), found at `where`."""
        self._total += 1
        self._of_class[label] += 1
        for remark in image.remarks:
            self._counts[remark] += 1
            self._first.setdefault(remark, where)
        if PLAIN in image.remarks:
            self._plain_of_class[label] += 1
            self._plain_transparent += TRANSPARENT in image.remarks
        self._pixels = image.pixels if self._pixels is None else self._pixels
        self._alike &= image.pixels == self._pixels

    def counts(self) -> Mapping[str, int]:
        """Number of images of each remark."""
        return dict(sorted(self._counts.items()))

    def check_counts(self) -> None:
        """Logs the counts, one line each.

        Raises:
          InputError: more than half of the images, or all images of a class with several, are
            plain; all images are equal; more than half are 16-bit PNG files that use few of their
            bits.
        """
        flag, total = f"--{self._role}", self._total
        for remark in (PLAIN, DIM):
            if self._counts[remark] * 2 > total > 1:
                raise InputError(self._line(remark))
        for label, name in enumerate(self._label_names):
            if self._plain_of_class[label] == self._of_class[label] > 1:
                raise InputError(f"{self._line(PLAIN)}; class {name} has no other images")
        if self._alike and total >= _ALIKE_FROM:
            raise InputError(
                f"{flag}: all {total:,} images have the same pixels once they are decoded; check"
                " the files"
            )
        for remark in self._counts:
            logging.warning("%s", self._line(remark))

    def _line(self, remark: str) -> str:
        what, mend = WORDS[remark]
        if remark == PLAIN and self._plain_transparent:
            mend = (
                f"{self._plain_transparent:,} of them are transparent and are composed over white; "
                "give them another background"
            )
        count = f"{self._counts[remark]:,} of {self._total:,} images"
        return f"--{self._role}: {count} {what} (first: {self._first[remark]}); {mend}"
