"""docs/encoders.md runs as it is written, with tiny checkpoints under the names of large ones."""

from __future__ import annotations

import importlib
import re
import shlex

import pytest
from click.testing import CliRunner
from make_tiny_vision import make_tiny_vision
from toys import REPOSITORY

import featstore
from featstore.cli import main
from featstore.encoders.transformers_vision.families import FAMILIES

PAGE = (REPOSITORY / "docs/encoders.md").read_text(encoding="utf-8")
NAMES = {
    "facebook/dinov2-base": "dinov2",
    "MCG-NJU/videomae-base": "videomae",
    "openai/clip-vit-base-patch32": "clip",
}


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.slow
def test_the_page_runs_from_top_to_bottom(sample_clips, tmp_path, monkeypatch, capsys, one_thread):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "clips").symlink_to(sample_clips)
    for name, kind in NAMES.items():
        make_tiny_vision(tmp_path / name, kind)
    probe, search, own = blocks("python")
    module, entry = re.search(r"(\w+)\.py", own)[1], blocks("toml")[0]
    (tmp_path / f"{module}.py").write_text(own)
    info = tmp_path / "mean_colours-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mean-colours\nVersion: 1\n")
    points = entry.replace('[project.entry-points."featstore.encoders"]', "[featstore.encoders]")
    (info / "entry_points.txt").write_text(points.replace('"', ""))
    importlib.invalidate_caches()

    for line in "".join(blocks("bash")).replace("--stride 8", "--stride 2").splitlines():
        more = ["--decode-workers", "1", "--min-free", "1MB", "--nframe", "12"]
        done = CliRunner().invoke(main, [*shlex.split(line)[1:], *more])
        assert done.exit_code == 0, done.output
    store = featstore.open("vision_cache")
    rows = {
        (kept.feature_set.spec.encoder.settings.get("model"), kept["color_bars"].header.layout)
        for kept in store["demo"].sets.values()
    }
    found = {model: (layout.units, layout.frames_per_unit, layout.grid) for model, layout in rows}
    assert found == {"Dinov2Model": (6, 1, (6, 2, 2)), "VideoMAEModel": (5, 4, None)}
    assert store["colours"]["blink"].shape == (12 * 64, 3)

    exec(probe, {})
    assert capsys.readouterr().out == "100% of 3 videos\n"
    exec(search, {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all(re.fullmatch(r"-?0\.\d{3}  \w+ at \d\.\d s", line) for line in lines)


def test_an_encoder_of_ones_own_is_forty_lines_at_most():
    assert len(blocks("python")[-1].splitlines()) <= 40


def test_each_family_is_in_the_table():
    table = [line for line in PAGE.splitlines() if line.startswith("| `")]
    listed = [name for line in table for name in re.findall(r"`(\w+)`", line.split("|")[1])]
    assert sorted(listed[1:]) == sorted(FAMILIES)
