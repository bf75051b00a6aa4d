#!/usr/bin/env bash
# Seeds of one experiment put together, clean and robust: --workdir --runs='DIR/seed_*' [--models=teacher,student_2] [--suite=clean,c,p,adversarial]
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/scripts/setup.sh"
run_module evaluation.compare "$@"
