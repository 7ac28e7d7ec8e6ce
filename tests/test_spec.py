import contextlib
import dataclasses
import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import specs

from featstore.decoding.video_file import identity_of
from featstore.errors import StoreMismatch
from featstore.geometry import Geometry
from featstore.preprocessing import ExactResize, PixelBudget, ShortestEdgeCrop, frame_bytes
from featstore.sampling import Sampling
from featstore.spec import EncoderIdentity, FeatureSpec

SPEC = FeatureSpec(
    encoder=EncoderIdentity(
        family="toy",
        weights="ab" * 32,
        dtype="fp16",
        geometry=Geometry(
            tokens_per_unit=144,
            hidden_dim=3584,
            frames_per_unit=2,
            stride=2,
            extra_rows=1,
            planes=1,
            grid=(12, 12),
        ),
        settings={"select_layer": -2, "projector": "mlp2x_gelu", "eps": 1e-5},
    ),
    sampling=Sampling(128),
    decoder="decord",
    preprocessing=ShortestEdgeCrop(shortest_edge=336, crop_height=336, crop_width=336),
)

ENCODER_CHANGES: dict[str, Any] = {
    "family": {"family": "longva"},
    "weights": {"weights": "cd" * 32},
    "dtype": {"dtype": "bf16"},
    "settings.select_layer": {"settings": SPEC.encoder.settings | {"select_layer": -1}},
    "settings.projector": {"settings": SPEC.encoder.settings | {"projector": "linear"}},
    "settings.eps": {"settings": SPEC.encoder.settings | {"eps": 1e-6}},
    "settings.more": {"settings": SPEC.encoder.settings | {"more": None}},
}
GEOMETRY_CHANGES: dict[str, Any] = {
    "hidden_dim": 4096,
    "frames_per_unit": 3,
    "stride": 1,
    "extra_rows": 0,
    "planes": 2,
    "grid": (9, 16),
}
# A number of tokens goes with its grid.
TWO_CHANGES: dict[str, dict[str, Any]] = {
    "tokens_per_unit": {"tokens_per_unit": 576, "grid": (24, 24)},
    "by_video": {"by_video": True, "grid": None},
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
SAMPLING_CHANGES = {
    "sampling.nframe": Sampling(64),
    "sampling.policy": Sampling(128, "midpoint"),
}


def with_encoder(**changes: Any) -> FeatureSpec:
    return dataclasses.replace(SPEC, encoder=dataclasses.replace(SPEC.encoder, **changes))


def with_geometry(**changes: Any) -> FeatureSpec:
    return with_encoder(geometry=dataclasses.replace(SPEC.encoder.geometry, **changes))


def with_preprocessing(**changes: Any) -> FeatureSpec:
    return dataclasses.replace(
        SPEC, preprocessing=dataclasses.replace(SPEC.preprocessing, **changes)
    )


def changed_specs() -> dict[str, FeatureSpec]:
    """A spec for each field that determines features, which alone is changed."""
    return {
        **{f"encoder.{k}": with_encoder(**change) for k, change in ENCODER_CHANGES.items()},
        **{f"encoder.geometry.{k}": with_geometry(**{k: v}) for k, v in GEOMETRY_CHANGES.items()},
        **{
            f"preprocessing.{k}": with_preprocessing(**{k: v})
            for k, v in PREPROCESSING_CHANGES.items()
        },
        **{k: dataclasses.replace(SPEC, sampling=v) for k, v in SAMPLING_CHANGES.items()},
        "decoder": dataclasses.replace(SPEC, decoder="pyav"),
    }


CHANGED = changed_specs()

CANONICAL = (
    '{"decoder":"decord","encoder":{"dtype":"fp16","family":"toy","geometry":{"by_video":false,"extra_rows":1,'
    '"frames_per_unit":2,"grid":[12,12],"hidden_dim":3584,"planes":1,"stride":2,"tokens_per_unit":144},'
    '"settings":{"eps":1e-05,"projector":"mlp2x_gelu","select_layer":-2},'
    '"weights":"abababababababababababababababababababababababababababababababab"},'
    '"preprocessing":{"crop_height":336,"crop_width":336,"kind":"shortest_edge_crop",'
    '"mean":[0.48145466,0.4578275,0.40821073],"resample":3,"rescale":0.00392156862745098,"shortest_edge":336,'
    '"std":[0.26862954,0.26130258,0.27577711]},"sampling":{"nframe":128,"policy":"linspace","rate":null}}'
)


def test_the_digest_of_a_spec_is_this_one():
    """Should it change, no store made before can be read: raise the store's format with it."""
    assert SPEC.digest == hashlib.sha256(CANONICAL.encode()).hexdigest()[:32]
    assert SPEC.digest == "60735c53fd1ccadc37a204d3d6eb4820"


def test_no_field_is_left_out_of_these_tests():
    names = {f"encoder.{f.name}" for f in dataclasses.fields(EncoderIdentity)}
    names |= {f"encoder.geometry.{f.name}" for f in dataclasses.fields(Geometry)}
    names |= {f"encoder.settings.{name}" for name in (*SPEC.encoder.settings, "more")}
    names |= {f"preprocessing.{f.name}" for f in dataclasses.fields(ShortestEdgeCrop)}
    names |= {f"sampling.{f.name}" for f in dataclasses.fields(Sampling)}
    names |= {f.name for f in dataclasses.fields(FeatureSpec)}
    groups = {"encoder", "encoder.geometry", "encoder.settings", "preprocessing", "sampling"}
    # These need a second field changed with them.
    others = {f"encoder.geometry.{name}" for name in TWO_CHANGES}
    others |= {"sampling.rate", "preprocessing.kind"}
    assert names - groups == set(CHANGED) | others


@pytest.mark.parametrize("field", CHANGED)
def test_every_field_that_determines_features_changes_the_digest(field):
    assert CHANGED[field].digest != SPEC.digest


def test_what_needs_a_second_field_changes_the_digest():
    rated = [dataclasses.replace(SPEC, sampling=Sampling(128, "fps", r)) for r in (1.0, 2.0)]
    shaped = [with_geometry(**change) for change in TWO_CHANGES.values()]
    kinds = [
        dataclasses.replace(SPEC, preprocessing=pre)
        for pre in (
            ExactResize(height=336, width=336),
            PixelBudget(multiple=14, min_pixels=196, max_pixels=336 * 336),
        )
    ]
    assert len({spec.digest for spec in [SPEC, *rated, *shaped, *kinds]}) == 7


def test_the_order_of_settings_is_not_part_of_a_spec():
    turned = dict(reversed(SPEC.encoder.settings.items()))
    assert with_encoder(settings=turned).digest == SPEC.digest
    assert with_encoder(settings=turned) == SPEC
    assert list(with_encoder(settings=turned).encoder.settings) == sorted(turned)


def test_a_setting_of_another_type_is_another_setting():
    values = [1, 1.5, "1", True, None]
    digests = {with_encoder(settings={"x": value}).digest for value in values}
    assert len(digests) == len(values)
    for value in values:
        spec = with_encoder(settings={"x": value})
        again = FeatureSpec.from_dict(spec.to_dict())
        assert (type(again.encoder.settings["x"]), again.digest) == (type(value), spec.digest)


@pytest.mark.parametrize("field", CHANGED)
def test_a_difference_names_its_field_and_both_values(field):
    [(name, here, there)] = SPEC.diff(CHANGED[field])
    assert name == field
    assert here != there


def test_equal_specs_have_one_digest_however_their_numbers_are_written():
    """A rate of 1 from Python and of 1.0 from the command line were two feature sets."""
    one = with_preprocessing(rescale=1, mean=(0, 0, 0), std=(1, 1, 1))
    same = with_preprocessing(rescale=1.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    rates = [dataclasses.replace(SPEC, sampling=Sampling(8, "fps", rate)) for rate in (1, 1.0)]
    assert one.digest == same.digest
    assert rates[0].digest == rates[1].digest


@given(specs(), specs())
def test_specs_that_differ_have_a_difference_to_name(one, other):
    assert (one.digest == other.digest) == (one.diff(other) == [])


@given(specs())
def test_a_spec_comes_back_from_its_row(spec):
    again = FeatureSpec.from_dict(spec.to_dict())
    assert again == spec
    assert again.digest == spec.digest


def test_a_dtype_that_no_encoder_computes_in_is_refused():
    with pytest.raises(ValueError, match="dtype is 'int8'; use one of fp16, bf16, fp32"):
        with_encoder(dtype="int8")


def test_the_most_rows_are_those_of_all_frames():
    assert SPEC.max_rows == 64 * 144 + 1
    assert with_geometry(by_video=True, grid=None).max_rows == SPEC.max_rows


def test_how_features_are_stored_is_no_part_of_what_they_are():
    text = json.dumps(SPEC.to_dict())
    assert not any(word in text for word in ("int8", "channel", "quantization", "codec"))


@given(
    st.sampled_from(
        [
            *SPEC.to_dict(),
            "encoder.geometry",
            "encoder.settings",
            "encoder.weights",
            "encoder.geometry.grid",
            "preprocessing.kind",
            "sampling.rate",
        ]
    ),
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


def test_the_options_for_the_command_line_name_sampling_and_type():
    assert SPEC.ingest_options() == "--nframe 128 --sampling linspace --dtype fp16"
    rated = dataclasses.replace(SPEC, sampling=Sampling(64, "fps", 1 / 3))
    assert "--sampling fps:0.3333333333333333 " in rated.ingest_options()


def test_exact_frames_are_named_to_people_and_to_ingest():
    exact = dataclasses.replace(SPEC, decoder=identity_of("exact"))
    assert exact.ingest_options() == f"{SPEC.ingest_options()} --decoder exact"
    line = SPEC.describe().removeprefix(SPEC.digest[:8])
    assert exact.describe() == f"{exact.digest[:8]}{line}  exact"


def with_settings(**settings):
    encoder = dataclasses.replace(SPEC.encoder, settings=settings)
    return dataclasses.replace(SPEC, encoder=encoder)


def test_settings_that_are_equal_to_python_and_not_to_an_encoder_are_told_apart():
    kinds = [with_settings(x=value) for value in (1, 1.0, True, "none", "None", None)]
    kinds += [with_settings(), with_settings(x="\ud83d\ude00"), with_settings(x="\U0001f600")]
    assert len({spec.digest for spec in kinds}) == len(kinds)
    for one in kinds:
        for other in kinds:
            assert bool(one.diff(other)) == (one.digest != other.digest)


@pytest.mark.parametrize("value", [[1], (1,), {"a": 1}, float("nan"), float("inf"), b"x"])
def test_a_setting_that_no_row_holds_is_refused(value):
    with pytest.raises(ValueError, match="setting 'x' is"):
        with_settings(x=value)


@pytest.mark.parametrize(
    ("settings", "says"),
    [({1: "a"}, "called 1; its name must be a string"), ({"x": 1 << 64}, "more than 64 bits")],
)
def test_a_setting_that_msgpack_does_not_take_is_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        dataclasses.replace(SPEC.encoder, settings=settings)
    with_settings(low=-(1 << 63), high=(1 << 64) - 1)


def test_imported_features_are_told_apart_and_no_frame_is_prepared_for_them():
    spec = FeatureSpec.of_imported(Geometry(144, 3584), 128, {"model_signature": "s"})
    other = FeatureSpec.of_imported(Geometry(144, 3584), 128, {"model_signature": "t"})
    assert (spec.imported, SPEC.imported) == (True, False)
    assert len({spec.digest, other.digest, SPEC.digest}) == 3
    assert FeatureSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert "imported, model_signature s  128 frames" in spec.describe()
    with pytest.raises(ValueError, match="unknown"):
        spec.sampling.indices(100, 25.0)
    with pytest.raises(ValueError, match="unknown"):
        frame_bytes(spec.preprocessing)
    with pytest.raises(ValueError, match="use one of linspace"):
        Sampling.parse("unknown")
