#!/usr/bin/env bash
# Create .venv with featstore and the extra $1 (tools or test), unless it is up to date.
#   PYTHON=python3.12     make .venv with this Python; one of another version that is there is refused
#   TORCH=torch==2.9.1    this build of torch, for pip; by default a pinned one, without CUDA where there is no NVIDIA driver
#   TORCH_INDEX=URL       an index to look in besides pip's own, as https://download.pytorch.org/whl/cu126 for older drivers
set -euo pipefail
cd "$(dirname "$0")/.."

extra=$1
pinned=2.13.0
cpu_index=https://download.pytorch.org/whl/cpu
stamp=".venv/featstore-$extra.stamp"
wanted=$(sed -n '/^\[options\]/,/^\[tool:pytest\]/p' setup.cfg && cat pyproject.toml)

version_of() {
    "$1" -c "import sys; print(sys.version.split()[0])" && return
    echo "$1 does not run: set PYTHON to a Python of 3.10 or newer" >&2
    exit 1
}

# pip compiles what it installs on one core.
install() {
    .venv/bin/pip install --quiet --no-compile "$@"
}

# has_cpu_build PIP_OPTIONS...: whether pip finds the pinned torch without CUDA.
has_cpu_build() {
    .venv/bin/pip index versions torch --timeout 10 --retries 1 "$@" 2>/dev/null | grep -qwF "$pinned+cpu"
}

# torch first: otherwise pip takes the newest build, which brings CUDA's libraries to machines that cannot use them.
install_torch() {
    local build=${TORCH:-torch==$pinned} index=${TORCH_INDEX:-} why="as TORCH or TORCH_INDEX says"
    if [[ -z ${TORCH:-}$index ]]; then
        why="some 3 GB with CUDA's libraries"
        if [[ ! -e /proc/driver/nvidia/version ]]; then
            if has_cpu_build || { has_cpu_build --index-url "$cpu_index" && index=$cpu_index; }; then
                build+=+cpu why="some 200 MB, without CUDA: there is no NVIDIA driver"
            else
                why+=": a build without them is not found, here or at $cpu_index; TORCH_INDEX names another index"
            fi
        fi
    fi
    echo "downloading $build${index:+ from $index} ($why), and some 150 MB of other packages" >&2
    install ${index:+--extra-index-url "$index"} "$build"
}

if [[ -n ${PYTHON:-} && -x .venv/bin/python ]]; then
    there=$(version_of .venv/bin/python) asked=$(version_of "$PYTHON")
    if [[ $there != "$asked" ]]; then
        echo ".venv has Python $there, and PYTHON=$PYTHON is $asked: remove .venv to have it made again, or unset PYTHON" >&2
        exit 1
    fi
fi
if [[ -x .venv/bin/python && -z ${TORCH:-}${TORCH_INDEX:-} && -f $stamp && $(<"$stamp") == "$wanted" ]]; then
    exit 0
fi
if [[ ! -x .venv/bin/python ]]; then
    python=${PYTHON:-python3}
    found=$(version_of "$python")
    if ! "$python" -c "import sys; sys.exit(sys.version_info < (3, 10))"; then
        echo "featstore needs Python 3.10 or newer, $python is $found: set PYTHON" >&2
        exit 1
    fi
    echo "making .venv with Python $found" >&2
    "$python" -m venv .venv
fi
if [[ -n ${TORCH:-}${TORCH_INDEX:-} ]] || ! .venv/bin/python -c "import torch" 2>/dev/null; then
    install_torch
fi
echo "installing featstore[$extra] in .venv, which takes a minute or two" >&2
install --editable ".[$extra]"
.venv/bin/python -m compileall -qq -j 0 .venv/lib || true # packages have templates that are no Python
for extra in "$extra" tools; do # which is a part of test
    printf '%s' "$wanted" >".venv/featstore-$extra.stamp"
done
