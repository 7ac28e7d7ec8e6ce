"""Checkpoints made to harm: no code of theirs runs, no file beside them is written, no number of theirs is believed."""

from __future__ import annotations

import json
import os
import pickle
import zipfile

import pytest
import torch

from featstore.encoders.longva.checkpoint import read_checkpoint
from featstore.encoders.longva.weights import find_weights
from featstore.errors import CheckpointError
from featstore.models.longva.language import load_language

CPU = torch.device("cpu")
EMBEDDING = "model.embed_tokens.weight"


class Trap:
    """Makes a folder of the name it was pickled with when it is unpickled."""

    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.pt", "model.pth"])
def test_pickled_weights_are_refused_and_never_run(altered, tmp_path, name):
    checkpoint = altered()
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / name).write_bytes(pickle.dumps(Trap(str(tmp_path / "ran"))))
    for load in (lambda: find_weights(read_checkpoint(checkpoint)), lambda: speak(checkpoint)):
        with pytest.raises(CheckpointError, match=rf"pickled weights \({name}\).*safetensors"):
            load()
    assert not (tmp_path / "ran").exists()


def test_a_pickle_that_is_called_safetensors_is_refused_and_never_run(altered, tmp_path):
    checkpoint = altered()
    trap = pickle.dumps(Trap(str(tmp_path / "ran")))
    (checkpoint / "model.safetensors").write_bytes(trap)
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        find_weights(read_checkpoint(checkpoint))
    with zipfile.ZipFile(checkpoint / "model.safetensors", "w") as archive:  # as torch.save has it
        archive.writestr("archive/data.pkl", trap)
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        find_weights(read_checkpoint(checkpoint))
    assert not (tmp_path / "ran").exists()


def test_code_that_a_checkpoint_brings_is_not_run(altered, tmp_path):
    code = {"auto_map": {"AutoTokenizer": ["trap.Trap", None], "AutoModel": "trap.Trap"}}
    checkpoint = altered(config=code)
    (checkpoint / "trap.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\n")
    config = checkpoint / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | code))
    speak(checkpoint)
    read_checkpoint(checkpoint)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "name", ["../" * 30 + "proc/self", "/dev", "a\0b", "x" * 10_000_000, "clip\n\x1b[2J", "."]
)
def test_a_vision_tower_that_is_no_clip_folder_is_refused_in_few_words(altered, name, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(altered(config={"mm_vision_tower": name}))
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("shape", [(), (3,), (0, 0), (1, 1, 1)])
def test_an_embedding_of_another_shape_is_refused(altered, shape):
    checkpoint = altered(tensors=lambda tensors: tensors | {EMBEDDING: torch.ones(shape)})
    with pytest.raises(CheckpointError, match="of shape"):
        speak(checkpoint)


def test_a_header_that_claims_more_than_the_file_holds_takes_no_memory(altered):
    checkpoint = altered()
    header = {
        EMBEDDING: {"dtype": "F32", "shape": [1 << 40, 1 << 20], "data_offsets": [0, 1 << 62]}
    }
    text = json.dumps(header).encode()
    path = checkpoint / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        find_weights(read_checkpoint(checkpoint))
    path.write_bytes((1 << 60).to_bytes(8, "little") + text)
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        find_weights(read_checkpoint(checkpoint))


@pytest.mark.parametrize(
    "sizes",
    [
        {"hidden_size": 1 << 60},
        {"num_hidden_layers": 1 << 40},
        {"vocab_size": -1},
        {"intermediate_size": 10**400},
        {"hidden_size": float("inf")},
        {"num_attention_heads": 0},
    ],
)
def test_sizes_that_no_model_has_are_refused(altered, sizes):
    with pytest.raises(CheckpointError, match=next(iter(sizes))):
        speak(altered(config=sizes))


def speak(checkpoint) -> None:
    load_language(checkpoint, device=CPU, dtype=torch.float32)
