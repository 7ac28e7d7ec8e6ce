"""featstore ingest --datasets and featstore vlmeval."""

from __future__ import annotations

import json
import shutil

import click
import pytest
from click.testing import CliRunner

from featstore.cli import main
from featstore.cli._options import VariadicOption
from featstore.store.reader import FeatureStore

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_children")]


@pytest.fixture
def ingest(kit, sample_clips, cache):
    """`featstore ingest` by the toy encoder; every video of the benchmarks is one clip."""
    from standin_rows import FILES, snapshot

    for dataset, files in FILES.items():
        for name in files:
            shutil.copy(sample_clips / "blink.mp4", snapshot(dataset) / name)

    def ingest(*arguments: str):
        given = ["ingest", "--encoder", "toy", "--cache-dir", str(cache), "--min-free", "0"]
        return CliRunner().invoke(main, [*given, *arguments], catch_exceptions=False)

    return ingest


def test_benchmarks_are_ingested_each_into_its_dataset(ingest, cache):
    from standin_rows import VIDEOS

    names = ["TempCompass_128frame", "MLVU_128frame", "VideoMMMU_128frame"]
    done = ingest("--datasets", *names, "--decode-workers", "2")
    assert done.exit_code == 0, done.output
    with FeatureStore(cache) as store:
        for dataset in ("TempCompass", "MLVU", "VideoMMMU"):
            assert set(store[dataset]) == VIDEOS[dataset]
            assert store[dataset].select().spec.sampling.nframe == 128
    lines = [line for line in done.stdout.splitlines() if "stored" in line and ":" in line]
    assert [line.split(":")[0] for line in lines if not line.startswith(" ")] == [
        "TempCompass",
        "MLVU",
        "VideoMMMU",
    ]
    again = ingest("--datasets", *names, "--json")
    assert [found["skipped"] for found in json.loads(again.stdout)] == [2, 3, 2]


def test_one_bad_video_among_several_benchmarks_is_told_by_the_exit_code(ingest):
    from standin_rows import snapshot

    (snapshot("Video_Holmes") / "video/0at001QMutY.mp4").write_bytes(b"no video")
    done = ingest(
        "--datasets", "Video_Holmes_128frame", "--datasets", "LongVideoBench_128frame", "--json"
    )
    assert done.exit_code == 3
    holmes, long = json.loads(done.stdout)
    assert [failure["video_id"] for failure in holmes["failed"]] == ["0at001QMutY"]
    assert long["stored"] == 1


def test_a_dry_run_plans_each_benchmark(ingest, cache):
    done = ingest("--datasets", "Video-MME_128frame", "MLVU_128frame", "--dry-run", "--json")
    assert done.exit_code == 0
    found = [
        (f["dataset"], f["planned"], f["questions"]) for f in json.loads(done.stdout)["datasets"]
    ]
    assert [row[:2] for row in found] == [("Video-MME", 2), ("MLVU", 3)]
    assert all(questions >= videos for _, videos, questions in found)
    assert not cache.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--datasets", "MLVU_128frame", "--dataset", "MLVU"], "leave out --dataset"),
        (
            ["--datasets", "MLVU_128frame", "--videos", "."],
            "--videos and --datasets each name the videos",
        ),
        (
            ["--datasets", "MLVU_128frame", "--nframe", "64"],
            "MLVU_128frame takes 128 frames, --nframe",
        ),
        (["--videos", "."], "name the dataset to fill with --dataset"),
        ([], "with --videos, with --manifest, with --datasets or with --lmms-tasks"),
    ],
)
def test_ways_of_naming_videos_that_do_not_go_together_are_wrong_usage(ingest, arguments, message):
    done = ingest(*arguments)
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.split())


def test_an_unknown_benchmark_ends_the_command_before_any_work(ingest, cache):
    done = ingest("--datasets", "MLVU_128frame", "Nonsense")
    assert done.exit_code == 1
    assert "no video dataset config 'Nonsense'" in done.stderr
    assert not cache.exists()


@pytest.mark.parametrize(
    ("words", "repeated"),
    [
        ("--datasets A B C --json", "--datasets A --datasets B --datasets C --json"),
        ("--json --datasets A", "--json --datasets A"),
        ("--datasets A --datasets B C", "--datasets A --datasets B --datasets C"),
        ("--dataset D --videos V", "--dataset D --videos V"),
    ],
)
def test_datasets_takes_all_words_up_to_the_next_option(words, repeated):
    assert parse(words, VariadicOption) == parse(repeated, click.Option)


def parse(words: str, cls: type[click.Option]) -> dict:
    several = cls(["--datasets"], multiple=True)
    others = [
        click.Option(["--dataset"]),
        click.Option(["--videos"]),
        click.Option(["--json"], is_flag=True),
    ]
    return (
        click.Command("ingest", params=[several, *others])
        .make_context("ingest", words.split())
        .params
    )


@pytest.fixture
def vlmeval(monkeypatch):
    """`featstore vlmeval`, and what it would have called."""
    from featstore.integrations.vlmevalkit import launch

    monkeypatch.delenv("FEATSTORE_CACHE_DIR", raising=False)
    calls: list = []
    monkeypatch.setattr(
        launch,
        "run_vlmevalkit",
        lambda arguments, run_py, **options: calls.append((arguments, run_py, options)),
    )

    def vlmeval(*arguments: str, **env: str):
        done = CliRunner().invoke(main, ["vlmeval", *arguments], env=env, catch_exceptions=False)
        return done, calls

    return vlmeval


def test_what_follows_the_dashes_is_run_pys(vlmeval):
    done, calls = vlmeval(
        "--cache-dir", "cache", "--checkpoint", "LongVA-7B-Cached=/models/a=b",
        "--option", "max_new_tokens=8", "--option", "dtype=fp32",
        "--", "--model", "LongVA-7B-Cached", "--data", "MLVU_128frame", "--mode", "infer",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    arguments = ("--model", "LongVA-7B-Cached", "--data", "MLVU_128frame", "--mode", "infer")
    options = {
        "cache_dir": "cache",
        "enable_cache": True,
        "checkpoints": {"LongVA-7B-Cached": "/models/a=b"},
        "max_new_tokens": 8,
        "dtype": "fp32",
    }
    assert calls == [(arguments, None, options)]


def test_the_decoder_is_an_option_of_the_models(vlmeval):
    for words in (("--decoder", "exact"), ("--option", "decoder=exact")):
        _, calls = vlmeval("--cache-dir", "cache", *words, "--", "--model", "M")
        assert calls.pop()[2]["decoder"] == "exact"
    done, _ = vlmeval("--cache-dir", "cache", "--decoder", "av", "--", "--model", "M")
    assert (done.exit_code, "'av' is not one of 'auto', 'exact'" in done.stderr) == (2, True)


def test_an_option_given_in_both_ways_is_no_error(vlmeval):
    words = ("--keep-going", "--option", "keep_going=true", "--decoder", "exact")
    done, calls = vlmeval("--cache-dir", "cache", *words, "--option", "decoder=auto", "--", "M")
    assert (done.exit_code, calls[0][2]["keep_going"], calls[0][2]["decoder"]) == (0, True, "exact")


def test_the_store_is_named_by_the_environment_or_refused(vlmeval):
    done, calls = vlmeval("--", "--model", "M", FEATSTORE_CACHE_DIR="cache")
    assert (done.exit_code, calls[0][2]["cache_dir"]) == (0, "cache")
    done, _ = vlmeval("--", "--model", "M")
    assert done.exit_code == 2
    assert "name the store with --cache-dir, or pass --no-cache" in done.stderr


def test_an_uncached_run_needs_no_store(vlmeval):
    _, calls = vlmeval("--no-cache", "--", "--model", "M")
    assert calls[0][2] == {"cache_dir": None, "enable_cache": False, "checkpoints": {}}


def test_a_checkpoint_without_a_name_is_wrong_usage(vlmeval):
    done, _ = vlmeval("--cache-dir", "cache", "--checkpoint", "/models/a", "--", "--model", "M")
    assert done.exit_code == 2
    assert "/models/a is not NAME=VALUE" in done.stderr
