"""Progress lines where stderr is not a terminal, and a bar where it is."""

from __future__ import annotations

import io
import sys

from cli import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines(monkeypatch, capsys):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    assert list(progress.progress(iter("abc"), 1500, "check")) == ["a", "b", "c"]
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",", 1)[0] for line in lines] == [
        f"check: {done} of 1" for done in (1, 2, 3)
    ]


def test_quick_work_prints_nothing(capsys):
    assert list(progress.progress(range(3), 3, "check")) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_bar(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert list(progress.progress(range(3), 3, "check")) == [0, 1, 2]
    assert "check: 100%" in terminal.getvalue()
