"""What a caller sets in torch is no matter of the features: the same bits under autocast, TF32 and other defaults."""

from __future__ import annotations

import threading
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from drills.shared.processes import ask
from quick import first_is_quick

import featstore
from featstore.encoders.longva.encoder import LongVAEncoder
from featstore.models import CachedLongVA
from featstore.sampling import Sampling
from featstore.torch.arithmetic import own_arithmetic

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
QUESTION = "What color is the ball?"


@contextmanager
def setting(put, value, before):
    put(value)
    try:
        yield
    finally:
        put(before)


SETTINGS = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference mode": torch.inference_mode,
    "gradients": torch.enable_grad,
    "low precision": lambda: setting(torch.set_float32_matmul_precision, "medium", "highest"),
    "default dtype": lambda: setting(torch.set_default_dtype, torch.float64, torch.float32),
    "default device": lambda: setting(torch.set_default_device, "meta", None),
}


def precisions():
    newer = getattr(torch.backends.mkldnn, "matmul", None)
    return (
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.allow_tf32,
        torch.backends.cudnn.benchmark,
        getattr(newer, "fp32_precision", None),
    )


@pytest.mark.parametrize("name", first_is_quick(SETTINGS))
def test_an_encoder_gives_the_same_bits_whatever_the_caller_set(tiny, name):
    def build():
        return LongVAEncoder(tiny, device="cpu", dtype="fp32")

    encoder = build()
    shape = (3, *encoder.preprocessing.max_frame, 3)
    frames = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    expected = encoder.encode(frames)
    with SETTINGS[name]():
        before = precisions()
        another = build()
        found = [encoder.encode(frames), another.encode(frames)]
        assert precisions() == before
    found.append(another.encode(frames))
    assert [features.dtype for features in found] == [torch.float32] * 3
    assert [torch.equal(features, expected) for features in found] == [True] * 3


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_a_model_stores_the_same_bits_whatever_the_caller_set(tiny, clips, tmp_path, name):
    def stored(folder):
        with CachedLongVA(tiny, folder, sampling=Sampling(4), device="cpu", dtype="fp32") as model:
            path = clips / "blink.mp4"
            model.generate(QUESTION, "blink", dataset="demo", path=path, max_new_tokens=2)
        return featstore.open(folder)["demo"]["blink"].data.tobytes()

    expected = stored(tmp_path / "plain")
    with SETTINGS[name]():
        assert stored(tmp_path / "set") == expected


@pytest.mark.slow
def test_a_prefix_made_under_autocast_serves_no_question_without(tiny, clips, tmp_path):
    with CachedLongVA(tiny, tmp_path / "cache", dataset="demo", sampling=Sampling(4)) as model:
        asked = {"path": clips / "blink.mp4", "max_new_tokens": 8}
        expected = model.generate_ids(QUESTION, "blink", **asked)
        model.close()  # gives up the prefix
        with SETTINGS["autocast"]():
            model.generate_ids(QUESTION, "blink", **asked)
        assert model.generate_ids(QUESTION, "blink", **asked) == expected


def test_the_last_thread_that_leaves_puts_the_flags_back():
    inside, leave = threading.Event(), threading.Event()

    def work():
        with own_arithmetic(CPU):
            inside.set()
            assert leave.wait(60)

    with SETTINGS["low precision"]():
        before = precisions()
        thread = threading.Thread(target=work)
        thread.start()
        assert inside.wait(60)
        with own_arithmetic(CPU):
            pass
        assert torch.get_float32_matmul_precision() == "highest"
        assert ask(precisions) == list(before)  # a child does not have that thread
        leave.set()
        thread.join()
        assert precisions() == before


@pytest.mark.skipif(
    not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="torch before 2.9"
)
def test_precisions_that_were_set_in_the_newer_way_are_put_back_too():
    place = torch.backends.cuda.matmul
    with setting(lambda value: setattr(place, "fp32_precision", value), "tf32", "none"):
        with own_arithmetic(CPU):
            assert place.fp32_precision == "ieee"
        assert place.fp32_precision == "tf32"
