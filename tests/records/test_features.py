"""Features as an array: what numpy, len, repr and pickle make of them."""

import pickle

import numpy as np
import pytest
from toys import pack_video, store_videos, toy_features, toy_spec

import featstore
from featstore.records.features import Features
from featstore.records.quantization import dequantize, quantize
from featstore.records.record import parse
from featstore.records.storage import Storage

X = toy_features(1)
STORAGES = [
    *(Storage("int8", name) for name in ("channel_token", "channel", "token", "tensor")),
    *(Storage(values) for values in ("bf16", "fp16", "fp32")),
    *(Storage("int8", codec=codec) for codec in ("lz4", "zstd")),
    Storage("fp16", codec="planes"),
]
SIZES = {"int8": 1, "bf16": 2, "fp16": 2, "fp32": 4}


def made(storage: Storage, x=X) -> Features:
    header, record = pack_video(toy_spec(), "demo", "a", x, storage)
    return Features(header, parse(record))


@pytest.fixture(params=STORAGES, ids=str)
def storage(request):
    return request.param


def test_an_array_of_features_is_what_they_are_dequantized_to(storage):
    features, wanted = made(storage), dequantize(*quantize(X, storage), storage.values)
    for found in (np.asarray(features), np.array(features), features.numpy()):
        assert (found.dtype, found.flags.writeable) == (np.float32, True)
        assert np.array_equal(found, wanted)
    assert features.numpy() is not features.numpy()
    assert np.asarray(features, dtype=np.float64).dtype == np.float64
    assert features.__array__(np.float64).dtype == np.float64
    assert np.asarray(features, dtype=np.float16).dtype == np.float16
    assert np.array_equal(np.stack([features, features]), np.stack([wanted, wanted]))


def test_features_fill_the_array_that_they_are_given(storage):
    out = np.empty(X.shape, np.float32)
    assert made(storage).dequantize(out) is out
    assert np.array_equal(out, made(storage).numpy())


def test_an_array_without_a_copy_is_refused_with_what_to_take(storage):
    with pytest.raises(ValueError, match=r"copy=False out, or take features\.data") as refused:
        np.array(made(storage), copy=False)
    assert f"stored as {made(storage).header.storage} are a copy" in str(refused.value)
    assert "scales" not in str(refused.value)


def test_features_say_how_large_they_are(storage):
    features = made(storage)
    assert (len(features), features.shape) == (16, (16, 8))
    assert features.dtype == features.data.dtype
    assert features.dtype.itemsize == SIZES[storage.values]
    assert features.nbytes == features.data.nbytes + sum(s.nbytes for s in features.scales)
    assert features.dtype == np.uint16 or storage.values != "bf16"


def test_a_repr_fits_a_line_and_says_what_they_are(storage):
    features = made(storage, np.zeros_like(X))
    assert repr(features) == f"<featstore.Features 'a': 16 x 8, {storage}>"
    assert len(repr(features)) < 100


def test_a_pickle_is_a_copy_that_needs_no_store(storage):
    features = made(storage, np.zeros_like(X))
    found = pickle.loads(pickle.dumps(features))
    assert found.header == features.header
    assert found.owner is None
    assert np.array_equal(found.data, features.data)
    assert all(map(np.array_equal, found.scales, features.scales))
    assert np.array_equal(found.numpy(), features.numpy())
    assert repr(found) == repr(features)


def test_a_pickle_outlives_its_store(tmp_path, storage):
    store_videos(tmp_path, "demo", {"a": X}, storage=storage)
    features = featstore.get(tmp_path, "demo", "a")
    content = pickle.dumps(features)
    wanted = features.numpy()
    for file in (tmp_path / "demo").iterdir():
        file.unlink()
    found = pickle.loads(content)
    assert np.array_equal(found.numpy(), wanted)
    assert pickle.loads(pickle.dumps(found)).header == features.header
    assert len(content) < features.nbytes + 5000


def test_a_pickle_of_compressed_features_is_as_small_as_their_record():
    zeros = np.zeros((16 * 512, 8), np.float32)
    header, record = pack_video(toy_spec(2048), "demo", "a", zeros, Storage("fp32", codec="zstd"))
    assert len(pickle.dumps(Features(header, parse(record)))) < 20_000 < zeros.nbytes
