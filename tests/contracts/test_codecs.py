"""Each codec of the table keeps the contract."""

from codec_contract import CodecContract

from featstore.records.codecs import CODECS


class TestRaw(CodecContract):
    name = "raw"


class TestLz4(CodecContract):
    name = "lz4"


class TestZstd(CodecContract):
    name = "zstd"


class TestPlanesOfTwoBytes(CodecContract):
    name = "planes2"


class TestPlanesOfFourBytes(CodecContract):
    name = "planes4"


def test_every_codec_is_tested():
    assert {kind.name for kind in CodecContract.__subclasses__()} == set(CODECS)
