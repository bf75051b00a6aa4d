#!/usr/bin/env bash
# Benchmarks against peers, one JSON object a line: [NAME...] of benchmarks/NAME.py, or all of them
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/scripts/setup.sh"
cd "$CHECKOUT"
if [[ $# -eq 0 ]]; then
  for file in benchmarks/*.py; do
    grep -q '__main__' "$file" && set -- "$@" "$(basename "$file" .py)"
  done
fi
for name in "$@"; do
  "$PYTHON" -m "benchmarks.$name"
done
