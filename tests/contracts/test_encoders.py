"""Each encoder of the table keeps the contract."""

import pytest
from encoder_contract import EncoderContract

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


def test_every_encoder_is_tested():
    assert {kind.name for kind in EncoderContract.__subclasses__()} == set(ENCODERS)
