#!/usr/bin/env bash
# Accuracy, calibration and figures of one or more models: --config --workdir --data=PREPARED --model=DIR[,DIR...] [--split=test]
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/scripts/setup.sh"
exec "$PYTHON" -m evaluation.evaluate "$@"
