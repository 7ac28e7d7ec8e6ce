"""How much is in flight, and on how many cores it is decoded."""

import os

import pytest

from featstore.encoders.toy import ToyEncoder
from featstore.pipeline.shared_memory import Memory
from featstore.records.storage import Storage
from featstore.sampling import Sampling
from featstore.spec import FeatureSpec
from featstore.system.cpus import default_workers


@pytest.mark.parametrize(
    ("nframe", "batch", "encoders", "slots"),
    [
        (128, 128, 1, (18, 5)),
        (128, 128, 2, (20, 8)),
        (16, 128, 1, (25, 19)),
        (512, 128, 1, (18, 5)),
    ],
)
def test_so_many_slots_are_reserved_whatever_there_is_to_do(nframe, batch, encoders, slots):
    toy = ToyEncoder()
    spec = FeatureSpec(toy.identity, Sampling(nframe), "d", toy.preprocessing)
    memory = Memory.reserve(spec, Storage(), workers=16, encoders=encoders, batch_frames=batch)
    assert (memory.frame_slots.count, memory.record_slots.count) == slots
    memory.close()


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, None),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu.max": "100000 100000"}, 1),
        ({"cpu.max": "20000 100000"}, 1),
        ({"cpu.max": "999000 1000"}, None),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        ({"cpu.max": "nonsense"}, None),
    ],
)
def test_a_containers_share_of_the_cores_is_heeded(tmp_path, files, cores):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    everything = len(os.sched_getaffinity(0))
    assert default_workers(tmp_path) == (cores or everything)
