#!/usr/bin/env bash
# Image files -> classes and probabilities: --model=EXPORTED IMAGE...
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/scripts/setup.sh"
run_command predict "$@"
