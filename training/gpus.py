"""Finds out why TensorFlow does not use a GPU that the machine has."""

from __future__ import annotations

import glob
import os
import re
import shutil
import subprocess
import sys

import tensorflow as tf

_PROBE = "import tensorflow as tf; print(len(tf.config.list_physical_devices('GPU')))"
_TELLING = (
    r"Could not load dynamic library '[^']+'[^;]*(?:; dlerror: [^;]*)?",
    r"failed call to cuInit: .*",
    r"[Kk]ernel version [^ ]+ does not match DSO version.*",
    r"Cannot dlopen some GPU libraries.*",
    r"Could not find cuda drivers on your machine.*",
)
"""Lines of TensorFlow's log that name the reason, the most telling first."""


def on_machine() -> bool:
    """Tells whether the system shows an NVIDIA GPU.

    It shows none where CUDA_VISIBLE_DEVICES hides all of them.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return False
    if glob.glob("/dev/nvidia[0-9]*"):
        return True
    tool = shutil.which("nvidia-smi")
    if not tool:
        return False
    try:
        listed = subprocess.run(
            [tool, "-L"], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listed.stdout.startswith("GPU ")


def count() -> int:
    """Returns how many GPUs TensorFlow sees."""
    return len(tf.config.list_physical_devices("GPU"))


def memory() -> int | None:
    """Returns the memory of the smallest GPU in bytes, as nvidia-smi reports it.

    None without a usable GPU, or if nvidia-smi does not report it.
    """
    tool = shutil.which("nvidia-smi")
    if not count() or not tool:
        return None
    query = [tool, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        output = subprocess.run(
            query, capture_output=True, text=True, timeout=20, check=False
        ).stdout
        return min(int(line) for line in output.split()) * 2**20
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None


def unusable() -> str | None:
    """Returns why TensorFlow uses none of the machine's GPUs.

    None if TensorFlow uses one, or if the machine has none.

    The log level mutes TensorFlow's own reason, and holds for the whole process. So a second
    process asks once more, and its log is read. This takes some seconds, and happens only on a
    machine with such a GPU.
    """
    if tf.config.list_physical_devices("GPU") or not on_machine():
        return None
    if not tf.test.is_built_with_cuda():
        return "this TensorFlow is built without CUDA"
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "0", "TF_CPP_VMODULE": "dso_loader=1"}
    try:
        asked = subprocess.run(
            [sys.executable, "-c", _PROBE],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "the reason could not be learned"
    return reason(asked.stderr)


def reason(log: str) -> str:
    """Returns the most telling line of a log of TensorFlow's start, without its time and place."""
    for pattern in _TELLING:
        if found := re.search(pattern, log):
            return " ".join(found.group().split())[:300].rstrip(" .")
    return "TensorFlow's log names no reason"
