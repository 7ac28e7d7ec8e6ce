#!/usr/bin/env bash
# Make an environment with lmms-eval and this featstore in the folder $1, for the tests that run lmms-eval itself:
#   tools/setup_lmms_eval.sh .venv-lmms && LMMS_EVAL_PYTHON=$PWD/.venv-lmms/bin/python pytest -m slow tests/integrations/test_lmms_real.py
# Some 130 packages, three minutes of one core and as long a download as the network makes it: CI does without.
#   PYTHON=python3.12                  make it with this Python
#   LMMS_EVAL=lmms-eval==0.7.3         this release
#   TORCH=torch==2.13.0+cpu            this build of torch; by default the one of .venv, or else pip's own
set -euo pipefail
cd "$(dirname "$0")/.."

folder=${1:?name the folder of the environment}
[[ -x $folder/bin/python ]] || "${PYTHON:-python3}" -m venv "$folder"
own=$(.venv/bin/python -c "import torch; print('torch==' + torch.__version__)" 2>/dev/null || echo torch)
build=${TORCH:-$own}
"$folder/bin/python" -c "import torch" 2>/dev/null || "$folder/bin/pip" install --quiet "$build"
torch=$("$folder/bin/python" -c "import torch; print(torch.__version__)")
# lmms-eval requires torchvision, whose newest build would replace torch by one with CUDA: torch stays as it is, and a
# torchvision that was made for another build, which cannot be loaded, goes. lmms-eval's video tasks do without it, and
# the tests that compare featstore_video with lmms-eval's own classes are then skipped.
constraint=$(mktemp)
trap 'rm -f "$constraint"' EXIT
echo "torch==${torch%%+*}" >"$constraint"
"$folder/bin/pip" install --quiet --constraint "$constraint" "${LMMS_EVAL:-lmms-eval==0.7.3}" --editable ".[lmms-eval]"
if ! "$folder/bin/python" -c "import torchvision" 2>/dev/null; then
    "$folder/bin/pip" uninstall --quiet --yes torchvision
fi
"$folder/bin/python" -c "from lmms_eval import models; models.get_model('longva_cached')"
