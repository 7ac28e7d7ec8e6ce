"""What a record and a catalog row say, in the words of `--json` and of exported files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from featstore.fields import to_plain

if TYPE_CHECKING:
    from featstore.records.header import Header
    from featstore.store.rows import Entry, Failure


def record_facts(header: Header) -> dict[str, Any]:
    """Return what a record says about its features, as plain values."""
    rows, width = header.shape
    return {
        "video_id": header.video_id,
        "dataset": header.dataset,
        "feature_set": header.spec,
        "video_path": header.video_path,
        "rows": rows,
        "width": width,
        "layout": to_plain(header.layout),
        "nframe": header.nframe,
        "frames": len(header.frames),
        "frame_indices": header.frames,
        "total_frames": header.total_frames,
        "fps": header.fps,
        "decoder": header.decoder,
        "doubt": header.doubt,
        "dtype": header.dtype,
        "storage": to_plain(header.storage),
        "error": to_plain(header.error),
        "source": to_plain(header.source),
        "created": header.created,
    }


def entry_facts(dataset: str, entry: Entry) -> dict[str, Any]:
    """Return what the catalog says about a finished video, as plain values; there may be millions."""
    return {
        "video_id": entry.video_id,
        "dataset": dataset,
        "feature_set": entry.spec,
        "video_path": entry.video_path,
        "rows": entry.rows,
        "width": entry.width,
        "frames": entry.frames,
        "record_bytes": entry.record_bytes,
        "decoder": entry.decoder,
        "doubt": entry.doubt,
        "storage": {
            "values": entry.values,
            "granularity": entry.granularity,
            "codec": entry.codec,
        },
        "error": {
            "cosine": entry.cosine,
            "relative_l2": entry.relative_l2,
            "max_abs": entry.max_abs,
            "token_p99": entry.token_p99,
            "token_max": entry.token_max,
        },
        "source": {
            "size": entry.size,
            "mtime_ns": entry.mtime_ns,
            "xxh3_128": entry.xxh3_128,
        },
        "created": entry.created,
    }


def failure_facts(dataset: str, failure: Failure) -> dict[str, Any]:
    """Return what the catalog says about a video that failed, as plain values."""
    return {
        "video_id": failure.video_id,
        "dataset": dataset,
        "feature_set": failure.spec,
        "video_path": failure.video_path,
        "reason": failure.reason,
        "created": failure.created,
    }
