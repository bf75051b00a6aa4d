"""A GPU that TensorFlow cannot use is reported, with TensorFlow's own reason."""

import subprocess

import pytest
import tensorflow as tf

from cli.errors import InputError
from training import gpus, strategy

LOG = """\
2026-01-01 00:00:00.000000: I tensorflow/core/platform/cpu_feature_guard.cc:182] \
This TensorFlow binary is optimized.
2026-01-01 00:00:00.100000: I external/local_tsl/tsl/platform/default/dso_loader.cc:70] \
Could not load dynamic library \
'libcudnn.so.8'; dlerror: libcudnn.so.8: cannot open shared object file: \
No such file or directory; LD_LIBRARY_PATH: /a
2026-01-01 00:00:00.200000: W tensorflow/core/common_runtime/gpu/gpu_device.cc:2256] \
Cannot dlopen some GPU libraries. Please make sure
"""
MISSING = (
    "Could not load dynamic library 'libcudnn.so.8'; dlerror: libcudnn.so.8: cannot open shared"
    " object file: No such file or directory"
)


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        (LOG, MISSING),
        (
            "x] failed call to cuInit: CUDA_ERROR_UNKNOWN: unknown error\n",
            "failed call to cuInit: CUDA_ERROR_UNKNOWN: unknown error",
        ),
        ("nothing of the kind", "TensorFlow's log names no reason"),
    ],
)
def test_the_reason_is_the_most_telling_line(log, expected):
    assert gpus.reason(log) == expected


@pytest.fixture
def shown(monkeypatch):
    """The system shows a GPU that TensorFlow does not see, and TensorFlow's log says why."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(
        tf.config, "list_physical_devices", lambda kind=None: [] if kind == "GPU" else ["CPU:0"]
    )
    monkeypatch.setattr(tf.test, "is_built_with_cuda", lambda: True)
    monkeypatch.setattr(gpus.glob, "glob", lambda pattern: ["/dev/nvidia0"])
    monkeypatch.setattr(
        gpus.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, "0\n", LOG)
    )


def test_training_goes_on_after_one_line(shown, capsys):
    assert strategy.create("auto") is tf.distribute.get_strategy()
    assert (
        capsys.readouterr().err
        == f"warning: TensorFlow cannot use this machine's GPU, so the CPU is used: {MISSING}\n"
    )


def test_mirrored_does_not_go_on(shown):
    with pytest.raises(
        InputError,
        match=(
            r"^--strategy=mirrored: TensorFlow cannot use this machine's GPU: Could not load"
            r" .*libcudnn"
        ),
    ):
        strategy.create("mirrored")


def test_hidden_gpus_are_not_missed(shown, monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    strategy.create("auto")
    assert capsys.readouterr().err == ""


def test_a_build_without_cuda_is_the_reason(shown, monkeypatch):
    monkeypatch.setattr(tf.test, "is_built_with_cuda", lambda: False)
    assert gpus.unusable() == "this TensorFlow is built without CUDA"


def test_nvidia_smi_is_asked_where_there_is_no_device_file(monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpus.glob, "glob", lambda pattern: [])
    for line, expected in (("GPU 0: NVIDIA H200", True), ("No devices were found", False)):
        tool = tmp_path / "nvidia-smi"
        tool.write_text(f"#!/bin/sh\necho '{line}'\n")
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        assert gpus.on_machine() is expected


def test_mirrored_without_a_gpu_is_an_error(monkeypatch):
    monkeypatch.setattr(gpus, "on_machine", lambda: False)
    with pytest.raises(
        InputError,
        match=(
            r"^--strategy=mirrored: TensorFlow sees no GPU; leave --strategy out to train on"
            r" one CPU"
        ),
    ):
        strategy.create("mirrored")
