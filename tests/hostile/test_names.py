"""Names that try to be paths, or to steer a terminal, and links that lead out of the cache directory."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from click.testing import CliRunner, Result
from quick import first_is_quick
from safetensors import safe_open
from toys import expected, run_python, store_videos, toy_features, toy_spec

import featstore
from featstore.cli import main
from featstore.errors import FeatureNotFound, ListingError, StoreError, StoreMismatch
from featstore.formats.export import save_features
from featstore.pipeline.listing import read_listing
from featstore.sampling import Sampling
from featstore.store.maintenance.compact import compact_dataset
from featstore.store.maintenance.merge import merge_dataset
from featstore.store.maintenance.remove import remove_videos
from featstore.store.maintenance.repair import repair_dataset
from featstore.store.maintenance.seal import seal_dataset, unseal_dataset
from featstore.store.paths import dataset_names
from featstore.store.reader import FeatureStore
from featstore.store.rows import Failure
from featstore.store.writer import FeatureWriter

if TYPE_CHECKING:
    from pathlib import Path

SPEC = toy_spec()
A = toy_features(1)
IDS = ["../../etc/passwd", "/etc/passwd", "a/../../b", "..", "-rf", "CON", "l\udce9", "ü" * 2048]


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def tree(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.parametrize(
    "name",
    [
        "..",
        ".",
        "",
        "../demo",
        "/demo",
        "a/b",
        "a\\b",
        "a\0b",
        "a\n",
        ".hidden",
        "-x",
        "x" * 10_000_000,
    ],
)
def test_a_dataset_is_not_called_like_a_path(tmp_path, name):
    cache = tmp_path / "cache"
    for use in (
        lambda: FeatureWriter(cache, name, min_free=0),
        lambda: featstore.get(cache, name, "a"),
    ):
        cache.mkdir(exist_ok=True)
        with pytest.raises(StoreMismatch, match="a dataset cannot be called") as caught:
            use()
        assert len(str(caught.value)) < 500
    assert tree(tmp_path) == ["cache"]


@pytest.mark.parametrize("video", IDS)
def test_a_video_id_never_becomes_a_path(cache, tmp_path, video):
    """Stored, read, shown and exported; all that is written lies in the cache, or is the file asked for."""
    store_videos(cache, "demo", {video: A})
    features = featstore.get(cache, "demo", video)
    assert np.array_equal(features.data, expected(A))
    for name in ("out.npy", "out.safetensors"):
        save_features(features, tmp_path / name)
    with safe_open(tmp_path / "out.safetensors", framework="np") as found:
        assert json.loads(found.metadata()["featstore"])["dataset"] == "demo"
    assert run("ls", "--cache-dir", cache, "--dataset", "demo").exit_code == 0
    written = {name for name in tree(tmp_path) if not name.startswith("cache/demo/")}
    assert written == {"cache", "cache/demo", "out.npy", "out.safetensors"}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        pytest.param(
            {"video_id": "x" * 10_000_000, "path": "x.mp4"},
            "10000000 bytes",
            marks=pytest.mark.slow,
        ),
        ({"video_id": "x", "path": "x\0.mp4"}, "can be names"),
        ({"video_id": "a\x1b[2J", "path": "x.mp4"}, "control characters"),
        ({"video_id": "\ud800", "path": "x.mp4"}, "cannot be used"),
        ({"video_id": ["x"], "path": "x.mp4"}, "both strings"),
        ({"video_id": "x", "path": {"": "x" * 10_000_000}}, "both strings"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_manifest_with_a_hostile_row_is_refused_in_few_words(tmp_path, row, says):
    manifest = tmp_path / "m.jsonl"
    manifest.write_text(json.dumps(row))
    with pytest.raises(ListingError, match=says) as caught:
        read_listing(manifest)
    assert len(str(caught.value)) < 1000


def test_a_manifest_nested_without_end_is_refused(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"video_id": ' + "[" * 200_000)
    with pytest.raises(ListingError, match="line 1 is not JSON"):
        read_listing(tmp_path / "m.jsonl")


def test_a_manifest_that_is_huge_or_no_file_is_refused_unread(tmp_path):
    with (tmp_path / "m.jsonl").open("wb") as file:
        file.truncate(1 << 40)  # takes no disk
    with pytest.raises(ListingError, match="has 1099511627776 bytes"):
        read_listing(tmp_path / "m.jsonl")
    os.mkfifo(tmp_path / "m.csv")
    with pytest.raises(ListingError, match="or is not a file"):
        read_listing(tmp_path / "m.csv")


def test_what_steers_a_terminal_is_shown_and_not_sent(cache):
    escape = "\x1b]0;owned\x07\x1b[2J\r\u202e"
    with FeatureWriter(cache, "demo", min_free=0) as writer:
        writer.add_set(SPEC, origin=f"toy{escape}", names={f"tower{escape}": escape})
        writer.fail(Failure("a", f"/v{escape}.mp4", SPEC.digest, f"why{escape}", 1e300))
    for words in (
        ["ls", "--dataset", "demo", "--failed"],
        ["get", "--dataset", "demo", "a"],
        ["get", "--dataset", "demo", "b\x1b[2J"],
        ["info"],
        ["get", "--dataset", "demo", "a", "--spec", "00000000"],
    ):
        shown = run(*words, "--cache-dir", cache).output
        assert "demo" in shown or "why" in shown
        assert all(character.isprintable() or character == "\n" for character in shown)


@pytest.mark.slow
def test_what_steers_a_terminal_is_shown_and_not_sent_by_an_ingest(clips, tmp_path):
    escape = "\x1b]0;owned\x07"
    (clips / "blink.mp4").rename(clips / f"bad{escape}.mp4")
    rtl = {"video_id": "a\u202eb", "path": str(clips / f"none{escape}.mp4")}
    (tmp_path / "m.jsonl").write_text(json.dumps(rtl))
    words = [
        "ingest",
        "--encoder",
        "toy",
        "--dataset",
        "demo",
        "--cache-dir",
        tmp_path / f"c{escape}",
    ]
    words += ["--min-free", "1MB", "--nframe", 4]
    shown = [run(*words, "--videos", clips), run(*words, "--manifest", tmp_path / "m.jsonl")]
    assert [done.exit_code for done in shown] == [1, 3]
    for done in shown:
        assert "\\x1b]0;owned" in done.output
        assert all(character.isprintable() or character == "\n" for character in done.output)


def test_what_a_set_says_of_itself_makes_no_line_of_its_own_in_a_message(cache):
    forged = "toy\nfeatstore: all is well\x1b[2J"
    named = replace(SPEC, encoder=replace(SPEC.encoder, family=forged, settings={forged: forged}))
    with FeatureWriter(cache, "demo", min_free=0) as writer:
        writer.add_set(SPEC, origin=forged)
        writer.add_set(named, origin=forged)
        writer.fail(Failure("a", "/a.mp4", SPEC.digest, forged, 0.0))
    dataset = FeatureStore(cache)["demo"]
    other = replace(SPEC, sampling=Sampling(5), encoder=named.encoder)
    for asked in (
        lambda: dataset.select(spec="nonsense"),
        lambda: dataset.select(spec=other),
        lambda: dataset.select(nframe=77),
        lambda: dataset.lookup("a", spec=SPEC),
    ):
        with pytest.raises((StoreMismatch, FeatureNotFound)) as told:
            asked()
        lines = str(told.value).split("\n")
        assert not any(line.startswith("featstore: all") for line in lines)
        assert all(line.isprintable() for line in lines)


# Links and other things in place of files


def test_a_fifo_or_folder_in_place_of_the_data_file_is_refused_at_once(tmp_path):
    for number, make in enumerate((os.mkfifo, os.mkdir)):
        folder = tmp_path / f"demo{number}"
        folder.mkdir()
        make(folder / "data.mdb")
        assert dataset_names(tmp_path) == []
        with pytest.raises(StoreError, match="is not a file"):
            FeatureStore(tmp_path)[folder.name]
        with pytest.raises(StoreError, match="is not a file"):
            FeatureWriter(tmp_path, folder.name, min_free=0)


@pytest.mark.parametrize("make", first_is_quick([os.mkfifo, os.mkdir]))
def test_what_is_no_file_in_place_of_liblmdbs_lock_is_refused_at_once(tmp_path, make):
    program = (
        "import sys; from toys import *; store_videos(sys.argv[1], 'demo', {'a': toy_features(1)})"
    )
    assert run_python(program, tmp_path).returncode == 0
    (tmp_path / "demo" / "lock.mdb").unlink()
    make(tmp_path / "demo" / "lock.mdb")
    with pytest.raises(StoreError, match=r"lock\.mdb is not a file; remove it"):
        featstore.get(tmp_path, "demo", "a")


def test_a_cache_whose_name_is_no_text_is_as_good_as_any(tmp_path):
    """py-lmdb takes no such names."""
    cache, other = (os.path.join(tmp_path, name) for name in ("cach\udce9", "autr\udce9"))
    store_videos(cache, "demo", {"a": A, "b": A})
    store_videos(other, "demo", {"c": A})
    assert merge_dataset(other, cache, "demo", min_free=0).stored == 1
    assert remove_videos(cache, "demo", ["b"]).videos == 1
    compact_dataset(cache, "demo")
    assert repair_dataset(cache, "demo").problems == []
    seal_dataset(cache, "demo")
    assert np.array_equal(featstore.get(cache, "demo", "c").data, expected(A))
    unseal_dataset(cache, "demo")
    for words in (["check"], ["info"], ["ls"], ["rm", "--dataset", "demo", "--yes"]):
        assert run(*words, "--cache-dir", cache).exit_code == 0
    assert os.listdir(cache) == []


def test_liblmdbs_lock_is_not_written_through_a_link(tmp_path):
    store_videos(tmp_path, "demo", {"a": A})
    precious = tmp_path / "precious"
    precious.write_text("precious")
    (tmp_path / "demo" / "lock.mdb").unlink()
    (tmp_path / "demo" / "lock.mdb").symlink_to(precious)
    with pytest.raises(StoreError, match=r"lock\.mdb is a link.*remove it"):
        FeatureStore(tmp_path)["demo"]
    assert precious.read_text() == "precious"


def test_nothing_is_stored_through_a_link_to_a_data_file(tmp_path):
    """Reading through one is fine: the Hub's cache is made of such links."""
    store_videos(tmp_path / "outside", "demo", {"a": A})
    outside = tmp_path / "outside" / "demo" / "data.mdb"
    before = outside.read_bytes()
    (tmp_path / "cache" / "demo").mkdir(parents=True)
    (tmp_path / "cache" / "demo" / "data.mdb").symlink_to(outside)
    assert featstore.get(tmp_path / "cache", "demo", "a").shape == A.shape
    with pytest.raises(StoreError, match=r"data\.mdb is a link"):
        FeatureWriter(tmp_path / "cache", "demo", min_free=0)
    assert outside.read_bytes() == before


def test_a_dataset_that_is_a_link_is_removed_without_what_it_leads_to(tmp_path):
    store_videos(tmp_path / "outside", "demo", {"a": A})
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "demo").symlink_to(tmp_path / "outside" / "demo")
    done = run("rm", "--cache-dir", tmp_path / "cache", "--dataset", "demo", "--yes")
    assert done.exit_code == 0, done.output
    assert dataset_names(tmp_path / "cache") == []
    assert not [name for name in os.listdir(tmp_path / "cache") if "demo" in name]
    assert featstore.get(tmp_path / "outside", "demo", "a").shape == A.shape


def test_an_export_replaces_a_link_and_not_what_it_leads_to(cache, tmp_path):
    store_videos(cache, "demo", {"a": A})
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "x.npy").symlink_to(tmp_path / "precious")
    save_features(featstore.get(cache, "demo", "a"), tmp_path / "x.npy")
    assert (tmp_path / "precious").read_text() == "precious"
    assert np.load(tmp_path / "x.npy").shape == A.shape
