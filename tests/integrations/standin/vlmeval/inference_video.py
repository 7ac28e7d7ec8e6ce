import os
from pathlib import Path

from vlmeval.config import supported_VLM
from vlmeval.smp import dump, load

FAIL_MSG = "Failed to obtain answer via API."


def rank_and_world():
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def infer_data(model, model_name, work_dir, dataset, out_file, verbose=False, retry_failed=True):
    rank, world = rank_and_world()
    earlier = f"{work_dir}/{model_name}_{dataset.dataset_name}_PREV.pkl"
    answers = load(earlier) if os.path.exists(earlier) else {}
    if os.path.exists(out_file):
        answers.update(load(out_file))
    mine = list(range(len(dataset.data["index"])))[rank::world]
    if all(row in answers for row in mine):
        return model
    hidden = os.environ.pop("WORLD_SIZE", None)
    model = supported_VLM[model_name]() if isinstance(model, str) else model
    if hidden:
        os.environ["WORLD_SIZE"] = hidden
    name = dataset.dataset_name
    for row in [row for row in mine if row not in answers]:
        if (getattr(model, "nframe", 0) or 0) > 0:
            if dataset.nframe > 0:
                model.nframe = dataset.nframe
            elif getattr(model, "fps", 0) == 0:
                raise ValueError(f"fps is not suitable for {model_name}")
        name = dataset.rows[row].get("SUB_DATASET", name)
        message = dataset.build_prompt(row, video_llm=getattr(model, "VIDEO_LLM", False))
        answers[row] = model.generate(message=message, dataset=name)
    dump({row: answers[row] for row in mine}, out_file)
    return model


def infer_data_job_video(
    model, work_dir, model_name, dataset, result_file=None, verbose=False, retry_failed=True
):
    import torch.distributed as dist

    rank, world = rank_and_world()
    earlier = f"{work_dir}/{model_name}_{dataset.dataset_name}_PREV.pkl"
    if os.path.exists(result_file):
        if rank == 0:
            table = load(result_file)
            answers = dict(zip(table["index"], table["prediction"], strict=True))
            answers = {row: text for row, text in answers.items() if FAIL_MSG not in text}
            if len(answers) == len(table["index"]):
                return model
            dump(answers, earlier)
        if world > 1:
            dist.barrier()
    part = os.path.join(work_dir, "{}" + f"{world}_{Path(result_file).stem}.pkl")
    model = infer_data(
        model=model,
        model_name=model_name,
        work_dir=work_dir,
        dataset=dataset,
        out_file=part.format(rank),
        verbose=verbose,
        retry_failed=retry_failed,
    )
    if world > 1:
        dist.barrier()
    if rank == 0:
        answers = {}
        for other in range(world):
            answers.update(load(part.format(other)))
        for row in dataset.data["index"]:
            assert row in answers
        dump([row | {"prediction": answers[row["index"]]} for row in dataset.rows], result_file)
        for other in range(world):
            os.remove(part.format(other))
        if os.path.exists(earlier):
            os.remove(earlier)
    return model
