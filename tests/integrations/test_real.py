"""VLMEvalKit itself, unedited, on tiny stand-ins of the seven benchmarks: some fifteen minutes on two cores.

VLMEVALKIT_ROOT names a checkout of it; the interpreter that runs the tests needs its requirements.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from opened import Opened

from featstore.store.maintenance.check import check_dataset
from featstore.store.reader import FeatureStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

sys.path.insert(0, str(Path(__file__).parent))
from real_benchmarks import about, lay_out, snapshot

ROOT = os.environ.get("VLMEVALKIT_ROOT", "")
REPOSITORY = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.skipif(not ROOT, reason="VLMEVALKIT_ROOT names no checkout of VLMEvalKit"),
    pytest.mark.timeout(1800),
    pytest.mark.slow,
]

AT_128 = {
    "Video-MME_128frame": "Video-MME",
    "Video_Holmes_128frame": "Video_Holmes",
    "TempCompass_128frame": "TempCompass",
    "MLVU_128frame": "MLVU",
    "VideoMMMU_128frame": "VideoMMMU",
    "MMBench_Video_128frame_nopack": "MMBench-Video",
    "LongVideoBench_128frame": "LongVideoBench",
}
# VLMEvalKit's own configs of the same benchmarks, for runs that need not be slow.
SMALL = {
    "Video-MME_8frame": "Video-MME",
    "Video_Holmes_32frame": "Video_Holmes",
    "TempCompass_8frame": "TempCompass",
    "MLVU_8frame": "MLVU",
    "VideoMMMU_8frame": "VideoMMMU",
    "MMBench_Video_8frame_nopack": "MMBench-Video",
    "LongVideoBench_8frame": "LongVideoBench",
}
BROKEN = ["Video-MME_8frame", "MLVU_8frame"]  # in which a video is broken
UNIQUE = sum(map(len, about.VIDEOS.values()))
QUESTIONS = {dataset: len(about.rows(dataset)) for dataset in about.VIDEOS}
MODEL = "LongVA-7B-Cached"


class Run(NamedTuple):
    """What came of a run: the statistics its ranks printed, summed, its answers by config, and the videos opened."""

    hits: int
    misses: int
    answers: dict[str, list[str]]
    opened: set[Path]


class Place(NamedTuple):
    folder: Path
    env: dict[str, str]

    def featstore(
        self, *arguments: str, ranks: int = 1, code: int = 0
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m"]
        if ranks > 1:
            command += ["torch.distributed.run", f"--nproc-per-node={ranks}", "--standalone", "-m"]
        done = subprocess.run(
            [*command, "featstore", *arguments],
            capture_output=True,
            text=True,
            env=self.env,
            cwd=self.folder,
        )
        assert done.returncode == code, f"{done.stdout[-4000:]}\n{done.stderr[-8000:]}"
        return done

    def vlmeval(
        self, configs: dict[str, str], work: str, *options: str, ranks: int = 1, model: str = MODEL
    ) -> Run:
        names = {path.parent for path in (self.folder / "hf").rglob("*.mp4")}
        opened = Opened(names)
        done = self.featstore(
            *("vlmeval", "--option", "max_new_tokens=8", *options, "--"),
            *("--model", model, "--mode", "infer", "--work-dir", work, "--data", *configs),
            ranks=ranks,
        )
        counted = {
            name: sum(map(int, re.findall(rf"Cache {name}: (\d+)", done.stderr)))
            for name in ("hits", "misses")
        }
        answers = {config: self.answers(work, model, config) for config in configs}
        seen = {path for path in opened.files() if path.suffix == ".mp4"}
        opened.close()
        return Run(counted["hits"], counted["misses"], answers, seen)

    def answers(self, work: str, model: str, config: str) -> list[str]:
        [file] = (self.folder / work / model).glob(f"*/{model}_{config}.json")
        return [row["prediction"] for row in json.loads(file.read_text())]

    def stored(self, cache: str) -> dict[str, set[str]]:
        """The videos of each dataset, none of them twice."""
        found = {}
        with FeatureStore(self.folder / cache) as store:
            for name in store:
                ids = [entry.video_id for entry in store[name].entries()]
                assert len(ids) == len(set(ids))
                assert check_dataset(self.folder / cache, name).problems == []
                found[name] = set(ids)
        return found


@pytest.fixture(scope="module")
def place(tmp_path_factory, sample_clips) -> Place:
    folder = tmp_path_factory.mktemp("vlmevalkit")
    lay_out(folder / "hf", sample_clips)
    for name in ("lmu", "site"):
        (folder / name).mkdir()
    # MLVU's class logs in at the Hub before it looks whether it has the benchmark; nothing else is changed.
    login = "import huggingface_hub\nhuggingface_hub.login = lambda *args, **options: None\n"
    (folder / "site" / "sitecustomize.py").write_text(login)
    _tool("make_tiny_checkpoint", str(folder / "LongVA"))
    _tool("make_tiny_checkpoint", str(folder / "Temporal"), "--language-seed", "7")
    path = [str(folder / "site"), str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_OFFLINE": "1",
        "LMUData": str(folder / "lmu"),
        "PRED_FORMAT": "json",
        "FEATSTORE_LONGVA_7B": str(folder / "LongVA"),
        "FEATSTORE_TEMPORAL_V1": str(folder / "Temporal"),
    }
    return Place(folder, env)


def _tool(name: str, *arguments: str) -> None:
    subprocess.run([sys.executable, REPOSITORY / "tools" / f"{name}.py", *arguments], check=True)


@pytest.fixture(scope="module")
def ingested(place) -> list[dict[str, Any]]:
    """All seven benchmarks ingested at 128 frames, into `ingested`."""
    model = ("--model-path", place.env["FEATSTORE_LONGVA_7B"], "--min-free", "0", "--json")
    done = place.featstore("ingest", "--cache-dir", "ingested", *model, "--datasets", *AT_128)
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def cold(place) -> Run:
    """A first run on one rank, into `one`."""
    return place.vlmeval(SMALL, "cold", "--cache-dir", "one")


@pytest.fixture(scope="module")
def cold_on_two(place) -> Run:
    """A first run on two ranks, into `two`."""
    return place.vlmeval(SMALL, "cold-2", "--cache-dir", "two", ranks=2)


def test_every_video_of_the_seven_benchmarks_is_ingested_once(place, ingested):
    assert [found["dataset"] for found in ingested] == list(AT_128.values())
    assert sum(found["stored"] for found in ingested) == UNIQUE
    assert place.stored("ingested") == about.VIDEOS


def test_after_an_ingest_128_frames_of_all_seven_are_asked_about_and_no_video_is_opened(
    place, ingested
):
    run = place.vlmeval(AT_128, "warm-128", "--cache-dir", "ingested", "--option", "on_miss=error")
    assert (run.hits, run.misses) == (sum(QUESTIONS.values()), 0)
    assert {config: len(found) for config, found in run.answers.items()} == {
        config: QUESTIONS[dataset] for config, dataset in AT_128.items()
    }
    assert run.opened == set()
    assert not list((place.folder / "lmu").rglob("*.jpg"))


def test_a_cold_run_misses_each_video_once(place, cold):
    assert cold.misses == UNIQUE
    assert cold.hits == sum(QUESTIONS.values()) - UNIQUE
    assert place.stored("one") == about.VIDEOS


def test_a_cold_run_opens_each_video(place, cold):
    """So that seeing none opened means something."""
    assert cold.opened == {
        snapshot(place.folder / "hf", dataset) / name
        for dataset, files in about.FILES.items()
        for name in files
    }


def test_a_warm_run_misses_nothing_opens_no_video_and_answers_the_same(place, cold):
    warm = place.vlmeval(SMALL, "warm", "--cache-dir", "one")
    assert (warm.hits, warm.misses) == (sum(QUESTIONS.values()), 0)
    assert warm.opened == set()
    assert warm.answers == cold.answers


def test_a_model_that_sees_alike_finds_the_features_of_the_first(place, cold):
    other = place.vlmeval(SMALL, "other", "--cache-dir", "one", model="LongVA-Temporal-v1-Cached")
    assert other.misses == 0
    assert other.answers != cold.answers
    assert place.stored("one") == about.VIDEOS


def test_two_ranks_make_one_entry_a_video(place, cold_on_two):
    assert cold_on_two.misses == UNIQUE
    assert cold_on_two.hits == sum(QUESTIONS.values()) - UNIQUE
    assert place.stored("two") == about.VIDEOS


def test_two_warm_ranks_miss_nothing_and_open_no_video(place, cold_on_two):
    warm = place.vlmeval(SMALL, "warm-2", "--cache-dir", "two", ranks=2)
    assert (warm.hits, warm.misses) == (sum(QUESTIONS.values()), 0)
    assert warm.opened == set()
    assert warm.answers == cold_on_two.answers


@pytest.fixture
def broken(place) -> Iterator[Callable[[], None]]:
    """One video of Video-MME missing, one of MLVU damaged, until what this gives is called."""
    missing = snapshot(place.folder / "hf", "Video-MME") / "video/N1cdUjctpG8.mp4"
    damaged = snapshot(place.folder / "hf", "MLVU") / "MLVU/video/2_needle/movie101_66.mp4"
    kept = {path: path.read_bytes() for path in (missing, damaged)}
    missing.unlink()
    damaged.write_bytes(bytes(300))

    def restore() -> None:
        for path, content in kept.items():
            path.write_bytes(content)

    yield restore
    restore()


@pytest.mark.parametrize(
    ("ranks", "kind", "configs"),
    [(1, "json", BROKEN), (1, "tsv", BROKEN), (2, "json", BROKEN), (2, "xlsx", [*SMALL])],
)
def test_a_missing_and_a_damaged_video_are_named_and_asked_again_once_they_are_back(
    place, broken, ranks, kind, configs
):
    place = place._replace(env={**place.env, "PRED_FORMAT": kind})
    work = f"broken-{ranks}-{kind}"
    arguments = (
        *("vlmeval", "--keep-going", "--option", "max_new_tokens=8", "--cache-dir", work, "--"),
        *("--model", MODEL, "--mode", "infer", "--reuse", "--work-dir", work, "--data", *configs),
    )
    done = place.featstore(*arguments, ranks=ranks, code=1)
    said = done.stderr[done.stderr.index("featstore: VLMEvalKit has not finished") :].splitlines()
    assert said[1:3] == [
        f"  {MODEL} x Video-MME_8frame: 1 of 4 questions have no answer, about N1cdUjctpG8",
        f"  {MODEL} x MLVU_8frame: 1 of 3 questions have no answer, about movie101_66.mp4",
    ]
    assert said[4].startswith("  MLVU/2_needle/movie101_66: ")
    assert said[5].startswith("  Video-MME/N1cdUjctpG8: ")
    broken()
    place.featstore(*arguments, ranks=ranks)
    place.featstore(*arguments, ranks=ranks)


def test_a_rank_that_cannot_read_a_video_costs_its_dataset_and_no_other(place, broken):
    done = place.featstore(
        *("vlmeval", "--option", "max_new_tokens=8", "--cache-dir", "stopped", "--"),
        *("--model", MODEL, "--mode", "infer", "--work-dir", "stopped", "--data", *SMALL),
        ranks=2,
        code=1,
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith(f"  {MODEL} x ")]
    assert [line.split(":")[0] for line in lines] == [
        f"  {MODEL} x Video-MME_8frame",
        f"  {MODEL} x MLVU_8frame",
    ]


def test_scoring_where_there_are_no_predictions_is_no_success(place):
    arguments = (
        "--model",
        MODEL,
        "--mode",
        "eval",
        "--work-dir",
        "nothing",
        "--data",
        "MLVU_8frame",
    )
    done = place.featstore("vlmeval", "--cache-dir", "one", "--", *arguments, code=1)
    assert f"{MODEL} x MLVU_8frame: 3 of 3 questions have no answer" in done.stderr


def test_without_the_cache_the_same_questions_are_answered_and_nothing_is_stored(place):
    configs = {"Video_Holmes_32frame": "Video_Holmes"}
    run = place.vlmeval(configs, "uncached", "--no-cache")
    assert len(run.answers["Video_Holmes_32frame"]) == QUESTIONS["Video_Holmes"]
    assert len(run.opened) == 1
    assert not (place.folder / "vision_cache").exists()
