"""The features of each family are those of transformers' own forward, of frames that its own processor prepared."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from make_tiny_vision import FRAMES, KINDS, make_tiny_vision
from safetensors.torch import load_file, save_file

from featstore.encoders.registry import get_encoder
from featstore.encoders.transformers_vision.encoder import TransformersEncoder
from featstore.errors import CheckpointError
from featstore.preprocessing import prepare_frame

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

PREFIX = {"dinov2_with_registers": 5, "dinov3_vit": 5, "siglip": 0, "ijepa": 0}
PREFIX |= {"videomae": 0, "vjepa2": 0}
EXACT = {"rtol": 0, "atol": 0}
# torch has a second kernel for the attention in SigLIP's head, which a default device of the caller's turns off.
NOISE = {"siglip": {"rtol": 1e-5, "atol": 1e-6}}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vision")
    return {kind: make_tiny_vision(folder / kind, kind) for kind in KINDS}


@pytest.fixture
def checkpoint(checkpoints, tmp_path):
    """A copy of a kind's checkpoint that a test may change."""
    return lambda kind: shutil.copytree(checkpoints[kind], tmp_path / kind)


def encoder_of(folder, **options):
    return TransformersEncoder(folder, device="cpu", dtype="fp32", **options)


def prepared(encoder, units=2, seed=0):
    geometry = encoder.identity.geometry
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, 256, (units * geometry.frames_per_unit, 50, 71, 3), dtype=np.uint8)
    frames = np.stack([prepare_frame(frame, encoder.preprocessing) for frame in drawn])
    if encoder.output.found.family.frames is None:
        return frames
    return frames.reshape(units, geometry.frames_per_unit, *frames.shape[1:])


def pixels_of(encoder, frames):
    table = encoder.output.processor.table()
    return torch.from_numpy(table[frames, np.arange(3)]).movedim(-1, -3).contiguous()


@torch.inference_mode()
def forward(folder, pixels):
    """transformers' own, of all of the checkpoint, by its Auto class."""
    model = transformers.AutoModel.from_pretrained(folder).eval()
    model = getattr(model, "vision_model", model)
    return model(pixels, output_hidden_states=True)


def edit(folder, name, **changes):
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_bit_for_bit_those_of_its_own_forward(checkpoints, kind):
    folder, first = checkpoints[kind], PREFIX.get(kind, 1)
    encoder = encoder_of(folder)
    frames = prepared(encoder)
    out = forward(folder, pixels_of(encoder, frames))
    assert torch.equal(encoder.encode(frames), out.last_hidden_state[:, first:])

    if kind in ("dinov2_with_registers", "timesformer"):
        mean = encoder_of(folder, pool="mean").encode(frames)
        assert torch.equal(mean[:, 0], out.last_hidden_state[:, first:].mean(1))
        cls = encoder_of(folder, pool="cls").encode(frames)
        assert torch.equal(cls, out.last_hidden_state[:, :1])
    if kind in ("clip", "siglip", "dinov3_vit"):
        pooled = encoder_of(folder, pool="pooler").encode(frames)
        torch.testing.assert_close(pooled[:, 0], out.pooler_output, **NOISE.get(kind, EXACT))

    layers = encoder_of(folder, layer="-3,0,-1")
    assert layers.identity.geometry.planes == 3
    expected = [out.hidden_states[1], out.hidden_states[0], out.last_hidden_state]
    assert torch.equal(layers.encode(frames), torch.cat(expected, -1)[:, first:])


def test_one_hidden_state_has_one_digest_however_it_is_counted(checkpoints):
    by_end = encoder_of(checkpoints["dinov2"], layer="-2")
    assert by_end.identity == encoder_of(checkpoints["dinov2"], layer=2).identity
    last, raw = (encoder_of(checkpoints["dinov2"], layer=layer).identity for layer in (-1, 3))
    assert last != raw  # the one is normed


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_the_joint_space_is_that_of_the_whole_model(checkpoints, kind):
    encoder = encoder_of(checkpoints[kind], pool="joint")
    frames = prepared(encoder)
    model = transformers.AutoModel.from_pretrained(checkpoints[kind]).eval()
    with torch.inference_mode():
        expected = model.get_image_features(pixels_of(encoder, frames))
    expected = getattr(expected, "pooler_output", expected)
    torch.testing.assert_close(encoder.encode(frames)[:, 0], expected, **NOISE.get(kind, EXACT))


def test_weights_for_the_pooled_output_are_asked_for_only_by_it(checkpoints):
    """A classifier has none: transformers would draw them at random and warn."""
    with pytest.raises(CheckpointError, match=r"lack 2 tensors, as pooler\.dense\.bias"):
        encoder_of(checkpoints["vit"], pool="pooler").load()


def test_text_side_and_heads_are_no_part_of_the_identity(checkpoint, tmp_path):
    folder = checkpoint("clip")
    whole, path = encoder_of(folder).identity, folder / "model.safetensors"
    tensors = load_file(path)
    tensors["logit_scale"] += 1
    save_file({k: v for k, v in tensors.items() if "text_model.encoder" not in k}, path)
    assert encoder_of(folder).identity == whole
    model = transformers.CLIPVisionModel.from_pretrained(folder)
    model.save_pretrained(tmp_path / "alone")
    shutil.copy(folder / "preprocessor_config.json", tmp_path / "alone")
    assert encoder_of(tmp_path / "alone").identity.weights == whole.weights
    tensors["vision_model.embeddings.class_embedding"] += 1
    save_file(tensors, path)
    assert encoder_of(folder).identity.weights != whole.weights


def test_an_option_that_nobody_knows_makes_another_feature_set(checkpoint):
    folder = checkpoint("dinov2")
    digests = {repr(encoder_of(folder).identity)}
    edit(folder, "preprocessor_config.json", sharpen={"by": 2})
    digests.add(repr(encoder_of(folder).identity))
    edit(folder, "config.json", rope_style="new")
    digests.add(repr(encoder_of(folder).identity))
    assert len(digests) == 3
    assert encoder_of(folder).identity.settings["processor.sharpen"] == '{"by": 2}'


def test_clips_of_v_jepa_2_may_be_of_another_length_and_overlap(checkpoints):
    encoder = encoder_of(checkpoints["vjepa2"], clip=6, stride=2)
    geometry = encoder.identity.geometry
    assert (geometry.frames_per_unit, geometry.stride, geometry.tokens_per_unit) == (6, 2, 12)
    frames = prepared(encoder)
    out = forward(checkpoints["vjepa2"], pixels_of(encoder, frames))
    assert torch.equal(encoder.encode(frames), out.last_hidden_state)
    with pytest.raises(CheckpointError, match="5 frames of 28 x 28 do not give"):
        encoder_of(checkpoints["vjepa2"], clip=5)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("dinov2", {"clip": 4}, "encodes frames one by one"),
        ("dinov2", {"stride": 4}, "encodes frames one by one"),
        ("videomae", {"clip": FRAMES + 1}, "takes clips of 4 frames, not 5"),
        ("videomae", {"pool": "cls"}, "has patch, mean"),
        ("siglip", {"pool": "cls"}, "has patch, mean, pooler, joint"),
        ("dinov2", {"pool": "joint"}, "has patch, cls, mean, pooler"),
        ("dinov2", {"layer": 4}, "from -4 to 3"),
        ("dinov2", {"layer": "-3,1"}, "each taken once"),
        ("dinov2", {"layer": "last"}, "write -1"),
        ("clip", {"pool": "joint", "layer": 1}, "of the last layer"),
        ("clip", {"dtype": "int8"}, "dtype is 'int8'"),
        ("clip", {"colour": "red"}, "takes no 'colour'; it takes checkpoint, "),
    ],
)
def test_an_option_that_the_model_does_not_have_is_refused(checkpoints, kind, options, message):
    with pytest.raises(ValueError, match=message):
        get_encoder("transformers", checkpoint=checkpoints[kind], device="cpu", **options)


@pytest.mark.parametrize(
    ("kind", "file", "changes", "message"),
    [
        ("clip", "config.json", {"model_type": "siglip2"}, "use a SigLIP2 checkpoint of one size"),
        ("clip", "config.json", {"model_type": "llama"}, "expected one of clip, "),
        ("clip", "config.json", {"vision_config": None}, "expected an object"),
        ("dinov2", "config.json", {"quantization_config": {"quant_method": "awq"}}, "'awq'"),
        ("dinov2", "config.json", {"hidden_size": 1 << 30}, "expected from 1 to 65536"),
        ("dinov2", "config.json", {"num_hidden_layers": "many"}, "no config of 'dinov2'|expected"),
        ("dinov2", "config.json", {"num_channels": 4}, "expected 3"),
        ("dinov2", "config.json", {"patch_size": 64}, "do not give"),
        ("vit", "config.json", {"image_size": 56}, "its model takes 56 x 56"),
    ],
)
def test_a_config_that_cannot_be_followed_is_refused(checkpoint, kind, file, changes, message):
    folder = checkpoint(kind)
    edit(folder, file, **changes)
    with pytest.raises(CheckpointError, match=message):
        encoder_of(folder)


def test_weights_of_another_model_are_refused(checkpoint):
    folder = checkpoint("dinov2")
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for change, message in (
        ({"layernorm.bias": None}, r"lack 1 tensors, as layernorm\.bias"),
        ({"layernorm.bias": torch.ones(31)}, "in another shape 1 tensors"),
        ({"adapter.weight": torch.ones(2)}, r"no model of it would, 1 tensors, as adapter\.weight"),
    ):
        changed = {k: v for k, v in (tensors | change).items() if v is not None}
        save_file(changed, path)
        with pytest.raises(CheckpointError, match=message):
            encoder_of(folder).load()
    save_file(tensors, path)
    encoder = encoder_of(folder)
    save_file(tensors | {"layernorm.bias": torch.ones(32)}, path)
    with pytest.raises(CheckpointError, match="were replaced since"):
        encoder.load()


def test_no_pickle_is_opened(checkpoint):
    folder = checkpoint("dinov2")
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pickle"):
        encoder_of(folder)


def test_loading_says_nothing_and_draws_nothing(checkpoints, capfd):
    before = torch.random.get_rng_state()
    encoder_of(checkpoints["vjepa2"]).load()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert capfd.readouterr() == ("", "")


def test_half_precision_is_that_of_the_model(checkpoints):
    encoder = TransformersEncoder(checkpoints["dinov2"], device="cpu", dtype="bf16")
    frames = prepared(encoder)
    model = transformers.AutoModel.from_pretrained(checkpoints["dinov2"], dtype=torch.bfloat16)
    with torch.inference_mode():
        out = model.eval()(pixels_of(encoder, frames).bfloat16())
    assert torch.equal(encoder.encode(frames), out.last_hidden_state[:, 1:])
