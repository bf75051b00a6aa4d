#!/usr/bin/env bash
# Prepared data -> a trained classifier, by the method of the recipe's section: --config --workdir --data=PREPARED [--section=train]
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/scripts/setup.sh"
run_command train "$@"
