"""Train the model that comes with the package, measure it, and write its model card.

    python tools/train_default.py --data AGIQA-3K --out runs/default

The recipe, the split and the epoch are those of ``dcmpl train``; nothing is chosen here. The
run goes to OUT, what scoring needs of it to the package, and its figures on the test part to
docs/default.md, which is written from ``tools/default_card.md``.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from dcmpl.cli.main import main as dcmpl
from dcmpl.evaluation.baselines import BASELINES
from dcmpl.pages import markdown_table
from dcmpl.runs import MODEL, SPLIT, read_run
from dcmpl.scoring.calibration import CALIBRATION
from dcmpl.weights import DEFAULT

DATA, CARD = "AGIQA-3K", Path(__file__).parents[1] / "docs" / "default.md"
TARGETS = "quality", "alignment"


def run(*words: str) -> None:
    """Run one command of ``dcmpl`` and stop where it fails."""
    code = dcmpl(words)
    if code:
        sys.exit(code)


def put_in_package(folder: Path) -> None:
    """Copy what scoring needs of a run; its data is called by its name, not by its place."""
    shutil.rmtree(DEFAULT, ignore_errors=True)
    DEFAULT.mkdir()
    for name in (MODEL, SPLIT, CALIBRATION):
        shutil.copy(folder / name, DEFAULT)
    record = read_run(folder)
    assert record.source is not None
    replace(record, source=replace(record.source, path=DATA)).write(DEFAULT)


def with_interval(entry: Mapping[str, float]) -> str:
    return f"{entry['value']:.3f} [{entry['low']:.3f}, {entry['high']:.3f}]"


def figures(metrics: Mapping[str, Any]) -> str:
    """Table of the test part: one column per target."""
    rows = [
        {"": shown, **{t: with_interval(metrics[t][name]) for t in TARGETS}}
        for name, shown in (("srcc", "SRCC"), ("plcc", "PLCC"), ("krcc", "KRCC"))
    ]
    for name, shown in (
        ("within_generator_srcc", "SRCC within a generator"),
        ("pairwise_accuracy", "better of two picked"),
    ):
        rows.append({"": shown, **{t: f"{metrics[t][name]:.3f}" for t in TARGETS}})
    for name, shown in BASELINES.items():
        entry = metrics["baselines"][name]
        values = {t: f"{entry[t]['srcc']:.3f} / {entry[t]['plcc']:.3f}" for t in TARGETS}
        rows.append({"": f"floor: {shown}, SRCC / PLCC", **values})
    calibration = metrics["calibration"]
    covered = {t: f"{calibration[t]['coverage_0.9']:.3f}" for t in TARGETS}
    rows.append({"": "MOS inside the 90 % interval", **covered})
    return markdown_table(pd.DataFrame(rows))


def coats(metrics: Mapping[str, Any]) -> str:
    """Table of the same files in other coats."""
    rows = [
        {
            "coat": coat,
            "target": target,
            "SRCC": f"{entry['srcc']:.3f}",
            "SRCC lost": f"{entry['srcc_drop']:+.3f}",
            "mean move": f"{entry['mean_move']:.3f}",
            "moved by more than 0.05": f"{entry['moved_far']:.1%}",
        }
        for coat, of_target in metrics["robust"].items()
        for target, entry in of_target.items()
    ]
    return markdown_table(pd.DataFrame(rows))


def card(folder: Path, seconds: float) -> str:
    """Model card of the run in ``folder``."""
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    record, size = read_run(folder), sum(f.stat().st_size for f in DEFAULT.iterdir())
    reading = metrics["prompts"]["alignment"]
    values: dict[str, Any] = {
        "figures": figures(metrics),
        "coats": coats(metrics),
        "own": f"{reading['own_higher']:.3f}",
        "drop": f"{reading['srcc_drop']:.3f}",
        "images": metrics["quality"]["n"],
        "epoch": record.best_epoch,
        "minutes": round(seconds / 60),
        "size": f"{size / 1e6:.1f}",
    }
    text = Path(__file__).with_name("default_card.md").read_text(encoding="utf-8")
    for name, value in values.items():
        text = text.replace(f"{{{{{name}}}}}", str(value))
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of AGIQA-3K")
    parser.add_argument("--out", type=Path, required=True, help="run folder to make")
    options = parser.parse_args()
    place, start = str(options.out), time.time()
    preset = ["--preset", "dcmpl-prompted", "--seed", "0"]
    run("train", "--data", str(options.data), "--out", place, *preset)
    seconds = time.time() - start
    run("evaluate", place, "--robust")
    put_in_package(options.out)
    CARD.write_text(card(options.out, seconds), encoding="utf-8")
    print(f"model: {DEFAULT}\ncard: {CARD}")


if __name__ == "__main__":
    main()
