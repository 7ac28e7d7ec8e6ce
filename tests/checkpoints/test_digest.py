"""Which values a digest names: every one of every tensor, with its name and shape."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from featstore.checkpoints.digest import HASH_VALUES, DigestedWeights
from featstore.errors import CheckpointError

ROWS = 3
LONG = torch.arange(ROWS * HASH_VALUES + 7, dtype=torch.float32)


def digest(folder, tensor, name="w"):
    path = folder / "model.safetensors"
    save_file({"key": tensor}, path)
    return DigestedWeights({name: (path, "key")}).digest


@pytest.mark.parametrize(
    "at", [0, HASH_VALUES - 1, HASH_VALUES, 2 * HASH_VALUES + 1, len(LONG) - 1]
)
def test_every_value_counts_also_those_beyond_a_block(tmp_path, at):
    changed = LONG.clone()
    changed[at] += 1
    assert digest(tmp_path, changed) != digest(tmp_path, LONG)


def test_names_shapes_and_the_order_of_values_count(tmp_path):
    square = LONG[: 4 * HASH_VALUES // 2].reshape(2, -1)
    found = {
        digest(tmp_path, square),
        digest(tmp_path, square, "v"),
        digest(tmp_path, square.reshape(-1)),
        digest(tmp_path, square.flip(0)),
    }
    assert len(found) == 4


def test_it_is_the_sha256_of_name_shape_and_the_sha256_of_float32_values(tmp_path):
    values = hashlib.sha256(LONG.numpy().astype("<f4").tobytes()).hexdigest()
    line = f"w ({len(LONG)},) {values}\n"
    assert digest(tmp_path, LONG) == hashlib.sha256(line.encode()).hexdigest()
    assert np.array_equal(LONG.numpy(), np.arange(len(LONG)))  # exact as float32


def test_what_is_loaded_is_hashed_in_full_as_well(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"key": LONG}, path)
    weights = DigestedWeights({"w": (path, "key")})
    assert weights.digest
    changed = LONG.clone()
    changed[-1] += 1
    save_file({"key": changed}, path)
    with pytest.raises(CheckpointError, match="were replaced since this encoder hashed them"):
        weights.load(torch.device("cpu"), torch.float32)
