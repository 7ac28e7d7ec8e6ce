"""The CLIP model that a checkpoint names: what is said if it is not there, and where its preprocessing is read."""

from __future__ import annotations

import json

import huggingface_hub
import pytest
import transformers
from checkpoints import unreachable
from safetensors.torch import load_file, save_file

from featstore.encoders.longva.checkpoint import read_checkpoint
from featstore.encoders.longva.weights import find_weights
from featstore.errors import CheckpointError

CLIP = "openai/clip-tiny-patch14-336"
FOREIGN = "/share/models/clip-vit-large-patch14-336"
REMEDY = (
    "give the CLIP model's folder, or its name on the Hub such as openai/clip-vit-large-patch14-336, with "
    "--vision-tower (in Python: vision_tower=)"
)
# What transformers 5 saves for CLIPProcessor(CLIPImageProcessor(size=336, crop_size=336), tokenizer).
PROCESSOR = {
    "image_processor": {
        "crop_size": {"height": 336, "width": 336},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_processor_type": "CLIPImageProcessor",
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"shortest_edge": 336},
    },
    "processor_class": "CLIPProcessor",
}


def message_of(call) -> str:
    with pytest.raises(CheckpointError) as caught:
        call()
    return str(caught.value)


def digest(checkpoint) -> str:
    return find_weights(read_checkpoint(checkpoint)).digest


# Which model


@pytest.mark.parametrize("name", [FOREIGN, "clip-vit-large-patch14-336", "../clip"])
def test_a_path_of_another_machine_is_refused_with_the_field_that_names_it(altered, name):
    checkpoint = altered({"mm_vision_tower": name})
    message = message_of(lambda: read_checkpoint(checkpoint))
    assert message.startswith(
        f"{checkpoint}/config.json has mm_vision_tower = {name!r}, but there is no folder {name!r}; {REMEDY}"
    )


def test_a_name_that_the_hub_cannot_give_is_refused_with_the_field_that_names_it(
    altered, monkeypatch
):
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    checkpoint = altered({"mm_vision_tower": "someone/clip"})
    message = message_of(lambda: read_checkpoint(checkpoint))
    assert message == (
        f"{checkpoint}/config.json has mm_vision_tower = 'someone/clip', but 'someone/clip' is not a folder here and "
        f"cannot be fetched from the Hub (offline, no config.json of someone/clip); {REMEDY}; for a name on the Hub "
        "check the network and HF_HUB_OFFLINE"
    )


def test_a_tower_that_was_asked_for_and_is_not_there_is_refused_by_its_option(altered, tmp_path):
    checkpoint = altered()
    message = message_of(lambda: read_checkpoint(checkpoint, vision_tower=FOREIGN))
    assert message.startswith(
        f"the given vision_tower = {FOREIGN!r}, but there is no folder {FOREIGN!r}; {REMEDY}"
    )
    (tmp_path / "empty").mkdir()
    message = message_of(lambda: read_checkpoint(checkpoint, vision_tower=tmp_path / "empty"))
    assert f", but {tmp_path}/empty has no config.json; {REMEDY}" in message


def test_an_empty_tower_is_not_the_working_directory(altered, monkeypatch):
    checkpoint = altered()
    monkeypatch.chdir(checkpoint / CLIP)
    message = message_of(lambda: read_checkpoint(checkpoint, vision_tower=""))
    assert f"the given vision_tower = '', but there is no folder ''; {REMEDY}" in message


def test_the_remedy_for_a_foreign_path_works(altered):
    checkpoint = altered({"mm_vision_tower": FOREIGN})
    found = read_checkpoint(checkpoint, vision_tower=checkpoint / CLIP)
    assert found.vision.tower.hidden_size == 64


def test_the_published_tower_may_be_named_without_a_download(altered, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    checkpoint = altered({"mm_vision_tower": FOREIGN, "mm_hidden_size": 1024})
    name = "openai/clip-vit-large-patch14-336"
    assert read_checkpoint(checkpoint, vision_tower=name).vision.tower.hidden_size == 1024


# Its weights


@pytest.fixture
def towerless(tiny, altered):
    """A checkpoint without a tower of its own, and the tensors that a tower for it has, by CLIP's own names."""
    own = "model.vision_tower.vision_tower.vision_model."
    tower = {
        name.removeprefix(own): tensor
        for name, tensor in load_file(tiny / "model.safetensors").items()
        if name.startswith(own)
    }
    checkpoint = altered(
        tensors=lambda tensors: {k: v for k, v in tensors.items() if not k.startswith(own)}
    )
    return checkpoint, tower


def test_a_vision_model_that_this_transformers_saves_is_read(tiny, towerless):
    checkpoint, tower = towerless
    config = json.loads((checkpoint / CLIP / "config.json").read_text())["vision_config"]
    model = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**config))
    within = getattr(model, "vision_model", model)  # up to 5.x
    within.load_state_dict(tower, strict=False)
    model.save_pretrained(checkpoint / CLIP)
    assert digest(checkpoint) == digest(tiny)


@pytest.mark.parametrize("prefix", ["", "vision_model."])
def test_a_vision_model_is_read_by_either_of_its_names(tiny, towerless, prefix):
    checkpoint, tower = towerless
    tensors = {prefix + name: tensor for name, tensor in tower.items()}
    save_file(tensors, checkpoint / CLIP / "model.safetensors")
    assert digest(checkpoint) == digest(tiny)


def test_a_clip_model_that_lacks_tensors_is_not_asked_to_be_longva(towerless):
    checkpoint, tower = towerless
    del tower["pre_layrnorm.bias"]
    save_file(tower, checkpoint / CLIP / "model.safetensors")
    message = message_of(lambda: digest(checkpoint))
    assert f"{checkpoint / CLIP} lacks 1 of the 57 tensors that make features" in message
    assert message.endswith("is the download complete, and is this a CLIP model with its weights?")


# Preprocessing


def write_processor(checkpoint, own: bool = False, **changes):
    """Write processor_config.json as transformers 5 does, in place of preprocessor_config.json or beside it."""
    clip = checkpoint / CLIP
    if not own:
        (clip / "preprocessor_config.json").unlink()
    nested = PROCESSOR["image_processor"] | changes
    (clip / "processor_config.json").write_text(json.dumps(PROCESSOR | {"image_processor": nested}))
    return read_checkpoint(checkpoint).clip


@pytest.mark.parametrize("own", [False, True])
def test_the_image_processor_that_transformers_5_saves_within_its_processor_is_read(
    tiny, altered, own
):
    expected = read_checkpoint(tiny).clip.preprocessing()
    assert write_processor(altered(), own).preprocessing() == expected


def test_a_processor_that_this_transformers_saves_is_read(tiny, altered):
    checkpoint = altered()
    (checkpoint / CLIP / "preprocessor_config.json").unlink()
    tokenizer = transformers.CLIPTokenizer(
        vocab={"<|startoftext|>": 0, "<|endoftext|>": 1}, merges=[]
    )
    image_processor = transformers.CLIPImageProcessor(size=336, crop_size=336)
    transformers.CLIPProcessor(image_processor, tokenizer).save_pretrained(checkpoint / CLIP)
    expected = read_checkpoint(tiny).clip.preprocessing()
    assert read_checkpoint(checkpoint).clip.preprocessing() == expected


def test_two_image_processors_that_differ_are_refused(altered):
    clip = write_processor(altered(), own=True, resample=2)
    assert message_of(clip.preprocessing) == (
        f"{clip.files} says in preprocessor_config.json and in processor_config.json how frames are resized, but not "
        "the same; remove the one that the model was not trained with"
    )


def test_a_processor_is_refused_by_the_name_of_its_file(altered):
    clip = write_processor(altered(), do_center_crop=False)
    assert f"image_processor of {clip.files}/processor_config.json has do_center_crop = False" in (
        message_of(clip.preprocessing)
    )
    path = clip.files.find("processor_config.json")
    path.write_text('{"image_processor": "CLIPImageProcessor"}')
    assert "has image_processor = 'CLIPImageProcessor', expected an object; " in message_of(
        clip.preprocessing
    )


def test_a_processor_without_an_image_processor_says_nothing(tiny, altered):
    checkpoint = altered()
    path = checkpoint / CLIP / "processor_config.json"
    path.write_text('{"processor_class": "CLIPProcessor"}')  # as transformers 4 saves it
    expected = read_checkpoint(tiny).clip.preprocessing()
    assert read_checkpoint(checkpoint).clip.preprocessing() == expected
    (checkpoint / CLIP / "preprocessor_config.json").unlink()
    message = message_of(read_checkpoint(checkpoint).clip.preprocessing)
    assert "has no preprocessor_config.json, and no processor_config.json with an image_pro" in (
        message
    )
