"""Training, from parsed words to a run folder; what other commands read likewise."""

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from dcmpl.config import ModelConfig, TrainConfig
from dcmpl.data.datasets import load_table
from dcmpl.data.leaks import Facts, check_leaks, check_pictures, tied_units
from dcmpl.data.splits import PARTS, PROTOCOLS, Split, draw_split
from dcmpl.data.table import ImageTable, MosScale
from dcmpl.errors import DataError, RunError
from dcmpl.model.dcmpl import DCMPL, trainable_parameters
from dcmpl.presets import PRESETS, with_settings, with_targets
from dcmpl.progress import say
from dcmpl.runs import LAST, MODEL, RECORD, Run, Source, read_run, read_split, write_split
from dcmpl.scoring.calibration import read_calibration
from dcmpl.scoring.torch_engine import TorchEngine, choose_device, load_model
from dcmpl.training.calibrate import calibrate
from dcmpl.training.loop import EpochReport, fit
from dcmpl.weights import warn_of_floor
from dcmpl.weights.backbones import Backbone, load_backbone

__all__ = [
    "COMMANDS",
    "model_of",
    "mos_scale",
    "read_data",
    "say",
    "say_leaks",
    "source_of",
    "warn_of_floor",
]


def mos_scale(arguments: Any) -> MosScale | None:
    return MosScale(*arguments.mos_scale) if arguments.mos_scale else None


def read_data(arguments: Any, path: str | None = None) -> ImageTable:
    """The table at ``path``, or at ``--data``; what is irregular in it is said."""
    table = load_table(path or arguments.data, mos_scale(arguments), arguments.columns)
    for note in table.notes:
        say(f"note: {table.name}: {note}")
    return table


def source_of(arguments: Any, table: ImageTable, path: str | None = None) -> Source:
    return Source(
        str(Path(path or arguments.data).absolute()),
        table.name,
        table.scale,
        table.digest,
        dict(arguments.columns),
    )


def model_of(arguments: Any, table: ImageTable) -> ModelConfig:
    """The preset with the fields and targets that were asked for."""
    model = with_settings(PRESETS[arguments.preset].model, arguments.set)
    return with_targets(model, table.judged, arguments.targets, arguments.tasks)


def say_leaks(split: Split, table: ImageTable, facts: Facts) -> None:
    """Check the split; what its protocol commits by design is said."""
    protocol = PROTOCOLS.get(split.protocol)
    for note in check_leaks(split, table, facts, protocol.leaks if protocol else frozenset()):
        say(f"leak, as the protocol {split.protocol} has it: {note}")


def train(arguments: Any) -> int:
    """``dcmpl train``."""
    folder = Path(arguments.out)
    left = [name for name in (LAST, MODEL) if (folder / name).exists()]
    if left and not (folder / RECORD).exists():
        raise RunError(
            f"expected {RECORD} beside {left[0]} in {folder}, found none: what stands there "
            "belongs to no known run, choose another --out"
        )
    table = read_data(arguments)
    backbone = load_backbone(arguments.backbone)
    if (folder / RECORD).exists():
        run, split = _resumed(folder, arguments, table, backbone)
        if run.finished and MODEL in left and read_calibration(folder, run.weights_sha256) is None:
            _calibrate(folder, run, table, split, load_model(folder, device=arguments.device)[1])
        if run.finished:
            if MODEL not in left:
                raise RunError(
                    f"expected {MODEL} in {folder}, whose {RECORD} says that it is finished, "
                    "found none: train anew with another --out"
                )
            say(f"{folder} is finished, best epoch {run.best_epoch}")
            return 0
        facts = check_pictures(table)
    else:
        facts = check_pictures(table)
        split = _new_split(arguments, table, facts)
        run = _begun(arguments, table, backbone, split)
    parts = {part: split.rows(table, part) for part in PARTS}
    say(
        f"{table.name}: {len(table)} pictures; protocol {split.protocol}; "
        + ", ".join(
            f"{name} {len(t)} of {t.frame['group'].nunique()} prompts" for name, t in parts.items()
        )
    )
    say_leaks(split, table, facts)
    warn_of_floor(run.backbone)
    model = DCMPL(backbone.clip, backbone.tokenizer, run.model, run.train.seed)
    model.to(choose_device(arguments.device))
    count = sum(p.numel() for p in trainable_parameters(model).values())
    say(f"{run.preset} on {run.backbone}: {count:,} trainable parameters")
    if model.reads_prompt:
        read = [model.tokenizer.parts(p, model.slots) for p in table.frame["prompt"].unique()]
        if cut := [parts for parts in read if parts.dropped]:
            say(
                f"note: {len(cut)} of {len(read)} prompts are longer than the "
                f"{len(cut[0].ids[0])} tokens that fit; their ends are not read in training"
            )
    if unjudged := [task for task in run.model.tasks if task not in run.learned]:
        say(f"note: nobody judged {' and '.join(unjudged)}; the run will not predict it")
    run.write(folder)
    write_split(folder, split)
    report = _epoch_printer(done=len(run.history))
    run = fit(model, split.train_part(table), split.validation_part(table), run, folder, report)
    best = run.history[run.best_epoch - 1]
    told = ", ".join(f"{k} {v:.3f}" for k, v in best.items() if k != "loss")
    say(f"best epoch {run.best_epoch}: {told}")
    _calibrate(folder, run, table, split, model)
    print(f"run: {folder}\nnext: dcmpl evaluate {folder} --split test")
    return 0


def _calibrate(folder: Path, run: Run, table: ImageTable, split: Split, model: DCMPL) -> None:
    """Say what the scores of a finished run mean, where validation is able to."""
    try:
        found = calibrate(run, TorchEngine(model, run.learned), table, split)
    except DataError as error:
        say(f"note: scores are not calibrated: {error}")
        return
    if found is None:
        return
    found.write(folder)
    say(f"calibrated on validation: {', '.join(found.targets)}; dcmpl info {folder} shows it")


def _new_split(arguments: Any, table: ImageTable, facts: Facts) -> Split:
    if arguments.split is not None:
        return Split.read(Path(arguments.split))
    units = tied_units(table, facts)
    return draw_split(arguments.protocol, table, units, arguments.recipe["seed"])


def _begun(arguments: Any, table: ImageTable, backbone: Backbone, split: Split) -> Run:
    model, recipe = model_of(arguments, table), TrainConfig(**arguments.recipe)
    source = source_of(arguments, table)
    return Run.begin(arguments.preset, backbone, source, model, recipe, split, table)


def _resumed(
    folder: Path, arguments: Any, table: ImageTable, backbone: Backbone
) -> tuple[Run, Split]:
    """The record of the folder and its split, where they say what is asked for."""
    found, source = read_run(folder), source_of(arguments, table)
    then = found.source
    if then is None or (then.scale, then.columns) != (source.scale, source.columns):
        raise RunError(
            f"expected to resume {folder} with the MOS scale and columns it was started with, "
            f"{then and (then.scale, then.columns)}, got {(source.scale, source.columns)}"
        )
    if then.sha256 != source.sha256:
        raise RunError(
            f"expected to resume {folder} with the table it was started with, the rows of "
            f"{arguments.data} have changed: begin anew with another --out"
        )
    split = read_split(folder, found)
    if split is None:
        raise RunError(f"expected a run that was trained here at {folder}, got an imported one")
    if arguments.split is not None:
        asked = Split.read(Path(arguments.split))
    else:  # a split follows from its protocol, its number and the table
        asked = replace(split, protocol=arguments.protocol, repeat=arguments.recipe["seed"])
    begun = _begun(arguments, table, backbone, asked)
    names = ("preset", "backbone_sha256", "model", "train", "split_sha256")
    pairs = [(name, getattr(found, name), getattr(begun, name)) for name in names]
    pairs.append(("protocol", split.protocol, asked.protocol))
    for name, ours, theirs in pairs:
        if ours != theirs:
            raise RunError(
                f"expected to resume {folder} with the {name} it was started with ({ours}), "
                f"got {theirs}"
            )
    return found, split


def _epoch_printer(done: int) -> Callable[[EpochReport], None]:
    """Prints a line per epoch, with the time the rest will take; ``done`` were before."""
    start = time.monotonic()

    def show(report: EpochReport) -> None:
        found = "  ".join(
            f"{k.replace('_', ' ')} {v:.{4 if k == 'loss' else 3}f}"
            for k, v in report.found.items()
        )
        each = (time.monotonic() - start) / (report.epoch - done)
        left = timedelta(seconds=round(each * (report.epochs - report.epoch)))
        mark = "  best" if report.best else ""
        say(f"epoch {report.epoch:3d}/{report.epochs}  {found}  left {left}{mark}")

    return show


COMMANDS: dict[str, Callable[[Any], int]] = {"train": train}
