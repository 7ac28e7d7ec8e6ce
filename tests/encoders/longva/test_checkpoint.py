"""What is read from a checkpoint, what is refused, and which values its digest names."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import huggingface_hub
import pytest
import torch
from checkpoints import unreachable
from safetensors.torch import load_file, save_file

from featstore.encoders.longva.checkpoint import read_checkpoint
from featstore.encoders.longva.weights import find_weights, needed_shapes
from featstore.errors import CheckpointError

TOWER = "model.vision_tower.vision_tower.vision_model."
PROJECTOR = "model.mm_projector."
CLIP = "openai/clip-tiny-patch14-336"
REAL_CLIP = "openai/clip-vit-large-patch14-336"


def digest(checkpoint, **options) -> str:
    return find_weights(read_checkpoint(checkpoint, **options)).digest


def cast(dtype):
    return lambda tensors: {name: tensor.to(dtype) for name, tensor in tensors.items()}


def nudge(key):
    """Change one value of the tensor called `key` by the least that its dtype can hold."""

    def change(tensors):
        tensors[key].view(torch.int16).view(-1)[3] ^= 1
        return tensors

    return change


def without(prefix):
    return lambda tensors: {k: v for k, v in tensors.items() if not k.startswith(prefix)}


def renamed(old, new):
    return lambda tensors: {k.replace(old, new): v for k, v in tensors.items()}


def added(key, like):
    return lambda tensors: tensors | {key: tensors[like].clone()}


# What a digest names


def test_checkpoints_that_see_alike_share_a_digest_whatever_they_say(
    tiny, make_checkpoint, tmp_path
):
    other = make_checkpoint(tmp_path / "b", language_seed=7, shards=3, model_type="qwen2")
    assert digest(other) == digest(tiny)
    assert digest(make_checkpoint(tmp_path / "c", seed=1)) != digest(tiny)


def test_a_sharded_checkpoint_loads_the_same_tensors(tiny, make_checkpoint, tmp_path):
    sharded = make_checkpoint(tmp_path / "sharded", shards=4)
    one, other = (
        find_weights(read_checkpoint(path)).load(torch.device("cpu"), torch.float32)
        for path in (tiny, sharded)
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_copies_of_equal_values_in_other_dtypes_share_a_digest(tiny, altered):
    assert digest(altered(tensors=cast(torch.float32))) == digest(tiny)
    half = altered(tensors=cast(torch.float16))
    assert digest(half) == digest(
        altered(tensors=lambda t: cast(torch.float32)(cast(torch.float16)(t)))
    )


@pytest.mark.parametrize(
    "key",
    [
        TOWER + "embeddings.position_embedding.weight",
        TOWER + "encoder.layers.1.self_attn.v_proj.weight",
        TOWER + "encoder.layers.2.mlp.fc2.bias",
        PROJECTOR + "2.weight",
    ],
)
def test_the_last_bit_of_a_used_tensor_changes_the_digest(tiny, altered, key):
    assert digest(altered(tensors=nudge(key))) != digest(tiny)


@pytest.mark.parametrize(
    "key",
    [
        TOWER + "encoder.layers.3.self_attn.v_proj.weight",  # above the selected hidden state
        TOWER + "post_layernorm.weight",
        "model.layers.0.mlp.up_proj.weight",
    ],
)
def test_a_tensor_that_features_do_not_depend_on_leaves_the_digest_alone(tiny, altered, key):
    assert digest(altered(tensors=nudge(key))) == digest(tiny)


def test_what_lies_above_the_selected_layer_may_be_missing(tiny, altered):
    cut = altered(tensors=lambda t: without(TOWER + "encoder.layers.3")(without(TOWER + "post")(t)))
    assert digest(cut) == digest(tiny)


def test_selecting_a_higher_layer_needs_its_tensors(tiny, altered):
    assert digest(altered({"mm_vision_select_layer": -1})) != digest(tiny)
    cut = altered({"mm_vision_select_layer": -1}, without(TOWER + "encoder.layers.3"))
    with pytest.raises(CheckpointError, match=r"lacks 16 of the 73 .*layers\.3"):
        digest(cut)


def test_the_position_ids_that_old_transformers_saved_are_ignored(tiny, altered):
    key = TOWER + "embeddings.position_ids"
    old = altered(tensors=lambda t: t | {key: torch.arange(577)[None]})
    assert digest(old) == digest(tiny)


def test_a_and_b_see_alike_and_c_does_not(reference):
    a, b, c = (digest(reference / f"checkpoints/longva-tiny-{x}") for x in "abc")
    assert a == b != c


# Which tower


def write_clip_weights(tiny, folder, scale=1.0):
    """Write the tower of `tiny`, its values times `scale`, as a CLIP model's weights."""
    tensors = load_file(tiny / "model.safetensors")
    tower = {
        "vision_model." + k.removeprefix(TOWER): v * scale
        for k, v in tensors.items()
        if k.startswith(TOWER)
    }
    save_file(tower | {"logit_scale": torch.ones(1)}, folder / "model.safetensors")


def test_the_checkpoints_own_tower_wins_over_the_named_clip_model(tiny, altered):
    checkpoint = altered()
    write_clip_weights(tiny, checkpoint / CLIP, scale=2.0)
    assert digest(checkpoint) == digest(tiny)


def test_a_checkpoint_without_a_tower_takes_the_named_clip_models(tiny, altered):
    checkpoint = altered(tensors=without(TOWER))
    write_clip_weights(tiny, checkpoint / CLIP)
    assert digest(checkpoint) == digest(tiny)
    write_clip_weights(tiny, checkpoint / CLIP, scale=2.0)
    assert digest(checkpoint) != digest(tiny)


def test_a_checkpoint_without_any_tower_is_refused(altered):
    with pytest.raises(
        CheckpointError, match=r"brings no vision tower of its own.*holds no safetensors"
    ):
        digest(altered(tensors=without(TOWER)))


def test_the_clip_folder_is_found_inside_in_the_working_directory_and_above(
    tiny, altered, tmp_path, monkeypatch
):
    checkpoint = altered()
    inside = read_checkpoint(checkpoint)
    home = tmp_path / "elsewhere"
    (home / CLIP).parent.mkdir(parents=True)
    for place in (checkpoint.parent, checkpoint.parent.parent):
        (place / CLIP).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(checkpoint / CLIP, place / CLIP)
        assert read_checkpoint(checkpoint).vision == inside.vision
        shutil.move(place / CLIP, checkpoint / CLIP)
    shutil.move(checkpoint / CLIP, home / CLIP)
    monkeypatch.chdir(home)
    assert read_checkpoint(checkpoint).vision == inside.vision
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    with pytest.raises(CheckpointError, match="clip-tiny-patch14-336' is not a folder here"):
        read_checkpoint(checkpoint)
    assert read_checkpoint(checkpoint, vision_tower=home / CLIP).vision == inside.vision


def test_a_vision_tower_that_is_asked_for_wins(altered, tmp_path):
    checkpoint = altered()
    other = tmp_path / "other"
    shutil.copytree(checkpoint / CLIP, other)
    config = json.loads((other / "config.json").read_text())
    config["vision_config"]["layer_norm_eps"] = 1e-6
    (other / "config.json").write_text(json.dumps(config))
    assert read_checkpoint(checkpoint, vision_tower=other).vision.tower.layer_norm_eps == 1e-6


def test_the_tower_of_the_real_longva_is_known_without_a_download(altered, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    config = {"mm_vision_tower": REAL_CLIP, "mm_hidden_size": 1024, "hidden_size": 3584}
    found = read_checkpoint(altered(config))
    shapes = needed_shapes(found.vision)
    assert len(shapes) == 5 + 23 * 16 + 4
    assert shapes["mm_projector.0.weight"] == (3584, 1024)
    assert shapes["vision_model.encoder.layers.22.mlp.fc1.weight"] == (4096, 1024)
    assert found.vision.tokens_per_frame == 144
    assert found.clip.preprocessing().max_frame == (336, 336)


def test_a_bare_vision_config_and_missing_numbers_mean_transformers_defaults(altered, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text('{"model_type": "clip_vision_model"}')
    tower = read_checkpoint(altered({"mm_hidden_size": ...}), vision_tower=bare).vision.tower
    assert (tower.hidden_size, tower.image_size, tower.patch_size) == (768, 224, 32)


def test_new_and_old_preprocessor_configs_mean_the_same(tiny, altered):
    new = altered(
        preprocessor_config={
            "size": {"shortest_edge": 336},
            "crop_size": {"height": 336, "width": 336},
            "rescale_factor": 0.00392156862745098,
        }
    )
    old = read_checkpoint(tiny).clip.preprocessing()
    assert read_checkpoint(new).clip.preprocessing() == old
    assert old.shortest_edge == 336


# What is refused


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"model_type": "llama"}, "model_type 'llama' and an mm_vision_tower"),
        ({"mm_vision_tower": ...}, "'llava_qwen' and no mm_vision_tower"),
        ({"model_type": "qwen2", "mm_vision_tower": None}, "'qwen2' and no mm_vision_tower"),
    ],
)
def test_what_is_no_longva_checkpoint_is_refused(altered, config, says):
    with pytest.raises(CheckpointError, match=says):
        read_checkpoint(altered(config))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"patch_size": 400}, "patch_size = 400"),
        ({"num_attention_heads": 7}, "num_attention_heads = 7, expected a divisor"),
        ({"hidden_act": "relu"}, "hidden_act = 'relu', expected 'quick_gelu' or 'gelu'"),
        ({"hidden_size": 1 << 40}, "hidden_size = 1099511627776"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps = nan"),
        ({"model_type": "siglip_vision_model"}, "'siglip_vision_model'"),
    ],
)
def test_a_tower_that_is_not_clips_is_refused(altered, change, says):
    checkpoint = altered()
    path = checkpoint / CLIP / "config.json"
    config = json.loads(path.read_text())
    config["vision_config"] |= change
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=says):
        read_checkpoint(checkpoint)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"size": {"height": 336, "width": 336}}, "size = .*shortest_edge"),
        ({"size": 224}, "size = 224, expected at least the crop's 336"),
        ({"crop_size": 224}, "crop_size = 224, expected the tower's image_size = 336"),
        ({"do_center_crop": False}, "do_center_crop = False"),
        ({"resample": 9}, "resample = 9"),
        ({"image_mean": [0.5, 0.5]}, r"image_mean = \[0.5, 0.5\]"),
        ({"image_std": [0.5, 0.5, 0]}, "image_std"),
    ],
)
def test_preprocessing_that_featstore_does_not_do_is_refused(altered, change, says):
    found = read_checkpoint(altered(preprocessor_config=change))
    with pytest.raises(CheckpointError, match=says):
        found.clip.preprocessing()


def test_a_clip_folder_without_preprocessing_is_refused(altered):
    checkpoint = altered()
    (checkpoint / CLIP / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no preprocessor_config\.json"):
        read_checkpoint(checkpoint).clip.preprocessing()


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        (without(PROJECTOR + "2"), r"lacks 2 of the 57 .*mm_projector\.2\.weight"),
        (without(TOWER + "pre_layrnorm"), r"lacks 2 of the 57 .*pre_layrnorm"),
        (
            renamed("vision_model.", ""),
            r"71 vision tensors of unknown names.*vision_tower\.vision_tower\.emb",
        ),
        (added(TOWER + "encoder.layers.4.mlp.fc1.bias", PROJECTOR + "0.bias"), "layers.4.mlp"),
        (added(PROJECTOR + "4.bias", PROJECTOR + "0.bias"), "1 vision .*mm_projector.4.bias"),
        (cast(torch.float64), "as F64, expected one of F16, BF16, F32.*not quantized"),
        (cast(torch.int8), "as I8.*quantized to integers"),
        (
            lambda t: t | {PROJECTOR + "0.weight": torch.zeros(128, 65)},
            r"mm_projector\.0\.weight' of shape \(128, 65\), its config makes it \(128, 64\)",
        ),
    ],
)
def test_weights_that_are_not_what_the_config_says_are_refused(altered, tensors, says):
    with pytest.raises(CheckpointError, match=says):
        digest(altered(tensors=tensors))


def test_a_folder_that_holds_only_an_adapter_is_refused_for_it(tmp_path):
    (tmp_path / "adapter_model.safetensors").write_bytes(b"never read")
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} holds an adapter, adapter_model.safetensors, which featstore does not apply; merge it into its "
        "base model with peft's merge_and_unload and use the result, or take it out of the folder if it is not to be "
        "used"
    )


def test_a_folder_without_config_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        read_checkpoint(tmp_path)


def test_configs_are_read_without_torch(tiny):
    code = (
        "import sys; from featstore.encoders.longva.checkpoint import read_checkpoint; "
        f"read_checkpoint({str(tiny)!r}).clip.preprocessing(); "
        "print({'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
