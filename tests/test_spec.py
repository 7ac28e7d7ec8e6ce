import contextlib
import dataclasses
import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import specs, texts
from toys import toy_spec

from featstore.errors import StoreMismatch
from featstore.preprocessing import Preprocessing
from featstore.sampling import Sampling
from featstore.spec import EncoderIdentity, FeatureSpec

SPEC = FeatureSpec(
    encoder=EncoderIdentity(
        name="toy",
        weights="ab" * 32,
        vision_tower="openai/clip-vit-large-patch14-336",
        select_layer=-2,
        select_feature="patch",
        projector="mlp2x_gelu",
        pooling="average:2",
        architecture="heads=16 hidden=1024",
        preprocessing=Preprocessing(336, 336, 336),
        dtype="fp16",
        tokens_per_frame=144,
        hidden_dim=3584,
    ),
    sampling=Sampling(128),
    decoder="decord",
    quantization="int8",
    scale="channel",
)

ENCODER_CHANGES: dict[str, Any] = {
    "name": "longva",
    "weights": "cd" * 32,
    "select_layer": -1,
    "select_feature": "cls_patch",
    "projector": "linear",
    "pooling": "none",
    "architecture": "heads=8 hidden=1024",
    "dtype": "bf16",
    "tokens_per_frame": 576,
    "hidden_dim": 4096,
}
PREPROCESSING_CHANGES: dict[str, Any] = {
    "shortest_edge": 224,
    "crop_height": 224,
    "crop_width": 224,
    "resample": 2,
    "rescale": 1 / 127.5,
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
}
SPEC_CHANGES: dict[str, Any] = {"decoder": "pyav", "scale": "token"}
SAMPLING_CHANGES = {
    "sampling.nframe": Sampling(64),
    "sampling.policy": Sampling(128, "midpoint"),
}


def with_encoder(**changes: Any) -> FeatureSpec:
    return dataclasses.replace(SPEC, encoder=dataclasses.replace(SPEC.encoder, **changes))


def changed_specs() -> dict[str, FeatureSpec]:
    """A spec for each field that determines features, which alone is changed."""
    pre = SPEC.encoder.preprocessing
    return {
        **{f"encoder.{k}": with_encoder(**{k: v}) for k, v in ENCODER_CHANGES.items()},
        **{
            f"encoder.preprocessing.{k}": with_encoder(
                preprocessing=dataclasses.replace(pre, **{k: v})
            )
            for k, v in PREPROCESSING_CHANGES.items()
        },
        **{k: dataclasses.replace(SPEC, **{k: v}) for k, v in SPEC_CHANGES.items()},
        **{k: dataclasses.replace(SPEC, sampling=v) for k, v in SAMPLING_CHANGES.items()},
    }


CHANGED = changed_specs()


CANONICAL = (
    '{"decoder":"decord","encoder":{"architecture":"heads=16 hidden=1024","dtype":"fp16","hidden_dim":3584,'
    '"name":"toy","pooling":"average:2","preprocessing":{"crop_height":336,"crop_width":336,'
    '"mean":[0.48145466,0.4578275,0.40821073],"resample":3,"rescale":0.00392156862745098,"shortest_edge":336,'
    '"std":[0.26862954,0.26130258,0.27577711]},"projector":"mlp2x_gelu","select_feature":"patch","select_layer":-2,'
    '"tokens_per_frame":144,"weights":"abababababababababababababababababababababababababababababababab"},'
    '"quantization":"int8","sampling":{"nframe":128,"policy":"linspace","rate":null},"scale":"channel"}'
)


def test_the_digest_of_a_spec_is_this_one():
    """Should it change, no store made before can be read: raise the store's format with it."""
    assert SPEC.digest == hashlib.sha256(CANONICAL.encode()).hexdigest()[:32]
    assert SPEC.digest == "6f1aa75494dc7f063aecf70775135c1f"


def test_no_field_is_left_out_of_these_tests():
    names = {f"encoder.{f.name}" for f in dataclasses.fields(EncoderIdentity)}
    names |= {f"encoder.preprocessing.{f.name}" for f in dataclasses.fields(Preprocessing)}
    names |= {f"sampling.{f.name}" for f in dataclasses.fields(Sampling)}
    names |= {f.name for f in dataclasses.fields(FeatureSpec)}
    groups = {"encoder", "encoder.preprocessing", "sampling", "encoder.vision_tower"}
    # A rate and a float storage need a second field changed with them.
    assert names - groups == set(CHANGED) | {"sampling.rate", "quantization"}


@pytest.mark.parametrize("field", CHANGED)
def test_every_field_that_determines_features_changes_the_digest(field):
    assert CHANGED[field].digest != SPEC.digest


def test_a_sampling_rate_and_the_storage_change_the_digest():
    rated = [dataclasses.replace(SPEC, sampling=Sampling(128, "fps", r)) for r in (1.0, 2.0)]
    stored = [
        dataclasses.replace(SPEC, quantization=q, scale="none") for q in ("bf16", "fp16", "fp32")
    ]
    assert len({spec.digest for spec in [SPEC, *rated, *stored]}) == 6


def test_the_name_of_the_vision_tower_changes_the_signature_alone():
    renamed = with_encoder(vision_tower="/models/clip")
    assert renamed.digest == SPEC.digest
    assert renamed.encoder.model_signature != SPEC.encoder.model_signature
    assert SPEC.diff(renamed) == []


@pytest.mark.parametrize("field", CHANGED)
def test_a_difference_names_its_field_and_both_values(field):
    [(name, here, there)] = SPEC.diff(CHANGED[field])
    assert name == field
    assert here != there


def test_equal_specs_have_one_digest_however_their_numbers_are_written():
    """A rate of 1 from Python and of 1.0 from the command line were two feature sets."""
    pre = dataclasses.replace(SPEC.encoder.preprocessing, rescale=1, mean=(0, 0, 0), std=(1, 1, 1))
    same = dataclasses.replace(pre, rescale=1.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    rates = [dataclasses.replace(SPEC, sampling=Sampling(8, "fps", rate)) for rate in (1, 1.0)]
    assert with_encoder(preprocessing=pre).digest == with_encoder(preprocessing=same).digest
    assert rates[0].digest == rates[1].digest


@given(specs(), specs())
def test_specs_that_differ_have_a_difference_to_name(one, other):
    assert (one.digest == other.digest) == (one.diff(other) == [])


@given(specs())
def test_a_spec_comes_back_from_its_row(spec):
    again = FeatureSpec.from_dict(spec.to_dict())
    assert again == spec
    assert again.digest == spec.digest


def test_the_model_signature_is_md5_of_tower_and_layer():
    text = b"openai/clip-vit-large-patch14-336:layer-2"
    assert SPEC.encoder.model_signature == hashlib.md5(text).hexdigest()[:8]


def test_the_record_key_is_md5_of_dataset_video_frames_and_signature():
    signature = hashlib.md5(b"openai/clip-vit-large-patch14-336:layer-2").hexdigest()[:8]
    text = f"Video-MME:ab/cd é:nframe128:model{signature}".encode()
    assert SPEC.record_key("Video-MME", "ab/cd é") == hashlib.md5(text).hexdigest()


@given(texts, texts)
def test_every_video_id_has_a_record_key_and_two_have_two(one, other):
    """Lone surrogates were a UnicodeEncodeError, and `'\\udcc3\\udca9'` had the key of `'é'`."""
    keys = {SPEC.record_key("demo", video) for video in (one, other, "é", "\udcc3\udca9")}
    assert len(keys) == len({one, other, "é", "\udcc3\udca9"})


@pytest.mark.parametrize(
    ("quantization", "scale"),
    [
        ("int8", "none"),
        ("bf16", "channel"),
        ("fp16", "token"),
        ("int4", "channel"),
        ("int8", "row"),
    ],
)
def test_a_storage_that_cannot_be_is_refused(quantization, scale):
    with pytest.raises(ValueError, match=r"use one of|int8 takes"):
        dataclasses.replace(SPEC, quantization=quantization, scale=scale)


@given(
    st.sampled_from([*SPEC.to_dict(), "encoder.preprocessing", "encoder.weights", "sampling.rate"]),
    st.sampled_from(["missing", None, 7, "text", [], {}]),
)
def test_a_row_that_is_no_spec_raises_a_mismatch_or_gives_another_spec(field, value):
    row = SPEC.to_dict()
    *path, name = field.split(".")
    place = row
    for step in path:
        place = place[step]
    if value == "missing":
        del place[name]
    else:
        place[name] = value
    with contextlib.suppress(StoreMismatch):
        assert isinstance(FeatureSpec.from_dict(row), FeatureSpec)


def test_the_options_for_the_command_line_name_sampling_type_and_storage():
    assert SPEC.ingest_options() == (
        "--nframe 128 --sampling linspace --dtype fp16 --quantize int8 --scale channel"
    )
    rated = dataclasses.replace(SPEC, sampling=Sampling(64, "fps", 1 / 3))
    assert "--sampling fps:0.3333333333333333 " in rated.ingest_options()
    assert toy_spec(quantization="bf16").ingest_options().endswith("--quantize bf16")
