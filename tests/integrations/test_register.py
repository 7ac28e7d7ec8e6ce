from __future__ import annotations

import functools
import importlib
import os
from pathlib import Path

import pytest

from featstore.errors import ListingError
from featstore.integrations import vlmevalkit
from featstore.integrations.vlmevalkit.datasets import list_videos
from featstore.integrations.vlmevalkit.registry import VIDEO_MODELS

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_children")]

CONFIGS = [
    "Video-MME_128frame",
    "Video_Holmes_128frame",
    "TempCompass_128frame",
    "MLVU_128frame",
    "VideoMMMU_128frame",
    "MMBench_Video_128frame_nopack",
    "LongVideoBench_128frame",
]
MODELS = {
    "LongVA-7B": "lmms-lab/LongVA-7B-DPO",
    "LongVA-Temporal-v1": "Eculid/Temporal-v1",
    "LongVA-Temporal-v2": "Eculid/Temporal-v2",
}


@pytest.fixture
def tables(kit, noted, monkeypatch):
    for name in ("FEATSTORE_CACHE_DIR", "FEATSTORE_LONGVA_7B"):
        monkeypatch.delenv(name, raising=False)
    models = importlib.import_module("vlmeval.config").supported_VLM
    return models, importlib.import_module(
        "vlmeval.dataset.video_dataset_config"
    ).supported_video_datasets


def decoded() -> list[str]:
    log = Path(os.environ["STANDIN_DECODED"])
    return log.read_text().splitlines() if log.exists() else []


def test_registering_adds_models_and_benchmarks_in_place(tables):
    models, datasets = tables
    there = {*models, *datasets}
    vlmevalkit.register(cache_dir="cache")
    names = {*MODELS, *VIDEO_MODELS}
    cached = {f"{name}-Cached" for name in names}
    assert {*models, *datasets} == there | {*names, *cached, *CONFIGS}
    for name, checkpoint in MODELS.items():
        for build, cache_dir in ((models[name], None), (models[f"{name}-Cached"], "cache")):
            assert isinstance(build, functools.partial)
            assert build.keywords == {
                "model_path": checkpoint,
                "cache_dir": cache_dir,
                "enable_cache": cache_dir is not None,
            }
            assert build().model.cache_dir == cache_dir
    for name in CONFIGS:
        assert isinstance(datasets[name], functools.partial)
        assert datasets[name]().nframe == 128
    assert models["LongVA-7B-Cached"]().model.checkpoint == "lmms-lab/LongVA-7B-DPO"


def test_registering_twice_changes_nothing(tables):
    models, datasets = tables
    vlmevalkit.register(models, "cache")
    from vlmeval.dataset import VideoMME

    before, frames = list(datasets.values()), VideoMME.save_video_frames
    vlmevalkit.register(models, "other")
    assert list(datasets.values()) == before
    assert VideoMME.save_video_frames is frames
    assert models["LongVA-7B-Cached"].keywords["cache_dir"] == "other"


def test_a_benchmark_that_vlmevalkit_has_itself_is_kept(tables):
    _, datasets = tables
    datasets["MLVU_128frame"] = own = functools.partial(dict)
    vlmevalkit.register()
    assert datasets["MLVU_128frame"] is own


def test_checkpoints_are_named_by_arguments_or_the_environment(tables, monkeypatch):
    models, _ = tables
    monkeypatch.setenv("FEATSTORE_CACHE_DIR", "cache")
    monkeypatch.setenv("FEATSTORE_LONGVA_7B", "/models/LongVA-7B")
    vlmevalkit.register(
        checkpoints={"LongVA-Temporal-v1-Cached": "/models/v1", "Mine": "/models/mine"},
        dtype="fp16",
    )
    for behind in ("", "-Cached"):
        names = (*MODELS, "Mine")
        paths = {name: models[name + behind].keywords["model_path"] for name in names}
        assert paths == {
            "LongVA-7B": "/models/LongVA-7B",
            "LongVA-Temporal-v1": "/models/v1",
            "LongVA-Temporal-v2": "Eculid/Temporal-v2",
            "Mine": "/models/mine",
        }
        assert models["Mine" + behind].keywords["dtype"] == "fp16"
    assert models["Mine-Cached"].keywords["cache_dir"] == "cache"
    assert models["Mine"].keywords["cache_dir"] is None


def test_a_config_file_of_vlmevalkit_finds_the_class(tables):
    vlmevalkit.register()
    import vlmeval.vlm

    assert vlmeval.vlm.LongVA_Cached is vlmevalkit.LongVA_Cached
    assert (
        vlmeval.vlm.LongVA_Cached_in_tree is vlmevalkit.LongVA_Cached
    )  # imported by the package itself


@pytest.mark.parametrize("config", [*CONFIGS, "LongVideoBench_8frame"])
def test_a_prompt_for_a_video_decodes_nothing(tables, config):
    _, datasets = tables
    vlmevalkit.register()
    dataset = datasets[config]()
    for row in range(len(dataset.data)):
        assert any(item["type"] == "video" for item in dataset.build_prompt(row, video_llm=True))
    assert decoded() == []


def test_a_model_that_takes_frames_still_gets_them(tables):
    _, datasets = tables
    vlmevalkit.register()
    prompt = datasets["Video_Holmes_128frame"]().build_prompt(0, video_llm=False)
    assert {"type": "image", "value": "frame.jpg"} in prompt
    assert len(decoded()) == 1


def test_subtitles_are_chosen_by_the_frames_vlmevalkit_would_take_and_none_is_decoded(
    tables, monkeypatch
):
    import decord

    class Reader:
        def __init__(self, path):
            assert path.endswith("video/fFjv93ACGo8.mp4")

        def __len__(self):
            return 900

        def get_avg_fps(self):
            return 30.0

    monkeypatch.setattr(decord, "VideoReader", Reader)
    _, datasets = tables
    vlmevalkit.register()
    prompt = datasets["Video-MME_8frame_subs"]().build_prompt(0, video_llm=True)
    expected = "subtitles at [100, 200, 300, 400, 500, 600, 700, 800] of 900, 30.0 a second"
    assert prompt[3]["value"] == expected
    assert decoded() == []


@pytest.mark.parametrize("config", CONFIGS)
def test_ingest_and_model_name_the_same_videos(tables, config, tmp_path):
    _, datasets = tables
    vlmevalkit.register(cache_dir="cache")
    from standin_rows import VIDEOS
    from vlmeval.inference_video import infer_data_job_video

    listed = list_videos(config)
    assert listed.nframe == 128
    assert {video.video_id for video in listed.videos} == VIDEOS[listed.dataset]
    name, result_file = "LongVA-7B-Cached", str(tmp_path / "predictions.json")
    model = infer_data_job_video(name, tmp_path, name, datasets[config](), result_file)
    asked = {(asked["dataset"], asked["video"]): asked["path"] for asked in model.model.asked}
    assert {name for name, _ in asked} == {listed.dataset}
    same = {(listed.dataset, video.video_id): video.path for video in listed.videos}
    assert {name: os.path.normpath(path) for name, path in asked.items()} == same


def test_the_videos_of_a_benchmark_with_subtitles_are_listed_without_a_look_into_them(tables):
    assert (
        len(list_videos("Video-MME_8frame_subs").videos) == 2
    )  # the files are empty: opening one would fail


def test_a_benchmark_nobody_knows_is_refused_with_those_there_are(tables):
    with pytest.raises(
        ListingError, match=r"no video dataset config 'Video-MME'.*Video_Holmes_128frame"
    ):
        list_videos("Video-MME")


def test_a_benchmark_sampled_by_time_is_refused(tables):
    for rate in (None, 2.0):
        with pytest.raises(ListingError, match=r"samples 1\.0 frames a second.*qwen:fps=1,min=4"):
            list_videos("Video-MME_1fps", rate)


def test_a_benchmark_sampled_by_time_is_listed_for_a_rule_at_its_rate(tables):
    listed = list_videos("Video-MME_1fps", 1.0)
    assert listed.nframe < 1
    assert listed.videos == list_videos("Video-MME_128frame").videos
