from __future__ import annotations

import subprocess
import sys

import pytest

from featstore.errors import FeatstoreError, MissingExtra
from featstore.integrations import vlmevalkit
from featstore.records.storage import Storage
from featstore.sampling import Sampling

pytestmark = pytest.mark.slow


@pytest.fixture
def model(kit, noted):
    return vlmevalkit.LongVA_Cached(model_path="checkpoint", cache_dir="cache")


def message(path: str, question: str = "Why?") -> list[dict[str, str]]:
    return [{"type": "video", "value": path}, {"type": "text", "value": question}]


def test_naming_the_mixin_loads_neither_vlmeval_nor_torch():
    code = (
        "import sys; from featstore.integrations.vlmevalkit import LongVAMixin, video_id, canonical_dataset;"
        "from featstore.integrations.vlmevalkit import launch;"
        "assert LongVAMixin.VIDEO_LLM; print(sorted({'vlmeval', 'torch'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_it_is_a_video_model_of_vlmevalkit(model):
    from vlmeval.vlm.base import BaseModel

    assert isinstance(model, BaseModel)
    assert model.VIDEO_LLM
    assert model.nframe == 128
    assert model.dump_image_func is None  # BaseModel's own constructor has run


def test_without_vlmevalkit_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "vlmeval", None)
    vlmevalkit.model.longva_cached.cache_clear()
    with pytest.raises(MissingExtra, match=r"pip install -e VLMEvalKit.*VLMEVALKIT_ROOT"):
        _ = vlmevalkit.LongVA_Cached


def test_the_checkpoint_the_store_and_the_options_reach_the_model(kit, noted):
    vlmevalkit.LongVA_Cached(
        "checkpoint", "cache", sampling="midpoint", dtype="fp32", on_miss="error"
    )
    [built] = noted.built
    assert (built.checkpoint, built.cache_dir) == ("checkpoint", "cache")
    sampling = Sampling(128, "midpoint")
    assert built.options == {
        "sampling": sampling,
        "storage": None,
        "dtype": "fp32",
        "on_miss": "error",
    }


@pytest.mark.parametrize(
    ("options", "storage"),
    [
        ({"quantize": "bf16"}, Storage("bf16")),
        ({"scale": "token"}, Storage("int8", "token")),
        ({"quantize": "fp16", "codec": "zstd"}, Storage("fp16", codec="zstd")),
    ],
)
def test_how_misses_are_stored_is_said_in_ingest_s_words(kit, noted, options, storage):
    vlmevalkit.LongVA_Cached("checkpoint", "cache", **options)
    assert noted.built[0].options["storage"] == storage


def test_a_storage_that_there_is_not_is_refused_before_anything_is_loaded(kit, noted):
    with pytest.raises(ValueError, match="granularity is 'token' with bf16 values"):
        vlmevalkit.LongVA_Cached("checkpoint", "cache", quantize="bf16", scale="token")
    assert not noted.built


def test_without_the_cache_the_same_model_gets_no_store(kit, noted):
    vlmevalkit.LongVA_Cached("checkpoint", "cache", enable_cache=False)
    assert noted.built[0].cache_dir is None


def test_a_cache_without_a_folder_is_refused_before_anything_is_loaded(kit, noted):
    with pytest.raises(
        FeatstoreError, match="name the cache directory, or pass enable_cache=False"
    ):
        vlmevalkit.LongVA_Cached("checkpoint")
    assert not noted.built


def test_a_question_about_a_sub_table_is_asked_of_the_dataset(model, tmp_path):
    path = tmp_path / "snapshots" / "rev" / "videos" / "1.mp4"
    path.parent.mkdir(parents=True)
    path.touch()
    assert model.generate(message(str(path)), "TempCompass_MCQ") == "answer 1"
    assert model.model.asked == [
        {
            "prompt": "Why?",
            "video": "1",
            "dataset": "TempCompass",
            "path": str(path),
            "nframe": 128,
            "images": (),
            "max_new_tokens": 2048,
        }
    ]


def test_the_number_of_frames_is_read_when_a_question_is_asked(model):
    model.nframe = 64
    model.generate_inner(message("/videos/1.mp4"), "D")
    assert model.model.asked[0]["nframe"] == 64


def test_options_of_generating_go_to_each_answer(kit, noted):
    model = vlmevalkit.LongVA_Cached("checkpoint", "cache", max_new_tokens=8, num_beams=2)
    model.generate_inner(message("/videos/1.mp4"), "D")
    asked = noted.built[0].asked[0]
    assert (asked["max_new_tokens"], asked["num_beams"]) == (8, 2)
    assert noted.built[0].options.keys() == {"sampling", "storage"}


def test_a_question_without_a_video_names_none(model):
    model.generate_inner([{"type": "text", "value": "Why?"}])
    asked = model.model.asked[0]
    assert (asked["video"], asked["path"], asked["dataset"]) == (None, None, None)
