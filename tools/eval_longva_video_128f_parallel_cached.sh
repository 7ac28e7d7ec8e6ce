#!/usr/bin/env bash
# Three LongVA models on seven video benchmarks at 128 frames, over the GPUs of one machine, from stored features.
set -euo pipefail

usage() {
    cat <<'END'
Usage: eval_longva_video_128f_parallel_cached.sh [OPTIONS] [-- RUN_PY_ARGUMENTS...]

Stores the features of all videos on all GPUs, then lets VLMEvalKit ask every model about every benchmark, one run per
GPU at a time. Run it again to continue where it stopped: stored videos, answered questions and finished runs are skipped.
A run is finished if every question has an answer; a video that cannot be read is named in the log, and asked again.

  --cache-dir DIR          cache directory          [default: $FEATSTORE_CACHE_DIR, else vision_cache]
  --work-dir DIR           VLMEvalKit's outputs; its folder runs contains logs and marks of finished runs
                                                    [default: outputs]
  --run-py FILE            VLMEvalKit's run.py      [default: as featstore vlmeval finds it]
  --models "NAME..."       [default: LongVA-7B-Cached LongVA-Temporal-v1-Cached LongVA-Temporal-v2-Cached]; without
                           -Cached the same model encodes for each question, for comparison
  --data "NAME..."         [default: the seven benchmarks]
  --checkpoint NAME=PATH   checkpoint of a model; repeatable
  --vision-tower CLIP      the CLIP model that the checkpoints name, if it cannot be found by that name: a local folder,
                           or an id on the Hugging Face Hub
  --decoder DECODER        auto, whose frames are those of the original models, or exact, those that a player shows
  --quantize VALUES        these four as for featstore ingest; the models get the same values
  --scale SCALE
  --dtype DTYPE
  --sampling RULE
  --ingest-option WORD     a further word for featstore ingest, such as --retry-failed; repeatable
  --option NAME=VALUE      an option of the models, such as max_new_tokens=64; repeatable
  --gpus "N..."            [default: $CUDA_VISIBLE_DEVICES, else all; without GPUs, one run at a time on the CPU]
  --torchrun               divide each run's questions among all GPUs, one run at a time
  --mode MODE              all, infer or eval, as for run.py; scoring may need a judge's key  [default: all]
  --no-keep-going          end a run's dataset at the first video that cannot be read
  --no-ingest              do not store features first; a run then encodes missing features
  --help                   show this message and exit

Exit codes: 0 all runs are finished, 1 some are not, 2 wrong usage.
END
}

fail() {
    echo "$1; see --help" >&2
    exit 2
}

cache_dir=${FEATSTORE_CACHE_DIR:-vision_cache}
work_dir=outputs
mode=all
ingest=true
torchrun=false
gpus=()
# The longest first, so that none of them is left at the end for a single GPU.
benchmarks=(
    TempCompass_128frame Video-MME_128frame MLVU_128frame MMBench_Video_128frame_nopack
    Video_Holmes_128frame LongVideoBench_128frame VideoMMMU_128frame
)
models=(LongVA-7B-Cached LongVA-Temporal-v1-Cached LongVA-Temporal-v2-Cached)
declare -A checkpoints=( # with and without -Cached
    [LongVA-7B]=${FEATSTORE_LONGVA_7B:-lmms-lab/LongVA-7B-DPO}
    [LongVA-Temporal-v1]=${FEATSTORE_TEMPORAL_V1:-Eculid/Temporal-v1}
    [LongVA-Temporal-v2]=${FEATSTORE_TEMPORAL_V2:-Eculid/Temporal-v2}
)
ingest_options=()
vlmeval_options=()
keep_going=(--keep-going)

# both NAME VALUE OPTION: an option of ingest that the models also take, as OPTION.
both() {
    ingest_options+=("--$1" "$2")
    vlmeval_options+=(--option "$3=$2")
}

while (($#)); do
    case $1 in
        --help | -h) usage && exit 0 ;;
        --no-ingest) ingest=false && shift && continue ;;
        --no-keep-going) keep_going=() && shift && continue ;;
        --torchrun) torchrun=true && shift && continue ;;
        --) shift && break ;;
        --*) (($# > 1)) || fail "$1 needs a value" ;;
        *) fail "$1 is not an option" ;;
    esac
    case $1 in
        --cache-dir) cache_dir=$2 ;;
        --work-dir) work_dir=$2 ;;
        --mode) mode=$2 ;;
        --run-py) vlmeval_options+=(--run-py "$2") && export VLMEVALKIT_ROOT && VLMEVALKIT_ROOT=$(dirname "$2") ;;
        --models) read -ra models <<<"$2" ;;
        --data) read -ra benchmarks <<<"$2" ;;
        --gpus) read -ra gpus <<<"$2" ;;
        --checkpoint) named=${2%%=*} && checkpoints[${named%-Cached}]=${2#*=} ;;
        --vision-tower) both vision-tower "$2" vision_tower ;;
        --quantize) both quantize "$2" quantize ;;
        --scale) both scale "$2" scale ;;
        --sampling) both sampling "$2" sampling ;;
        --decoder) both decoder "$2" decoder ;;
        --dtype) [[ $2 == auto ]] || both dtype "$2" dtype ;;
        --ingest-option) ingest_options+=("$2") ;;
        --option) vlmeval_options+=(--option "$2") ;;
        *) fail "$1 is not an option" ;;
    esac
    shift 2
done
for model in "${models[@]}"; do
    checkpoint=${checkpoints[${model%-Cached}]:-}
    [[ -n $checkpoint ]] || fail "no checkpoint is known for $model: pass --checkpoint $model=PATH"
    vlmeval_options+=(--checkpoint "$model=$checkpoint")
done

if ((${#gpus[@]} == 0)); then
    if [[ -n ${CUDA_VISIBLE_DEVICES:-} ]]; then
        IFS=, read -ra gpus <<<"$CUDA_VISIBLE_DEVICES"
    elif command -v nvidia-smi >/dev/null; then
        mapfile -t gpus < <(nvidia-smi --query-gpu=index --format=csv,noheader)
    fi
fi
runs=$work_dir/runs
mkdir -p "$runs"
claims=$(mktemp -d)
trap 'rm -rf "$claims"' EXIT
# Each worker is its own process group: stopping this script also stops what they run.
set -m
stop() {
    local worker
    for worker in $(jobs -p); do
        kill -- "-$worker" 2>/dev/null || true
    done
    exit 130
}
trap stop INT TERM

if $ingest; then
    devices=() # numbered as a process sees them
    ((${#gpus[@]} < 2)) || devices=(--device "$(seq -s, -f cuda:%g 0 $((${#gpus[@]} - 1)))")
    # Models with equal vision weights share features: after the first, the others find everything stored.
    for model in "${models[@]}"; do
        [[ $model == *-Cached ]] || continue
        echo "== ingest for $model"
        status=0
        CUDA_VISIBLE_DEVICES=$(IFS=, && echo "${gpus[*]}") python -m featstore ingest --datasets "${benchmarks[@]}" \
            --model-path "${checkpoints[${model%-Cached}]}" --cache-dir "$cache_dir" "${devices[@]}" \
            "${ingest_options[@]}" &
        wait $! || status=$?
        ((status == 0 || status == 3)) || exit 1 # 3: some videos failed; their questions are asked anyway
    done
fi

# run_one MODEL BENCHMARK GPUS ARGUMENTS...: one run on the GPUs, separated by commas, with its own log.
run_one() {
    local name=$1.$2 launcher=(python) status=0 started=$SECONDS
    if [[ $3 == *,* ]]; then
        launcher=(torchrun --standalone --nproc-per-node "$(awk -F, '{print NF}' <<<"$3")")
    fi
    echo "== $1 on $2${3:+, GPU $3}" | tee -a "$runs/$name.log"
    CUDA_VISIBLE_DEVICES=$3 "${launcher[@]}" -m featstore vlmeval --cache-dir "$cache_dir" "${keep_going[@]}" \
        "${vlmeval_options[@]}" -- --model "$1" --data "$2" --mode "$mode" --work-dir "$work_dir" --reuse "${@:4}" \
        >>"$runs/$name.log" 2>&1 || status=$?
    ((status != 0)) || echo "$(((SECONDS - started) / 60))" >"$runs/$name.$mode.done"
}

# work GPUS ARGUMENTS...: take one run after another until none is left.
work() {
    local model benchmark
    for benchmark in "${benchmarks[@]}"; do
        for model in "${models[@]}"; do
            [[ -e $runs/$model.$benchmark.$mode.done ]] && continue
            mkdir "$claims/$model.$benchmark" 2>/dev/null || continue
            run_one "$model" "$benchmark" "$@"
        done
    done
}

if $torchrun || ((${#gpus[@]} < 2)); then
    gpus=("$(IFS=, && echo "${gpus[*]}")")
fi
for gpu in "${gpus[@]}"; do
    work "$gpu" "$@" &
done
wait

# complaint LOG: featstore's message at the end of the last run in it.
complaint() {
    awk '/^== / {said = ""} /^featstore: / {on = 1} on {said = said $0 "\n"} /^repair what is named/ {on = 0}
        END {printf "%s", said}' "$1"
}

unfinished=0
printf '\n%-25s %-30s %-10s %7s %9s %9s\n' model benchmark state minutes hits misses
for model in "${models[@]}"; do
    for benchmark in "${benchmarks[@]}"; do
        name=$model.$benchmark state=finished minutes=''
        if [[ -e $runs/$name.$mode.done ]]; then
            minutes=$(<"$runs/$name.$mode.done")
        else
            state=unfinished unfinished=$((unfinished + 1))
        fi
        counts=(0 0)
        if [[ -e $runs/$name.log ]]; then
            read -ra counts < <(awk '/Cache hits:/ {h += $3} /Cache misses:/ {m += $3} END {print h + 0, m + 0}' "$runs/$name.log")
        fi
        printf '%-25s %-30s %-10s %7s %9s %9s\n' "$model" "$benchmark" "$state" "$minutes" "${counts[@]}"
    done
done
for model in "${models[@]}"; do
    for benchmark in "${benchmarks[@]}"; do
        name=$model.$benchmark
        [[ -e $runs/$name.$mode.done || ! -e $runs/$name.log ]] || complaint "$runs/$name.log" >&2
    done
done
echo "answers and scores: $work_dir/<model>; logs: $runs"
if ((unfinished)); then
    echo "$unfinished runs are not finished: see their logs, then run this again" >&2
    exit 1
fi
