"""Each encoder of the table keeps the contract, and toys of every geometry do."""

import pytest
from encoder_contract import EncoderContract
from geometries import GEOMETRIES

from featstore.encoders.longva.encoder import LongVAEncoder
from featstore.encoders.registry import ENCODERS
from featstore.encoders.toy import ToyEncoder


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


class TestGeometries(EncoderContract):
    name = "counting"

    @pytest.fixture(params=GEOMETRIES)
    def encoder(self, request):
        return GEOMETRIES[request.param]()


def test_every_encoder_is_tested():
    names = {kind.name for kind in EncoderContract.__subclasses__()}
    assert names - {"counting"} == set(ENCODERS)
