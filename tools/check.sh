#!/usr/bin/env bash
# One check, or several, in .venv of this folder: tools/check.sh lint types imports docs tests
# Arguments after -- go to pytest: tools/check.sh tests -- tests/store -k lifetime
set -euo pipefail
cd "$(dirname "$0")/.."

tools/setup_venv.sh test
export PATH="$PWD/.venv/bin:$PATH"

checks=()
while (($#)) && [[ $1 != -- ]]; do
    checks+=("$1") && shift
done
(($# == 0)) || shift
for check in "${checks[@]}"; do
    case $check in
        lint) ruff check . && ruff format --check . &&
            bandit --quiet --recursive --configfile pyproject.toml featstore tools ;;
        types) mypy ;;
        imports) lint-imports --no-cache ;;
        docs) python tools/make_cli_docs.py --check ;;
        # Every test, those too that a plain `pytest` leaves out.
        tests) python -m pytest --quiet -m "" --numprocesses logical --maxprocesses 8 "$@" ;;
        *) echo "there is no check $check; there are lint, types, imports, docs and tests" >&2 && exit 2 ;;
    esac
done
