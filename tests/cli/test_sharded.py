"""Every command on a dataset of sealed shards: it works, or is refused in words that name the way out."""

import shutil

import pytest
from click.testing import CliRunner
from shard_contract import SPEC, VIDEOS, make_parts

from featstore.cli import main
from featstore.store.maintenance.check import check_dataset
from featstore.store.maintenance.seal_shard import seal_shard
from featstore.store.shards.places import LocalPlace

SET = SPEC.digest[:8]
OUT = "featstore merge"  # the way out of shards
# The dataset is C/demo, and {} the test's folder.
WORKS = {
    "check": ["check --cache-dir C", "9 records, "],
    "cp": ["cp C --dataset demo --cache-dir {}/to --as other --min-free 0", "other: 9 copied"],
    "export": ["export --cache-dir C --dataset demo --to npz --out {}/out", "8 videos"],
    "get": ["get v/1 --cache-dir C --dataset demo --out {}/v.npz", "v/1"],
    "info": ["info --cache-dir C --dataset demo", "demo"],
    "ls": ["ls --cache-dir C --dataset demo", "v/6"],
    "merge": ["merge C --dataset demo --cache-dir {}/to --min-free 0", "9 copied"],
    "pull": ["pull C --cache-dir {}/to", "3 shards pulled"],
    "push": ["push C {}/to", "3 shards pushed"],
    "report": ["report --cache-dir C --out {}/report.html", "report.html"],
    "show": ["show v/1 --cache-dir C --dataset demo --out {}/v.png", "v.png"],
    "status": ["status --cache-dir C", ""],
}
ENDS = {
    "mv": ["mv C --dataset demo --cache-dir {}/to --min-free 0", "9 moved"],
    "rm": ["rm --cache-dir C --dataset demo --yes", "removed demo"],
}
REFUSED = {
    "check": ["check --repair --cache-dir C --dataset demo", OUT],
    "compact": ["compact --cache-dir C --dataset demo", OUT],
    "default": [f"default --cache-dir C --dataset demo {SET}", OUT],
    "import": ["import --from-npz {}/out --dataset demo --cache-dir C --min-free 0", OUT],
    "ingest": ["ingest --encoder toy --videos {}/clips --cache-dir C --dataset demo", "--shard"],
    "rm": ["rm --cache-dir C --dataset demo --video v/1 --yes", OUT],
    "seal": ["seal --cache-dir C --dataset demo", OUT],
}
# Of a checkpoint, of a benchmark or of videos, not of what a dataset is made of.
ELSEWHERE = {"compare", "lmms-eval", "plan", "shape", "vlmeval"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    for part in make_parts(folder):
        seal_shard(part, "demo", LocalPlace(folder / "cache"))
    return folder / "cache"


def run(line, made, folder):
    cache = folder / "cache"
    shutil.copytree(made, cache)
    words = [
        str(cache) if word == "C" else word.replace("{}", str(folder)) for word in line.split()
    ]
    done = CliRunner().invoke(main, words)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.output
    return cache, done


def test_each_command_is_tried():
    assert {*WORKS, *ENDS, *REFUSED, *ELSEWHERE} == {*main.commands}


@pytest.mark.parametrize("name", sorted(WORKS))
def test_what_reads_works(made, tmp_path, name):
    line, said = WORKS[name]
    cache, done = run(line, made, tmp_path)
    assert done.exit_code == 0, done.output
    assert said in done.output
    assert check_dataset(cache, "demo").problems == []


@pytest.mark.parametrize("name", sorted(ENDS))
def test_the_whole_dataset_goes(made, tmp_path, name):
    line, said = ENDS[name]
    cache, done = run(line, made, tmp_path)
    assert done.exit_code == 0, done.output
    assert said in done.output
    assert not (cache / "demo").exists()


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_would_change_a_shard_names_the_way_out(made, tmp_path, name):
    line, way = REFUSED[name]
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.mp4").write_bytes(b"no video")
    if name == "import":
        run(WORKS["export"][0], made, tmp_path)
        shutil.rmtree(tmp_path / "cache")
    cache, done = run(line, made, tmp_path)
    assert done.exit_code == 1, done.output
    assert way in done.output
    report = check_dataset(cache, "demo")
    assert (report.problems, report.videos) == ([], len(VIDEOS) + 2)
