"""Selects which pseudo-labeled images to keep, and how often: exact counts, in a stream.

The corpus is a sequence of shards, each a mapping with the columns

    classes     int   [n]  predicted class, 0-based
    confidence  float32 [n]  probability of that class, in (threshold, 1]
    hash        uint64 [n]  pseudo-random number of the image, a function of (seed, key)

The corpus is read several times over and never held as a whole: memory is classes × bins. The
result depends on the set of images only, not on their order or on how they are cut into shards.

Method: a radix selection finds the n-th smallest of the b-bit numbers of each class. It counts the
numbers by their leading digit, finds the digit of the n-th number, and goes on with the numbers
that share this digit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

Shard = Mapping[str, np.ndarray]
Words = Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]]
"""Each call starts a new pass over (classes [n], values uint64 [n]) of every shard."""

HISTOGRAM_ENTRIES = 2**22
"""Bound on classes × bins; 32 MB of int64."""

_ONE = np.float32(1.0).view(np.uint32)  # non-negative floats are ordered like their bit patterns


def confidence_rank(confidence: np.ndarray) -> np.ndarray:
    """Ranks confidences: float32 [n] in [0, 1] -> uint32 [n].

    Confidence 1 has rank 0, and a lower confidence has a larger rank. Only equal floats have equal
    ranks.
    """
    return _ONE - confidence.view(np.uint32)


def smallest(
    words: Words, wanted: np.ndarray, bits: int, total: int
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the values below which the `wanted` smallest ones of each class lie.

    Args:
      words: the values of all shards, each below 2**bits.
      wanted: int [K], number of values wanted of each class; 0 leaves a class out.
      bits: 1 to 64.
      total: about how many values there are; few need no large histogram.

    Returns:
      cut: uint64 [K]. The values <= cut are the `wanted` smallest, except where there are ties.
      ties: int64 [K]. Where not 0, more values equal the cut than are wanted: take all values < cut
        and `ties` of the values == cut.

    Raises:
      ValueError: a class has fewer values than wanted.
    """
    cut, ties = np.zeros(len(wanted), np.uint64), np.zeros(len(wanted), np.int64)
    rows = np.flatnonzero(wanted)  # the classes still searched; (R,)
    need = np.asarray(wanted, np.int64)[rows]  # of the values that share the prefix; (R,)
    prefix = np.zeros(len(rows), np.uint64)  # the leading bits of the cut; (R,)
    remaining = bits
    while len(rows) and remaining:
        digit = min(remaining, _digit_bits(len(rows), total))
        histogram = _digit_histogram(
            words, len(wanted), rows, None if remaining == bits else prefix, remaining, digit
        )
        up_to = np.cumsum(histogram, axis=1)  # (R, bins)
        if np.any(up_to[:, -1] < need):
            raise ValueError("more values wanted than there are")
        # The first bin that completes the wanted number; (R,).
        bins = np.argmax(up_to >= need[:, None], axis=1)
        inside = histogram[np.arange(len(rows)), bins]
        need = need - (up_to[np.arange(len(rows)), bins] - inside)
        prefix = (prefix << np.uint64(digit)) | bins.astype(np.uint64)
        remaining -= digit
        bin_fits = inside == need  # all of that bin is wanted: cut at its upper end
        cut[rows[bin_fits]] = (
            (prefix[bin_fits] + np.uint64(1)) << np.uint64(remaining)
        ) - np.uint64(1)
        rows, need, prefix = rows[~bin_fits], need[~bin_fits], prefix[~bin_fits]
    cut[rows], ties[rows] = prefix, need
    return cut, ties


def _digit_bits(num_rows: int, total: int) -> int:
    """Returns how many bits to look at in one pass.

    The histogram is then neither large in itself nor large beside the number of values counted.
    """
    entries = min(HISTOGRAM_ENTRIES, max(total, 2**12))
    return min(16, max(1, (entries // num_rows).bit_length() - 1))


def _digit_histogram(
    words: Words,
    num_classes: int,
    rows: np.ndarray,
    prefix: np.ndarray | None,
    remaining: int,
    digit: int,
) -> np.ndarray:
    """Counts the next `digit` bits of the values that begin with their class's prefix.

    Returns:
      int64 (R, 2**digit), a row for each class of `rows`.
    """
    row_of = np.full(num_classes, -1, np.int64)
    row_of[rows] = np.arange(len(rows))
    histogram = np.zeros(len(rows) << digit, np.int64)
    for classes, values in words():
        # Shifts of a narrow type are cheaper, and mixed types would end as float.
        kind = values.dtype.type
        row = row_of[classes]
        inside = row >= 0
        if prefix is not None:
            inside &= (values >> kind(remaining)) == prefix.astype(kind)[row]
        index = row[inside] << digit
        index += ((values[inside] >> kind(remaining - digit)) & kind((1 << digit) - 1)).astype(
            np.int64
        )
        if len(index) * 8 > len(histogram):
            histogram += np.bincount(index, minlength=len(histogram))
        else:  # few records must not pay for a pass over all the bins
            np.add.at(histogram, index, 1)
    return histogram.reshape(len(rows), 1 << digit)


@dataclasses.dataclass(frozen=True)
class Selection:
    """The number of times each image is used, as a function of its class, confidence and hash.

    Attributes:
      rank_cut: uint32 [K], confidence rank of the last image kept.
      tie_cut: uint64 [K], largest hash kept among the images of exactly that rank.
      kept: int64 [K], number of images kept.
      repeats: int64 [K], copies of each image kept.
      extra: int64 [K], number of kept images that get one copy more.
      extra_cut: uint64 [K], largest hash of the images with one copy more.
    """

    rank_cut: np.ndarray
    tie_cut: np.ndarray
    kept: np.ndarray
    repeats: np.ndarray
    extra: np.ndarray
    extra_cut: np.ndarray

    @property
    def totals(self) -> np.ndarray:
        """Returns the number of images with their copies, int64 [K]."""
        return self.kept * self.repeats + self.extra

    def keeps(self, shard: Shard) -> np.ndarray:
        """Tells which images of the shard are used at all, bool [n]."""
        classes, rank = shard["classes"], confidence_rank(shard["confidence"])
        rank_cut = self.rank_cut[classes]
        return (rank < rank_cut) | ((rank == rank_cut) & (shard["hash"] <= self.tie_cut[classes]))

    def copies(self, shard: Shard) -> np.ndarray:
        """Returns how often each image of the shard is used, int64 [n]; 0 if it is dropped."""
        classes = shard["classes"]
        once_more = (self.extra[classes] > 0) & (shard["hash"] <= self.extra_cut[classes])
        return np.where(self.keeps(shard), self.repeats[classes] + once_more, 0)

    def record_copies(self, shard: Shard, num_records: int) -> np.ndarray:
        """Returns how often each record of a shard is used, int64 [num_records].

        The column `position` says which records the other columns are about.
        """
        copies = np.zeros(num_records, np.int64)
        copies[shard["position"]] = self.copies(shard)
        return copies


def select(
    shards: Iterable[Shard],
    counts: np.ndarray,
    images_per_class: int | np.ndarray | None,
    threshold: float = 0.0,
    most: np.ndarray | None = None,
) -> Selection:
    """Balances the classes (Noisy Student, section 3.1, "Unlabeled dataset").

    A class with more than `images_per_class` images keeps the most confident ones. Among equally
    confident images it keeps those of the smallest hash.

    A class of n < images_per_class images keeps all, floor(images_per_class / n) times each. It
    keeps images_per_class mod n of them, those of the smallest hash, once more. These counts are
    exact, where the release draws at random.

    Args:
      shards: iterated over anew in every pass; columns are read only where needed.
      counts: int [K], images of each class in all the shards.
      images_per_class: target for every class that has any image, or int [K], a target of each
        class's own, at least 1; None keeps each image once.
      threshold: no confidence is below it; a good bound saves a pass.
      most: int [K], largest number of images of each class, applied before the target; at least 1
        for a class with images. None: no such limit.

    Raises:
      ValueError: two images of a class have the same hash (and, if it matters, the same
        confidence) at a cut. The counts could not be exact.
    """
    counts = np.asarray(counts, np.int64)
    num_classes = len(counts)
    kept = counts if most is None else np.minimum(counts, most)
    few = np.zeros(num_classes, bool)  # filled up with copies
    if images_per_class is not None:
        targets = np.broadcast_to(images_per_class, num_classes)
        few = (kept > 0) & (kept < targets)
        kept = np.minimum(kept, targets)
    rank_cut, tie_cut = (
        np.full(num_classes, 2**32 - 1, np.uint32),
        np.full(num_classes, 2**64 - 1, np.uint64),
    )  # keep everything
    capped = kept < counts
    if capped.any():
        bits = max(1, int(confidence_rank(np.array([threshold], np.float32))[0]).bit_length())
        cut, ties = smallest(
            lambda: _ranks(shards), np.where(capped, kept, 0), bits, int(counts.sum())
        )
        rank_cut[capped] = cut[capped]
        tied = ties > 0
        if tied.any():
            cut, ties = smallest(
                lambda: _hashes(shards, tied, rank_cut), ties, 64, int(counts[tied].sum())
            )
            _require_no_ties(ties)
            tie_cut[tied] = cut[tied]

    repeats, extra, extra_cut = (
        np.ones(num_classes, np.int64),
        np.zeros(num_classes, np.int64),
        np.zeros(num_classes, np.uint64),
    )
    if images_per_class is not None:
        repeats[few], extra[few] = np.divmod(targets[few], kept[few])
    chosen = Selection(rank_cut, tie_cut, kept, repeats, extra, extra_cut)
    if extra.any():
        cut, ties = smallest(
            lambda: _kept_hashes(shards, extra > 0, chosen), extra, 64, int(kept[extra > 0].sum())
        )
        _require_no_ties(ties)
        chosen = dataclasses.replace(chosen, extra_cut=cut)
    return chosen


@dataclasses.dataclass(frozen=True)
class Sample(Selection):
    """A selection with some of its records drawn at random.

    An image's copies are drawn each by itself. `kept` counts the images with a record that is
    drawn.

    Attributes:
      cut: records with a number (`_records`) up to this are drawn.
      drawn: int64 [K], number of records drawn.
    """

    cut: int
    drawn: np.ndarray

    @property
    def totals(self) -> np.ndarray:
        """Returns the number of records drawn, int64 [K]."""
        return self.drawn

    def copies(self, shard: Shard) -> np.ndarray:
        """Returns how many records of each image are drawn, int64 [n]."""
        drawn = np.zeros(len(shard["hash"]), np.int64)
        for rows, numbers in _records(shard["hash"], super().copies(shard)):
            drawn[rows] += numbers <= np.uint64(self.cut)
        return drawn


def sample(shards: Iterable[Shard], chosen: Selection, records: int) -> Sample:
    """Draws exactly `records` of a selection's records (Noisy Student, first version, A.3).

    Copies count as records.

    Args:
      shards: the shards given to `select`.
      chosen: what `select` returned.
      records: how many, from 1 to all of them.

    Raises:
      ValueError: `chosen` has fewer records, or two of them have the same number at the cut.
    """
    total, num_classes = int(chosen.totals.sum()), len(chosen.kept)
    cuts, ties = smallest(lambda: _numbers(shards, chosen), np.array([records]), 64, total)
    _require_no_ties(ties)
    found = Sample(**vars(chosen), cut=int(cuts[0]), drawn=np.zeros(num_classes, np.int64))
    kept, drawn = np.zeros(num_classes, np.int64), np.zeros(num_classes, np.int64)
    for shard in shards:
        classes, copies = shard["classes"], found.copies(shard)
        kept += np.bincount(classes[copies > 0], minlength=num_classes)
        np.add.at(drawn, classes, copies)
    return dataclasses.replace(found, kept=kept, drawn=drawn)


def _numbers(shards: Iterable[Shard], chosen: Selection) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the numbers of all records of a selection, as one class."""
    for shard in shards:
        hashes = shard["hash"]
        for rows, numbers in _records(hashes, chosen.copies(shard)):
            yield np.zeros(len(rows), np.int64), numbers


def _records(hashes: np.ndarray, copies: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the images that have a first record, a second, …, with a pseudo-random number of each.

    The number is SplitMix64's of (hash, which copy) (Steele et al. 2014). It is independent of the
    hash, which orders the images for `select`.
    """
    rows, copy = np.flatnonzero(copies), 1
    while len(rows):
        mixed = hashes[rows] + np.uint64(copy * 0x9E3779B97F4A7C15 % 2**64)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
        yield rows, mixed ^ (mixed >> np.uint64(31))
        rows, copy = rows[copies[rows] > copy], copy + 1


def _ranks(shards: Iterable[Shard]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for shard in shards:
        yield shard["classes"], confidence_rank(shard["confidence"])


def _hashes(
    shards: Iterable[Shard], chosen: np.ndarray, rank: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the hashes of the chosen classes' images with exactly that confidence rank."""
    for shard in shards:
        classes = shard["classes"]
        wanted = chosen[classes] & (confidence_rank(shard["confidence"]) == rank[classes])
        if wanted.any():
            yield classes[wanted], shard["hash"][wanted]


def _kept_hashes(
    shards: Iterable[Shard], chosen: np.ndarray, selection: Selection
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the hashes of the chosen classes' images that are kept."""
    for shard in shards:
        classes = shard["classes"]
        wanted = chosen[classes]
        if wanted.any():
            wanted &= selection.keeps(shard)
            yield classes[wanted], shard["hash"][wanted]


def _require_no_ties(ties: np.ndarray) -> None:
    if ties.any():
        raise ValueError(
            f"class {int(np.argmax(ties > 0))}: several images have the same hash; take another"
            " seed"
        )


def shared_values(sorted_shards: Iterable[np.ndarray], window: int = 2**22) -> Iterator[int]:
    """Yields the values that occur more than once, in or across shards.

    Memory is three times `window` values.

    Args:
      sorted_shards: uint64 [n], ascending, evenly spread as hashes are. They are iterated over anew
        for every window, and each shard is let go before the next. Memory-mapped arrays will do.
      window: how many values to look at together.
    """
    sizes = [len(values) for values in sorted_shards]
    parts = max(1, -(-sum(sizes) // window))
    starts = [0] * len(sizes)
    for part in range(1, parts + 1):
        below = (part << 64) // parts  # the last part ends at 2**64, past uint64
        pieces = []
        for shard, values in enumerate(sorted_shards):
            end = len(values) if part == parts else int(np.searchsorted(values, np.uint64(below)))
            # A copy: a view would keep the file open.
            pieces.append(np.array(values[starts[shard] : end]))
            starts[shard] = end
        window_values = np.concatenate(pieces)
        window_values.sort()
        yield from np.unique(window_values[1:][window_values[1:] == window_values[:-1]]).tolist()
