#!/usr/bin/env bash
# The main job on the embedded digits, from images to a prediction: [--seeds=N]
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/scripts/setup.sh"
run_command quickstart "$@"
