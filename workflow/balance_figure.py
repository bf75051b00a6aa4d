"""The picture that filter & balance leaves: how many images each class has, before and after."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np

BALANCED = ("above the threshold", "after balancing")


def figure(
    above: np.ndarray,
    totals: np.ndarray,
    label_names: Sequence[str],
    legend: tuple[str, str] = BALANCED,
) -> bytes:
    """Returns a PNG of images per class before and after balancing.

    Args:
      above: int [K], images above the threshold.
      totals: int [K], records written, copies included.
      label_names: K names.
      legend: names of the two.
    """
    from matplotlib.figure import Figure  # here: the loop imports this module to check settings

    plot = Figure(figsize=(8, 4), layout="constrained")
    axes = plot.subplots()
    many = len(above) > 40
    order = np.argsort(-above, kind="stable") if many else np.arange(len(above))
    x = np.arange(len(above))
    if many:  # bars would be thinner than a pixel
        axes.step(x, above[order], where="mid", label=legend[0])
        axes.step(x, totals[order], where="mid", label=legend[1])
        axes.set_xlabel(f"class, by images {legend[0]}")
    else:
        axes.bar(x - 0.2, above, 0.4, label=legend[0])
        axes.bar(x + 0.2, totals, 0.4, label=legend[1])
        axes.set_xticks(
            x, label_names, parse_math=False, rotation=90 if max(map(len, label_names)) > 3 else 0
        )
    axes.set_ylabel("pseudo-labeled images")
    axes.legend()
    buffer = io.BytesIO()
    plot.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
