"""How much memory a process may use."""

import os

import pytest

from featstore.system.memory import memory_bytes

MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
V1 = "sys/fs/cgroup/memory"


@pytest.mark.parametrize(
    ("groups", "files", "limit"),
    [
        ("0::/", {}, MACHINE),
        ("0::/", {"sys/fs/cgroup/memory.max": "max"}, MACHINE),
        ("0::/", {"sys/fs/cgroup/memory.max": "1048576"}, 1 << 20),
        ("0::/", {"sys/fs/cgroup/memory.max": str(1 << 60)}, MACHINE),
        ("0::/a/b", {"sys/fs/cgroup/a/b/memory.max": "4096"}, 4096),
        # What holds for a group holds for those in it.
        (
            "0::/a/b",
            {"sys/fs/cgroup/a/b/memory.max": "max", "sys/fs/cgroup/a/memory.max": "8192"},
            8192,
        ),
        ("4:memory:/a", {f"{V1}/a/memory.limit_in_bytes": "4096"}, 4096),
        ("4:cpu,memory:/a", {f"{V1}/a/memory.limit_in_bytes": str((1 << 63) - 4096)}, MACHINE),
        # A container that is told the host's name of its group, and sees the group as the outermost.
        ("4:memory:/docker/1f\n0::/", {f"{V1}/memory.limit_in_bytes": "4096"}, 4096),
        ("4:cpu:/a", {"sys/fs/cgroup/cpu/a/memory.limit_in_bytes": "4096"}, MACHINE),
        ("nonsense", {"sys/fs/cgroup/memory.max": "nonsense"}, MACHINE),
        (None, {}, MACHINE),
    ],
)
def test_a_containers_memory_limit_is_heeded(tmp_path, groups, files, limit):
    if groups is not None:
        files = {**files, "proc/self/cgroup": groups}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    assert memory_bytes(tmp_path) == limit
