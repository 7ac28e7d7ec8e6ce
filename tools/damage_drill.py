"""Damage stores in every place and look what featstore does: the right bytes, or an error that says so.

Each byte of small stores is flipped, each length is cut, and bytes of a large store are flipped at random; each time a
process opens the store, reads and checks it, half of the time after putting one video more. Prints a table; exits 1 on
wrong features, a wrong row, an exception that is not featstore's, a crash or a hang.
"""

from __future__ import annotations

import gc
import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click
from damage_probe import PROMISED, Verdict, probe
from damage_stores import DATASET, Store, make_large, make_storages, make_tree
from forked_probes import UNSEEN, ForkedProbes

if TYPE_CHECKING:
    from collections.abc import Sequence

GARBAGE_EVERY = (
    8  # probes; each environment that a cycle keeps holds 4 TiB of 128 TiB of address space
)
RAM = "/dev/shm"  # nosec B108 # mkdtemp makes a folder of our own in it


class Damage(NamedTuple):
    """A flipped byte, or the length that is left of the file where `mask` is 0."""

    place: int
    mask: int
    write: bool

    def apply(self, data: bytes) -> bytes:
        """Return the damaged file."""
        if not self.mask:
            return data[: self.place]
        damaged = bytearray(data)
        damaged[self.place] ^= self.mask
        return bytes(damaged)


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
def main(all_bits: bool, sample: int | None, minutes: float, workers: int, seed: int) -> None:
    """Run the drill."""
    rng = random.Random(seed)  # nosec B311 # chance for a drill
    outcomes: list[Outcome] = []
    for store in (make_storages(seed), make_tree(seed)):
        for kind, damages in (
            ("flips", flips(len(store.data), all_bits)),
            ("cuts", cuts(len(store.data))),
        ):
            chosen = damages if sample is None else rng.sample(damages, min(sample, len(damages)))
            outcomes.append(run(f"{store.name}, {kind}", store, chosen, workers))
            show(outcomes[-1])
    if minutes:
        store = make_large(seed)
        places = [rng.randrange(len(store.data)) for _ in range(100_000)]
        damages = [Damage(at, 1 << at % 8, bool(at % 2)) for at in places]
        outcomes.append(run(f"{store.name}, flips", store, damages, workers, minutes))
        show(outcomes[-1])
    if any(outcome.findings for outcome in outcomes):
        sys.exit(1)


def flips(size: int, all_bits: bool) -> list[Damage]:
    """Return each byte wholly flipped and read, and one bit of each flipped and written to."""
    damages = [Damage(at, 0xFF, False) for at in range(size)]
    damages += [Damage(at, 1 << at % 8, True) for at in range(size)]
    if all_bits:
        damages += [Damage(at, 1 << bit, False) for at in range(size) for bit in range(8)]
    return damages


def cuts(size: int) -> list[Damage]:
    """Return each length that a copy of the file may have been cut to, every other one written to."""
    return [Damage(length, 0, bool(length % 2)) for length in range(size)]


def run(
    name: str, store: Store, damages: Sequence[Damage], workers: int, minutes: float | None = None
) -> Outcome:
    """Probe each damage in forked processes, for so many minutes at most."""
    end = time.monotonic() + 60 * (minutes or 1e6)
    ram = RAM if os.path.isdir(RAM) else None
    with tempfile.TemporaryDirectory(prefix="damage-", dir=ram) as place:
        folders = [Path(place, str(worker)) for worker in range(workers)]
        for folder in folders:
            (folder / DATASET).mkdir(parents=True)
        log = Path(place, "log")
        log.touch()

        def look(worker: int, index: int) -> int:
            def say(text: str) -> None:
                with log.open("a") as file:
                    file.write(f"{describe(damages[index])}: {text}\n")

            if index // workers % GARBAGE_EVERY == 0:
                gc.collect()
            damage = damages[index]
            damaged = damage.apply(store.data)
            return probe(folders[worker], store, damaged, write=damage.write, say=say)

        gc.collect()
        gc.freeze()
        probes = ForkedProbes(
            len(damages), look, workers=workers, until=lambda: time.monotonic() > end
        )
        probes.run()
        return _outcome(name, damages, probes, log.read_text())


def describe(damage: Damage) -> str:
    """Return what was done to the file, in words."""
    after = ", then written to" if damage.write else ""
    if not damage.mask:
        return f"cut to {damage.place} bytes{after}"
    return f"byte {damage.place} ^ {damage.mask:#04x}{after}"


def show(outcome: Outcome) -> None:
    """Print one line of the table."""
    counts = outcome.counts
    cells = "  ".join(f"{verdict.name.lower()} {counts[verdict]}" for verdict in Verdict)
    click.echo(f"{outcome.name:16} {counts.total():7} probes  {cells}")
    for finding in outcome.findings[:40]:
        click.echo(f"    {finding}", err=True)


def _outcome(
    name: str, damages: Sequence[Damage], probes: ForkedProbes, unexpected: str
) -> Outcome:
    counts: Counter[Verdict] = Counter()
    findings = []
    for damage, seen in zip(damages, probes.seen[:], strict=False):
        if seen != UNSEEN:
            counts[Verdict(seen)] += 1
            if seen not in PROMISED:
                findings.append(f"{describe(damage)}: {Verdict(seen).name}")
    for death in probes.deaths:
        verdict = Verdict.HUNG if death.hung else Verdict.CRASHED
        counts[verdict] += 1
        findings.append(f"{describe(damages[death.index])}: {verdict.name}, signal {death.signal}")
    return Outcome(name, counts, [*unexpected.splitlines()[-400:], *findings])


if __name__ == "__main__":
    main()
