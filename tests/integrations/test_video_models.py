"""Qwen-VL and LLaVA-OneVision in VLMEvalKit: its own classes' prompts, frames and answers, from stored features.

VLMEVALKIT_ROOT names a checkout of it, of which only the files of these classes are loaded. They need torchvision,
qwen-vl-utils and decord, and run here without a GPU: in float32, with the attention of the tests.
"""

from __future__ import annotations

import importlib
import os
import sys
import types
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest

from featstore.errors import FeatstoreError
from featstore.integrations import vlmevalkit
from featstore.integrations.vlmevalkit import video_models
from featstore.integrations.vlmevalkit.registry import VIDEO_MODELS
from featstore.models.visual_input import SampledClip
from featstore.sampling import Sampling

pytestmark = pytest.mark.slow

ROOT = os.environ.get("VLMEVALKIT_ROOT", "")
NAMES = {
    "qwen2_5_vl": "Qwen2_5-VL-7B",
    "qwen3_vl": "Qwen3_VL-8B",
    "llava_onevision": "llava-onevision-qwen2-7b",
}
SIZES = {"min_pixels": 4 * 1024, "max_pixels": 12 * 1024, "total_pixels": 60 * 1024}
NEW = 8


class NotedModel:
    """CachedVideoModel's place, which takes notes."""

    def __init__(self, checkpoint, store, **options):
        self.built, self.asked = (checkpoint, store, options), []

    def generate(self, prompt, video, **options):
        clip = SampledClip([0, 25, 50], 60, 25.0, None)
        self.asked.append({"content": prompt(clip), "video": video, **options})
        return "so \\boxed{\\frac{1}{2}} it is"


@pytest.fixture
def models(kit, noted, monkeypatch):
    module = types.ModuleType("featstore.models.transformers_video.model")
    module.CachedVideoModel = NotedModel
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for _, place, _, _ in VIDEO_MODELS.values():
        monkeypatch.delenv(place, raising=False)
    vlmevalkit.register(cache_dir="cache")
    return importlib.import_module("vlmeval.config").supported_VLM


def message(path, *texts):
    said = [{"type": "text", "value": text} for text in texts]
    return [*said[:-1], {"type": "video", "value": str(path)}, *said[-1:]]


@pytest.fixture
def clip(tmp_path):
    path = tmp_path / "videos" / "1.mp4"
    path.parent.mkdir()
    path.touch()
    return path


def test_each_model_is_registered_with_and_without_the_store(models):
    for name, (checkpoint, _, _, _) in VIDEO_MODELS.items():
        assert "Qwen2.5-VL" not in name
        assert "Qwen3-VL" not in name
        for behind, store in (("", None), ("-Cached", "cache")):
            model = models[name + behind]()
            assert model.model.built[:2] == (checkpoint, store)
            assert model.VIDEO_LLM
    import vlmeval.vlm

    assert isinstance(model, vlmeval.vlm.LLaVA_OneVision_Cached)
    assert vlmeval.vlm.QwenVL_Cached is vlmevalkit.QwenVL_Cached


def test_qwen_sees_the_message_in_its_order_at_the_datasets_frames(models, clip):
    model = models["Qwen2_5-VL-7B-Cached"](system_prompt="Be brief.")
    model.generate(message(clip, "Subtitles.", "Why?"), "TempCompass_MCQ")
    model.fps = None
    model.nframe = 64
    model.generate(message(clip, "Why?"), "TempCompass_MCQ")
    first, second = model.model.asked
    assert [part.get("text", part["type"]) for part in first["content"]] == [
        "Subtitles.", "video", "Why?",
    ]  # fmt: skip
    assert (first["dataset"], first["video"], first["system"]) == ("TempCompass", "1", "Be brief.")
    assert first["sampling"] == Sampling.parse("qwen:fps=2,min=4,max=768")
    assert second["sampling"] == Sampling(64, "qwen")
    assert first["max_new_tokens"] == 2048
    assert first["top_k"] == 1
    assert model.model.built[2]["max_pixels"] == 768 * 28 * 28


def test_llava_is_told_the_times_before_the_question(models, clip):
    model = models["llava-onevision-qwen2-7b-Cached"]()
    model.generate(message(clip, "Look. ", "Why?"), "MLVU")
    [asked] = model.model.asked
    [text, video] = asked["content"]
    assert video == {"type": "video"}
    assert text["text"] == (
        "<image>\nThe video lasts for 2.40 seconds, and 3 frames are uniformly sampled from it. These frames are "
        "located at 0.00s, 1.00s, 2.00s. Please answer the following questions related to this video.\nLook. Why?"
    )
    assert asked["sampling"] == Sampling(8, "llava-ov")
    model.nframe = None
    with pytest.raises(FeatstoreError, match="takes a number of frames"):
        model.generate(message(clip, "Why?"), "MLVU")


def test_post_processing_leaves_what_is_boxed(models, clip):
    model = models["Qwen3_VL-8B-Cached"](post_process=True, temperature=0)
    assert model.generate(message(clip, "Why?"), "MLVU") == "\\frac{1}{2}"
    assert model.model.asked[0]["do_sample"] is False
    assert video_models._boxed("none") == "none"
    assert video_models._boxed("\\boxed{open") == "open"
    assert video_models._boxed("nothing \\boxed{") == "nothing \\boxed{"


@pytest.mark.parametrize("name", NAMES.values())
def test_another_engine_is_refused_and_none_is_fine(models, name):
    models[f"{name}-Cached"](use_vllm=False, use_lmdeploy=None)
    with pytest.raises(FeatstoreError, match="use_vllm=True, but stored features go into"):
        models[f"{name}-Cached"](use_vllm=True)


def test_a_message_without_a_video_or_with_an_image_is_refused(models, clip):
    model = models["Qwen3_VL-8B-Cached"]()
    picture = [{"type": "image", "value": str(clip)}]
    for shown, kinds in (([], "none"), (picture, "image"), (2 * message(clip), "video, video")):
        with pytest.raises(FeatstoreError, match=f"shows {kinds}; this model answers about one"):
            model.generate([*shown, {"type": "text", "value": "Why?"}], "MLVU")


class Own:
    """VLMEvalKit's own class of a family on a checkpoint, on the CPU in float32."""

    CLASSES: ClassVar = {
        "qwen2_5_vl": ("qwen2_vl.model", "Qwen2VLChat", SIZES),
        "qwen3_vl": ("qwen3_vl.model", "Qwen3VLChat", SIZES),
        "llava_onevision": ("llava.llava", "LLaVA_OneVision_HF", {}),
    }

    def __init__(self, family, checkpoint, monkeypatch):
        import transformers
        from transformers import AutoModelForImageTextToText

        def load(path, **_):
            model = AutoModelForImageTextToText.from_pretrained(path, dtype="float32")
            generate = model.generate
            model.generate = lambda **given: generate(**{**given, "max_new_tokens": NEW})
            model.to = lambda *_: model
            return model

        def processor(path):
            """AutoProcessor.from_pretrained, for files that name no classes."""
            kind = {"qwen2_5_vl": "Qwen2VL", "qwen3_vl": "Qwen3VL"}.get(family, "LlavaOnevision")
            video = getattr(transformers, f"{kind}VideoProcessor").from_pretrained(path)
            image = {"qwen3_vl": "Qwen2VL"}.get(family, kind)
            image = getattr(transformers, f"{image}ImageProcessor").from_pretrained(path)
            name = {"qwen2_5_vl": "Qwen2_5_VLProcessor"}.get(family, f"{kind}Processor")
            tokenizer = transformers.AutoTokenizer.from_pretrained(path)
            options = {"chat_template": tokenizer.chat_template}
            if family == "llava_onevision":
                options |= {"num_image_tokens": 25, "vision_feature_select_strategy": "full"}
            return getattr(transformers, name)(image, tokenizer, video, **options)

        module, name, options = self.CLASSES[family]
        cls = getattr(importlib.import_module(f"vlmeval.vlm.{module}"), name)
        loader = SimpleNamespace(from_pretrained=load)
        monkeypatch.setattr(transformers.BatchFeature, "to", lambda self, *_, **__: self)
        # It writes <image> without an image, which newer releases of transformers refuse; older ones left it there.
        llava = transformers.LlavaOnevisionProcessor
        monkeypatch.setattr(llava, "validate_inputs", lambda self, *_, **__: None)
        with monkeypatch.context() as patch:
            loads = SimpleNamespace(from_pretrained=processor)
            patch.setattr(transformers, "AutoProcessor", loads)
            for loaded in ("Qwen2_5_VLFor", "LlavaOnevisionFor"):
                patch.setattr(transformers, f"{loaded}ConditionalGeneration", loader)
            patch.setattr(transformers, "AutoModelForImageTextToText", loader)
            self.model = cls(model_path=str(checkpoint), **options)


@pytest.fixture
def own_classes(kit, monkeypatch):
    """The files of VLMEvalKit's models in the stand-in's package."""
    if not ROOT:
        pytest.skip("VLMEVALKIT_ROOT names no checkout of VLMEvalKit")
    for module in ("torchvision", "qwen_vl_utils", "decord", "pandas"):
        try:
            importlib.import_module(module)
        except (ImportError, RuntimeError) as exc:
            pytest.skip(f"VLMEvalKit's own models need {module}, which cannot be loaded: {exc}")
    package = importlib.import_module("vlmeval.vlm")
    package.__path__.append(str(Path(ROOT) / "vlmeval" / "vlm"))
    base = importlib.import_module("vlmeval.vlm.base").BaseModel
    base.generate = lambda self, message, dataset=None: self.generate_inner(message, dataset)
    named = {"get_gpu_memory": lambda: [1], "get_cache_path": lambda path, **_: path}
    named["listinstr"] = lambda words, text: any(word in text for word in words)
    for module, names in (("smp", named), ("dataset", {"DATASET_MODALITY": lambda name: "VIDEO"})):
        stub = importlib.import_module(f"vlmeval.{module}")
        vars(stub).update(names)
        stub.__getattr__ = lambda name: None  # what other models of these files would use


@pytest.mark.usefixtures("one_thread", "own_classes")
@pytest.mark.parametrize("family", NAMES)
def test_answers_are_those_of_vlmevalkits_own_class(
    family, monkeypatch, tmp_path, sample_clips, cache
):
    """Of features stored losslessly: cold, warm, and in the same code without a store."""
    import torch
    from make_tiny_video_model import make_tiny_video_model

    importlib.import_module(
        "featstore.models.transformers_video.model"
    )  # before names are replaced
    checkpoint = make_tiny_video_model(tmp_path / "model", family)
    options = {} if family == "llava_onevision" else SIZES
    cls = video_models.video_classes()[VIDEO_MODELS[NAMES[family]][2]]
    own = Own(family, checkpoint, monkeypatch).model
    answers = []
    for place in (cache, cache, None):
        ours = cls(
            str(checkpoint), place, place is not None, device="cpu", max_new_tokens=NEW,
            quantize="fp32", codec="planes", prefix_cache=0, **options,
        )  # fmt: skip
        if family == "qwen3_vl":
            ours._generation |= {"top_p": 0.8, "top_k": 20}
        for path in sorted(sample_clips.iterdir()):
            for frames in ({}, {"fps": None, "nframe": 6}):
                for model in (ours, own):
                    model.nframe = frames.get("nframe", 8)
                    if family != "llava_onevision":
                        model.fps = frames.get("fps", 2)
                asked = message(path, "Watch. ", "What color is the ball?")
                torch.manual_seed(0)
                expected = own.generate([dict(item) for item in asked], "MLVU")
                torch.manual_seed(0)
                answers.append(ours.generate(asked, "MLVU"))
                assert answers[-1] == expected.strip(), (path.name, frames)
        ours.model.close()
    assert len(set(answers)) > 2  # the model tells videos apart
