#!/usr/bin/env bash
# Images -> labeled, unlabeled and test shards: --config --workdir [--labeled=DIR --unlabeled=DIR --test=DIR]
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/scripts/setup.sh"
run_command prepare_data "$@"
