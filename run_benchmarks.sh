#!/usr/bin/env bash
# Measurements against peers, a JSON object a line: [NAME...]
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/scripts/setup.sh"
exec "$PYTHON" -m benchmarks.run "$@"
