"""The plan of an ingest as plain values, for `--json`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from featstore.formats.facts import failure_facts
from featstore.pipeline.estimate import storages_of
from featstore.pipeline.room import needed_together

if TYPE_CHECKING:
    from collections.abc import Sequence

    from featstore.decoding.video_file import Video
    from featstore.pipeline.estimate import Estimate
    from featstore.pipeline.rates import Rates
    from featstore.pipeline.room import Room


def plan_facts(
    estimates: Sequence[Estimate],
    rates: Rates,
    room: Room,
    reasons: list[str],
    seconds: tuple[float, float],
    *,
    list_videos: bool,
) -> dict[str, Any]:
    """Return the plan in the words of `--json`.

    Args:
        estimates: what each dataset takes.
        rates: how fast it goes.
        room: what there is room for.
        reasons: why it does not fit.
        seconds: what it takes, least and most.
        list_videos: name the videos to ingest, too.
    """
    least, most = seconds
    return {
        "datasets": [
            {
                "dataset": found.dataset,
                "storage": vars(found.storage),
                "total": found.videos,
                "questions": found.questions,
                "skipped": found.stored,
                "stored_otherwise": found.restored,
                "replaced": found.replaced,
                "clashes": [failure_facts(found.dataset, row) for row in found.clashes],
                "planned": found.clips.count,
                "frames": found.clips.frames_taken,
                "video_seconds": found.clips.seconds,
                "failed_before": [failure_facts(found.dataset, row) for row in found.failed_before],
                "unreadable": [
                    {"video_id": name, "reason": why} for name, why in found.unreadable.items()
                ],
                **_needed(found.needed_bytes()),
                "files": found.files,
            }
            | ({"todo": [_todo(video) for video in found.todo]} if list_videos else {})
            for found in estimates
        ],
        **_needed(needed_together(estimates)),
        "by_storage": {
            str(s): _needed(needed_together(estimates, s)) for s in storages_of(estimates)
        },
        "free_bytes": room.free,
        "min_free_bytes": room.min_free,
        "max_size_bytes": room.max_size,
        "taken_bytes": room.taken,
        "seconds": most,
        "least_seconds": least,
        "rates": {
            "source": rates.source,
            "decode_seconds_per_frame": rates.decode[1],
            "least_decode_seconds_per_frame": rates.decode[0],
            "encode_seconds_per_frame": rates.encode,
            "write_seconds_per_frame": rates.write,
            "together_seconds_per_frame": rates.together,
            "start_seconds": rates.start,
            "videos": rates.videos,
            "record_bytes_per_frame": rates.record_bytes,
        },
        "fits": not reasons,
        "why_not": reasons,
    }


def _needed(ends: tuple[int, int] | None) -> dict[str, int | None]:
    """Return the most and the least bytes; None if a record cannot be so large."""
    least, most = ends or (None, None)
    return {"needed_bytes": most, "least_needed_bytes": least}


def _todo(video: Video) -> dict[str, str]:
    return {"video_id": video.video_id, "video_path": video.path}
