"""Damage stores in every place and look what featstore does: the right bytes, or an error that says so.

Of small stores each byte is flipped, each length cut and each sector lost; of a large one, bytes are flipped at random.
Each time a process opens the store, reads and checks it, for half of the damage after putting one video more. Prints a
table; exits 1 on wrong features, a wrong row, an exception that is not featstore's, a crash or a hang.
"""

from __future__ import annotations

import gc
import os
import random
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click
from drills.damage.forked_probes import UNSEEN, ForkedProbes
from drills.damage.probe import PROMISED, Verdict, probe
from drills.damage.stores import DATASET, Store, make_large, make_storages, make_tree
from drills.shared.figures import report
from drills.shared.processes import say

if TYPE_CHECKING:
    from collections.abc import Sequence

SECTOR, PAGE = 512, 4096
# Probes; each environment that a cycle keeps holds 4 TiB of 128 TiB of address space.
GARBAGE_EVERY = 8
RAM = "/dev/shm"  # nosec B108 # mkdtemp makes a folder of our own in it


class Damage(NamedTuple):
    """Other bytes from `place` on, or a file cut short there where `patch` is None; then perhaps written to."""

    place: int
    patch: bytes | None
    write: bool

    def apply(self, data: bytes) -> bytes:
        """Return the damaged file."""
        if self.patch is None:
            return data[: self.place]
        return data[: self.place] + self.patch + data[self.place + len(self.patch) :]

    def __str__(self) -> str:
        """Say what was done to the file."""
        after = ", then written to" if self.write else ""
        if self.patch is None:
            return f"cut to {self.place} bytes{after}"
        start = f"{self.patch[:4].hex()}{'...' if len(self.patch) > 4 else ''}"
        return f"{len(self.patch)} bytes at {self.place} become {start}{after}"


class Outcome(NamedTuple):
    """One line of the table, and what is to be looked into."""

    name: str
    counts: Counter[Verdict]
    findings: list[str]


@click.command()
@click.option("--all-bits", is_flag=True, help="Flip each bit alone too, not one of each byte.")
@click.option("--sample", type=int, help="Probes a line, drawn at random; all without it.")
@click.option("--minutes", default=5.0, show_default=True, help="For the large store; 0 skips it.")
@click.option("--workers", default=2, show_default=True, help="Processes that probe at once.")
@click.option("--seed", default=0, show_default=True, help="Of features and random damage.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(
    all_bits: bool, sample: int | None, minutes: float, workers: int, seed: int, as_json: bool
) -> None:
    """Damage, look, and print what was seen."""
    begun = time.monotonic()
    rng = random.Random(seed)
    if os.path.isdir(RAM):
        tempfile.tempdir = RAM
    outcomes = []
    for store in (make_storages(seed), make_tree(seed)):
        for kind, damages in (
            ("flips", flips(store.data, all_bits)),
            ("cuts", cuts(store.data)),
            ("sectors", sectors(store.data, rng)),
        ):
            chosen = damages if sample is None else rng.sample(damages, min(sample, len(damages)))
            outcomes.append(run(f"{store.name}, {kind}", store, chosen, workers))
    if minutes:
        store = make_large(seed)
        places = [rng.randrange(len(store.data)) for _ in range(100_000)]
        damages = [_flip(store.data, at, 1 << at % 8, write=bool(at % 2)) for at in places]
        outcomes.append(run(f"{store.name}, flips", store, damages, workers, minutes))
    report(
        Path(tempfile.gettempdir()),
        ("damage", "probes", *(verdict.name.lower().replace("_", " ") for verdict in Verdict)),
        [
            (done.name, done.counts.total(), *(done.counts[verdict] for verdict in Verdict))
            for done in outcomes
        ],
        facts={"seed": seed, "seconds": round(time.monotonic() - begun)},
        problems=[f"{done.name}: {found}" for done in outcomes for found in done.findings],
        as_json=as_json,
    )


def flips(data: bytes, all_bits: bool) -> list[Damage]:
    """Return each byte wholly flipped and read, and one bit of each flipped and written to."""
    damages = [_flip(data, at, 0xFF, write=False) for at in range(len(data))]
    damages += [_flip(data, at, 1 << at % 8, write=True) for at in range(len(data))]
    if all_bits:
        masks = [1 << bit for bit in range(8)]
        damages += [_flip(data, at, bit, write=False) for at in range(len(data)) for bit in masks]
    return damages


def cuts(data: bytes) -> list[Damage]:
    """Return each length that a copy of the file may have been cut to, every other one written to."""
    return [Damage(length, None, bool(length % 2)) for length in range(len(data))]


def sectors(data: bytes, rng: random.Random) -> list[Damage]:
    """Return each sector as a disk may lose it: zeros, noise, another sector; and each page as any other page."""
    damages = []
    for at in range(0, len(data), SECTOR):
        other = rng.randrange(0, len(data), SECTOR)
        for patch in (bytes(SECTOR), rng.randbytes(SECTOR), data[other : other + SECTOR]):
            damages += [Damage(at, patch, write) for write in (False, True)]
    pages = range(0, len(data), PAGE)
    damages += [
        Damage(at, data[other : other + PAGE], write)
        for at in pages
        for other in pages
        for write in (False, True)
        if at != other
    ]
    return damages


def _flip(data: bytes, at: int, mask: int, *, write: bool) -> Damage:
    return Damage(at, bytes([data[at] ^ mask]), write)


def run(
    name: str, store: Store, damages: Sequence[Damage], workers: int, minutes: float | None = None
) -> Outcome:
    """Probe each damage in forked processes, for so many minutes at most."""
    end = time.monotonic() + 60 * (minutes or 1e6)
    with tempfile.TemporaryDirectory(prefix="damage-") as place:
        folders = [Path(place, str(worker)) for worker in range(workers)]
        for folder in folders:
            (folder / DATASET).mkdir(parents=True)
        log = Path(place, "log")
        log.touch()

        def look(worker: int, index: int) -> int:
            def note(text: str) -> None:
                with log.open("a") as file:
                    file.write(f"{damages[index]}: {text}\n")

            if index // workers % GARBAGE_EVERY == 0:
                gc.collect()
            damage = damages[index]
            damaged = damage.apply(store.data)
            return probe(folders[worker], store, damaged, write=damage.write, say=note)

        gc.collect()
        gc.freeze()
        probes = ForkedProbes(
            len(damages), look, workers=workers, until=lambda: time.monotonic() > end
        )
        probes.run()
        done = _outcome(name, damages, probes, log.read_text())
        say(f"{name}: {done.counts.total()} probes, {len(done.findings)} problems")
        return done


def _outcome(
    name: str, damages: Sequence[Damage], probes: ForkedProbes, unexpected: str
) -> Outcome:
    counts: Counter[Verdict] = Counter()
    findings = []
    for damage, seen in zip(damages, probes.seen[:], strict=False):
        if seen != UNSEEN:
            counts[Verdict(seen)] += 1
            if seen not in PROMISED:
                findings.append(f"{damage}: {Verdict(seen).name}")
    for death in probes.deaths:
        verdict = Verdict.HUNG if death.hung else Verdict.CRASHED
        counts[verdict] += 1
        findings.append(f"{damages[death.index]}: {verdict.name}, signal {death.signal}")
    return Outcome(name, counts, [*unexpected.splitlines()[-400:], *findings])


if __name__ == "__main__":
    main()
