"""Checkpoints of video models that cannot be followed are refused before any work, naming file and field."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from make_tiny_video_model import make_tiny_video_model
from safetensors.torch import load_file, save_file

from featstore.encoders.llava_onevision.encoder import LlavaOnevisionEncoder
from featstore.encoders.qwen_vl.encoder import QwenVLEncoder
from featstore.errors import CheckpointError
from featstore.models import CachedVideoModel

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("made")
    return {
        name: make_tiny_video_model(root / name, name) for name in ("qwen3_vl", "llava_onevision")
    }


@pytest.fixture
def copied(made, tmp_path):
    """A copy of a checkpoint, to break."""
    return lambda family: shutil.copytree(made[family], tmp_path / "model")


def change(file, change):
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("part", ["model.visual.", "model.language_model."])
def test_weights_that_are_no_floats_are_refused(copied, part, dtype):
    """Their numbers were taken for weights, without the scales that they need."""
    folder = copied("qwen3_vl")
    [file] = folder.glob("*.safetensors")
    tensors = load_file(file)
    name = next(name for name in tensors if name.startswith(part) and tensors[name].ndim == 2)
    save_file(tensors | {name: tensors[name].to(dtype)}, file)
    with pytest.raises(CheckpointError, match=rf"'{name}' as \w+, expected one of F16.*; it is"):
        CachedVideoModel(folder, device="cpu")


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("hidden_size", "many", "config.json .*'hidden_size' expected int, got str"),
        ("num_heads", None, "config.json .*'num_heads' expected int, got NoneType"),
        ("hidden_act", "many", "config.json says .*'many'"),
    ],
)
def test_a_field_of_a_wrong_type_is_named_with_its_file(copied, field, value, said):
    folder = copied("qwen3_vl")
    change(folder / "config.json", lambda config: config["vision_config"].update({field: value}))
    with pytest.raises(CheckpointError, match=rf"(?s){said}.*as the model's authors published it"):
        QwenVLEncoder(str(folder), device="cpu").load()


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for %}", "cannot be followed .TemplateSyntaxError"),
        ("{{ messages[0].nope.more }}", "cannot be followed .UndefinedError"),
        ("{{ 1 + 'a' }}", "cannot be followed .TypeError"),
        ("no video", "has no place for a video"),
    ],
)
def test_a_chat_template_that_fails_is_refused_when_the_model_is_loaded(copied, template, said):
    folder = copied("qwen3_vl")
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(CheckpointError, match=rf"chat_template.jinja {said}"):
        CachedVideoModel(folder, device="cpu")


def test_a_crop_that_transformers_would_make_is_refused(copied):
    """It was recorded in the identity and not made. transformers crops for no Qwen-VL, and pads no video of either."""
    folder = copied("llava_onevision")
    file = next(
        file for file in folder.glob("*processor*.json") if "image_mean" in file.read_text()
    )

    def crop(edge):
        def cropped(values):
            values = values.get("video_processor", values)
            values |= {"do_center_crop": True, "crop_size": {"height": edge, "width": edge}}
            values["do_pad"] = True

        return cropped

    size = LlavaOnevisionEncoder(str(folder), device="cpu").preprocessing.height
    change(file, crop(size))
    LlavaOnevisionEncoder(str(folder), device="cpu")
    change(file, crop(size - 8))
    with pytest.raises(CheckpointError, match="do_center_crop = True, expected false"):
        LlavaOnevisionEncoder(str(folder), device="cpu")


@pytest.mark.parametrize("limit", ["min_pixels", "max_pixels", "total_pixels"])
def test_a_limit_of_no_pixels_is_not_the_default(limit):
    with pytest.raises(ValueError, match=f"{limit} is 0; it must be at least 1, or None"):
        QwenVLEncoder("nowhere", device="cpu", **{limit: 0})
