"""Finds the CPU's kind, and sets whether TensorFlow runs on oneDNN, Intel's library of kernels.

TensorFlow 2.15 and 2.21 turn oneDNN on by themselves only if the CPU has instructions for neural
networks (AVX-512 VNNI and the like). `./run_benchmarks.sh processor` measures oneDNN on CPUs
without them. With AVX2 alone, photographs train and are labeled about twice as fast with oneDNN.
But its filter gradient of a depthwise convolution is slow on maps of one pixel. B0 reduces images
of 32 pixels to such maps.

Importing this module needs no TensorFlow. TensorFlow reads its environment variable once, at
import.
"""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cli.json_files import read_json
from training import architectures, resolve

VARIABLE = "TF_ENABLE_ONEDNN_OPTS"
SMALLEST_MAP = 1
"""Side in pixels up to which maps of depthwise convolutions are slow with AVX2 alone."""

_SETS = (("avx512f", "AVX-512"), ("avx2", "AVX2"))


@functools.cache
def _cpu() -> tuple[str, str]:
    """Returns (model name, instruction set).

    The instruction set is AVX-512, AVX2, or "" for others and where Linux does not tell.
    """
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or platform.machine(), ""
    # The rows of the first core.
    rows = dict(line.partition(":")[::2] for line in reversed(text.splitlines()))
    values = {key.strip(): value.strip() for key, value in rows.items()}
    flags = values.get("flags", "").split()
    return values.get("model name", platform.machine()), next(
        (name for flag, name in _SETS if flag in flags), ""
    )


def instructions() -> str:
    """Returns the newest vector instructions that oneDNN may use: "AVX-512", "AVX2", or "".

    "" means neither of the two.
    """
    found = _cpu()[1]
    # This variable imitates another CPU.
    limited = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper().startswith("AVX2")
    return "AVX2" if found and limited else found


def machine() -> dict[str, Any]:
    """Returns what a measurement was made on: `cpu`, `instructions`, `cores`, `onednn`."""
    return {
        "cpu": _cpu()[0],
        "instructions": instructions(),
        "cores": os.cpu_count(),
        "onednn": os.environ.get(VARIABLE, "default"),
    }


def choose(config: Mapping[str, Any] | None, data: str | os.PathLike[str] | None = None) -> None:
    """Turns oneDNN on or off, whichever is faster here. Call it before TensorFlow is imported.

    A value that the environment already has stays. It is the user's, or that of the command that
    started this one.

    Args:
      config: the command's recipe, or None.
      data: prepared data, for a recipe that leaves the image size to them.
    """
    found = instructions()
    if not found:
        return
    size = (
        config["preprocessing"]["image_size"]
        if config is not None and "preprocessing" in config
        else None
    )
    networks = list(_networks(config or {}, size or _size_of(data)))
    if found == "AVX2" and any(side is None for _, side in networks):
        return  # the loop's stages choose once the data exist
    slow = found == "AVX2" and any(_has_tiny_maps(model, side) for model, side in networks)
    os.environ.setdefault(VARIABLE, "0" if slow else "1")


def describe() -> str:
    """Returns the choice for the log, such as "AVX2, oneDNN on"; "" where there was none."""
    found, value = instructions(), os.environ.get(VARIABLE)
    return f"{found}, oneDNN {'off' if value == '0' else 'on'}" if found and value else ""


def _networks(
    config: Mapping[str, Any], size: int | None
) -> Iterator[tuple[Mapping[str, Any], int | None]]:
    """Yields each `model` of the recipe that names a network, and the side of its images in pixels.

    The side is None if it is not known. A fine-tuning takes another training's network, whatever
    its own section says.

    Args:
      config: the recipe or a section of it.
      size: side of the images if the section itself does not say.
    """
    for key, value in config.items():
        if not hasattr(value, "items") or key.startswith(
            "finetune"
        ):  # a ConfigDict is not a Mapping
            continue
        side = (value.get("preprocessing") or {}).get("image_size") or size
        model = value.get("model")
        if hasattr(model, "items") and model.get("name"):
            yield model, side
        yield from _networks(value, side)


def _has_tiny_maps(model: Mapping[str, Any], size: int | None) -> bool:
    """Tells whether the last depthwise convolutions read maps of at most `SMALLEST_MAP` pixels."""
    family = architectures.find(model["name"])
    by = architectures.load(family.reduction)(model) if family.reduction else None
    return by is not None and size is not None and -(-size // by) <= SMALLEST_MAP


def _size_of(data: str | os.PathLike[str] | None) -> int | None:
    """Returns the image size that the prepared `data` suggest, or None where they are not there."""
    path = Path(data).expanduser() / "summary.json" if data else None
    if not path or not path.is_file():
        return None
    summary = read_json(path, dict)
    if "median_height" not in summary:
        return None
    return resolve.image_size(summary["median_height"], summary["median_width"])
