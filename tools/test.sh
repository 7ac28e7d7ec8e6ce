#!/usr/bin/env bash
# Runs all checks and tests in this repository's .venv: lint, format, types, generated docs, tests.
# Arguments are passed to pytest: tools/test.sh tests/store -k lifetime
set -euo pipefail
cd "$(dirname "$0")/.."

tools/setup_venv.sh test
export PATH="$PWD/.venv/bin:$PATH"

ruff check .
ruff format --check .
mypy
bandit --quiet --recursive --configfile pyproject.toml featstore tools
python tools/make_cli_docs.py --check
python -m pytest --quiet "$@"
