"""As VLMEvalKit's run.py: hands out GPUs first, then imports, then runs every model on every dataset."""

import argparse
import json
import os
import sys
from pathlib import Path

RANK = int(os.environ.get("RANK", 0))
print("torch is loaded before the GPUs are handed out:", "torch" in sys.modules)

from vlmeval.dataset.video_dataset_config import supported_video_datasets  # noqa: E402
from vlmeval.inference_video import infer_data_job_video  # noqa: E402
from vlmeval.smp import load_env, upsert_dataset_status  # noqa: E402


def parse_args():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", nargs="+")
    parser.add_argument("--model", nargs="+")
    parser.add_argument("--work-dir", default="./outputs")
    parser.add_argument("--mode", default="all", choices=["all", "infer", "eval"])
    return parser.parse_args()


def main():
    args = parse_args()
    for model_name in args.model:
        model = None
        for dataset_name in args.data:
            names = {"model_name": model_name, "dataset_name": dataset_name}
            try:
                if dataset_name not in supported_video_datasets:
                    upsert_dataset_status(**names, status="done", skip_reason="invalid_dataset")
                    continue
                dataset = supported_video_datasets[dataset_name]()
                model, answers = infer_data_job_video(model or model_name, model_name, dataset)
                folder = Path(args.work_dir) / model_name
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"{model_name}_{dataset_name}.json").write_text(json.dumps(answers))
            except Exception as exc:
                upsert_dataset_status(**names, status="done", error_message=str(exc))


if __name__ == "__main__":
    load_env()
    main()
