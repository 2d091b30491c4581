#!/usr/bin/env bash
# Puts the wheels that the package depends on into .wheels, from which tests/package installs into a new environment.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
wanted=$(cat pyproject.toml constraints.txt)
if [ "$(cat .wheels/complete 2>/dev/null)" = "$wanted" ]; then exit 0; fi
rm -rf .wheels
bash launch/make_venv.sh test
.venv/bin/python -m build --no-isolation --outdir .wheels >/dev/null
.venv/bin/python -m pip wheel --quiet --disable-pip-version-check --constraint constraints.txt --wheel-dir .wheels .wheels/ptycho_dist-*.whl
rm .wheels/ptycho_dist-* # the tests build their own
printf '%s' "$wanted" > .wheels/complete
