#!/usr/bin/env bash
# Measurements against peers, a JSON object a line: [PEERS=DIR] ./run_benchmarks.sh [NAME...]; DIR holds peers that are not dependencies,
# from pip install --target=DIR
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/scripts/setup.sh"
run_command benchmarks "$@"
