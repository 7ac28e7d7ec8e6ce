"""Frames and their pixel values are those of the checkpoint's own image processor, of its Pillow class."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from featstore.checkpoints.files import LocalFiles
from featstore.encoders.transformers_vision.processors import read_processor
from featstore.errors import CheckpointError
from featstore.preprocessing import prepare_frame

# Name in transformers, module, and what a file says, beside what the class does by itself.
PILLOW = {
    "CLIPImageProcessorPil": ("clip.image_processing_pil_clip", {}),
    "BitImageProcessorPil": (
        "bit.image_processing_pil_bit",
        {"size": {"shortest_edge": 64}, "crop_size": 56, "image_mean": [0.1, 0.2, 0.3]},
    ),
    "SiglipImageProcessorPil": (
        "siglip.image_processing_pil_siglip",
        {"size": {"height": 60, "width": 62}, "do_normalize": False},
    ),
    "ViTImageProcessorPil": ("vit.image_processing_pil_vit", {"size": 40, "resample": 3}),
    "VideoMAEImageProcessorPil": ("videomae.image_processing_pil_videomae", {"size": 230}),
    "VivitImageProcessor": ("vivit.image_processing_vivit", {"do_convert_rgb": None}),
}
SIZES = [(37, 91), (120, 44), (256, 256), (301, 299)]


def write(folder, stated, name="preprocessor_config.json"):
    (folder / name).write_text(json.dumps(stated))
    return LocalFiles(folder)


def drawn(height, width):
    rng = np.random.default_rng(height)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", PILLOW)
@pytest.mark.parametrize("bare", [True, False])
def test_pixels_are_bit_for_bit_those_of_the_pillow_class(tmp_path, name, bare):
    import importlib

    module, stated = PILLOW[name]
    stated = {} if bare else stated
    theirs = getattr(importlib.import_module(f"transformers.models.{module}"), name)(**stated)
    spoken = name if bare else name.removesuffix("Pil")
    ours = read_processor(write(tmp_path, {"image_processor_type": spoken, **stated}))
    for size in SIZES:
        frame = drawn(*size)
        videos = [[frame]] if "V" in name and "ViT" not in name else [frame]
        expected = np.asarray(theirs(videos, return_tensors="np")["pixel_values"])
        expected = expected.reshape(expected.shape[-3:])  # (3, H, W)
        pixels = ours.table()[prepare_frame(frame, ours.preprocessing), np.arange(3)]
        assert np.array_equal(pixels.transpose(2, 0, 1), expected), size


def test_dinov3s_frames_are_its_own_but_for_being_rounded(tmp_path):
    """It resizes floats and keeps them; torchvision's antialiased resize of floats is torch's."""
    stated = {"image_processor_type": "DINOv3ViTImageProcessorFast", "size": 56}
    ours = read_processor(write(tmp_path, stated))
    assert ours.settings["resize"] == "rounded"
    frame = drawn(90, 97)
    floats = torch.from_numpy(frame).permute(2, 0, 1)[None] / 255
    resized = torch.nn.functional.interpolate(floats, (56, 56), mode="bilinear", antialias=True)
    difference = (
        prepare_frame(frame, ours.preprocessing) - 255 * resized[0].permute(1, 2, 0).numpy()
    )
    assert np.abs(difference).max() < 0.501


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({}, "has no image_processor_type, expected one of BitImageProcessor"),
        ({"image_processor_type": "Siglip2ImageProcessor"}, "Siglip2ImageProcessor.*no other"),
        ({"image_processor_type": "ConvNextImageProcessor"}, "ConvNextImageProcessor"),
        ({"do_resize": False}, "has do_resize = False, expected true"),
        (
            {"image_processor_type": "ViTImageProcessorFast", "do_normalize": False},
            "do_normalize = False, expected true, and so do_rescale: ViTImageProcessor on torchvision",
        ),
        ({"do_pad": True}, "has do_pad = True, expected false"),
        ({"do_rescale": "yes"}, "do_rescale = 'yes', expected true or false"),
        ({"do_center_crop": False}, "expected true: frames of any shape"),
        ({"size": {"longest_edge": 5}}, "expected height and width, or shortest_edge"),
        ({"size": {"shortest_edge": 100}}, "at least the crop's 224"),
        ({"size": {"height": 9, "width": 9}}, "has no crop_size, expected the size, 9 x 9"),
        ({"size": 1 << 40}, "expected pixels"),
        ({"image_mean": [0, 1]}, "expected three numbers"),
        ({"image_std": [0, 1, 1]}, "expected three numbers"),
        ({"resample": 9}, "expected an integer from 0 to 5"),
    ],
)
def test_what_is_not_followed_is_refused(tmp_path, stated, message):
    named = "image_processor_type" in stated or not stated
    files = write(
        tmp_path, stated if named else {"image_processor_type": "CLIPImageProcessor", **stated}
    )
    with pytest.raises(CheckpointError, match=message):
        read_processor(files)


def test_a_processor_is_found_in_either_file_and_must_be_the_same_in_both(tmp_path):
    clip = {"image_processor_type": "CLIPImageProcessor"}
    with pytest.raises(CheckpointError, match="which say how frames are resized"):
        read_processor(LocalFiles(tmp_path))
    files = write(tmp_path, {"image_processor": clip}, "processor_config.json")
    alone = read_processor(files)
    write(tmp_path, clip)
    assert read_processor(files) == alone
    write(tmp_path, {**clip, "resample": 2})
    with pytest.raises(CheckpointError, match="but not the same"):
        read_processor(files)
