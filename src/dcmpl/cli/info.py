"""``dcmpl info`` and ``dcmpl presets``: a run and its calibration; all presets and fields."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.markup import escape
from rich.table import Table

from dcmpl.cli.options import RUN, Arguments, Command, check_run
from dcmpl.config import ModelConfig
from dcmpl.presets import PRESETS as KNOWN
from dcmpl.presets import differences, model_fields, train_fields
from dcmpl.progress import Console, shown
from dcmpl.weights import EMBEDDED, warn_of_model

if TYPE_CHECKING:
    from dcmpl.runs import Run
    from dcmpl.scoring.calibration import Calibration, Meaning

__all__ = ["INFO", "PRESETS"]

PERCENTILES = (5, 25, 50, 75, 95)


def info(arguments: Arguments) -> int:
    """Show a run and its calibration."""
    folder = check_run(arguments.RUN)
    from dcmpl.runs import read_run, uncalibrated
    from dcmpl.scoring.calibration import read_calibration

    run = read_run(folder)
    calibration = read_calibration(folder, run.weights_sha256)
    console = Console()
    console.print(_about(folder, run))
    warn_of_model(folder, run.backbone)
    if calibration is None:
        print(f"Scores have no MOS units and no labels: {uncalibrated(run)}.")
        return 0
    for target in calibration.targets:
        for table in _tables(calibration, target):
            console.print(table)
    return 0


def _about(folder: Path, run: "Run") -> Table:
    table = Table("", escape(shown(str(folder))), title="run")
    source = run.source
    history = run.history[run.best_epoch - 1] if 0 < run.best_epoch <= len(run.history) else {}
    reads = "alignment" in run.model.words and run.model.reads_prompt
    rows = {
        "preset": run.preset,
        "backbone": run.backbone,
        "data": f"{source.name}, {source.path}" if source else "imported, not known",
        "MOS scale": f"{source.scale.low:g} to {source.scale.high:g}" if source else "not known",
        "predicts": ", ".join(run.learned) or "nothing",
        "alignment": "reads the prompt" if reads else "judged from the image alone",
        "views": run.train.views,
        "state": f"finished, best epoch {run.best_epoch}" if run.finished else "not finished",
        "validation": ", ".join(f"{k} {v:.3f}" for k, v in history.items() if k != "loss"),
        "weights": run.weights_sha256[:16],
    }
    if "alignment" not in run.learned:
        del rows["alignment"]
    for name, value in rows.items():
        table.add_row(name, escape(shown(value)))
    return table


def _tables(calibration: "Calibration", target: str) -> Iterator[Table]:
    from dcmpl.scoring.calibration import COVERAGE

    meaning = calibration.targets[target]
    yield _labels(meaning, target)
    yield _populations(meaning, target, calibration.data)
    table = Table("", "", title=f"{target}: how sure", show_header=False)
    table.add_row("fitted on", f"{meaning.validation} validation images")
    table.add_row("from score to MOS", _curve(meaning))
    table.add_row(f"{COVERAGE:.0%} intervals", f"{_width(meaning):.2f} MOS units to each side")
    yield table


def _labels(meaning: "Meaning", target: str) -> Table:
    table = Table(
        *("or better", "MOS", "score", "precision", "recall", "share", "9 in 10", "finds"),
        title=f"{target}: where labels begin; right and found on validation",
        caption="9 in 10: from that score on nine in ten were so good; finds: the share it finds",
    )
    for cut in meaning.cuts:
        cells = cut.score, cut.precision, cut.recall, cut.share, cut.sure
        shown = ["-" if cell is None or cell != cell else f"{cell:.3f}" for cell in cells]
        found = "-" if cut.sure is None else f"{cut.sure_recall:.0%}"
        table.add_row(cut.label, f"{cut.mos:g}", *shown, found)
    return table


def _populations(meaning: "Meaning", target: str, data: str) -> Table:
    table = Table(
        "training images of",
        *(f"{p} %" for p in PERCENTILES),
        title=f"{target}: percentiles of the scores of {meaning.training} images",
    )
    for name, known in [(data, meaning.population), *meaning.generators.items()]:
        table.add_row(escape(name), *(f"{_at(known, p):.3f}" for p in PERCENTILES))
    return table


def _at(known: tuple[float, ...], percentile: float) -> float:
    return float(np.interp(percentile, np.linspace(0, 100, len(known)), known))


def _curve(meaning: "Meaning") -> str:
    if not meaning.curve:
        return "its place on the scale: no rising curve could be fitted"
    at = np.linspace(0.1, 0.9, 5)
    return ", ".join(f"{s:.1f}: {m:.2f}" for s, m in zip(at, meaning.mos(at), strict=True))


def _width(meaning: "Meaning") -> float:
    """Half the prediction interval of an image of the middle score whose windows agree."""
    from dcmpl.scoring.calibration import COVERAGE

    middle = _at(meaning.population, 50)
    deviation = meaning.deviation(np.array([middle]), np.zeros(1))
    return float(meaning.widths[f"{COVERAGE:g}"] * deviation[0])


def presets(arguments: Arguments) -> int:
    """List the presets, and the fields that ``--set`` may change."""
    listed = Table("preset", "learns, ViT-B/32", "what it is", "differs from dcmpl in", "paper")
    for name, preset in KNOWN.items():
        changes = ", ".join(
            f"{field} {'+'.join(value) if isinstance(value, dict) else value}"
            for field, value in differences(preset.model).items()
        )
        count = f"{count_of_vit_b_32(preset.model):,}"
        listed.add_row(name, count, preset.about, changes, preset.paper)
    console = Console()
    console.print(listed)
    fields_of = Table("--set", "values", "default", "what it is")
    for row in (*model_fields(), *train_fields()):
        fields_of.add_row(*row)
    console.print(fields_of)
    return 0


def count_of_vit_b_32(config: ModelConfig) -> int:
    """Number of trainable parameters of ``config`` on CLIP ViT-B/32."""
    import torch

    from dcmpl.model.clip import VIT_B_32, Clip
    from dcmpl.model.dcmpl import DCMPL, trainable_parameters
    from dcmpl.model.tokenizer import Tokenizer

    with torch.device("meta"):
        clip = Clip(VIT_B_32)
    tokenizer = Tokenizer(EMBEDDED["small"] / "tokenizer.json", 77)
    model = DCMPL(clip, tokenizer, config, 0)
    return sum(parameter.numel() for parameter in trainable_parameters(model).values())


INFO = Command(
    "Show what a run is, what its scores mean, how sure they are, where to cut.",
    (RUN,),
    info,
)
PRESETS = Command("List the presets and the fields that --set may change.", (), presets)
