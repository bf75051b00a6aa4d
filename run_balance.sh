#!/usr/bin/env bash
# Predictions + unlabeled shards -> filtered, balanced, pseudo-labeled shards: --config --workdir --data=PREPARED --predictions=DIR [Beam's options]
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/scripts/setup.sh"
run_command balance "$@"
