"""Options that no ingest can work with are refused when they are made, not after hours."""

import pytest

from featstore import IngestOptions


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("workers", 0, "workers is 0; it must be at least 1"),
        ("decode_timeout", 0.0, "decode_timeout is 0.0 s; it must be above 0"),
        ("decode_memory", 0, "decode_memory is 0"),
        ("decoder", "ffmpeg", "decoder is 'ffmpeg'; use one of auto, av, decord"),
        ("limit", -1, "limit is -1"),
        ("max_size", -1, "max_size is -1"),
        ("lock_wait", float("nan"), "lock_wait is nan"),
    ],
)
def test_a_value_out_of_bounds_is_refused_with_the_bound(name, value, said):
    with pytest.raises(ValueError, match=said):
        IngestOptions(**{name: value})


def test_the_bounds_themselves_are_taken():
    IngestOptions(workers=1, decode_timeout=0.001, limit=0, min_free=0, max_size=0, lock_wait=0.0)
