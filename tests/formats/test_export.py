import os
import stat

import numpy as np
import pytest
from toys import run_python, store_videos, toy_features

from featstore.formats.export import save_features
from featstore.store.reader import get

KILLED = """
import os, signal, sys, featstore
from featstore.formats import export
def killed(*words):
    os.kill(os.getpid(), signal.SIGKILL)
def half(features, file, suffix):
    file.write(b"half of it")
    file.flush()
    killed()
if sys.argv[3] == "before the rename":
    os.replace = killed
else:
    export._write = half
export.save_features(featstore.get(sys.argv[1], "demo", "a"), sys.argv[2])
"""


@pytest.mark.parametrize("moment", ["before the rename", "while it is written"])
def test_an_export_that_is_killed_leaves_what_was_there(cache, tmp_path, moment):
    store_videos(cache, "demo", {"a": toy_features(1)})
    target = tmp_path / "out.npy"
    target.write_bytes(b"old")
    assert run_python(KILLED, cache, target, moment).returncode == -9
    assert target.read_bytes() == b"old"
    save_features(get(cache, "demo", "a"), target)
    np.testing.assert_array_equal(np.load(target), get(cache, "demo", "a").dequantize())


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o007, 0o660)])
@pytest.mark.parametrize("name", ["x.npy", "x.safetensors", "y" * 251 + ".npy"])
def test_an_export_is_for_those_whom_the_umask_leaves_and_leaves_nothing_else(
    cache, tmp_path, name, umask, mode
):
    store_videos(cache, "demo", {"a": toy_features(1)})
    folder = tmp_path / "out"
    folder.mkdir()
    before = os.umask(umask)
    try:
        save_features(get(cache, "demo", "a"), folder / name)
    finally:
        os.umask(before)
    assert [path.name for path in folder.iterdir()] == [name]
    assert stat.S_IMODE((folder / name).stat().st_mode) == mode


@pytest.mark.parametrize("video", ["../a", "/etc/a", "..", "a/b", "~/a", "con", "."])
def test_ids_are_never_file_names(cache, tmp_path, video):
    """The one name is the user's: an id that is a path leads nowhere."""
    store_videos(cache, "demo", {video: toy_features(1)})
    folder = tmp_path / "out"
    folder.mkdir()
    for name in ("x.npy", "x.safetensors"):
        save_features(get(cache, "demo", video), folder / name)
    assert sorted(path.name for path in folder.iterdir()) == ["x.npy", "x.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "out"]


def test_a_link_is_replaced_and_not_written_through(cache, tmp_path):
    store_videos(cache, "demo", {"a": toy_features(1)})
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / "x.npy").symlink_to(precious)
    save_features(get(cache, "demo", "a"), tmp_path / "x.npy")
    assert precious.read_text() == "mine"
    assert not (tmp_path / "x.npy").is_symlink()
