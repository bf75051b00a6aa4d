"""Silence on standard error, also for output that is not Python's."""

import os

from cli.quiet import silent


def test_silent_for_a_moment_only(capfd):
    with silent():
        os.write(2, b"noise")
    os.write(2, b"news")
    assert capfd.readouterr().err == "news"
