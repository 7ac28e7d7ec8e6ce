"""Rows of a catalog summed up without a store."""

from __future__ import annotations

from toys import toy_spec

from featstore.records.storage import Storage
from featstore.report.survey import SetSurvey, _add
from featstore.store.rows import Entry, FeatureSet

ENTRY = Entry(
    *("0" * 32, "v", "/v.mp4", 16, 8, 4, "int8", "channel", "raw", 1000, 128, "pyav", ""),
    *(1, 1, "0" * 32, 0.99, 0.01, 0.1, 0.02, 0.03, 1_700_000_000.0),
)
ROW = FeatureSet(toy_spec(), Storage(), 0.02, "toy", {}, 0.0, 0.0)


def surveyed(entries: list[Entry]) -> SetSurvey:
    found = SetSurvey("demo", ROW, is_default=True)
    for start in range(0, len(entries), 64):
        _add(found, entries[start : start + 64])
    return found
