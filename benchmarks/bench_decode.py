"""What does decoding cost, in seconds of a core and in memory, with each decoder?

Makes clips of a test card with moving noise, and takes 128 frames of each for LongVA in a process of its own, by each
decoder in turn:

    python benchmarks/bench_decode.py

It takes some half hour, most of it for making the clips; --keep leaves them for the next time, --clips takes yours.
--peer pyav decodes every frame up to the last wanted one, as PyAV's manual does; --peer torchcodec asks TorchCodec for
the frames, with exact seeking. Both have one thread, as the others do, and the same resizing afterwards.

cpu:     seconds of a core, of the whole process, starting it included.
start:   seconds of a core until the decoder is imported, of which TorchCodec's are those of torch.
memory:  the most it had resident.
same:    whether all frames were those of decord, byte for byte.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import click
from measure import (
    RESULTS,
    ROOT,
    Summary,
    describe,
    machine,
    show_bytes,
    show_ratio,
    show_time,
    table,
    write_results,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGES = ("featstore", "av", "decord", "torchcodec", "numpy", "pillow")
DECODERS = ("decord", "auto")
PEERS = ("pyav", "torchcodec")
RATE = 25

# Decodes, then prints what became of it; the parent reads times and memory from the system.
CHILD = """
import hashlib, importlib, json, sys, time
import numpy as np
from featstore.decoding.video_file import decode
from featstore.preprocessing import ShortestEdgeCrop
from featstore.sampling import Sampling
path, decoder, nframe = sys.argv[1], sys.argv[2], int(sys.argv[3])
importlib.import_module({"decord": "decord", "torchcodec": "torchcodec.decoders"}.get(decoder, "av"))
start = time.process_time()
out = np.empty((nframe, 336, 336, 3), np.uint8)
pre = ShortestEdgeCrop(shortest_edge=336, crop_height=336, crop_width=336)
if decoder == "pyav":
    import av
    from featstore.decoding.frame_selection import FrameSelection
    selection = FrameSelection(path, Sampling(nframe), pre, out)
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        selection.choose(stream.frames, float(stream.average_rate), decoder)
        wanted = set(selection.wanted)
        for index, frame in enumerate(container.decode(stream)):
            if index in wanted:
                selection.put(index, frame.to_ndarray(format="rgb24"))
                wanted.remove(index)
                if not wanted:
                    break
elif decoder == "torchcodec":
    from torchcodec.decoders import VideoDecoder
    from featstore.decoding.frame_selection import FrameSelection
    selection = FrameSelection(path, Sampling(nframe), pre, out)
    video = VideoDecoder(path, dimension_order="NHWC", num_ffmpeg_threads=1)
    selection.choose(len(video), video.metadata.average_fps, decoder)
    for first in range(0, nframe, 8):  # 50 MB of 1080p frames
        some = selection.wanted[first : first + 8]
        for index, frame in zip(some, video.get_frames_at(some).data.numpy() if some else ()):
            selection.put(index, frame)
else:
    decoder = decode(path, Sampling(nframe), pre, out, decoder=decoder).decoder
frames = hashlib.md5(out.tobytes()).hexdigest()
print(json.dumps({"decoder": decoder, "frames": frames, "start": start}))
"""


@dataclass(frozen=True)
class Kind:
    """A clip to make."""

    codec: str
    width: int
    height: int
    minutes: float

    @property
    def name(self) -> str:
        codec = {"libx264": "h264", "libx265": "hevc"}[self.codec]
        return f"{codec}_{self.height}p_{self.minutes:g}min.mp4"


KINDS = (
    Kind("libx264", 1280, 720, 5),
    Kind("libx264", 1920, 1080, 2),
    Kind("libx265", 1280, 720, 1),
)


@dataclass(frozen=True)
class Row:
    """What one decoder did with one clip; ratio: of its cpu to that of decord."""

    clip: str
    asked: str
    took: str
    cpu: Summary
    start_s: float
    wall: Summary
    memory_bytes: int
    ratio: float
    same: bool

    def to_dict(self) -> dict[str, Any]:
        return vars(self) | {"cpu": self.cpu.to_dict(), "wall": self.wall.to_dict()}


def make_clip(kind: Kind, path: Path) -> Path:
    """Encode a test card with noise over it, with the encoder's own B-frames and its key frames 10 s apart."""
    options = {
        "libx264": {"preset": "veryfast", "crf": "26"},
        "libx265": {
            "preset": "ultrafast",
            "crf": "28",
            "x265-params": "log-level=none:open-gop=0:keyint=250:b-adapt=0:bframes=4",
        },
    }[kind.codec]
    part = path.with_suffix(".part.mp4")
    with av.open(str(part), "w") as container:
        stream = container.add_stream(kind.codec, rate=RATE, options=options)
        stream.width, stream.height, stream.pix_fmt = kind.width, kind.height, "yuv420p"
        stream.codec_context.gop_size = 250
        for index, frame in enumerate(_pictures(kind)):
            frame.pts, frame.time_base = index, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    os.replace(part, path)
    return path


def _pictures(kind: Kind) -> Iterator[av.VideoFrame]:
    graph = av.filter.Graph()
    card = graph.add("testsrc2", f"size={kind.width}x{kind.height}:rate={RATE}")
    nodes = [card, graph.add("noise", "alls=8:allf=t"), graph.add("format", "yuv420p")]
    nodes.append(graph.add("buffersink"))
    for one, following in pairwise(nodes):
        one.link_to(following)
    graph.configure()
    for _ in range(round(kind.minutes * 60 * RATE)):
        yield graph.pull()


def measure(path: Path, decoder: str, nframe: int) -> dict[str, Any]:
    """Return what a process that decodes `path` took."""
    begun = time.perf_counter()
    with tempfile.TemporaryFile() as out:
        seen = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, path, decoder, str(nframe)],
            env={**os.environ, "PYTHONPATH": seen},
            stdout=out,
        )
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            raise click.ClickException(f"{decoder} failed on {path}")
        out.seek(0)
        answer = json.load(out)
    return answer | {
        "cpu": used.ru_utime + used.ru_stime,
        "wall": time.perf_counter() - begun,
        "memory": used.ru_maxrss * 1024,
    }


def compare(path: Path, nframe: int, repeats: int, peers: tuple[str, ...]) -> list[Row]:
    """Return a row for each decoder; they take turns, so that a ratio compares neighbours in time."""
    runs: dict[str, list[dict[str, Any]]] = {decoder: [] for decoder in DECODERS + peers}
    # Into the page cache, in pieces: the most that a child has resident counts what its parent had.
    with open(path, "rb") as file:
        while file.read(1 << 20):
            pass
    for _ in range(repeats):
        for decoder in runs:
            runs[decoder].append(measure(path, decoder, nframe))
    rows = []
    base = Summary.of([run["cpu"] for run in runs["decord"]]).median
    for decoder, found in runs.items():
        cpu = Summary.of([run["cpu"] for run in found])
        rows.append(
            Row(
                path.name,
                decoder,
                found[0]["decoder"],
                cpu,
                min(run["start"] for run in found),
                Summary.of([run["wall"] for run in found]),
                max(run["memory"] for run in found),
                cpu.median / base,
                {run["frames"] for run in found} == {runs["decord"][0]["frames"]},
            )
        )
    return rows


def show(rows: list[Row], nframe: int) -> str:
    head = (
        "clip",
        "decoder",
        "taken",
        "cpu median",
        "max",
        "start",
        "vs decord",
        "wall",
        "memory",
        "same",
    )
    lines = [
        (
            row.clip,
            row.asked,
            row.took,
            show_time(row.cpu.median),
            show_time(row.cpu.max),
            show_time(row.start_s),
            show_ratio(row.ratio),
            show_time(row.wall.median),
            show_bytes(row.memory_bytes),
            "yes" if row.same else "NO",
        )
        for row in rows
    ]
    count = rows[0].cpu.count
    return (
        f"{nframe} frames of a clip, resized and cropped to 336 x 336; {count} runs each\n"
        + table(head, lines)
    )


@click.command(help=__doc__.split("\n")[0])
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
@click.option(
    "--clips", multiple=True, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@click.option("--peer", "peers", multiple=True, type=click.Choice(PEERS), help="Measure it too.")
@click.option("--keep", type=click.Path(file_okay=False, path_type=Path), help="Where clips are.")
@click.option("--minutes", type=float, help="Length of the clips, in place of several minutes.")
@click.option("--nframe", type=click.IntRange(1), default=128, show_default=True)
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True)
def main(
    out: Path,
    clips: tuple[Path, ...],
    peers: tuple[str, ...],
    keep: Path | None,
    minutes: float | None,
    nframe: int,
    repeats: int,
) -> None:
    with ExitStack() as stack:
        folder = keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        facts = machine(PACKAGES, folder)
        paths = list(clips)
        for kind in () if clips else KINDS:
            kind = Kind(kind.codec, kind.width, kind.height, minutes or kind.minutes)
            path = folder / kind.name
            if not path.exists():
                click.echo(f"making {path.name}", err=True)
                make_clip(kind, path)
            paths.append(path)
        sizes = {path.name: path.stat().st_size for path in paths}
        rows = [row for path in paths for row in compare(path, nframe, repeats, peers)]
    text = f"bench_decode: what does decoding cost?\n\n{describe(facts)}\n\n{show(rows, nframe)}\n"
    click.echo(text, nl=False)
    data = {"machine": facts, "file_bytes": sizes, "rows": [row.to_dict() for row in rows]}
    write_results(out, "bench_decode_peers" if peers else "bench_decode", text, data)


if __name__ == "__main__":
    main()
