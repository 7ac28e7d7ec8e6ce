"""Folders without model.safetensors and index: numbered files are read if that is certain, all else is named."""

from __future__ import annotations

import json
import re

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

from featstore.checkpoints.files import LocalFiles, open_files
from featstore.checkpoints.tensors import find_shard, list_tensors
from featstore.encoders.longva.checkpoint import read_checkpoint
from featstore.encoders.longva.weights import find_weights
from featstore.errors import CheckpointError

INDEX = "model.safetensors.index.json"


def shard(number: int, count: int = 3) -> str:
    return f"model-{number:05}-of-{count:05}.safetensors"


def digest(checkpoint) -> str:
    return find_weights(read_checkpoint(checkpoint)).digest


def refusal(folder) -> str:
    with pytest.raises(CheckpointError) as caught:
        list_tensors(LocalFiles(folder))
    return str(caught.value)


@pytest.fixture
def unindexed(make_checkpoint, tmp_path):
    """A checkpoint of three numbered files without the index that names them."""
    checkpoint = make_checkpoint(tmp_path / "checkpoint", shards=3)
    (checkpoint / INDEX).unlink()
    return checkpoint


# Numbered files


def test_all_numbered_files_are_read_without_their_index(tiny, unindexed):
    assert digest(unindexed) == digest(tiny)


def test_an_index_that_leaves_a_numbered_file_out_is_followed(make_checkpoint, tmp_path):
    checkpoint = make_checkpoint(tmp_path / "checkpoint", shards=3)
    index = json.loads((checkpoint / INDEX).read_text())["weight_map"]
    assert list_tensors(LocalFiles(checkpoint)) == index


def test_numbered_files_of_which_one_is_missing_are_refused_by_its_name(unindexed):
    (unindexed / shard(2)).unlink()
    assert refusal(unindexed) == (
        f"{unindexed} has no {INDEX}, which would name its weights; it has {shard(1)}, but not {shard(2)}; fetch both"
    )


def test_a_tensor_that_is_in_two_numbered_files_is_refused_by_its_name(unindexed):
    first, second = (load_file(unindexed / shard(number)) for number in (1, 2))
    name = min(first)
    (unindexed / shard(2)).unlink()
    save_file(second | {name: first[name].clone()}, unindexed / shard(2))
    assert refusal(unindexed).endswith(
        f"it has {name!r} in {shard(1)} and in {shard(2)}; fetch {INDEX}"
    )


@pytest.mark.parametrize("other", [shard(1, 4), shard(4), shard(0)])
def test_numbered_files_that_do_not_belong_together_are_refused(unindexed, other):
    save_file({"a": torch.ones(1)}, unindexed / other)
    message = refusal(unindexed)
    assert f"{unindexed} has no {INDEX}, which would name its weights; it has" in message


# Others


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            "adapter_model.safetensors",
            "holds an adapter (adapter_model.safetensors), expected model.safetensors or model.safetensors.index.json; "
            "merge it into its base model with peft's merge_and_unload, and use the result",
        ),
        ("adapter_config.json", "holds an adapter (adapter_config.json), expected"),
        (
            "consolidated.safetensors",
            "holds safetensors of another name (consolidated.safetensors), expected model.safetensors or "
            "model.safetensors.index.json; rename it model.safetensors if it is the whole model, or fetch all files",
        ),
        (
            "model.safetensors.incomplete",
            "holds a download that has not ended (model.safetensors.incomplete), expected model.safetensors or "
            "model.safetensors.index.json; wait for it, or start it again",
        ),
        ("model.Q4_K_M.gguf", "holds weights for llama.cpp (model.Q4_K_M.gguf), expected"),
        ("zero_to_fp32.py", "holds a DeepSpeed checkpoint (zero_to_fp32.py), expected"),
        ("tf_model.h5", "holds weights for another framework (tf_model.h5), expected"),
        ("training_args.bin", "holds no safetensors, expected model.safetensors or"),
        ("config.json", "holds no safetensors, expected model.safetensors or"),
    ],
)
def test_what_is_there_in_place_of_weights_is_said(tmp_path, name, says):
    (tmp_path / name).write_bytes(b"never read")
    message = refusal(tmp_path)
    assert f"{tmp_path} {says}" in message
    assert "; " in message.partition("index.json")[2]


@pytest.mark.parametrize("count", [1, 2])
def test_pickled_weights_that_were_converted_as_the_refusal_says_are_read(
    altered, tiny, monkeypatch, count
):
    checkpoint = altered()
    tensors = load_file(tiny / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    torch.save({}, checkpoint / "optimizer.pt")
    pickled = [
        f"pytorch_model{f'-{i + 1:05}-of-{count:05}' if count > 1 else ''}.bin"
        for i in range(count)
    ]
    for i, name in enumerate(pickled):
        part = {key: tensors[key] for key in list(tensors)[i::count]}
        torch.save(part | {f"shared.{i}": part[min(part)]}, checkpoint / name)
    message = refusal(checkpoint)
    assert f"holds no safetensors but pickled weights ({pickled[0]}), expected" in message
    monkeypatch.chdir(checkpoint)
    code = re.search("`(.*)`", message)[1]
    for name in pickled:
        new = name.removeprefix("pytorch_").replace(".bin", ".safetensors")
        first = pickled[0].removeprefix("pytorch_").replace(".bin", ".safetensors")
        exec(
            f"import safetensors.torch, torch; {code.replace(first, new).replace(pickled[0], name)}"
        )
    assert digest(checkpoint) == digest(tiny)


def test_a_hub_that_cannot_be_reached_is_not_said_to_lack_a_file(tmp_path, monkeypatch):
    config = tmp_path / "snapshots" / "abc" / "config.json"
    config.parent.mkdir(parents=True)
    config.write_text("{}")

    def offline(repo, name, revision=None):
        if name == "config.json":
            return str(config)
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    files = open_files("someone/longva")
    files.find("config.json")
    searched = ", and the Hub cannot be reached: only its cache here was searched; fetch"
    with pytest.raises(CheckpointError, match=f"holds no safetensors, .*index.json{searched}"):
        list_tensors(files)
    with pytest.raises(CheckpointError, match=f"has no {shard(1)}, .*'a'{searched}"):
        find_shard(files, shard(1), "a")
