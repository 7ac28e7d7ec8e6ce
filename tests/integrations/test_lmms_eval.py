"""What featstore does inside lmms-eval, as far as that can be told without it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from featstore.errors import FeatstoreError, MissingExtra
from featstore.integrations.benchmarks import canonical_dataset, video_id
from featstore.integrations.lmms_eval.arguments import (
    LONGVA,
    VIDEO,
    check_pooling,
    choose_device,
    choose_store,
    leave_out_stock,
)
from featstore.integrations.lmms_eval.names import locate, visuals_of
from featstore.integrations.lmms_eval.video_families import choose_options
from featstore.sampling import Sampling

VLMEVALKIT = {
    "Video-MME": "/hub/datasets--lmms-lab--Video-MME/snapshots/1/video/a.mp4",
    "TempCompass_MCQ": "/hub/datasets--lmms-lab--TempCompass/snapshots/1/videos/a_reverse.mp4",
    "LongVideoBench": "/hub/datasets--x--LongVideoBench/snapshots/1/videos/a.mp4",
    "VideoMMMU": "/hub/datasets--lmms-lab--VideoMMMU/snapshots/1/videos/Art/v_Art_1.mp4",
    "MLVU_MCQ": "/hub/datasets--MLVU--MVLU/snapshots/1/MLVU/video/2_needle/n_1.mp4",
    "Video_Holmes": "/hub/datasets--TencentARC--Video-Holmes/snapshots/1/video/a.mp4",
}
LMMS_EVAL = [
    ("videomme", {}, "/home/me/videos/hf/videomme/data/a.MP4"),
    ("videomme_long_w_subtitle", {}, "/hf/videomme/data/a.mkv"),
    ("tempcompass_multi_choice", {}, "/hf/tempcompass/videos/a_reverse.mp4"),
    ("longvideobench_val_v", {}, "/hf/datasets/longvideobench/videos/a.mp4"),
    ("video_mmmu_perception", {}, "/hf/video_mmmu/Art/v_Art_1.mp4"),
    ("mlvu_dev", {"task_type": "needle"}, "/hf/mlvu/n_1.mp4"),
    ("mlvu_dev", {"task_type": "needle"}, "/hf/mlvu/2_needle/n_1.mp4"),
    (
        "video_holmes_reasoning",
        {},
        "/hf/datasets--TencentARC--Video-Holmes/snapshots/1/videos_cropped/a.mp4",
    ),
]


@pytest.mark.parametrize(("task", "doc", "path"), LMMS_EVAL)
def test_a_video_has_the_id_that_vlmevalkit_s_benchmark_gives_it(task, doc, path):
    theirs = {(canonical_dataset(name), video_id(name, file)) for name, file in VLMEVALKIT.items()}
    assert locate(task, doc, path) in theirs


def test_benchmarks_that_only_sound_alike_have_datasets_of_their_own(monkeypatch):
    monkeypatch.setenv("HF_HOME", "/hf")
    assert locate("videomme_v2", {}, "/hf/videomme_v2/a.mp4") == ("videomme_v2", "a")
    assert locate("mlvu_test", {}, "/hf/mlvu_test/a.mp4") == ("MLVU_Test", "a")


def test_tasks_that_share_a_folder_of_videos_share_their_features(monkeypatch):
    monkeypatch.setenv("HF_HOME", "/hf")
    found = {locate(task, {}, "/hf/mvbench_video/star/x/a.mp4") for task in ("mv_one", "mv_two")}
    assert found == {("mvbench_video", "star/x/a")}
    monkeypatch.delenv("HF_HOME")
    assert locate("mine", {}, "/data/videos/x/a.mp4") == ("mine", "x/a")


def test_a_file_that_a_task_ends_the_program_for_is_named():
    def ask(doc):
        sys.exit(f"video path:{doc} does not exist, please check")

    assert visuals_of(ask, "/hf/a b.mp4") == ["/hf/a b.mp4"]
    with pytest.raises(FileNotFoundError, match="the task ends the program: gone"):
        visuals_of(lambda _: sys.exit("gone"), {})


def test_what_longva_is_told_and_this_model_does_anyway_is_taken():
    given = {
        "batch_size": "1",
        "conv_template": "qwen_1_5",
        "max_batch_size": 4,
        "model_name": "llava_qwen",
        "token_strategy": "single",
        "truncation": True,
        "video_decode_backend": "decord",
        "on_miss": "error",
    }
    assert leave_out_stock(given, LONGVA) == {"on_miss": "error"}
    for name, value, why in (
        ("batch_size", 8, "one by one"),
        ("video_decode_backend", "pyav", "shorter than max_frames_num"),
        ("conv_template", "vicuna_v1", "conv_template=qwen_1_5"),
        ("use_cache", False, "keys and values"),
        ("truncate_context", 0, "LongVA's own"),
    ):
        with pytest.raises(FeatstoreError, match=why):
            leave_out_stock({name: value}, LONGVA)


def test_what_other_video_models_are_told_is_followed_or_refused():
    assert leave_out_stock({"interleave_visuals": False, "use_cache": True}, VIDEO) == {}
    with pytest.raises(FeatstoreError, match="interleave_visuals=True cannot be followed"):
        leave_out_stock({"interleave_visuals": True}, VIDEO)


SMALLEST = 256 * 28 * 28


@pytest.mark.parametrize(
    ("family", "given", "expected"),
    [
        ("qwen2_5_vl", {}, (Sampling(32, "qwen"), SMALLEST, 768 * 28**2)),
        ("qwen2_5_vl", {"max_num_frames": 35}, (Sampling(34, "qwen"), SMALLEST, 768 * 28**2)),
        ("qwen2_5_vl", {"fps": 1}, (Sampling(768, "qwen", 1), SMALLEST, 768 * 28**2)),
        ("qwen3_vl", {}, (Sampling(32, "qwen"), SMALLEST, 768 * 32**2)),
        ("qwen3_vl", {"fps": 1}, (Sampling(32, "qwen", 1), SMALLEST, 768 * 32**2)),
        ("qwen3_vl", {"total_pixels": 10**6}, (Sampling(32, "qwen", 2), SMALLEST, 768 * 32**2)),
        ("qwen3_vl", {"max_pixels": 300_000}, (Sampling(32, "qwen"), SMALLEST, 300_000)),
        ("llava_onevision", {}, (Sampling(32), None, None)),
        ("llava_onevision", {"max_frames_num": 8}, (Sampling(8), None, None)),
        ("qwen3_vl", {"sampling": "fps:1"}, (Sampling(32, "fps", 1), SMALLEST, 768 * 32**2)),
    ],
)
def test_frames_and_pixels_are_those_of_lmms_eval_s_own_class(tmp_path, family, given, expected):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    manner, options = choose_options(str(tmp_path), given)
    assert (options["sampling"], options.get("min_pixels"), options.get("max_pixels")) == expected
    assert manner.system == (
        None if family == "llava_onevision" else "You are a helpful assistant."
    )


def test_a_temperature_above_zero_is_what_samples_and_until_is_not_followed(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava_onevision"}))
    manner, _ = choose_options(str(tmp_path), {})
    greedy = {"max_new_tokens": 1024, "num_beams": 1, "do_sample": False}
    asked = {"until": ["\n"], "do_sample": True, "temperature": 0, "top_p": 1.0}
    assert manner.generating(asked) == greedy
    warm = {"temperature": 0.7, "top_k": 3, "max_new_tokens": 8}
    assert manner.generating({**warm, "top_p": None}) == {**greedy, **warm, "do_sample": True}
    assert manner.prompt("<image>\nWhy?") == "\nWhy?"


def test_pooling_is_the_checkpoint_s():
    given = {"mm_spatial_pool_mode": "average", "mm_spatial_pool_stride": 2, "dtype": "fp32"}
    check_pooling(given, "average:2")
    assert given == {"dtype": "fp32"}
    with pytest.raises(FeatstoreError, match="which pools average:2"):
        check_pooling({"mm_spatial_pool_stride": 4}, "average:2")


def test_a_store_must_be_named(monkeypatch):
    monkeypatch.delenv("FEATSTORE_CACHE_DIR", raising=False)
    with pytest.raises(FeatstoreError, match="pass cache_dir= in --model_args"):
        choose_store(None, enable_cache=True)
    monkeypatch.setenv("FEATSTORE_CACHE_DIR", "there")
    assert choose_store(None, enable_cache=True) == "there"
    assert choose_store("here", enable_cache=False) is None


def test_of_several_processes_each_takes_its_own_gpu(monkeypatch):
    assert choose_device("cuda:0", None) == "cuda:0"
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_device("cuda:0", None) == "cuda:1"
    assert choose_device(None, "cpu") == "cpu"


def test_without_lmms_eval_the_remedy_is_named(monkeypatch):
    from featstore.integrations.lmms_eval import model, tasks

    monkeypatch.setitem(sys.modules, "lmms_eval", None)
    monkeypatch.setenv("HF_HOME", "/hf")
    model.lmms_class.cache_clear()
    with pytest.raises(MissingExtra, match=r"pip install 'featstore\[lmms-eval\]'"):
        _ = model.FeatstoreVideo
    with pytest.raises(MissingExtra, match=r"pip install 'featstore\[lmms-eval\]'"):
        tasks.list_task_videos(["videomme"])


def test_the_entry_point_loads_nothing_that_is_heavy():
    code = (
        "import sys, featstore.integrations.lmms_eval as here;"
        "print(sorted({'torch', 'transformers', 'numpy', 'lmms_eval'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


class Asked:
    """A model that notes what it is asked, and cannot read one video."""

    def __init__(self):
        self.asked = []

    def generate(self, prompt, video, **words):
        self.asked.append((words["dataset"], video, prompt))
        if video == "b":
            raise FeatstoreError("b cannot be decoded")
        return f"answer {prompt}"


def test_questions_about_a_video_come_together_and_one_that_fails_ends_no_run(monkeypatch):
    from types import SimpleNamespace

    from featstore.integrations.lmms_eval.model import LongVARequests, unanswered

    monkeypatch.setitem(sys.modules, "tqdm", SimpleNamespace(tqdm=lambda order, **_: order))
    noted = []
    model = LongVARequests.__new__(LongVARequests)
    model.model, model._keep_going = Asked(), True
    model.cache_hook = SimpleNamespace(add_partial=lambda *words: noted.append(words[0]))
    model.task_dict = {"videomme": {"test": ["b", "a", "b", "a"]}}
    requests = [
        SimpleNamespace(
            args=(
                f"{n} <image> <image>",
                {"max_new_tokens": 4, "until": ["\n"]},
                lambda doc: [f"/hf/{doc}.mp4"],
                n,
                "videomme",
                "test",
            )
        )
        for n in range(4)
    ]
    unanswered.clear()
    assert model.generate_until(requests) == [
        "",
        "answer 1 <image > <image >",
        "",
        "answer 3 <image > <image >",
    ]
    assert [video for _, video, _ in model.model.asked] == ["a", "a", "b", "b"]
    assert unanswered == {"Video-MME/b": "b cannot be decoded"}
    assert len(noted) == 4
    unanswered.clear()
    model._keep_going = False
    with pytest.raises(FeatstoreError, match="b cannot be decoded"):
        model.generate_until(requests)
