"""Which checkpoints see alike is said from their configs and vision weights."""

from __future__ import annotations

import json
import shutil

import pytest
from click.testing import CliRunner
from make_tiny_checkpoint import make_tiny_checkpoint
from make_tiny_video_model import make_tiny_video_model
from safetensors.torch import load_file, save_file
from toys import REPOSITORY

from featstore.cli import main
from featstore.encoders.alike import ENCODER_OF, compare_sight
from featstore.encoders.longva.checkpoint import MODEL_TYPES
from featstore.encoders.torch_encoder import TorchEncoder
from featstore.errors import CheckpointError
from featstore.models.transformers_video.families import FAMILIES

pytestmark = pytest.mark.slow


def make_qwen(out, **seeds):
    return make_tiny_video_model(out, "qwen2_5_vl", **seeds)


MAKE = {"longva": make_tiny_checkpoint, "qwen_vl": make_qwen}


@pytest.fixture(scope="module", params=MAKE)
def three(request, tmp_path_factory):
    """A checkpoint, one with another language model, and one with another vision side."""
    root = tmp_path_factory.mktemp(request.param)
    seeds = {"a": {}, "tuned": {"language_seed": 7}, "other": {"seed": 1}}
    return [str(MAKE[request.param](root / name, **seed)) for name, seed in seeds.items()]


def test_checkpoints_with_equal_vision_weights_see_alike(three):
    a, tuned, other = compare_sight(three)
    assert a.weights == tuned.weights != other.weights
    assert (a.like, tuned.like, other.like) == (three[0], three[0], three[2])
    assert not a.differing
    assert not tuned.differing
    assert not other.differing


def test_no_model_is_built(three, monkeypatch):
    monkeypatch.setattr(TorchEncoder, "build", None)
    monkeypatch.setattr("featstore.encoders.longva.modeling.build_model", None)
    assert len(compare_sight(three)) == 3


def test_what_keeps_features_of_equal_weights_apart_is_named(tmp_path):
    a = make_qwen(tmp_path / "a")
    b = tmp_path / "b"
    shutil.copytree(a, b)
    path = b / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "image_mean": [0.5, 0.5, 0.5]}))
    _, found = compare_sight([str(a), str(b)])
    assert (found.like, found.differing) == (str(a), ("preprocessing.mean",))


def test_tensors_of_older_and_newer_names_are_the_same_weights(tmp_path):
    """The checkpoints on the Hub have a level more in their names than transformers writes today."""
    a = make_tiny_video_model(tmp_path / "a", "llava_onevision")
    paths = [str(a)]
    for start, level in (("", "vision_model."), ("model.", "")):
        b = tmp_path / f"b{start}"
        shutil.copytree(a, b)
        paths.append(str(b))
        tensors = {
            start + name.replace("vision_tower.", f"vision_tower.{level}"): tensor
            for name, tensor in load_file(a / "model.safetensors").items()
        }
        save_file(tensors, b / "model.safetensors")
    assert {sight.like for sight in compare_sight(paths)} == {str(a)}


def test_the_command_prints_a_table_and_json_of_the_schema(three):
    done = CliRunner().invoke(main, ["shape", *three])
    assert done.exit_code == 0, done.output
    head, first, second, third = done.stdout.splitlines()
    assert "sees like" in head
    assert second.count(three[0]) == 1
    assert first.split()[2] == second.split()[2] != third.split()[2]
    rows = json.loads(CliRunner().invoke(main, ["shape", *three, "--json"]).stdout)
    assert [row["like"] for row in rows] == [three[0], three[0], three[2]]
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((REPOSITORY / "docs" / "json.schema.json").read_text())
    rule = schema | {"$ref": "#/$defs/commands/shape"}
    jsonschema.Draft202012Validator(rule).validate(rows)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a"], "name two checkpoints or more"),
        (["a", "b", "--nframe", "128"], "compared without --model-path"),
    ],
)
def test_a_comparison_takes_checkpoints_only(words, message):
    done = CliRunner().invoke(main, ["shape", *words])
    assert done.exit_code == 2
    assert message in " ".join(done.output.split())


def test_a_checkpoint_without_an_encoder_for_videos_is_refused_by_its_type(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match="model_type = 'bert', expected one of llava_qwen"):
        compare_sight([str(tmp_path)])


def test_every_video_model_with_an_encoder_can_be_compared():
    known = {kind: family.encoder for kind, family in FAMILIES.items()}
    assert known | dict.fromkeys(MODEL_TYPES, "longva") == ENCODER_OF
