import csv
import json
import os
import pickle
import shutil
from pathlib import Path

statuses = []


def load_env():
    os.environ["STANDIN_ENV_LOADED"] = "1"


def upsert_dataset_status(run_dir, model_name, dataset_name, **status):
    statuses.append({"model_name": model_name, "dataset_name": dataset_name, **status})


def load(file):
    """A .json gives a list of rows, as the real one does; a .tsv, like an .xlsx, what has columns."""
    path = Path(file)
    if path.suffix == ".pkl":
        return pickle.loads(path.read_bytes())
    if path.suffix == ".json":
        return json.loads(path.read_text())
    with path.open(newline="") as lines:
        rows = list(csv.DictReader(lines, delimiter="\t"))
    table = {name: [row[name] for row in rows] for name in rows[0]}
    return table | {"index": [int(index) for index in table["index"]]}


def dump(data, file):
    path = Path(file)
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(data))
    elif path.suffix == ".json":
        path.write_text(json.dumps(data))
    else:
        names = list(dict.fromkeys(name for row in data for name in row))
        with path.open("w", newline="") as lines:
            table = csv.DictWriter(lines, names, delimiter="\t")
            table.writeheader()
            table.writerows(data)


def is_prediction_complete(file, dataset_indices):
    if not os.path.exists(file):
        return False
    table = load(file)
    if isinstance(table, list):
        table = {name: [row[name] for row in table] for name in ("index", "prediction")}
    answered = {
        index
        for index, text in zip(table["index"], table["prediction"], strict=True)
        if "Failed to obtain answer" not in text
    }
    return set(dataset_indices) <= answered


def prepare_reuse_files(
    pred_root_meta, eval_id, model_name, dataset_name, dataset, result_file, reuse
):
    """Take the predictions of the newest earlier run."""
    if not reuse:
        return
    for folder in sorted(Path(pred_root_meta).iterdir(), reverse=True):
        found = folder / Path(result_file).name
        if folder.name != eval_id and found.exists():
            shutil.copy2(found, result_file)
            return
