#!/usr/bin/env bash
# Model -> TFLite files (float16, int8) and a table of their accuracy: --workdir --model=DIR --data=DIR
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/scripts/setup.sh"
run_module serving.lite "$@"
