import json
import math
import re
import shutil
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from damage import flip_in_file
from decoder_corpus import write_case
from safetensors.numpy import load_file
from toys import put_video, toy_features, toy_spec

import featstore
import featstore.store.maintenance.check
from featstore.cli import main
from featstore.cli._copies import print_copied
from featstore.cli._ingest_options import error_share
from featstore.cli._options import size
from featstore.cli._printing import date, print_facts, print_json_rows, print_table
from featstore.cli._words import sampling_text
from featstore.encoders.longva.shape import FeatureShape
from featstore.records.quantization import QuantError
from featstore.records.storage import Storage
from featstore.store.maintenance.merge import MergeSummary
from featstore.store.paths import DATA_FILE
from featstore.store.writer import FeatureWriter

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_children")]


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def ingest(clips: Path, cache: Path, *more: object) -> Result:
    return run(
        *("ingest", "--encoder", "toy", "--videos", clips, "--dataset", "demo"),
        *("--cache-dir", cache, "--nframe", 6, "--min-free", "1MB", *more),
    )


@pytest.fixture(scope="module")
def left_by(sample_clips, tmp_path_factory):
    """Give the cache that ingests of the three clips leave, each with its options; every such cache is made once."""
    caches: dict[tuple[tuple[object, ...], ...], Path] = {}

    def left_by(*ingests: tuple[object, ...]) -> Path:
        if ingests not in caches:
            caches[ingests] = tmp_path_factory.mktemp("cli") / "cache"
            for more in ingests:
                assert ingest(sample_clips, caches[ingests], *more).exit_code == 0
        return caches[ingests]

    return left_by


@pytest.fixture(scope="module")
def stored(left_by) -> Path:
    """A cache with the three clips in it, for tests that only look."""
    return left_by(())


@pytest.fixture
def store(left_by, tmp_path):
    """Put the three clips into a cache of the test's own, as ingests with options would."""

    def store(*ingests: tuple[object, ...], to: Path = tmp_path) -> Path:
        return Path(shutil.copytree(left_by(*(ingests or ((),))), to, dirs_exist_ok=True))

    return store


def test_the_command_works_through_its_real_entry_point(sample_clips, tmp_path):
    words = [sys.executable, "-m", "featstore", "ingest", "--encoder", "toy", "--json"]
    words += [
        "--videos",
        sample_clips,
        "--dataset",
        "demo",
        "--cache-dir",
        tmp_path,
        "--nframe",
        "4",
    ]
    words += ["--min-free", "1MB"]
    done = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["stored"], summary["failed"]) == (3, [])
    assert (summary["decoders"], summary["doubts"]) == ({"pyav": 3}, {})
    assert "3/3 videos" in done.stderr


def test_results_go_to_stdout_and_progress_to_stderr(sample_clips, tmp_path):
    done = ingest(sample_clips, tmp_path)
    assert done.exit_code == 0
    assert done.stdout.startswith("demo: 3 stored, 0 skipped, 0 failed")
    assert re.search(r"bottleneck: ((decode|encode|write) \(\d+% busy\)|none); ", done.stdout)
    assert "3 videos to ingest" in done.stderr
    again = ingest(sample_clips, tmp_path)
    assert again.stdout.startswith("demo: 0 stored, 3 skipped, 0 failed")


def test_a_failed_video_is_named_and_the_exit_code_is_3(sample_clips, tmp_path):
    clips = Path(shutil.copytree(sample_clips, tmp_path / "clips"))
    (clips / "bad.mp4").touch()
    done = ingest(clips, tmp_path / "cache")
    assert done.exit_code == 3
    assert "failed: bad: " in done.stdout
    again = ingest(clips, tmp_path / "cache")
    assert again.exit_code == 3
    assert "failed before: bad: " in again.stdout
    for told in (done, again):
        assert told.stdout.endswith(
            "\n  once the cause is mended, --retry-failed tries them again\n"
        )
    listed = run("ls", "--cache-dir", tmp_path / "cache", "--dataset", "demo", "--failed")
    assert "0 bytes" in listed.stdout
    assert listed.stdout.count(str(clips / "bad.mp4")) == 1


def test_ls_lists_feature_sets_and_videos(stored):
    head, line = run("ls", "--cache-dir", stored).stdout.splitlines()
    digest = featstore.open(stored)["demo"].feature_set.spec.digest
    assert head.split()[:4] == ["dataset", "feature_set", "default", "videos"]
    assert line.split()[:4] == ["demo", digest[:8], "yes", "3"]
    shown = run("ls", "--cache-dir", stored, "--dataset", "demo")
    names = [line.split()[0] for line in shown.stdout.splitlines()]
    assert names == ["video_id", "blink", "bouncing_ball", "color_bars"]
    assert shown.stdout.splitlines()[1].split()[1] == "6"
    assert shown.stdout.splitlines()[1].endswith("  int8/channel_token")
    assert max(map(len, [head, line, *shown.stdout.splitlines()])) <= 80
    assert shown.stderr == "3 videos, 12.5 KiB\n"


def test_a_summary_says_how_many_videos_are_left_and_why(sample_clips, tmp_path):
    done = ingest(sample_clips, tmp_path, "--limit", 1)
    assert "  --limit reached: 2 videos left; the same command goes on\n" in done.stdout
    done = ingest(sample_clips, tmp_path, "--limit", 2)
    assert "left" not in done.stdout


def test_a_copy_that_was_stopped_says_how_many_videos_are_left(capsys):
    summary = MergeSummary("demo", total=5, stored=2, skipped=1, interrupted=True)
    print_copied(summary, 2, "demo: 2 copied", as_json=False)
    assert capsys.readouterr().out.splitlines() == [
        "demo: 2 copied",
        "  interrupted: 2 videos left; the same command goes on",
    ]


def test_an_ingest_says_what_it_did_in_the_words_of_all_commands(sample_clips, tmp_path):
    clips = Path(shutil.copytree(sample_clips, tmp_path / "clips"))
    (clips / "bad.mp4").touch()
    at = ("--cache-dir", tmp_path / "cache")
    summary = json.loads(ingest(clips, tmp_path / "cache", "--json").stdout)
    failed = json.loads(run("ls", *at, "--dataset", "demo", "--failed", "--json").stdout)
    [row] = json.loads(run("ls", *at, "--json").stdout)
    assert summary["failed"] == failed
    assert "spec" not in summary
    same = ("dataset", "feature_set", "storage", "record_bytes")
    assert {name: summary[name] for name in same} == {name: row[name] for name in same}


@pytest.fixture(scope="module")
def doubted(sample_clips, tmp_path_factory) -> tuple[Path, Path, str]:
    """Clips of which decord may give other frames, one of which it does not, their cache, and the ingest's output."""
    folder = tmp_path_factory.mktemp("doubted")
    clips, cache = folder / "clips", folder / "cache"
    clips.mkdir()
    shutil.copy(sample_clips / "blink.mp4", clips)
    for name in ("h264_edit_at_start.mp4", "h264_open_gop.mp4", "mpeg4.mp4"):
        write_case(name, clips)
    done = ingest(clips, cache)
    assert done.exit_code == 0
    return clips, cache, done.stdout


def test_an_ingest_counts_the_videos_whose_frames_are_doubted(doubted, tmp_path):
    clips, _, out = doubted
    assert out.splitlines()[-1] == (
        "  3 videos decoded by decord: frames may not be those asked for: open GOP 2, edit list 1; see --decoder exact"
    )
    summary = json.loads(ingest(clips, tmp_path / "cache", "--json").stdout)
    assert summary["doubts"] == {"open GOP": 2, "edit list": 1}
    assert summary["decoders"] == {"pyav": 1, "decord": 3}
    exact = ingest(clips, tmp_path / "exact", "--decoder", "exact")
    assert (exact.exit_code, "asked for" in exact.stdout) == (0, False)
    one = ingest(clips / "mpeg4.mp4", tmp_path / "one")
    assert "  1 video decoded by decord: frames may not be" in one.stdout


def test_a_doubt_is_seen_wherever_a_video_is_listed(doubted):
    at = ("--cache-dir", doubted[1], "--dataset", "demo")
    doubts = {
        "blink": "",
        "h264_edit_at_start": "edit list",
        "h264_open_gop": "open GOP",
        "mpeg4": "open GOP",
    }
    rows = json.loads(run("ls", *at, "--json").stdout)
    assert {row["video_id"]: row["doubt"] for row in rows} == doubts
    table = re.findall(r"^(\w+) .* (?:pyav|decord) +(.*?) +int8/", run("ls", *at).stdout, re.M)
    assert dict(table) == doubts
    for video, doubt in doubts.items():
        assert json.loads(run("get", *at, video, "--json").stdout)["doubt"] == doubt
        shown = re.findall(r"^doubt +(.*)$", run("get", *at, video).stdout, re.M)
        assert shown == ([doubt] if doubt else [])
    described = json.loads(run("info", *at, "--json").stdout)["demo"]["feature_sets"][0]
    assert described["doubts"] == {"open GOP": 2, "edit list": 1}
    assert described["decoders"] == {"pyav": 1, "decord": 3}
    text = " ".join(run("info", *at).stdout.split())
    assert "decoded by decord 3, pyav 1 doubts open GOP 2, edit list 1 stored" in text


def test_ls_info_and_get_say_the_same_in_the_same_words(stored):
    rows = {
        row["video_id"]: row
        for row in json.loads(
            run("ls", "--cache-dir", stored, "--dataset", "demo", "--json").stdout
        )
    }
    assert sorted(rows) == ["blink", "bouncing_ball", "color_bars"]
    for video, row in rows.items():
        words = ("get", "--cache-dir", stored, "--dataset", "demo", video, "--json")
        facts = json.loads(run(*words).stdout)
        there = {name: facts.get(name) for name in row if name != "record_bytes"}
        assert there | {"record_bytes": row["record_bytes"]} == row
        assert (row["rows"], row["width"], row["frames"]) == (24, 8, 6)
        assert row["storage"] == {"values": "int8", "granularity": "channel_token", "codec": "raw"}
    [row] = json.loads(run("ls", "--cache-dir", stored, "--json").stdout)
    described = json.loads(run("info", "--cache-dir", stored, "--json").stdout)["demo"]
    [found] = described["feature_sets"]
    assert row["default"] is True
    assert described["default_set"] == row["feature_set"]
    same = ("feature_set", "videos", "failures", "frames", "record_bytes", "storage")
    assert {name: row[name] for name in same} == {name: found[name] for name in same}


def test_a_dataset_that_cannot_be_read_is_named_by_ls(stored, tmp_path):
    shutil.copytree(stored, tmp_path / "cache")
    (tmp_path / "cache" / "bad").mkdir()
    (tmp_path / "cache" / "bad" / DATA_FILE).write_text("no store")
    lines = run("ls", "--cache-dir", tmp_path / "cache").stdout.splitlines()
    assert (lines[1].split()[0], lines[2][:5]) == ("demo", "bad: ")


def test_what_a_listing_shows_of_a_video_stays_on_its_line(cache):
    """And says what it is: an escape sequence in it could rewrite the screen."""
    spec = toy_spec()
    with FeatureWriter(cache, "demo", min_free=0) as writer:
        writer.add_set(spec)
        put_video(writer, spec, "a", toy_features(1), doubt="some\n\x1b[2Jframes")
    head, line = run("ls", "--cache-dir", cache, "--dataset", "demo").stdout.splitlines()
    assert head.split()[-2:] == ["doubt", "storage"]
    assert "some\\n\\x1b[2Jframes" in line


def test_a_table_is_aligned_and_its_numbers_are_on_the_right(capsys):
    rows = [("a", 5, 0.25, 1.0), ("longer", 1234, -0.5, 2.0)]
    print_table(("name", "n", "share", "at"), rows, {"at": lambda value: f"<{value:g}>"})
    assert capsys.readouterr().out.splitlines() == [
        "name       n      share   at",
        "a          5   0.250000  <1>",
        "longer  1234  -0.500000  <2>",
    ]


def test_a_table_is_aligned_by_the_cells_of_its_characters(capsys):
    print_table(("video", "by"), [("ab", "é"), ("映画", "pyav"), ("e\u0301", "")])
    assert capsys.readouterr().out == "video  by\nab     é\n映画   pyav\ne\u0301\n"


def test_the_help_says_whole_sentences():
    shown = run("--help").stdout
    assert "..." not in shown.partition("Commands:")[2]
    assert max(map(len, shown.splitlines())) <= 80


def test_a_slip_in_a_name_is_answered_with_the_name(stored):
    at = ("--cache-dir", stored, "--dataset")
    for said in (
        run("get", *at, "demo", "blnk").stderr,
        run("get", *at, "demo", "blink.mp4").stderr,
        run("export", *at, "demo", "--to", "npy", "--out", "x", "--video", "bling").stderr,
        run("rm", *at, "demo", "--yes", "--video", "blimk").stdout,
    ):
        assert "did you mean 'blink'?" in said
    assert "did you mean 'demo'?" in run("ls", *at, "demos").stderr
    assert "did you mean" not in run("get", *at, "demo", "other").stderr


def test_a_long_fact_is_wrapped_below_itself_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    facts = {"id": "a", "settings": "one 1, two 2, three 3, four 4, five 5"}
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_facts(facts, indent="  ")
    assert capsys.readouterr().out.splitlines() == [
        "  id        a",
        "  settings  one 1, two 2, three 3, four",
        "            4, five 5",
    ]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False)
    print_facts(facts)
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.parametrize("seconds", [0.0, -1.5, 59.999, 1_700_000_000.25])
def test_times_are_those_of_the_local_clock(seconds):
    expected = datetime.fromtimestamp(math.floor(seconds))
    assert date(seconds) == expected.strftime("%Y-%m-%d %H:%M:%S")


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), 1e30])
def test_a_time_outside_the_calendar_is_shown_as_it_is(seconds):
    assert date(seconds) == repr(seconds)


@pytest.mark.parametrize("count", [0, 1, 2500])
def test_a_list_of_any_length_is_json(capsys, count):
    print_json_rows(json.dumps({"i": i}) for i in range(count))
    out = capsys.readouterr().out
    assert json.loads(out) == [{"i": i} for i in range(count)]
    assert len(out.splitlines()) == (count + 2 if count else 1)


@pytest.mark.parametrize("option", [["--failed"], ["--spec", "abcd"], ["--nframe", "6"]])
def test_what_ls_lists_of_a_dataset_needs_its_name(stored, option):
    done = run("ls", "--cache-dir", stored, *option)
    assert (done.exit_code, f"{option[0]} selects videos of a dataset" in done.stderr) == (2, True)


def test_info_tells_of_the_feature_set_and_its_error(stored):
    text = run("info", "--cache-dir", stored).stdout
    assert "demo: 3 videos" in text
    assert "6 frames, linspace" in text
    assert "4 tokens a frame (2 x 2) of 8 values; at most 24 rows" in text
    assert "int8/channel_token" in text
    assert "relative L2" in text
    assert "(99th percentile)" in text
    described = json.loads(run("info", "--cache-dir", stored, "--dataset", "demo", "--json").stdout)
    error = described["demo"]["feature_sets"][0]["errors"]
    assert error["relative_l2_max"] < 0.01
    assert error["token_p99_max"] <= error["token_max"]


def test_get_shows_and_writes_what_is_stored(stored, tmp_path):
    words = ("get", "--cache-dir", stored, "--dataset", "demo", "blink")
    facts = json.loads(run(*words, "--json").stdout)
    assert (facts["rows"], facts["width"], facts["layout"]["units"]) == (24, 8, 6)
    assert len(facts["frame_indices"]) == 6
    shown = run(*words).stdout
    assert "6 frames; 4 tokens a frame (2 x 2) of 8 values" in shown
    features = featstore.get(stored, "demo", "blink")
    for name in ("x.npy", "x.safetensors"):
        assert run(*words, "--out", tmp_path / name).exit_code == 0
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), features.dequantize())
    tensors = load_file(tmp_path / "x.safetensors")
    np.testing.assert_array_equal(tensors["data"], features.data)
    for name, scale in zip(("token_scale", "channel_scale"), features.scales, strict=True):
        np.testing.assert_array_equal(tensors[name], scale)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.npy", "x.safetensors"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["get", "--dataset", "demo", "nobody"], 1, "'nobody' is not stored"),
        (["get", "--dataset", "nowhere", "blink"], 1, "there is no dataset 'nowhere'"),
        (["get", "--dataset", "../demo", "blink"], 1, "cannot be called"),
        (["get", "--dataset", "demo", "blink", "--nframe", "7"], 1, "nframe=7"),
        (
            ["get", "--dataset", "demo", "blink", "--out", "x.txt"],
            2,
            "written as .safetensors, .npz, .npy, .pt",
        ),
        (["ls", "--dataset", "nowhere"], 1, "there is no dataset 'nowhere'"),
        (["info", "--dataset", "nowhere"], 1, "there is no dataset 'nowhere'"),
        (["check", "--dataset", "nowhere"], 1, "there is no dataset"),
        (["rm", "--dataset", "nowhere", "--yes"], 1, "there is no dataset"),
    ],
)
def test_what_cannot_be_done_is_one_message_and_its_exit_code(stored, words, code, said):
    done = run(*words, "--cache-dir", stored)
    assert done.exit_code == code
    assert said in done.stderr
    assert "Traceback" not in done.output


def test_a_cache_that_is_not_there_is_refused(tmp_path):
    for words in (["ls"], ["info"], ["check"], ["get", "--dataset", "demo", "x"]):
        done = run(*words, "--cache-dir", tmp_path / "nowhere")
        assert done.exit_code == 1
        assert "there is no store in" in done.stderr
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["--sampling", "middle"],
        ["--sampling", "fps"],
        ["--sampling", "fps:0"],
        ["--nframe", "0"],
        ["--min-free", "much"],
        ["--device", "cpu,gpu"],
        ["--manifest", "m.csv"],
        ["--model-path", "checkpoint"],
        ["--vision-tower", "clip"],
        ["--dtype", "fp16"],
        ["--device", "mps"],
        ["--device", "cpu,cuda"],
    ],
)
def test_wrong_options_are_exit_code_2(sample_clips, tmp_path, words):
    done = ingest(sample_clips, tmp_path, *words)
    assert done.exit_code == 2
    assert words[0] in done.stderr


def test_two_ways_to_name_the_videos_are_told_as_such(sample_clips, tmp_path):
    done = ingest(sample_clips, tmp_path, "--manifest", "m.csv")
    assert "--videos and --manifest each name the videos: leave all but one out" in done.stderr


def test_a_removal_that_nobody_can_confirm_says_so(stored):
    done = run("rm", "--cache-dir", stored, "--dataset", "demo")
    assert (done.exit_code, "--yes gives it in advance" in done.stderr) == (1, True)
    assert len(featstore.open(stored)["demo"]) == 3


def test_what_default_and_rm_did_is_printed_for_scripts(store, tmp_path):
    first, second = two_sets(store)
    at = ("--cache-dir", tmp_path, "--dataset", "demo", "--json")
    assert json.loads(run("default", *at).stdout) == {"dataset": "demo", "feature_set": first}
    done = json.loads(run("rm", *at, "--yes", "--spec", second).stdout)
    assert (done["feature_set"], done["videos"], done["missing"]) == (second, 1, [])
    assert json.loads(run("rm", *at, "--yes").stdout)["dataset"] == "demo"


def test_a_set_that_is_stored_again_in_part_is_told_by_plan_and_info(sample_clips, store, tmp_path):
    store()
    ingest(sample_clips, tmp_path, "--quantize", "fp32", "--restore-as", "--limit", 1)
    done = ingest(sample_clips, tmp_path, "--dry-run")
    assert "2 videos stored otherwise, and made again" in done.stdout
    assert "fp32; 2 videos still otherwise" in run("info", "--cache-dir", tmp_path).stdout


def test_check_finds_a_flipped_byte_and_exits_1(store, tmp_path):
    store(("--quantize", "fp32"))
    clean = run("check", "--cache-dir", tmp_path)
    assert (clean.exit_code, "clean" in clean.stdout) == (0, True)
    payload = featstore.get(tmp_path, "demo", "blink").data.tobytes()
    featstore.store.reader._shared.clear()
    file = tmp_path / "demo" / DATA_FILE
    data = bytearray(file.read_bytes())
    at = data.index(payload) + 5
    data[at] ^= 1
    file.write_bytes(data)
    damaged = run("check", "--cache-dir", tmp_path)
    assert damaged.exit_code == 1
    assert "'blink' is damaged" in damaged.stdout


def test_check_looks_at_all_datasets_though_one_cannot_be_opened(store, tmp_path):
    store()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / DATA_FILE).write_text("no store")
    for option in ([], ["--repair"]):
        done = run("check", "--cache-dir", tmp_path, "--json", *option)
        bad, demo = json.loads(done.stdout)
        assert (done.exit_code, bad["dataset"], len(bad["problems"])) == (1, "bad", 1)
        assert (demo["dataset"], demo["videos"], demo["problems"]) == ("demo", 3, [])
    asked = CliRunner().invoke(main, f"rm --cache-dir {tmp_path} --dataset bad".split(), input="y")
    assert "Remove bad, which cannot be read?" in asked.stderr
    assert not (tmp_path / "bad").exists()


def test_a_folder_without_datasets_is_no_clean_store(stored, tmp_path):
    for place in (tmp_path, stored / "demo"):
        done = run("check", "--cache-dir", place)
        assert (done.exit_code, "there is no dataset in" in done.stderr) == (1, True)


@pytest.mark.parametrize("command", ["rm", "get", "ls"])
def test_first_digits_that_are_empty_stand_for_nothing(stored, command):
    """As `--spec "$SET"` is where the variable is not set: rm removed the whole dataset."""
    video = ["blink"] if command == "get" else []
    yes = ["--yes"] if command == "rm" else []
    done = run(command, "--cache-dir", stored, "--dataset", "demo", *video, "--spec", "", *yes)
    assert (done.exit_code, "it is empty" in done.stderr) == (2, True)
    assert len(featstore.open(stored)["demo"]) == 3


def test_an_interrupt_is_told_by_its_exit_code(stored, monkeypatch):
    def interrupted(*words, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(featstore.store.maintenance.check, "check_dataset", interrupted)
    done = run("check", "--cache-dir", stored)
    assert (done.exit_code, done.stderr.strip()) == (130, "featstore: interrupted")


def test_rm_asks_and_removes(store, tmp_path):
    store()
    words = ["rm", "--cache-dir", str(tmp_path), "--dataset", "demo"]
    refused = CliRunner().invoke(main, words, input="n\n")
    assert refused.exit_code == 1
    assert (tmp_path / "demo").is_dir()
    done = CliRunner().invoke(main, words, input="y\n")
    assert (done.exit_code, done.stdout[:12]) == (0, "removed demo")
    assert not (tmp_path / "demo").exists()
    assert json.loads((tmp_path / "cache_meta.json").read_text())["datasets"] == {}


def test_rm_of_a_link_says_that_what_it_leads_to_stays(store, tmp_path):
    """It said that all records would go, and that nothing had been there: `removed demo, 0 B`."""
    store(("--limit", 1))
    other = tmp_path / "other"
    other.mkdir()
    (other / "demo").symlink_to(tmp_path / "demo")
    words = ["rm", "--cache-dir", str(other), "--dataset", "demo"]
    said = f"the link demo; {tmp_path / 'demo'} stays as it is"
    assert f"Remove {said}?" in CliRunner().invoke(main, words, input="n\n").stderr
    assert run(*words, "--dry-run").stdout == f"would remove {said}\n"
    assert json.loads(run(*words, "--dry-run", "--json").stdout)["record_bytes"] == 0
    assert run(*words, "--yes").stdout == f"removed {said}\n"
    assert [*other.iterdir()] == []
    assert len(listed(tmp_path)) == 1


def test_rm_clears_a_link_that_leads_nowhere(store, tmp_path):
    store(("--limit", 1))
    (tmp_path / "demo").rename(tmp_path / "gone")
    (tmp_path / "demo").symlink_to(tmp_path / "nowhere")
    assert run("rm", "--cache-dir", tmp_path, "--dataset", "demo", "--yes").exit_code == 0
    assert not (tmp_path / "demo").is_symlink()


def listed(cache: Path) -> list[str]:
    rows = json.loads(run("ls", "--cache-dir", cache, "--dataset", "demo", "--json").stdout)
    return sorted(row["video_id"] for row in rows)


def test_rm_removes_single_videos_and_says_which_were_not_there(sample_clips, store, tmp_path):
    store()
    words = ["rm", "--cache-dir", tmp_path, "--dataset", "demo", "--video", "blink"]
    refused = CliRunner().invoke(main, [str(word) for word in words], input="n\n")
    assert (refused.exit_code, len(listed(tmp_path))) == (1, 3)
    done = run(*words, "--yes")
    assert done.exit_code == 0
    assert "removed 1 video from demo, 1 record and 0 failures, " in done.stdout
    assert f"by featstore compact --cache-dir {tmp_path} --dataset demo" in done.stdout
    assert listed(tmp_path) == ["bouncing_ball", "color_bars"]
    again = run(*words, "--video", "color_bars", "--yes")
    assert again.exit_code == 3
    assert "not there: blink" in again.stdout
    assert json.loads((tmp_path / "cache_meta.json").read_text())["videos"] == 1
    assert "2 videos to ingest" in ingest(sample_clips, tmp_path).stderr
    assert len(listed(tmp_path)) == 3


def two_sets(store) -> list[str]:
    """Store clips with 6 frames, and one with 4; return the digests of the two sets."""
    return list(featstore.open(store((), ("--nframe", 4, "--limit", 1)))["demo"].sets)


def test_rm_removes_one_feature_set(store, tmp_path):
    sets = two_sets(store)
    words = ["rm", "--cache-dir", tmp_path, "--dataset", "demo", "--spec", sets[0][:8]]
    asked = CliRunner().invoke(main, [str(word) for word in words], input="n\n")
    assert f"Remove feature set {sets[0][:8]} of demo with 3 videos?" in asked.stderr
    assert asked.stderr.endswith("nothing is removed without a yes; --yes gives it in advance\n")
    done = run(*words, "--yes")
    assert done.exit_code == 0
    assert f"removed feature set {sets[0][:8]} of demo, 3 videos and 0 failures" in done.stdout
    assert f"it was the default set; now that is {sets[1][:8]}" in done.stdout
    assert list(featstore.open(tmp_path)["demo"].sets) == sets[1:]
    assert run(*words, "--yes").exit_code == 1


def test_rm_of_a_video_counts_its_records_in_all_sets(store, tmp_path):
    two_sets(store)
    (video,) = [*featstore.open(tmp_path)["demo"].sets.values()][1]
    words = ["rm", "--cache-dir", str(tmp_path), "--dataset", "demo", "--video", video]
    asked = CliRunner().invoke(main, words, input="n\n")
    assert "Remove 1 video from all 2 feature sets of demo?" in asked.stderr
    assert "removed 1 video from demo, 2 records and 0 failures" in run(*words, "--yes").stdout


def test_ls_lists_a_dataset_whose_last_feature_set_was_removed(store, tmp_path):
    store(("--limit", 1))
    [digest] = featstore.open(tmp_path)["demo"].sets
    done = run("rm", "--cache-dir", tmp_path, "--dataset", "demo", "--spec", digest, "--yes")
    assert done.stdout.endswith("  it was the default set; now there is none\n")
    [row] = json.loads(run("ls", "--cache-dir", tmp_path, "--json").stdout)
    assert (row["dataset"], row["feature_set"], row["videos"]) == ("demo", None, 0)
    assert run("ls", "--cache-dir", tmp_path).stdout.splitlines()[1].split() == [
        "demo",
        "0",
        "0",
        "0",
        "B",
    ]


def test_rm_and_check_count_the_records_of_all_sets_as_records(store, tmp_path):
    two_sets(store)
    assert run("check", "--cache-dir", tmp_path).stdout.startswith("demo: 4 records, ")
    words = ["rm", "--cache-dir", str(tmp_path), "--dataset", "demo"]
    asked = CliRunner().invoke(main, words, input="n\n")
    assert "Remove demo with 4 records?" in asked.stderr


def test_all_commands_mean_the_default_set_until_another_is_named(store, tmp_path):
    first, second = two_sets(store)
    at = ("--cache-dir", tmp_path, "--dataset", "demo")
    shown = run("ls", *at)
    assert len(shown.stdout.splitlines()) == 4
    assert shown.stderr == (
        "3 videos, 12.5 KiB\ndemo has 1 other feature set: list them without --dataset, name one with --spec\n"
    )
    assert json.loads(run("get", *at, "blink", "--json").stdout)["feature_set"] == first
    exported = run("export", *at, "--to", "npy", "--out", tmp_path / "out")
    said = f"exported set {first[:8]}; demo has 1 other feature set: featstore ls lists them, "
    assert exported.stderr.endswith(f"{said}--spec names one\n")
    other = run("ls", *at, "--spec", second[:4])
    assert len(other.stdout.splitlines()) == 2
    assert other.stderr == "1 video, 4.1 KiB\n"
    assert json.loads(run("get", *at, "blink", "--nframe", 4, "--json").stdout)["frames"] == 4
    by_nframe = run("ls", *at, "--nframe", 4)
    assert (by_nframe.stdout, by_nframe.stderr) == (other.stdout, other.stderr)
    assert run("default", *at).stdout.startswith(f"demo: {first[:8]}  toy ")

    named = run("default", *at, second[:4])
    assert (named.exit_code, named.stdout[:14]) == (0, f"demo: {second[:8]}")
    assert run("default", *at).stdout == named.stdout
    assert len(run("ls", *at).stdout.splitlines()) == 2
    assert json.loads(run("get", *at, "blink", "--json").stdout)["feature_set"] == second
    sets = json.loads(run("ls", "--cache-dir", tmp_path, "--json").stdout)
    assert {row["feature_set"]: row["default"] for row in sets} == {first: False, second: True}
    described = run("info", *at).stdout
    assert described.startswith("demo: 4 records, ")
    assert f"set {second}, the default: 1 video, 4 frames," in described
    meta = json.loads((tmp_path / "cache_meta.json").read_text())
    assert meta["datasets"]["demo"]["default_set"] == second


def test_a_default_set_that_is_not_there_is_refused(store, tmp_path):
    [first] = [*two_sets(store)][:1]
    refused = run("default", "--cache-dir", tmp_path, "--dataset", "demo", "0000000")
    assert (refused.exit_code, "no feature set of dataset 'demo' fits" in refused.stderr) == (
        1,
        True,
    )
    assert run("default", "--cache-dir", tmp_path, "--dataset", "demo", "").exit_code == 2
    assert featstore.open(tmp_path)["demo"].feature_set.spec.digest == first


def test_an_ingest_goes_on_in_the_storage_of_its_set(sample_clips, tmp_path):
    ingest(sample_clips, tmp_path, "--limit", 1, "--quantize", "fp16")
    done = ingest(sample_clips, tmp_path)
    assert (done.exit_code, " -> fp16\n" in done.stdout) == (0, True)
    assert "2 videos to ingest as fp16" in done.stderr
    assert {x.header.storage.values for x in featstore.open(tmp_path)["demo"].values()} == {"fp16"}


def test_another_storage_is_refused_before_work_and_stored_if_asked_for(
    sample_clips, store, tmp_path
):
    store()
    wish = ("--quantize", "fp32", "--codec", "zstd")
    refused = ingest(sample_clips, tmp_path, *wish)
    assert refused.exit_code == 1
    assert "is stored as int8/channel_token, asked for is fp32 zstd" in refused.stderr
    assert "--restore-as" in refused.stderr
    assert "to ingest" not in refused.stderr
    done = ingest(sample_clips, tmp_path, *wish, "--restore-as")
    assert (done.exit_code, done.stdout[:14]) == (0, "demo: 3 stored")
    rows = json.loads(run("ls", "--cache-dir", tmp_path, "--dataset", "demo", "--json").stdout)
    assert {row["storage"]["values"] for row in rows} == {"fp32"}
    assert "fp32 2, fp32 zstd 1" in run("ls", "--cache-dir", tmp_path).stdout
    [row] = json.loads(run("ls", "--cache-dir", tmp_path, "--json").stdout)
    assert row["storage"] == {"values": "fp32", "granularity": "none", "codec": "zstd"}
    assert sum(row["storages"].values()) == 3
    again = ingest(sample_clips, tmp_path, *wish, "--restore-as")
    assert again.stdout.startswith("demo: 0 stored, 3 skipped")
    assert len(featstore.open(tmp_path)["demo"].sets) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--restore-as"], "say in which with --quantize"),
        (["--quantize", "fp16", "--scale", "token"], "floats take none"),
        (["--codec", "planes"], "use zstd with int8"),
        (["--quantize", "lossless", "--codec", "raw"], "leave --scale and --codec out"),
        (["--quantize", "lossless", "--scale", "token"], "leave --scale and --codec out"),
        (["--max-error", "two"], "write 2%, 0.02 or none"),
        (["--max-error", "200%"], "write 2%, 0.02 or none"),
    ],
)
def test_a_storage_that_cannot_be_is_wrong_usage(sample_clips, tmp_path, words, said):
    done = ingest(sample_clips, tmp_path / "cache", *words)
    assert (done.exit_code, said in done.stderr) == (2, True)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("text", "share"), [("2%", 0.02), ("0.5 %", 0.005), (".02", 0.02), ("0", 0), ("NONE", math.inf)]
)
def test_an_error_budget_is_a_share_or_none(text, share):
    assert error_share(text) == share


def test_what_misses_the_error_budget_is_told_of_wherever_it_matters(sample_clips, tmp_path):
    words = ("--scale", "tensor", "--max-error", "0.001%")
    done = ingest(sample_clips, tmp_path, *words)
    assert done.exit_code == 0
    assert (
        "  3 of 3 videos missed the error budget of 0.001% and are stored losslessly: +"
        in done.stdout
    )
    summary = json.loads(ingest(sample_clips, tmp_path, "--json").stdout)
    assert (summary["max_error"], summary["on_max_error"]) == (1e-5, "lossless")
    text = run("info", "--cache-dir", tmp_path).stdout
    assert "int8/tensor; 3 videos losslessly, which missed the error budget or came so" in text
    assert "error budget   99 of 100 tokens of a video within 0.001%" in text
    found = json.loads(run("info", "--cache-dir", tmp_path, "--json").stdout)
    assert found["demo"]["feature_sets"][0]["lossless"] == 3
    listed = run("ls", "--cache-dir", tmp_path, "--dataset", "demo")
    assert "3 of 3 videos are stored losslessly, not as int8/tensor: they missed" in listed.stderr
    rows = json.loads(run("ls", "--cache-dir", tmp_path, "--dataset", "demo", "--json").stdout)
    assert {row["storage"]["values"] for row in rows} == {"fp32"}
    assert "fp32 planes" in run("ls", "--cache-dir", tmp_path).stdout
    [row] = json.loads(run("ls", "--cache-dir", tmp_path, "--json").stdout)
    assert row["storage"] == {"values": "int8", "granularity": "tensor", "codec": "raw"}
    assert sum(row["storages"].values()) == 3
    other = ingest(sample_clips, tmp_path / "other", *words, "--on-max-error", "warn")
    assert (
        "3 of 3 videos missed the error budget of 0.001% and are stored as int8/tensor all the same"
        in other.stdout
    )
    failed = ingest(sample_clips, tmp_path / "third", *words, "--on-max-error", "fail")
    assert (failed.exit_code, "the error budget is 0.001%" in failed.stdout) == (3, True)


def test_an_ingest_that_stops_since_too_many_miss_says_why_and_fails(
    sample_clips, tmp_path, monkeypatch
):
    monkeypatch.setattr("featstore.records.budget.MOST_MISSES", 1)
    done = ingest(sample_clips, tmp_path, "--scale", "tensor", "--max-error", "0.001%")
    assert (done.exit_code, "and are stored losslessly, which takes" in done.stderr) == (1, True)
    on = ingest(sample_clips, tmp_path, "--quantize", "lossless", "--restore-as")
    assert (on.exit_code, len(featstore.open(tmp_path)["demo"])) == (0, 3)


@pytest.mark.parametrize("scale", ["channel", "token", "tensor"])
def test_a_granularity_that_is_asked_for_is_stored_and_shown(sample_clips, tmp_path, scale):
    assert ingest(sample_clips, tmp_path, "--limit", 1, "--scale", scale).exit_code == 0
    [row] = json.loads(run("ls", "--cache-dir", tmp_path, "--json").stdout)
    assert row["storage"] == {"values": "int8", "granularity": scale, "codec": "raw"}
    [features] = featstore.open(tmp_path)["demo"].values()
    assert [x.shape for x in features.scales] == list(row_scales(scale))


@pytest.mark.parametrize("codec", ["lz4", "planes"])
def test_a_codec_that_is_asked_for_is_taken_for_floats(sample_clips, tmp_path, codec):
    done = ingest(sample_clips, tmp_path, "--limit", 1, "--quantize", "fp32", "--codec", codec)
    assert (done.exit_code, done.stdout[:14]) == (0, "demo: 1 stored")
    assert featstore.open(tmp_path)["demo"].feature_set.storage.codec == codec


def row_scales(scale: str) -> tuple[tuple[int, int], ...]:
    return featstore.Storage("int8", scale).scale_shapes(24, 8)


def test_compact_says_what_it_gave_back(store, tmp_path):
    store()
    run("rm", "--cache-dir", tmp_path, "--dataset", "demo", "--video", "blink", "--yes")
    done = run("compact", "--cache-dir", tmp_path, "--dataset", "demo")
    assert done.exit_code == 0
    assert "given back" in done.stdout
    assert listed(tmp_path) == ["bouncing_ball", "color_bars"]
    assert run("compact", "--cache-dir", tmp_path, "--dataset", "other").exit_code == 1


def test_seal_refuses_an_ingest_until_it_is_undone(sample_clips, store, tmp_path):
    store(("--limit", 1))
    words = ["seal", "--cache-dir", tmp_path, "--dataset", "demo"]
    assert (run(*words).exit_code, run(*words).stdout) == (0, "demo is sealed\n")
    assert ", sealed\n" in run("info", "--cache-dir", tmp_path).stdout
    refused = ingest(sample_clips, tmp_path)
    assert refused.exit_code == 1
    assert "is sealed" in refused.stderr
    assert "Traceback" not in refused.output
    assert run(*words, "--undo").stdout == "demo is open for writing again\n"
    assert run(*words, "--undo").stdout == "demo is not sealed\n"
    assert ingest(sample_clips, tmp_path).exit_code == 0


@pytest.mark.parametrize("more", [[], ["--nframe", 4]], ids=["stored already", "to do"])
def test_a_sealed_dataset_is_refused_before_the_checkpoint_is_read(
    sample_clips, store, tmp_path, more
):
    store()
    run("seal", "--cache-dir", tmp_path, "--dataset", "demo")
    words = (*more, "--encoder", "longva", "--model-path", tmp_path / "nowhere")
    refused = ingest(sample_clips, tmp_path, *words)
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert refused.stderr == (
        f"featstore: {tmp_path / 'demo'} is sealed: it is read without locks, so nothing is written into it; undo that "
        f"with featstore seal --undo --cache-dir {tmp_path} --dataset demo\n"
    )
    planned = ingest(sample_clips, tmp_path, *more, "--dry-run")
    assert (planned.exit_code, planned.stdout.splitlines()[0][:7]) == (0, "dataset")


def test_a_name_that_no_dataset_can_have_is_refused_before_the_checkpoint_is_read(
    sample_clips, tmp_path
):
    words = ("--dataset", "a/b", "--encoder", "longva", "--model-path", tmp_path / "nowhere")
    for more in ([], ["--dry-run"]):
        refused = ingest(sample_clips, tmp_path / "cache", *words, *more)
        assert (refused.exit_code, refused.stdout) == (1, "")
        assert "a dataset cannot be called 'a/b'; use letters, digits" in refused.stderr
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("tower", ["openai/clip-vit-large-patch14-336", "/models/clip"])
def test_a_clip_model_is_named_by_its_folder_or_on_the_hub(tower, monkeypatch):
    asked = []

    def feature_shape(checkpoint, nframe, *, vision_tower):
        asked.append(vision_tower)
        return FeatureShape(frames=nframe, tokens_per_frame=144, width=3584)

    monkeypatch.setattr("featstore.encoders.longva.shape.feature_shape", feature_shape)
    words = ("shape", "--model-path", "checkpoint", "--nframe", 2, "--vision-tower")
    done = run(*words, tower, "--json")
    assert (done.exit_code, asked) == (0, [tower])
    facts = json.loads(done.stdout)
    assert (facts["frames"], facts["tokens_per_frame"]) == (2, 144)
    assert (facts["rows"], facts["width"]) == (288, 3584)
    assert run(*words, tower).stdout.split()[:8] == (
        ["frames", "2", "tokens", "a", "frame", "144", "rows", "288"]
    )
    refused = run(*words, "")
    assert (refused.exit_code, "'--vision-tower': it is empty" in refused.stderr) == (2, True)


def test_merge_copies_what_is_missing(store, tmp_path):
    store(to=tmp_path / "a")
    words = ["merge", tmp_path / "a", "--dataset", "demo", "--cache-dir", tmp_path / "b"]
    done = run(*words, "--min-free", "1MB")
    assert done.exit_code == 0
    assert done.stdout.startswith("demo: 3 copied, 0 there before, 0 failed")
    assert "3/3 videos" in done.stderr
    again = json.loads(run(*words, "--json").stdout)
    assert (again["stored"], again["skipped"], again["failed"]) == (0, 3, [])
    assert run(*words).stderr == "3/3 videos, 0 B written\n"
    assert run("check", "--cache-dir", tmp_path / "b").exit_code == 0
    full = run(*words[:-1], tmp_path / "c", "--max-size", "10kB")
    assert (full.exit_code, "raise --max-size" in full.stderr) == (1, True)


def test_check_repair_leaves_work_for_the_next_ingest(sample_clips, store, tmp_path):
    store(("--quantize", "fp32"))
    flip_in_file(tmp_path, featstore.get(tmp_path, "demo", "blink").data.tobytes())
    assert run("check", "--cache-dir", tmp_path).exit_code == 1
    mended = run("check", "--repair", "--cache-dir", tmp_path, "--json")
    assert mended.exit_code == 0
    [report] = json.loads(mended.stdout)
    assert (report["problems"], report["again"], len(report["repaired"])) == ([], 1, 1)
    assert run("check", "--cache-dir", tmp_path).exit_code == 0
    done = ingest(sample_clips, tmp_path, "--quantize", "fp32")
    assert (done.exit_code, done.stdout[:14]) == (0, "demo: 1 stored")


def test_limits_are_said_in_units_that_show_them(sample_clips, tmp_path):
    done = ingest(sample_clips, tmp_path, "--max-size", 10)
    assert done.exit_code == 1
    assert re.search(
        r"need [\d.]+ KiB, .* takes [\d.]+ (B|KiB) already and may take 10 B;", done.stderr
    )


@pytest.mark.parametrize("command", ["ls", "check", "ingest", "vlmeval"])
def test_an_empty_cache_directory_does_not_stand_for_the_current_folder(stored, command):
    """As `--cache-dir "$CACHE"` is where the variable is not set."""
    done = run(command, "--cache-dir", "")
    assert (done.exit_code, "it is empty; name a folder" in done.stderr) == (2, True)


def test_an_empty_dataset_does_not_stand_for_all_of_them(stored):
    done = run("check", "--cache-dir", stored, "--dataset", "")
    assert (done.exit_code, "cannot be called ''" in done.stderr) == (1, True)


def test_an_ingest_that_may_open_no_more_files_says_what_to_do(sample_clips, cache):
    words = f"-m featstore ingest --encoder toy --videos {sample_clips} --dataset demo --cache-dir {cache}"
    words = f"ulimit -n 12; {sys.executable} {words} --nframe 4 --min-free 1MB"
    done = subprocess.run(["bash", "-c", words], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "featstore: this process has as many files open as it may, 12; allow more with ulimit -n, or close some"
    )


def test_dry_run_prints_the_plan_and_touches_nothing(sample_clips, tmp_path):
    done = ingest(sample_clips, tmp_path / "cache", "--dry-run")
    assert (done.exit_code, done.stderr) == (0, "")
    assert f"demo     blink          {sample_clips / 'blink.mp4'}" in done.stdout
    found = json.loads(ingest(sample_clips, tmp_path / "cache", "--dry-run", "--json").stdout)
    (demo,) = found["datasets"]
    assert (demo["planned"], demo["skipped"], len(demo["todo"])) == (3, 0, 3)
    assert not (tmp_path / "cache").exists()


def test_a_dry_run_of_a_share_plans_that_share(sample_clips, tmp_path):
    taken = []
    for share in ("0/2", "1/2"):
        done = ingest(sample_clips, tmp_path / "cache", "--dry-run", "--json", "--shard", share)
        (demo,) = json.loads(done.stdout)["datasets"]
        assert demo["planned"] == len(demo["todo"]) < 3
        taken += [video["video_id"] for video in demo["todo"]]
    assert len(taken) == len(set(taken)) == 3
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [("5", 5), ("1k", 1000), ("500MB", 500_000_000), ("1.5GiB", 3 << 29), ("2 tib", 2 << 40)],
)
def test_sizes_are_read_as_people_write_them(text, expected):
    assert size(text) == expected


def test_rates_that_make_two_sets_look_different():
    texts = {sampling_text({"nframe": 4, "policy": "fps", "rate": r}) for r in (1.0, 1.0000001)}
    assert texts == {"4 frames, fps:1", "4 frames, fps:1.0000001"}
    assert sampling_text({"nframe": 4, "policy": "linspace", "rate": None}) == "4 frames, linspace"


def test_ls_takes_for_lossless_only_what_is_as_it_was_computed(tmp_path):
    """An import of values restored from int8 is not, though they are in the encoder's dtype."""
    spec = toy_spec()
    with FeatureWriter(tmp_path, "demo", min_free=0) as writer:
        writer.add_set(spec, Storage(), origin="toy")
        for name, error in (("exact", 0.0), ("restored", 0.1)):
            measured = QuantError(1.0, error, error, error, error)
            fields = {"dtype": spec.encoder.dtype, "error": measured}
            put_video(writer, spec, name, toy_features(0), Storage(spec.encoder.dtype), **fields)
    done = run("ls", "--cache-dir", tmp_path, "--dataset", "demo")
    assert "1 of 2 videos are stored losslessly, not as int8/channel_token" in done.stderr
