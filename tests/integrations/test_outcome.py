"""What `featstore vlmeval` says of a run in which videos are missing or damaged, and how the next one goes on."""

from __future__ import annotations

import pickle
import types

import pytest

from featstore.errors import FeatstoreError, StoreFull
from featstore.integrations.vlmevalkit.outcome import Outcome

MODEL = "LongVA-7B-Cached"
CONFIGS = (
    "Video-MME_128frame",
    "Video_Holmes_128frame",
    "TempCompass_128frame",
    "MLVU_128frame",
    "VideoMMMU_128frame",
    "MMBench_Video_128frame_nopack",
    "LongVideoBench_128frame",
)
FAIL_MSG = "Failed to obtain answer via API."


@pytest.fixture
def broken(hub, noted):
    """One video of Video-MME is missing, one of MLVU damaged; give both files."""
    from standin_rows import snapshot

    missing = snapshot("Video-MME") / "video/N1cdUjctpG8.mp4"
    missing.unlink()
    damaged = snapshot("MLVU") / "MLVU/video/2_needle/movie101_66.mp4"
    damaged.write_bytes(noted.DAMAGED)
    return missing, damaged


@pytest.fixture
def evaluate(run):
    """Run all seven benchmarks; return the lines of what it complains about."""

    def evaluate(*more: str, configs=CONFIGS, **options) -> list[str]:
        try:
            run("--model", MODEL, "--data", *configs, *more, **options)
        except FeatstoreError as exc:
            return str(exc).splitlines()
        return []

    return evaluate


def predictions(tmp_path, number: int, config: str, kind="json", model=MODEL) -> list[str]:
    from vlmeval.smp import load

    table = load(tmp_path / "outputs" / model / f"T{number}" / f"{model}_{config}.{kind}")
    return [row["prediction"] for row in table] if kind == "json" else table["prediction"]


def asked(noted) -> list[tuple[str, str]]:
    return [(each["dataset"], each["video"]) for built in noted.built for each in built.asked]


def test_a_missing_or_damaged_video_ends_its_dataset_and_is_named(evaluate, broken, tmp_path):
    missing, damaged = broken
    assert evaluate() == [
        "VLMEvalKit has not finished:",
        f"  {MODEL} x Video-MME_128frame: {missing} is missing or is not a file; put it back",
        f"  {MODEL} x MLVU_128frame: {_as_asked(damaged)} cannot be decoded",
        "repair what is named, then run the same command with --reuse",
    ]
    assert len(predictions(tmp_path, 1, "LongVideoBench_128frame")) == 2


def _as_asked(path) -> str:
    """VLMEvalKit's name of a file of MLVU."""
    return str(path).replace("/MLVU/video/", "/./MLVU/video/")


def test_keeping_going_costs_the_questions_about_these_videos_alone(
    evaluate, broken, tmp_path, capsys
):
    missing, damaged = broken
    why_missing = f"{missing} is missing or is not a file; put it back"
    why_damaged = f"{_as_asked(damaged)} cannot be decoded"
    assert evaluate(keep_going=True) == [
        "VLMEvalKit has not finished:",
        f"  {MODEL} x Video-MME_128frame: 1 of 4 questions have no answer, about N1cdUjctpG8",
        f"  {MODEL} x MLVU_128frame: 1 of 3 questions have no answer, about movie101_66.mp4",
        "what could not be read:",
        f"  MLVU/2_needle/movie101_66: {why_damaged}",
        f"  Video-MME/N1cdUjctpG8: {why_missing}",
        "repair what is named, then run the same command with --reuse",
    ]
    assert [FAIL_MSG in text for text in predictions(tmp_path, 1, "MLVU_128frame")] == [
        False,
        True,
        False,
    ]
    said = capsys.readouterr().err
    assert said.count(why_missing) == said.count(why_damaged) == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["json", "tsv"])
def test_once_the_files_are_back_the_same_command_asks_what_failed_and_completes(
    evaluate, broken, noted, tmp_path, monkeypatch, kind
):
    monkeypatch.setenv("PRED_FORMAT", kind)
    assert evaluate("--reuse", keep_going=True)
    for path in broken:
        path.write_bytes(b"")
    noted.built.clear()
    assert evaluate("--reuse", keep_going=True) == []
    assert asked(noted) == [("Video-MME", "N1cdUjctpG8"), ("MLVU", "2_needle/movie101_66")]
    texts = [text for config in CONFIGS for text in predictions(tmp_path, 2, config, kind)]
    assert len(texts) == 19
    assert not any(FAIL_MSG in text for text in texts)
    noted.built.clear()
    assert evaluate("--reuse") == []
    assert asked(noted) == []


@pytest.mark.slow
def test_what_failed_before_a_run_was_ended_in_the_middle_is_asked_again(evaluate, noted, tmp_path):
    folder = tmp_path / "outputs" / MODEL / "T1"
    folder.mkdir(parents=True)
    half = folder / f"01_{MODEL}_MLVU_128frame.pkl"  # of rank 0 of 1
    half.write_bytes(pickle.dumps({0: "yes", 1: FAIL_MSG}))
    assert evaluate("--reuse", configs=["MLVU_128frame"]) == []
    assert asked(noted) == [("MLVU", "2_needle/movie101_66"), ("MLVU", "9_summary/217")]


def test_scoring_predictions_that_are_not_there_is_no_success(evaluate):
    lines = evaluate("--mode", "eval", configs=["MLVU_128frame"])
    assert lines[1] == (
        f"  {MODEL} x MLVU_128frame: 3 of 3 questions have no answer, about movie101_66.mp4, 217.mp4"
    )


@pytest.mark.slow
def test_scoring_predictions_of_which_some_failed_is_no_success(evaluate, broken):
    assert evaluate(keep_going=True)
    lines = evaluate("--mode", "eval", configs=["MLVU_128frame", "VideoMMMU_128frame"])
    assert lines[1:-1] == [
        f"  {MODEL} x MLVU_128frame: 1 of 3 questions have no answer, about movie101_66.mp4"
    ]


def test_many_videos_are_counted_and_a_few_named(evaluate, noted, monkeypatch):
    import standin_rows

    rows = [{"video": f"v{i}", "question": "?"} for i in range(7)]
    monkeypatch.setitem(standin_rows._ROWS, "Video_Holmes", rows)
    lines = evaluate(configs=["Video_Holmes_128frame"], keep_going=True)
    assert lines[1].endswith("7 of 7 questions have no answer, about v0, v1, v2, v3, v4 and 2 more")


def test_an_error_without_words_is_told_by_its_place(evaluate, noted, monkeypatch):
    def generate(self, prompt, video=None, **options):
        raise AssertionError

    monkeypatch.setattr(noted, "generate", generate)
    _, line, _ = evaluate(configs=["MLVU_128frame"])
    assert line.startswith(f"  {MODEL} x MLVU_128frame: AssertionError at test_outcome.py:")
    assert line.endswith(": raise AssertionError")


@pytest.mark.slow
def test_scoring_that_fails_without_words_is_no_success(evaluate, monkeypatch):
    monkeypatch.setenv("STANDIN_SCORING_FAILS", "1")
    lines = evaluate(configs=["MLVU_128frame"])
    assert lines[1].startswith(f"  {MODEL} x MLVU_128frame: AssertionError at __init__.py:")


@pytest.mark.slow
def test_a_store_that_is_full_ends_the_dataset_also_when_keeping_going(
    evaluate, noted, monkeypatch
):
    def generate(self, prompt, video=None, **options):
        raise StoreFull("no room for the next record")

    monkeypatch.setattr(noted, "generate", generate)
    lines = evaluate(configs=["MLVU_128frame"], keep_going=True)
    assert lines[1] == f"  {MODEL} x MLVU_128frame: no room for the next record"


def test_a_run_that_took_up_nothing_is_no_success():
    run = types.ModuleType("run")
    run.load = run.upsert_dataset_status = run.prepare_reuse_files = lambda **words: None
    assert Outcome(run).problems() == ["it ran no model and no dataset"]


@pytest.mark.slow
def test_the_model_without_the_store_answers_beside_the_one_that_has_it(run, noted, tmp_path):
    run("--model", "LongVA-7B", MODEL, "--data", "MLVU_128frame")
    assert [built.cache_dir for built in noted.built] == [None, "cache"]
    assert predictions(tmp_path, 1, "MLVU_128frame") == predictions(
        tmp_path, 1, "MLVU_128frame", model="LongVA-7B"
    )
