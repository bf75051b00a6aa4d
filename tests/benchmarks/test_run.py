"""`run_benchmarks.sh`: names and flags."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import pytest

from benchmarks import report, run
from cli import commands
from cli.errors import InputError


def test_every_benchmark_takes_its_flags():
    files = {path.stem for path in Path(run.__file__).parent.glob("*.py")} - {
        "__init__",
        "clients",
        "mixed_requests",
        "report",
        "run",
    }
    assert set(run.BENCHMARKS) == files
    assert {flag for flags in run.BENCHMARKS.values() for flag in flags} == {
        flag.name for flag in commands.TABLE["benchmarks"].flags
    }
    for name, flags in run.BENCHMARKS.items():
        assert (
            tuple(inspect.signature(importlib.import_module(f"benchmarks.{name}").main).parameters)
            == flags
        )


@pytest.mark.parametrize(
    ("names", "flags", "match"),
    [
        (["nothing"], {}, "there is no benchmark 'nothing'; known: balance, buckets"),
        (
            ["serving", "evaluation"],
            {"records": 5},
            "--records has no effect on serving, evaluation",
        ),
    ],
)
def test_unusable_flags(names, flags, match):
    with pytest.raises(InputError, match=match):
        run.main(names, **flags)


def test_a_flag_goes_to_its_benchmark_alone(monkeypatch):
    called = []
    modules = {
        f"benchmarks.{name}": type(
            name, (), {"main": staticmethod(lambda name=name, **v: called.append((name, v)))}
        )
        for name in run.BENCHMARKS
    }
    monkeypatch.setattr(importlib, "import_module", modules.__getitem__)
    run.main([], records=2000, model="dir", clients=None)
    given = {
        "balance": {"records": 2000},
        "relabel": {"records": 2000},
        "serving": {"model": "dir"},
    }
    assert called == [(name, given.get(name, {})) for name in run.BENCHMARKS]


def test_memory_of_a_process():
    assert 0.01 < report.memory("self") <= report.memory("self", "VmHWM") < 100
    assert report.memory(2**30) == 0
