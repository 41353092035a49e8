"""A run folder is read as it was written, or refused."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dcmpl import __version__
from dcmpl.config import AdapterConfig, ModelConfig, MpaConfig, TrainConfig, fields_of, option
from dcmpl.data.splits import Split
from dcmpl.data.table import MosScale
from dcmpl.errors import RunError
from dcmpl.files import as_json, sealed, sha256_of
from dcmpl.model.dcmpl import DCMPL, trainable_parameters
from dcmpl.runs import (
    DataSource,
    Run,
    load_learned,
    read_run,
    read_split,
    save_learned,
    write_split,
)
from dcmpl.scoring.torch_engine import load_model
from dcmpl.weights.backbones import Backbone, load_backbone

SPLIT = Split("clean", 0, ("a", "b"), ("c",), ("d",))
RUN = Run(
    preset="dcmpl",
    backbone="small",
    backbone_sha256="0" * 64,
    source=DataSource("/data/scores.csv", "scores", MosScale(1, 5), "1" * 64, {"image": "file"}),
    model=ModelConfig(
        n_context=3,
        words={"quality": (("fine", "poor"), ("sharp", "dull")), "alignment": (("so", "not"),)},
        mpa=MpaConfig(form="joint", depth=2),
        adapter=AdapterConfig(ratio=0.5),
    ),
    train=TrainConfig(epochs=3, lr=0.01, patience=None, views="grid-2"),
    split_sha256=SPLIT.digest,
    history=({"loss": 0.5, "quality_srcc": 0.25}, {"loss": 0.25, "quality_srcc": 0.5}),
    best_epoch=2,
    learned=("quality",),
)


@pytest.fixture(scope="module")
def backbone(small_backbone: Path) -> Backbone:
    return load_backbone(str(small_backbone))


NewModel = Callable[[int], DCMPL]


@pytest.fixture
def new_model(backbone: Backbone) -> NewModel:
    return lambda seed: DCMPL(backbone.clip, backbone.tokenizer, ModelConfig(), seed)


@pytest.fixture
def saved(new_model: NewModel, tmp_path: Path) -> Path:
    """The learned tensors of the model of seed 1."""
    save_learned(tmp_path / "model.safetensors", new_model(1), RUN)
    return tmp_path / "model.safetensors"


def test_record_round_trip_gives_the_same_run(tmp_path: Path) -> None:
    RUN.write(tmp_path)
    assert read_run(tmp_path) == RUN


def test_record_keeps_a_validation_that_was_undefined(tmp_path: Path) -> None:
    history = ({"loss": 0.5, "quality_srcc": float("nan")},)
    replace(RUN, history=history, best_epoch=1).write(tmp_path)
    value = read_run(tmp_path).history[0]["quality_srcc"]
    assert value != value


@pytest.mark.parametrize(("version", "is_read"), [("0.1.0", False), ("0.2.0", True)])
def test_windows_of_a_version_that_cut_them_otherwise_are_refused(
    tmp_path: Path, version: str, is_read: bool
) -> None:
    replace(RUN, train=replace(RUN.train, views="windows"), version=version).write(tmp_path)
    if is_read:
        assert read_run(tmp_path).train.views == "windows"
        return
    with pytest.raises(RunError, match=r"windows that reach the edges, got those of dcmpl 0\.1\.0"):
        read_run(tmp_path)


def test_folder_without_a_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError) as caught:
        read_run(tmp_path)
    assert str(caught.value) == (
        f"expected a run folder made by dcmpl train at {tmp_path}, got no run.json in it"
    )


def edit_record(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change the record by ``edit`` and seal it anew, as whoever knows the seal can."""
    record = json.loads((folder / "run.json").read_text())
    del record["digest"]
    edit(record)
    (folder / "run.json").write_bytes(sealed(record))


SEALED = sealed({"model": 1}).decode()


@pytest.mark.parametrize("text", ["", "{", "[]", "5", "null", '"text"', SEALED, 2000 * "["])
def test_record_of_other_content_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(RunError, match="expected the record of a run at "):
        read_run(tmp_path)


@pytest.mark.parametrize("where", [(), ("model",), ("train",), ("source",)])
def test_record_with_an_unknown_key_is_refused(tmp_path: Path, where: tuple[str, ...]) -> None:
    def surprise(record: dict[str, Any]) -> None:
        for key in where:
            record = record[key]
        record["surprise"] = 1

    RUN.write(tmp_path)
    edit_record(tmp_path, surprise)
    with pytest.raises(RunError, match="surprise"):
        read_run(tmp_path)


def test_record_with_settings_out_of_range_is_refused(tmp_path: Path) -> None:
    RUN.write(tmp_path)
    edit_record(tmp_path, lambda record: record["train"].update(epochs=0))
    with pytest.raises(RunError, match=r"expected the record of a run at .*epochs"):
        read_run(tmp_path)


def test_split_round_trip_gives_the_same_split(tmp_path: Path) -> None:
    write_split(tmp_path, SPLIT)
    assert read_split(tmp_path, RUN) == SPLIT


def test_missing_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="expected the split of the run at "):
        read_split(tmp_path, RUN)


def test_split_of_another_run_is_refused(tmp_path: Path) -> None:
    write_split(tmp_path, Split("clean", 0, ("a", "d"), ("c",), ("b",)))
    with pytest.raises(RunError, match=r"expected the split that run\.json names"):
        read_split(tmp_path, RUN)


def test_same_backbone_is_accepted(backbone: Backbone) -> None:
    replace(RUN, backbone_sha256=backbone.sha256).check_backbone(backbone)


def test_other_backbone_is_refused(backbone: Backbone) -> None:
    with pytest.raises(RunError, match="expected the backbone the run was trained with") as caught:
        RUN.check_backbone(backbone)
    assert backbone.sha256[:12] in str(caught.value)


def test_learned_tensors_round_trip_bit_for_bit(saved: Path, new_model: NewModel) -> None:
    model = new_model(2)
    load_learned(saved, model, RUN)
    wanted = trainable_parameters(new_model(1))
    found = trainable_parameters(model)
    assert [name for name in wanted if not torch.equal(wanted[name], found[name])] == []


def test_file_holds_the_learned_tensors_and_nothing_else(saved: Path, new_model: NewModel) -> None:
    assert load_file(saved).keys() == trainable_parameters(new_model(1)).keys()


def test_history_beside_the_tensors_comes_back(saved: Path, new_model: NewModel) -> None:
    assert load_learned(saved, new_model(2), RUN) == (RUN.history, {})


def test_identity_of_a_run_is_held() -> None:
    """Another value would make every run of before one that does not fit its tensors."""
    held = "77bc89458592072e47686d71fa0fb1b668c635a90b9e3e643e154b80b501f0a4"
    assert RUN.identity == held


@dataclass(frozen=True)
class LaterConfig(TrainConfig):
    """The recipe of a later version, which has one field more."""

    added: bool = option(False, "what today's runs do not do")


def test_run_keeps_its_tensors_when_a_later_version_adds_a_field(
    saved: Path, new_model: NewModel
) -> None:
    later = LaterConfig(**asdict(RUN.train))
    load_learned(saved, new_model(2), replace(RUN, train=later))
    with pytest.raises(RunError, match="got those of another run"):
        load_learned(saved, new_model(2), replace(RUN, train=replace(later, added=True)))


def test_defaults_stay_since_a_run_is_known_by_what_it_changes() -> None:
    """A field may be added here; one whose default changes makes other runs of old ones."""
    found = {n: f.default for c in (ModelConfig(), TrainConfig()) for n, f in fields_of(c)}
    assert found == {
        "words": {
            "quality": (("good photo", "bad photo"),),
            "alignment": (("aligned photo", "misaligned photo"),),
        },
        "readout": "words",
        "n_context": 8,
        "text_depth": None,
        "vision_depth": None,
        "vision_source": "free",
        "normalization": "imagenet",
        "round_prompts": False,
        "reads_prompt": False,
        "mpa.form": "cmpa",
        "mpa.share": "shared",
        "mpa.deep": "generated",
        "mpa.depth": None,
        "mpa.identity_start": False,
        "mpa.directions": "both",
        "fusion.on": True,
        "fusion.depth": None,
        "fusion.aux_tap": "same_layer",
        "fusion.clone_start": True,
        "fusion.detach_aux": False,
        "adapter.where": "both",
        "adapter.shared": False,
        "adapter.ratio": 0.2,
        "adapter.learnable_ratio": False,
        "adapter.reduction": 4,
        "adapter.final_relu": True,
        "adapter.reads_summary": True,
        "epochs": 50,
        "batch_size": 64,
        "lr": 1e-4,
        "schedule": "constant",
        "windows": "auto",
        "draws": 8,
        "coats": False,
        "crops": 1,
        "alignment_weight": 0.1,
        "mismatch_weight": 0.005,
        "adapter_dropout": 0.0,
        "missing_alignment": "none",
        "patience": 15,
        "views": "windows",
        "precision": "fp32",
        "seed": 0,
    }


DECIDES = {
    "preset": "other",
    "backbone_sha256": "2" * 64,
    "split_sha256": "3" * 64,
    "source": replace(RUN.source, sha256="4" * 64),
    "model": replace(RUN.model, n_context=4),
    "train": replace(RUN.train, lr=0.02),
}


@pytest.mark.parametrize("name", DECIDES)
def test_tensors_of_another_run_are_refused(saved: Path, new_model: NewModel, name: str) -> None:
    with pytest.raises(RunError, match="got those of another run"):
        load_learned(saved, new_model(2), replace(RUN, **{name: DECIDES[name]}))


def test_run_that_moved_and_went_on_keeps_its_tensors(saved: Path, new_model: NewModel) -> None:
    moved = replace(RUN.source, path="/elsewhere/scores.csv", name="other")
    later = replace(RUN, source=moved, history=(), best_epoch=1, version="99")
    load_learned(saved, new_model(2), later.finished_in(saved.parent))


@pytest.mark.parametrize("history", ["{", "null", "5", "[5]", '[{"loss": "x"}]', "[[]]"])
def test_history_of_other_content_is_refused(
    saved: Path, new_model: NewModel, history: str
) -> None:
    record = f'{{"run": "{RUN.identity}", "history": {history}}}'
    save_file(load_file(saved), saved, {"dcmpl": record})
    with pytest.raises(RunError, match="expected learned tensors at "):
        load_learned(saved, new_model(2), RUN)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_tensor_that_is_not_finite_is_refused(
    saved: Path, new_model: NewModel, value: float
) -> None:
    name = change(saved, lambda tensors: tensors[first(tensors)].view(-1)[-1:].fill_(value))
    with pytest.raises(RunError, match="expected finite numbers") as caught:
        load_learned(saved, new_model(2), RUN)
    assert name in str(caught.value)


def test_state_of_the_optimizer_comes_back(tmp_path: Path, new_model: NewModel) -> None:
    state = {"a/step": torch.tensor(3.0), "a/exp_avg": torch.arange(4.0)}
    save_learned(tmp_path / "last.safetensors", new_model(1), RUN, state)
    _, found = load_learned(tmp_path / "last.safetensors", new_model(2), RUN)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)


def change(path: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> str:
    """Edit the tensors in a file; returns the name of the first."""
    tensors = load_file(path)
    name = min(tensors)
    edit(tensors)
    save_file(tensors, path, {"dcmpl": json.dumps({"run": RUN.identity, "history": []})})
    return name


def first(tensors: dict[str, torch.Tensor]) -> str:
    return min(tensors)


WRONG = {
    "missing": lambda t: t.pop(first(t)),
    "of another shape": lambda t: t.update({first(t): torch.zeros(2, 3, 5)}),
    "renamed": lambda t: t.update({"x": t.pop(first(t))}),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_tensor_is_named(saved: Path, new_model: NewModel, kind: str) -> None:
    name = change(saved, WRONG[kind])
    with pytest.raises(RunError, match="expected exactly the ") as caught:
        load_learned(saved, new_model(2), RUN)
    assert name in str(caught.value)


def test_foreign_tensor_is_named(saved: Path, new_model: NewModel) -> None:
    change(saved, lambda tensors: tensors.update({"clip.logit_scale": torch.zeros(())}))
    with pytest.raises(RunError, match=r"got 1 that differ, clip\.logit_scale among them"):
        load_learned(saved, new_model(2), RUN)


def test_refused_file_leaves_the_model_as_it_was(saved: Path, new_model: NewModel) -> None:
    change(saved, lambda tensors: tensors.update({"zzz": torch.zeros(())}))
    model = new_model(2)
    with pytest.raises(RunError):
        load_learned(saved, model, RUN)
    wanted = trainable_parameters(new_model(2))
    found = trainable_parameters(model)
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)


@pytest.mark.parametrize("keep", [0, 4, 100, 5000, -1])
def test_truncated_file_is_refused(saved: Path, new_model: NewModel, keep: int) -> None:
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(RunError, match="expected learned tensors at "):
        load_learned(saved, new_model(2), RUN)


def test_missing_file_is_refused(tmp_path: Path, new_model: NewModel) -> None:
    with pytest.raises(RunError, match="expected learned tensors at "):
        load_learned(tmp_path / "model.safetensors", new_model(2), RUN)


def test_trained_run_can_be_moved(trained_run: Path, tmp_path: Path) -> None:
    shutil.copytree(trained_run, tmp_path / "moved")
    assert read_run(tmp_path / "moved") == read_run(trained_run)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("model", "normalization", "foo"),
        ("model", "n_context", 8.5),
        ("model", "n_context", 10**9),
        ("train", "precision", "fp8"),
        (None, "backbone", None),
        (None, "learned", ["quality", "authenticity"]),
        (None, "learned", None),
    ],
)
def test_edited_record_is_refused(
    tmp_path: Path, section: str | None, key: str, value: object
) -> None:
    RUN.write(tmp_path)
    edit_record(
        tmp_path, lambda record: (record[section] if section else record).update({key: value})
    )
    with pytest.raises(RunError, match="expected the record of a run at"):
        read_run(tmp_path)


@pytest.fixture
def copied(trained_run: Path, tmp_path: Path) -> Path:
    """A whole run that may be changed."""
    return Path(shutil.copytree(trained_run, tmp_path / "copied"))


def flip(path: Path, place: int) -> None:
    """Change one bit of the byte at ``place``."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_whole_run_loads(copied: Path) -> None:
    run, model = load_model(copied)
    assert run.finished
    assert run.weights_sha256 == sha256_of(copied / "model.safetensors")
    assert model.config == run.model


def test_any_changed_byte_of_the_record_is_refused(copied: Path) -> None:
    path = copied / "run.json"
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        flip(path, place)
        if not _is_same(path.read_bytes(), whole):
            with pytest.raises(RunError, match=re.escape(str(path))):
                read_run(copied)
        path.write_bytes(whole)


def _is_same(changed: bytes, whole: bytes) -> bool:
    """Whether the last digit of a number was changed to one that is read as the same."""
    try:
        return bool(json.loads(changed) == json.loads(whole))
    except ValueError:
        return False


@pytest.mark.parametrize("text", ["windows", '"seed": 0', '"best_epoch": '])
def test_changed_value_of_the_record_is_refused_with_advice(copied: Path, text: str) -> None:
    path = copied / "run.json"
    content = path.read_text()
    assert text in content
    place = content.index(text) + len(text) - 1 + text.endswith(" ")
    flip(path, place)
    with pytest.raises(RunError) as caught:
        read_run(copied)
    assert str(caught.value) == (
        f"expected {path} as dcmpl wrote it, got one that its digest says was changed since: "
        "take back the change, or make it again"
    )


def test_record_without_a_digest_is_refused_with_advice(copied: Path) -> None:
    path = copied / "run.json"
    record = json.loads(path.read_text())
    del record["digest"]
    path.write_bytes(as_json(record))
    with pytest.raises(RunError) as caught:
        read_run(copied)
    assert str(caught.value) == (
        f"expected the digest that seals {path}, got none: it is of an earlier version, "
        "make it again"
    )


@pytest.mark.parametrize("seal", [True, False], ids=["sealed", "not sealed"])
def test_record_of_a_later_version_is_refused_with_advice(copied: Path, seal: bool) -> None:
    path = copied / "run.json"
    if seal:
        edit_record(copied, lambda record: record.update(version="99.0.0"))
    else:
        path.write_text(path.read_text().replace(f'"{__version__}"', '"99.0.0"'))
    with pytest.raises(RunError) as caught:
        read_run(copied)
    assert str(caught.value) == (
        f"expected what dcmpl {__version__} can read at {path}, got the record of a later "
        "version, 99.0.0: pip install --upgrade dcmpl-agiqa"
    )


@pytest.mark.parametrize("version", ["0.0.1", __version__])
def test_record_of_this_or_an_earlier_version_is_read(copied: Path, version: str) -> None:
    edit_record(copied, lambda record: record.update(version=version))
    assert read_run(copied).version == version


def test_any_changed_byte_of_the_tensors_is_refused(copied: Path) -> None:
    run, model = load_model(copied)
    path = copied / "model.safetensors"
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for place in [*range(0, header, 37), *range(header, len(whole), len(whole) // 40)]:
        flip(path, place)
        with pytest.raises(RunError, match=re.escape(str(path))):
            load_learned(path, model, run)
        path.write_bytes(whole)


@pytest.mark.parametrize("where", ["first", "last"])
def test_changed_tensor_is_refused_with_advice(copied: Path, where: str) -> None:
    path = copied / "model.safetensors"
    header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    flip(path, header if where == "first" else -1)
    with pytest.raises(RunError) as caught:
        load_model(copied)
    assert str(caught.value) == (
        f"expected {path} as dcmpl wrote it, got one of another SHA-256 than run.json beside it "
        "names: the file was changed, train again"
    )


def test_tensors_that_the_record_does_not_name_are_refused(copied: Path) -> None:
    edit_record(copied, lambda record: record.update(weights_sha256="0" * 64))
    with pytest.raises(RunError) as caught:
        load_model(copied)
    assert caught.value.got == "one of another SHA-256 than run.json beside it names"
