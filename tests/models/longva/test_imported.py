"""A cache of the design documents' format, made by the script below, answers as the features it was made of."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from numpy import load

from featstore.errors import StoreMismatch
from featstore.formats.import_folder import import_folder
from featstore.models import CachedLongVA
from featstore.records.storage import Storage
from featstore.sampling import Sampling
from featstore.store.reader import FeatureStore

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
NFRAME = 8


def write_cache(root, dataset, path, features, quantization):
    """What the scripts of the design documents do with the features of a video, (frames, tokens, width)."""
    scale = torch.ones(1)
    embeds = features
    if quantization == "int8":
        scale = features.abs().amax(dim=(0, 1), keepdim=True).clamp(min=1e-8) / 127
        embeds = torch.round(features / scale).clamp(-127, 127).to(torch.int8)
    (root / dataset).mkdir(parents=True, exist_ok=True)
    torch.save(
        {
            "vision_embeds": embeds,
            "scale": scale,
            "video_path": str(path),
            "nframe": len(features),
            "dataset": dataset,
            "model_signature": "longva-tiny-a",
            "quantization": quantization,
            "shape": tuple(embeds.shape),
        },
        root / dataset / f"{hashlib.md5(str(path).encode()).hexdigest()}.pt",
    )
    return embeds.float() * scale


def test_an_imported_cache_answers_as_the_original_and_only_if_it_is_accepted(reference, tmp_path):
    goldens = json.loads((reference / "golden/generations.json").read_text())
    questions = json.loads((reference / "golden/prompts.json").read_text())
    restored = {}
    for video in ("dc_demo", "jobs"):
        x = load(reference / f"golden/features/longva-tiny-a/{video}_n{NFRAME}.npy")
        x = torch.from_numpy(x).reshape(NFRAME, 144, -1)
        path = reference / f"videos/{video}.mp4"
        write_cache(tmp_path / "pt", "exact", path, x, "fp32")
        restored[video] = write_cache(tmp_path / "pt", "small", path, x, "int8")
    for dataset in ("exact", "small"):
        done = import_folder(tmp_path / "pt", ".pt", tmp_path / "cache", dataset, min_free=0)
        assert (done.imported, done.failures) == (2, [])
    small = FeatureStore(tmp_path / "cache")["small"]
    for video, x in restored.items():
        assert small[video].data.dtype == "int8"
        assert small[video].numpy().tobytes() == x.numpy().tobytes()

    def model(dataset, **options):
        options = {"dataset": dataset, "on_miss": "error", "accept_imported": True} | options
        checkpoint = reference / "checkpoints/longva-tiny-a"
        return CachedLongVA(
            checkpoint, tmp_path / "cache", sampling=Sampling(NFRAME), device="cpu", **options
        )

    cases = [
        case for case in goldens
        if case["checkpoint"] == "longva-tiny-a" and case["nframe"] == NFRAME and case["video"] in restored
    ]  # fmt: skip
    assert len(cases) == 8
    with model("exact") as exact, model("small") as quantized:
        for case in cases:
            question = questions[case["prompt_id"]], case["video"]
            path = reference / f"videos/{case['video']}.mp4"
            assert exact.generate_ids(*question, path=path, max_new_tokens=24) == case["token_ids"]
            direct = quantized.answer_features(
                question[0], restored[case["video"]].reshape(NFRAME * 144, -1), max_new_tokens=24
            )
            assert quantized.generate_ids(*question, path=path, max_new_tokens=24) == direct
        assert exact.statistics.hits == 8
    refused = pytest.raises(StoreMismatch, match="accept_imported=True")
    with model("exact", accept_imported=False) as strict, refused:
        strict.generate(questions[0], "jobs")
    with model("exact", on_miss="encode", accept_imported=False, storage=Storage("fp32")) as own:
        own.generate(questions[0], "jobs", path=reference / "videos/jobs.mp4", max_new_tokens=1)
    sets = FeatureStore(tmp_path / "cache")["exact"].sets.rows()
    assert [row.spec.imported for row in sets] == [True, False]
