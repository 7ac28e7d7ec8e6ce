"""Compare what PyAV and decord make of video files: whole frames, byte for byte, in several samplings.

`--exact` compares the frames that a player shows with decord's instead: on which files is decord wrong?

Each decoder runs in a process of its own that is replaced when it hangs or dies.
"""

from __future__ import annotations

import json
import selectors
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import xxhash

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout's featstore

from featstore.decoding.frame_selection import Clip, FrameSelection, NotValidated
from featstore.errors import VideoError
from featstore.fields import to_plain
from featstore.preprocessing import ExactResize
from featstore.sampling import Sampling

if TYPE_CHECKING:
    from collections.abc import Callable

SAMPLINGS = (Sampling(1), Sampling(4), Sampling(16), Sampling(128), Sampling(32, "fps", 3.0))
TIMEOUT = 60.0  # seconds a file may take

SAME = "same"
LEFT = "left to decord"
ALONE = "PyAV alone"
SOUND = "PyAV alone, decord gives up on a damaged frame"
DIFFERENT = "DIFFERENT"


class WholeFrames(FrameSelection):
    """Keeps a digest of each frame, neither resized nor cropped."""

    def __init__(self, path: str, sampling: Sampling) -> None:
        """Keep nothing yet."""
        super().__init__(path, sampling, ExactResize(height=1, width=1), np.empty(0, np.uint8))
        self.digests: dict[int, str] = {}

    def put(self, index: int, frame: np.ndarray) -> None:
        """Keep its shape and digest."""
        self.digests[index] = f"{frame.shape} {xxhash.xxh3_128_hexdigest(frame.tobytes())}"


def read(decoder: str, path: str, sampling: Sampling) -> dict[str, Any]:
    """Return frames, rate and digests that `decoder` finds, or its reason for finding none."""
    from featstore.decoding import av_decoder, decord_decoder, exact_decoder

    frames = WholeFrames(path, sampling)
    readers: dict[str, Callable[[FrameSelection], Clip]] = {
        "av": av_decoder.AvReader(path).read,
        "exact": exact_decoder.ExactReader(path).read,
        "decord": partial(decord_decoder.read, path),
    }
    try:
        clip = readers[decoder](frames)
    except NotValidated as exc:
        return {"uncertain": str(exc), "doubt": exc.doubt}
    except VideoError as exc:
        return {"error": str(exc)}
    return {"total": clip.total_frames, "fps": clip.fps, "frames": list(frames.digests.items())}


class Reader:
    """A process that reads files through one decoder."""

    def __init__(self, decoder: str) -> None:
        """Start nothing yet."""
        self._decoder = decoder
        self._process: subprocess.Popen[str] | None = None

    def ask(self, path: Path, samplings: tuple[Sampling, ...]) -> list[dict[str, Any]]:
        """Return what `read` gives for each sampling; an error for all where the process hangs or dies."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, __file__, "--serve", self._decoder],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {"path": str(path), "samplings": [to_plain(s) for s in samplings]}
        print(json.dumps(request), file=self._process.stdin, flush=True)
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            line = self._process.stdout.readline() if selector.select(TIMEOUT) else ""
        if not line:
            self.close()
            return [{"error": "hangs or dies"}] * len(samplings)
        return json.loads(line)  # type: ignore[no-any-return]

    def close(self) -> None:
        """End the process; the next file starts another."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
        self._process = None


def serve(decoder: str) -> None:
    """Answer requests from stdin on stdout."""
    for line in sys.stdin:
        request = json.loads(line)
        samplings = [Sampling(**fields) for fields in request["samplings"]]
        print(json.dumps([read(decoder, request["path"], s) for s in samplings]), flush=True)


def verdict(av: dict[str, Any], decord: dict[str, Any]) -> str:
    """Return how two answers of `read` compare."""
    if "uncertain" in av:
        return LEFT
    if "error" in av or "error" in decord:
        both = "error" in av and "error" in decord
        sound = "error" not in av and "Thread worker" in decord["error"]
        no_decoder = "error" not in av and "no video stream" in decord["error"]
        return SAME if both else SOUND if sound else ALONE if no_decoder else DIFFERENT
    return SAME if av == decord else DIFFERENT


@click.command()
@click.argument("paths", nargs=-1, type=click.Path(exists=True, path_type=Path))
@click.option("--serve", "decoder", type=click.Choice(["av", "exact", "decord"]), hidden=True)
@click.option("--exact", is_flag=True, help="Compare the frames that a player shows with decord's.")
def main(paths: tuple[Path, ...], decoder: str | None, *, exact: bool) -> None:
    """Compare the decoders on files and folders; exit code 1 where any frame differs."""
    if decoder:
        serve(decoder)
        return
    files = [f for path in paths for f in (sorted(path.iterdir()) if path.is_dir() else [path])]
    counts: Counter[str] = Counter()
    readers = Reader("exact" if exact else "av"), Reader("decord")
    for file in files:
        answers = [reader.ask(file, SAMPLINGS) for reader in readers]
        found = [verdict(av, decord) for av, decord in zip(*answers, strict=True)]
        counts.update(found)
        why = {
            answer["doubt"] or answer["uncertain"] for answer in answers[0] if "uncertain" in answer
        }
        click.echo(
            f"{file.name}: {', '.join(dict.fromkeys(found))} {'; '.join(sorted(why))}".rstrip()
        )
    for reader in readers:
        reader.close()
    click.echo(", ".join(f"{count} {name}" for name, count in counts.most_common()))
    sys.exit(1 if counts[DIFFERENT] else 0)


if __name__ == "__main__":
    main()
