"""How large features will be, from configs alone."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from featstore.encoders.longva.shape import FeatureShape, feature_shape
from featstore.errors import CheckpointError
from featstore.records.quantization import quantize
from featstore.records.storage import Storage

REAL = {
    "mm_vision_tower": "openai/clip-vit-large-patch14-336",
    "mm_hidden_size": 1024,
    "hidden_size": 3584,
}


def test_the_real_longva_makes_144_tokens_a_frame_and_63_mib_a_video(altered):
    shape = feature_shape(altered(REAL), 128)
    assert (shape.rows, shape.width) == (18_432, 3_584)
    assert shape.stored_bytes() == {
        "int8/channel_token": 66_060_288 + 4 * (3_584 + 18_432),
        "int8/channel": 66_060_288 + 4 * 3_584,
        "int8/token": 66_060_288 + 4 * 18_432,
        "int8/tensor": 66_060_288 + 4,
        "bf16": 2 * 66_060_288,
        "fp16": 2 * 66_060_288,
        "fp32": 4 * 66_060_288,
    }


@pytest.mark.parametrize(
    ("config", "tokens"),
    [
        ({}, 144),
        ({"mm_spatial_pool_stride": 1}, 576),
        ({"mm_spatial_pool_stride": 5}, 16),
        ({"mm_spatial_pool_stride": 24, "mm_spatial_pool_mode": "max"}, 1),
    ],
)
def test_tokens_follow_pooling(altered, config, tokens):
    assert feature_shape(altered(config), 2).rows == 2 * tokens


@pytest.mark.parametrize(
    ("projector", "dim"), [("mlp2x_gelu", 128), ("linear", 32), ("identity", 64), (..., 128)]
)
def test_width_is_the_language_models(altered, projector, dim):
    config = {"mm_projector_type": projector, "hidden_size": dim}
    assert feature_shape(altered(config), 1).width == dim


def test_sizes_are_those_of_what_quantize_returns():
    shape = FeatureShape(frames=3, tokens_per_frame=4, width=5)
    features = np.ones((shape.rows, 5), dtype=np.float32)
    for name, size in shape.stored_bytes().items():
        values, _, granularity = name.partition("/")
        stored, scales = quantize(features, Storage(values, granularity))
        assert stored.nbytes + sum(scale.nbytes for scale in scales) == size


def test_a_shape_needs_no_weights_and_neither_torch_nor_transformers(altered):
    checkpoint = altered()
    (checkpoint / "model.safetensors").unlink()
    code = (
        f"import sys; from featstore.encoders.longva.shape import feature_shape; "
        f"print(feature_shape({str(checkpoint)!r}, 8).to_dict()['rows']); "
        "print({'torch', 'transformers', 'huggingface_hub'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["1152", "set()"]


def test_no_frames_have_no_shape(tiny):
    with pytest.raises(ValueError, match="nframe is 0"):
        feature_shape(tiny, 0)


def test_a_folder_that_is_no_checkpoint_has_no_shape(tmp_path):
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        feature_shape(tmp_path, 8)
