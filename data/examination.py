"""Examines the collections of a source, one image at a time, and keeps the findings."""

from __future__ import annotations

import array
import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from cli.errors import InputError
from cli.progress import progress
from data import fingerprint, formats
from data.draws import Usable
from data.duplicates import LOOK_UP, KnownImages
from data.examine import Examined, examine, other_kind
from data.remarks import Remarks
from data.repeats import HeldOutFilter
from data.sources import Collection, ordered_map

LOOK_AHEAD = 1000
"""Number of images in which to look for others of the kind that stops the stage."""


@dataclasses.dataclass
class Examination:
    """Findings so far of examining collections.

    Attributes:
      on_error: "fail" or "skip": what happens if a file is not an image.
      read_from: role -> fingerprint of what is read (see `data.fingerprint`); None if it has none.
        `content`, the digest of all images of a role, is added when they have been read.
      skipped: `file` and `why` of each image that cannot be used.
      remarks: role -> how many images are odd, by remark (see `data.remarks`).
      duplicates: images that were left out because they are, or look like, held-out ones.
    """

    on_error: str
    read_from: Mapping[str, Any]
    skipped: list[dict[str, str]] = dataclasses.field(default_factory=list)
    remarks: dict[str, Mapping[str, int]] = dataclasses.field(default_factory=dict)
    duplicates: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def usable(self, collection: Collection, role: str, detail: bool = True) -> Usable:
        """Returns the images that can be decoded, and what is known of each.

        Args:
          collection: the images.
          role: "labeled" or "test".
          detail: whether to keep the 4 kB an image for the finest comparison. Without them the
            thumbnails decide which images look alike.

        Raises:
          InputError: see `examined`.
        """
        indices, examined = [], []
        for index, image in self.examined(collection, role):
            indices.append(index)
            examined.append(image if detail else image._replace(detail=b""))
        return Usable(collection, indices, examined, np.arange(len(indices)))

    def unseen(self, collection: Collection, role: str, seen: KnownImages) -> Sequence[int]:
        """Returns the indices of the images that can be decoded and are not among those `seen`.

        Nothing else is kept of the images, so memory is 8 bytes an image. Raises InputError: see
        `examined`.
        """
        indices = array.array("q")
        unseen = HeldOutFilter(seen, role, len(collection.labels), self.duplicates)
        pairs = self.examined(collection, role)
        while block := list(itertools.islice(pairs, LOOK_UP)):
            found = [index for index, _ in block]
            indices.extend(
                found[place]
                for place in unseen.places(collection, found, [image for _, image in block])
            )
        return indices

    def examined(self, collection: Collection, role: str) -> Iterator[tuple[int, Examined]]:
        """Yields the index of each image that can be decoded, and what is known of it.

        Raises:
          InputError: `on_error` is "fail" and a file is not an image; or the images show nothing,
            see `data.remarks`.
        """
        odd = Remarks(
            role, collection.label_names if role == "labeled" else ()
        )  # other labels may be renumbered
        self.skipped.extend(dict(problem) for problem in collection.problems)
        total = len(collection.labels)
        kinds: Counter[str] = Counter()
        digest = fingerprint.Sum()
        read = fingerprint.content(digest, collection, collection.read(range(total)))
        results = ordered_map(_look_at, read)
        for index, (result, kind) in enumerate(progress(results, total, f"check {role}")):
            if not isinstance(result, str):
                odd.add(result, int(collection.labels[index]), collection.describe(index))
                yield index, result
                continue
            location = collection.describe(index)
            kinds.update([kind] if kind else [])
            if self.on_error == "fail":
                more = Counter(
                    kind for _, kind in itertools.islice(results, LOOK_AHEAD if kind else 0) if kind
                )
                others = (
                    f" (among the next {LOOK_AHEAD:,} images: {formats.in_words(more)})"
                    if more
                    else ""
                )
                remedy = (
                    "mend or remove it, or leave such files out with --config.data.on_error=skip"
                )
                raise InputError(f"{location}: {result}; {remedy}{others}")
            self.skipped.append({"file": location, "why": result})
            logging.info("skipped %s: %s", location, result)
        if kinds:
            logging.warning("--%s: %s", role, formats.passed_over(kinds, setting=True))
        odd.check_counts()
        self.remarks[role] = odd.counts()
        if self.read_from.get(role):
            self.read_from[role]["content"] = str(digest)


def _look_at(encoded: bytes | str) -> tuple[Examined | str, str]:
    """Examines an image; returns what is known, or why it cannot be used, and its `other_kind`."""
    result = encoded if isinstance(encoded, str) else examine(encoded)
    return result, other_kind(encoded) if isinstance(result, str) and isinstance(
        encoded, bytes
    ) else ""
