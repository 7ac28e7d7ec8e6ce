"""Features that are NaN or infinite: neither stored nor answered from, and the way out is named for each dtype."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from quick import first_is_quick

import featstore
from featstore.encoders.longva.encoder import LongVAEncoder
from featstore.errors import NotFinite
from featstore.models import CachedLongVA
from featstore.sampling import Sampling

pytestmark = pytest.mark.usefixtures("one_thread")

QUESTION = "What color is the ball?"
DTYPES = {
    "fp16": "computed in fp16, whose largest number is 65504: compute in bf16 or fp32",
    "bf16": "computed in bf16, compute in fp32",
    "fp32": "computed in fp32, which can hold them: the checkpoint's weights are damaged",
}


@pytest.fixture
def broken(altered):
    """Checkpoints whose projector adds `value` to each feature."""

    def build(value=float("nan")):
        def change(tensors):
            bias = tensors["model.mm_projector.2.bias"]
            return tensors | {"model.mm_projector.2.bias": torch.full_like(bias.float(), value)}

        return altered(tensors=change)

    return build


def open_model(checkpoint, cache_dir, **options):
    options = {"dataset": "demo", "sampling": Sampling(4), "device": "cpu"} | options
    return CachedLongVA(checkpoint, cache_dir, **options)


@pytest.mark.parametrize("dtype", first_is_quick(DTYPES))
@pytest.mark.parametrize("on_miss", first_is_quick(["encode", "encode-only", None]))
def test_a_video_with_such_features_is_refused(broken, clips, cache, dtype, on_miss):
    where = (None, {}) if on_miss is None else (cache, {"on_miss": on_miss})
    with open_model(broken(), where[0], dtype=dtype, **where[1]) as model:
        with pytest.raises(NotFinite, match=rf"blink\.mp4: 73728 of 73728 .*{DTYPES[dtype]}"):
            model.generate(QUESTION, "blink", path=clips / "blink.mp4")
        assert not cache.exists() or "blink" not in featstore.open(cache).get("demo", {})


def test_an_image_with_such_features_is_refused(broken, tmp_path):
    picture = Image.new("RGB", (64, 48))
    picture.save(tmp_path / "picture.png")
    with open_model(broken(), None, dtype="fp32") as model:
        for image, name in ((picture, "an image"), (tmp_path / "picture.png", "picture.png")):
            with pytest.raises(NotFinite, match=f"{name}: .*{DTYPES['fp32']}"):
                model.generate(QUESTION, images=[image])


def test_features_that_are_handed_over_are_looked_at_too(tiny):
    features = torch.zeros(4, 128)
    features[1, 2] = torch.inf
    with open_model(tiny, None, dtype="fp16") as model:
        with pytest.raises(NotFinite, match=r"the features given: 1 of 512 .*or infinite"):
            model.answer_features(QUESTION, features)
        features[1, 2] = 1e5
        with pytest.raises(NotFinite, match=r"the features given: 1 of 512 .*do not fit fp16"):
            model.answer_features(QUESTION, features)


@pytest.mark.slow
def test_stored_features_beyond_fp16_are_refused_by_a_model_in_fp16(broken, clips, cache):
    checkpoint, asked = broken(1e5), {"path": clips / "blink.mp4", "max_new_tokens": 2}
    with open_model(checkpoint, cache, dtype="bf16") as model:
        model.generate(QUESTION, "blink", **asked)
    with (
        open_model(checkpoint, cache, dtype="fp16", on_miss="error") as model,
        pytest.raises(
            NotFinite, match=r"stored features of video 'blink': .*fit fp16.*bf16 or fp32"
        ),
    ):
        model.generate(QUESTION, "blink", **asked)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_ingest_names_the_dtype_it_ran_in(broken, clips, cache, dtype):
    encoder = LongVAEncoder(broken(), device="cpu", dtype=dtype)
    summary = featstore.ingest(clips, cache, "demo", encoder=encoder, sampling=Sampling(4))
    assert summary.stored == 0
    assert all(DTYPES[dtype] in failure.reason for failure in summary.failures)
