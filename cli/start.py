"""Runs a module as `python -m` does, without the caller's directory on the import path.

    python CHECKOUT/cli/start.py -m MODULE [ARGUMENT...]

`python -m` searches the current directory before everything else. A user's own `data.py`,
`evaluation/` or `numpy.py` there would replace the module of that name.
(`python -P` prevents this too, but only Python 3.11 and later have it.)
"""

from __future__ import annotations

import os
import sys

_THIS = os.path.abspath(__file__)


def python_m(module: str, *arguments: str) -> list[str]:
    """Returns the command that runs `module` in its own process, from any directory."""
    return [sys.executable, "-X", "utf8", "-u", _THIS, "-m", module, *arguments]


def script(name: str, *arguments: str) -> list[str]:
    """Returns the command that does what the script `run_NAME.sh` does, without bash."""
    command = name[len("run_") : -len(".sh")]
    return python_m("cli", command, *arguments)


def _main() -> None:
    # If the caller has closed a standard stream (2>&-), the next opened file would get its number.
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if not getattr(sys.flags, "safe_path", False):
        del sys.path[0]  # the directory of this file; its modules are imported as `cli.NAME`
    sys.path.insert(0, os.path.dirname(os.path.dirname(_THIS)))
    import runpy  # after that, so that this directory shadows nothing

    dash_m, module = sys.argv[1:3]
    assert dash_m == "-m", sys.argv
    sys.argv = sys.argv[2:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main()
