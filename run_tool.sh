#!/usr/bin/env bash
# Weights in and out, TFLite, promotion of exports, the client, comparisons and checks: NAME [FLAGS]; --help lists the names
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/scripts/setup.sh"
run_command tool "$@"
