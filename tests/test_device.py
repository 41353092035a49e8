"""Everything holds on a device that is not the CPU: a stand-in here, a real GPU where one is."""

import copy
import csv
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from dcmpl.cli.main import main
from dcmpl.config import TrainConfig
from dcmpl.errors import UsageError
from dcmpl.model.dcmpl import DCMPL
from dcmpl.model.folded import _folded_blocks
from dcmpl.runs import LAST, MODEL, read_run, read_split, table_of_run
from dcmpl.scoring.explain import word_gains
from dcmpl.scoring.scorer import Scorer
from dcmpl.scoring.torch_engine import TorchEngine, choose_device, load_model
from dcmpl.training.batches import EpochWindows, epoch_loader
from dcmpl.training.calibrate import calibrate
from second_device import ELSEWHERE

Build = Callable[..., DCMPL]
pytest_plugins = ("calibrated",)

DEVICES = [
    ELSEWHERE,
    pytest.param(
        "cuda",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU"),
    ),
]
CLOSE = 1e-4  # a GPU sums in another order


@pytest.fixture(autouse=True)
def new_parameters() -> Iterator[None]:
    """A tensor of the stand-in cannot take another's place in a parameter."""
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    yield
    torch.__future__.set_overwrite_module_params_on_conversion(False)


def windows() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)


def test_stand_in_device_refuses_to_mix_with_the_cpu() -> None:
    here, there = torch.ones(2, 2), torch.ones(2, 2, device=ELSEWHERE)
    assert torch.equal((there @ there).cpu(), here @ here)
    with pytest.raises(RuntimeError, match="two devices"):
        there + here
    with pytest.raises(TypeError, match="64-bit"):
        there.double()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("preset", ["dcmpl", "dcmpl-prompted", "maple", "linear-probe"])
@pytest.mark.parametrize("device", DEVICES)
def test_folded_model_scores_on_its_device_as_on_the_cpu(
    build: Build, preset: str, precision: str, device: str
) -> None:
    here, there = build(preset), build(preset)
    # A model of its own: the backbone's tensors move with it.
    there = type(there)(_copied(there), there.tokenizer, there.config, 0)
    there.load_state_dict(here.state_dict())
    tasks = here.config.tasks
    texts = [[(5, 7)]] * 5 if here.config.reads_prompt else ()
    wanted = TorchEngine(here, tasks, precision)(windows(), texts)
    engine = TorchEngine(there.to(device), tasks, precision)
    assert {p.device.type for p in engine.network.buffers()} == {torch.device(device).type}
    assert engine(windows(), texts) == pytest.approx(wanted, abs=CLOSE)


def _copied(model: DCMPL) -> torch.nn.Module:
    return copy.deepcopy(model.clip)


def test_folded_blocks_of_meta_tensors_are_meta_tensors(build: Build) -> None:
    blocks = copy.deepcopy(build("dcmpl").clip.visual).to("meta")
    prompts = [torch.zeros(8, 64, device="meta")] * 3
    folded = _folded_blocks(blocks, [prompts, prompts])
    assert {t.device.type for t in folded.state_dict().values()} == {"meta"}
    tokens = torch.zeros(4, 17, 64, device="meta")
    for block in folded:
        tokens = block(tokens, 0, 17, False)
    assert (tokens.shape, tokens.device.type) == ((4, 17, 64), "meta")


PRESETS_TRAINED = ["dcmpl-prompted", "coop", "linear-probe"]


@pytest.mark.parametrize("preset", PRESETS_TRAINED)
@pytest.mark.parametrize("device", DEVICES)
def test_training_scoring_and_calibration_on_a_device_give_the_cpu_s_numbers(
    tmp_path: Path, calibrated_words: list[str], judged_data: Path, preset: str, device: str
) -> None:
    words = [*calibrated_words, "--preset", preset]
    words[words.index("--epochs") + 1] = "1"
    for place in ("cpu", device):
        assert main([*words, "--device", place, "--out", str(tmp_path / place)]) == 0
    here, there = (read_run(tmp_path / place) for place in ("cpu", device))
    assert there.history[-1] == pytest.approx(here.history[-1], abs=0.02)
    prompts = ["prompt 1", "prompt 2"]
    images = [judged_data.parent / f"{i:03}.png" for i in (1, 2)]
    found = [
        Scorer.from_pretrained(tmp_path / device, device=place).score(images, prompts)
        for place in ("cpu", device)
    ]
    for ours, theirs in zip(*found, strict=True):
        assert ours.quality == pytest.approx(theirs.quality, abs=CLOSE)
        assert ours["quality_mos"] == pytest.approx(theirs["quality_mos"], abs=10 * CLOSE)


@pytest.mark.parametrize("device", DEVICES)
def test_run_that_was_broken_off_goes_on_on_a_device(
    tmp_path: Path, train_words: list[str], device: str
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    words = [*train_words, "--device", device]
    assert main([*words, "--out", str(whole)]) == 0
    words[words.index("--epochs") + 1] = "3"

    class Stop(Exception): ...

    def stop(*_: object) -> None:
        raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dcmpl.cli.train.epoch_printer", lambda: stop)
        assert main([*words, "--out", str(broken)]) == 1
    assert (broken / LAST).is_file()
    assert main([*words, "--out", str(broken), "--resume"]) == 0
    assert (broken / MODEL).read_bytes() == (whole / MODEL).read_bytes()


@pytest.mark.parametrize("device", DEVICES)
def test_evaluate_and_explain_run_on_a_device(
    tmp_path: Path, trained_run: Path, image_data: Path, device: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    words = ["evaluate", str(run), "--device", device, "--out", str(tmp_path / "results")]
    assert main(words) == 0
    with (tmp_path / "results" / "predictions.csv").open(newline="") as file:
        assert all(0 <= float(row["quality"]) <= 1 for row in csv.DictReader(file))
    image, out = str(image_data.parent / "03.png"), str(tmp_path / "why.png")
    words = ["explain", image, "--model", str(run), "-o", out, "--device", device]
    assert main(words) == 0
    rows = str(tmp_path / "s.csv")
    assert main(["score", image, "--model", str(run), "-o", rows, "--device", device]) == 0


@pytest.mark.parametrize("device", DEVICES)
def test_words_are_left_out_on_a_device(build: Build, device: str) -> None:
    model = build("dcmpl-prompted")
    there = type(model)(_copied(model), model.tokenizer, model.config, 0).to(device)
    engine = TorchEngine(there, ["alignment"])
    gains = word_gains(engine, windows()[0], "a red fox", "center")
    assert [word for word, _ in gains] == ["a", "red", "fox"]


@pytest.mark.parametrize("device", DEVICES)
def test_gradient_of_a_loss_reaches_pixels_on_either_side(trained_run: Path, device: str) -> None:
    loss = Scorer.from_pretrained(trained_run, device=device).as_loss()
    images = torch.rand(2, 3, 40, 44, requires_grad=True)
    loss(images).sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0


@pytest.mark.parametrize("device", DEVICES)
def test_calibration_reads_patches_on_a_device(calibrated_run: Path, device: str) -> None:
    run, model = load_model(calibrated_run, device=device)
    split = read_split(calibrated_run, run)
    assert split is not None
    found = calibrate(run, TorchEngine(model, run.learned), table_of_run(run), split)
    assert found is not None
    assert found.patches is not None


@pytest.mark.parametrize("start", ["spawn", "forkserver", "fork"])
def test_workers_of_any_kind_hand_over_batches(
    monkeypatch: pytest.MonkeyPatch, trained_run: Path, start: str
) -> None:
    table = table_of_run(read_run(trained_run))
    data = EpochWindows(table, 32, TrainConfig(), 1, None, ["quality", "alignment"])
    alone = next(iter(epoch_loader(data, TrainConfig(), 1, 0)))
    loader = epoch_loader(data, TrainConfig(), 1, 1)
    loader.multiprocessing_context = start
    helped = next(iter(loader))
    assert torch.equal(alone.inputs, helped.inputs)


@pytest.mark.parametrize("name", ["nowhere", "cuda:99", "mps:7", ""])
def test_device_that_is_not_there_is_refused_in_one_sentence(name: str) -> None:
    with pytest.raises(UsageError, match="expected a device that torch can use here"):
        choose_device(name)


def test_device_is_found_where_none_is_named() -> None:
    assert choose_device().type in ("cpu", "cuda", "mps")
