#!/usr/bin/env bash
# Makes .venv-tensorflow, which the parity tests compare with. An environment of its own: TensorFlow pins versions that the project does not.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
[ -f .venv-tensorflow/installed ] && exit 0
[ -x .venv-tensorflow/bin/python ] || "${PYTHON:-python3}" -m venv .venv-tensorflow
.venv-tensorflow/bin/python -m pip install --quiet --disable-pip-version-check 'tensorflow-cpu>=2.16'
touch .venv-tensorflow/installed
