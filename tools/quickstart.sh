#!/usr/bin/env bash
# Set featstore up and run its main job: sample clips and a tiny checkpoint in, stored features out.
# Needs Python 3.10 or newer; writes only to .venv and quickstart/ in this repository.
#   PYTHON=python3.12 tools/quickstart.sh     with another Python; tools/setup_venv.sh says how to choose torch's build
set -euo pipefail
cd "$(dirname "$0")/.."

tools/setup_venv.sh tools
export PATH="$PWD/.venv/bin:$PATH"

run() {
    printf '\n$ %s\n' "$*"
    "$@"
}

work=quickstart
rm -rf "$work"
run python tools/make_sample_clips.py $work/clips
run python tools/make_tiny_checkpoint.py $work/longva-tiny
run featstore shape --model-path $work/longva-tiny --nframe 16
ingest=(featstore ingest --videos $work/clips --dataset demo --model-path $work/longva-tiny
    --cache-dir $work/vision_cache --nframe 16 --min-free 100MB)
run "${ingest[@]}"
run "${ingest[@]}" # everything is already stored: nothing is decoded
run featstore get --cache-dir $work/vision_cache --dataset demo bouncing_ball --out $work/bouncing_ball.safetensors
run featstore ls --cache-dir $work/vision_cache --dataset demo
run featstore check --cache-dir $work/vision_cache
