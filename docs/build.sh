#!/usr/bin/env bash
# Builds the documentation: docs/_build/html/index.html.   bash docs/build.sh [options of sphinx-build]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/make_venv.sh docs
# A warning is an error, and so is a reference that leads nowhere.
exec .venv/bin/python -m sphinx --fail-on-warning --keep-going --nitpicky --builder html docs docs/_build/html "$@"
