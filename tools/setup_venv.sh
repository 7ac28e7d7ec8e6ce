#!/usr/bin/env bash
# Create .venv with featstore and the extra $1 (tools or test), unless it is up to date.
set -euo pipefail
cd "$(dirname "$0")/.."

extra=$1
stamp=".venv/featstore-$extra.stamp"
wanted=$(cat setup.cfg pyproject.toml)
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
    exit 0
fi
python=${PYTHON:-python3}
"$python" - <<'PY'
import sys

if sys.version_info < (3, 10):
    sys.exit(f"featstore needs Python 3.10 or newer, this is {sys.version.split()[0]}; set PYTHON")
PY
echo "setting up .venv, which takes a minute or two" >&2
[ -x .venv/bin/python ] || "$python" -m venv .venv
# torch first and pinned: otherwise pip installs the newest build with gigabytes of CUDA libraries.
.venv/bin/python -c "import torch" 2>/dev/null || .venv/bin/pip install --quiet "${TORCH:-torch==2.13.0}"
.venv/bin/pip install --quiet --editable ".[$extra]"
printf '%s' "$wanted" >"$stamp"
