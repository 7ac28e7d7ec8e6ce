"""What hypothesis draws: feature arrays, specs, headers."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from featstore.encoders.registry import ENCODERS
from featstore.geometry import Geometry, RowLayout
from featstore.preprocessing import ExactResize, PixelBudget, ShortestEdgeCrop
from featstore.records.header import Header, SourceFingerprint
from featstore.records.quantization import QuantError
from featstore.records.storage import GRANULARITIES, Storage
from featstore.sampling import Sampling
from featstore.spec import DTYPES, EncoderIdentity, FeatureSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

# The very largest float32 is left out: 127 * (largest / 127) rounds to infinity.
LARGEST = float(np.finfo(np.float32).max) / 2

storages = st.sampled_from(
    [Storage("int8", granularity) for granularity in GRANULARITIES]
    + [Storage(values) for values in ("bf16", "fp16", "fp32")]
)
int8_granularities = st.sampled_from(GRANULARITIES)
# Any string Python can hold, the surrogates of undecodable file names included.
texts = st.text(st.characters(exclude_categories=[]), max_size=20)
# Text, or the bytes of a file name that is none.
video_ids = st.one_of(
    st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=20),
    st.binary(min_size=1, max_size=20)
    .map(lambda name: name.decode("utf-8", "surrogateescape"))
    .filter(lambda video: not any(ord(c) < 32 or ord(c) == 127 for c in video)),
)


def feature_arrays(largest: float = LARGEST) -> st.SearchStrategy[NDArray[np.float32]]:
    """Finite float32 (num_tokens, hidden_dim), zeros and denormals among them."""
    return nps.arrays(
        np.float32,
        st.tuples(st.integers(1, 70), st.integers(1, 5)),
        elements=st.floats(-largest, largest, width=32),
    )


@st.composite
def samplings(draw: st.DrawFn) -> Sampling:
    nframe = draw(st.integers(1, 200))
    if draw(st.booleans()):
        return Sampling(nframe, "fps", draw(st.floats(0.001, 1000)))
    return Sampling(nframe, draw(st.sampled_from(["linspace", "midpoint", "vlmevalkit"])))


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    height, width = draw(st.integers(1, 30)), draw(st.integers(1, 30))
    frames = draw(st.integers(1, 16))
    return Geometry(
        tokens_per_unit=height * width,
        hidden_dim=draw(st.integers(1, 10_000)),
        frames_per_unit=frames,
        stride=draw(st.integers(1, frames)),
        extra_rows=draw(st.integers(0, 3)),
        planes=draw(st.integers(1, 4)),
        grid=draw(st.sampled_from([None, (height, width)])),
    )


preprocessings = st.one_of(
    st.builds(
        ShortestEdgeCrop,
        shortest_edge=st.integers(0, 400),
        crop_height=st.integers(1, 400),
        crop_width=st.integers(1, 400),
    ),
    st.builds(ExactResize, height=st.integers(1, 400), width=st.integers(1, 400)),
    st.builds(
        PixelBudget,
        multiple=st.integers(1, 28),
        min_pixels=st.integers(1, 800),
        max_pixels=st.integers(800, 100_000),
    ),
)


@st.composite
def specs(draw: st.DrawFn) -> FeatureSpec:
    encoder = EncoderIdentity(
        family=draw(st.sampled_from(sorted(ENCODERS))),
        weights=draw(st.text("0123456789abcdef", min_size=64, max_size=64)),
        dtype=draw(st.sampled_from(DTYPES)),
        geometry=draw(geometries()),
        settings=draw(
            st.dictionaries(
                texts,
                st.one_of(texts, st.integers(-99, 99), st.booleans(), st.none(), st.floats(0, 1)),
                max_size=3,
            )
        ),
    )
    return FeatureSpec(encoder, draw(samplings()), draw(texts), draw(preprocessings))


@st.composite
def headers(draw: st.DrawFn) -> Header:
    """Headers of records small enough to build, codec raw."""
    frames, tokens = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    extra, planes = draw(st.integers(0, 2)), draw(st.integers(1, 2))
    numbers = st.floats(allow_nan=False, allow_infinity=False)
    indices = draw(st.lists(st.integers(0, 2**32 - 1), min_size=frames, max_size=frames))
    layout = RowLayout(
        units=frames,
        tokens_per_unit=tokens,
        extra_rows=extra,
        planes=planes,
        grid=draw(st.sampled_from([None, (frames, 1, tokens)])),
    )
    return Header(
        video_id=draw(video_ids),
        video_path=draw(texts),
        dataset=draw(texts),
        spec=draw(texts),
        nframe=frames + draw(st.integers(0, 3)),
        frame_indices=struct.pack(f"<{frames}I", *indices),
        total_frames=draw(st.integers(1, 2**40)),
        fps=draw(st.floats(0, 1000)),
        decoder=draw(texts),
        doubt=draw(texts),
        shape=(layout.rows, planes * draw(st.integers(1, 4))),
        layout=layout,
        dtype=draw(st.sampled_from(DTYPES)),
        storage=draw(storages),
        source=SourceFingerprint(
            draw(st.integers(0, 2**62)), draw(st.integers(-(2**62), 2**62)), draw(texts)
        ),
        error=draw(st.builds(QuantError, numbers, numbers, numbers, numbers, numbers)),
        created=draw(st.floats(0, 2e9)),
        payload_xxh3=draw(st.integers(0, 2**64 - 1)),
    )
