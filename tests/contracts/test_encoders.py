"""Each encoder of the table keeps the contract, and toys of every geometry do."""

import pytest
from encoder_contract import EncoderContract
from geometries import GEOMETRIES
from make_tiny_video_model import make_tiny_video_model
from make_tiny_vision import make_tiny_vision

from featstore.encoders.llava_onevision.encoder import LlavaOnevisionEncoder
from featstore.encoders.longva.encoder import LongVAEncoder
from featstore.encoders.qwen_vl.encoder import QwenVLEncoder
from featstore.encoders.registry import ENCODERS
from featstore.encoders.toy import ToyEncoder
from featstore.encoders.transformers_vision.encoder import TransformersEncoder


@pytest.fixture(scope="module", params=["clip", "videomae"])
def tiny_vision(request, tmp_path_factory):
    return make_tiny_vision(tmp_path_factory.mktemp("vision"), request.param)


class TestToy(EncoderContract):
    name = "toy"

    @pytest.fixture
    def encoder(self):
        return ToyEncoder()


class TestLongVA(EncoderContract):
    name = "longva"
    tolerance = 1e-5

    @pytest.fixture
    def encoder(self, tiny):
        return LongVAEncoder(tiny, device="cpu", dtype="fp32")


class TestTransformers(EncoderContract):
    name = "transformers"
    tolerance = 1e-5

    @pytest.fixture
    def encoder(self, tiny_vision):
        return TransformersEncoder(tiny_vision, device="cpu", dtype="fp32", layer="-2,-1")


class TestLlavaOnevision(EncoderContract):
    name = "llava_onevision"
    tolerance = 1e-5

    @pytest.fixture
    def encoder(self, tmp_path_factory):
        folder = tmp_path_factory.getbasetemp() / "contract-llava_onevision"
        if not folder.exists():
            make_tiny_video_model(folder, "llava_onevision")
        return LlavaOnevisionEncoder(str(folder), device="cpu", dtype="fp32")


class TestQwenVL(EncoderContract):
    name = "qwen_vl"
    tolerance = 1e-5

    @pytest.fixture(params=["qwen2_5_vl", "qwen3_vl"])
    def encoder(self, request, tmp_path_factory):
        folder = tmp_path_factory.getbasetemp() / f"contract-{request.param}"
        if not folder.exists():
            make_tiny_video_model(folder, request.param)
        small = {"min_pixels": 4 * 1024, "max_pixels": 12 * 1024}
        return QwenVLEncoder(str(folder), device="cpu", dtype="fp32", **small)


class TestGeometries(EncoderContract):
    name = "counting"

    @pytest.fixture(params=GEOMETRIES)
    def encoder(self, request):
        return GEOMETRIES[request.param]()


def test_every_encoder_is_tested():
    names = {kind.name for kind in EncoderContract.__subclasses__()}
    assert names - {"counting"} == set(ENCODERS)
