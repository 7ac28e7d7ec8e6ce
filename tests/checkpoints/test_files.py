"""A checkpoint's files on disk and on the Hub: which are fetched, and what is said if they are missing or damaged."""

from __future__ import annotations

import json

import huggingface_hub
import pytest
from checkpoints import unreachable
from huggingface_hub.errors import EntryNotFoundError
from toys import run_python

from featstore.checkpoints import files
from featstore.encoders.longva.checkpoint import read_checkpoint
from featstore.encoders.longva.weights import find_weights
from featstore.errors import CheckpointError

CLIP = "openai/clip-tiny-patch14-336"


def digest(checkpoint, **options) -> str:
    return find_weights(read_checkpoint(checkpoint, **options)).digest


def test_only_files_that_hold_vision_tensors_are_fetched(make_checkpoint, tmp_path, monkeypatch):
    served = make_checkpoint(tmp_path / "snapshots" / "abc123", shards=4)
    fetched = []

    def download(repo, name, revision=None):
        assert revision in (None, "abc123")
        fetched.append((repo, name, revision))
        if not (served / name).is_file():
            raise EntryNotFoundError(name)
        return str(served / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    expected = digest(served)
    assert digest("someone/longva", vision_tower=served / CLIP) == expected
    assert fetched[0] == ("someone/longva", "config.json", None)
    assert all(revision == "abc123" for _, _, revision in fetched[1:])
    index = json.loads((served / "model.safetensors.index.json").read_text())["weight_map"]
    seeing = {shard for name, shard in index.items() if "vision" in name or "mm_proj" in name}
    assert {name for _, name, _ in fetched if name.startswith("model-")} == seeing
    assert len(seeing) < 4


def test_an_unreachable_hub_says_so(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    with pytest.raises(CheckpointError, match=r"'someone/longva' is not a folder.*check the name"):
        read_checkpoint("someone/longva")


OFFLINE = """
import time
from featstore.checkpoints.files import open_files
from featstore.errors import CheckpointError

waits = []
time.sleep = waits.append
try:
    open_files("someone/longva").find("config.json")
except CheckpointError as exc:
    print(exc)
print(sum(waits))
"""


def test_without_a_network_that_is_said_at_once(tmp_path):
    """The Hub's own download waits between five more tries, 23 seconds in all."""
    closed = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
    said = run_python(OFFLINE, **closed).stdout.splitlines()
    assert said[0].startswith("'someone/longva' is not a folder here and cannot be fetched")
    assert "Connection refused" in said[0]
    assert said[1:] == ["0"]


def test_without_a_network_what_is_cached_is_found_and_the_rest_asked_for_once(
    tmp_path, monkeypatch
):
    cached = tmp_path / "snapshots" / "abc" / "config.json"
    knocks = []
    monkeypatch.setattr(files, "_is_cached", lambda repo, name, commit: name == "config.json")
    monkeypatch.setattr(files, "knock", lambda *asked: knocks.append(asked) or "no route")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: str(cached))
    hub = files.HubFiles("someone/longva")
    assert hub.find("config.json") == cached
    assert (hub.find("a.safetensors"), hub.find("b.safetensors")) == (None, None)
    assert len(knocks) == 1
    assert "only its cache here was searched" in hub.caveat
    assert hub.find("config.json") == cached


def test_a_path_that_is_no_folder_is_not_asked_of_the_hub():
    with pytest.raises(CheckpointError, match="there is no folder '/nowhere/at/all'"):
        read_checkpoint("/nowhere/at/all")


def test_an_empty_name_is_not_the_working_directory(tiny, monkeypatch):
    monkeypatch.chdir(tiny)
    with pytest.raises(CheckpointError, match="there is no folder ''; name a folder that holds"):
        read_checkpoint("")


def test_a_file_is_not_asked_of_the_hub(monkeypatch, tmp_path):
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny/config.json").write_text("{}")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"'tiny/config\.json' is a file; .* folder"):
        read_checkpoint("tiny/config.json")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_link_whose_file_is_not_there_is_not_said_to_be_missing(altered, name):
    checkpoint = altered()
    (checkpoint / name).unlink()
    (checkpoint / name).symlink_to("../../blobs/4d7a21")
    with pytest.raises(CheckpointError) as caught:
        digest(checkpoint)
    assert str(caught.value) == (
        f"{checkpoint}/{name} is a link to ../../blobs/4d7a21, which is not there; copy a folder of the Hub's cache "
        "with `cp -rL`, which copies what links stand for, or download the checkpoint with `hf download`"
    )


def test_the_hubs_cache_of_a_model_is_not_taken_for_the_model(tmp_path):
    folder = tmp_path / "models--someone--long-va"
    (folder / "snapshots" / "abc").mkdir(parents=True)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(folder)
    assert str(caught.value) == (
        f"{folder} is the Hub's cache of someone/long-va; name that, or a folder in its snapshots/"
    )


def test_a_folder_that_may_not_be_listed_is_not_said_to_be_empty(altered, monkeypatch):
    checkpoint = altered()
    (checkpoint / "model.safetensors").unlink()

    def denied(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.scandir", denied)
    with pytest.raises(CheckpointError, match=r"cannot be listed .*denied\); check that this user"):
        digest(checkpoint)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{", "cannot be read as JSON"),
        (b"\xff\xfe", "cannot be read as JSON"),
        (b"[" * 100_000, "cannot be read as JSON"),
        (b"[1]", "holds a list, expected an object"),
        (b" " * (17 << 20), "has 17825792 bytes, at most 16777216"),
    ],
)
def test_a_config_that_is_damaged_is_refused(altered, content, says):
    checkpoint = altered()
    (checkpoint / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=says):
        read_checkpoint(checkpoint)
