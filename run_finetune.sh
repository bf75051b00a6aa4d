#!/usr/bin/env bash
# Student -> the same model fine-tuned at a larger resolution: --config --workdir --data=PREPARED --init=STUDENT
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/scripts/setup.sh"
run_command finetune "$@"
