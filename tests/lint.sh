#!/usr/bin/env bash
# Style, format and types; ends at the first complaint.   bash tests/lint.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/make_venv.sh dev
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
