import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from damage import flip_in_file
from safetensors.numpy import load_file

import featstore
import featstore.store.maintenance.check
from featstore.cli import main
from featstore.cli._options import size
from featstore.store.paths import DATA_FILE

pytestmark = pytest.mark.slow


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def ingest(clips: Path, cache: Path, *more: object) -> Result:
    return run(
        *("ingest", "--encoder", "toy", "--videos", clips, "--dataset", "demo"),
        *("--cache-dir", cache, "--nframe", 6, "--min-free", "1MB", *more),
    )


@pytest.fixture(scope="module")
def stored(sample_clips, tmp_path_factory) -> Path:
    """A cache with the three clips in it, for tests that only look."""
    cache = tmp_path_factory.mktemp("cli") / "cache"
    assert ingest(sample_clips, cache).exit_code == 0
    return cache


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
    assert (summary["stored"], summary["failures"]) == (3, [])
    assert "3/3 videos" in done.stderr


def test_results_go_to_stdout_and_progress_to_stderr(sample_clips, tmp_path):
    done = ingest(sample_clips, tmp_path)
    assert done.exit_code == 0
    assert done.stdout.startswith("demo: 3 stored, 0 skipped, 0 failed")
    assert re.search(r"bottleneck: (decode|encode|write) \(\d+% busy\); ", done.stdout)
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
    listed = run("ls", "--cache-dir", tmp_path / "cache", "--dataset", "demo", "--failed")
    assert "0 bytes" in listed.stdout


def test_ls_lists_datasets_and_videos(stored):
    assert run("ls", "--cache-dir", stored).stdout.split()[5:7] == ["demo", "3"]
    rows = json.loads(run("ls", "--cache-dir", stored, "--dataset", "demo", "--json").stdout)
    assert [row["video_id"] for row in rows] == ["blink", "bouncing_ball", "color_bars"]
    assert {row["tokens"] for row in rows} == {24}


@pytest.mark.parametrize("option", [["--failed"], ["--spec", "abcd"]])
def test_what_ls_lists_of_a_dataset_needs_its_name(stored, option):
    done = run("ls", "--cache-dir", stored, *option)
    assert (done.exit_code, f"{option[0]} selects videos of a dataset" in done.stderr) == (2, True)


def test_info_tells_of_the_feature_set_and_its_error(stored):
    text = run("info", "--cache-dir", stored).stdout
    assert "demo: 3 videos" in text
    assert "6 frames, linspace" in text
    assert "relative L2" in text
    described = json.loads(run("info", "--cache-dir", stored, "--dataset", "demo", "--json").stdout)
    assert described["demo"]["feature_sets"][0]["error"]["relative_l2_max"] < 0.01


def test_get_shows_and_writes_what_is_stored(stored, tmp_path):
    shown = run("get", "--cache-dir", stored, "--dataset", "demo", "blink", "--json")
    assert json.loads(shown.stdout)["shape"] == [24, 8]
    features = featstore.get(stored, "demo", "blink")
    for name in ("x.npy", "x.safetensors"):
        words = (
            "get",
            "--cache-dir",
            stored,
            "--dataset",
            "demo",
            "blink",
            "--out",
            tmp_path / name,
        )
        assert run(*words).exit_code == 0
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), features.dequantize())
    tensors = load_file(tmp_path / "x.safetensors")
    np.testing.assert_array_equal(tensors["data"], features.data)
    np.testing.assert_array_equal(tensors["scale"], features.scale)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.npy", "x.safetensors"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["get", "--dataset", "demo", "nobody"], 1, "'nobody' is not stored"),
        (["get", "--dataset", "nowhere", "blink"], 1, "there is no dataset 'nowhere'"),
        (["get", "--dataset", "../demo", "blink"], 1, "cannot be called"),
        (["get", "--dataset", "demo", "blink", "--nframe", "7"], 1, "nframe=7"),
        (["get", "--dataset", "demo", "blink", "--out", "x.txt"], 2, ".safetensors or .npy"),
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
    ],
)
def test_wrong_options_are_exit_code_2(sample_clips, tmp_path, words):
    assert ingest(sample_clips, tmp_path, *words).exit_code == 2


def test_check_finds_a_flipped_byte_and_exits_1(sample_clips, tmp_path):
    ingest(sample_clips, tmp_path, "--quantize", "fp32")
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


def test_check_looks_at_all_datasets_though_one_cannot_be_opened(sample_clips, tmp_path):
    ingest(sample_clips, tmp_path)
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
    def interrupted(*words):
        raise KeyboardInterrupt

    monkeypatch.setattr(featstore.store.maintenance.check, "check_dataset", interrupted)
    done = run("check", "--cache-dir", stored)
    assert (done.exit_code, done.stderr.strip()) == (130, "featstore: interrupted")


def test_rm_asks_and_removes(sample_clips, tmp_path):
    ingest(sample_clips, tmp_path)
    words = ["rm", "--cache-dir", str(tmp_path), "--dataset", "demo"]
    refused = CliRunner().invoke(main, words, input="n\n")
    assert refused.exit_code == 1
    assert (tmp_path / "demo").is_dir()
    done = CliRunner().invoke(main, words, input="y\n")
    assert (done.exit_code, done.stdout[:12]) == (0, "removed demo")
    assert not (tmp_path / "demo").exists()
    assert json.loads((tmp_path / "cache_meta.json").read_text())["datasets"] == {}


def listed(cache: Path) -> list[str]:
    rows = json.loads(run("ls", "--cache-dir", cache, "--dataset", "demo", "--json").stdout)
    return [row["video_id"] for row in rows]


def test_rm_removes_single_videos_and_says_which_were_not_there(sample_clips, tmp_path):
    ingest(sample_clips, tmp_path)
    words = ["rm", "--cache-dir", tmp_path, "--dataset", "demo", "--video", "blink"]
    refused = CliRunner().invoke(main, [str(word) for word in words], input="n\n")
    assert (refused.exit_code, len(listed(tmp_path))) == (1, 3)
    done = run(*words, "--yes")
    assert done.exit_code == 0
    assert "removed 1 videos and 0 failures of demo" in done.stdout
    assert "given back by featstore compact" in done.stdout
    assert listed(tmp_path) == ["bouncing_ball", "color_bars"]
    again = run(*words, "--video", "color_bars", "--yes")
    assert again.exit_code == 3
    assert "not there: blink" in again.stdout
    assert json.loads((tmp_path / "cache_meta.json").read_text())["videos"] == 1
    assert "1 videos to ingest" not in ingest(sample_clips, tmp_path).stderr
    assert len(listed(tmp_path)) == 3


def test_rm_removes_one_feature_set(sample_clips, tmp_path):
    ingest(sample_clips, tmp_path)
    ingest(sample_clips, tmp_path, "--quantize", "bf16")
    sets = featstore.open(tmp_path).specs["demo"]
    words = ["rm", "--cache-dir", tmp_path, "--dataset", "demo", "--spec", sets[0].digest[:8]]
    assert run(*words, "--yes").exit_code == 0
    assert featstore.open(tmp_path).specs["demo"] == sets[1:]
    assert run(*words, "--yes").exit_code == 1


def test_compact_says_what_it_gave_back(sample_clips, tmp_path):
    ingest(sample_clips, tmp_path)
    run("rm", "--cache-dir", tmp_path, "--dataset", "demo", "--video", "blink", "--yes")
    done = run("compact", "--cache-dir", tmp_path, "--dataset", "demo")
    assert done.exit_code == 0
    assert "given back" in done.stdout
    assert listed(tmp_path) == ["bouncing_ball", "color_bars"]
    assert run("compact", "--cache-dir", tmp_path, "--dataset", "other").exit_code == 1


def test_seal_refuses_an_ingest_until_it_is_undone(sample_clips, tmp_path):
    ingest(sample_clips, tmp_path, "--limit", 1)
    words = ["seal", "--cache-dir", tmp_path, "--dataset", "demo"]
    assert (run(*words).exit_code, run(*words).stdout) == (0, "demo is sealed\n")
    assert ", sealed\n" in run("info", "--cache-dir", tmp_path).stdout
    refused = ingest(sample_clips, tmp_path)
    assert refused.exit_code == 1
    assert "is sealed" in refused.stderr
    assert "Traceback" not in refused.output
    assert run(*words, "--undo").stdout == "demo is open for writing again\n"
    assert ingest(sample_clips, tmp_path).exit_code == 0


def test_merge_copies_what_is_missing(sample_clips, tmp_path):
    ingest(sample_clips, tmp_path / "a")
    words = ["merge", tmp_path / "a", "--dataset", "demo", "--cache-dir", tmp_path / "b"]
    done = run(*words, "--min-free", "1MB")
    assert done.exit_code == 0
    assert done.stdout.startswith("demo: 3 copied, 0 there before, 0 failed")
    assert "3/3 videos" in done.stderr
    again = json.loads(run(*words, "--json").stdout)
    assert (again["stored"], again["skipped"], again["failures"]) == (0, 3, [])
    assert run("check", "--cache-dir", tmp_path / "b").exit_code == 0
    full = run(*words[:-1], tmp_path / "c", "--max-size", "10kB")
    assert (full.exit_code, "raise --max-size" in full.stderr) == (1, True)


def test_check_repair_leaves_work_for_the_next_ingest(sample_clips, tmp_path):
    ingest(sample_clips, tmp_path, "--quantize", "fp32")
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
    assert done.exit_code == 0
    assert "3 videos to ingest" in done.stderr
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [("5", 5), ("1k", 1000), ("500MB", 500_000_000), ("1.5GiB", 3 << 29), ("2 tib", 2 << 40)],
)
def test_sizes_are_read_as_people_write_them(text, expected):
    assert size(text) == expected
