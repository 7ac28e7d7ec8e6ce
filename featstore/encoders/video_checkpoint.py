"""What checkpoints of transformers' video models say of their vision side; torch is not loaded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featstore.checkpoints.config_fields import ConfigFields, read_config, read_json
from featstore.checkpoints.digest import DigestedWeights
from featstore.checkpoints.files import Files, open_files
from featstore.checkpoints.quantized import quantized_config
from featstore.checkpoints.tensors import find_shard, list_tensors
from featstore.encoders.assembly import build_config
from featstore.errors import CheckpointError
from featstore.preprocessing import ShortestEdgeCrop

if TYPE_CHECKING:
    from collections.abc import Mapping

    from featstore.spec import Setting

    Channels = tuple[float, float, float]

# Fields of a vision config that change no feature.
_NO_FEATURE = {
    "torch_dtype",
    "dtype",
    "_attn_implementation",
    "attn_implementation",
    "initializer_range",
}
_NO_FEATURE |= {"transformers_version", "_name_or_path", "architectures", "use_cache"}
# Fields of a processor's config that are taken elsewhere: names, the sampling, and sizes that an encoder reads itself.
_READ = {
    "processor_class",
    "image_processor_type",
    "video_processor_type",
    "feature_extractor_type",
}
_READ |= {"do_sample_frames", "fps", "num_frames", "min_frames", "max_frames", "video_metadata"}
_READ |= {
    "size",
    "min_pixels",
    "max_pixels",
    "cap_pixels_per_frame",
    "max_video_tokens",
    "return_metadata",
}
_READ |= {"resample", "rescale_factor", "image_mean", "image_std", "patch_size", "merge_size"}
_READ |= {"temporal_patch_size", "device", "input_data_format", "data_format", "return_tensors"}
_ALWAYS = ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb")


@dataclass(frozen=True)
class VideoCheckpoint:
    """A checkpoint of a video model.

    Attributes:
        files: its files.
        config: its config.json.
        vision: the vision_config in it.
        processor: what says how videos are prepared.
    """

    files: Files
    config: ConfigFields
    vision: ConfigFields
    processor: ConfigFields

    @property
    def model_type(self) -> str:
        """Return the config's model_type."""
        return str(self.config.get("model_type"))

    def pixel_options(
        self, mean: Channels = ShortestEdgeCrop.mean, std: Channels = ShortestEdgeCrop.std
    ) -> dict[str, Any]:
        """Return how bytes become values, in the words of featstore.preprocessing.

        Args:
            mean: what it is if the processor does not say; by default CLIP's.
            std: likewise.
        """
        fields = self.processor
        return {
            "rescale": fields.number("rescale_factor", 1e-9, 1, 1 / 255),
            "mean": fields.triple("image_mean", -1e9, mean),
            "std": fields.triple("image_std", 1e-9, std),
        }

    def settings(self, defaults: Mapping[str, Any]) -> dict[str, Setting]:
        """Return what determines features beside weights and pixels, options of unknown meaning included.

        Args:
            defaults: what a field of the vision config is if it is missing.
        """
        vision = {**defaults, **self.vision.values}
        found = {f"vision.{k}": _plain(v) for k, v in vision.items() if k not in _NO_FEATURE}
        rest = self.processor.values.keys() - _READ - set(_ALWAYS)
        found |= {f"processor.{k}": _plain(self.processor.values[k]) for k in rest}
        return {name: value for name, value in found.items() if value is not None}

    def weights(self, names: Mapping[str, str]) -> DigestedWeights:
        """Return the tensors whose names begin as one of `names`, called by what is to be there instead.

        Args:
            names: beginning of a name -> what replaces it; checkpoints of several ages call the same tensor otherwise.
                The first that fits is taken.

        Raises:
            CheckpointError: there are none.
        """
        listing, found = list_tensors(self.files), {}
        for name, shard in listing.items():
            short = next(
                (new + name[len(p) :] for p, new in names.items() if name.startswith(p)), None
            )
            if short is not None:
                if short in found:
                    raise CheckpointError(f"{self.files} has {short!r} of its vision side twice")
                found[short] = (shard, name)
        if not found:
            raise CheckpointError(
                f"{self.files} has no tensors that begin with {' or '.join(map(repr, names))}; is it whole?"
            )
        shards = {shard: find_shard(self.files, shard, name) for shard, name in found.values()}
        return DigestedWeights({k: (shards[shard], name) for k, (shard, name) in found.items()})


def read_video_checkpoint(checkpoint: str, model_types: tuple[str, ...]) -> VideoCheckpoint:
    """Read the configs of a checkpoint.

    Args:
        checkpoint: a folder, or a name on the Hub.
        model_types: the model types that an encoder knows.

    Raises:
        CheckpointError: it is of another type, is quantized, or its processor does something featstore does not.
    """
    files = open_files(checkpoint, "Qwen/Qwen2.5-VL-7B-Instruct")
    config = read_config(files)
    if config.get("model_type") not in model_types:
        raise config.wrong(
            "model_type",
            " or ".join(map(repr, model_types)),
            "choose the encoder of its family with --encoder, or another checkpoint",
        )
    if config.get("quantization_config") is not None:
        raise quantized_config(config)
    vision = config.get("vision_config")
    if not isinstance(vision, dict):
        raise config.wrong("vision_config", "an object")
    build_config(config, config.text("model_type"))  # names a field of a wrong type before any work
    processor = _read_processor(files)
    for name in _ALWAYS:
        if processor.get(name) not in (None, True):
            raise processor.wrong(name, "true, as featstore prepares frames so")
    return VideoCheckpoint(
        files, config, ConfigFields(vision, f"vision_config of {config.origin}"), processor
    )


def _read_processor(files: Files) -> ConfigFields:
    """Return the video processor's fields: transformers' own order of the three files."""
    whole = read_json(files, "processor_config.json")
    nested = None if whole is None else whole.get("video_processor")
    if isinstance(nested, dict):
        return ConfigFields(nested, f"video_processor of {files}/processor_config.json")
    found = read_json(files, "video_preprocessor_config.json") or read_json(
        files, "preprocessor_config.json"
    )
    if found is None:
        raise CheckpointError(
            f"{files} has no video_preprocessor_config.json, preprocessor_config.json or processor_config.json with a "
            "video_processor, which say how frames are prepared; fetch one of them"
        )
    return found


def _plain(value: Any) -> Setting:
    if isinstance(value, str | bool | float | type(None)) or type(value) is int:
        return value
    return json.dumps(value, sort_keys=True)
