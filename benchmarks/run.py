"""Runs benchmarks by name, or all of them: `./run_benchmarks.sh [NAME…] [--flag=value…]`; flags go to each of them."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path


def main(arguments: list[str]) -> int:
    """Returns the exit code: 2 for an unknown name."""
    known = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in ("__init__", "report", "run"))
    names, flags = [a for a in arguments if not a.startswith("-")], [a for a in arguments if a.startswith("-")]
    unknown = [name for name in names if name not in known]
    if unknown:
        print(f"error: no benchmark {unknown[0]!r}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    for name in names or known:
        importlib.import_module(f"benchmarks.{name}").main(flags)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
