"""An ingest under Ray: the cluster it joins or starts, and what its workers ask of the nodes."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import threading
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featstore.decoding.video_file import identity_of
from featstore.errors import FeatstoreError, MissingExtra
from featstore.pipeline.cluster.ray_driver import RayDriver
from featstore.pipeline.cluster.ray_worker import RayWork, RayWorker
from featstore.pipeline.shared_memory import Memory
from featstore.pipeline.write.writer_client import start_writer
from featstore.system.processes import pack_message

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import ExitStack

    from featstore.decoding.video_file import Video
    from featstore.encoders.base import Encoder
    from featstore.encoders.registry import EncoderRecipe
    from featstore.pipeline.options import IngestOptions
    from featstore.pipeline.summary import IngestSummary, Progress

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# What Ray prints and reports of its own is no part of an ingest's progress.
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_SCHEDULER_EVENTS": "0", "RAY_DEDUP_LOGS": "0"}


@dataclass(frozen=True)
class RayEngine:
    """Carries out the plan of an ingest on a Ray cluster.

    Attributes:
        recipe: builds the encoder of a worker.
        address: of the cluster to join, `auto` for the one of this machine; None for RAY_ADDRESS, or a new one.
        workers: number of actors; None for as many as fit.
        gpus_per_worker: GPUs that each takes, or the share of one.
        worker: the class of the actors; another than RayWorker is for tests.
    """

    recipe: EncoderRecipe
    address: str | None = None
    workers: int | None = None
    gpus_per_worker: float = 1.0
    worker: type[RayWorker] = RayWorker

    def run(
        self,
        stack: ExitStack,
        summary: IngestSummary,
        encoder: Encoder,
        cache_dir: Path,
        options: IngestOptions,
        *,
        todo: list[Video],
        replaced: frozenset[str],
        stop: threading.Event | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> None:
        """Ingest `todo`.

        Args:
            stack: ends what is started.
            summary: of the plan; updated as the work goes on.
            encoder: as the workers' must be; it computes nothing.
            cache_dir: the folder of datasets.
            options: see `featstore.ingest`; `workers` are the decode processes of a worker.
            todo: the videos, under paths that all nodes have.
            replaced: ids of those that are stored from another file.
            stop: set it to end early.
            on_progress: called after each commit and each failure.

        Raises:
            MissingExtra: Ray is not installed.
            FeatstoreError: there is no such cluster, or workers are lost one after the other.
            StoreMismatch: before any work of it, if a worker would make other features, or is of another version.
        """
        stack.enter_context(connected(self.address, stop))
        import ray

        workers, cpus, decoders = self._size(ray.nodes(), options.workers)
        summary.encoders = min(workers, len(todo))
        summary.workers = decoders * summary.encoders
        memory = Memory.reserve(
            summary.spec,
            summary.storage,
            workers=1,
            encoders=2,
            batch_frames=encoder.batch_frames,
            budget=summary.budget,
        )
        stack.callback(memory.close)
        slots = memory.record_slots
        summary.shared_bytes = len(slots.memory)
        writer = start_writer(stack, summary, encoder, cache_dir, options, slots)
        work = RayWork(
            dataset=summary.dataset,
            spec=summary.spec,
            storage=summary.storage,
            budget=summary.budget,
            recipe=self.recipe,
            workers=decoders,
            decode_timeout=options.decode_timeout,
            decode_memory=options.decode_memory,
            decoder=options.decoder,
        )
        # A restarted actor or a task tried again would go on with a video that kills it, for ever.
        actor = ray.remote(
            num_cpus=cpus,
            num_gpus=self.gpus_per_worker,
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy="SPREAD",
            concurrency_groups={"control": 1},
        )(self.worker)
        RayDriver(
            partial(_hire, actor, pack_message(work)),
            summary,
            writer,
            slots,
            decoder=identity_of(options.decoder),
            in_flight=2 * decoders + 4,
            stop=stop or threading.Event(),
            on_progress=on_progress,
        ).run(todo, replaced)

    def _size(self, nodes: list[dict[str, Any]], decoders: int | None) -> tuple[int, int, int]:
        """Return how many workers there are, the cores that each asks for, and its decode processes."""
        resources = [node["Resources"] for node in nodes if node["Alive"]]
        gpus = self.gpus_per_worker
        fits = []  # workers and cores of each node
        for found in resources:
            cores = int(found.get("CPU", 0))
            if gpus:
                fits.append((int(found.get("GPU", 0) / gpus), cores))
            else:
                fits.append((cores // (decoders + 1) if decoders else min(1, cores), cores))
        fits = [(count, cores) for count, cores in fits if count and cores]
        asked = self.workers or sum(count for count, _ in fits)
        if not asked:
            each = f"{gpus:g} GPUs and a core" if gpus else f"{(decoders or 0) + 1} cores"
            raise FeatstoreError(
                f"no node of the Ray cluster has {each} for a worker, and --workers is not given; "
                "give fewer --decode-workers or --gpus-per-worker 0 --device cpu, or name --workers to wait for nodes"
            )
        least = min((cores // count for count, cores in fits), default=1) or 1
        decoders = decoders or max(1, least - 1)
        return asked, min(decoders + 1, least) if fits else decoders + 1, decoders


@contextlib.contextmanager
def connected(address: str | None, stop: threading.Event | None = None) -> Iterator[None]:
    """Be connected to a Ray cluster within the block, unless this process is already.

    Args:
        address: see RayEngine.
        stop: once it is set, a signal also ends a cluster that was started here, before its handler is called.

    Raises:
        MissingExtra: Ray is not installed.
        FeatstoreError: there is no such cluster.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as exc:
        raise MissingExtra(
            "--engine ray needs Ray: pip install 'featstore[ray]', here and on all nodes"
        ) from exc
    if ray.is_initialized():
        yield
        return
    rays = importlib.import_module("ray._private.worker")
    in_main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in _SIGNALS} if in_main else {}
    starts = address is None and not os.environ.get("RAY_ADDRESS")
    # None would join any cluster that is on this machine.
    local = {"address": "local", "include_dashboard": False} if starts else {"address": address}
    cluster = _LocalCluster()
    # Ray prints what raylets report to stdout, where a summary or JSON is to be, also with log_to_driver off.
    name = "print_to_stdstream"
    printed = getattr(rays, name, None)
    try:
        if starts and stop is not None:
            cluster.end_with(handlers, stop)
        try:
            ray.init(logging_level="ERROR", log_to_driver=False, **local)
        except (ConnectionError, RuntimeError, ValueError) as exc:
            raise FeatstoreError(
                f"the Ray cluster {address or 'of this machine'} cannot be joined: {exc}; start one with ray start, or "
                "leave --address out for one that ends with the ingest"
            ) from exc
        cluster.is_up()
        if starts and stop is not None:
            cluster.end_with(handlers, stop)  # ray.init takes SIGTERM
        elif in_main:
            signal.signal(signal.SIGTERM, handlers[signal.SIGTERM])
        setattr(rays, name, lambda *_, **__: None)
        yield
    finally:
        setattr(rays, name, printed)
        ray.shutdown()
        for number, handler in handlers.items():
            signal.signal(number, handler)


class _LocalCluster:
    """The processes of a cluster that this process starts, of which Ray leaves some if this one just exits.

    It is made before the cluster is: what is started from then on until `is_up` is the cluster's.
    """

    def __init__(self) -> None:
        self._before = _children({os.getpid()})
        self._roots: set[int] | None = None

    def is_up(self) -> None:
        """Note that what is started from now on is not the cluster's."""
        self._roots = _children({os.getpid()}) - self._before

    def end_with(self, handlers: dict[signal.Signals, Any], stop: threading.Event) -> None:
        """Have a signal that comes when `stop` is set end the cluster before its handler is called."""

        def wrap(handler: Any) -> Any:
            def on_signal(number: int, frame: Any) -> None:
                if stop.is_set():
                    self.kill()
                handler(number, frame)

            return on_signal

        for number, handler in handlers.items():
            if callable(handler):
                signal.signal(number, wrap(handler))

    def kill(self) -> None:
        """Kill its processes and all that descend from them."""
        roots = self._roots
        if roots is None:
            roots = _children({os.getpid()}) - self._before
        found: set[int] = set()
        more = roots
        while more:
            _signal(more, signal.SIGSTOP)  # so that they start no others in the meantime
            found |= more
            more = _children(found) - found
        _signal(found - roots, signal.SIGKILL)
        # Last: Ray ends this process as soon as its raylet is gone, and with this process the system ends the rest.
        _signal(roots, signal.SIGKILL)


def _signal(pids: set[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _children(parents: set[int]) -> set[int]:
    """Return the processes that these have started, where there is a /proc."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            rest = stat.read_text(errors="replace").rpartition(")")[2]  # after the name
            if int(rest.split()[1]) in parents:
                found.add(int(stat.parent.name))
    return found


def _hire(actor: Any, work: bytes) -> tuple[Any, Any]:
    handle = actor.remote()
    return handle, handle.join.remote(work)
