"""All rows of all papers, and how many of them have which verdict. Needs no TensorFlow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from experiments.papers import first_version, meta_pseudo_labels, noisy_student
from experiments.papers.row import VERDICTS, Row

CHAPTERS: Mapping[str, tuple[Row, ...]] = {
    "Noisy Student (Xie et al. 2020)": noisy_student.ROWS,
    "Its first version, for what the appendix of the second one no longer has": first_version.ROWS,
    "Meta Pseudo Labels (Pham et al. 2021)": meta_pseudo_labels.ROWS,
}
"""Paper -> its rows."""


def counts(chapters: Mapping[str, tuple[Row, ...]]) -> str:
    """Returns how many rows have which verdict, and how many numbers are compared, in words."""
    rows = [row for part in chapters.values() for row in part]
    verdicts = Counter(row.verdict for row in rows)
    compared = {
        repr((row.commands, numbers)): len(numbers.values)
        for row in rows
        for numbers in row.numbers
    }
    named = ", ".join(f"{verdicts[verdict]} {verdict}" for verdict in VERDICTS)
    return f"{len(rows)} rows: {named}; {sum(compared.values())} numbers compared with the papers'"
