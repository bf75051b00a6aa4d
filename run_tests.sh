#!/usr/bin/env bash
# Linters, types, then the test suite; fails where any of them does. With arguments: pytest alone, with these arguments
# (paths are the checkout's: ./run_tests.sh tests/data -k shards).
set -euo pipefail
DEVELOPMENT_TOOLS=1
source "$(dirname -- "${BASH_SOURCE[0]}")/scripts/setup.sh"
cd "$CHECKOUT"
if [[ $# -gt 0 ]]; then
  exec "$PYTHON" -m pytest "$@"
fi

failed=()
check() { # NAME COMMAND...
  local name=$1
  shift
  echo "== $name"
  "$@" || failed+=("$name")
}
check "ruff check" "$PYTHON" -m ruff check .
check "ruff format" "$PYTHON" -m ruff format --check .
check "mypy" "$PYTHON" -m mypy
check "shellcheck" "$VENV/bin/shellcheck" ./*.sh scripts/*.sh .ci/run
check "hadolint" "$VENV/bin/hadolint" Dockerfile Dockerfile.gpu

if [[ ${#failed[@]} -gt 0 ]]; then
  printf 'FAILED before the tests: %s (see above)\n' "${failed[*]}"
fi
echo "== pytest"
status=0
# One process for each core, at most four (each holds TensorFlow); a file's tests stay together, and long ones begin first.
"$PYTHON" -m pytest --numprocesses=logical --maxprocesses=4 --dist=loadfile --no-loadscope-reorder || status=$?
[[ ${#failed[@]} -eq 0 ]] || status=$((status == 0 ? 1 : status))
exit "$status"
