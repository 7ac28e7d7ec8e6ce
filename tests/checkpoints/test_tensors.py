"""Safetensors and their index: what is damaged is refused, and no pickle is opened."""

from __future__ import annotations

import json

import pytest

from featstore.encoders.longva.checkpoint import read_checkpoint
from featstore.encoders.longva.weights import find_weights
from featstore.errors import CheckpointError

PROJECTOR = "model.mm_projector."


def digest(checkpoint) -> str:
    return find_weights(read_checkpoint(checkpoint)).digest


def test_pickled_weights_are_refused_unopened(altered):
    checkpoint = altered()
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "pytorch_model.bin").write_bytes(b"never read")
    with pytest.raises(CheckpointError, match=r"pickled weights \(pytorch_model\.bin\).*convert"):
        digest(checkpoint)


@pytest.mark.parametrize(
    "shard",
    ["../model-00002-of-00003.safetensors", "/etc/x.safetensors", "a\\b.safetensors", "x.bin", 7],
)
def test_an_index_that_leaves_its_folder_is_refused(make_checkpoint, tmp_path, shard):
    checkpoint = make_checkpoint(tmp_path / "sharded", shards=3)
    path = checkpoint / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"][PROJECTOR + "0.bias"] = shard
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError) as caught:
        digest(checkpoint)
    assert f"names the file {shard!r}, expected a plain name" in str(caught.value)


def test_an_index_that_is_wrong_is_refused(make_checkpoint, tmp_path):
    checkpoint = make_checkpoint(tmp_path / "sharded", shards=3)
    path = checkpoint / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    right = index["weight_map"][PROJECTOR + "0.bias"]
    wrong = index["weight_map"]["model.embed_tokens.weight"]
    assert right != wrong
    index["weight_map"][PROJECTOR + "0.bias"] = wrong
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=f"{wrong} lacks '{PROJECTOR}0.bias'"):
        digest(checkpoint)
    index["weight_map"][PROJECTOR + "0.bias"] = right
    path.write_text(json.dumps(index))
    (checkpoint / right).unlink()
    with pytest.raises(CheckpointError, match=f"has no {right}, in which its index places"):
        digest(checkpoint)


@pytest.mark.parametrize("keep", [0, 7, 5_000, -1])
def test_truncated_weights_are_refused(altered, keep):
    checkpoint = altered()
    path = checkpoint / "model.safetensors"
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:keep])
    with pytest.raises(CheckpointError, match=r"cannot be read as safetensors.*fetch it again"):
        digest(checkpoint)
