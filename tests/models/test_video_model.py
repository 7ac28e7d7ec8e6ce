"""Answers from stored features are those of transformers' whole model, whose vision side is not loaded here."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from make_tiny_video_model import make_tiny_video_model
from transformers import AutoModelForImageTextToText, AutoTokenizer, DynamicCache, LogitsProcessor
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from featstore.decoding.video_file import Video
from featstore.encoders import get_encoder
from featstore.errors import FeatstoreError, MissingExtra
from featstore.models import CachedVideoModel
from featstore.models.generating.prefix import CACHE
from featstore.models.transformers_video.families import FAMILIES, check_version, find_family
from featstore.pipeline.on_demand import OnDemandEncoder
from featstore.records.storage import Storage
from featstore.sampling import Sampling

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread", "quick_children")]

EXACT = Storage("fp32", codec="planes")
SMALL = {"min_pixels": 4 * 1024, "max_pixels": 12 * 1024}
QUESTIONS = ("What color is the ball?", "Does the eye close?")
NEW = 4


class Logits(LogitsProcessor):
    """Keeps the logits of each step."""

    def __init__(self):
        self.steps = []

    def __call__(self, ids, scores):
        self.steps.append(scores.clone())
        return scores

    @property
    def all(self):
        return torch.cat(self.steps)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def checkpoint(family, tmp_path_factory):
    return make_tiny_video_model(tmp_path_factory.mktemp(family) / "model", family)


@pytest.fixture(scope="module")
def live(checkpoint):
    return Live(checkpoint)


class Live:
    """transformers' own model on pixels, with its vision side."""

    def __init__(self, checkpoint):
        self.model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32)
        self.model.eval()
        self.tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        self.config = self.model.config
        self.frames = {}

    def inputs(self, question, encoder, clip, frames):
        """What a processor returns, written out by hand: it needs torchvision, which tests do without."""
        vision, token = (
            self.config.vision_config,
            self.tokenizer.convert_ids_to_tokens(self.config.video_token_id),
        )
        messages = [
            {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": question}]}
        ]
        text = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        if self.config.model_type == "llava_onevision":
            return self.llava(text, token, encoder, frames)
        pair, patch = vision.temporal_patch_size, vision.patch_size
        steps, (height, width) = len(frames) // pair, frames.shape[1:3]
        tall, wide = height // patch, width // patch
        cells = tall * wide // 4
        expanded = token * steps * cells
        if self.config.model_type == "qwen3_vl":
            times = [index / clip.fps for index in clip.indices]
            middles = [(times[i] + times[i + 1]) / 2 for i in range(0, len(times), 2)]
            expanded = "".join(
                f"<{time:.1f} seconds><|vision_start|>{token * cells}<|vision_end|>"
                for time in middles
            )
        ids = torch.tensor([self.tokenizer(text.replace(token, expanded)).input_ids])
        pixels = normalized(frames, encoder.preprocessing)  # (F, 3, H, W)
        pixels = pixels.view(steps, pair, 3, tall // 2, 2, patch, wide // 2, 2, patch)
        pixels = pixels.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(steps * tall * wide, -1)
        given = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "mm_token_type_ids": (ids == self.config.video_token_id).int() * 2,
            "pixel_values_videos": pixels,
            "video_grid_thw": torch.tensor([[steps, tall, wide]]),
        }
        if self.config.model_type == "qwen2_5_vl":
            given["second_per_grid_ts"] = torch.tensor(
                [pair / (len(frames) / clip.total_frames * clip.fps)]
            )
        return given

    def llava(self, text, token, encoder, frames):
        pixels = normalized(frames, encoder.preprocessing)
        cells = (-(-(frames.shape[1] // self.config.vision_config.patch_size) // 2)) ** 2
        whole = text.replace(token, token * (len(frames) * cells + 1))
        ids = torch.tensor([self.tokenizer(whole).input_ids])
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "pixel_values_videos": pixels.contiguous()[None],  # as a processor's, which stacks them
        }

    @torch.inference_mode()
    def logits(self, given):
        kept = Logits()
        self.model.generate(**given, do_sample=False, max_new_tokens=NEW, logits_processor=[kept])
        return kept.all

    @torch.inference_mode()
    def logits_in_two_steps(self, given):
        """The prompt up to the video's end first, then the question: with kept keys and values."""
        ids = given["input_ids"]
        seen = int((ids[0] == self.config.video_token_id).nonzero()[-1]) + 1
        rest = {k: v for k, v in given.items() if k not in ("input_ids", "pixel_values_videos")}
        positions = self.model._prepare_position_ids_for_generation(ids, dict(rest))
        cache = DynamicCache()
        grid = {k: v for k, v in given.items() if k in ("pixel_values_videos", "video_grid_thw")}
        first = {"input_ids": ids[:, :seen], "position_ids": positions[..., :seen]}
        self.model.model(**first, **grid, use_cache=True, **{CACHE: cache})
        return self.logits({"input_ids": ids, "position_ids": positions, **rest, CACHE: cache})


def normalized(frames, pre):
    """(F, 3, H, W) float32 as transformers' video processors normalize: mean and std times 255, in float32."""
    mean, std = (torch.tensor(v)[:, None, None] * (1 / pre.rescale) for v in (pre.mean, pre.std))
    return (torch.from_numpy(frames).permute(0, 3, 1, 2).float() - mean) / std


@pytest.fixture(scope="module")
def ask(checkpoint, family, sample_clips, tmp_path_factory):
    """A function that asks a cached model, and returns the logits of its answer."""
    paths = {path.stem: path for path in sorted(sample_clips.iterdir())}

    def build(cache, storage=EXACT, **options):
        options = {"on_miss": "encode", **options}
        model = CachedVideoModel(
            checkpoint, cache, dataset="demo", device="cpu", storage=storage,
            sampling=sampling_of(family), **sizes_of(family), **options,
        )  # fmt: skip

        def logits(question, video, **options):
            kept = Logits()
            options |= {"max_new_tokens": NEW, "logits_processor": [kept]}
            model.generate_ids(question, video, path=paths[video], **options)
            return kept.all

        return SimpleNamespace(model=model, logits=logits, videos=list(paths), paths=paths)

    return build


def sampling_of(family):
    return Sampling(4, "linspace" if family == "llava_onevision" else "qwen")


def sizes_of(family):
    return {} if family == "llava_onevision" else SMALL


@pytest.fixture(scope="module")
def wanted(live, checkpoint, family, sample_clips):
    """(question, video) -> what transformers' whole model is given."""
    found = {}
    encoder = get_encoder(
        FAMILIES[family].encoder, checkpoint=str(checkpoint), device="cpu", **sizes_of(family)
    )
    kept = []
    encode = encoder.encode
    encoder.encode = lambda frames: kept.append(np.array(frames)) or encode(frames)
    on_demand = OnDemandEncoder(encoder, timeout=60)
    for path in sorted(sample_clips.iterdir()):
        kept.clear()
        clip = on_demand.encode(Video(path.stem, str(path)), sampling_of(family)).clip
        frames = np.concatenate(kept)
        frames = frames.reshape(-1, *frames.shape[-3:])
        for question in QUESTIONS:
            found[question, path.stem] = live.inputs(question, encoder, clip, frames)
    on_demand.close()
    return found


def test_logits_are_the_whole_models_cold_and_warm(ask, live, wanted, cache):
    """To the last bit, in float32 from features that are stored losslessly."""
    for _ in ("cold", "warm"):
        asked = ask(cache, prefix_cache=0)
        with asked.model:
            for video in asked.videos[:2]:
                for question in QUESTIONS:
                    assert torch.equal(
                        asked.logits(question, video), live.logits(wanted[question, video])
                    )
    assert asked.model.statistics.misses == 0
    assert asked.model.statistics.hits == 4


def test_kept_prefixes_change_nothing_between_questions_on_two_videos(ask, live, wanted, cache):
    asked = ask(cache, prefix_cache=2)
    with asked.model:
        for _ in range(2):
            for question in QUESTIONS:
                for video in asked.videos[:2]:
                    found, given = asked.logits(question, video), wanted[question, video]
                    assert torch.equal(found, live.logits_in_two_steps(given))
                    at_once = live.logits(given)
                    assert torch.equal(found.argmax(-1), at_once.argmax(-1))
                    assert (found - at_once).abs().max() < 1e-4
    assert len(asked.model._answerer.prefixes) == 0  # closed


def test_a_question_may_have_its_own_message_frames_and_timing(ask, cache, family):
    asked, question = ask(cache, prefix_cache=0), QUESTIONS[0]
    parts, seen, video = (
        [{"type": "video"}, {"type": "text", "text": question}],
        [],
        "bouncing_ball",
    )
    with asked.model:
        plain = asked.logits(question, video)
        shaped = asked.logits(lambda clip: seen.append(clip.frames) or parts, video)
        assert torch.equal(shaped, plain)
        assert not torch.equal(asked.logits(lambda clip: parts[::-1], video)[:1], plain[:1])
        if family == "qwen2_5_vl":  # one is enough: other frames take another decode worker
            six = asked.logits(question, video, sampling=Sampling(6, "qwen"))
            assert torch.equal(six, asked.logits(question, video, nframe=6))
            assert not torch.equal(six[:1], plain[:1])
        timed = asked.logits(question, video, sampled_fps=0.25)
    assert [len(frames) for frames in seen] == [4]
    assert torch.equal(timed, plain) == (
        family != "qwen2_5_vl"
    )  # which alone places frames in time


def test_a_kept_prefix_serves_no_other_timing_and_none_without_a_cache(ask, cache):
    ways = ({}, {"sampled_fps": 0.25}, {"use_cache": False}, {"sampled_fps": 24.0}, {})
    for question in QUESTIONS[:1]:
        found = {}
        for kept in (0, 1):
            asked = ask(cache, prefix_cache=kept)
            with asked.model:
                found[kept] = [asked.logits(question, "blink", **way) for way in ways]
        for plain, prefixed in zip(found[0], found[1], strict=True):
            assert (plain - prefixed).abs().max() < 1e-4


def test_a_question_with_a_place_for_a_video_and_a_rate_that_is_none_are_refused(ask, cache):
    asked = ask(cache)
    with asked.model:
        token = asked.model._prompter._processor.video_token
        with pytest.raises(ValueError, match="has 2 places for a video"):
            asked.logits(f"Is {token} red?", "blink")
        for rate in (0, -1.0, float("nan"), float("inf")):
            with pytest.raises(ValueError, match="sampled_fps is"):
                asked.logits(QUESTIONS[0], "blink", sampled_fps=rate)


def test_the_vision_side_is_not_loaded_and_features_matter(ask, cache, family):
    asked = ask(cache)
    with asked.model:
        model = asked.model._language.model.model
        assert all(getattr(model, part) is None for part in FAMILIES[family].sees)
        one, other = (asked.logits(QUESTIONS[0], video) for video in asked.videos[:2])
        assert not torch.equal(one[:1], other[:1])


def test_every_other_model_of_transformers_is_refused_by_name_with_the_reason():
    names = set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES) - set(FAMILIES)
    assert len(names) > 40
    reasons = set()
    for name in sorted({*names, "llava_qwen"}):
        with pytest.raises(
            FeatstoreError, match=f"model_type '{name}' cannot be answered"
        ) as caught:
            find_family(name)
        reasons.add(
            re.sub(
                r"\w+ForCond\w+|\w+ForConv\w+|\w+LM\w*|\w+Model",
                "X",
                str(caught.value).split(": ")[1],
            )
        )
    assert any("takes no features in place of pixels" in reason for reason in reasons)
    assert any("featstore has no encoder" in reason for reason in reasons)


def test_transformers_that_is_too_old_is_a_missing_extra():
    check_version("5.18.0")
    check_version("6.0.0.dev0")
    with pytest.raises(MissingExtra, match=r"pip install 'transformers>=5\.18'"):
        check_version("5.17.3")
