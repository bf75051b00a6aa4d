#!/usr/bin/env bash
# The whole iterated loop, from images to a served student: --config --workdir [--labeled=DIR --unlabeled=DIR --test=DIR]
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/scripts/setup.sh"
run_command noisy_student "$@"
