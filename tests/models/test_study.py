"""What a study measures is what an ingest stores."""

from functools import partial

import numpy as np
import pytest
import torch

from featstore.errors import FeatstoreError, VideoError
from featstore.models.study import STORAGES, Study, read_features, run_study
from featstore.models.study_record import make_record, read_record
from featstore.pipeline.make_record import quantize_into
from featstore.records.codecs import compress
from featstore.records.record import parse
from featstore.records.storage import Storage

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")


def gaussian(rows=288, width=256, seed=0):
    return torch.randn((rows, width), generator=torch.Generator().manual_seed(seed))


def heavy_tailed():
    """Channels of unequal sizes, four ten times larger, and one token of fifty twelve times larger."""
    x = gaussian(1152) * torch.exp(0.5 * gaussian(1, seed=1))
    x[:, 5::64] *= 10
    x[7::50] *= 12
    return x


def studied(**videos):
    study = Study("random features")
    run_study(study, {name: partial(torch.clone, x) for name, x in videos.items()})
    return study


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_what_is_studied_is_the_record_that_an_ingest_stores(dtype):
    x = gaussian().to(dtype)
    rows = studied(v=x).rows
    assert tuple(row.storage for row in rows) == STORAGES
    for row in rows:
        payload = memoryview(bytearray(row.storage.payload_bytes(tuple(x.shape))))
        scales, error = quantize_into(payload, [x], row.storage)
        used, stored = compress(payload, row.storage)
        record = make_record("v", x, row.storage)
        found = parse(record)
        assert (bytes(found.payload), bytes(found.scales)) == (bytes(stored), scales)
        assert (found.header.storage, row.record_bytes) == (used, len(record))
        assert row.losses.error == error


@pytest.mark.slow
def test_a_budget_of_2_percent_catches_one_scale_on_heavy_features_and_passes_two():
    beyond = {
        row["storage"]: row["too_large"]
        for row in studied(plain=gaussian(), heavy=heavy_tailed()).table()
    }
    assert [beyond[f"int8/{name}"] for name in ("tensor", "token", "channel", "channel_token")] == [
        1, 1, 1, 0,
    ]  # fmt: skip
    assert beyond["int8/channel zstd"] == 1
    assert not any(beyond[name] for name in ("bf16", "fp16", "fp32", "bf16 planes"))


def test_a_summary_is_of_all_videos_and_beside_the_peer():
    table = {row["storage"]: row for row in studied(a=gaussian(), b=3 * gaussian(144)).table()}
    assert [row["videos"] for row in table.values()] == [2] * len(STORAGES)
    half = (288 + 144) * 256 / 2
    assert table["fp16"]["record_bytes"] == pytest.approx(2 * half, rel=0.05)
    assert table["fp32"]["ratio"] == pytest.approx(0.5, rel=0.05)
    assert table["int8/channel"]["store_x"] == table["int8/channel"]["read_x"] == 1
    assert table["fp32"]["token_max"] == 0
    assert table["fp32"]["cosine"] == 1
    assert table["int8/tensor"]["logit_kl"] is table["int8/tensor"]["identical"] is None


def test_lossless_planes_give_the_encoders_bits_in_fewer_bytes():
    x = gaussian().half()
    record = make_record("v", x, Storage("fp16", codec="planes"))
    assert torch.equal(read_record(record, x.device, torch.float16), x)
    assert len(record) < 0.95 * len(make_record("v", x, Storage("fp16")))


def test_a_storage_that_cannot_hold_a_value_costs_its_own_row_only():
    study = studied(large=1e5 * gaussian(), small=gaussian())
    assert {name: "exceed" in why for name, why in study.failures.items()} == {
        "large as fp16": True,
        "large as fp16 planes": True,
    }
    assert {row["storage"]: row["videos"] for row in study.table()}["fp16"] == 1
    assert len(study.rows) == 2 * len(STORAGES) - 2


def test_a_video_without_features_costs_its_own_rows_only():
    def fail():
        raise VideoError("it cannot be decoded")

    study, told = Study("clips"), []
    run_study(study, {"bad": fail, "good": gaussian}, on_video=told.append)
    assert (study.failures, told) == ({"bad": "it cannot be decoded"}, ["good"])
    assert {row.video_id for row in study.rows} == {"good"}


def test_features_of_a_file_are_rows(tmp_path):
    x = gaussian().numpy().reshape(2, 12, 12, 256)
    np.save(tmp_path / "x.npy", x)
    assert torch.equal(
        read_features(tmp_path / "x.npy", CPU), torch.from_numpy(x.reshape(288, 256))
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (np.zeros((3, 4)), "holds float64 of shape .*float16 or float32"),
        (np.zeros(4, np.float32), r"of shape \(4,\)"),
        (np.zeros((0, 4), np.float32), r"of shape \(0, 4\)"),
        (np.array([[1, np.nan]], np.float16), "1 of 2 feature values are NaN"),
        (np.array([{}]), "cannot be read as a .npy file"),
        (b"", "cannot be read as a .npy file"),
        (b"\x93NUMPY\x01\x00v\x00{'descr'", "cannot be read as a .npy file"),
    ],
)
def test_files_that_hold_no_features_are_refused(tmp_path, content, said):
    path = tmp_path / "x.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content)
    with pytest.raises(FeatstoreError, match=said):
        read_features(path, CPU)


def test_an_archive_is_refused(tmp_path):
    np.savez(tmp_path / "x.npz", np.zeros((2, 2), np.float32))
    (tmp_path / "x.npz").rename(tmp_path / "x.npy")
    with pytest.raises(FeatstoreError, match="is an archive"):
        read_features(tmp_path / "x.npy", CPU)
