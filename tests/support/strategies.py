"""What hypothesis draws: feature arrays, specs, headers."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from featstore.encoders.registry import ENCODERS
from featstore.preprocessing import Preprocessing
from featstore.records.header import Header, SourceFingerprint
from featstore.records.quantization import QuantError
from featstore.sampling import Sampling
from featstore.spec import DTYPES, STORAGES, EncoderIdentity, FeatureSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

# The very largest float32 is left out: 127 * (largest / 127) rounds to infinity.
LARGEST = float(np.finfo(np.float32).max) / 2

storages = st.sampled_from(STORAGES)
int8_granularities = st.sampled_from(["channel", "token", "tensor"])
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
def specs(draw: st.DrawFn) -> FeatureSpec:
    edge = draw(st.integers(1, 400))
    quantization, scale = draw(storages)
    encoder = EncoderIdentity(
        name=draw(st.sampled_from(sorted(ENCODERS))),
        weights=draw(st.text("0123456789abcdef", min_size=64, max_size=64)),
        vision_tower=draw(texts),
        select_layer=draw(st.integers(-24, 24)),
        select_feature=draw(st.sampled_from(["patch", "cls_patch"])),
        projector=draw(texts),
        pooling=draw(texts),
        architecture=draw(texts),
        preprocessing=Preprocessing(draw(st.integers(0, 400)), edge, edge),
        dtype=draw(st.sampled_from(DTYPES)),
        tokens_per_frame=draw(st.integers(1, 1000)),
        hidden_dim=draw(st.integers(1, 10_000)),
    )
    return FeatureSpec(encoder, draw(samplings()), draw(texts), quantization, scale)


@st.composite
def headers(draw: st.DrawFn) -> Header:
    """Headers of records small enough to build, codec raw."""
    frames, per_frame = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    quantization, scale = draw(storages)
    floats: dict[str, Any] = {
        name: draw(st.floats(allow_nan=False)) for name in ("cosine", "relative_l2", "max_abs")
    }
    indices = draw(st.lists(st.integers(0, 2**32 - 1), min_size=frames, max_size=frames))
    return Header(
        video_id=draw(video_ids),
        video_path=draw(texts),
        dataset=draw(texts),
        nframe=frames + draw(st.integers(0, 3)),
        frame_indices=struct.pack(f"<{frames}I", *indices),
        total_frames=draw(st.integers(1, 2**40)),
        fps=draw(st.floats(0, 1000)),
        shape=(frames * per_frame, draw(st.integers(1, 8))),
        tokens_per_frame=per_frame,
        quantization=quantization,
        scale=scale,
        dtype=draw(st.sampled_from(DTYPES)),
        model_signature=draw(texts),
        spec=draw(texts),
        source=SourceFingerprint(
            draw(st.integers(0, 2**62)), draw(st.integers(-(2**62), 2**62)), draw(texts)
        ),
        error=QuantError(**floats),
        created=draw(st.floats(0, 2e9)),
        payload_xxh3=draw(st.integers(0, 2**64 - 1)),
    )
