"""One training loop for every configuration, on accelerate.

An epoch is a function of (seed, epoch) alone: its order, windows and mirrorings are drawn
from both. So a run that was killed goes on from its last whole epoch and ends with the
numbers of one that never stopped. Only validation chooses the epoch; the test part of a
split is a type this file does not take.
"""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, Dataset

from dcmpl.checkpoint import History, Run, load_learned, save_learned
from dcmpl.config import LAST, MODEL, TrainConfig
from dcmpl.datasets import TARGETS, ImageTable
from dcmpl.errors import DataError, RunError
from dcmpl.images import random_window, read_image, to_unit_range
from dcmpl.inference import precision_context, predict_table
from dcmpl.metrics import plcc, srcc
from dcmpl.model import DCMPL, Scores, trainable_parameters
from dcmpl.progress import progress_bar
from dcmpl.splits import TrainPart, ValidationPart

__all__ = ["EpochReport", "fit"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EpochReport:
    """What is printed after an epoch."""

    epoch: int
    epochs: int
    loss: float
    validation: dict[str, float]
    best: bool


class _EpochWindows(Dataset[tuple[Tensor, Tensor]]):
    """Row -> ``crops`` random windows of that picture, as this epoch draws them."""

    def __init__(self, table: ImageTable, size: int, config: TrainConfig, epoch: int) -> None:
        self.paths = list(table.frame["image"])
        self.targets = torch.from_numpy(table.targets())
        self.size, self.config, self.epoch = size, config, epoch

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng([self.config.seed, self.epoch, row])
        picture = read_image(self.paths[row])
        step, count = self.config.crop_step, self.config.crops
        crops = [random_window(picture, self.size, rng, step) for _ in range(count)]
        return torch.stack(crops), self.targets[row].expand(len(crops), -1)


def _epoch_loader(
    table: ImageTable, size: int, config: TrainConfig, epoch: int, workers: int
) -> "DataLoader[tuple[Tensor, Tensor]]":
    """The epoch's batches of ``batch_size`` windows, in the epoch's order."""
    order = np.random.default_rng([config.seed, epoch]).permutation(len(table)).tolist()
    pictures = max(1, config.batch_size // config.crops)
    batches = [order[i : i + pictures] for i in range(0, len(order), pictures)]

    def joined(items: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        crops, targets = zip(*items, strict=True)
        return torch.cat(crops), torch.cat(targets)

    data = _EpochWindows(table, size, config, epoch)
    return DataLoader(data, batch_sampler=batches, collate_fn=joined, num_workers=workers)


def task_loss(scores: Scores, targets: Tensor, alignment_weight: float) -> Tensor:
    """MSE(quality) + ``alignment_weight`` MSE(alignment); a missing target counts nothing.

    ``targets`` (N, 2) in [0, 1], NaN where missing.
    """
    both = torch.stack([scores.quality, scores.alignment], dim=1)
    known = targets.isfinite()
    squared = torch.where(known, both - targets.nan_to_num(), 0.0).square()
    weights = targets.new_tensor([1.0, alignment_weight])
    return (squared.sum(0) / known.sum(0).clamp(min=1) * weights).sum()


def learning_rate(config: TrainConfig, progress: float) -> float:
    """The rate after ``progress`` (0..1) of all steps; ``cosine`` rises over the first 5 %."""
    if config.schedule == "constant":
        return config.lr
    rise = min(1.0, progress / 0.05 + 1e-3)
    return config.lr * rise * 0.5 * (1 + math.cos(math.pi * progress))


def validate(model: DCMPL, part: ValidationPart, config: TrainConfig) -> dict[str, float]:
    """SRCC and PLCC of every target that has opinions."""
    targets = part.table.targets()
    predicted = predict_table(model, part.table, config.views, config.precision, "validating")
    found = {}
    for column, target in enumerate(TARGETS):
        known = np.isfinite(targets[:, column])
        if known.any():
            pair = predicted[known, column], targets[known, column]
            found[f"{target}_srcc"], found[f"{target}_plcc"] = srcc(*pair), plcc(*pair)
    return found


def best_epoch(history: History) -> int:
    """The epoch (from 1) of the best validation SRCC; the first of equals."""

    def merit(entry: dict[str, float]) -> float:
        value = entry.get("quality_srcc", entry.get("alignment_srcc", math.nan))
        return -math.inf if math.isnan(value) else value

    return 1 + max(range(len(history)), key=lambda i: (merit(history[i]), -i))


def fit(
    model: DCMPL,
    training: TrainPart,
    validation: ValidationPart,
    run: Run,
    folder: Path,
    report: Callable[[EpochReport], None] = lambda _: None,
) -> Run:
    """Train ``model`` as ``run`` says, writing to ``folder``; returns the finished record.

    Goes on from ``last.safetensors`` where that is in the folder. At the end the model
    holds the tensors of the best epoch on validation.
    Raises :class:`RunError` where the loss is no number any more, :class:`DataError` where
    training and validation do not have opinions on the same targets.
    """
    learned, chosen_by = _asked(training.table), _asked(validation.table)
    if learned != chosen_by:
        raise DataError(
            f"expected opinions on the same targets in training and validation, got "
            f"{' and '.join(learned) or 'none'} there and {' and '.join(chosen_by) or 'none'} "
            "here: take another --seed or more prompts"
        )
    config, accelerator = run.train, Accelerator()
    parameters = trainable_parameters(model)
    optimizer = torch.optim.Adam(parameters.values(), lr=config.lr)
    history: History = ()
    if (folder / LAST).is_file():
        history, adam = load_learned(folder / LAST, model, run)
        _restore_adam(optimizer, parameters, adam, folder / LAST)
    prepared, optimizer = accelerator.prepare(model, optimizer)
    for epoch in range(len(history) + 1, config.epochs + 1):
        if config.patience and history and len(history) - best_epoch(history) >= config.patience:
            break
        loss = _train_epoch(prepared, optimizer, accelerator, training.table, config, epoch)
        if not math.isfinite(loss):
            raise RunError(
                f"expected a finite loss, got {loss} in epoch {epoch}: lower --lr; "
                f"the epochs before it are kept in {folder}"
            )
        found = validate(model, validation, config)
        history = (*history, {"loss": loss, **found})
        run = replace(run, history=history, best_epoch=best_epoch(history))
        if accelerator.is_main_process:
            if run.best_epoch == epoch:
                save_learned(folder / MODEL, model, run)
            save_learned(folder / LAST, model, run, _adam_state(optimizer, parameters))
            run.write(folder)
        report(EpochReport(epoch, config.epochs, loss, found, run.best_epoch == epoch))
    run = replace(run, history=history, best_epoch=best_epoch(history), finished=True)
    if accelerator.is_main_process:
        run.write(folder)
    load_learned(folder / MODEL, model, run)
    return run


def _asked(table: ImageTable) -> list[str]:
    """The targets that have opinions."""
    known = np.isfinite(table.targets()).any(axis=0)
    return [target for target, some in zip(TARGETS, known, strict=True) if some]


def _train_epoch(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    table: ImageTable,
    config: TrainConfig,
    epoch: int,
) -> float:
    """One pass over the epoch's windows; returns the mean loss, nan as soon as one is."""
    on_cpu = accelerator.device.type == "cpu"
    size = accelerator.unwrap_model(model).clip.config.image_size
    loader = _epoch_loader(table, size, config, epoch, workers=0 if on_cpu else 4)
    losses = []
    with progress_bar() as bar, _fast_float32():
        batches = bar.track(accelerator.prepare(loader), description=f"epoch {epoch}")
        for step, (pixels, targets) in enumerate(batches):
            progress = (epoch - 1 + step / len(loader)) / config.epochs
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, progress)
            # On CPUs the plain formula's gradient is faster than the fused kernel's.
            kernel = sdpa_kernel(SDPBackend.MATH) if on_cpu else nullcontext()
            with kernel, precision_context(accelerator.device, config.precision):
                scores = model(to_unit_range(pixels))
            loss = task_loss(scores, targets, config.alignment_weight)
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                return math.nan
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
    return float(np.mean(losses))


@contextmanager
def _fast_float32() -> Iterator[None]:
    """Faster kernels for float32 products: on CPUs without bfloat16 units exact, on GPUs TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _adam_state(
    optimizer: torch.optim.Optimizer, parameters: dict[str, torch.nn.Parameter]
) -> dict[str, Tensor]:
    return {
        f"{name}/{key}": torch.as_tensor(value)
        for name, parameter in parameters.items()
        for key, value in optimizer.state[parameter].items()
    }


def _restore_adam(
    optimizer: torch.optim.Optimizer,
    parameters: dict[str, torch.nn.Parameter],
    state: dict[str, Tensor],
    path: Path,
) -> None:
    shapes = {
        f"{name}/{entry}": torch.Size(()) if entry == "step" else parameter.shape
        for name, parameter in parameters.items()
        for entry in ("step", "exp_avg", "exp_avg_sq")
    }
    if {key: value.shape for key, value in state.items()} != shapes:
        raise RunError(
            f"expected Adam's state of all {len(parameters)} learned tensors in {path}, got "
            "another: begin anew with another --out"
        )
    for key, value in state.items():
        name, _, entry = key.rpartition("/")
        optimizer.state[parameters[name]][entry] = value
