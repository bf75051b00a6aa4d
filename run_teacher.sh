#!/usr/bin/env bash
# Labeled shards -> teacher: --config --workdir --data=PREPARED
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/scripts/setup.sh"
run_command teacher "$@"
