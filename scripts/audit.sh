#!/usr/bin/env bash
# Reports known vulnerabilities of the locked packages: ./scripts/audit.sh
#
# A report, not a check: it ends with 0 whatever it finds. docs/installation.md judges the findings.
# Needs a package registry, for pip-audit itself, and a service that knows the vulnerabilities.
set -euo pipefail
# shellcheck source=scripts/setup.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"
cd "$CHECKOUT"
SCRATCH=$(mktemp -d)
trap 'rm -rf "$SCRATCH"' EXIT

if ! { "$PYTHON" -m venv "$SCRATCH" && "$SCRATCH/bin/python" -m pip install --quiet --disable-pip-version-check pip-audit==2.10.1; } \
  >"$SCRATCH/log" 2>&1 </dev/null; then
  echo "pip-audit could not be installed; nothing was audited"
  exit 0
fi
for lock in requirements/*.txt; do
  rm -f "$SCRATCH/report.json"
  "$SCRATCH/bin/pip-audit" --requirement "$lock" --disable-pip --no-deps --timeout 15 --progress-spinner off --format json \
    --output "$SCRATCH/report.json" >"$SCRATCH/log" 2>&1 </dev/null || true # 1 where there is a finding
  "$PYTHON" - "$lock" "$SCRATCH/report.json" <<'EOP'
import json, pathlib, sys

lock, report = sys.argv[1], pathlib.Path(sys.argv[2])
packages = json.loads(report.read_text(encoding="utf-8"))["dependencies"] if report.exists() else []
audited = [package for package in packages if "vulns" in package]
if not audited:
    print(f"{lock}: no service of known vulnerabilities answered; nothing was audited")
else:
    findings = [(package, found) for package in audited for found in package["vulns"]]
    print(f"{lock}: {len(findings)} findings in {len(audited)} of {len(packages)} packages")
    for package, found in findings:
        names = ", ".join([found["id"], *found.get("aliases", [])])
        print(f"  {package['name']} {package['version']}: {names}; fixed in {', '.join(found['fix_versions']) or 'no release'}")
EOP
done
