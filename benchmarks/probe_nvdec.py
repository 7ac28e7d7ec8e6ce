"""Are the frames of a GPU's video decoder those of the software decoder, and does it notice damage?

Needs a CUDA GPU with NVDEC, and PyAV 17 or later. One bit of a clip's coded frames is flipped at a time.
"""

from __future__ import annotations

import random
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import av
import click
import numpy as np
from av.codec.hwaccel import HWAccel
from make_sample_clips import draw_bouncing_ball, make_clip
from measure import describe, machine, table, write_results

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

EVERY = 8  # one frame of so many is compared


@click.command()
@click.option("--flips", default=60, show_default=True, type=click.IntRange(1))
@click.option("--out", type=click.Path(path_type=Path), help="Write text and JSON here.")
def main(flips: int, out: Path | None) -> None:
    """Print what the two decoders make of a sound clip and of damaged copies."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        facts = machine(("av", "featstore"), work)
        clip = make_clip(
            work / "ball.mp4", width=1280, height=720, fps=24, frames=48, draw=draw_noisy_ball
        )
        right = frames_of(clip, gpu=False)
        assert right is not None
        outcomes = {"none": Counter([outcome(frames_of(clip, gpu=True), right)])}
        found = Counter[str]()
        for damaged in damaged_copies(clip, flips):
            software, gpu = (frames_of(damaged, gpu=gpu) for gpu in (False, True))
            found[f"software {outcome(software, right)}, NVDEC {outcome(gpu, right)}"] += 1
        outcomes["one bit"] = found
    rows = [
        [damage, what, str(count)]
        for damage, counts in outcomes.items()
        for what, count in counts.most_common()
    ]
    text = f"{describe(facts)}\nH.264, 1280 x 720, 48 frames\n\n{table(('damage', 'frames', 'clips'), rows)}\n"
    click.echo(text, nl=False)
    if out is not None:
        write_results(out, "probe_nvdec", text, {"machine": facts, "outcomes": outcomes})


def draw_noisy_ball(index: int, width: int, height: int) -> NDArray[np.uint8]:
    """Draw a picture with much to code, so that most bytes of the clip are of coded frames."""
    noise = np.random.default_rng(index).integers(0, 32, (height, width, 3), dtype=np.uint8)
    return draw_bouncing_ball(index, width, height) // 8 * 7 + noise


def frames_of(path: Path, *, gpu: bool) -> NDArray[np.uint8] | None:
    """Return one frame of `EVERY`, as YUV; None if the decoder reports an error."""
    hwaccel = HWAccel("cuda", is_hw_owned=True, allow_software_fallback=False) if gpu else None
    try:
        with av.open(str(path), hwaccel=hwaccel) as container:
            container.streams.video[0].codec_context.options = {"err_detect": "explode"}
            taken = [
                frame.reformat(format="yuv420p").to_ndarray()
                for index, frame in enumerate(container.decode(video=0))
                if index % EVERY == 0
            ]
    except av.FFmpegError:
        return None
    return np.array(taken, np.uint8) if taken else None


def outcome(found: NDArray[np.uint8] | None, right: NDArray[np.uint8]) -> str:
    """Say in a word what a decoder gave."""
    if found is None:
        return "refuses"
    return "right" if np.array_equal(found, right) else "wrong without a sign"


def damaged_copies(clip: Path, count: int) -> Iterator[Path]:
    """Yield copies with one bit flipped in each, in a coded frame; they take turns at one path."""
    whole = clip.read_bytes()
    begin, end = whole.index(b"mdat") + 2_000, whole.rindex(b"moov") - 1_000
    chance = random.Random(5)
    for _ in range(count):
        damaged = bytearray(whole)
        damaged[chance.randrange(begin, end)] ^= 1 << chance.randrange(8)
        path = clip.with_name("damaged.mp4")
        path.write_bytes(damaged)
        yield path


if __name__ == "__main__":
    main()
