import json
import os
import re
import shlex
import shutil
from dataclasses import replace

import pytest
from click.testing import CliRunner
from toys import REPOSITORY

from featstore.cli import main
from featstore.encoders.toy import ToyEncoder
from featstore.errors import StoreError, StoreMismatch
from featstore.pipeline.cluster.shard import Share, ingest_share, work_folder
from featstore.pipeline.ingest import ingest
from featstore.pipeline.options import IngestOptions
from featstore.pipeline.write.heartbeat import (
    OLD_SECONDS,
    FailedVideo,
    ShareStatus,
    describe_run,
    pack_status,
    read_statuses,
)
from featstore.sampling import Sampling
from featstore.store.maintenance.seal_shard import seal_shard
from featstore.store.paths import stored_bytes
from featstore.store.reader import FeatureStore
from featstore.store.shards.manifest_list import read_list
from featstore.store.shards.places import LocalPlace

OPTIONS = IngestOptions(workers=1, min_free=0)


def run(clips, cache, **options):
    work = options.pop("options", OPTIONS)
    arguments = {"encoder": ToyEncoder(), "sampling": Sampling(4), "options": work, **options}
    return ingest_share(clips, cache, "demo", Share(0, 1), **arguments)


def shards(cache):
    return read_list(LocalPlace(cache), "demo").shards


@pytest.mark.parametrize(
    ("environ", "share"),
    [
        (
            {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_STEP": "2"},
            3,
        ),
        ({"RANK": "2", "WORLD_SIZE": "4"}, 2),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "4"}, 1),
    ],
)
def test_a_scheduler_says_which_share_is_meant(environ, share):
    environ = {"SLURM_ARRAY_TASK_COUNT": "4", **environ} if len(environ) == 3 else environ
    assert Share.parse("auto", environ) == Share(share, 4)


@pytest.mark.parametrize("text", ["4/4", "-1/4", "1", "auto", "1/0", "a/b"])
def test_a_share_that_there_is_not_is_refused(text):
    with pytest.raises(ValueError, match=r"share"):
        Share.parse(text, {})


def test_each_video_is_in_one_share_whatever_else_is_listed():
    videos = [f"v/{number}" for number in range(1000)]
    taken = [{video for video in videos if Share(at, 8).takes(video)} for at in range(8)]
    assert sum(map(len, taken)) == len(set().union(*taken)) == 1000
    assert min(map(len, taken)) > 80
    assert Share(3, 8).takes("v/1") == ("v/1" in taken[3])


@pytest.mark.slow
def test_what_is_sealed_is_left_out_and_a_new_video_makes_another_shard(clips, cache, tmp_path):
    held = shutil.move(clips / "blink.mp4", tmp_path / "blink.mp4")
    first = run(clips, cache, shard_dir=tmp_path / "scratch")
    assert (first.stored, len(shards(cache))) == (2, 1)
    assert not list((tmp_path / "scratch").iterdir())
    shutil.move(held, clips / "blink.mp4")
    (clips / "broken.mp4").write_bytes(b"no video")
    second = run(clips, cache, shard_dir=tmp_path / "scratch")
    assert (second.stored, second.skipped, len(second.failures)) == (1, 2, 1)
    third = run(clips, cache, shard_dir=tmp_path / "scratch")
    assert (third.planned, third.skipped, len(third.failed_before)) == (0, 3, 1)
    assert len(shards(cache)) == 2
    assert set(FeatureStore(cache)["demo"]) == {"blink", "bouncing_ball", "color_bars"}
    statuses, wrong = read_statuses(LocalPlace(cache), "demo")
    assert wrong == []
    assert [(s.state, s.videos, s.stored, s.failed, s.left) for s in statuses] == [
        ("done", 4, 3, 1, 0)
    ]


@pytest.mark.slow
def test_a_share_divides_itself_and_equals_one_ingest(clips, cache, tmp_path):
    done = run(clips, cache, shard_bytes=1)
    assert (done.stored, done.planned, done.beyond_limit) == (3, 3, 0)
    assert len(shards(cache)) == 3
    ingest(
        clips,
        tmp_path / "single",
        "demo",
        encoder=ToyEncoder(),
        sampling=Sampling(4),
        options=OPTIONS,
    )
    here, there = FeatureStore(cache)["demo"], FeatureStore(tmp_path / "single")["demo"]
    assert [e._replace(created=0.0) for e in here.entries()] == [
        e._replace(created=0.0) for e in there.entries()
    ]
    assert all(bytes(here[video].data) == bytes(there[video].data) for video in there)


@pytest.mark.slow
def test_what_a_killed_share_left_is_sealed_once(clips, cache, tmp_path):
    work = work_folder(cache, "demo", Share(0, 1), tmp_path / "scratch")
    ingest(clips, work, "demo", encoder=ToyEncoder(), sampling=Sampling(4), options=OPTIONS)
    left = run(clips, cache, shard_dir=tmp_path / "scratch")
    assert (left.stored, left.skipped, len(shards(cache))) == (0, 3, 1)
    ingest(clips, work, "demo", encoder=ToyEncoder(), sampling=Sampling(4), options=OPTIONS)
    shutil.rmtree(cache / "demo")
    seal_shard(work, "demo", LocalPlace(cache))  # and killed before it removed this
    run(clips, cache, shard_dir=tmp_path / "scratch")
    assert len(shards(cache)) == 1
    assert not work.exists()


@pytest.mark.slow
def test_folders_that_a_killed_share_was_about_to_remove_are_removed(clips, cache, tmp_path):
    """It had removed the file in them, and who came next took that for another share's work."""
    work = work_folder(cache, "demo", Share(0, 1), tmp_path / "scratch")
    for _ in range(2):
        run(clips, cache, shard_dir=tmp_path / "scratch")
        assert not work.parent.exists()
        work.mkdir(parents=True)


@pytest.mark.slow
def test_a_sealed_video_whose_file_changed_is_left_out_alone(clips, cache):
    run(clips, cache)
    shutil.copy(clips / "color_bars.mp4", clips / "blink.mp4")
    shutil.copy(clips / "color_bars.mp4", clips / "new.mp4")
    done = run(clips, cache)
    assert (done.stored, done.skipped, done.failures) == (1, 2, [])
    [left] = done.clashes
    assert left.video_id == "blink"
    assert "featstore merge" in left.reason
    assert len(FeatureStore(cache)["demo"]) == 4
    again = run(clips, cache)
    assert (again.planned, again.skipped, len(again.clashes)) == (0, 3, 1)
    assert len(shards(cache)) == 2


@pytest.mark.slow
def test_what_is_sealed_losslessly_is_counted_and_its_budget_stays(clips, cache):
    strict = replace(OPTIONS, max_error=1e-9)
    sealed = run(clips, cache, options=strict).lossless
    assert sealed
    shutil.copy(clips / "color_bars.mp4", clips / "new.mp4")
    done = run(clips, cache, options=replace(strict, dry_run=True))
    assert done.lossless_before == sealed
    with pytest.raises(StoreMismatch, match="another error budget"):
        run(clips, cache, options=replace(OPTIONS, max_error=0.5))
    with pytest.raises(StoreError, match="sealed shards"):
        ingest(clips, cache, "demo", encoder=ToyEncoder(), sampling=Sampling(4), options=OPTIONS)
    assert len(shards(cache)) == 1


def test_a_dataset_that_is_one_file_gets_no_shards(cache):
    (cache / "demo").mkdir(parents=True)
    (cache / "demo/data.mdb").write_bytes(b"")
    with pytest.raises(StoreError, match="without --shard"):
        run(cache, cache)
    shutil.rmtree(cache)


def test_what_cannot_be_written_is_said_before_the_first_video(clips, cache, tmp_path):
    cache.mkdir()
    (cache / "demo").write_bytes(b"")
    with pytest.raises(StoreError, match="cannot be made"):
        run(clips, cache, shard_dir=tmp_path / "scratch")
    assert not (tmp_path / "scratch").exists()
    shutil.rmtree(cache)


def test_a_share_is_not_written_on_a_network_file_system(cache, monkeypatch):
    monkeypatch.setattr("featstore.pipeline.cluster.shard.unreliable_kind", lambda path: "lustre")
    with pytest.raises(StoreError, match="--shard-dir"):
        work_folder(cache, "demo", Share(0, 1))


def test_a_run_is_told_with_its_rate_its_reasons_and_who_is_silent(tmp_path):
    place = LocalPlace(tmp_path)
    failed = [FailedVideo("b", "/v/b.mp4", "/v/b.mp4: no frame")]
    running = ShareStatus("0-of-2", "running", 100, 20, 18, 1, 5, 0.0, 10.0, failures=failed)
    silent = ShareStatus("1-of-2", "running", 50, 10, 10, 0, 5, 0.0, 10.0 - OLD_SECONDS)
    before = replace(running, share="0-of-3", time=5.0)  # another run, of the same videos
    for status in (before, running, silent):
        place.put(f"demo/shards/status/{status.share}.json", pack_status(status))
    place.put("demo/shards/status/2-of-2.json", json.dumps({"share": 5}).encode())
    place.put("demo/shards/status/3-of-4.json", pack_status(replace(running, new=10**400)))
    statuses, wrong = read_statuses(place, "demo")
    assert statuses == [running, silent, before]
    assert len(wrong) == 2
    run = describe_run(statuses, 11.0)
    assert (run["stored"], run["failed"], run["old"]) == (30, 1, ["1-of-2"])
    assert run["reasons"] == {"no frame": 1}
    assert run["seconds_left"] == pytest.approx(running.left / running.rate)
    assert stored_bytes(tmp_path) == 0
    assert os.listdir(tmp_path) == ["demo"]


def test_what_one_file_cannot_hold_is_refused_without_shards(clips, cache, monkeypatch):
    monkeypatch.setattr("featstore.pipeline.ingest.MAP_BYTES", 1000)
    with pytest.raises(StoreError, match="--shard I/N"):
        ingest(clips, cache, "demo", encoder=ToyEncoder(), sampling=Sampling(4), options=OPTIONS)
    shutil.rmtree(cache)


@pytest.mark.slow
def test_the_commands_on_the_page_about_clusters_run(clips, tmp_path, monkeypatch):
    """Those for shards, as written; what failed is fed back once its file is mended."""
    page = (REPOSITORY / "docs" / "cluster.md").read_text(encoding="utf-8")
    block = page.partition("## Shards\n\n```bash\n")[2].partition("```")[0].replace("\\\n", " ")
    ingests, *others = [line.strip() for line in block.splitlines() if "featstore" in line]
    again = re.search(
        r"`(featstore ingest --shard 0/4 --manifest again\.jsonl [^`]*) \.\.\.`", page
    )
    (clips / "mended.mp4").write_text("no video")
    monkeypatch.chdir(tmp_path)

    def run_line(line):
        done = CliRunner().invoke(main, shlex.split(line)[1:])
        return done.exit_code, done.stdout

    alone = ingests.removesuffix(" &")
    codes = [run_line(alone.replace("$i", str(i)))[0] for i in range(4)]
    assert sorted(codes) == [0, 0, 0, 3]
    code, told = run_line(others[0] + " --failed again.jsonl")
    assert (code, "3 of 4 videos stored, 1 failed" in told) == (0, True)
    shutil.copy(clips / "blink.mp4", clips / "mended.mp4")
    rest = " --encoder toy --nframe 4 --cache-dir cache --dataset demo"
    share = f"{codes.index(3)}/4"
    assert run_line(again[1].replace("0/4", share) + rest)[0] == 0
    assert [run_line(line)[0] for line in others] == [0, 0, 0]
    assert len(FeatureStore("cache")["demo"]) == len(FeatureStore("merged")["demo"]) == 4
