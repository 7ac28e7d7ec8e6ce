"""Each field of config.json that the original reads: which values are followed, and that others are refused at once."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from featstore.encoders import LongVAEncoder
from featstore.encoders.longva.checkpoint import ADAPTERS, read_checkpoint
from featstore.encoders.longva.config import FIELDS
from featstore.encoders.longva.shape import feature_shape
from featstore.encoders.longva.weights import find_weights
from featstore.errors import CheckpointError
from featstore.models import CachedLongVA

TOWER = "model.vision_tower.vision_tower.vision_model."
CLIP = "openai/clip-tiny-patch14-336"

# `...` leaves the field out.
FOLLOWED: dict[str, list[Any]] = {
    "mm_vision_tower": [CLIP],
    "delay_load": [..., True, False, None],
    "unfreeze_mm_vision_tower": [..., True, False, None],
    "mm_tunable_parts": [..., "mm_vision_tower", "mm_mlp_adapter", "", None],
    "quantization_config": [..., None],
    "s2": [..., False, None],
    "mm_vision_select_layer": [-5, -2, -1, 0, 4],
    "mm_vision_select_feature": [..., "patch"],
    "mm_hidden_size": [..., 64],
    "mm_projector_type": [..., "linear", "mlp1x_gelu", "mlp2x_gelu", "mlp16x_gelu"],
    "hidden_size": [32, 128],
    "mm_resampler_type": [..., None],
    "mm_spatial_pool_mode": ["average", "max"],
    "mm_spatial_pool_stride": [1, 2, 24],
    "mm_patch_merge_type": [..., "flat", "unires"],
    "mm_use_im_start_end": [..., True, False, None],
    "mm_use_im_patch_token": [..., True, False, None],
    "tune_mm_mlp_adapter": [..., True, False, None],
    "tokenizer_model_max_length": [..., None, 1, 1 << 30],
}
REFUSED: dict[str, list[Any]] = {
    "mm_vision_tower": [5, ["openai/clip"]],
    "delay_load": ["true", 1],
    "unfreeze_mm_vision_tower": ["yes"],
    "mm_tunable_parts": [["mm_vision_tower"], True],
    "quantization_config": [{"load_in_4bit": True}, {}, False],
    "s2": [True, "336,672"],
    "mm_vision_select_layer": [..., None, -6, 5, 2000, True, "-2", 1.0],
    "mm_vision_select_feature": [None, "cls_patch", "slicefour_patch", "slice_m25811_f6_patch"],
    "mm_hidden_size": [None, 1024, "64"],
    "mm_projector_type": [None, "pooler", "mlp2x_res2x_gelu", "mlp17x_gelu", "mlp2x_gelu\n", 2],
    "hidden_size": [..., None, 0, "wide", 1 << 40],
    "mm_resampler_type": ["perceiver", "spatial_pool", "", False],
    "mm_spatial_pool_mode": [..., None, "bilinear"],
    "mm_spatial_pool_stride": [..., None, 0, -2, 25, True, 2.0, [2, 2]],
    "mm_patch_merge_type": [None, "spatial", "spatial_unpad", "spatial_maxpool2x2", ""],
    "mm_use_im_start_end": ["false"],
    "mm_use_im_patch_token": [0],
    "tune_mm_mlp_adapter": ["false"],
    "tokenizer_model_max_length": [0, -1, "long", 1 << 31],
}
TOGETHER = [
    ({"mm_projector_type": "identity"}, "hidden_size = 128, expected the tower's 64"),
    ({"delay_load": True, "mm_tunable_parts": None}, "mm_tunable_parts = None, expected a string"),
    ({"tune_mm_mlp_adapter": True, "mm_use_im_start_end": True}, "tune_mm_mlp_adapter = True"),
]
# What the original reads or writes besides, and what answers do not depend on.
NOTHING = {
    "freeze_mm_mlp_adapter": True,
    "max_sequence_length": 7,
    "mm_projector_lr": 1.0,
    "mm_spatial_pool_out_channels": 9,
    "mm_vision_tower_lr": None,
    "pos_skipping_range": 4096,
    "rope_scaling": {"factor": 8.0, "type": "linear"},
    "s2_scales": "336,672",
    "tokenizer_padding_side": "left",
    "torch_dtype": "float16",
    "tune_mm_vision_resampler": True,
    "use_mm_proj": False,
    "use_pos_skipping": True,
    "vision_tower_pretrained": "elsewhere",
}


def cases(table: dict[str, list[Any]]) -> list[Any]:
    return [
        pytest.param(name, value, id=f"{name}={'missing' if value is ... else value}")
        for name, values in table.items()
        for value in values
    ]


def encode_for(checkpoint):
    LongVAEncoder(checkpoint, device="cpu")


def shape_of(checkpoint):
    feature_shape(checkpoint, 8)


def ask(checkpoint):
    CachedLongVA(checkpoint, device="cpu")


WAYS = [read_checkpoint, shape_of, encode_for, ask]


def refused_everywhere(checkpoint, says: str) -> None:
    """Each way into a checkpoint refuses it, and its weights, which cannot be read, are not looked at."""
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "model.safetensors").write_bytes(b"never read")
    for way in WAYS:
        with pytest.raises(CheckpointError) as caught:
            way(checkpoint)
        assert says in str(caught.value)
        assert "; " in str(caught.value).partition(says)[2]  # what to do


def test_the_tables_here_are_those_of_the_fields():
    assert FOLLOWED.keys() == REFUSED.keys() == FIELDS.keys()


@pytest.mark.parametrize(("name", "value"), cases(FOLLOWED))
def test_a_value_that_can_be_followed_is(altered, name, value):
    assert read_checkpoint(altered({name: value})).vision.tokens_per_frame > 0


@pytest.mark.parametrize(("name", "value"), cases(REFUSED))
def test_a_value_that_cannot_be_followed_is_refused_before_any_work(altered, name, value):
    refused_everywhere(
        altered({name: value}), f"no {name}" if value is ... else f"{name} = {value!r}"
    )


@pytest.mark.parametrize(("config", "says"), TOGETHER)
def test_values_that_do_not_go_together_are_refused_before_any_work(altered, config, says):
    refused_everywhere(altered(config), says)


def test_fields_that_answers_do_not_depend_on_may_say_anything(tiny, altered):
    assert read_checkpoint(altered(NOTHING)).vision == read_checkpoint(tiny).vision


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_beside_the_weights_is_refused_before_any_work(altered, name):
    checkpoint = altered()
    (checkpoint / name).write_text("{}")
    refused_everywhere(checkpoint, f"an adapter, {name}, which featstore does not apply")


def test_a_quantized_tower_is_refused_before_any_work(altered):
    for nested in (False, True):
        checkpoint = altered()
        path = checkpoint / CLIP / "config.json"
        config = json.loads(path.read_text())
        (config["vision_config"] if nested else config)["quantization_config"] = {"bits": 4}
        path.write_text(json.dumps(config))
        refused_everywhere(checkpoint, "quantization_config = {'bits': 4}")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"size": ...}, "no size, expected at least the crop's 336 pixels"),
        ({"size": None}, "size = None, expected at least the crop's 336 pixels"),
        ({"crop_size": ...}, "no crop_size, expected the tower's image_size = 336"),
        ({"resample": None}, "resample = None"),
        ({"rescale_factor": None}, "rescale_factor = None"),
        ({"do_normalize": None}, "do_normalize = None"),
        ({"do_rescale": 0}, "do_rescale = 0"),
        ({"do_resize": None}, "do_resize = None"),
    ],
)
def test_preprocessing_has_the_defaults_of_clips_own_processor(altered, change, says):
    checkpoint = altered(preprocessor_config=change)
    for way in (shape_of, encode_for, ask):
        with pytest.raises(CheckpointError, match=says):
            way(checkpoint)


@pytest.mark.parametrize("model_type", [..., "chinese_clip"])
def test_a_tower_of_a_model_that_is_no_clip_is_refused(altered, model_type):
    checkpoint = altered()
    path = checkpoint / CLIP / "config.json"
    config = json.loads(path.read_text()) | {"model_type": model_type}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))
    with pytest.raises(CheckpointError, match=r"model_type.*expected 'clip' or"):
        read_checkpoint(checkpoint)


# Whose tower


def digest(checkpoint) -> str:
    return find_weights(read_checkpoint(checkpoint)).digest


def double_the_named_tower(checkpoint):
    """Write the checkpoint's tower, its values doubled, as that of the CLIP model it names."""
    tensors = load_file(checkpoint / "model.safetensors")
    named = {
        "vision_model." + k.removeprefix(TOWER): v * 2
        for k, v in tensors.items()
        if k.startswith(TOWER)
    }
    save_file(named, checkpoint / CLIP / "model.safetensors")
    return checkpoint


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"delay_load": True, "mm_tunable_parts": "mm_mlp_adapter"}, True),
        ({"delay_load": True, "mm_tunable_parts": ...}, True),
        ({"delay_load": True}, False),  # mm_vision_tower is among its parts
        ({"delay_load": True, "mm_tunable_parts": ..., "unfreeze_mm_vision_tower": True}, False),
        ({"delay_load": True, "mm_tunable_parts": None, "unfreeze_mm_vision_tower": True}, False),
        ({"delay_load": False, "mm_tunable_parts": "mm_mlp_adapter"}, False),
        ({"mm_tunable_parts": None}, False),
    ],
    ids=str,
)
def test_the_tower_is_the_one_the_original_would_take(tiny, altered, config, named):
    def doubled(tensors):
        return {k: v * 2 if k.startswith(TOWER) else v for k, v in tensors.items()}

    expected = altered(tensors=doubled) if named else tiny
    assert digest(double_the_named_tower(altered(config))) == digest(expected)


def test_a_named_tower_that_is_not_there_is_not_replaced_by_the_checkpoints_own(altered):
    config = {"delay_load": True, "mm_tunable_parts": "mm_mlp_adapter"}
    with pytest.raises(CheckpointError, match=r"has delay_load.*cannot be used.*no safetensors"):
        LongVAEncoder(altered(config), device="cpu")


def test_a_newline_that_the_original_never_uses_is_left_out(altered):
    """It is in checkpoints trained from others, with a config that puts nothing between frames."""
    extra = altered(
        {"mm_patch_merge_type": "flat"},
        lambda tensors: tensors | {"model.image_newline": torch.ones(128)},
    )
    CachedLongVA(extra, device="cpu")
