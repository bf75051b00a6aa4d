#!/usr/bin/env bash
# Labeled + unlabeled shards -> student, by Meta Pseudo Labels: --config --workdir --data=PREPARED [--pseudo_labeled=DIR: Reduced]
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/scripts/setup.sh"
run_command meta_pseudo_labels "$@"
