#!/usr/bin/env bash
# Exported models -> a server, REST and gRPC, on this machine alone by default: --serving_dir [--local] [--host]
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/scripts/setup.sh"
run_command serve "$@"
