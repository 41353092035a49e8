"""``dcmpl train``: learn from human scores; writes a run folder."""

import os
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

from dcmpl.cli.options import (
    BACKBONE,
    DATA_ABOUT,
    DEVICE,
    RECIPE_FLAGS,
    SEED,
    SETTINGS,
    TABLE_FLAGS,
    TARGET_FLAG,
    Arguments,
    Command,
    Flag,
    check_device,
    check_folder,
    check_model,
    check_protocols,
    check_table,
    model_of,
    read_data,
    recipe_of,
    say_leaks,
    source_of,
    tracker_of,
)
from dcmpl.config import PROTOCOLS, TrainConfig
from dcmpl.errors import DataError, RunError, UsageError
from dcmpl.presets import PRESETS
from dcmpl.progress import say
from dcmpl.training.trackers import check_tracker
from dcmpl.weights import warn_of_embedded

if TYPE_CHECKING:
    import torch
    from accelerate import PartialState

    from dcmpl.data.leaks import Facts
    from dcmpl.data.splits import Split
    from dcmpl.data.table import ImageTable
    from dcmpl.model.dcmpl import DCMPL
    from dcmpl.runs import Run
    from dcmpl.training.loop import EpochReport
    from dcmpl.weights.backbones import Backbone

__all__ = ["TRAIN"]

FLAGS = (
    Flag("--data", DATA_ABOUT, required=True, metavar="PATH", at_url="table"),
    *TABLE_FLAGS,
    Flag("--out", "run folder to make", required=True, metavar="RUN"),
    Flag(
        "--protocol",
        f"how images are dealt out, of {', '.join(PROTOCOLS)} (default: clean)",
        metavar="NAME",
    ),
    Flag("--split", "a split that dcmpl data split wrote", metavar="FILE"),
    Flag("--preset", f"of {', '.join(PRESETS)}", default="dcmpl", metavar="NAME"),
    BACKBONE,
    SETTINGS,
    TARGET_FLAG,
    *RECIPE_FLAGS,
    SEED,
    DEVICE,
    Flag("--resume", "go on with the run in --out", bool, False),
)


def train(arguments: Arguments) -> int:
    """Train, choose the epoch on validation, calibrate on validation."""
    check_device(arguments.device)
    alone = os.environ.get("WORLD_SIZE", "1") == "1"
    checked = _checked(arguments) if alone else None  # before PyTorch is loaded

    from dcmpl.scoring.torch_engine import choose_device
    from dcmpl.training.processes import together

    device = choose_device(arguments.device)
    # What is wrong in one of several processes ends all, so they join before anything is read.
    with together(device) as processes:
        return _train(arguments, device, processes, *(checked or _checked(arguments)))


def _train(
    arguments: Arguments,
    device: "torch.device",
    processes: "PartialState",
    recipe: TrainConfig,
    tracker: str,
) -> int:
    from dcmpl.data.leaks import check_images
    from dcmpl.runs import MODEL, write_split
    from dcmpl.training.loop import fit
    from dcmpl.weights.backbones import load_backbone

    folder = Path(arguments.out)
    left = _left_in(folder, arguments.resume)
    table, backbone = read_data(arguments, arguments.data), load_backbone(arguments.backbone)
    if left:
        run, split = _resumed(folder, arguments, recipe, table, backbone)
        if run.finished:
            one = processes.is_main_process  # the others have nothing to do
            return _finished(folder, run, split, table, MODEL in left, arguments) if one else 0
    facts = check_images(table)
    if not left:
        split = _new_split(arguments, recipe.seed, table, facts)
        run = _begun(arguments, recipe, table, backbone, split)
    model = _built(run, backbone).to(device)
    processes.wait_for_everyone()  # all have looked into the folder before the first one writes
    first = processes.is_main_process
    if first:
        _say_what_begins(run, split, table, model)
        _say_processes(processes)
        say_leaks(split, table, facts)
        run.write(folder)
        write_split(folder, split)
    parts = split.train_part(table), split.validation_part(table)
    run = fit(model, *parts, run, folder, epoch_printer(), tracker=tracker)
    if first:
        best = run.history[run.best_epoch - 1]
        text = ", ".join(f"{k} {v:.3f}" for k, v in best.items() if k != "loss")
        say(f"best epoch {run.best_epoch}: {text}")
        _calibrate(folder, run, table, split, model)
        print(f"run: {folder}\nnext: dcmpl evaluate {folder} --split test")
    return 0


def _checked(arguments: Arguments) -> tuple[TrainConfig, str]:
    """The recipe and the tracker, after all checks that need no PyTorch."""
    check_table(arguments, [arguments.data])
    check_model(arguments.preset, arguments.set, arguments.targets)
    check_device(arguments.device)
    if arguments.split is not None and arguments.protocol is not None:
        raise UsageError("--split or --protocol", "both", "leave one out")
    if arguments.split is not None and not Path(arguments.split).is_file():
        raise UsageError(f"a split at --split {arguments.split}", "no file")
    arguments.protocol = arguments.protocol or "clean"
    check_protocols([arguments.protocol])
    check_folder(arguments.out)
    tracker = tracker_of(arguments)
    check_tracker(tracker)
    return recipe_of(arguments), tracker


def _left_in(folder: Path, resume: bool) -> list[str]:
    """The files of a run that lie in ``folder``.

    Raises an error where they are of no known run, and without ``resume`` for those of one.
    """
    from dcmpl.runs import LAST, MODEL, RECORD, SPLIT
    from dcmpl.scoring.calibration import CALIBRATION

    written = (RECORD, LAST, MODEL, SPLIT, CALIBRATION)
    left = [name for name in written if os.path.lexists(folder / name)]
    if left and RECORD not in left:
        raise RunError(
            f"{RECORD} beside {left[0]} in {folder}",
            "none",
            "what stands there belongs to no known run, choose another --out",
        )
    if left and not resume:
        raise UsageError(
            f"a new folder at --out {folder}",
            "a run in it",
            "add --resume to go on with it, or choose another",
        )
    return left


def _say_processes(processes: "PartialState") -> None:
    """Print how many processes train together, and where a launcher began fewer than it was to."""
    if processes.num_processes > 1:
        say(f"{processes.num_processes} processes share every batch")
    elif "ACCELERATE_USE_CPU" in os.environ and "MASTER_PORT" in os.environ:
        # Set for several processes alone; of these accelerate launch --cpu begins one.
        say(
            "note: accelerate launch began one process; torchrun, or --multi_gpu in place of "
            "--cpu, begins several on processors too"
        )


def _new_split(arguments: Arguments, seed: int, table: "ImageTable", facts: "Facts") -> "Split":
    from dcmpl.data.leaks import tied_units
    from dcmpl.data.splits import Split, draw_split

    if arguments.split is not None:
        return Split.read(Path(arguments.split))
    return draw_split(arguments.protocol, table, tied_units(table, facts), seed)


def _begun(
    arguments: Arguments,
    recipe: "TrainConfig",
    table: "ImageTable",
    backbone: "Backbone",
    split: "Split",
) -> "Run":
    from dcmpl.runs import Run

    model = model_of(arguments.preset, arguments.set, arguments.targets, table.judged)
    source = source_of(arguments, table, arguments.data)
    return Run.begin(arguments.preset, backbone, source, model, recipe, split, table)


def _built(run: "Run", backbone: "Backbone") -> "DCMPL":
    from dcmpl.model.dcmpl import DCMPL

    return DCMPL(backbone.clip, backbone.tokenizer, run.model, run.train.seed)


def _say_what_begins(run: "Run", split: "Split", table: "ImageTable", model: "DCMPL") -> None:
    from dcmpl.data.splits import PARTS
    from dcmpl.model.dcmpl import trainable_parameters
    from dcmpl.training.features import warn_of_precision

    parts = {part: split.rows(table, part) for part in PARTS}
    say(
        f"{table.name}: {len(table)} images; protocol {split.protocol}; "
        + ", ".join(
            f"{name} {len(t)} of {t.frame['group'].nunique()} prompts" for name, t in parts.items()
        )
    )
    warn_of_embedded(run.backbone)
    count = sum(p.numel() for p in trainable_parameters(model).values())
    say(f"{run.preset} on {run.backbone}: {count:,} trainable parameters")
    if model.reads_prompt:
        read = [model.tokenizer.parts(p, model.slots) for p in table.frame["prompt"].unique()]
        if cut := [parts for parts in read if parts.dropped]:
            say(
                f"note: {len(cut)} of {len(read)} prompts are longer than the "
                f"{len(cut[0].ids[0])} tokens that fit; their ends are not read in training"
            )
    warn_of_precision(model.mean.device, run.train.precision)
    if unjudged := [task for task in run.model.tasks if task not in run.learned]:
        say(f"note: nobody judged {' and '.join(unjudged)}; the run will not predict it")


def _finished(
    folder: Path,
    run: "Run",
    split: "Split",
    table: "ImageTable",
    has_model: bool,
    arguments: Arguments,
) -> int:
    """Calibrate a finished run that has no calibration yet."""
    from dcmpl.runs import MODEL, RECORD
    from dcmpl.scoring.calibration import read_calibration
    from dcmpl.scoring.torch_engine import load_model

    if not has_model:
        raise RunError(
            f"{MODEL} in {folder}, whose {RECORD} says that it is finished",
            "none",
            "train anew with another --out",
        )
    if read_calibration(folder, run.weights_sha256) is None:
        _, model = load_model(folder, arguments.backbone, arguments.device)
        _calibrate(folder, run, table, split, model)
    say(f"{folder} is finished, best epoch {run.best_epoch}")
    return 0


def _calibrate(
    folder: Path, run: "Run", table: "ImageTable", split: "Split", model: "DCMPL"
) -> None:
    """Calibrate the scores of a finished run on validation, where there are enough opinions."""
    from dcmpl.scoring.torch_engine import TorchEngine
    from dcmpl.training.calibrate import calibrate

    try:
        found = calibrate(run, TorchEngine(model, run.learned), table, split)
    except DataError as error:
        say(f"note: scores are not calibrated: {error}")
        return
    if found is None:
        return
    found.write(folder)
    say(f"calibrated on validation: {', '.join(found.targets)}; dcmpl info {folder} shows it")


def _resumed(
    folder: Path,
    arguments: Arguments,
    recipe: "TrainConfig",
    table: "ImageTable",
    backbone: "Backbone",
) -> "tuple[Run, Split]":
    """Record and split of a run to resume, where they match the arguments."""
    from dcmpl.data.splits import Split
    from dcmpl.runs import read_run, read_split

    found, source = read_run(folder), source_of(arguments, table, arguments.data)
    then = found.source
    if then is None or (then.scale, then.columns) != (source.scale, source.columns):
        raise RunError(
            f"to resume {folder} with the MOS scale and columns it was started with, "
            f"{then and (then.scale, then.columns)}",
            (source.scale, source.columns),
        )
    if then.sha256 != source.sha256:
        raise RunError(
            f"to resume {folder} with the table it was started with",
            f"changed rows of {arguments.data}",
            "begin anew with another --out",
        )
    split = read_split(folder, found)
    if split is None:
        raise RunError(f"a run that was trained here at {folder}", "an imported one")
    if arguments.split is not None:
        asked = Split.read(Path(arguments.split))
    else:  # a split follows from its protocol, its number and the table
        asked = replace(split, protocol=arguments.protocol, repeat=recipe.seed)
    begun = _begun(arguments, recipe, table, backbone, asked)
    names = ("preset", "backbone_sha256", "model", "train", "split_sha256")
    pairs = [(name, getattr(found, name), getattr(begun, name)) for name in names]
    pairs.append(("protocol", split.protocol, asked.protocol))
    for name, ours, theirs in pairs:
        if ours != theirs:
            raise RunError(
                f"to resume {folder} with the {name} it was started with ({ours})", theirs
            )
    return found, split


def epoch_printer() -> "Callable[[EpochReport], None]":
    """Function that prints a line per epoch, with the time left if the others take as long."""
    took: list[float] = []

    def show(report: "EpochReport") -> None:
        found = "  ".join(
            f"{k.replace('_', ' ')} {v:.{4 if k == 'loss' else 3}f}"
            for k, v in report.found.items()
        )
        took.append(report.seconds)
        left = timedelta(seconds=round(mean(took) * (report.epochs - report.epoch)))
        mark = "  best" if report.best else ""
        say(f"epoch {report.epoch:3d}/{report.epochs}  {found}  left {left}{mark}")

    return show


TRAIN = Command("Train on a data set; writes a run folder.", FLAGS, train)
