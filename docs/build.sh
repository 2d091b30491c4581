#!/usr/bin/env bash
# Builds the documentation: docs/_build/html/index.html.   bash docs/build.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/make_venv.sh docs
# A warning is an error, and so is a reference that leads nowhere.
.venv/bin/python -m sphinx --quiet --fail-on-warning --keep-going --nitpicky --builder html docs docs/_build/html
echo "wrote $PWD/docs/_build/html/index.html"
