#!/usr/bin/env bash
# Teacher + unlabeled shards -> prediction shards: --config --workdir --data=PREPARED --teacher=DIR [Beam's options]
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/scripts/setup.sh"
run_command pseudo_label "$@"
