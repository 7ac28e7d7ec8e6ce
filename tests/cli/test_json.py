"""What `--json` prints follows docs/json.schema.json, and a word means the same in all commands."""

import json
import re
import shutil

import pytest
from click.testing import CliRunner
from toys import REPOSITORY, store_videos, toy_features

from featstore.cli import main
from featstore.cli.status import _facts
from featstore.fields import all_finite, time_text
from featstore.models.compare import CompareReport, Comparison, Limits
from featstore.models.study import Study, run_study
from featstore.pipeline.write.heartbeat import ShareStatus
from featstore.records.quantization import QuantError
from featstore.records.storage import Storage
from featstore.store.reader import FeatureStore

jsonschema = pytest.importorskip("jsonschema")
SCHEMA = json.loads((REPOSITORY / "docs" / "json.schema.json").read_text())
COMMANDS, WORDS = SCHEMA["$defs"]["commands"], SCHEMA["$defs"]["words"]


def fits(found, command):
    """Check a value, as text or as plain values, and return it as JSON has it."""
    found = json.loads(found) if isinstance(found, str) else json.loads(json.dumps(found))
    rule = SCHEMA | {"$ref": f"#/$defs/commands/{command}"}
    jsonschema.Draft202012Validator(rule).validate(found)
    return found


@pytest.fixture
def run(tmp_path):
    """Runs a command line with --json, whose {} is the folder of the test, and checks what it prints."""

    def run(line, command="", exits=(0,)):
        words = [word.replace("{}", str(tmp_path)) for word in line.split()]
        done = CliRunner().invoke(main, [*words, "--json"])
        assert done.exit_code in exits, done.output
        return fits(done.stdout, command or words[0])

    return run


@pytest.fixture
def stored(cache):
    store_videos(cache, "demo", {"a": toy_features(1), "b": toy_features(2)})
    return cache


def test_each_name_of_a_map_is_a_word_and_each_word_is_on_the_page():
    page = (REPOSITORY / "docs" / "json.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", page, re.MULTILINE))
    assert rows == {name: word["description"] for name, word in WORDS.items()}
    names = set()

    def walk(found):
        if isinstance(found, dict):
            if found.get("additionalProperties") is False:
                names.update(found["properties"])
            for value in found.values():
                walk(value)
        elif isinstance(found, list):
            list(map(walk, found))

    walk(SCHEMA["$defs"])
    assert names == set(WORDS)


def test_every_command_that_has_json_is_in_the_schema():
    offering = {
        name
        for name, command in main.commands.items()
        if any("--json" in option.opts for option in command.params)
    }
    assert offering == {name.partition(" --")[0] for name in COMMANDS}


@pytest.mark.usefixtures("stored")
def test_commands_of_a_store(run, tmp_path):
    [row] = run("ls --cache-dir {}/cache")
    run("ls --cache-dir {}/cache --dataset demo", "ls --dataset")
    described = run("info --cache-dir {}/cache")["demo"]
    assert described["default_set"] == row["feature_set"]
    assert described["created"].endswith("+00:00")
    got = run("get --cache-dir {}/cache --dataset demo a")
    listed = run("ls --cache-dir {}/cache --dataset demo", "ls --dataset")
    assert {name: got[name] for name in listed[0] if name in got} in [
        {name: entry[name] for name in entry if name in got} for entry in listed
    ]
    run("check --cache-dir {}/cache")
    run("check --cache-dir {}/cache --repair")
    run("default --cache-dir {}/cache --dataset demo")
    run("export --cache-dir {}/cache --dataset demo --to npz --out {}/files")
    (tmp_path / "files" / "odd.npz").write_bytes(b"no")
    run("import --cache-dir {}/new --dataset demo --from-npz {}/files --dry-run", exits=(3,))
    run("import --cache-dir {}/new --dataset demo --from-npz {}/files", exits=(3,))
    run("merge {}/new --cache-dir {}/merged --dataset demo")
    run("cp {}/cache --cache-dir {}/merged --dataset demo --as again")
    run("mv {}/merged --cache-dir {}/merged --dataset again --as moved")
    run("show --cache-dir {}/cache --dataset demo a -o {}/a.png")
    run("compact --cache-dir {}/merged --dataset demo")
    assert run("seal --cache-dir {}/merged --dataset demo")["sealed"]
    assert run("push {}/merged {}/bucket --dataset demo") == run(
        "pull {}/bucket --cache-dir {}/here"
    )
    run("rm --cache-dir {}/cache --dataset demo --video a --video c --yes", exits=(3,))
    run("rm --cache-dir {}/cache --dataset demo --yes")


def test_what_cannot_be_read_and_what_is_unknown(run, stored, tmp_path):
    run("export --cache-dir {}/cache --dataset demo --to npy --out {}/npy")
    for name in ("index.jsonl", "feature_set.json"):
        (tmp_path / "npy" / name).unlink()
    run("import --cache-dir {}/cache --dataset other --from-npy {}/npy")
    [row, _] = run("ls --cache-dir {}/cache --dataset other", "ls --dataset")
    assert (row["error"], row["source"]) == (None, None)
    got = run(f"get --cache-dir {{}}/cache --dataset other {row['video_id']}")
    assert (got["frame_indices"], got["fps"], got["dtype"]) == (None, None, None)
    (stored / "gone").mkdir()
    (stored / "gone" / "lock.mdb").touch()
    assert "problems" in run("ls --cache-dir {}/cache")[1]
    assert "problems" in run("info --cache-dir {}/cache")["gone"]
    pytest.importorskip("jinja2")
    run("report --cache-dir {}/cache")
    shutil.rmtree(stored / "gone")


@pytest.mark.slow
def test_commands_of_videos(run, clips):
    (clips / "bad.mp4").write_bytes(b"no video")
    what = f"--videos {clips} --dataset demo --cache-dir {{}}/cache --encoder toy --nframe 4"
    planned = run(f"plan {what}")
    run(f"ingest --dry-run {what}", "ingest --dry-run")
    done = run(f"ingest {what}", exits=(3,))
    assert done["planned"] == planned["datasets"][0]["planned"] + 1  # a plan reads the heads
    assert run("ls --failed --cache-dir {}/cache --dataset demo", "ls --failed") == done["failed"]
    [said] = run("status --cache-dir {}/cache")
    assert (said["state"], said["stored"], said["failures"], said["left"]) == ("done", 3, 1, 0)


def test_a_comparison_and_a_study(stored):
    torch = pytest.importorskip("torch")
    spec = FeatureStore(stored)["demo"].feature_set.spec
    error = QuantError(1.0, 0.0, 0.0, float("inf"), 0.0)
    for rows in ([Comparison("a", error)], [Comparison("a", error, identical=True)], []):
        report = CompareReport("demo", spec, Limits(), "fp32", rows, {"b": "gone"})
        fits(report.to_dict(), "compare")
    study = Study("demo")
    run_study(study, {"a": lambda: torch.ones(4, 8)}, storages=[Storage("int8", "channel")])
    study.failures["b"] = "gone"
    fits(study.to_dict(), "compare --study")


def test_what_is_no_date_or_no_number_is_null():
    assert (time_text(1e300), time_text(float("nan"))) == (None, None)
    assert all_finite({"a": float("inf"), "b": 1, "c": "d"}) == {"a": None, "b": 1, "c": "d"}


def test_what_a_share_says_of_itself():
    said = ShareStatus("0-of-2", "running", 3, stored=1, new=1, started=1.7e9, time=1.7e9 + 1)
    fits([_facts("demo", said, 1.7e9 + 2)], "status")
