#!/usr/bin/env bash
# A study of a method, every condition over several seeds: --config=configs/studies/....py --workdir
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/scripts/setup.sh"
run_module experiments.study "$@"
