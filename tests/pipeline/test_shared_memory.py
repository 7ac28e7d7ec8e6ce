"""How much is in flight, and on how many cores it is decoded."""

import os
import resource

import pytest

from featstore.encoders.toy import ToyEncoder
from featstore.errors import FeatstoreError
from featstore.pipeline.ingest import ingest
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


def test_shared_memory_beyond_the_limit_on_files_is_refused_before_any_work(sample_clips, cache):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        with pytest.raises(
            FeatstoreError, match=r"MiB of memory are needed .* none above 1.0 MiB; .*ulimit -f"
        ):
            ingest(sample_clips, cache, "demo", encoder=ToyEncoder(), sampling=Sampling(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list((cache / "demo").iterdir()) == []


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
