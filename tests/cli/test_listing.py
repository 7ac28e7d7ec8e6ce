"""`ls` and `rm` of some of the videos, what is left out of a list, and where the cache directory comes from."""

import csv
import json
import os

import pytest
from click.testing import CliRunner, Result
from damage import put_raw
from toys import REPOSITORY, store_videos, toy_features, toy_spec

import featstore
from featstore.cli import main
from featstore.cli._patterns import expand, fits
from featstore.cli._printing import print_table
from featstore.decoding.video_file import Video
from featstore.pipeline.listing import check_listing
from featstore.pipeline.plan import make_plan
from featstore.store.engine.environment import open_snapshot
from featstore.store.lost import refuse_other_folder
from featstore.store.rows import Failure, video_key
from featstore.store.writer import FeatureWriter

IDS = ("a", "b-1", "b[1]", "sub/c")


@pytest.fixture
def cache(tmp_path):
    """A cache with four videos."""
    store_videos(tmp_path, "demo", {name: toy_features(seed) for seed, name in enumerate(IDS)})
    return tmp_path


def run(cache, *words: str, **options) -> Result:
    return CliRunner().invoke(main, [words[0], "--cache-dir", str(cache), *words[1:]], **options)


def listed(done: Result) -> list[str]:
    return [line.split()[0] for line in done.stdout.splitlines()[1:]]


def test_a_pattern_fits_ids_with_slashes_and_each_id_fits_itself():
    assert fits("sub/c", ["sub/*"])
    assert fits("b[1]", ["b[1]"])
    assert not fits("a", ["b*", "?b"])


def test_what_is_removed_by_a_pattern_that_is_an_id_is_only_that():
    assert expand(["b[1]"], IDS) == ["b[1]"]
    assert expand(["b*", "b-1", "x*"], IDS) == ["b-1", "b[1]", "x*"]


def test_ls_lists_the_videos_that_fit_and_counts_them(cache):
    done = run(cache, "ls", "--dataset", "demo", "--video", "sub/*", "--video", "a")
    assert listed(done) == ["a", "sub/c"]
    assert done.stderr.startswith("2 videos, ")
    rows = json.loads(run(cache, "ls", "--dataset", "demo", "--video", "b??", "--json").stdout)
    assert [row["video_id"] for row in rows] == ["b-1"]


@pytest.mark.parametrize("command", ["get", "show"])
def test_an_id_that_looks_like_an_option_is_told_how_it_is_given(cache, command):
    done = run(cache, command, "--dataset", "demo", "-dash")
    assert (done.exit_code, "after two dashes: -- ID" in done.stderr) == (2, True)
    assert "'-dash'" in run(cache, command, "--dataset", "demo", "--", "-dash").stderr


def test_ls_says_that_no_video_fits(cache):
    for words in ([], ["--json"], ["--csv"]):
        done = run(cache, "ls", "--dataset", "demo", "--video", "zzz*", *words)
        said = "featstore: no video of demo fits zzz*"
        assert (done.exit_code, done.stderr.splitlines()[-1]) == (3, said)


def test_ls_lists_the_newest_the_largest_or_the_worst_first(cache):
    rows = [*featstore.open(cache)["demo"].rows()]
    for by, field in {"created": "created", "bytes": "record_bytes", "error": "token_p99"}.items():
        done = run(cache, "ls", "--dataset", "demo", "--sort", by)
        expected = sorted(rows, key=lambda row: row["video_id"])
        expected.sort(key=lambda row: row[field], reverse=True)
        assert listed(done) == [row["video_id"] for row in expected]


def test_csv_has_all_that_the_catalog_says(cache):
    found = [*csv.DictReader(run(cache, "ls", "--dataset", "demo", "--csv").stdout.splitlines())]
    rows = sorted(featstore.open(cache)["demo"].rows(), key=lambda row: row["video_id"])
    assert [*found[0]] == [*rows[0]]
    assert [row["video_id"] for row in found] == [*IDS]
    [row] = csv.DictReader(run(cache, "ls", "--csv").stdout.splitlines())
    assert (row["dataset"], row["videos"], row["codec"]) == ("demo", "4", "raw")


@pytest.mark.parametrize(
    "words",
    [
        ["--json", "--csv", "--dataset", "demo"],
        ["--sort", "bytes"],
        ["--video", "a"],
        ["--failed", "--sort", "error", "--dataset", "demo"],
    ],
)
def test_an_option_of_ls_that_would_do_nothing_is_refused(cache, words):
    assert run(cache, "ls", *words).exit_code == 2


def test_rm_shows_what_it_would_remove_and_removes_that(cache):
    shown = run(cache, "rm", "--dataset", "demo", "--video", "b*", "--dry-run")
    assert shown.stdout.splitlines()[:2] == ["b-1", "b[1]"]
    assert shown.stdout.splitlines()[2].startswith("would remove 2 records and 0 failures, ")
    assert len(featstore.open(cache)["demo"]) == 4
    facts = json.loads(run(cache, "rm", "--dataset", "demo", "--dry-run", "--json").stdout)
    assert (facts["videos"], facts["missing"]) == (4, [])
    done = run(cache, "rm", "--dataset", "demo", "--video", "b*", "--yes")
    assert "removed 2 videos from demo" in done.stdout
    assert sorted(featstore.open(cache)["demo"]) == ["a", "sub/c"]
    missing = run(cache, "rm", "--dataset", "demo", "--video", "x*", "--dry-run")
    assert (missing.exit_code, missing.stdout.splitlines()[-1]) == (3, "  not there: x*")
    missing = run(cache, "rm", "--dataset", "demo", "--video", "x*")  # which asks nothing
    said = "removed 0 videos from demo, 0 records and 0 failures, 0 B\n  not there: x*\n"
    assert (missing.exit_code, missing.output) == (3, said)
    assert run(cache, "check").exit_code == 0


def test_a_damaged_row_does_not_hide_the_others(cache):
    put_raw(cache, "catalog", video_key(toy_spec().digest, "b-1"), b"\x92no row")
    for words in ([], ["--csv"], ["--json"]):
        done = run(cache, "ls", "--dataset", "demo", *words)
        assert done.exit_code == 1
        assert [name in done.stdout for name in IDS] == [True, False, True, True]
        assert "featstore: not listed: " in done.stderr
        assert "featstore check" in done.stderr


def test_a_damaged_failure_is_not_listed_and_its_video_is_ingested_again(cache):
    spec = toy_spec()
    with FeatureWriter(cache, "demo", min_free=0) as writer:
        for name in ("x", "y"):
            writer.fail(Failure(name, f"/{name}.mp4", spec.digest, "/x: cannot be decoded", 1.0))
        writer.commit()
    put_raw(cache, "failures", video_key(spec.digest, "x"), b"\x92no row")
    done = run(cache, "ls", "--dataset", "demo", "--failed")
    assert (done.exit_code, listed(done)) == (1, ["y"])
    videos = check_listing([Video("x", "/x.mp4"), Video("y", "/y.mp4")])
    plan = make_plan(videos, open_snapshot(cache / "demo"), spec)
    assert [video.video_id for video in plan.todo] == ["x"]


@pytest.mark.parametrize("command", ["ls", "info", "check"])
def test_a_folder_that_is_no_cache_is_an_error(tmp_path, command):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.mp4").touch()
    done = run(tmp_path, command)
    assert done.exit_code == 1
    assert f"there is no dataset in {tmp_path}" in done.stderr
    with pytest.raises(featstore.StoreNotFound, match="there is no dataset in"):
        featstore.open(tmp_path)


@pytest.mark.parametrize(
    "words",
    [
        ("ingest", "--encoder", "toy", "--videos", "."),
        ("merge", "."),
        ("cp", "."),
        ("mv", "."),
        ("import", "--from-npy", "."),
        ("pull", "."),
    ],
)
def test_no_dataset_is_made_among_other_things(tmp_path, words):
    (tmp_path / "a.md").touch()
    done = run(tmp_path, *words, "--dataset", "demo")
    assert (done.exit_code, os.listdir(tmp_path)) == (1, ["a.md"])
    assert f"{tmp_path} holds other things and no dataset" in done.stderr


def test_a_dataset_is_made_in_a_folder_that_is_empty_or_in_which_an_ingest_began(tmp_path):
    refuse_other_folder(tmp_path / "new")
    refuse_other_folder(tmp_path)
    for name in ("one/status.json", "one/ingest.lock", "many/shards/status/0-of-2.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
        refuse_other_folder(tmp_path)


def test_a_cache_of_which_all_datasets_were_removed_is_one(cache):
    assert run(cache, "info").exit_code == 0
    assert run(cache, "rm", "--dataset", "demo", "--video", "a", "--yes").exit_code == 0
    assert run(cache, "rm", "--dataset", "demo", "--yes").exit_code == 0
    assert [*featstore.open(cache)] == []
    assert run(cache, "ls").exit_code == 0


def test_the_environment_names_the_cache_directory_for_every_command(cache, monkeypatch):
    for name, command in main.commands.items():
        for option in command.params:
            if option.name == "cache_dir":
                assert option.envvar == "FEATSTORE_CACHE_DIR", name
    monkeypatch.setenv("FEATSTORE_CACHE_DIR", str(cache))
    done = CliRunner().invoke(main, ["ls", "--dataset", "demo"])
    assert listed(done) == [*sorted(IDS)]


def test_a_study_of_files_leaves_a_cache_directory_of_the_environment_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("FEATSTORE_CACHE_DIR", str(tmp_path))
    done = CliRunner().invoke(main, ["compare", "--study", "--features", str(tmp_path)])
    assert "has no .npy file" in done.stderr


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("featstore ls --dataset de", ["demo"]),
        ("featstore get --dataset demo sub", ["sub/c"]),
        ("featstore rm --dataset demo --video b", ["b-1", r"b\\[1\\]"]),  # read takes one of two
        ("featstore rm --dataset demo --video 'b", ["b-1", "b[1]"]),
        ("featstore get --dataset nowhere a", []),
    ],
)
def test_a_shell_completes_datasets_and_videos(cache, monkeypatch, line, found):
    words = line.split()
    for name, value in {
        "FEATSTORE_CACHE_DIR": str(cache),
        "_FEATSTORE_COMPLETE": "bash_complete",
        "COMP_WORDS": line.replace(" ", "\n"),
        "COMP_CWORD": str(len(words) - 1),
    }.items():
        monkeypatch.setenv(name, value)
    done = CliRunner().invoke(main, [], prog_name="featstore")
    assert done.stdout.split() == [f"plain,{name}" for name in found]


def test_several_words_after_videos_are_several_videos(tmp_path):
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).touch()
    words = ["ingest", "--encoder", "toy", "--dataset", "demo", "--cache-dir", str(tmp_path / "c")]
    files = [str(tmp_path / name) for name in ("a.mp4", "b.mp4")]
    done = CliRunner().invoke(main, [*words, "--videos", *files, "--dry-run", "--nframe", "4"])
    assert [name in done.stdout for name in files] == [True, True]
    refused = CliRunner().invoke(main, [*words, "--videos", *files, "--manifest", "list.csv"])
    assert "--videos and --manifest each name the videos" in refused.stderr


def test_features_are_written_into_a_pipe_that_stays_one(cache):
    pipe = cache / "pipe.npy"
    os.mkfifo(pipe)
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    done = run(cache, "get", "--dataset", "demo", "a", "--out", str(pipe))
    assert (done.exit_code, pipe.is_fifo()) == (0, True)
    assert os.read(reading, 6) == b"\x93NUMPY"
    os.close(reading)


def test_the_page_says_how_a_shell_completes():
    page = (REPOSITORY / "docs" / "terminal.md").read_text(encoding="utf-8")
    assert "_FEATSTORE_COMPLETE=bash_source featstore" in page


def test_a_table_too_wide_for_the_terminal_says_once_what_all_rows_have(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "24")
    names = ("video_id", "frames", "size", "decoder", "doubt", "storage")
    rows = [("映画", 8, 1.0, "pyav", "", "int8"), ("b", 8, 2.0, "pyav", "", "bf16")]
    print_table(names, rows, {"size": "{:.0f} B".format})
    head, first, _, said = capsys.readouterr().out.splitlines()
    assert head.split() == ["video_id", "frames", "size", "storage"]
    assert first == "映画           8   1 B  int8"
    assert said == "  all: decoder pyav"
    monkeypatch.setenv("COLUMNS", "200")
    print_table(names, rows)
    assert len(capsys.readouterr().out.splitlines()) == 3
