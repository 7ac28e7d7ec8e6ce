"""Frames of processors on torchvision are theirs, bit for bit: by digests, and by the processors if they can run.

The digests were made by torchvision 0.28.0 and transformers 5.24.0, with torch 2.13.0 on a CPU with AVX2.
"""

from __future__ import annotations

import hashlib
import importlib
import json

import numpy as np
import pytest
import torch
from make_tiny_video_model import make_tiny_video_model

from featstore.checkpoints.files import LocalFiles
from featstore.encoders.llava_onevision.encoder import LlavaOnevisionEncoder
from featstore.encoders.pixels import normalize, pixel_table
from featstore.encoders.qwen_vl.encoder import QwenVLEncoder
from featstore.encoders.transformers_vision.processors import read_processor
from featstore.errors import CheckpointError
from featstore.preprocessing import prepare_frame
from featstore.resizing import resize, torchvision_name

# Class of transformers, its module, what its file says, and the digest of its pixels.
IMAGES = {
    "VJEPA2VideoProcessor": (
        "vjepa2.video_processing_vjepa2",
        {"crop_size": 56},
        "abd3ac7c8dfd97bd",
    ),
    "CLIPImageProcessorFast": (
        "clip.image_processing_clip",
        {"size": {"shortest_edge": 230}},
        "5ae178a0c90a272a",
    ),
    "SiglipImageProcessorFast": (
        "siglip.image_processing_siglip",
        {"size": {"height": 60, "width": 62}, "resample": 2, "image_std": [0.1, 0.2, 0.3]},
        "045f03143dd37156",
    ),
}
VIDEOS = {
    "llava_onevision": "694044499cd5b5c4",
    "qwen2_5_vl": "4eb1074175e62d36",
    "qwen3_vl": "b1840d7db08a92c5",
}
RESIZED = {
    "torchvision-bytes-bilinear-1": "4503626afe212097",
    "torchvision-bytes-bicubic-1": "17ff2c9d1e1d12f3",
    "torchvision-floats-bilinear-1": "adb76f69412035d5",
    "torchvision-floats-bicubic-1": "511b1dfd17af897f",
}
SIZES = [(37, 91), (120, 44), (256, 256), (301, 299)]
BUDGET = {"min_pixels": 4 * 1024, "max_pixels": 12 * 1024}


def drawn(height, width):
    rng = np.random.default_rng(height)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth(height, width):
    """Two frames without noise."""
    rows, columns = np.mgrid[:height, :width] / 23
    waves = [np.sin(rows * k + columns) * np.cos(columns / k) for k in (1, 2, 3)]
    frame = (127.5 + 127 * np.stack(waves, axis=-1)).astype(np.uint8)
    return np.stack([frame, frame[::-1]])


def digest(*arrays):
    whole = hashlib.sha256()
    for array in arrays:
        whole.update(np.ascontiguousarray(array).tobytes())
    return whole.hexdigest()[:16]


def skip_other_cpus(name):
    if "floats" in name and (kind := torch.backends.cpu.get_cpu_capability()) != "AVX2":
        pytest.skip(f"floats are rounded otherwise on a CPU of the kind {kind}")


def torchvision():
    """torchvision, if there is a build of it for this torch."""
    try:
        return importlib.import_module("torchvision")
    except (ImportError, RuntimeError) as exc:
        pytest.skip(f"torchvision cannot be loaded: {exc}")


@pytest.mark.parametrize("name", RESIZED)
def test_a_resized_frame_has_the_bytes_of_torchvisions_function(name):
    skip_other_cpus(name)
    ours = [resize(frame, 29, 64, name) for size in SIZES for frame in smooth(*size)]
    assert digest(*ours) == RESIZED[name]


@pytest.mark.parametrize("name", RESIZED)
def test_torchvision_makes_these_bytes(name):
    torchvision()
    from torchvision.transforms import InterpolationMode, functional, v2

    skip_other_cpus(name)
    _, of, mode, _ = name.split("-")
    call = functional.resize if of == "floats" else v2.functional.resize
    theirs = []
    for size in SIZES:
        frames = torch.from_numpy(smooth(*size)).permute(0, 3, 1, 2)
        resized = call(frames, [29, 64], InterpolationMode(mode), antialias=True)
        theirs += list(resized.permute(0, 2, 3, 1).numpy())
    assert digest(*theirs) == RESIZED[name]


@pytest.mark.parametrize("name", IMAGES)
def test_pixels_are_those_of_a_class_on_torchvision(tmp_path, name):
    _, stated, expected = IMAGES[name]
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": name, **stated})
    )
    ours = read_processor(LocalFiles(tmp_path))
    made = [
        ours.table()[prepare_frame(drawn(*size), ours.preprocessing), np.arange(3)]
        for size in SIZES
    ]
    assert digest(*(pixels.transpose(2, 0, 1) for pixels in made)) == expected


@pytest.mark.parametrize("name", IMAGES)
def test_the_class_on_torchvision_makes_these_pixels(name):
    torchvision()
    module, stated, expected = IMAGES[name]
    cls = getattr(
        importlib.import_module(f"transformers.models.{module}"), name.removesuffix("Fast")
    )
    theirs = []
    for size in SIZES:
        frame = torch.from_numpy(drawn(*size)).permute(2, 0, 1)
        made = cls(**stated)([frame[None]] if "Video" in name else frame, return_tensors="pt")
        theirs.append(next(iter(made.values())).numpy())
    assert digest(*theirs) == expected


@pytest.fixture(scope="module", params=VIDEOS)
def video_model(request, tmp_path_factory):
    family = request.param
    return family, make_tiny_video_model(tmp_path_factory.mktemp("pixels") / family, family)


def encoder_of(family, checkpoint):
    if family == "llava_onevision":
        return LlavaOnevisionEncoder(str(checkpoint), device="cpu")
    return QwenVLEncoder(str(checkpoint), device="cpu", **BUDGET)


@pytest.mark.slow
def test_pixels_of_videos_are_those_of_the_checkpoints_processor(video_model):
    family, checkpoint = video_model
    pre = encoder_of(family, checkpoint).preprocessing
    skip_other_cpus(pre.resample)
    made = []
    for size in SIZES:
        frames = np.stack([prepare_frame(frame, pre, 2) for frame in smooth(*size)])
        made.append(normalize(torch.from_numpy(frames), pixel_table(pre)).numpy())
    assert digest(*made) == VIDEOS[family]


@pytest.mark.slow
def test_the_checkpoints_video_processor_makes_these_pixels(video_model):
    """Of Qwen-VL on frames that qwen-vl-utils has resized, which the processor leaves as they are."""
    torchvision()
    from torchvision.transforms import InterpolationMode, functional
    from transformers import AutoConfig
    from transformers.models.auto.video_processing_auto import video_processor_class_from_name

    family, checkpoint = video_model
    pre = encoder_of(family, checkpoint).preprocessing
    skip_other_cpus(pre.resample)
    names = {"llava_onevision": "LlavaOnevision", "qwen2_5_vl": "Qwen2VL", "qwen3_vl": "Qwen3VL"}
    cls = video_processor_class_from_name(f"{names[family]}VideoProcessor")
    theirs = []
    for size in SIZES:
        frames = torch.from_numpy(smooth(*size)).permute(0, 3, 1, 2)
        height, width = pre.size_in_video(*size, 2)
        options = {}
        if "qwen" in family:
            frames = functional.resize(
                frames, [height, width], InterpolationMode.BICUBIC, antialias=True
            ).float()
            options = {"do_sample_frames": False, "do_resize": False}
        made = cls.from_pretrained(checkpoint)(frames, return_tensors="pt", **options)
        pixels = made["pixel_values_videos"]
        if "qwen" in family:
            side = AutoConfig.from_pretrained(checkpoint).vision_config.patch_size
            tall, wide = height // side // 2, width // side // 2
            pixels = pixels.view(tall, wide, 2, 2, 3, 2, side, side).permute(5, 4, 0, 2, 6, 1, 3, 7)
        theirs.append(pixels.reshape(2, 3, height, width).numpy())
    assert digest(*theirs) == VIDEOS[family]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "stated", "message"),
    [
        ("qwen3_vl", {"image_std": [0.5, 0, 0.5]}, "image_std = .*three numbers from 1e-09"),
        ("llava_onevision", {"image_std": [-1, 1, 1]}, "image_std = .*three numbers from 1e-09"),
        ("llava_onevision", {"rescale_factor": 0}, "rescale_factor = 0, expected a number from"),
        ("llava_onevision", {"resample": 1}, "resample = 1, expected an integer from 2 to 3"),
    ],
)
def test_numbers_that_leave_no_pixels_are_refused(tmp_path, family, stated, message):
    checkpoint = make_tiny_video_model(tmp_path / "model", family)
    path = checkpoint / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **stated}))
    with pytest.raises(CheckpointError, match=message):
        encoder_of(family, checkpoint)


def test_a_way_of_resizing_that_is_not_known_is_refused():
    assert torchvision_name(2, "bytes") in RESIZED
    with pytest.raises(ValueError, match="does not resize by 'torchvision-bytes-bicubic-2'"):
        resize(drawn(4, 4), 2, 2, "torchvision-bytes-bicubic-2")
