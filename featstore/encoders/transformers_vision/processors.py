"""The image processor of a checkpoint as featstore's preprocessing: bit for bit what its class makes of a frame.

That is the class on Pillow, unless the checkpoint names one that ends in `Fast`, or there is none: V-JEPA 2's and
DINOv3's exist for torchvision only. DINOv3's resizes floats and keeps them; featstore rounds to bytes, half a level of
256 off at most, and its settings say `resize: rounded`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from featstore.checkpoints.config_fields import ConfigFields, read_json
from featstore.encoders.transformers_vision.families import flat_settings
from featstore.errors import CheckpointError
from featstore.preprocessing import ExactResize, ShortestEdgeCrop, normalization_table
from featstore.resizing import torchvision_name

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from featstore.checkpoints.files import Files
    from featstore.spec import Setting

_HALF = (0.5, 0.5, 0.5)
_CLIP = (ShortestEdgeCrop.mean, ShortestEdgeCrop.std)
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_BILINEAR, _BICUBIC = 2, 3


@dataclass(frozen=True)
class _Defaults:
    """What an image processor does if its file does not say so.

    size: of the shortest edge if it crops, else of both. square: whether one number is height and width.
    offset: whether 1 is taken off after rescaling. torchvision: what its only class resizes with torchvision, `bytes`
    or `floats`; None if it has a class on Pillow.
    """

    size: int = 224
    crop: int | None = 224
    resample: int = _BICUBIC
    mean: tuple[float, float, float] = _HALF
    std: tuple[float, float, float] = _HALF
    rescale: float = 1 / 255
    square: bool = False
    offset: bool = False
    torchvision: Literal["bytes", "floats"] | None = None


_KINDS = {
    "BitImageProcessor": _Defaults(mean=_CLIP[0], std=_CLIP[1]),
    "CLIPImageProcessor": _Defaults(mean=_CLIP[0], std=_CLIP[1]),
    "DINOv3ViTImageProcessor": _Defaults(
        crop=None,
        resample=_BILINEAR,
        mean=_IMAGENET[0],
        std=_IMAGENET[1],
        square=True,
        torchvision="floats",
    ),
    "SiglipImageProcessor": _Defaults(crop=None),
    "VJEPA2VideoProcessor": _Defaults(
        crop=256,
        resample=_BILINEAR,
        mean=_IMAGENET[0],
        std=_IMAGENET[1],
        torchvision="bytes",
    ),
    "ViTImageProcessor": _Defaults(crop=None, resample=_BILINEAR, square=True),
    "VideoMAEImageProcessor": _Defaults(resample=_BILINEAR),
    "VivitImageProcessor": _Defaults(size=256, resample=_BILINEAR, rescale=1 / 127.5, offset=True),
}
# Followed, or of no effect on a frame; whatever else a file says is part of the identity.
_FOLLOWED = {
    "crop_size",
    "do_center_crop",
    "do_convert_rgb",
    "do_normalize",
    "do_rescale",
    "do_resize",
    "feature_extractor_type",
    "image_mean",
    "image_processor_type",
    "image_std",
    "offset",
    "processor_class",
    "resample",
    "rescale_factor",
    "size",
    "video_processor_type",
}
_FILES = ("preprocessor_config.json", "video_preprocessor_config.json")
_NAMES = ("image_processor_type", "video_processor_type", "feature_extractor_type")


@dataclass(frozen=True)
class FrameProcessor:
    """What a checkpoint's processor does to a frame.

    Attributes:
        preprocessing: what decode workers do.
        offset: whether 1 is taken off a pixel before it is normalized.
        fused: whether rescaling and normalizing are one step, as on torchvision, which rounds otherwise.
        settings: whatever else may change a feature.
    """

    preprocessing: ShortestEdgeCrop | ExactResize
    offset: bool
    fused: bool
    settings: dict[str, Setting]

    def table(self) -> NDArray[np.float32]:
        """Return (256, 3) float32: the pixel value of each byte in each channel."""
        import numpy as np

        pre = self.preprocessing
        if self.fused:
            from featstore.encoders.pixels import pixel_table

            fused: NDArray[np.float32] = pixel_table(pre).numpy()
            return fused
        if not self.offset:
            return normalization_table(pre)
        scaled = (np.arange(256) * pre.rescale).astype(np.float32)[:, None] - np.float32(1)
        mean, std = (np.asarray(values, np.float32) for values in (pre.mean, pre.std))
        table: NDArray[np.float32] = (scaled - mean) / std
        return table


def read_processor(files: Files) -> FrameProcessor:
    """Return what the processor of a checkpoint does.

    Raises:
        CheckpointError: there is none, it is unknown, two files disagree, or it does something featstore does not.
    """
    found = [fields for name in _FILES if (fields := read_json(files, name)) is not None]
    whole = read_json(files, "processor_config.json")
    for name in ("image_processor", "video_processor"):
        nested = whole.get(name) if whole else None
        if whole and isinstance(nested, dict):
            found.append(ConfigFields(nested, f"{name} of {whole.origin}"))
    if not found:
        raise CheckpointError(
            f"{files} has no {' or '.join(_FILES)}, which say how frames are resized{files.caveat}; copy the "
            "model's own beside its config.json"
        )
    read = [_read(fields) for fields in found]
    for fields, other in zip(found, read, strict=True):
        if other != read[0]:
            raise CheckpointError(
                f"{found[0].origin} and {fields.origin} say how frames are resized, but not the same; remove the one "
                "that the model was not trained with"
            )
    return read[0]


def _read(fields: ConfigFields) -> FrameProcessor:
    named = next((name for name in _NAMES if fields.get(name)), _NAMES[0])
    kind = str(fields.get(named)).replace("FeatureExtractor", "ImageProcessor")
    fast = kind.endswith("Fast")
    kind = kind.removesuffix("Fast").removesuffix("Pil")
    if kind not in _KINDS:
        raise fields.wrong(named, f"one of {', '.join(_KINDS)}; no other is followed here")
    ours = _KINDS[kind]
    torchvision = ours.torchvision or ("bytes" if fast else None)
    for step in ("do_pad", "do_reduce_labels"):
        if fields.get(step):
            raise fields.wrong(step, "false")
    does = {
        step: fields.values.get(step, default)
        for step, default in (
            ("do_resize", True),
            ("do_center_crop", ours.crop is not None),
            ("do_rescale", True),
            ("do_normalize", True),
            ("offset", ours.offset),
        )
    }
    for step, value in does.items():
        if value is None:
            does[step] = False
        elif not isinstance(value, bool):
            raise fields.wrong(step, "true or false")
    if not does["do_resize"]:
        raise fields.wrong("do_resize", "true: frames of any size come out as one")
    if torchvision and not (does["do_rescale"] and does["do_normalize"]):
        raise fields.wrong("do_normalize", f"true, and so do_rescale: {kind} on torchvision")
    mean, std = (
        (
            fields.triple("image_mean", -1e9, ours.mean),
            fields.triple("image_std", 1e-9, ours.std),
        )
        if does["do_normalize"]
        else ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    )
    numbers: dict[str, Any] = {
        "resample": torchvision_name(fields.integer("resample", 2, 3, ours.resample), torchvision)
        if torchvision
        else fields.integer("resample", 0, 5, ours.resample),
        "rescale": fields.number("rescale_factor", 1e-9, 1e9, ours.rescale)
        if does["do_rescale"]
        else 1.0,
        "mean": mean,
        "std": std,
    }
    others = {k: v for k, v in fields.values.items() if k not in _FOLLOWED}
    settings = flat_settings("processor", others)
    if torchvision == "floats":
        settings["resize"] = "rounded"
    pre = _geometry(fields, kind, ours, numbers, crops=bool(does["do_center_crop"]))
    offset = bool(does["offset"] and does["do_rescale"])
    return FrameProcessor(pre, offset, torchvision == "bytes", settings)


def _geometry(
    fields: ConfigFields, kind: str, ours: _Defaults, numbers: dict[str, Any], *, crops: bool
) -> ShortestEdgeCrop | ExactResize:
    crop = _pair(fields, "crop_size", ours.crop or 0) if crops else None
    size: Any = fields.get("size")
    if kind == "VJEPA2VideoProcessor" and crop:  # it does not look at its size
        size = {"shortest_edge": int(crop[0] * 256 / 224)}
    if size is None:
        names = ("height", "width") if ours.crop is None else ("shortest_edge",)
        size = dict.fromkeys(names, ours.size)
    if isinstance(size, dict):
        size = {edge: pixels for edge, pixels in size.items() if pixels is not None}
    else:
        size = dict.fromkeys(("height", "width") if ours.square else ("shortest_edge",), size)
    if set(size) == {"height", "width"}:
        height, width = _edge(fields, size["height"]), _edge(fields, size["width"])
        if crop not in (None, (height, width)):
            raise fields.wrong("crop_size", f"the size, {height} x {width}")
        return ExactResize(height=height, width=width, **numbers)
    if set(size) != {"shortest_edge"}:
        raise fields.wrong("size", "height and width, or shortest_edge")
    edge = _edge(fields, size["shortest_edge"])
    if crop is None:
        raise fields.wrong("do_center_crop", "true: frames of any shape come out as one")
    if edge < max(crop):
        raise fields.wrong("size", f"at least the crop's {max(crop)} pixels")
    return ShortestEdgeCrop(shortest_edge=edge, crop_height=crop[0], crop_width=crop[1], **numbers)


def _pair(fields: ConfigFields, name: str, default: int) -> tuple[int, int]:
    value = fields.get(name)
    value = default if value is None else value
    if isinstance(value, dict):
        return _edge(fields, value.get("height"), name), _edge(fields, value.get("width"), name)
    return _edge(fields, value, name), _edge(fields, value, name)


def _edge(fields: ConfigFields, pixels: Any, name: str = "size") -> int:
    if type(pixels) is not int or not 1 <= pixels <= 1 << 13:
        raise fields.wrong(name, "pixels, as 224 or {'height': 224, 'width': 224}")
    return pixels
