"""One training loop for every configuration, on accelerate.

An epoch is a function of (seed, epoch) alone: its order, windows and mirrorings are drawn
from both. So a run that was killed goes on from its last whole epoch and ends with the
numbers of one that never stopped. Only validation chooses the epoch; the test part of a
split is a type this file does not take.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from dcmpl.config import ModelConfig, TrainConfig, fields_of
from dcmpl.data.splits import TrainPart, ValidationPart
from dcmpl.data.table import ImageTable
from dcmpl.errors import DataError, RunError
from dcmpl.images.decode import cores
from dcmpl.metrics import plcc, srcc
from dcmpl.model.adapter import Dropout
from dcmpl.model.dcmpl import DCMPL, Scores, trainable_parameters
from dcmpl.model.tokenizer import Tokens
from dcmpl.progress import progress_bar
from dcmpl.runs import LAST, MODEL, History, Run, load_learned, save_learned
from dcmpl.scoring.torch_engine import TorchEngine, predict_table
from dcmpl.training.batches import Batch, EpochWindows, Share, epoch_batches, epoch_loader
from dcmpl.training.features import (
    Frozen,
    FrozenEngine,
    FrozenTable,
    PromptsOf,
    freeze_draws,
    freeze_table,
    precision_context,
    texts_of,
)
from dcmpl.training.labels import with_alignment
from dcmpl.training.linear_probe import fit_ridge
from dcmpl.training.processes import accelerator_of, add_gradients, by_all, check_same
from dcmpl.training.trackers import Log, tracked

__all__ = ["EpochReport", "fit", "kept_windows"]

WORKERS = min(4, cores())
"""Processes that decode images for a GPU."""

CHUNK = 16
"""Images of validation behind which a batch of windows ends."""


@dataclass(frozen=True)
class EpochReport:
    """Report of an epoch."""

    epoch: int
    epochs: int
    found: dict[str, float]
    seconds: float
    seconds_per_step: float
    best: bool


def task_loss(
    scores: Scores,
    targets: Tensor,
    alignment_weight: float,
    mismatch_weight: float = 0.0,
    whole: Tensor | None = None,
) -> Tensor:
    """Loss: MSE of the main task + ``alignment_weight`` MSE of each other, without missing ones.

    ``targets`` (N, tasks) in [0, 1], NaN where missing. Where texts were read,
    ``mismatch_weight`` times the cross-entropy of telling an image's own apart is added.
    ``whole`` are the targets of a whole batch, of which ``targets`` are a part: the losses of all
    parts add up to that of the batch.
    """
    columns, whole = targets.T, targets if whole is None else whole
    known, counts = columns.isfinite(), whole.isfinite().sum(0)
    squared = torch.where(known, scores.values - columns.nan_to_num(), 0.0).square()
    weights = torch.tensor([1.0, *(alignment_weight for _ in scores.tasks[1:])]).to(targets.device)
    loss = (squared.sum(1) / counts.clamp(min=1) * weights).sum()
    if scores.mismatch is not None:
        loss = loss + mismatch_weight * (scores.mismatch.sum() / len(whole))
    return loss


def learning_rate(config: TrainConfig, progress: float) -> float:
    """Learning rate after ``progress`` (0..1) of all steps; ``cosine`` warms up for 5 %."""
    if config.schedule == "constant":
        return config.lr
    rise = min(1.0, progress / 0.05 + 1e-3)
    return config.lr * rise * 0.5 * (1 + math.cos(math.pi * progress))


def validate(
    model: DCMPL, part: ValidationPart, config: TrainConfig, frozen: FrozenTable | None = None
) -> dict[str, float]:
    """SRCC and PLCC of every task that has opinions, as ``dcmpl evaluate`` would find them.

    Each image is predicted by one process; what shares a batch does not depend on how many
    there are.
    """
    tasks = [task for task in model.config.tasks if task in part.table.judged]
    engine = FrozenEngine(model, tasks, frozen) if frozen else TorchEngine(model, tasks)

    def predict(rows: np.ndarray) -> np.ndarray:
        own = replace(part.table, frame=part.table.frame.iloc[rows])
        return predict_table(engine, own, config.views, "validating", chunk=CHUNK)[0]

    predicted = by_all(len(part.table), CHUNK, predict)
    targets, found = part.table.targets(tasks), {}
    for column, task in enumerate(tasks):
        known = np.isfinite(targets[:, column]) & np.isfinite(predicted[:, column])
        pair = predicted[known, column], targets[known, column]
        found[f"{task}_srcc"], found[f"{task}_plcc"] = srcc(*pair), plcc(*pair)
    return found


def best_epoch(history: History) -> int:
    """Epoch (from 1) of the main task's best validation SRCC, the first of equals."""

    def merit(entry: dict[str, float]) -> float:
        # The main task comes first.
        value = next((v for name, v in entry.items() if name.endswith("_srcc")), math.nan)
        return -math.inf if math.isnan(value) else value

    return 1 + max(range(len(history)), key=lambda i: (merit(history[i]), -i))


def fit(
    model: DCMPL,
    training: TrainPart,
    validation: ValidationPart,
    run: Run,
    folder: Path,
    report: Callable[[EpochReport], None] = lambda _: None,
    frozen: Frozen | None = None,
    tracker: str = "none",
) -> Run:
    """Train ``model`` as ``run`` says, writing to ``folder``; returns the finished record.

    The model is trained on the device it is on. Goes on from ``last.safetensors`` where that
    is in the folder. At the end the model holds the tensors of the best epoch on validation.
    With several processes each takes its share of every batch and of validation; the first one
    alone writes. ``frozen`` saves computing what the frozen part makes of both parts' images,
    where the windows to train on are known beforehand. ``tracker`` watches.
    Raises :class:`RunError` where the loss is no number any more, :class:`DataError` where
    training and validation do not have opinions on the same of the model's tasks.
    """
    config = run.train
    accelerator = accelerator_of(next(model.parameters()).device, tracker, folder)
    _check_targets(model, training.table, validation.table)
    parameters = trainable_parameters(model)
    if frozen is None and parameters:
        frozen = _frozen_part(model, training.table, validation.table, config)
    table = with_alignment(training.table, config, model, frozen.of_views if frozen else None)
    stepwise = bool(parameters) and run.model.readout == "words"
    optimizer = torch.optim.Adam(parameters.values() if stepwise else [torch.zeros(1)], config.lr)
    history = _resumed(model, run, folder, optimizer, parameters)
    check_same([run.identity, len(history)], folder)
    tokens = model.tokens_of(PromptsOf(table).texts) if run.model.reads_prompt else None
    epochs, steps = _length(config, len(table)) if stepwise else (1, 1)
    with tracked(tracker, accelerator, folder, _about(run), steps * len(history)) as log:
        for epoch in range(len(history) + 1, epochs + 1):
            if _is_enough(history, config.patience):
                break
            entry, step, began = dict[str, float](), 0.0, time.perf_counter()
            if stepwise:
                data = _windows_of(model, table, config, epoch, frozen)
                entry, step = _train_epoch(model, optimizer, accelerator, data, tokens, log)
                _check_finite(entry["loss"], epoch, folder)
            elif run.model.readout == "linear" and frozen is not None:  # solved at once
                fit_ridge(model, table, validation.table, frozen.scored)
            entry |= validate(model, validation, config, frozen.scored if frozen else None)
            # One process's numbers for all, or they might not stop together.
            (entry,) = broadcast_object_list([entry])
            history = (*history, entry)
            run = replace(run, history=history, best_epoch=best_epoch(history))
            if accelerator.is_main_process:
                _save_epoch(model, run, folder, _adam_state(optimizer, parameters))
                took, best = time.perf_counter() - began, run.best_epoch == epoch
                report(EpochReport(epoch, epochs, entry, took, step, best))
            log(_of_epoch({**entry, "lr": optimizer.param_groups[0]["lr"]}), steps * epoch)
            accelerator.wait_for_everyone()  # for what the first process writes
    run = replace(run, history=history, best_epoch=best_epoch(history)).finished_in(folder)
    if accelerator.is_main_process:
        run.write(folder)
    load_learned(folder / MODEL, model, run)
    return run


def _about(run: Run) -> dict[str, Any]:
    """Configuration of a run for a tracker."""
    names = "preset", "backbone", "backbone_sha256", "split_sha256", "version"
    data = run.source.name if run.source else ""
    parts = {
        f"{section}.{name}": field.default
        for section, config in (("model", run.model), ("train", run.train))
        for name, field in fields_of(config)
    }
    return {**{name: getattr(run, name) for name in names}, "data": data, **parts}


def _length(config: TrainConfig, images: int) -> tuple[int, int]:
    """Number of epochs, at most, and of steps in each."""
    return config.epochs, len(epoch_batches(images, config, 1))


def _of_epoch(entry: dict[str, float]) -> dict[str, float]:
    return {f"epoch/{name}": value for name, value in entry.items()}


def _is_enough(history: History, patience: int | None) -> bool:
    """Whether so many epochs were no better than the best before them."""
    return bool(patience and history and len(history) - best_epoch(history) >= patience)


def _resumed(
    model: DCMPL,
    run: Run,
    folder: Path,
    optimizer: torch.optim.Optimizer,
    parameters: dict[str, torch.nn.Parameter],
) -> History:
    """History of the epochs in ``folder``, whose tensors and Adam's state are loaded."""
    if not (folder / LAST).is_file():
        return ()
    history, adam = load_learned(folder / LAST, model, run)
    _restore_adam(optimizer, parameters, adam, folder / LAST)
    return history


def _frozen_part(
    model: DCMPL, training: ImageTable, validation: ImageTable, config: TrainConfig
) -> Frozen | None:
    """Frozen features of both parts' windows, where all are known beforehand."""
    kept = kept_windows(model.config, config)
    if kept is None:
        return None
    if kept == "views":
        scored = freeze_table(model, training.joined(validation), config.views, config.precision)
        return Frozen(scored, scored)
    scored = freeze_table(model, validation, config.views, config.precision)
    return Frozen(freeze_draws(model, training, config), scored)


def _windows_of(
    model: DCMPL, table: ImageTable, config: TrainConfig, epoch: int, frozen: Frozen | None
) -> EpochWindows:
    """Windows of an epoch, or the frozen features of them."""
    size, known = model.clip.config.image_size, frozen.training if frozen else None
    return EpochWindows(table, size, config, epoch, known, model.config.tasks)


def _save_epoch(model: DCMPL, run: Run, folder: Path, adam: dict[str, Tensor]) -> None:
    """Write everything that resuming needs."""
    if run.best_epoch == len(run.history):
        save_learned(folder / MODEL, model, run)
    save_learned(folder / LAST, model, run, adam)
    run.write(folder)


def _check_finite(loss: float, epoch: int, folder: Path) -> None:
    if not math.isfinite(loss):
        raise RunError(
            "a finite loss",
            f"{loss} in epoch {epoch}",
            f"lower --lr; the epochs before it are kept in {folder}",
        )


def kept_windows(model: ModelConfig, config: TrainConfig) -> Literal["views", "drawn"] | None:
    """Windows to train on whose frozen features are computed once; None where there are none.

    A linear readout is solved on the scored views.
    """
    if model.readout == "linear":
        return "views"
    if config.windows == "auto":
        return None if model.has_visual_prompts else "views"
    return None if config.windows == "random" else config.windows


def _check_targets(model: DCMPL, training: ImageTable, validation: ImageTable) -> None:
    here, there = (
        [task for task in model.config.tasks if task in t.judged] for t in (training, validation)
    )
    if here != there or not here:
        raise DataError(
            "opinions on the same of this model's tasks in training and validation",
            f"{' and '.join(here) or 'none'} and {' and '.join(there) or 'none'}",
            "take another --seed, more prompts or another --preset",
        )
    _check_opinions(here, training, validation)


LEAST_SPREAD = 0.01
"""Share of the MOS scale within which opinions teach nothing."""


def _check_opinions(tasks: Sequence[str], training: ImageTable, validation: ImageTable) -> None:
    """Check that the opinions on every task differ; raises :class:`DataError`."""
    for part, table in (("training", training), ("validation", validation)):
        for target, values in zip(tasks, table.targets(tasks).T, strict=True):
            known = values[np.isfinite(values)]
            if len(known) > 1 and np.ptp(known) < LEAST_SPREAD:
                low, high = table.scale.low, table.scale.high
                raise DataError(
                    f"opinions on {target} that differ in the {part} part of {table.name}",
                    f"{low + (high - low) * float(known.mean()):.4g} for all {len(known)} images",
                    "leave the target out with --targets, or mend its column",
                )


def _train_epoch(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    data: EpochWindows,
    tokens: Tokens | None,
    log: Log,
) -> tuple[dict[str, float], float]:
    """One pass over the epoch's windows.

    Returns the mean loss, nan as soon as one is, and the median seconds of a step.
    """
    device, config, epoch = next(model.parameters()).device, data.config, data.epoch
    # A GPU must not wait for images to be decoded; what is frozen is there already.
    workers = 0 if device.type == "cpu" or data.frozen is not None else WORKERS
    share = Share(accelerator.process_index, accelerator.num_processes)
    loader = epoch_loader(data, config, epoch, workers, share)
    wholes = epoch_batches(len(data), config, epoch)
    losses, seconds = [], []
    dice = dice_of(config.seed, epoch)
    with progress_bar() as bar, fast_float32():
        batches = bar.track(loader, description=f"epoch {epoch}")
        for step, (batch, rows) in enumerate(zip(batches, wholes, strict=True)):
            start = time.perf_counter()
            progress = (epoch - 1 + step / len(loader)) / config.epochs
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, progress)
            part, is_frozen = data.whole(rows, share), data.frozen is not None
            inputs, targets, prompts = (each.to(device) for each in batch[:3])
            batch = Batch(inputs, targets, prompts, part)
            dropout = Dropout(config.adapter_dropout, dice, (len(part.targets), part.places))
            step_loss = train_step(
                model, optimizer, batch, config, accelerator, is_frozen, tokens, dropout
            )
            losses.append(step_loss)
            log({"step/loss": step_loss}, (epoch - 1) * len(loader) + step + 1)
            if not math.isfinite(losses[-1]):
                return {"loss": math.nan}, 0.0
            seconds.append(time.perf_counter() - start)
    return {"loss": float(np.mean(losses))}, float(np.median(seconds))


def dice_of(seed: int, epoch: int) -> torch.Generator:
    """Random numbers of an epoch's dropout."""
    (start,) = np.random.SeedSequence([seed, epoch, 0]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(start >> 1))


def train_step(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    config: TrainConfig,
    accelerator: Accelerator,
    frozen: bool,
    tokens: Tokens | None = None,
    dropout: Dropout | None = None,
) -> float:
    """One optimiser step; returns the loss, and changes nothing where the loss is nan.

    Inputs are images in [0, 1], or with ``frozen`` what the frozen part made of them.
    ``tokens`` are those of all prompts, for a model that reads them. Where the batch is a part
    of a whole one, the loss is that of the whole, and every process reads all of its prompts: each
    image is told from all others.
    """
    inputs, targets, prompts, whole = batch
    texts = None
    if tokens is not None:
        texts = texts_of(tokens, prompts if whole is None else whole.prompts)
        texts = texts if whole is None else replace(texts, own=texts.own[whole.places])
    # On CPUs the plain formula's gradient is faster than the fused kernel's.
    kernel = sdpa_kernel(SDPBackend.MATH) if inputs.device.type == "cpu" else nullcontext()
    with kernel, precision_context(inputs.device, config.precision):
        scores = model(inputs, frozen=frozen, texts=texts, dropout=dropout)
    of_whole = None if whole is None else whole.targets.to(targets.device)
    loss = task_loss(scores, targets, config.alignment_weight, config.mismatch_weight, of_whole)
    if whole is not None and not whole.counts:
        loss = 0 * loss
    value = float(accelerator.reduce(loss.detach(), "sum"))  # all processes stop, or none
    if math.isfinite(value):
        optimizer.zero_grad()
        accelerator.backward(loss)
        add_gradients(optimizer, accelerator)
        optimizer.step()
    return value


@contextmanager
def fast_float32() -> Iterator[None]:
    """Allow faster float32 products: TF32 on GPUs, exact on CPUs without bfloat16 units."""
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
    # A tensor that no step has reached has no state: then all three entries are missing.
    whole = all(
        len([k for k in state if k.rpartition("/")[0] == name]) in (0, 3) for name in parameters
    )
    if not whole or any(shapes.get(key) != value.shape for key, value in state.items()):
        raise RunError(
            f"Adam's state of the {len(parameters)} learned tensors in {path}",
            "another",
            "begin anew with another --out",
        )
    for key, value in state.items():
        name, _, entry = key.rpartition("/")
        low = {"exp_avg": -math.inf, "exp_avg_sq": 0.0, "step": 1.0}[entry]
        known = value.float() if value.is_floating_point() else torch.tensor(math.nan)
        if not bool((known.isfinite() & (known >= low)).all()):
            raise RunError(
                f"a finite {entry} of Adam's state, and none below its least, in {path}",
                f"others in {name}",
                "begin anew with another --out",
            )
        parameter = parameters[name]
        # Adam counts its steps on the CPU, whatever the device.
        value = value if entry == "step" else value.to(parameter.device)
        optimizer.state[parameter][entry] = value
