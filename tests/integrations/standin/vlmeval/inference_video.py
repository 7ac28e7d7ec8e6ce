import os

from vlmeval.config import supported_VLM


def infer_data_job_video(model, model_name, dataset):
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    model = supported_VLM[model_name]() if isinstance(model, str) else model
    name = dataset.dataset_name
    answers = {}
    for row in list(range(len(dataset.data)))[rank::world]:
        if (getattr(model, "nframe", 0) or 0) > 0:
            if dataset.nframe > 0:
                model.nframe = dataset.nframe
            elif getattr(model, "fps", 0) == 0:
                raise ValueError(f"fps is not suitable for {model_name}")
        name = dataset.data[row].get("SUB_DATASET", name)
        message = dataset.build_prompt(row, video_llm=getattr(model, "VIDEO_LLM", False))
        answers[row] = model.generate(message=message, dataset=name)
    return model, answers
