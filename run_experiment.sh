#!/usr/bin/env bash
# Studies and toy experiments: NAME --config=... --workdir=...; --help lists the names
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/scripts/setup.sh"
run_command experiment "$@"
