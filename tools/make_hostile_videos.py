"""Make files that pass for videos and are none, or want to hang, crash or flood whoever decodes them.

A fixed set of traps, and as many mutants of sound clips as asked for, the same ones for the same seed.
"""

from __future__ import annotations

import io
import os
import random
import struct
import sys
import wave
import zipfile
import zlib
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import av
import click

sys.path.insert(0, str(Path(__file__).resolve().parent))  # the tool beside this one

from make_decoder_corpus import Case, write

if TYPE_CHECKING:
    from collections.abc import Callable

# What is mutated: each kind of container, index and decoder once.
BASES = (
    Case("h264.mp4", muxer={"movflags": "faststart"}),
    Case("h264_fragments.mp4", muxer={"movflags": "frag_keyframe+empty_moov"}),
    Case("h264.mkv"),
    Case("h264.ts"),
    Case("hevc.mp4", "libx265"),
    Case("vp9.webm", "libvpx-vp9"),
    Case("av1.mp4", "libsvtav1"),
    Case("mpeg4.avi", "mpeg4", clock=25, ticks=lambda index: index),
)
BOMB_PIXELS = 16_000  # a side; 0.7 GB as RGB, 0.7 MB as a file


def make_traps(folder: Path, *, large: bool = True) -> list[Path]:
    """Write each trap once and return the paths; some are no files, or lead nowhere.

    large: also those that take a while to make: pictures of 8k, and one that is far larger decoded than as a file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sound = write(BASES[0], folder / "sound.mp4").read_bytes()
    (folder / "sound.mp4").unlink()
    for name, data in _contents(sound).items():
        (folder / name).write_bytes(data)
    (folder / "folder.mp4").mkdir()
    os.mkfifo(folder / "fifo.mp4")
    for name, target in (("loop", "loop.mp4"), ("nowhere", "missing.mp4"), ("zeros", "/dev/zero")):
        (folder / f"{name}.mp4").symlink_to(target)
    with open(folder / "sparse.mp4", "wb") as file:
        file.truncate(1 << 40)
    (folder / "unreadable.mp4").write_bytes(sound)
    (folder / "unreadable.mp4").chmod(0)
    _write_song(folder / "song.mp4")
    if large:
        write_bomb(folder / "bomb.mov", BOMB_PIXELS)
        write(Case("8k.mp4", width=7680, height=4320, frames=2, bframes=0), folder / "8k.mp4")
    return sorted(folder.iterdir())


def make_mutants(folder: Path, count: int, seed: int) -> list[Path]:
    """Write `count` damaged clips and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    data = {}
    for case in BASES:
        path = write(case, folder / case.name)
        data[case.name] = path.read_bytes()
        path.unlink()
    rng = random.Random(seed)
    paths = []
    for number in range(count):
        name = rng.choice(list(data))
        mutate = rng.choice(MUTATIONS)
        path = folder / f"{number:05}_{mutate.__name__}_{name}"
        path.write_bytes(mutate(data[name], rng))
        paths.append(path)
    return paths


# --- traps ---------------------------------------------------------------------------------------------------------


def _contents(sound: bytes) -> dict[str, bytes]:
    """Return the traps that are a file's bytes."""
    return {
        "empty.mp4": b"",
        "one_byte.mp4": b"\0",
        "text.mp4": b"This is no video.\n" * 100,
        "page.mp4": b"<!DOCTYPE html><title>404 Not Found</title>",
        "zip.mp4": _zip(sound),
        "sound.mp4.wav.mp4": _wav(),
        "playlist.mp4": b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://127.0.0.1:9/a.ts\n",
        "concat.mp4": b"ffconcat version 1.0\nfile '/dev/zero'\n",
        "header_alone.mp4": sound[: sound.index(b"mdat") + 4],
        "no_frames.mp4": _with(sound, b"stsz", 12, 0),
        "all_frames.mp4": _with(sound, b"stsz", 12, 0xFFFF_FFFF),
        "years_long.mp4": _with(sound, b"stts", 16, 0x7FFF_FFFF),
        "wide.mp4": _with(sound, b"avc1", 28, 0xFFFF_FFFF),
        "inside_itself.mp4": _with(sound, b"moov", -4, 0xFFFF_FFFF),
    }


def _with(data: bytes, box: bytes, offset: int, value: int) -> bytes:
    """Return an MP4 with four bytes overwritten, `offset` from where a box's name begins."""
    place = data.index(box) + offset
    return data[:place] + struct.pack(">I", value) + data[place + 4 :]


def _zip(data: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("clip.mp4", data)
    return file.getvalue()


def _wav() -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8_000)
        sound.writeframes(bytes(16_000))
    return file.getvalue()


def _black_png(side: int) -> bytes:
    packer, row = zlib.compressobj(9), b"\0" * (1 + 3 * side)
    pixels = b"".join([packer.compress(row) for _ in range(side)]) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )


def write_bomb(path: Path, side: int) -> Path:
    """Write a video of two frames that takes some hundred times its size when it is decoded, `side` pixels each way."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("png", rate=1)
        stream.width, stream.height, stream.pix_fmt = side, side, "rgb24"
        stream.codec_context.open()
        picture = _black_png(side)
        for index in range(2):
            packet = av.Packet(picture)
            packet.stream, packet.pts, packet.dts = stream, index, index
            packet.time_base = Fraction(1, 1)
            packet.is_keyframe = True
            container.mux(packet)
    return path


def _write_song(path: Path) -> None:
    """Write a second of silence as AAC, with a cover."""
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=44_100)
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 64, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        picture = av.VideoFrame(64, 64, "yuvj420p")
        picture.pts = 0
        container.mux(cover.encode(picture))
        container.mux(cover.encode())
        for index in range(43):
            frame = av.AudioFrame("fltp", "mono", 1_024)
            frame.planes[0].update(bytes(frame.planes[0].buffer_size))
            frame.pts, frame.sample_rate = index * 1_024, 44_100
            container.mux(sound.encode(frame))
        container.mux(sound.encode())


# --- mutations -----------------------------------------------------------------------------------------------------


def flipped(data: bytes, rng: random.Random) -> bytes:
    """Flip one to 64 bits anywhere."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 64)):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut(data: bytes, rng: random.Random) -> bytes:
    """Keep the beginning."""
    return data[: rng.randrange(len(data))]


def beheaded(data: bytes, rng: random.Random) -> bytes:
    """Keep the end."""
    return data[rng.randrange(len(data)) :]


def gapped(data: bytes, rng: random.Random) -> bytes:
    """Leave out a stretch."""
    begin, end = _stretch(data, rng)
    return data[:begin] + data[end:]


def repeated(data: bytes, rng: random.Random) -> bytes:
    """Write a stretch twice."""
    begin, end = _stretch(data, rng)
    return data[:end] + data[begin:]


def blanked(data: bytes, rng: random.Random) -> bytes:
    """Put zeros in place of a stretch."""
    begin, end = _stretch(data, rng)
    return data[:begin] + bytes(end - begin) + data[end:]


def noisy(data: bytes, rng: random.Random) -> bytes:
    """Put noise in place of a stretch."""
    begin, end = _stretch(data, rng)
    return data[:begin] + rng.randbytes(end - begin) + data[end:]


def boasting(data: bytes, rng: random.Random) -> bytes:
    """Put extreme numbers into the header, or what stands last, where some containers keep theirs."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(min(2_048, len(data) - 4))
        place = place if rng.random() < 0.7 else len(data) - 4 - place
        changed[place : place + 4] = struct.pack(">I", rng.choice(EXTREMES))
    return bytes(changed)


EXTREMES = (0, 1, 0xFF, 0xFFFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF)
MUTATIONS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    flipped,
    cut,
    beheaded,
    gapped,
    repeated,
    blanked,
    noisy,
    boasting,
)


def _stretch(data: bytes, rng: random.Random) -> tuple[int, int]:
    begin = rng.randrange(len(data))
    return begin, min(len(data), begin + rng.randint(1, 4_096))


@click.command()
@click.argument("out_dir", type=click.Path(file_okay=False, path_type=Path))
@click.option("--mutants", type=click.IntRange(0), default=100, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
def main(out_dir: Path, mutants: int, seed: int) -> None:
    """Write the traps and the mutants to OUT_DIR and print their paths."""
    for path in make_traps(out_dir / "traps") + make_mutants(out_dir / "mutants", mutants, seed):
        click.echo(path)


if __name__ == "__main__":
    main()
