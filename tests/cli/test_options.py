"""Flags that several commands share: recipe, settings, presets, devices, mappings."""

from pathlib import Path

import pytest

from conftest import Capture, refused
from dcmpl.cli.main import parse
from dcmpl.cli.options import recipe_of
from dcmpl.config import RECIPES


@pytest.mark.parametrize(
    ("flag", "value", "told"),
    [
        ("--epochs", "0", "expected epochs of at least 1, got 0"),
        ("--batch-size", "-1", "expected batch_size of at least 1, got -1"),
        ("--set", "train.crops=0", "expected crops of at least 1, got 0"),
        (
            "--lr",
            "0",
            "expected a positive lr, an alignment_weight",
        ),
        (
            "--set",
            "train.views=grid-0",
            "expected views to be windows, paper-windows, center, tiles, resize or grid-N",
        ),
        ("--preset", "foo", "expected --preset of dcmpl"),
    ],
)
def test_value_out_of_range_is_wrong_usage(
    capsys: Capture, train: list[str], flag: str, value: str, told: str
) -> None:
    assert refused(capsys, 2, *train, flag, value).startswith(told)


def test_data_without_a_scale_is_wrong_usage(
    capsys: Capture, image_data: Path, tmp_path: Path
) -> None:
    told = refused(capsys, 2, "train", "--data", image_data, "--out", tmp_path / "run")
    assert told.endswith("add --mos-scale LOW HIGH, for example --mos-scale 1 5")


def test_mapping_without_an_equals_sign_is_wrong_usage(capsys: Capture, train: list[str]) -> None:
    assert refused(capsys, 2, *train, "--columns", "foo") == (
        "expected --columns OURS=THEIRS ..., got foo"
    )


def test_flags_that_are_not_given_have_the_value_of_the_recipe(image_data: Path) -> None:
    words = ["train", "--data", str(image_data), "--mos-scale", "1", "5", "--out", "x"]
    assert recipe_of(parse(words)[1]) == RECIPES["small"]


@pytest.mark.parametrize("backbone", ["small", "openai/clip-vit-base-patch32"])
def test_patience_can_be_turned_off_and_on_for_every_backbone(backbone: str) -> None:
    words = ["train", "--data", ".", "--out", "x", "--backbone", backbone, "--set"]
    assert recipe_of(parse([*words, "train.patience=none"])[1]).patience is None
    assert recipe_of(parse([*words, "train.patience=3"])[1]).patience == 3


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("model.mpa.frm=joint", "did you mean model.mpa.form?"),
        ("mpa.form=joint", "did you mean model.mpa.form?"),
        ("model.mpa.form=foo", "for model.mpa.form, got 'foo'"),
        ("model.adapter.ratio=2", "expected adapter.ratio from 0 to 1, got 2.0"),
        ("model.mpa.form=none model.mpa.depth=2", "got mpa.depth: leave them at their defaults"),
    ],
)
def test_setting_that_does_not_fit_is_wrong_usage(
    capsys: Capture, train: list[str], setting: str, told: str
) -> None:
    assert refused(capsys, 2, *train, "--set", *setting.split()).endswith(told)


def test_unknown_preset_names_the_nearest(capsys: Capture, train: list[str]) -> None:
    told = refused(capsys, 2, *train, "--preset", "clip-agqia")
    assert told.endswith("got clip-agqia: did you mean clip-agiqa?")


def test_device_that_cannot_be_one_is_wrong_usage(capsys: Capture, train: list[str]) -> None:
    assert refused(capsys, 2, *train, "--device", "cuda 1").startswith("expected --device of auto")
    assert refused(capsys, 2, *train, "--device", "tpu").startswith("expected a device that torch")


@pytest.mark.parametrize("value", ["0", '"false"', "no thanks", "[true]", "{a: 1}"])
def test_yes_or_no_of_a_configuration_is_true_or_false(
    capsys: Capture, tmp_path: Path, value: str
) -> None:
    (tmp_path / "c.yaml").write_text(f"bins: {value}\n")
    told = refused(capsys, 2, "select", "x.csv", "--config", tmp_path / "c.yaml")
    assert told.startswith("expected true or false for bins, got ")
