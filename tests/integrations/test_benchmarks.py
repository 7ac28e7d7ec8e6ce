"""A video has one id, whoever names it."""

from __future__ import annotations

import pytest

from featstore.integrations.vlmevalkit import canonical_dataset, video_id
from featstore.pipeline.listing import VIDEO_SUFFIXES, list_videos

SNAPSHOT = "/data/hf/hub/datasets--owner--name/snapshots/8a61d3f0c5b9"


@pytest.mark.parametrize(
    ("dataset", "path", "video"),
    [
        ("Video-MME", "video/fFjv93ACGo8.mp4", "fFjv93ACGo8"),
        ("Video_Holmes", "video/0at001QMutY.mp4", "0at001QMutY"),
        ("TempCompass_MCQ", "./videos/1021488277.mp4", "1021488277"),
        ("TempCompass_YorN", "./videos/1021488277_reverse.mp4", "1021488277_reverse"),
        ("MLVU_MCQ", "./MLVU/video/1_plotQA/movie101_66.mp4", "1_plotQA/movie101_66"),
        ("MLVU_OpenEnded", "./MLVU/video/8_sub_scene/217.mp4", "8_sub_scene/217"),
        ("VideoMMMU", "videos/Art/dev_Art_Theory_1.mp4", "Art/dev_Art_Theory_1"),
        ("MMBench-Video", "video//6tQxQZoXcZA_processed.mp4", "6tQxQZoXcZA_processed"),
        ("LongVideoBench", "./videos/86CxyhFV9MI.mp4", "86CxyhFV9MI"),
    ],
)
def test_a_video_is_named_by_its_place_in_the_benchmarks_video_folder(dataset, path, video):
    assert video_id(dataset, f"{SNAPSHOT}/{path}") == video


def test_the_revision_and_the_place_of_the_hub_make_no_difference():
    paths = [
        f"{SNAPSHOT}/videos/Art/a.mp4",
        "/home/me/.cache/huggingface/hub/datasets--owner--name/snapshots/other/./videos/Art/a.mp4",
        "/mnt/videos/hf/hub/datasets--owner--name/snapshots/other/videos/Art/a.mp4",
        "/mnt/snapshots/monday/hub/datasets--owner--name/snapshots/other/videos/Art/a.mp4",
        "/mnt/video/modelscope/owner/name/videos/Art/a.mp4",
        "videos/Art/a.mp4",
    ]
    assert {video_id("VideoMMMU", path) for path in paths} == {"Art/a"}


def test_equal_names_in_two_folders_are_two_videos():
    names = [
        video_id("MLVU_MCQ", f"{SNAPSHOT}/MLVU/video/{task}/movie101_66.mp4")
        for task in ("1_plotQA", "2_needle")
    ]
    twins = [
        video_id("VideoMMMU", f"{SNAPSHOT}/videos/{folder}/dev_Art_Theory_1.mp4")
        for folder in ("Art", "question_only/Art")
    ]
    assert len({*names, *twins}) == 4


def test_only_the_suffix_is_cut_off():
    assert video_id("D", f"{SNAPSHOT}/video/v1.5 of it.webm") == "v1.5 of it"


@pytest.mark.parametrize(
    ("name", "video"),
    [
        ("s1.e1", "s1.e1"),
        ("s1.e2", "s1.e2"),
        ("s1.e2.mp4", "s1.e2"),
        ("A.MKV", "A"),
        (".mp4", ".mp4"),
    ],
)
def test_a_file_is_named_alike_by_vlmevalkit_and_by_ingest(tmp_path, name, video):
    path = tmp_path / "videos" / name
    path.parent.mkdir()
    path.touch()
    assert video_id("D", path) == list_videos([path])[0].video_id == video
    if not name.startswith(".") and path.suffix.lower() in VIDEO_SUFFIXES:
        assert [found.video_id for found in list_videos([path.parent])] == [video]


def test_without_a_video_folder_a_video_is_named_from_the_snapshot_or_the_datasets_folder():
    assert video_id("D", f"{SNAPSHOT}/clips/a.mp4") == "clips/a"
    assert video_id("D", "/data/D/clips/a.mp4") == "clips/a"
    assert video_id("D", "/data/elsewhere/a.mp4") == "a"


def test_sub_tables_and_configs_belong_to_one_dataset():
    for name in (
        "TempCompass",
        "TempCompass_MCQ",
        "TempCompass_Captioning",
        "TempCompass_128frame",
    ):
        assert canonical_dataset(name) == "TempCompass"
    assert canonical_dataset("MLVU_OpenEnded") == "MLVU"
    assert canonical_dataset("MMBench_Video_128frame_nopack") == "MMBench-Video"
    assert canonical_dataset("SomethingElse") == "SomethingElse"
