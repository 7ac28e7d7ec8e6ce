"""Quantized weights are refused for what they are, and what is not quantized is not called so."""

from __future__ import annotations

import json
import re

import pytest
import safetensors.torch
import torch
from safetensors.torch import save_file

from featstore.checkpoints.files import LocalFiles
from featstore.checkpoints.tensors import check_tensor, list_tensors, open_tensors
from featstore.encoders.longva.checkpoint import read_checkpoint
from featstore.encoders.longva.weights import find_weights
from featstore.errors import CheckpointError

CLIP = "openai/clip-tiny-patch14-336"
TOWER = "model.vision_tower.vision_tower.vision_model."
LAYER = "model.layers.0.self_attn.q_proj"
REMEDY = "use the unquantized checkpoint that it was made from"
# Names that each method gives the tensors of one linear layer, as its own library or transformers writes them.
METHODS = {
    "GPTQ": ["qweight", "qzeros", "scales", "g_idx", "bias"],
    "AWQ, or GPTQ without g_idx": ["qweight", "qzeros", "scales"],
    "bitsandbytes, in int8": ["weight", "SCB", "weight_format"],
    "bitsandbytes, in 4 bits": [
        "weight",
        "weight.absmax",
        "weight.quant_map",
        "weight.quant_state.bitsandbytes__nf4",
    ],
    "fp8 in blocks": ["weight", "weight_scale_inv"],
    "compressed-tensors": ["weight_packed", "weight_scale", "weight_shape"],
    "HQQ": ["W_q", "scale", "zero", "nbits", "group_size"],
    "EETQ": ["weight", "weight_scales"],
    "Quanto": ["weight._data", "weight._scale", "input_scale", "output_scale"],
    "torchao": ["_weight_qdata", "_weight_scale"],
    "EXL2": ["q_weight", "q_scale", "q_groups", "q_invperm"],
    "AQLM": ["codes", "codebooks", "scales"],
    "QuIP#": ["Qidxs", "SU", "SV"],
    "MLX": ["weight", "scales", "biases"],
    "int8 or fp8 with scales, as of compressed-tensors, FBGEMM or ModelOpt": [
        "weight",
        "weight_scale",
        "input_scale",
    ],
}


def message_of(call) -> str:
    with pytest.raises(CheckpointError) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("indexed", [False, True])
def test_quantized_weights_are_refused_by_their_method(tmp_path, method, indexed):
    names = [f"{LAYER}.{part}" for part in METHODS[method]]
    if indexed:  # nothing is fetched but the index
        index = {"weight_map": dict.fromkeys(names, "model-00001-of-00002.safetensors")}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    else:
        tensors = dict.fromkeys(names, torch.zeros(1))
        save_file({k: v.clone() for k, v in tensors.items()}, tmp_path / "model.safetensors")
    message = message_of(lambda: list_tensors(LocalFiles(tmp_path)))
    assert re.fullmatch(
        rf"{tmp_path} is quantized with {re.escape(method)}: it holds 1 tensors such as '{LAYER}\.\S+', "
        rf"expected plain weights as F16 or BF16 or F32; {REMEDY}",
        message,
    )


def test_names_of_plain_weights_are_not_taken_for_quantized_ones(tiny, reference):
    for checkpoint in (tiny, reference / "checkpoints/longva-tiny-a"):
        assert list_tensors(LocalFiles(checkpoint))


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"bits": 4, "quant_method": "gptq"}, "quantized with 'gptq'"),
        ({"modules": ["x" * 300], "quant_method": "awq"}, "quantized with 'awq'"),
        ({"load_in_8bit": True}, "quantized with 'bitsandbytes'"),
        ({"quant_method": "fp8"}, "quantized with 'fp8'"),
        ({"bits": 4}, "quantized"),
    ],
)
def test_a_config_that_says_that_weights_are_quantized_is_refused_by_their_method(
    altered, value, says
):
    message = message_of(lambda: read_checkpoint(altered({"quantization_config": value})))
    assert "config.json has quantization_config = {" in message
    assert message.endswith(
        f", expected none: weights are used as they are, and this says that they are {says}; {REMEDY}"
    )


def test_a_tower_that_is_quantized_is_refused_by_its_method(altered):
    checkpoint = altered()
    path = checkpoint / CLIP / "config.json"
    config = json.loads(path.read_text()) | {"quantization_config": {"quant_method": "hqq"}}
    path.write_text(json.dumps(config))
    message = message_of(lambda: read_checkpoint(checkpoint))
    assert message.endswith(
        "quantized with 'hqq'; name a CLIP model that is not quantized with --vision-tower, or use another checkpoint"
    )


@pytest.mark.parametrize(
    ("dtype", "says"),
    [
        (torch.float8_e4m3fn, f"as F8_E4M3, .*; it is quantized to floats of few bits; {REMEDY}"),
        (torch.int8, f"as I8, .*; it is quantized to integers; {REMEDY}"),
        (torch.uint8, f"as U8, .*; it is quantized to integers; {REMEDY}"),
        (torch.bool, "as BOOL, .*; it is no weight; use the file as the model's authors publ"),
        (torch.float64, "as F64, .*; it is in double precision, not quantized; convert each "),
    ],
)
def test_weights_of_another_dtype_are_refused_for_what_they_are(tmp_path, dtype, says):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(2, 2).to(dtype)}, path)
    with open_tensors(path) as opened:
        assert re.search(
            f"has 'a' {says}", message_of(lambda: check_tensor(opened, path, "a", (2, 2)))
        )


def test_doubles_that_were_converted_as_the_refusal_says_are_read(altered, tiny, monkeypatch):
    checkpoint = altered(tensors=lambda t: {name: tensor.double() for name, tensor in t.items()})
    message = message_of(lambda: find_weights(read_checkpoint(checkpoint)))
    monkeypatch.chdir(checkpoint)
    (checkpoint / "model.safetensors").rename("doubles.safetensors")
    code = re.search("`(.*)`", message)[1]
    names = {"FILE": "doubles.safetensors", "NEW_FILE": "model.safetensors"}
    exec(code, names | {"safetensors": safetensors})
    assert (
        find_weights(read_checkpoint(checkpoint)).digest
        == find_weights(read_checkpoint(tiny)).digest
    )


def test_a_named_tower_that_is_quantized_is_not_said_to_be_missing(altered):
    checkpoint = altered(tensors=lambda t: {k: v for k, v in t.items() if not k.startswith(TOWER)})
    save_file(
        {"vision_model.encoder.layers.0.mlp.fc1.SCB": torch.ones(1)},
        checkpoint / CLIP / "model.safetensors",
    )
    message = message_of(lambda: find_weights(read_checkpoint(checkpoint)))
    assert "brings no vision tower of its own, and that of its CLIP model " in message
    assert "cannot be used: " in message
    assert "is quantized with bitsandbytes, in int8" in message
