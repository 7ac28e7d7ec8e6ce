"""Workers of Ray for tests: slow enough to be killed in the middle, and killed by one video."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, Any

import featstore.pipeline.cluster.ray_worker as home
from featstore.pipeline.cluster.ray_worker import RayVideos, RayWorker
from featstore.system.processes import unpack_message

if TYPE_CHECKING:
    from collections.abc import Iterator

SECONDS_A_VIDEO = 0.1


class SlowWorker(RayWorker):
    """Takes its time for each video, and dies of the one that is called `poison`."""

    def work(self, videos: bytes, keep: int) -> Iterator[tuple[bytes, Any]]:
        if any(v.video_id == "poison" for v in unpack_message(videos, RayVideos).videos):
            os.kill(os.getpid(), signal.SIGKILL)
        for answer in super().work(videos, keep):
            time.sleep(SECONDS_A_VIDEO)
            yield answer


class OlderWorker(RayWorker):
    """Is of another version."""

    def join(self, work: bytes) -> tuple[str, bytes]:
        home.featstore.__version__ = "0.0.1"
        return super().join(work)
