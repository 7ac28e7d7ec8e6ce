"""As VLMEvalKit's run.py: hands out GPUs first, then imports, then runs every model on every dataset.

Its barriers, and what is swallowed where, are the real one's; so is what --reuse finds.
"""

import argparse
import os
import sys
from pathlib import Path

RANK = int(os.environ.get("RANK", 0))
WORLD_SIZE = int(os.environ.get("WORLD_SIZE", 1))
print("torch is loaded before the GPUs are handed out:", "torch" in sys.modules)

from vlmeval.dataset.video_dataset_config import supported_video_datasets  # noqa: E402
from vlmeval.inference_video import infer_data_job_video  # noqa: E402
from vlmeval.smp import (  # noqa: E402
    is_prediction_complete,
    load,  # noqa: F401
    load_env,
    prepare_reuse_files,
    upsert_dataset_status,
)


def parse_args():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", nargs="+")
    parser.add_argument("--model", nargs="+")
    parser.add_argument("--work-dir", default="./outputs")
    parser.add_argument("--mode", default="all", choices=["all", "infer", "eval"])
    parser.add_argument("--reuse", action="store_true")
    return parser.parse_args()


def build_dataset_from_cli(dataset_name):
    build = supported_video_datasets.get(dataset_name)
    return build() if build else None


def main():
    args = parse_args()
    eval_id = "T" + os.environ.get("STANDIN_RUN", "1")
    if WORLD_SIZE > 1:
        import torch.distributed as dist

        dist.init_process_group(backend="nccl")
    for model_name in args.model:
        model = None
        pred_root_meta = Path(args.work_dir) / model_name
        pred_root = pred_root_meta / eval_id
        pred_root.mkdir(parents=True, exist_ok=True)
        for dataset_name in args.data:
            about = {"run_dir": pred_root, "model_name": model_name, "dataset_name": dataset_name}
            if WORLD_SIZE > 1:
                dist.barrier()
            try:
                kind = os.environ.get("PRED_FORMAT", "json")
                result_file = str(pred_root / f"{model_name}_{dataset_name}.{kind}")
                if RANK == 0:
                    upsert_dataset_status(**about, prediction_file=result_file, status="pending")
                if WORLD_SIZE > 1:
                    if RANK == 0:
                        dataset = build_dataset_from_cli(dataset_name)
                    dist.barrier()
                dataset = build_dataset_from_cli(dataset_name)
                if dataset is None:
                    if RANK == 0:
                        upsert_dataset_status(**about, status="done", skip_reason="invalid_dataset")
                    continue
                if RANK == 0:
                    prepare_reuse_files(
                        pred_root_meta=pred_root_meta,
                        eval_id=eval_id,
                        model_name=model_name,
                        dataset_name=dataset_name,
                        dataset=dataset,
                        result_file=result_file,
                        reuse=args.reuse or args.mode == "eval",
                    )
                if WORLD_SIZE > 1:
                    dist.barrier()
                complete = is_prediction_complete(result_file, list(dataset.data["index"]))
                if args.mode == "eval" and not complete:
                    if RANK == 0:
                        upsert_dataset_status(
                            **about, status="done", skip_reason="No infer result found"
                        )
                    continue
                if args.mode != "eval":
                    model = infer_data_job_video(
                        model or model_name,
                        work_dir=pred_root,
                        model_name=model_name,
                        dataset=dataset,
                        result_file=result_file,
                        verbose=False,
                        retry_failed=True,
                    )
                if WORLD_SIZE > 1:
                    dist.barrier()
                if RANK == 0:
                    if args.mode != "infer":
                        dataset.evaluate(result_file)
                    upsert_dataset_status(**about, status="done")
            except Exception as exc:
                if RANK == 0:
                    upsert_dataset_status(**about, status="done", error_message=str(exc))
                continue
    if WORLD_SIZE > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    load_env()
    main()
