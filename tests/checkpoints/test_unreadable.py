"""Files that are something else than their name says: the refusal says what, and what to do."""

from __future__ import annotations

import json
import pickle

import pytest

from featstore.checkpoints.config_fields import read_json
from featstore.checkpoints.files import LocalFiles
from featstore.checkpoints.tensors import list_tensors
from featstore.errors import CheckpointError

POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
    b"size 4877661776\n"
)
OTHERS = [
    (
        POINTER,
        "(it is a Git LFS pointer, 135 bytes that stand for the file); run `git lfs pull` in the clone it is in, or "
        "download the checkpoint with `hf download`",
    ),
    (b"", "(it is empty); fetch it again"),
    (
        b"\n<!DOCTYPE html><html>Log in</html>",
        "(it is a web page, as a server sends in place of a file); fetch it again, after `hf auth login` if its page "
        "on the Hub asks for a login",
    ),
    (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "(it is a web page"),
]


def weights(end: float = 8) -> bytes:
    """Return safetensors of one tensor of 8 bytes, which its header may say to end elsewhere."""
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, end]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(8)


def refusal(folder, name: str, content: bytes) -> str:
    (folder / name).write_bytes(content)
    files = LocalFiles(folder)
    with pytest.raises(CheckpointError) as caught:
        list_tensors(files) if name.startswith("model") else read_json(files, name)
    return str(caught.value)


@pytest.mark.parametrize(("content", "says"), OTHERS)
def test_weights_that_are_another_file_are_named_for_what_they_are(tmp_path, content, says):
    message = refusal(tmp_path, "model.safetensors", content)
    assert f"{tmp_path}/model.safetensors cannot be read as safetensors {says}" in message


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize(("content", "says"), OTHERS)
def test_a_json_file_that_is_another_file_is_named_for_what_it_is(tmp_path, name, content, says):
    message = refusal(tmp_path, name, content)
    assert f"{tmp_path}/{name} cannot be read as JSON {says}" in message


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (pickle.dumps(dict.fromkeys("abc")), "(it is a pickle, as torch.save writes); featstore"),
        (b"PK\x03\x04\0\0\x08\x08archive/data.pkl", "(it is a pickle, as torch.save writes); fe"),
        (b"GGUF\x03\0\0\0\x01", "(it is a GGUF file of llama.cpp); use the safetensors that"),
    ],
)
def test_weights_of_another_format_are_named_for_what_they_are(tmp_path, content, says):
    assert says in refusal(tmp_path, "model.safetensors", content)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            weights()[:20],
            "(it ends in its header: it has 20 bytes, the header 69); fetch it again",
        ),
        (weights()[:-1], "(it has 76 bytes, its header says 77); fetch it again"),
        (weights() + b"more", "(it has 81 bytes, its header says 77); fetch it again"),
        (bytes(100), "EOF while parsing"),
        (b"\x04\0\0\0\0\0\0\0null", "header"),
        (weights(9 * 10**4299), "header"),  # a number that Python does not print
        (weights(float("inf")), "header"),
        (b"\x02\0\0\0\0\0\0\0{}more", "fetch it again"),
    ],
)
def test_weights_that_were_cut_say_how_long_they_should_be(tmp_path, content, says):
    message = refusal(tmp_path, "model.safetensors", content)
    assert says in message
    assert message.endswith("; fetch it again")


def test_a_file_that_may_not_be_read_is_not_said_to_be_damaged(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_bytes", denied)
    monkeypatch.setattr("pathlib.Path.open", denied)
    with pytest.raises(CheckpointError, match=r"Permission denied\); check that this user may"):
        read_json(LocalFiles(tmp_path), "config.json")
