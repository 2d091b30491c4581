#!/usr/bin/env bash
# Puts the wheels that the package depends on into .wheels, from which tests/package installs into a new environment.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
wanted=$(cat pyproject.toml constraints.txt)
if [ "$(cat .wheels/complete 2>/dev/null)" = "$wanted" ]; then exit 0; fi
rm -rf .wheels
.venv/bin/python -m pip wheel --quiet --disable-pip-version-check --constraint constraints.txt --wheel-dir .wheels .
rm .wheels/ptycho_dist-*.whl # the tests build it themselves
printf '%s' "$wanted" > .wheels/complete
