#!/usr/bin/env bash
# Makes .venv with the package, or brings the one that is there up to date.   bash launch/make_venv.sh [EXTRA]
# PYTHON=/path/to/python chooses the interpreter (3.10 or newer).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
extra=${1:-}

stamp=.venv/installed${extra:+-$extra}
wanted=$(cat pyproject.toml constraints.txt)
if [ -x .venv/bin/python ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then exit 0; fi

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; }
if [ ! -x .venv/bin/python ]; then
  for python in ${PYTHON:-python3 python python3.14 python3.13 python3.12 python3.11 python3.10} none; do new_enough "$python" && break; done
  [ "$python" = none ] && { echo "error: found no Python of version 3.10 or newer; set PYTHON=/path/to/python" >&2; exit 1; }
  echo "making .venv with $("$python" --version)"
  "$python" -m venv .venv || { rm -rf .venv; echo "error: $python can't make a virtual environment; on Debian: apt-get install python3-venv" >&2; exit 1; }
fi
echo "installing ptycho_dist${extra:+[$extra]} into .venv (PyTorch is large: this takes a minute or more the first time)"
.venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".${extra:+[$extra]}"
printf '%s' "$wanted" > "$stamp"
