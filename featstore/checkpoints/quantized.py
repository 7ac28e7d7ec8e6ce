"""Quantized weights, which are refused: told apart by the names that each method gives its tensors, and by dtypes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from featstore.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from featstore.checkpoints.config_fields import ConfigFields
    from featstore.checkpoints.files import Files

FLOATS = ("F16", "BF16", "F32")  # safetensors' names of the dtypes that float32 holds exactly
UNQUANTIZED = "use the unquantized checkpoint that it was made from"
# End of a tensor's name -> the method that writes it; the first that is found is told.
_METHODS = {
    ".g_idx": "GPTQ",
    ".qweight": "AWQ, or GPTQ without g_idx",
    ".SCB": "bitsandbytes, in int8",
    ".quant_map": "bitsandbytes, in 4 bits",
    ".weight_scale_inv": "fp8 in blocks",
    ".weight_packed": "compressed-tensors",
    ".W_q": "HQQ",
    ".weight_scales": "EETQ",
    ".weight._scale": "Quanto",
    "weight_qdata": "torchao",
    ".q_weight": "EXL2",
    ".codebooks": "AQLM",
    ".Qidxs": "QuIP#",
    ".qbiases": "MLX",
    ".biases": "MLX",
    ".weight_scale": "int8 or fp8 with scales, as of compressed-tensors, FBGEMM or ModelOpt",
}


def refuse_quantized(files: Files, names: Iterable[str]) -> None:
    """Raise CheckpointError if tensors are quantized.

    Args:
        files: the checkpoint, for messages.
        names: the names of its tensors.
    """
    found: dict[str, list[str]] = {}
    for name in names:
        for end in _METHODS:
            if name.endswith(end):
                found.setdefault(end, []).append(name)
    for end, method in _METHODS.items():
        if end in found:
            raise CheckpointError(
                f"{files} is quantized with {method}: it holds {len(found[end])} tensors such as "
                f"{min(found[end])!r:.200}, expected plain weights as {' or '.join(FLOATS)}; {UNQUANTIZED}"
            )


def quantized_config(config: ConfigFields, remedy: str = UNQUANTIZED) -> CheckpointError:
    """Return the error that a config has a quantization_config.

    Args:
        config: the config.
        remedy: what the user can do.
    """
    value = config.get("quantization_config")
    method = value.get("quant_method") if isinstance(value, dict) else None
    if method is None and isinstance(value, dict) and {"load_in_4bit", "load_in_8bit"} & set(value):
        method = "bitsandbytes"
    quantized = f"quantized with {method!r:.40}" if method else "quantized"
    return config.wrong(
        "quantization_config",
        f"none: weights are used as they are, and this says that they are {quantized}",
        remedy,
    )


def remedy_for_dtype(dtype: str) -> str:
    """Return what to do about weights in safetensors' `dtype`, which is none of FLOATS."""
    if dtype == "F64":
        return (
            "it is in double precision, not quantized; convert each file in Python with `safetensors.torch.save_file("
            "{k: v.float() for k, v in safetensors.torch.load_file(FILE).items()}, NEW_FILE)`"
        )
    if dtype.startswith(("F8", "F6", "F4")):
        return f"it is quantized to floats of few bits; {UNQUANTIZED}"
    if dtype.startswith(("I", "U")):
        return f"it is quantized to integers; {UNQUANTIZED}"
    return "it is no weight; use the file as the model's authors published it"
