"""Make a corpus of odd videos on which two decoders must agree: codecs, orders of frames, clocks, colors, damage.

tools/compare_decoders.py compares them on it.

Each file is one trap. `certain` says whether the faster decoder is to take it, or to leave it to decord.
"""

from __future__ import annotations

import contextlib
import os
import struct
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import av
import click
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TICKS = 90_000  # a second
REPEATABLE = {"fflags": "bitexact"}  # no random numbers in a file's head
# With its assembly x264 was seen to write the same frames as other bytes from one time to the next, the more so under
# load, so that a flipped bit hit something else each time.
X264_PLAIN = "asm=0"
X265_QUIET = "log-level=none:pools=1:frame-threads=1"


@dataclass(frozen=True)
class Case:
    """One file of the corpus.

    clock: ticks a second. ticks: index of a frame -> its time. matrix, color_range: numbers as FFmpeg has them.
    matrix_shown: the first two rows of the display matrix. patch: what is done to the finished bytes. certain: whether
    the faster decoder takes it.
    """

    name: str
    codec: str = "libx264"
    width: int = 96
    height: int = 64
    frames: int = 60
    gop: int = 12
    bframes: int = 2
    pix_fmt: str = "yuv420p"
    options: dict[str, str] = field(default_factory=dict)
    muxer: dict[str, str] = field(default_factory=dict)
    matrix: int | None = None
    color_range: int | None = None
    rotation: int = 0
    matrix_shown: tuple[int, int, int, int] | None = None
    clock: int = TICKS
    ticks: Callable[[int], int] = lambda index: index * 3_600
    patch: Callable[[bytes], bytes] = lambda data: data
    certain: bool = True


def draw(index: int, width: int, height: int) -> np.ndarray:
    """Draw a picture (H, W, 3) uint8 that no other frame has: colors that drift, a bar that moves, some noise."""
    y, x = np.mgrid[:height, :width]
    picture = np.stack(
        [(x * 255 // width + 7 * index) % 256, y * 255 // height, (x + y + 3 * index) % 256], -1
    )
    picture[:, (5 * index) % width] = (255, 255, 0)
    noise = np.random.default_rng(index).integers(-12, 13, picture.shape)
    return np.clip(picture + noise, 0, 255).astype(np.uint8)


@contextlib.contextmanager
def _own_scheduling() -> Iterator[None]:
    """Give back the scheduling this thread had: as root, SVT-AV1 makes whoever calls it a real-time thread.

    What that thread starts inherits it, and lets nothing else run.
    """
    if not hasattr(os, "sched_setscheduler"):
        yield
        return
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, *before)


@_own_scheduling()
def write(case: Case, path: Path) -> Path:
    """Write the file of `case` to `path` and return it."""
    with av.open(str(path), "w", options=REPEATABLE | case.muxer) as container:
        stream = container.add_stream(case.codec, rate=25, options=_options(case))
        stream.width, stream.height, stream.pix_fmt = case.width, case.height, case.pix_fmt
        stream.codec_context.thread_count = 1
        stream.codec_context.gop_size = case.gop
        stream.codec_context.time_base = Fraction(1, case.clock)
        if case.codec not in ("libvpx", "libvpx-vp9", "libsvtav1", "mjpeg"):
            stream.codec_context.max_b_frames = case.bframes
        if case.matrix is not None:
            stream.codec_context.colorspace = case.matrix
        if case.color_range is not None:
            stream.codec_context.color_range = case.color_range
        if case.rotation:
            stream.set_display_rotation(case.rotation)
        if case.matrix_shown:
            a, b, c, d = (value << 16 for value in case.matrix_shown)
            stream.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 1 << 30])
        for index in range(case.frames):
            picture = draw(index, case.width, case.height)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(
                format=case.pix_fmt
            )
            frame.pts, frame.time_base = case.ticks(index), Fraction(1, case.clock)
            if case.matrix is not None:
                frame.colorspace = case.matrix
            if case.color_range is not None:
                frame.color_range = case.color_range
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    path.write_bytes(case.patch(path.read_bytes()))
    return path


def write_song(path: Path) -> Path:
    """Write an MP3 with a cover picture to `path` and return it."""
    with av.open(str(path), "w", options={"id3v2_version": "3"}) as container:
        sound = container.add_stream("libmp3lame", rate=44_100)
        cover = container.add_stream("png")
        cover.width, cover.height, cover.pix_fmt = 96, 64, "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        picture = av.VideoFrame.from_ndarray(draw(0, 96, 64), format="rgb24")
        container.mux(cover.encode(picture))
        for start in range(0, 1_152 * 20, 1_152):
            samples = np.zeros((2, 1_152), np.float32)
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="stereo")
            frame.sample_rate, frame.pts = 44_100, start
            container.mux(sound.encode(frame))
        container.mux(sound.encode())
    return path


def _options(case: Case) -> dict[str, str]:
    defaults = {
        "libx264": {"preset": "veryfast", "crf": "30", "threads": "1"},
        "libx265": {"preset": "ultrafast", "crf": "30"},
        "libvpx": {"deadline": "realtime", "cpu-used": "-8", "b": "300k"},  # 8 goes by the clock
        "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "b": "300k"},
        "libsvtav1": {"preset": "12", "crf": "40", "svtav1-params": "lp=1"},
    }.get(case.codec, {})
    options = {**defaults, **case.options}
    if case.codec == "libx264":
        options["x264-params"] = ":".join(
            filter(None, [X264_PLAIN, case.options.get("x264-params")])
        )
    if case.codec == "libx265":
        given = options.get("x265-params", "open-gop=0")
        options["x265-params"] = f"{X265_QUIET}:keyint={case.gop}:bframes={case.bframes}:{given}"
    return options


# --- what is done to finished files --------------------------------------------------------------------------------


def cut(share: float) -> Callable[[bytes], bytes]:
    """Return what keeps the first `share` of a file."""
    return lambda data: data[: int(len(data) * share)]


def flip(share: float, bits: int = 0x40) -> Callable[[bytes], bytes]:
    """Return what flips bits of one byte, `share` of the way into a file."""

    def patch(data: bytes) -> bytes:
        place = int(len(data) * share)
        return data[:place] + bytes([data[place] ^ bits]) + data[place + 1 :]

    return patch


def trim(ticks: int) -> Callable[[bytes], bytes]:
    """Return what moves the start of an MP4's edit list by `ticks` of the track's clock."""

    def patch(data: bytes) -> bytes:
        place = data.index(b"elst") + 12  # version, flags, count
        duration, start = struct.unpack_from(">Ii", data, place)
        changed = struct.pack(">Ii", duration, start + ticks)
        return data[:place] + changed + data[place + 8 :]

    return patch


def twice(data: bytes) -> bytes:
    """Return the file with itself behind it."""
    return data + data


# --- the cases -----------------------------------------------------------------------------------------------------


def small_corpus() -> Iterator[Case]:
    """Yield the cases that the tests run on: each trap once, tiny pictures."""
    fast = {"movflags": "faststart"}
    yield Case("h264.mp4")
    yield Case("h264_no_b.mp4", bframes=0)
    yield Case("h264_pyramid.mp4", bframes=5, options={"x264-params": "b-pyramid=normal:ref=4"})
    yield Case("h264_intra.mp4", gop=1, bframes=0)
    yield Case("h264_one_gop.mp4", gop=1_000, options={"x264-params": "scenecut=0"})
    yield Case("h264_gop_of_two.mp4", gop=2, bframes=1)
    yield Case("h264_open_gop.mp4", options={"x264-params": "open-gop=1:scenecut=0"}, certain=False)
    yield Case("h264.mkv")
    yield Case("h264.mov")
    yield Case("h264.ts", certain=False)
    yield Case("h264_fragments.mp4", muxer={"movflags": "frag_keyframe+empty_moov"})
    yield Case(
        "h264_close_keys.mp4",
        options={
            "preset": "medium",
            "x264-params": "keyint=3:min-keyint=1:bframes=5:b-adapt=0:mbtree=0",
        },
        muxer={"movflags": "frag_keyframe+empty_moov"},
        certain=False,
    )
    yield Case(
        "h264_false_keys.mkv",
        bframes=0,
        options={"x264-params": "keyint=50:min-keyint=40:scenecut=400:ref=1"},
        certain=False,
    )
    yield Case("h264_five_frames.mp4", frames=5)
    yield Case("h264_one_frame.mp4", frames=1)
    yield Case("h264_starts_late.mp4", ticks=lambda i: 450_000 + i * 3_600)
    yield Case("h264_starts_late.mkv", ticks=lambda i: 450_000 + i * 3_600)
    yield Case("h264_vfr.mp4", ticks=lambda i: i * 3_000 + (i * i % 7) * 400)
    yield Case("h264_vfr.mkv", ticks=lambda i: i * 3_000 + (i * i % 7) * 400)
    yield Case("h264_long_pause.mp4", ticks=lambda i: i * 3_600 + (900_000 if i > 30 else 0))
    yield Case("h264_edit_at_start.mp4", patch=trim(20_000), certain=False)
    yield Case("h264_odd_size.mp4", width=97, height=63, pix_fmt="yuv444p")
    yield Case("h264_cropped.mp4", width=102, height=58)
    yield Case("h264_tiny.mp4", width=16, height=16, certain=False)
    yield Case("h264_narrow.mp4", width=72, certain=False)
    yield Case("h264_rotated_90.mp4", rotation=90, certain=False)
    yield Case("h264_rotated_180.mp4", rotation=180, certain=False)
    yield Case("h264_rotated_270.mp4", rotation=-90, certain=False)
    yield Case("h264_10_bit.mp4", pix_fmt="yuv420p10le", certain=False)
    yield Case("h264_422.mp4", pix_fmt="yuv422p")
    yield Case("h264_full_range.mp4", pix_fmt="yuvj420p", color_range=2)
    yield Case("h264_bt709.mp4", matrix=1, color_range=1)
    yield Case("h264_bt601.mp4", matrix=6, color_range=1)
    yield Case("h264_bt2020.mp4", matrix=9, color_range=1, pix_fmt="yuv420p10le", certain=False)
    yield Case("h264_full_bt709.mp4", matrix=1, color_range=2)
    yield Case("h264_interlaced.mp4", options={"flags": "+ildct+ilme"}, certain=False)
    yield Case("h264_intra_refresh.mp4", options={"x264-params": "intra-refresh=1"}, certain=False)
    yield Case("hevc.mp4", "libx265")
    yield Case("hevc_open_gop.mp4", "libx265", options={"x265-params": "open-gop=1"}, certain=False)
    yield Case("hevc_pyramid.mp4", "libx265", bframes=4, options={"preset": "veryfast"})
    yield Case("hevc_10_bit.mkv", "libx265", pix_fmt="yuv420p10le", certain=False)
    yield Case(
        "hevc_layers.mp4",
        "libx265",
        bframes=4,
        options={"x265-params": "open-gop=0:temporal-layers=3"},
    )
    yield Case("vp9.webm", "libvpx-vp9")
    yield Case(
        "vp9_hidden_frames.webm",
        "libvpx-vp9",
        options={"auto-alt-ref": "1", "lag-in-frames": "12", "deadline": "good", "cpu-used": "5"},
    )
    yield Case("vp9.mp4", "libvpx-vp9")
    yield Case("vp9_odd_size.webm", "libvpx-vp9", width=97, height=63, certain=False)
    yield Case("av1.mp4", "libsvtav1")
    yield Case("av1.webm", "libsvtav1")
    yield Case("av1_10_bit.mp4", "libsvtav1", pix_fmt="yuv420p10le")
    yield Case("vp8.webm", "libvpx", certain=False)
    frame_clock = {"clock": 25, "ticks": lambda i: i}
    yield Case("mpeg4.mp4", "mpeg4", **frame_clock, certain=False)
    yield Case("mpeg2.mp4", "mpeg2video", **frame_clock, certain=False)
    yield Case("mpeg4.avi", "mpeg4", bframes=0, **frame_clock, certain=False)
    yield Case("mpeg4_b.avi", "mpeg4", **frame_clock, certain=False)
    yield Case("mpeg2.mpg", "mpeg2video", **frame_clock, certain=False)
    yield Case("mpeg2.mxf", "mpeg2video", **frame_clock, certain=False)
    yield Case("wmv2.wmv", "wmv2", bframes=0, **frame_clock, certain=False)
    yield Case("h264.flv", certain=False)
    yield Case("h264_no_b.ts", bframes=0, certain=False)
    yield Case("h264_no_b.avi", bframes=0, **frame_clock, certain=False)
    yield Case("mjpeg.avi", "mjpeg", pix_fmt="yuvj420p", **frame_clock, certain=False)
    yield Case("h264_cut.mp4", muxer=fast, patch=cut(0.6), certain=False)
    yield Case("h264_cut_in_header.mp4", muxer=fast, patch=cut(0.02))
    yield Case("h264_no_index.mp4", patch=cut(0.8), certain=False)
    yield Case("h264_cut.mkv", patch=cut(0.6))
    yield Case("h264_flipped.mp4", muxer=fast, patch=flip(0.25), certain=False)
    yield Case("h264_twice.ts", patch=twice, certain=False)
    yield Case("h264_twice.mp4", patch=twice)


def large_corpus() -> Iterator[Case]:
    """Yield some hundred cases more: the product of what changes frames and their order."""
    codecs = {"libx264": "h264", "libx265": "hevc", "libvpx-vp9": "vp9"}
    sizes = ((96, 64), (102, 58), (322, 178))
    shapes = ((1, 0), (2, 1), (12, 0), (12, 2), (30, 3), (250, 8))
    for codec, (gop, bframes), (width, height), suffix in product(
        codecs, shapes, sizes, ("mp4", "mkv")
    ):
        name = f"{codecs[codec]}_{gop}_{bframes}_{width}x{height}.{suffix}"
        yield Case(name, codec, width, height, 100, gop, bframes)
    formats = ("yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv422p10le", "yuvj420p")
    for pix_fmt, matrix, color_range, (width, height) in product(
        formats, (1, 2, 5, 6, 7, 9), (1, 2), ((98, 62), (320, 180))
    ):
        name = f"color_{pix_fmt}_{matrix}_{color_range}_{width}.mp4"
        yield Case(
            name,
            "libx264",
            width,
            height,
            24,
            12,
            2,
            pix_fmt,
            matrix=matrix,
            color_range=color_range,
        )
    for share in range(1, 40):
        base = Case(
            f"cut_{share:02}.mp4", frames=120, muxer={"movflags": "faststart"}, certain=False
        )
        yield replace(base, patch=cut(share / 40))
        yield replace(base, name=f"flip_{share:02}.mp4", patch=flip(share / 40))
        yield replace(base, name=f"flip_{share:02}.mkv", muxer={}, patch=flip(share / 40, 0x01))


@click.command()
@click.argument("out_dir", type=click.Path(file_okay=False, path_type=Path))
@click.option("--large", is_flag=True, help="Also the few hundred cases that the tests leave out.")
def main(out_dir: Path, large: bool) -> None:
    """Write the corpus to OUT_DIR and print the paths."""
    out_dir.mkdir(parents=True, exist_ok=True)
    for case in [*small_corpus(), *(large_corpus() if large else ())]:
        click.echo(write(case, out_dir / case.name))


if __name__ == "__main__":
    main()
