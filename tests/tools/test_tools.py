"""The scripts in tools/ make clips and checkpoints that the rest of the tests can rely on."""

from __future__ import annotations

import json

import av
import decord
import make_sample_clips as clips
import make_tiny_checkpoint as checkpoints
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from tokenizers import Tokenizer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def clip_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    clips.make_sample_clips(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return checkpoints.make_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.mark.parametrize(
    ("name", "width", "height", "fps", "frames"),
    [
        ("bouncing_ball.mp4", 640, 360, 20, 160),
        ("color_bars.mp4", 432, 768, 30, 90),
        ("blink.mp4", 350, 262, 10, 5),
    ],
)
def test_a_clip_has_the_promised_size_rate_and_length(clip_dir, name, width, height, fps, frames):
    reader = decord.VideoReader(str(clip_dir / name))
    assert len(reader) == frames
    assert reader.get_avg_fps() == fps
    assert reader[0].shape == (height, width, 3)


@pytest.mark.parametrize("name", ["bouncing_ball.mp4", "color_bars.mp4", "blink.mp4"])
def test_decord_and_pyav_read_the_same_pixels(clip_dir, name):
    reader = decord.VideoReader(str(clip_dir / name))
    with av.open(str(clip_dir / name)) as container:
        for frame, expected in zip(container.decode(video=0), reader, strict=True):
            assert np.array_equal(frame.to_ndarray(format="rgb24"), expected.asnumpy())


def test_a_clip_shows_what_was_drawn(tmp_path):
    path = clips.make_clip(
        tmp_path / "eye.mp4", width=350, height=262, fps=10, frames=5, draw=clips.draw_blink
    )
    reader = decord.VideoReader(str(path))
    for index in range(5):
        drawn = clips.draw_blink(index, 350, 262).astype(int)
        assert np.abs(reader[index].asnumpy() - drawn).mean() < 4


def test_clips_made_again_replace_the_first_with_the_same_bytes(tmp_path):
    small = {"width": 64, "height": 48, "fps": 10, "frames": 12, "draw": clips.draw_color_bars}
    first = clips.make_clip(tmp_path / "bars.mp4", **small).read_bytes()
    assert clips.make_clip(tmp_path / "bars.mp4", **small).read_bytes() == first
    assert [path.name for path in tmp_path.iterdir()] == ["bars.mp4"]


def test_a_clip_that_fails_half_way_leaves_the_old_one_alone(tmp_path):
    def draw(index, width, height):
        if index == 3:
            raise ZeroDivisionError
        return np.zeros((height, width, 3), np.uint8)

    (tmp_path / "clip.mp4").write_bytes(b"old")
    with pytest.raises(ZeroDivisionError):
        clips.make_clip(tmp_path / "clip.mp4", width=64, height=48, fps=10, frames=9, draw=draw)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def longva_layout(*, tower_layers=4, layers=2, d=64, fc=160, h=128, kv=64, mlp=320, rows=576):
    """Name -> shape of every tensor of a LongVA checkpoint, written down once more."""

    def both(name, *shape):
        return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}

    tower = {
        "embeddings.class_embedding": (d,),
        "embeddings.patch_embedding.weight": (d, 3, 14, 14),
        "embeddings.position_embedding.weight": (24 * 24 + 1, d),
        **both("pre_layrnorm", d),
        **both("post_layernorm", d),
    }
    for n in range(tower_layers):
        for part in (
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
            "self_attn.out_proj",
        ):
            tower |= both(f"encoder.layers.{n}.{part}", d, d)
        tower |= both(f"encoder.layers.{n}.mlp.fc1", fc, d) | both(
            f"encoder.layers.{n}.mlp.fc2", d, fc
        )
        tower |= both(f"encoder.layers.{n}.layer_norm1", d) | both(
            f"encoder.layers.{n}.layer_norm2", d
        )
    language = {"embed_tokens.weight": (rows, h), "norm.weight": (h,)}
    for n in range(layers):
        for part, size in ("q", h), ("k", kv), ("v", kv):
            language |= both(f"layers.{n}.self_attn.{part}_proj", size, h)
        language |= {
            f"layers.{n}.self_attn.o_proj.weight": (h, h),
            f"layers.{n}.mlp.gate_proj.weight": (mlp, h),
            f"layers.{n}.mlp.up_proj.weight": (mlp, h),
            f"layers.{n}.mlp.down_proj.weight": (h, mlp),
            f"layers.{n}.input_layernorm.weight": (h,),
            f"layers.{n}.post_attention_layernorm.weight": (h,),
        }
    return {
        **{f"model.vision_tower.vision_tower.vision_model.{k}": v for k, v in tower.items()},
        **both("model.mm_projector.0", h, d),
        **both("model.mm_projector.2", h, h),
        **{f"model.{k}": v for k, v in language.items()},
        "lm_head.weight": (rows, h),
    }


def test_the_weights_have_longva_names_and_shapes_in_bfloat16(checkpoint):
    tensors = load_file(checkpoint / "model.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == longva_layout()
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}


def test_the_clip_folder_that_the_config_names_lies_in_the_checkpoint(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    clip = checkpoint / config["mm_vision_tower"]
    assert sorted(path.name for path in clip.iterdir()) == [
        "config.json",
        "preprocessor_config.json",
    ]
    vision = json.loads((clip / "config.json").read_text())["vision_config"]
    assert vision["hidden_size"] == config["mm_hidden_size"]


def test_the_tokenizer_ends_with_the_special_tokens_and_is_smaller_than_the_embedding(checkpoint):
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == 512
    assert json.loads((checkpoint / "config.json").read_text())["vocab_size"] == 576
    text = "<|im_start|>user\nWas it 42 °C? Naïve 日本<|im_end|><|endoftext|>"
    ids = tokenizer.encode(text).ids
    assert (ids[0], ids[-2:]) == (510, [511, 509])
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_the_same_seed_gives_the_same_bytes(checkpoint, tmp_path):
    again = checkpoints.make_tiny_checkpoint(tmp_path / "again", seed=0)
    assert contents(again) == contents(checkpoint)


def test_another_seed_changes_every_tensor_and_no_other_file(checkpoint, tmp_path):
    other = checkpoints.make_tiny_checkpoint(tmp_path / "other", seed=1)
    assert differences(other, checkpoint) == longva_layout().keys()
    assert differing_files(other, checkpoint) == {"model.safetensors"}


def test_another_language_seed_changes_the_language_model_alone(checkpoint, tmp_path):
    other = checkpoints.make_tiny_checkpoint(tmp_path / "other", language_seed=7)
    assert differences(other, checkpoint) == {
        name for name in longva_layout() if "vision_tower" not in name and "projector" not in name
    }


def test_shards_hold_the_same_tensors_once_each_and_the_index_finds_them(checkpoint, tmp_path):
    sharded = checkpoints.make_tiny_checkpoint(tmp_path / "sharded", shards=3)
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {
        f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)
    }
    found = {
        (name, path.name) for path in sharded.glob("*.safetensors") for name in load_file(path)
    }
    assert found == set(index["weight_map"].items())
    tensors = load_all(sharded)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    assert not differences(sharded, checkpoint)


def test_the_model_type_changes_one_line_of_the_config(checkpoint, tmp_path):
    other = checkpoints.make_tiny_checkpoint(tmp_path / "other", model_type="qwen2")
    assert differing_files(other, checkpoint) == {"config.json"}
    assert json.loads((other / "config.json").read_text())["model_type"] == "qwen2"


def test_a_folder_with_files_in_it_is_left_alone(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"took a week")
    result = CliRunner().invoke(checkpoints.main, [str(tmp_path)])
    assert result.exit_code == 1
    assert "is not empty" in result.stderr
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"took a week"]


def test_the_command_prints_where_the_checkpoint_lies(tmp_path):
    result = CliRunner().invoke(checkpoints.main, [str(tmp_path / "new"), "--shards", "2"])
    assert result.stdout == f"{tmp_path / 'new'}\n"


def contents(checkpoint):
    return {
        str(path.relative_to(checkpoint)): path.read_bytes()
        for path in checkpoint.rglob("*")
        if path.is_file()
    }


def differing_files(left, right):
    return {name for name, _ in contents(left).items() ^ contents(right).items()}


def load_all(checkpoint):
    files = checkpoint.glob("*.safetensors")
    return {name: tensor for path in files for name, tensor in load_file(path).items()}


def differences(left, right):
    left, right = load_all(left), load_all(right)
    return {name for name in left.keys() | right if not torch.equal(left[name], right[name])}
