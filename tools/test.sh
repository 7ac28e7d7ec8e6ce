#!/usr/bin/env bash
# All checks and all tests, with the coverage that they must reach. Arguments go to pytest.
set -euo pipefail

"$(dirname "$0")/check.sh" lint types imports docs tests -- --cov --cov-report=term:skip-covered "$@"
