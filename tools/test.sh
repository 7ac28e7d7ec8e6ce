#!/usr/bin/env bash
# All checks and tests, in .venv of this folder: lint, format, types, generated docs, and every test, those too that
# `pytest` leaves out (setup.cfg names their kinds), on all cores, the tests of one file on one.
# Arguments go to pytest: tools/test.sh tests/store -k lifetime
set -euo pipefail
cd "$(dirname "$0")/.."

tools/setup_venv.sh test
export PATH="$PWD/.venv/bin:$PATH"

ruff check .
ruff format --check .
mypy
bandit --quiet --recursive --configfile pyproject.toml featstore tools
python tools/make_cli_docs.py --check
python -m pytest --quiet -m "" --numprocesses logical --maxprocesses 8 --dist loadfile "$@"
