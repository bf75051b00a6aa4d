#!/usr/bin/env bash
# Accuracy, calibration and robustness of models, with a report: --workdir --model=DIR[,DIR...] --data=PREPARED [--suite=clean,c,p,adversarial]
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/scripts/setup.sh"
run_command evaluate "$@"
