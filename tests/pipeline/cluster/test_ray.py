"""Kill nodes, actors and drivers of ingests under Ray: what is stored is what one process stores."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from toys import python_env

import featstore
from featstore.encoders.registry import EncoderRecipe
from featstore.errors import StoreMismatch
from featstore.pipeline.options import IngestOptions
from featstore.sampling import Sampling

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]
pytest.importorskip("ray", reason="Ray is not installed: pip install 'featstore[ray]'")
pytest.importorskip("psutil", reason="Ray's test cluster needs psutil")

VIDEOS = 24
ENV = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_SCHEDULER_EVENTS": "0"}
OPTIONS = IngestOptions(min_free=0, workers=1, lock_wait=30.0)


def processes(words: str) -> list[int]:
    """The processes whose command line contains `words`."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and words in (entry / "cmdline").read_text(errors="replace"):
                found.append(int(entry.name))
    return found


def of_session(folder: str) -> list[int]:
    """The processes with a file of a Ray session open, as their logs are: what they are called, they change."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                opened = [os.readlink(link) for link in (entry / "fd").iterdir()]
                if any(path.startswith(folder) for path in opened):
                    found.append(int(entry.name))
    return found


def is_agent(pid: int) -> bool:
    """Whether a process is one of Ray's agents, which end a minute or two after their node was killed."""
    with suppress(OSError):
        return b"Agent" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def wait_gone(find, seconds: float) -> list:
    """What `find` still finds after so many seconds, or nothing as soon as it finds none."""
    deadline = time.monotonic() + seconds
    while (left := find()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return left


def an_actor() -> int:
    """An actor of a node that is there: one whose node was killed may go on for seconds, in the care of init."""
    for pid in processes("ray::SlowWorker"):
        with suppress(OSError):
            parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            if b"raylet" in Path(f"/proc/{parent}/cmdline").read_bytes():
                return pid
    raise AssertionError("no actor is at work")


@pytest.fixture(scope="module")
def nodes():
    """A head without cores and three nodes of two; what is left of them at the end is ended, and told."""
    import ray
    from ray.cluster_utils import Cluster

    before, os.environ["PYTHONPATH"] = dict(os.environ), python_env()["PYTHONPATH"]
    os.environ.update(ENV)
    small = {"object_store_memory": 80 << 20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
    cluster.workers = [
        cluster.add_node(wait=False, num_cpus=2, object_store_memory=80 << 20) for _ in range(3)
    ]
    cluster.wait_for_nodes()
    session = cluster.head_node.get_session_dir_path()
    assert of_session(session)
    yield cluster
    ray.shutdown()
    cluster.shutdown()
    left = wait_gone(lambda: [pid for pid in of_session(session) if not is_agent(pid)], 15)
    for pid in of_session(session):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    os.environ.clear()
    os.environ.update(before)
    assert left == []
    assert processes("ray::SlowWorker") == []


@pytest.fixture(scope="module")
def videos(sample_clips, tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for i in range(VIDEOS):
        shutil.copy(sample_clips / "blink.mp4", folder / f"v{i:02}.mp4")
    (folder / "broken.mp4").write_text("no video")
    return folder


@pytest.fixture(scope="module")
def alone(videos, tmp_path_factory):
    """What one process stores: the records and the reasons of failures."""
    cache = tmp_path_factory.mktemp("alone")
    return stored(cache, ingest(videos, cache, None))


def ingest(videos, cache, engine, **more):
    encoder = featstore.encoders.get_encoder("toy")
    return featstore.ingest(
        videos,
        cache,
        "demo",
        encoder=encoder,
        sampling=Sampling(4),
        options=OPTIONS,
        engine=engine,
        **more,
    )


def stored(cache, summary):
    dataset = featstore.open(cache)["demo"]
    records = {
        name: (
            dataclasses.replace(dataset[name].header, created=0.0),
            dataset[name].data.tobytes(),
            dataset[name].scales,
        )
        for name in dataset
    }
    comparable = {
        n: (h, d, [bytes(s) for s in _parts(scale)]) for n, (h, d, scale) in records.items()
    }
    reasons = {f.video_id: f.reason for f in (*summary.failures, *summary.failed_before)}
    return comparable, reasons


def _parts(scale):
    return scale if isinstance(scale, (tuple, list)) else [scale]


def engine(nodes, kind="SlowWorker"):
    import odd_ray_workers

    from featstore.pipeline.cluster.ray_engine import RayEngine

    worker = getattr(odd_ray_workers, kind)
    return RayEngine(EncoderRecipe("toy"), nodes.address, None, 0.0, worker)


def test_a_worker_of_another_version_is_refused_before_work(nodes, videos, cache):
    with pytest.raises(StoreMismatch, match=r"featstore 0\.0\.1, the driver"):
        ingest(videos, cache, engine(nodes, "OlderWorker"))
    assert len(featstore.open(cache)["demo"]) == 0


DRIVER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from types import SimpleNamespace
import test_ray
tell = lambda progress: print(progress.done, flush=True)
nodes = SimpleNamespace(address=sys.argv[4])
test_ray.ingest(Path(sys.argv[1]), Path(sys.argv[2]), test_ray.engine(nodes), on_progress=tell)
"""


def test_a_killed_driver_resumes_with_what_was_committed(nodes, videos, cache, alone):
    words = [videos, cache, Path(__file__).parent, nodes.address]
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, *map(str, words)], stdout=subprocess.PIPE, text=True
    )
    assert driver.stdout is not None
    while int(driver.stdout.readline()) < 4:
        pass
    driver.kill()
    driver.communicate()
    again = ingest(videos, cache, engine(nodes))
    print(f"stored before the kill {again.skipped}, after it {again.stored}")
    assert again.skipped >= 4
    assert again.stored == VIDEOS - again.skipped
    assert stored(cache, again) == alone


def test_a_node_and_an_actor_killed_cost_the_videos_in_flight(
    nodes, videos, cache, alone, tmp_path
):
    listed = shutil.copytree(videos, tmp_path / "more")
    shutil.copy(listed / "v00.mp4", listed / "poison.mp4")
    kills = [
        (3, lambda: nodes.remove_node(nodes.workers.pop(), allow_graceful=False)),
        (9, lambda: os.kill(an_actor(), signal.SIGKILL)),
    ]

    def kill(progress):
        if kills and progress.done >= kills[0][0]:
            kills.pop(0)[1]()

    summary = ingest(listed, cache, engine(nodes), on_progress=kill)
    assert kills == []
    records, reasons = stored(cache, summary)
    assert "2 workers died while each was at work on it alone" in reasons.pop("poison")
    wanted, failed = alone
    assert reasons == {name: r.replace(str(videos), str(listed)) for name, r in failed.items()}
    assert records.keys() == wanted.keys()
    for name, (header, *values) in records.items():
        path = header.video_path.replace(str(listed), str(videos))
        source = wanted[name][0].source  # of the same bytes, copied at another time
        assert (dataclasses.replace(header, video_path=path, source=source), *values) == wanted[
            name
        ]


INTERRUPTED = """
import os, signal, threading
from featstore.pipeline.cluster.ray_engine import connected

stop = threading.Event()
signal.signal(signal.SIGINT, lambda *_: os._exit(130) if stop.is_set() else stop.set())
with connected(None, stop):
    import ray
    print(ray._private.worker._global_node.get_session_dir_path(), flush=True)
    stop.wait()
    print("ends", flush=True)
"""


def test_a_second_interrupt_leaves_no_process_while_the_cluster_is_ended():
    """Ray's agents outlive for minutes a driver that exits in the middle of `ray.shutdown`."""
    env = {**os.environ, **ENV, **python_env()}
    command = [sys.executable, "-c", INTERRUPTED]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as driver:
        assert driver.stdout is not None
        session = driver.stdout.readline().strip()
        assert len(of_session(session)) >= 4
        driver.send_signal(signal.SIGINT)
        assert driver.stdout.readline() == "ends\n"
        time.sleep(0.05)
        driver.send_signal(signal.SIGINT)
        driver.wait(30)
    left = wait_gone(partial(of_session, session), 5)
    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert left == []
