"""Fields changed by ``model.FIELD=VALUE``, and what is refused; configurations refuse the same."""

import json
from dataclasses import fields, is_dataclass
from typing import Any

import pytest

from dcmpl.config import AdapterConfig, FusionConfig, ModelConfig, MpaConfig, TrainConfig
from dcmpl.errors import UsageError
from dcmpl.presets import PRESETS, differences, with_settings

DCMPL_MODEL = PRESETS["dcmpl"].model


def refused(settings: list[str], preset: str = "dcmpl") -> str:
    """What is said of settings that must not pass: one line, in the house's form."""
    with pytest.raises(UsageError) as caught:
        with_settings(PRESETS[preset].model, settings)
    told = str(caught.value)
    assert told.startswith("expected ")
    assert ", got" in told
    assert len(told.splitlines()) == 1
    return told


def leaves(config: Any, prefix: str) -> dict[str, Any]:
    """All fields that hold a value, by their dotted names."""
    found: dict[str, Any] = {}
    for field in fields(config):
        value, name = getattr(config, field.name), f"{prefix}.{field.name}"
        found |= leaves(value, name) if is_dataclass(value) else {name: value}
    return found


def metadata(name: str) -> Any:
    """What is written beside the field of that dotted name."""
    *sections, last = name.split(".")[1:]
    kinds = {"mpa": MpaConfig, "fusion": FusionConfig, "adapter": AdapterConfig}
    kind = kinds[sections[0]] if sections else ModelConfig
    return {field.name: field.metadata for field in fields(kind)}[last]


def test_no_settings_change_nothing() -> None:
    for preset in PRESETS.values():
        assert with_settings(preset.model, []) == preset.model


@pytest.mark.parametrize(
    ("setting", "changed"),
    [
        ("model.mpa.form=joint", {"mpa.form": "joint"}),
        ("model.mpa.share=per_layer", {"mpa.share": "per_layer"}),
        ("model.n_context=4", {"n_context": 4}),
        ("model.text_depth=3", {"text_depth": 3}),
        ("model.text_depth=0", {"text_depth": 0}),
        ("model.mpa.depth=9", {"mpa.depth": 9}),
        ("model.adapter.ratio=0.5", {"adapter.ratio": 0.5}),
        ("model.adapter.ratio=1e-1", {"adapter.ratio": 0.1}),
        ("model.adapter.ratio=1", {"adapter.ratio": 1.0}),
        ("model.mpa.identity_start=true", {"mpa.identity_start": True}),
        ("model.fusion.clone_start=False", {"fusion.clone_start": False}),
        ("model.round_prompts=true", {"round_prompts": True}),
        ("model.normalization=clip", {"normalization": "clip"}),
        (
            "model.words={quality: [[good photo, bad photo], [sharp, blurry]], "
            'alignment: [["it, fits", "it: does not"]]}',
            {
                "words": {
                    "quality": (("good photo", "bad photo"), ("sharp", "blurry")),
                    "alignment": (("it, fits", "it: does not"),),
                }
            },
        ),
    ],
)
def test_setting_changes_its_field_and_no_other(setting: str, changed: dict[str, Any]) -> None:
    found = differences(with_settings(DCMPL_MODEL, [setting]))
    assert found == changed
    for name, value in found.items():
        assert type(value) is type(changed[name])


@pytest.mark.parametrize("name", leaves(DCMPL_MODEL, "model"))
def test_every_field_is_explained_and_can_be_set_to_what_it_is(name: str) -> None:
    assert "help" in metadata(name)
    value = leaves(DCMPL_MODEL, "model")[name]
    written = value if isinstance(value, str) else json.dumps(value)
    assert with_settings(DCMPL_MODEL, [f"{name}={written}"]) == DCMPL_MODEL


@pytest.mark.parametrize("nothing", ["null", "none"])  # the fields' help says none
@pytest.mark.parametrize("name", ["text_depth", "vision_depth"])
def test_depth_can_be_taken_back_to_all_layers(name: str, nothing: str) -> None:
    vpt = PRESETS["vpt-shallow"].model
    found = with_settings(vpt, [f"model.{name}={nothing}"])
    assert getattr(found, name) is None
    shallow = with_settings(DCMPL_MODEL, ["model.mpa.depth=2", "model.fusion.depth=2"])
    back = [f"model.mpa.depth={nothing}", f"model.fusion.depth={nothing}"]
    assert with_settings(shallow, back) == DCMPL_MODEL


def test_several_settings_are_checked_together() -> None:
    # Each by itself would leave a field that nothing reads.
    settings = [
        "model.words={quality: [[good photo, bad photo]]}",
        "model.fusion.on=false",
        "model.adapter.where=none",
        "model.mpa.form=none",
    ]
    assert with_settings(DCMPL_MODEL, settings) == PRESETS["ivlp"].model
    assert with_settings(DCMPL_MODEL, settings[::-1]) == PRESETS["ivlp"].model


def test_words_keep_the_order_of_their_tasks() -> None:
    words = "{alignment: [[aligned photo, misaligned photo]], quality: [[good photo, bad photo]]}"
    found = with_settings(DCMPL_MODEL, [f"model.words={words}"])
    assert found.tasks == ("alignment", "quality")


def test_settings_leave_what_they_change_as_it_was() -> None:
    before = leaves(DCMPL_MODEL, "model")
    with_settings(DCMPL_MODEL, ["model.n_context=4", "model.mpa.form=joint"])
    assert leaves(DCMPL_MODEL, "model") == before


@pytest.mark.parametrize(
    ("setting", "hint"),
    [
        ("model.mpa.frm=joint", "did you mean model.mpa.form?"),
        ("mpa.form=joint", "did you mean model.mpa.form?"),
        ("model.mpa.shared=per_layer", "did you mean model.mpa.share?"),
        ("model.n_contex=4", "did you mean model.n_context?"),
        ("model.adapter_ratio=0.2", "did you mean model.adapter.ratio?"),
        ("--model.fusion.on=false", "did you mean model.fusion.on?"),
        ("model.words.quality=good", "did you mean model.words?"),
        ("zzz=1", "dcmpl presets lists the fields"),
        ("=3", "dcmpl presets lists the fields"),
        ("", "dcmpl presets lists the fields"),
    ],
)
def test_unknown_field_is_refused_with_the_nearest(setting: str, hint: str) -> None:
    told = refused([setting])
    assert told.startswith("expected --set model.FIELD=VALUE")
    assert f"got {setting or 'nothing'}: " in told
    assert told.endswith(hint)


@pytest.mark.parametrize("setting", ["h=1", "help=1", "help", "-h=1"])
def test_flags_of_the_parser_are_no_fields(setting: str) -> None:
    told = refused([setting])
    assert told.startswith("expected --set model.FIELD=VALUE")
    assert "did you mean" not in told


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("model.mpa.form=jont", "joint, none for model.mpa.form"),
        ("model.mpa.form=", "joint, none for model.mpa.form"),
        ("model.mpa.form=null", "joint, none for model.mpa.form"),
        ("model.readout=regression", "words, linear for model.readout"),
        ("model.n_context=4.5", "n_context"),
        ("model.n_context=four", "n_context"),
        ("model.n_context=4 5", "n_context"),
        ("model.n_context=true", "n_context"),
        ("model.n_context=0", "n_context from 1 to 4096, got 0"),
        ("model.n_context=4097", "n_context from 1 to 4096, got 4097"),
        ("model.text_depth=x", "text_depth"),
        ("model.text_depth=1.5", "text_depth"),
        ("model.text_depth=-1", "text_depth from 0 to 1000, got -1"),
        ("model.vision_depth=1001", "vision_depth from 0 to 1000, got 1001"),
        ("model.mpa.depth=0", "mpa.depth from 1 to 1000, got 0"),
        ("model.fusion.depth=0", "fusion.depth from 1 to 1000, got 0"),
        ("model.adapter.ratio=2", "adapter.ratio from 0 to 1, got 2"),
        ("model.adapter.ratio=-0.1", "adapter.ratio from 0 to 1, got -0.1"),
        ("model.adapter.ratio=nan", "adapter.ratio"),
        ("model.adapter.ratio=much", "adapter.ratio"),
        ("model.adapter.reduction=0", "adapter.reduction from 1 to 4096, got 0"),
        ("model.mpa.identity_start=maybe", "identity_start"),
        ("model.mpa.identity_start=1", "identity_start"),
        ("model.words={}", "quality, alignment"),
        (
            "model.words={Colour: [[red, blue]]}",
            "tables of scores, got Colour",
        ),
        ("model.words={quality: [], alignment: [[a, b]]}", "pairs"),
        ("model.words={quality: good}", "words"),
        ("model.words={quality: [[a, b, c]]}", "words"),
        ("model.words={quality: [[a]]}", "words"),
        ("model.words={quality: [[1, 2]]}", "words"),
        ("model.words={", "words"),
        ("model.words=null", "words"),
        ("model.mpa.form=joint\nmodel.n_context=4", "joint, none for model.mpa.form"),
    ],
)
def test_value_that_does_not_fit_is_refused(setting: str, named: str) -> None:
    assert named in refused([setting])


UNUSED = [
    *[
        ("clip-agiqa", [f"mpa.{setting}"], f"mpa.{setting.split('=')[0]}")
        for setting in (
            *["share=per_layer", "deep=independent", "depth=2"],
            *["identity_start=true", "directions=text_to_vision"],
        )
    ],
    *[
        ("dcmpl-no-fusion", [f"fusion.{setting}"], f"fusion.{setting.split('=')[0]}")
        for setting in ("depth=2", "aux_tap=first_layer", "clone_start=false", "detach_aux=true")
    ],
    *[
        ("dcmpl-no-adapter", [f"adapter.{setting}"], f"adapter.{setting.split('=')[0]}")
        for setting in (
            *["shared=true", "ratio=0.3", "learnable_ratio=true"],
            *["reduction=2", "final_relu=false"],
        )
    ],
    ("dcmpl", ["mpa.form=joint", "mpa.directions=text_to_vision"], "mpa.directions"),
    ("dcmpl", ["adapter.where=main", "adapter.shared=true"], "adapter.shared"),
    ("dcmpl", ["vision_depth=0"], "fusion.on"),
    ("dcmpl", ["words={quality: [[good photo, bad photo]]}"], "mpa.form, fusion.on"),
    ("dcmpl-no-aux", ["adapter.where=both", "adapter.shared=true"], "adapter.shared"),
    ("dcmpl-no-aux", ["adapter.where=aux"], "adapter.where"),
    ("ivlp", ["mpa.form=cmpa"], "mpa.form"),
    ("ivlp", ["fusion.on=true"], "fusion.on"),
    ("maple", ["text_depth=0"], "vision_source"),
    ("maple", ["vision_depth=0"], "vision_source"),
    ("clip-iqa", ["n_context=4"], "n_context"),
    ("clip-adapter", ["vision_source=text"], "vision_source"),
    ("linear-probe", ["text_depth=1"], "text_depth"),
    ("linear-probe", ["adapter.where=main"], "adapter.where"),
    ("dcmpl", ["readout=linear"], "adapter.where, text_depth"),
    # Only deep and visual prompts are rounded.
    ("clip-iqa", ["round_prompts=true"], "round_prompts"),
    ("linear-probe", ["round_prompts=true"], "round_prompts"),
    ("coop", ["round_prompts=true"], "round_prompts"),
    # A linear readout reads tasks and no words.
    (
        "linear-probe",
        ["words={quality: [[sharp, blurry]], alignment: [[aligned photo, misaligned photo]]}"],
        "words",
    ),
    # Prompts of one layer have no next one, which attention would make.
    ("dcmpl", ["mpa.depth=1", "mpa.form=joint"], "mpa.form"),
    # One layer is as all layers start, and is itself the first.
    ("dcmpl", ["fusion.depth=1", "fusion.clone_start=false"], "fusion.clone_start"),
    ("dcmpl", ["fusion.depth=1", "fusion.aux_tap=first_layer"], "fusion.aux_tap"),
    # An adapter of fixed ratio 0 does not run.
    ("dcmpl", ["adapter.ratio=0", "adapter.reduction=2"], "adapter.reduction"),
]


@pytest.mark.parametrize(("preset", "settings", "named"), UNUSED)
def test_field_that_nothing_reads_is_refused(preset: str, settings: list[str], named: str) -> None:
    told = refused([f"model.{setting}" for setting in settings], preset)
    assert told.startswith("expected only fields that this model reads, got ")
    assert f"got {named}:" in told
    assert told.endswith("leave them at their defaults")


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_dropout_that_leaves_nothing_is_refused(share: float) -> None:
    with pytest.raises(UsageError, match=r"expected an adapter_dropout from 0 to below 1, got"):
        TrainConfig(adapter_dropout=share)
