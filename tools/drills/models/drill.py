"""One model, asked by eight threads and four forked children at once: no answer and no stored feature may be another's.

Each way of having a model (with a cache, without, prefixes kept or evicted) is asked twice: cold, when nothing is
stored yet, and warm. Children are forked at random moments while the threads ask, and ask from two threads themselves.
Answers and stored features are compared with those of a model that was asked first, one question after the other.
Exits with 1 on anything wrong, or where somebody does not end.
"""

from __future__ import annotations

import random
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import torch
from drills.shared.clips import make_clips
from drills.shared.figures import report
from drills.shared.processes import Asked, ChildDied, begin, say
from make_tiny_checkpoint import make_tiny_checkpoint

from featstore.models import CachedLongVA
from featstore.pipeline.make_record import pack_scales
from featstore.sampling import Sampling
from featstore.store.maintenance.check import check_dataset
from featstore.store.reader import FeatureStore

if TYPE_CHECKING:
    from collections.abc import Callable

DATASET = "demo"
VIDEOS = 8
PROMPTS = ("What is this?", "Which color is the first block?", "Describe the clip.")
LONGEST_WAVE = 600.0  # seconds; who has not ended by then hangs
IN_A_CHILD = 2  # threads
# name, whether there is a cache, options of the model
WAYS: tuple[tuple[str, bool, dict[str, Any]], ...] = (
    ("no cache", False, {}),
    ("cache, no prefix", True, {"prefix_cache": 0}),
    ("cache, prefixes evicted", True, {"prefix_cache": 1}),
    ("cache, prefixes kept", True, {"prefix_cache": VIDEOS}),
    ("cache, never stored", True, {"on_miss": "encode-only"}),
)
Question = tuple[str, str]  # prompt, video
Answers = dict[Question, list[int]]


@dataclass
class Tally:
    """What was asked of one way of having a model, and what was wrong."""

    threads: int = 0
    children: int = 0
    hung: int = 0
    stored: int = 0
    wrong: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Bench:
    """What all models work on: a checkpoint, clips, and what is right."""

    checkpoint: Path
    clips: Path
    answers: dict[bool, Answers]  # by whether the features went through a store
    features: dict[str, tuple[bytes, bytes]]

    def ask(self, model: CachedLongVA, question: Question) -> list[int]:
        """Return the answer of `model`."""
        prompt, video = question
        path = self.clips / f"{video}.mp4"
        return model.generate_ids(prompt, video, path=path, max_new_tokens=4)

    def wrong(self, model: CachedLongVA, stored: bool, count: int, seed: int) -> list[str]:
        """Ask `count` random questions, and return what was wrong."""
        rng, right, found = random.Random(seed), self.answers[stored], []
        for question in rng.choices(list(right), k=count):
            try:
                answer = self.ask(model, question)
            except Exception as exc:  # whatever it is: nothing stands in the way of an answer
                found.append(f"{question}: {type(exc).__name__}: {exc}")
                continue
            if answer != right[question]:
                found.append(f"{question}: {answer}, not {right[question]}")
        return found


@click.command()
@click.option("--questions", default=600, show_default=True, help="Questions in all, at least.")
@click.option("--threads", default=8, show_default=True, help="Threads that ask one model.")
@click.option("--children", default=4, show_default=True, help="Forked children that ask it too.")
@click.option("--seed", default=1, show_default=True, help="Of questions and of forks' moments.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where to work; a temporary one.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(
    questions: int, threads: int, children: int, seed: int, folder: Path | None, as_json: bool
) -> None:
    """Ask, compare; print how many answers were right."""
    torch.set_num_threads(1)  # the children have no more, and bits hang on it
    begun, rng = time.monotonic(), random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="models-drill-", dir=folder) as name:
        bench = prepare(Path(name))
        tallies = {}
        each = -(-questions // (len(WAYS) * 2 * (threads + children)))
        for way, cached, options in WAYS:
            cache = Path(name) / way.replace(" ", "-") if cached else None
            tallies[way] = tally = Tally()
            with open_model(bench.checkpoint, cache, **options) as model:
                for _ in ("cold", "warm"):
                    wave(bench, model, tally, threads, children, each, rng)
            look(bench, cache, tally)
            say(f"{way}: {tally.threads + tally.children} asked, {len(tally.wrong)} wrong")
        report(
            Path(name),
            ("model", "asked by threads", "by children", "stored", "wrong", "hung"),
            [
                (w, t.threads, t.children, t.stored, len(t.wrong), t.hung)
                for w, t in tallies.items()
            ],
            facts={
                "seed": seed,
                "questions": sum(t.threads + t.children for t in tallies.values()),
                "seconds": round(time.monotonic() - begun),
            },
            problems=[f"{way}: {said}" for way, t in tallies.items() for said in t.wrong],
            as_json=as_json,
        )


def prepare(place: Path) -> Bench:
    """Return the bench, having asked each question once of models that nobody else asks."""
    checkpoint = make_tiny_checkpoint(place / "checkpoint")
    make_clips(place / "clips", VIDEOS, broken=False)
    videos = sorted(path.stem for path in (place / "clips").iterdir())
    bench = Bench(checkpoint, place / "clips", {}, {})
    for stored, cache in ((False, None), (True, place / "right")):
        with open_model(checkpoint, cache) as model:
            bench.answers[stored] = {
                question: bench.ask(model, question)
                for video in videos
                for question in ((prompt, video) for prompt in PROMPTS)
            }
    bench.features.update(features_in(place / "right"))
    return bench


def open_model(checkpoint: Path, cache: Path | None, **options: Any) -> CachedLongVA:
    """Return a model on the CPU, of four frames a video."""
    return CachedLongVA(
        checkpoint, cache, dataset=DATASET, sampling=Sampling(4), device="cpu", **options
    )


def features_in(cache: Path) -> dict[str, tuple[bytes, bytes]]:
    """Return each stored video's values and scales."""
    with FeatureStore(cache) as store:
        stored = store[DATASET].items()
        return {video: (found.data.tobytes(), pack_scales(found.scales)) for video, found in stored}


def wave(
    bench: Bench,
    model: CachedLongVA,
    tally: Tally,
    threads: int,
    children: int,
    each: int,
    rng: random.Random,
) -> None:
    """Let threads ask `each` questions apiece, and fork children that do so too while they are at it."""
    stored = model._source._stores
    seeds = [rng.randrange(1 << 30) for _ in range(threads + children * IN_A_CHILD)]

    def ask_in_threads(seeds: list[int], count: int) -> list[str]:
        wrong: list[str] = []
        at_work = start(
            [
                lambda seed=seed: wrong.extend(bench.wrong(model, stored, count, seed))
                for seed in seeds
            ]
        )
        hung = join(at_work)
        return wrong + ["a thread hung"] * hung

    wrong: list[str] = []
    mine = start([lambda: wrong.extend(ask_in_threads(seeds[:threads], each))])
    asked: list[Asked] = []
    for number in range(children):
        time.sleep(rng.random() / 2)
        first = threads + number * IN_A_CHILD
        count = -(-each // IN_A_CHILD)
        asked.append(begin(ask_in_threads, seeds[first : first + IN_A_CHILD], count))
    for child in asked:
        try:
            wrong += child.answer(LONGEST_WAVE)
        except ChildDied as exc:
            wrong.append(f"a child hung or died: {exc}")
    join(mine)
    tally.threads += threads * each
    tally.children += children * IN_A_CHILD * -(-each // IN_A_CHILD)
    tally.hung += sum(" hung" in said for said in wrong)
    tally.wrong += wrong


def start(calls: list[Callable[[], None]]) -> list[threading.Thread]:
    """Start a thread for each call."""
    at_work = [threading.Thread(target=call, daemon=True) for call in calls]
    for thread in at_work:
        thread.start()
    return at_work


def join(at_work: list[threading.Thread]) -> int:
    """Wait for threads, and return how many do not end."""
    deadline = time.monotonic() + LONGEST_WAVE
    for thread in at_work:
        thread.join(max(0.0, deadline - time.monotonic()))
    return sum(thread.is_alive() for thread in at_work)


def look(bench: Bench, cache: Path | None, tally: Tally) -> None:
    """Compare what is stored with what is right, bit for bit."""
    if cache is None or not cache.exists() or not list(cache.iterdir()):
        return
    found = features_in(cache)
    tally.stored = len(found)
    tally.wrong += [
        f"stored features of {video} are others"
        for video, features in found.items()
        if features != bench.features[video]
    ]
    tally.wrong += check_dataset(cache, DATASET).problems


if __name__ == "__main__":
    main()
