#!/usr/bin/env bash
# Signal and noise of each estimator of the feedback against the unlabelled batch, as a table and a figure: --config --workdir
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/scripts/setup.sh"
run_module experiments.feedback_study "$@"
