"""lmms-eval itself, unedited, on tasks of its own over small clips.

LMMS_EVAL_PYTHON names the Python of an environment that has it and featstore: tools/setup_lmms_eval.sh makes one.
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
from make_sample_clips import make_sample_clips
from make_tiny_checkpoint import make_tiny_checkpoint
from make_tiny_video_model import FAMILIES, make_tiny_video_model

import featstore

if TYPE_CHECKING:
    from collections.abc import Iterator

sys.path.insert(0, str(Path(__file__).parent))
from lmms_tasks import ASKED, DATASETS, QUESTIONS, TASKS, VIDEOS, lay_out

PYTHON = os.environ.get("LMMS_EVAL_PYTHON", "")
pytestmark = [
    pytest.mark.skipif(
        not PYTHON, reason="LMMS_EVAL_PYTHON names no Python that has lmms-eval and featstore"
    ),
    pytest.mark.timeout(900),
    pytest.mark.slow,
]
NFRAME = 8


class Place(NamedTuple):
    folder: Path
    env: dict[str, str]
    forks: subprocess.Popen[str]

    def run(self, *words: str, code: int = 0) -> str:
        """Run a module as python -m does, and return what it wrote on stderr."""
        out, err = self.folder / "out.txt", self.folder / "err.txt"
        if (
            words[0] == "torch.distributed.run"
        ):  # its workers start with a fresh interpreter in any case
            with out.open("w") as out_file, err.open("w") as err_file:
                files = {"stdout": out_file, "stderr": err_file}
                command = [PYTHON, "-m", *words]
                found = subprocess.run(command, env=self.env, cwd=self.folder, **files).returncode
        else:
            assert self.forks.stdin is not None
            assert self.forks.stdout is not None
            self.forks.stdin.write(json.dumps([words, str(out), str(err)]) + "\n")
            self.forks.stdin.flush()
            found = int(self.forks.stdout.readline())
        assert found == code, f"{out.read_text()[-4000:]}\n{err.read_text()[-8000:]}"
        return err.read_text()

    def evaluate(
        self,
        work: str,
        *options: str,
        program: tuple[str, ...] = ("lmms_eval",),
        arguments: str = "",
        tasks: tuple[str, ...] = TASKS,
        model: str = "longva_cached",
        checkpoint: str = "checkpoint",
        code: int = 0,
    ) -> str:
        """Run an evaluation and return what it wrote on stderr."""
        told = f"pretrained={checkpoint},cache_dir=store,max_frames_num={NFRAME}{arguments}"
        return self.run(
            *program,
            *("--model", model, "--model_args", told, "--tasks", ",".join(tasks)),
            *("--output_path", work, "--log_samples", "--predict_only"),
            *("--gen_kwargs", "max_new_tokens=4", *options),
            code=code,
        )

    def samples(self, work: str, task: str) -> list[dict[str, Any]]:
        [file] = (self.folder / work).rglob(f"*_samples_{task}.jsonl")
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        return sorted(rows, key=lambda row: row["doc_id"])

    def answers(self, work: str) -> dict[str, list[str]]:
        return {task: [row["filtered_resps"] for row in self.samples(work, task)] for task in TASKS}


def counted(errors: str) -> tuple[int, int]:
    """Return the hits and misses that all processes printed."""
    hits, misses = (
        sum(map(int, re.findall(rf"Cache {name}: (\d+)", errors))) for name in ("hits", "misses")
    )
    return hits, misses


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("lmms")
    make_tiny_checkpoint(folder / "checkpoint")
    make_sample_clips(folder / "clips")
    home = lay_out(folder, sorted((folder / "clips").glob("*.mp4")))
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env |= {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}
    env |= {"HF_DATASETS_CACHE": str(folder / "tables"), "CUDA_VISIBLE_DEVICES": ""}
    env |= {"OMP_NUM_THREADS": "1"}
    with (folder / "forks.txt").open("w") as errors:
        forks = subprocess.Popen(
            [PYTHON, Path(__file__).parent / "lmms_forks.py"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=env, cwd=folder,
        )  # fmt: skip
    with forks:
        place = Place(folder, env, forks)
        place.run(
            *("featstore", "ingest", "--lmms-tasks", *TASKS, "--model-path", "checkpoint"),
            *("--cache-dir", "store", "--nframe", str(NFRAME)),
        )
        yield place
        assert forks.stdin is not None
        forks.stdin.close()


@pytest.fixture(scope="module")
def stored(place: Place) -> dict[str, list[str]]:
    """The answers from the store, which was filled from the task lists."""
    errors = place.evaluate("stored", arguments=",on_miss=error")
    assert counted(errors) == (sum(QUESTIONS.values()), 0)
    return place.answers("stored")


def test_an_ingest_of_tasks_fills_the_datasets_and_ids_of_vlmevalkit(place):
    store = featstore.open(place.folder / "store")
    assert {task: sorted(store[DATASETS[task]]) for task in TASKS} == {
        task: sorted(VIDEOS[task].values()) for task in TASKS
    }


def test_answers_from_the_store_are_those_of_the_model_asked_the_same_prompt(place, stored):
    """The context that lmms-eval hands to its own `longva`, which also puts the video before it."""
    from featstore.models import CachedLongVA

    with CachedLongVA(
        place.folder / "checkpoint", place.folder / "store", sampling=featstore.Sampling(NFRAME)
    ) as model:
        for task in TASKS:
            rows = zip(place.samples("stored", task), ASKED[task], stored[task], strict=True)
            for row, video, answer in rows:
                expected = model.generate(
                    row["input"], video, dataset=DATASETS[task], max_new_tokens=4
                )
                assert answer == expected, (task, row["doc_id"])


def test_without_the_store_the_same_code_answers_from_the_files(place, stored):
    place.evaluate("uncached", arguments=",enable_cache=False", tasks=("mlvu_dev",))
    rows = place.samples("uncached", "mlvu_dev")
    assert [row["filtered_resps"] for row in rows] == stored["mlvu_dev"]


def test_the_response_cache_and_the_limit_are_lmms_eval_s_own(place, stored):
    for hits in (2, 0):
        work = f"limited{hits}"
        errors = place.evaluate(
            work, "--limit", "2", "--use_cache", "responses", tasks=("videomme",)
        )
        assert counted(errors) == (hits, 0)
        rows = place.samples(work, "videomme")
        assert [row["filtered_resps"] for row in rows] == stored["videomme"][:2]


def test_a_video_that_fails_ends_no_run_and_the_exit_code_tells(place, stored):
    broken = place.folder / "hf" / "videomme" / "data" / "b.mp4"
    kept = broken.read_bytes()
    broken.write_bytes(b"no video")
    try:
        errors = place.evaluate("broken", program=("featstore", "lmms-eval", "--"), code=1)
    finally:
        broken.write_bytes(kept)
    assert "lmms-eval left questions unanswered, about:\n  Video-MME/b\n" in errors
    answers = place.answers("broken")
    assert answers["videomme"][1::2] == ["", ""]
    assert answers["videomme"][::2] == stored["videomme"][::2]
    assert answers["mlvu_dev"] == stored["mlvu_dev"]


def test_an_error_ends_the_command_with_its_exit_code(place):
    errors = place.evaluate(
        "refused",
        program=("featstore", "lmms-eval", "--"),
        arguments=",conv_template=vicuna_v1",
        code=1,
    )
    assert "conv_template=vicuna_v1 cannot be followed" in errors.splitlines()[-2]


def test_two_processes_share_the_questions_and_the_store(place, stored):
    ranks = ("torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m")
    errors = place.evaluate("ranks", program=(*ranks, "lmms_eval"), arguments=",on_miss=error")
    hits, misses = counted(errors)
    assert misses == 0
    assert hits >= sum(QUESTIONS.values())  # one with fewer questions asks its last one again
    assert place.answers("ranks") == stored


def test_another_video_model_answers_from_one_ingest_and_damage_costs_one_video(place):
    """--model featstore_video; then a record that is damaged, whose video alone has no answer."""
    make_tiny_video_model(place.folder / "qwen", "qwen3_vl")
    place.run(
        *("featstore", "ingest", "--lmms-tasks", "videomme", "--model-path", "qwen"),
        *("--encoder", "qwen_vl", "--sampling", "qwen", "--nframe", str(NFRAME)),
        *("--encoder-option", "min_pixels=200704", "--cache-dir", "store"),
    )
    about = {"model": "featstore_video", "checkpoint": "qwen", "tasks": ("videomme",)}
    errors = place.evaluate("qwen_answers", arguments=",on_miss=error", **about)
    assert counted(errors) == (QUESTIONS["videomme"], 0)
    answers = [row["filtered_resps"] for row in place.samples("qwen_answers", "videomme")]
    assert all(any(given) for given in answers)
    damage(place.folder / "store" / "Video-MME", "b")
    launcher = ("featstore", "lmms-eval", "--")
    errors = place.evaluate(
        "damaged", program=launcher, arguments=",on_miss=error", code=1, **about
    )
    assert "lmms-eval left questions unanswered, about:\n  Video-MME/b\n" in errors
    left = [row["filtered_resps"] for row in place.samples("damaged", "videomme")]
    assert left[::2] == answers[::2]
    assert [any(given) for given in left[1::2]] == [False, False]


@pytest.mark.parametrize("family", FAMILIES)
def test_featstore_video_is_asked_and_answers_as_lmms_eval_s_own_class(place, family):
    """Uncached: the same token ids, grid, times and answers."""
    if subprocess.run([PYTHON, "-c", "import torchvision"], capture_output=True).returncode:
        pytest.skip("lmms-eval's own classes need torchvision")
    checkpoint = make_tiny_video_model(place.folder / f"peer_{family}", family)
    stated = json.loads((checkpoint / "tokenizer_config.json").read_text())
    (checkpoint / "chat_template.jinja").write_text(stated["chat_template"])
    done = subprocess.run(
        [PYTHON, Path(__file__).parent / "lmms_peers.py", "clips", family, checkpoint],
        capture_output=True, text=True, env=place.env, cwd=place.folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    for theirs, ours in zip(found["theirs"], found["ours"], strict=True):
        assert ours == theirs


def damage(dataset: Path, video: str) -> None:
    """Change bytes of a video's features of the newest set."""
    *_, newest = featstore.open(dataset.parent)[dataset.name].sets.values()
    kept = bytes(memoryview(newest[video].data).cast("B")[:64])
    file = dataset / "data.mdb"
    place = file.read_bytes().index(kept)
    with file.open("r+b") as there:
        there.seek(place)
        there.write(bytes(64))
