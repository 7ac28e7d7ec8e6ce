"""`featstore show`: a PNG, and a sentence about what is in it."""

import json
import os
import shutil

import pytest
from click.testing import CliRunner
from geometries import newline_row
from PIL import Image
from stored_clips import store_clip

from featstore.cli import main
from featstore.sampling import Sampling


@pytest.fixture
def words(sample_clips, cache, tmp_path):
    clip = shutil.copy2(sample_clips / "blink.mp4", tmp_path / "blink.mp4")
    store_clip(cache, "demo", "an eye", clip, newline_row(), Sampling(4))
    clip.unlink()
    return ["show", "--cache-dir", str(cache), "--dataset", "demo", "-o", str(tmp_path / "eye.png")]


def size_of(file):
    with Image.open(file) as image:
        return image.size


def test_it_writes_a_png_and_says_what_is_not_in_it(words, tmp_path):
    done = CliRunner().invoke(main, [*words, "an eye", "--columns", "3"])
    assert done.exit_code == 0, done.output
    size = "{} x {} pixels".format(*size_of(tmp_path / "eye.png"))
    first, no_frames, extra = done.stdout.splitlines()
    assert first == f"{tmp_path / 'eye.png'}: an eye, 3 columns, {size}"
    assert "no frames: " in no_frames
    assert "one row that belongs to no frame" in extra


def test_json_says_the_same(words, tmp_path):
    found = json.loads(CliRunner().invoke(main, [*words, "an eye", "--json"]).stdout)
    assert found["frame_indices"] == [0, 1, 2, 4]
    assert found["captions"] == ["0:00.0", "0:00.1", "0:00.2", "0:00.4"]
    assert (found["image_width"], found["image_height"]) == size_of(found["file"])
    assert len(found["notes"]) == 2


def test_what_cannot_be_done_is_said(words, tmp_path):
    missing = CliRunner().invoke(main, [*words, "no eye"])
    assert (missing.exit_code, missing.stdout) == (1, "")
    assert "no eye" in missing.stderr
    there = os.listdir(tmp_path)
    nowhere = CliRunner().invoke(main, [*words, "-o", str(tmp_path / "no" / "eye.png"), "an eye"])
    assert nowhere.exit_code == 1
    assert "cannot be written: No such file or directory; choose another --out" in nowhere.stderr
    assert os.listdir(tmp_path) == there


def test_a_pipe_is_written_to_and_not_replaced(words, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    end = os.open(pipe, os.O_RDWR)
    try:
        done = CliRunner().invoke(main, [*words, "-o", str(pipe), "an eye", "--columns", "1"])
        assert done.exit_code == 0, done.output
        assert os.read(end, 1 << 16).startswith(b"\x89PNG")
    finally:
        os.close(end)
    assert pipe.is_fifo()


def test_a_picture_is_written_as_its_suffix_says(words, tmp_path):
    for name, kind in (("eye.jpg", "JPEG"), ("eye.WEBP", "WEBP")):
        assert (
            CliRunner().invoke(main, [*words, "an eye", "-o", str(tmp_path / name)]).exit_code == 0
        )
        with Image.open(tmp_path / name) as image:
            assert image.format == kind
    odd = CliRunner().invoke(main, [*words, "an eye", "-o", str(tmp_path / "eye.gif")])
    assert (odd.exit_code, (tmp_path / "eye.gif").exists()) == (2, False)
    assert "pictures are written as .png, .jpg" in " ".join(odd.stderr.split())


def test_each_video_has_a_picture_of_its_own_name(words, tmp_path, monkeypatch):
    """All were strip.png, the last one in place of the others."""
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, [*words[:-2], "an eye", "--json"])
    assert json.loads(done.stdout)["file"] == "strip-an_eye.png"
    assert size_of("strip-an_eye.png")[0] > 0
