"""LongVAEncoder against the original's golden outputs, and against transformers where those are not at hand."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import featstore.encoders
from featstore.encoders.longva.checkpoint import read_checkpoint
from featstore.encoders.longva.encoder import LongVAEncoder
from featstore.encoders.longva.modeling import build_model
from featstore.encoders.longva.weights import find_weights
from featstore.encoders.registry import get_encoder
from featstore.errors import CheckpointError, FeatstoreError
from featstore.geometry import Geometry
from featstore.preprocessing import ShortestEdgeCrop, normalization_table, prepare_frame

pytestmark = pytest.mark.slow

TOWER = "model.vision_tower.vision_tower.vision_model."
PROJECTOR = "model.mm_projector."
CASES = [("dc_demo", 8), ("dc_demo", 16), ("jobs", 8), ("water", 8), ("short5", 8)]
PRE = ShortestEdgeCrop(shortest_edge=336, crop_height=336, crop_width=336)


@pytest.fixture(scope="module")
def sampled(reference):
    """Return the frames of a golden case, resized and cropped; each case is decoded once."""
    facts = json.loads((reference / "golden/frames.json").read_text())
    cache: dict[tuple[str, int], np.ndarray] = {}

    def frames(video: str, nframe: int) -> np.ndarray:
        if (video, nframe) not in cache:
            from decord import VideoReader

            fact = facts[video][str(nframe)]
            reader = VideoReader(str(reference / f"videos/{video}.mp4"), num_threads=1)
            raw = reader.get_batch(fact["indices"]).asnumpy()
            assert hashlib.sha256(raw.tobytes()).hexdigest() == fact["frames_sha256"]
            cache[video, nframe] = np.stack([prepare_frame(frame, PRE) for frame in raw])
        return cache[video, nframe]

    return frames


@pytest.fixture(scope="module")
def encoders(reference):
    """Return the reference's encoder of a name and dtype; each is built once."""
    cache: dict[tuple[str, str], LongVAEncoder] = {}

    def encoder(name: str, dtype: str = "fp32") -> LongVAEncoder:
        if (name, dtype) not in cache:
            checkpoint = reference / "checkpoints" / f"longva-tiny-{name}"
            cache[name, dtype] = LongVAEncoder(checkpoint, device="cpu", dtype=dtype)
        return cache[name, dtype]

    return encoder


@pytest.fixture
def frames() -> np.ndarray:
    """Two frames of smooth noise (2, 336, 336, 3) uint8."""
    rng = np.random.default_rng(5)
    coarse = rng.integers(0, 256, (2, 12, 12, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(c).resize((336, 336))) for c in coarse])


def golden(reference, name: str, stem: str) -> np.ndarray:
    path = reference / f"golden/features/longva-tiny-{name}/{stem}.npy"
    return np.load(path).astype(np.float32)


def encode(encoder: LongVAEncoder, frames: np.ndarray) -> np.ndarray:
    return encoder.encode(frames).float().flatten(0, 1).cpu().numpy()  # (B, T, D) -> (B*T, D)


def relative_l2(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


# Pixels


@pytest.mark.parametrize("video", ["dc_demo", "jobs", "water"])
def test_resizing_gives_the_bytes_of_the_original(reference, sampled, video):
    image = Image.open(reference / f"golden/stages/{video}_frame0_336.png")
    assert np.array_equal(sampled(video, 8)[0], np.asarray(image))


@pytest.mark.parametrize(("video", "nframe"), CASES)
def test_pixels_are_those_of_the_original_bit_for_bit(reference, sampled, video, nframe):
    fact = json.loads((reference / "golden/frames.json").read_text())[video][str(nframe)]
    pixels = normalization_table(PRE)[sampled(video, nframe), np.arange(3)].transpose(0, 3, 1, 2)
    found = hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()
    assert found == fact["pixel_values_sha256"]


@pytest.mark.parametrize(
    ("width", "height"), [(336, 336), (337, 336), (335, 999), (1921, 1081), (101, 57), (640, 361)]
)
def test_pixels_are_those_of_transformers_pil_processor(width, height):
    rng = np.random.default_rng(width * height)
    frame = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size=336)
    theirs = processor(Image.fromarray(frame), return_tensors="np")["pixel_values"][0]
    ours = normalization_table(PRE)[prepare_frame(frame, PRE), np.arange(3)]
    assert np.array_equal(ours.transpose(2, 0, 1), theirs)


# Features against the original


@pytest.mark.parametrize(("video", "nframe"), CASES)
@pytest.mark.parametrize("name", ["a", "b"])
def test_features_are_the_originals(reference, encoders, sampled, name, video, nframe):
    ours = encode(encoders(name), sampled(video, nframe))
    theirs = golden(reference, "a", f"{video}_n{nframe}")
    np.testing.assert_allclose(ours, theirs, atol=5e-5, rtol=0)


def test_features_of_c_are_its_own(reference, encoders, sampled):
    ours = encode(encoders("c"), sampled("dc_demo", 8))
    np.testing.assert_allclose(ours, golden(reference, "c", "dc_demo_n8"), atol=5e-5, rtol=0)
    assert np.abs(ours - golden(reference, "a", "dc_demo_n8")).max() > 0.01


def test_each_stage_is_the_originals(reference, sampled):
    found = read_checkpoint(reference / "checkpoints/longva-tiny-a")
    cpu = torch.device("cpu")
    model = build_model(found.vision, find_weights(found).load(cpu, torch.float32), cpu)
    table = torch.from_numpy(normalization_table(PRE))
    frame = torch.from_numpy(sampled("dc_demo", 8)[:1]).long()
    pixels = table[frame, torch.arange(3)].permute(0, 3, 1, 2)
    with torch.inference_mode():
        hidden = model.vision_model(pixels).last_hidden_state
        stages = {
            "hidden_state_minus2": hidden,
            "projected": model.mm_projector(hidden[:, 1:]),
            "pooled": model(pixels),
        }
    theirs = load_file(reference / "golden/stages/longva-tiny-a_dc_demo_n8_frame0.safetensors")
    for stage, ours in stages.items():
        torch.testing.assert_close(ours[0], theirs[stage], atol=5e-5, rtol=0)


@pytest.mark.parametrize(
    ("dtype", "max_abs", "l2"), [("fp16", 0.0081, 7e-4), ("bf16", 0.057, 5e-3)]
)
def test_half_precision_stays_within_the_originals_own_error(
    request, reference, encoders, sampled, dtype, max_abs, l2
):
    if dtype == "bf16":
        request.getfixturevalue("bf16_attention")
    encoder = encoders("a", dtype)
    ours = encode(encoder, sampled("dc_demo", 8)[:2])
    theirs = golden(reference, "a", "dc_demo_n8")[: len(ours)]
    assert encoder.encode(sampled("dc_demo", 8)[:1]).dtype == encoder.dtype
    assert np.abs(ours - theirs).max() <= max_abs
    assert relative_l2(ours, theirs) < l2


def test_fp16_is_the_originals_fp16(reference, encoders, sampled):
    ours = encode(encoders("a", "fp16"), sampled("dc_demo", 8)[:2])
    theirs = golden(reference, "a", "dc_demo_n8_float16_first2frames")
    assert np.abs(ours - theirs).max() <= 0.0081
    assert relative_l2(ours, theirs) < 1e-3


def test_frames_in_chunks_are_frames_at_once(encoders, sampled):
    encoder, frames = encoders("a"), sampled("jobs", 8)
    at_once = encoder.encode(frames)
    chunks = torch.cat([encoder.encode(frames[i : i + 3]) for i in range(0, 8, 3)])
    assert (at_once - chunks).abs().max() <= 2e-6


def test_a_and_b_have_one_identity_and_c_differs_in_weights_alone(encoders):
    a, b, c = (encoders(name).identity for name in "abc")
    assert a == b
    assert a != c
    assert dataclasses.replace(c, weights=a.weights) == a


def test_the_reference_tower_is_not_the_named_clip_models(reference, encoders, sampled, tmp_path):
    """The named folder has weights of its own, those before finetuning: 1.9 off."""
    stripped = tmp_path / "stripped"
    stripped.mkdir()
    source = reference / "checkpoints/longva-tiny-a"
    (stripped / "config.json").write_bytes((source / "config.json").read_bytes())
    tensors = load_file(source / "model.safetensors")
    save_file(
        {k: v for k, v in tensors.items() if k.startswith(PROJECTOR)},
        stripped / "model.safetensors",
    )
    clip = reference / "openai/clip-tiny-patch14-336"
    wrong = LongVAEncoder(stripped, vision_tower=clip, device="cpu")
    frames = sampled("dc_demo", 8)[:2]
    theirs = golden(reference, "a", "dc_demo_n8")[:288]
    assert wrong.identity.weights != encoders("a").identity.weights
    assert np.abs(encode(wrong, frames) - theirs).max() > 1
    assert np.abs(encode(encoders("a"), frames) - theirs).max() <= 5e-5


def test_with_delay_load_the_reference_sees_by_the_named_clip_models_tower(
    reference, sampled, tmp_path
):
    """As CLIPVisionTower of the original has it where the tower is not among mm_tunable_parts."""
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(reference / "checkpoints/longva-tiny-a", checkpoint)
    config = json.loads((checkpoint / "config.json").read_text())
    changed = {"delay_load": True, "mm_tunable_parts": "mm_mlp_adapter"}
    (checkpoint / "config.json").write_text(json.dumps(config | changed))
    clip = reference / "openai/clip-tiny-patch14-336"
    encoder = LongVAEncoder(checkpoint, vision_tower=clip, device="cpu")
    off = np.abs(encode(encoder, sampled("dc_demo", 8)) - golden(reference, "a", "dc_demo_n8"))
    contrast = json.loads((reference / "golden/contrast.json").read_text())
    known = contrast["feature_diff_named_clip_dir_vs_embedded"]["dc_demo"]["max_abs"]
    assert off.max() == pytest.approx(known, abs=1e-4)


# Features against transformers, with weights made on the spot


def by_hand(checkpoint, frames: np.ndarray) -> torch.Tensor:
    """Return features by way of the whole CLIP model, all hidden states, and functions alone."""
    config = json.loads((checkpoint / "config.json").read_text())
    clip = json.loads((checkpoint / config["mm_vision_tower"] / "config.json").read_text())
    model = CLIPVisionModel(CLIPVisionConfig(**clip["vision_config"])).eval()
    tensors = {k: v.float() for k, v in load_file(checkpoint / "model.safetensors").items()}
    tower = {k.removeprefix(TOWER): v for k, v in tensors.items() if k.startswith(TOWER)}
    getattr(model, "vision_model", model).load_state_dict(tower)
    images = [Image.fromarray(frame) for frame in frames]
    pixels = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size=336)(images)
    with torch.inference_mode():
        out = model(torch.tensor(np.stack(pixels["pixel_values"])), output_hidden_states=True)
        x = out.hidden_states[config["mm_vision_select_layer"]][:, 1:]
        weights = sorted(k for k in tensors if k.startswith(PROJECTOR) and k.endswith("weight"))
        for i, key in enumerate(weights):
            x = nn.functional.gelu(x) if i else x
            x = nn.functional.linear(x, tensors[key], tensors[key.replace("weight", "bias")])
        stride = config["mm_spatial_pool_stride"]
        if stride > 1:
            side = 24 // stride
            x = x.view(len(x), 24, 24, -1)[:, : side * stride, : side * stride]
            x = x.reshape(len(x), side, stride, side, stride, -1).transpose(2, 3)
            x = x.flatten(3, 4)
            x = x.mean(3) if config["mm_spatial_pool_mode"] == "average" else x.amax(3)
            x = x.flatten(1, 2)
    return x


def only_linear(tensors: dict[str, Any]) -> dict[str, Any]:
    first = {k: v for k, v in tensors.items() if not k.startswith(PROJECTOR + "2")}
    return {k.replace(PROJECTOR + "0", PROJECTOR[:-1]): v for k, v in first.items()}


def no_projector(tensors: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in tensors.items() if not k.startswith(PROJECTOR)}


def three_deep(tensors: dict[str, Any]) -> dict[str, Any]:
    third = {
        PROJECTOR + f"4.{x}": tensors[PROJECTOR + f"2.{x}"].clone() for x in ("weight", "bias")
    }
    return tensors | third


@pytest.mark.parametrize(
    ("config", "tensors"),
    [
        ({}, None),
        ({"mm_spatial_pool_mode": "max"}, None),
        ({"mm_spatial_pool_stride": 1}, None),
        ({"mm_spatial_pool_stride": 5}, None),
        ({"mm_vision_select_layer": -1}, None),
        ({"mm_vision_select_layer": 2}, None),
        ({"mm_vision_select_layer": 0}, None),
        ({"mm_vision_select_layer": -5}, None),
        ({"mm_projector_type": "linear"}, only_linear),
        ({"mm_projector_type": "identity", "hidden_size": 64}, no_projector),
        ({"mm_projector_type": "mlp3x_gelu"}, three_deep),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),  # the same in each worker
)
def test_every_configuration_computes_what_transformers_does(altered, frames, config, tensors):
    checkpoint = altered(config, tensors)
    encoder = LongVAEncoder(checkpoint, device="cpu")
    ours = encoder.encode(frames)
    identity = encoder.identity
    assert ours.shape == (2, identity.geometry.tokens_per_unit, identity.geometry.row_width)
    torch.testing.assert_close(ours, by_hand(checkpoint, frames), atol=5e-5, rtol=0)


def test_a_checkpoint_of_another_language_model_gives_the_same_features(
    tiny, make_checkpoint, tmp_path, frames
):
    other = make_checkpoint(tmp_path / "b", language_seed=3, shards=3, model_type="qwen2")
    one, two = (LongVAEncoder(path, device="cpu") for path in (tiny, other))
    assert one.identity == two.identity
    assert torch.equal(one.encode(frames), two.encode(frames))


# What it is besides


def test_the_identity_says_what_the_config_says(tiny):
    encoder = LongVAEncoder(tiny, device="cpu", dtype="bf16")
    identity = encoder.identity
    assert dataclasses.replace(identity, weights="") == featstore.spec.EncoderIdentity(
        family="longva",
        weights="",
        dtype="bf16",
        geometry=Geometry(tokens_per_unit=144, hidden_dim=128, grid=(12, 12)),
        settings={
            "select_layer": -2,
            "select_feature": "patch",
            "projector": "mlp2x_gelu",
            "pooling": "average:2",
            "tower.act": "quick_gelu",
            "tower.eps": 1e-5,
            "tower.heads": 4,
            "tower.hidden": 64,
            "tower.image": 336,
            "tower.intermediate": 160,
            "tower.layers": 3,
            "tower.patch": 14,
        },
    )
    assert encoder.preprocessing == PRE
    assert encoder.names == {"vision_tower": "openai/clip-tiny-patch14-336"}
    assert len(identity.weights) == 64


def test_it_is_the_encoder_called_longva(tiny):
    encoder = get_encoder("longva", checkpoint=tiny, device="cpu")
    assert isinstance(encoder, featstore.encoders.LongVAEncoder)
    assert encoder.origin == str(tiny)
    assert encoder.batch_frames == 16
    assert LongVAEncoder(tiny, device="cpu", batch_frames=3).batch_frames == 3


def test_frames_may_be_read_only_or_strided(tiny, frames):
    encoder = LongVAEncoder(tiny, device="cpu", batch_frames=1)
    expected = encoder.encode(frames)
    frozen = frames.copy()
    frozen.flags.writeable = False
    assert torch.equal(encoder.encode(frozen), expected)
    doubled = np.repeat(frames, 2, axis=0)[::2]
    assert torch.equal(encoder.encode(doubled), expected)
    assert expected.is_contiguous()


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((1, 336, 336, 3), np.float32),
        np.zeros((1, 224, 336, 3), np.uint8),
        np.zeros((336, 336, 3), np.uint8),
        np.zeros((0, 336, 336, 3), np.uint8),
    ],
)
def test_frames_of_another_shape_or_dtype_are_refused(tiny, wrong):
    with pytest.raises(
        ValueError, match=r"frames are (float32|uint8) of shape .* \(B, 336, 336, 3\)"
    ):
        LongVAEncoder(tiny, device="cpu").encode(wrong)


def test_running_out_of_memory_says_what_to_do(tiny, frames):
    encoder = LongVAEncoder(tiny, device="cpu")
    encoder.load()

    def exhausted(pixels, **_):
        raise torch.cuda.OutOfMemoryError("tried to allocate much")

    encoder._model = exhausted
    with pytest.raises(FeatstoreError, match=r"encoding 2 frames in fp32.*smaller --batch-frames"):
        encoder.encode(frames)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"dtype": "int8"}, "dtype is 'int8'"),
        ({"device": "gpu"}, "device is 'gpu'"),
        ({"device": "mps"}, "device is 'mps'; use auto, cpu"),
        ({"device": torch.device("meta")}, "device is 'meta'; use auto, cpu"),
        ({"batch_frames": 0}, "batch_frames is 0"),
    ],
)
def test_options_that_mean_nothing_are_refused(tiny, options, says):
    with pytest.raises(ValueError, match=says):
        LongVAEncoder(tiny, **options)


def test_its_repr_is_a_line_that_says_what_it_is(tiny):
    encoder = LongVAEncoder(tiny, device="cpu", dtype="bf16")
    weights = encoder.identity.weights[:8]
    assert repr(encoder) == (
        f"<featstore.encoders.LongVAEncoder {str(tiny)!r}: weights {weights}, cpu, bf16>"
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(tiny):
    with pytest.raises(FeatstoreError, match='sees no GPU; use device="cpu"'):
        LongVAEncoder(tiny, device="cuda")


def test_a_refusal_comes_before_any_weight_is_read(altered):
    with pytest.raises(CheckpointError, match="mm_vision_tower"):
        LongVAEncoder(altered({"mm_vision_tower": ...}), device="cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("dtype", "max_abs"), [("fp32", 5e-5), ("fp16", 0.01), ("bf16", 0.1)])
def test_a_gpu_agrees_with_the_cpu_also_in_large_batches(tiny, frames, dtype, max_abs):
    """cuDNN takes TF32 for float32 convolutions of large batches, if it is let."""
    encoder = LongVAEncoder(tiny, device="cuda", dtype=dtype)
    expected = LongVAEncoder(tiny, device="cpu", dtype="fp32").encode(frames)
    for repeats in (1, 64):
        ours = encoder.encode(np.tile(frames, (repeats, 1, 1, 1)))[-2:].float().cpu()
        assert (ours - expected).abs().max() <= max_abs
    assert encoder.batch_frames == 128
