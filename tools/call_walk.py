"""Which of featstore's files a lookup, or one video's way to disk, runs through: counted by a call trace.

    python tools/call_walk.py            # both walks, a line a file

Each process reports a file of the package the first time a function in it is called; the bodies of modules and
classes, which an import runs, are not counted. The walk of a video begins when the scheduler is given it and ends with
its commit: an ingest of one clip with the toy encoder, in parent, decode worker and writer process. Planning
before it and the summary after it are not counted, nor is what a process does before its first video, such as opening
the dataset.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Read by every Python process that starts with this folder on its path.
_TRACER = """
import os, sys, threading
root = os.environ["FEATSTORE_WALK_ROOT"] + os.sep
seen, active, heard = set(), False, 0
def report(frame, event, arg):
    global active, heard
    code = frame.f_code
    if event == "return" and code.co_qualname == "receive":
        heard += 1
        active = heard > 1  # a child is set up by the first message and works on the others
    elif event in ("call", "return") and code.co_qualname == os.environ["FEATSTORE_WALK_OF"]:
        active = event == "call"
    if active and event == "call" and code.co_filename.startswith(root) and code.co_flags & 1:  # a function
        if code.co_filename not in seen:
            seen.add(code.co_filename)
            with open(os.environ["FEATSTORE_WALK_LOG"], "a") as log:
                log.write(code.co_filename[len(root):] + chr(10))
threading.setprofile(report)
sys.setprofile(report)
"""
_GET = """
import featstore
featstore.get({cache!r}, "demo", {video!r})
"""
_INGEST = """
import featstore
from featstore.encoders.toy import ToyEncoder
featstore.ingest({clip!r}, {cache!r}, "demo", encoder=ToyEncoder(), sampling=featstore.Sampling(8),
                 options=featstore.IngestOptions(workers=1, min_free=0))
"""


def walk(program: str, function: str) -> list[str]:
    """Return the package's files, relative to its folder and sorted, that `function` of `program` calls into."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "sitecustomize.py").write_text(_TRACER)
        log = Path(folder, "log")
        log.touch()
        subprocess.run(
            [sys.executable, "-c", program],
            check=True,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([folder, str(ROOT)]),
                "FEATSTORE_WALK_ROOT": str(ROOT / "featstore"),
                "FEATSTORE_WALK_LOG": str(log),
                "FEATSTORE_WALK_OF": function,
            },
        )
        return sorted(set(log.read_text().splitlines()))


def walk_of_a_video(clip: Path, cache: Path) -> list[str]:
    """Return the files that one video crosses from its path to the disk; it is stored in `cache`."""
    return walk(_INGEST.format(clip=str(clip), cache=str(cache)), "Scheduler.run")


def walk_of_a_first_get(cache: Path, video: str) -> list[str]:
    """Return the files that a process's first `featstore.get` crosses."""
    return walk(_GET.format(cache=str(cache), video=video), "get")


def main() -> None:
    """Make a clip, walk both ways and print them."""
    from make_sample_clips import make_sample_clips

    with tempfile.TemporaryDirectory() as folder:
        make_sample_clips(Path(folder, "clips"))
        clip = sorted(Path(folder, "clips").glob("*.mp4"))[0]
        for name, files in (
            ("one video from its path to disk", walk_of_a_video(clip, Path(folder, "cache"))),
            ("a first get", walk_of_a_first_get(Path(folder, "cache"), clip.stem)),
        ):
            print(f"{name}: {len(files)} files")
            print(*(f"  {file}" for file in files), sep="\n")


if __name__ == "__main__":
    main()
