"""What a record and a catalog row say, in the words of `--json` and of exported files."""

from __future__ import annotations

import json
from json.encoder import encode_basestring_ascii as quote
from math import isfinite
from typing import TYPE_CHECKING, Any

from featstore.fields import all_finite, time_text, to_plain
from featstore.store.rows import Entry

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from featstore.records.header import Header
    from featstore.store.rows import Failure


# The doubt of imported features. Nobody knows these of them; their records and rows have other values in these places.
IMPORTED = "imported: frames unknown"
_UNKNOWN_IF_IMPORTED = ("frame_indices", "total_frames", "fps", "dtype", "error", "source")


def record_facts(header: Header) -> dict[str, Any]:
    """Return what a record says about its features, as plain values; None for what nobody knows."""
    rows, width = header.shape
    facts = {
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
        "source": source_facts(header.source.size, header.source.mtime_ns, header.source.xxh3_128),
        "created": time_text(header.created),
    }
    return facts | (dict.fromkeys(_UNKNOWN_IF_IMPORTED) if header.doubt == IMPORTED else {})


def source_facts(size: int, mtime_ns: int, xxh3_128: str) -> dict[str, Any]:
    """Return what is known of the file that was encoded, as plain values."""
    return {"source_bytes": size, "mtime_ns": mtime_ns, "xxh3_128": xxh3_128}


def entry_facts(dataset: str, entry: Entry) -> dict[str, Any]:
    """Return what the catalog says about a finished video, as plain values; None for what nobody knows."""
    facts = _entry_map(dataset, entry, time_text(entry.created))
    facts["error"] = all_finite(facts["error"])
    return facts | ({"error": None, "source": None} if entry.doubt == IMPORTED else {})


def _entry_map(dataset: str, entry: Entry, created: str | None) -> dict[str, Any]:
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
        "source": source_facts(entry.size, entry.mtime_ns, entry.xxh3_128),
        "created": created,
    }


def entries_json(dataset: str, entries: Iterable[Entry]) -> Iterator[str]:
    """Yield the facts of each entry as `json.dumps` writes them, in a third of its time: there may be millions.

    Args:
        dataset: the dataset's name.
        entries: rows of its catalog.
    """
    blank = Entry._make(["%s"] * len(Entry._fields))
    template = json.dumps(_entry_map(dataset, blank, "%s")).replace('"%s"', "%s")
    for entry in entries:
        (spec, name, path, rows, width, frames, values, granularity, codec, stored, _, decoder, doubt,
         size, mtime_ns, xxh3, cosine, l2, max_abs, p99, token_max, created) = entry  # fmt: skip
        made = time_text(created)
        known = doubt != IMPORTED and made is not None
        if not (known and isfinite(cosine + l2 + max_abs + p99 + token_max)):
            yield json.dumps(entry_facts(dataset, entry))
            continue
        yield template % (
            quote(name), quote(spec), quote(path), rows, width, frames, stored, quote(decoder), quote(doubt),
            quote(values), quote(granularity), quote(codec), cosine, l2, max_abs, p99, token_max,
            size, mtime_ns, quote(xxh3), f'"{made}"',
        )  # fmt: skip


def failure_facts(dataset: str, failure: Failure) -> dict[str, Any]:
    """Return what the catalog says about a video that failed, as plain values."""
    return {
        "video_id": failure.video_id,
        "dataset": dataset,
        "feature_set": failure.spec,
        "video_path": failure.video_path,
        "reason": failure.reason,
        "created": time_text(failure.created),
    }
