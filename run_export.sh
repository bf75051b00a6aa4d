#!/usr/bin/env bash
# Model -> SavedModel for TF Serving, preprocessing inside, and its settings: --workdir=SERVING_DIR --model=DIR
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/scripts/setup.sh"
run_command export "$@"
