"""The three main commands, from parsed words to files and printed results."""

import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console

from dcmpl.checkpoint import Run, Source, read_run, read_split, write_split
from dcmpl.config import EMBEDDED, LAST, MODEL, RECORD, TrainConfig
from dcmpl.datasets import TARGETS, ImageTable, MosScale, check_pictures, load_table
from dcmpl.errors import DataError, DcmplError, RunError, UsageError
from dcmpl.evaluate import metrics_table, write_results
from dcmpl.files import read_prompts, score_file
from dcmpl.inference import predict_table
from dcmpl.model import DCMPL, trainable_parameters
from dcmpl.predict import Score, Scorer
from dcmpl.presets import PRESETS, with_settings
from dcmpl.progress import track
from dcmpl.splits import PARTS, Split, make_split
from dcmpl.train import EpochReport, fit
from dcmpl.weights import Backbone, load_backbone

__all__ = ["COMMANDS", "mos_scale", "portable", "say", "source_of", "warn_of_floor"]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def warn_of_floor(backbone: str) -> None:
    if backbone in EMBEDDED:
        say(
            f"note: {backbone} is a small backbone trained on drawings; its scores of real "
            "pictures are a floor, a pretrained CLIP (--backbone) judges better"
        )


def mos_scale(arguments: Any) -> MosScale | None:
    return MosScale(*arguments.mos_scale) if arguments.mos_scale else None


def _table_to_measure(arguments: Any, source: Source | None) -> tuple[ImageTable, bool]:
    """The table to measure on, and whether it is the run's own data, moved or not."""
    if source is None:
        if arguments.data is None:
            raise UsageError("expected --data PATH: an imported run has no data of its own")
        return load_table(arguments.data, mos_scale(arguments), arguments.columns), False
    path, scale, columns = arguments.data or source.path, mos_scale(arguments), arguments.columns
    if not Path(path).exists():
        raise DataError(
            f"expected the run's data set at {path}, found nothing there: "
            "give its new place with --data"
        )
    try:
        # The run's own data in a new place has the run's own scale and columns.
        table = load_table(path, scale or source.scale, columns or source.columns)
    except DcmplError:
        if arguments.data is None:
            raise
    else:
        if table.digest == source.sha256:
            return table, True
        if arguments.data is None:
            raise RunError(
                f"expected the table the run was trained with at {path}, its scale or rows have "
                f"changed: add --data {path} to measure on it as on another data set"
            )
    return load_table(path, scale, columns), False


def train(arguments: Any) -> int:
    """``dcmpl train``."""
    folder = Path(arguments.out)
    left = [name for name in (LAST, MODEL) if (folder / name).exists()]
    if left and not (folder / RECORD).exists():
        raise RunError(
            f"expected {RECORD} beside {left[0]} in {folder}, found none: what stands there "
            "belongs to no known run, choose another --out"
        )
    table = load_table(arguments.data, mos_scale(arguments), arguments.columns)
    backbone = load_backbone(arguments.backbone)
    run, split = _open_run(folder, arguments, table, backbone)
    if run.finished:
        if MODEL not in left:
            raise RunError(
                f"expected {MODEL} in {folder}, whose {RECORD} says that it is finished, found "
                "none: train anew with another --out"
            )
        say(f"{folder} is finished, best epoch {run.best_epoch}")
        return 0
    parts = {part: split.rows(table, part) for part in PARTS}
    say(
        f"{table.name}: {len(table)} pictures; "
        + ", ".join(
            f"{name} {len(t)} of {t.frame['group'].nunique()} prompts" for name, t in parts.items()
        )
    )
    warn_of_floor(run.backbone)
    check_pictures(table)
    model = DCMPL(backbone.clip, backbone.tokenizer, run.model, run.train.seed)
    count = sum(p.numel() for p in trainable_parameters(model).values())
    say(f"{run.preset} on {run.backbone}: {count:,} trainable parameters")
    run.write(folder)
    write_split(folder, split)
    report = _epoch_printer(done=len(run.history))
    run = fit(model, split.train_part(table), split.validation_part(table), run, folder, report)
    best = run.history[run.best_epoch - 1]
    told = ", ".join(f"{k} {v:.3f}" for k, v in best.items() if k != "loss")
    say(f"best epoch {run.best_epoch}: {told}")
    print(f"run: {folder}\nnext: dcmpl evaluate {folder} --split test")
    return 0


def source_of(arguments: Any, table: ImageTable) -> Source:
    return Source(
        str(Path(arguments.data).absolute()),
        table.name,
        table.scale,
        table.digest,
        dict(arguments.columns),
    )


def _open_run(
    folder: Path, arguments: Any, table: ImageTable, backbone: Backbone
) -> tuple[Run, Split]:
    """The record to begin with, or that of the folder where it says the same."""
    split = make_split(table, arguments.recipe["seed"])
    source = source_of(arguments, table)
    asked = Run(
        preset=arguments.preset,
        backbone=portable(arguments.backbone),
        backbone_sha256=backbone.sha256,
        source=source,
        model=with_settings(PRESETS[arguments.preset].model, arguments.set),
        train=TrainConfig(**arguments.recipe),
        split_sha256=split.digest,
    )
    if not (arguments.resume and (folder / RECORD).exists()):
        return asked, split
    found = read_run(folder)
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
    for name in ("preset", "backbone_sha256", "model", "train", "split_sha256"):
        if getattr(found, name) != getattr(asked, name):
            raise RunError(
                f"expected to resume {folder} with the {name} it was started with "
                f"({getattr(found, name)}), got {getattr(asked, name)}"
            )
    return found, split


def portable(backbone: str) -> str:
    """The name to find a backbone by later: folders and files by their full path."""
    is_place = backbone not in EMBEDDED and Path(backbone).exists()
    return str(Path(backbone).absolute()) if is_place else backbone


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


def evaluate(arguments: Any) -> int:
    """``dcmpl evaluate``."""
    folder = Path(arguments.run)
    run = read_run(folder)
    split = read_split(folder, run)
    table, own = _table_to_measure(arguments, run.source)
    name = arguments.split or ("test" if own else "all")
    if name != "all":
        if split is None:
            raise UsageError(f"expected --split all for an imported run, got {name}")
        table = split.rows(table, name)
    scorer = Scorer.from_pretrained(folder)
    warn_of_floor(run.backbone)
    check_pictures(table)
    predicted = predict_table(scorer.model, table, scorer.views, "fp32", "scoring")
    own_place = folder if name == "test" else folder / name
    default = own_place if own else folder / f"{table.name}-{table.digest[:6]}-{name}"
    out = Path(arguments.out) if arguments.out else default
    notes = {
        "protocol": _protocol(table, split),
        "backbone": run.backbone,
        "preset": run.preset,
        "best_epoch": run.best_epoch,
    }
    metrics = write_results(out, table, predicted, name, notes)
    Console().print(metrics_table(metrics, f"{table.name}, {name} part, {len(table)} pictures"))
    if not (out / "quality.png").exists():
        say("no plots: pip install matplotlib brings them")
    print(f"results: {out}/metrics.json, predictions.csv")
    return 0


def _protocol(table: ImageTable, split: Split | None) -> str:
    """How far the measured pictures are from those that were learned from."""
    if split is None:
        return "unknown: imported, what it was trained on is not recorded"
    seen = table.frame["group"].isin({*split.train, *split.val}).mean()
    if seen:
        return f"not clean: {seen:.0%} of the pictures have prompts of training or validation"
    return "clean: prompt-grouped split, epoch chosen on validation"


COLUMNS = ("image", "prompt", "quality", "alignment", "status", "reason")


def _say_what_scores_mean(scorer: Scorer, run: Run, has_prompts: bool) -> None:
    warn_of_floor(run.backbone)
    if has_prompts:
        say("note: this model judges alignment from the picture alone; prompts are carried along")
    for task in TARGETS:
        if task not in scorer.model.config.tasks:
            say(f"note: this model does not predict {task}; its column stays empty")


def score(arguments: Any) -> int:
    """``dcmpl score``."""
    pictures: list[str] = arguments.pictures
    prompts: dict[str, str] = {}
    if arguments.prompts is not None:
        prompts, strange = read_prompts(Path(arguments.prompts), pictures)
        if strange:
            say(
                f"{len(strange)} rows of {arguments.prompts} name none of the pictures, "
                f"{strange[0]!r} among them"
            )
        if without := [picture for picture in pictures if picture not in prompts]:
            say(
                f"{len(without)} of {len(pictures)} pictures have no row in {arguments.prompts}, "
                f"{without[0]!r} among them: they get no prompt"
            )
    scorer = Scorer.from_pretrained(arguments.model)
    _say_what_scores_mean(
        scorer, read_run(Path(arguments.model)), bool(prompts or arguments.prompt)
    )
    pairs = ((p, prompts.get(p, arguments.prompt or "")) for p in pictures)
    faults: list[Score] = []
    with score_file(Path(arguments.out), COLUMNS) as write:
        for found in track(scorer.stream(pairs), "scoring", len(pictures)):
            write({column: getattr(found, column) for column in COLUMNS})
            if found.status == "error":
                faults.append(found)
    for fault in faults[:10]:
        say(f"not scored: {fault.reason}")
    if len(faults) > 10:
        say(f"and {len(faults) - 10} more, each with its reason in the file")
    print(f"{len(pictures) - len(faults)} of {len(pictures)} pictures scored: {arguments.out}")
    return 3 if faults else 0


COMMANDS: dict[str, Callable[[Any], int]] = {
    "train": train,
    "evaluate": evaluate,
    "score": score,
}
