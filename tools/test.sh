#!/usr/bin/env bash
# All checks and all tests, with the coverage that they must reach. Arguments go to pytest.
set -euo pipefail
check="$(dirname "$0")/check.sh"

"$check" lint
# These take one core, and the tests wait now and then.
said=$(mktemp)
"$check" types imports docs >"$said" 2>&1 &
beside=$!
trap 'kill $beside 2>/dev/null || true; rm "$said"' EXIT
failed=0
"$check" tests -- --cov --cov-report=term:skip-covered "$@" || failed=$?
wait $beside || failed=$?
cat "$said"
exit $failed
