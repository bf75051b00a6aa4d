#!/usr/bin/env bash
# The paper's toy experiment over many seeds at once: success rates and the figure of decision regions: --config --workdir
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/scripts/setup.sh"
run_module experiments.two_moons "$@"
