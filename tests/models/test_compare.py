import importlib
import json
import random
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from damage import flip_in_file
from decoder_corpus import write_case
from toys import store_videos, toy_features

from featstore.cli import main
from featstore.decoding.video_file import DECODER, identity_of
from featstore.encoders import LongVAEncoder
from featstore.encoders.toy import ToyEncoder
from featstore.errors import StoreMismatch
from featstore.models import CachedLongVA
from featstore.models.compare import Limits, choose, compare
from featstore.pipeline.ingest import ingest
from featstore.pipeline.options import IngestOptions
from featstore.sampling import Sampling
from featstore.spec import FeatureSpec
from featstore.store.dataset import Dataset
from featstore.store.default_set import set_default
from featstore.store.maintenance.remove import remove_set, remove_videos
from featstore.store.writer import FeatureWriter

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_children")]

PAGE = 4096


@pytest.fixture(scope="module")
def stored(make_checkpoint, sample_clips, tmp_path_factory):
    """A checkpoint, a cache with int8 features of it, and the clips they came from."""
    checkpoint = make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")
    clips = Path(shutil.copytree(sample_clips, tmp_path_factory.mktemp("compare") / "clips"))
    cache = clips.parent / "cache"
    ingest(
        clips, cache, "demo", encoder=LongVAEncoder(checkpoint, device="cpu"), sampling=Sampling(2)
    )
    return checkpoint, cache, clips


def test_int8_features_are_close_to_fresh_ones_and_answers_are_counted(stored):
    checkpoint, cache, _ = stored
    model = CachedLongVA(checkpoint, device="cpu")
    report = compare(
        Dataset(cache, "demo"),
        LongVAEncoder(checkpoint, device="cpu"),
        model=model,
        max_new_tokens=4,
    )
    assert report.passed
    assert len(report.rows) == 3
    assert all(0 < row.error.relative_l2 < 0.02 for row in report.rows)
    assert report.identical is not None


def test_a_limit_that_is_not_met_fails(stored):
    checkpoint, cache, _ = stored
    encoder = LongVAEncoder(checkpoint, device="cpu")
    report = compare(Dataset(cache, "demo"), encoder, samples=2, limits=Limits(relative_l2=1e-6))
    assert not report.passed
    assert len(report.beyond) == len(report.rows) == 2


def test_another_encoders_features_are_not_compared(stored, make_checkpoint, tmp_path):
    _, cache, _ = stored
    other = LongVAEncoder(make_checkpoint(tmp_path / "other", seed=5), device="cpu")
    with pytest.raises(StoreMismatch, match=r"encoder\.weights"):
        compare(Dataset(cache, "demo"), other)


def flip_payload(cache, video, payload):
    flip_in_file(cache, payload)


def flip_page(cache, video, payload):
    """Damage the number of the page that the record begins on."""
    content = (cache / "demo/data.mdb").read_bytes()
    page = content.index(payload) // PAGE
    while not content.startswith(page.to_bytes(8, "little"), page * PAGE):
        page -= 1
    flip_in_file(cache, content[page * PAGE :][:PAGE])


def remove(cache, video, payload):
    remove_videos(cache, "demo", [video])


def remove_all(cache, video, payload):
    remove_set(cache, "demo", Dataset(cache, "demo").feature_set.spec)


@pytest.mark.parametrize(
    ("happen", "reason", "lost"),
    [
        (flip_payload, "the payload of video .* is damaged", 1),
        (flip_page, "the file is damaged", 1),
        (remove, "is not stored in dataset 'demo'", 1),
        (remove_all, "has no feature set", 2),
    ],
)
def test_a_record_that_is_not_to_be_had_costs_its_own_row_alone(
    stored, tmp_path, happen, reason, lost
):
    checkpoint, made, _ = stored
    cache = Path(shutil.copytree(made, tmp_path / "cache"))
    entries = sorted(entry.video_id for entry in Dataset(cache, "demo").entries())
    random.Random(0).shuffle(entries)
    first, *rest = entries
    payload = Dataset(made, "demo")[rest[0]].data.tobytes()[1000:1064]

    def on_row(row):
        if row.video_id == first:
            happen(cache, rest[0], payload)

    report = compare(Dataset(cache, "demo"), LongVAEncoder(checkpoint, device="cpu"), on_row=on_row)
    assert list(report.failures) == rest[:lost]
    assert [row.video_id for row in report.rows] == [first, *rest[lost:]]
    assert all(re.search(reason, failure) for failure in report.failures.values()), report.failures


def test_the_command_prints_json_and_exits_3_where_a_file_was_replaced(stored, tmp_path):
    checkpoint, cache, clips = stored
    words = ["compare", "--dataset", "demo", "--cache-dir", str(cache)]
    words += ["--model-path", str(checkpoint), "--device", "cpu"]
    kept = shutil.copy(clips / "blink.mp4", tmp_path / "kept.mp4")
    try:
        shutil.copy(clips / "color_bars.mp4", clips / "blink.mp4")
        done = CliRunner().invoke(main, [*words, "--json"])
    finally:
        shutil.copy(kept, clips / "blink.mp4")
    report = json.loads(done.stdout)
    assert done.exit_code == 3
    assert report["feature_set"] == Dataset(cache, "demo").feature_set.spec.digest
    [failure] = report["failed"]
    assert (failure["video_id"], "was replaced" in failure["reason"]) == ("blink", True)
    assert report["videos"] == 2
    shown = CliRunner().invoke(main, [*words, "--samples", "1", "--max-relative-l2", "0"])
    assert shown.exit_code == 1
    first, *_ = shown.stdout.splitlines()
    spec = Dataset(cache, "demo").feature_set.spec
    assert first == f"compared with {spec.describe()}; encoded again in fp32"
    assert report["dtype"] == "fp32"
    assert "beyond the limits" in shown.stdout


def test_a_report_names_the_set_that_was_compared_also_if_it_is_not_the_default(stored, tmp_path):
    checkpoint, made, _ = stored
    cache = Path(shutil.copytree(made, tmp_path / "cache"))
    theirs = FeatureSpec(ToyEncoder().identity, Sampling(4), DECODER, ToyEncoder().preprocessing)
    store_videos(cache, "demo", {"v": toy_features(0)}, spec=theirs)
    set_default(cache, "demo", theirs.digest)
    dataset, encoder = Dataset(cache, "demo"), LongVAEncoder(checkpoint, device="cpu")
    with pytest.raises(ValueError, match="samples is -1; it must be 1 or more"):
        compare(dataset, encoder, samples=-1)
    report = compare(dataset, encoder, samples=1)
    assert dataset.feature_set.spec == theirs
    assert report.spec.encoder == encoder.identity
    assert report.to_dict()["feature_set"] == report.spec.digest


@pytest.mark.parametrize("choice", [["--nframe", "8"], ["--spec", "ffff"], ["--spec", "ff"]])
def test_a_choice_that_fits_no_set_lists_those_there_are(stored, choice):
    checkpoint, cache, _ = stored
    words = ["compare", "--dataset", "demo", "--cache-dir", str(cache), "--device", "cpu"]
    done = CliRunner().invoke(main, [*words, "--model-path", str(checkpoint), *choice])
    assert done.exit_code == 1
    [found] = Dataset(cache, "demo").sets.rows()
    assert f"it has 1:\n  {found.spec.describe()}" in done.stderr
    assert "nearest" not in done.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--device", "banana"], "device is 'banana'; use auto, cpu, cuda"),
        (["--min-identical", "1"], "also pass --generate"),
    ],
)
def test_wrong_options_are_wrong_usage(stored, options, said):
    checkpoint, cache, _ = stored
    words = ["compare", "--dataset", "demo", "--cache-dir", str(cache)]
    done = CliRunner().invoke(main, [*words, "--model-path", str(checkpoint), *options])
    assert (done.exit_code, said in done.stderr) == (2, True), done.output


def test_of_several_sets_of_an_encoder_the_dataset_s_default_is_compared(tmp_path):
    encoder, sets = ToyEncoder(), {}
    for nframe in (4, 2, 3):
        sets[nframe] = FeatureSpec(
            encoder.identity, Sampling(nframe), DECODER, encoder.preprocessing
        )
        x = toy_features(0, frames=nframe)
        store_videos(tmp_path / "cache", "demo", {"v": x}, spec=sets[nframe])
    dataset = Dataset(tmp_path / "cache", "demo")
    assert choose(dataset, encoder, None, None) == sets[4]
    assert choose(dataset, encoder, 2, None) == sets[2]
    assert choose(dataset, encoder, None, sets[3].digest[:8]) == sets[3]
    other = ToyEncoder(seed=1)
    theirs = FeatureSpec(other.identity, Sampling(2), DECODER, other.preprocessing)
    store_videos(tmp_path / "cache", "demo", {"v": toy_features(0, frames=2)}, spec=theirs)
    assert choose(dataset, other, None, None) == theirs
    remove_set(tmp_path / "cache", "demo", sets[4])
    assert choose(dataset, encoder, None, None) == sets[2]
    store_videos(tmp_path / "two", "demo", {"v": toy_features(0, frames=2)}, spec=theirs)
    for nframe in (2, 3):
        x = toy_features(0, frames=nframe)
        store_videos(tmp_path / "two", "demo", {"v": x}, spec=sets[nframe])
    with pytest.raises(StoreMismatch, match="2 feature sets of dataset 'demo' are of this encoder"):
        choose(Dataset(tmp_path / "two", "demo"), encoder, None, None)


@pytest.fixture
def both(tmp_path):
    """A dataset with toy features of one encoder, of the frames of either decoder."""
    encoder, sets = ToyEncoder(), {}
    for decoder in ("auto", "exact"):
        sets[decoder] = FeatureSpec(
            encoder.identity, Sampling(4), identity_of(decoder), encoder.preprocessing
        )
        store_videos(tmp_path / "cache", "demo", {"v": toy_features(0)}, spec=sets[decoder])
    return Dataset(tmp_path / "cache", "demo"), encoder, sets


def test_the_decoder_chooses_between_the_sets_of_an_encoder(both):
    dataset, encoder, sets = both
    assert choose(dataset, encoder) == sets["auto"]
    for decoder, spec in sets.items():
        assert choose(dataset, encoder, decoder=decoder) == spec
        assert choose(dataset, encoder, spec=spec.digest) == spec


def test_a_set_of_the_other_decoder_is_not_compared_unless_it_is_named(both):
    dataset, encoder, sets = both
    remove_set(dataset.path.parent, "demo", sets["auto"])
    assert choose(dataset, encoder) == sets["exact"]
    with pytest.raises(StoreMismatch) as refused:
        choose(dataset, encoder, decoder="auto")
    assert "decoder: stored pyav-presentation, asked for decord-rgb24" in str(refused.value)
    assert "decoder='exact', --decoder exact" in str(refused.value)


def test_a_set_of_an_unknown_decoder_is_refused(tmp_path):
    encoder = ToyEncoder()
    spec = FeatureSpec(encoder.identity, Sampling(4), "of-tomorrow", encoder.preprocessing)
    store_videos(tmp_path / "cache", "demo", {"v": toy_features(0)}, spec=spec)
    with pytest.raises(StoreMismatch, match="decoder: stored of-tomorrow, asked for decord-rgb24"):
        choose(Dataset(tmp_path / "cache", "demo"), encoder)


def test_fresh_features_are_of_the_frames_that_the_stored_ones_are_of(tmp_path):
    """`auto` refuses this file: decord gives other frames of it from one run to the next."""
    path = write_case("mpeg4_b.avi", tmp_path)
    made = ingest(
        path,
        tmp_path / "cache",
        "demo",
        encoder=ToyEncoder(),
        sampling=Sampling(4),
        options=IngestOptions(decoder="exact"),
    )
    assert made.failures == []
    dataset = Dataset(tmp_path / "cache", "demo")
    report = compare(dataset, TorchToyEncoder())
    assert (report.failures, len(report.rows)) == ({}, 1)
    assert report.rows[0].error.relative_l2 < 0.02


class TorchToyEncoder(ToyEncoder):
    """The toy encoder, giving tensors as LongVA's does."""

    def encode(self, frames):
        return torch.from_numpy(super().encode(frames))


# What is refused before work


@pytest.fixture
def work(monkeypatch):
    """What the command read: the configs and vision weights of a checkpoint, or its language model."""
    done = []
    for name in ("featstore.encoders.LongVAEncoder", "featstore.models.CachedLongVA"):
        place, _, cls = name.rpartition(".")
        real = getattr(importlib.import_module(place), cls)

        def build(*args, real=real, cls=cls, **options):
            done.append(cls)
            return real(*args, **options)

        monkeypatch.setattr(name, build)
    return done


@pytest.mark.parametrize("choice", [["--spec", "zzzz"], ["--nframe", "5"]])
def test_a_choice_that_no_set_fits_is_refused_before_the_checkpoint_is_read(stored, work, choice):
    checkpoint, cache, _ = stored
    words = ["compare", "--dataset", "demo", "--cache-dir", str(cache), "--device", "cpu"]
    done = CliRunner().invoke(
        main, [*words, "--model-path", str(checkpoint), "--generate", *choice]
    )
    assert (done.exit_code, work) == (1, [])
    assert "no feature set of dataset 'demo' fits" in done.stderr


def test_two_sets_that_serve_are_refused_before_the_language_model_is_loaded(
    stored, work, tmp_path
):
    checkpoint, made, _ = stored
    cache = Path(shutil.copytree(made, tmp_path / "cache"))
    [own] = Dataset(cache, "demo").sets.rows()
    other = replace(own.spec, encoder=replace(own.spec.encoder, weights="0" * 64))
    with FeatureWriter(cache, "demo", min_free=0) as writer:
        for spec in (other, replace(own.spec, sampling=Sampling(3))):
            writer.add_set(spec)
        writer.commit()
    set_default(cache, "demo", other.digest)
    words = ["compare", "--dataset", "demo", "--cache-dir", str(cache), "--device", "cpu"]
    words += ["--model-path", str(checkpoint), "--generate"]
    done = CliRunner().invoke(main, words)
    assert (done.exit_code, work) == (1, ["LongVAEncoder"])
    assert "2 feature sets of dataset 'demo' are of this encoder; name one with" in done.stderr
