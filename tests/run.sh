#!/usr/bin/env bash
# Runs the tests in .venv, which it makes if needed.   bash tests/run.sh [--all] [pytest arguments]
# Without --all the slow tests are left out.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/make_venv.sh test
# One thread a process: pytest-xdist and the tests' own ranks already fill the cores. Tests that share a Slurm cluster share a worker.
OMP_NUM_THREADS=1 exec .venv/bin/python -m pytest -n 2 --dist loadgroup "$@"
