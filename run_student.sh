#!/usr/bin/env bash
# Labeled + pseudo-labeled shards -> student: --config --workdir --data=PREPARED --pseudo_labeled=BALANCED (or --teacher=TRAINED)
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/scripts/setup.sh"
run_command student "$@"
