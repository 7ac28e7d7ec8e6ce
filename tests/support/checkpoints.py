"""Checkpoints to test with: the reference's, where it is at hand, and tiny ones made on the spot."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from make_tiny_checkpoint import make_tiny_checkpoint
from safetensors.torch import load_file, save_file

from featstore.models import statistics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder of checkpoints, clips and golden outputs of the original LongVA."""
    default = REPOSITORY.parent / "shared" / "reference"
    folder = Path(os.environ.get("FEATSTORE_REFERENCE", default))
    if not (folder / "golden").is_dir():
        pytest.skip(f"no golden outputs in {folder}; name their folder in FEATSTORE_REFERENCE")
    return folder


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Tiny models run on one core: on two that others use as well, waiting made them 25 times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def bf16_attention() -> None:
    """Skips where torch told to compute as on an older processor packs bf16 as on this one, and fails."""
    x = torch.zeros((1, 2, 577, 64), dtype=torch.bfloat16)
    try:
        torch.nn.functional.scaled_dot_product_attention(x, x, x)
    except RuntimeError as exc:
        pytest.skip(f"torch has no attention in bf16 here: {exc}")


@pytest.fixture(scope="session", autouse=True)
def no_report_at_the_end() -> Iterator[None]:
    """What the tests' models asked of their stores is no news."""
    yield
    statistics._of_this_process.clear()


def unreachable(repo: str, name: str, **_: Any) -> None:
    """In place of hf_hub_download: the Hub offline, with an empty cache."""
    raise LocalEntryNotFoundError(f"offline, no {name} of {repo}")


@pytest.fixture(scope="session")
def make_checkpoint() -> Callable[..., Path]:
    return make_tiny_checkpoint


@pytest.fixture(scope="session")
def tiny(make_checkpoint, tmp_path_factory) -> Path:
    """A checkpoint with the folder of its CLIP model, configs only, inside."""
    return make_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny")


@pytest.fixture
def altered(tiny, tmp_path) -> Callable[..., Path]:
    """Copies of `tiny` with another config, other tensors, or neither."""
    count = 0

    def alter(
        config: dict[str, Any] | None = None,
        tensors: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
        **files: dict[str, Any],
    ) -> Path:
        nonlocal count
        count += 1
        copy = tmp_path / f"altered-{count}" / "checkpoint"
        shutil.copytree(tiny, copy)
        clip = copy / "openai/clip-tiny-patch14-336"
        changes = {copy / "config.json": config or {}}
        changes |= {clip / f"{name}.json": values for name, values in files.items()}
        for path, values in changes.items():
            merged = json.loads(path.read_text()) | values
            kept = {name: value for name, value in merged.items() if value is not ...}
            path.write_text(json.dumps(kept))
        if tensors:
            weights = copy / "model.safetensors"
            changed = tensors(load_file(weights))
            weights.unlink()  # the tensors loaded may still be mapped from it
            save_file({name: tensor.contiguous() for name, tensor in changed.items()}, weights)
        return copy

    return alter
