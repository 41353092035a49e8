"""Write docs/ablations.md and its plot from the results of an ablation.

    dcmpl ablate --data AGIQA-3K --grid grids/tiny.yaml --repeats 5 --out runs/ablation
    python tools/write_ablations.py runs/ablation

The sentences are made from the numbers: by choice, what differs from the default and how sure
that is.
"""

import argparse
import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from dcmpl.config import TARGETS
from dcmpl.evaluation.summary import verdict

DOCS = Path(__file__).parents[1] / "docs"

CHOICES = {
    "The parts of the method": ("dcmpl-no-",),
    "Its rivals": (
        *("clip-agiqa", "maple", "ivlp", "coop", "coop-deep", "vpt-shallow", "vpt-deep"),
        *("clip-adapter", "clip-iqa", "linear-probe"),
    ),
    "The form of prompt attention": ("mpa.",),
    "The image adapter": ("adapter.",),
    "The fusion layers": ("fusion.",),
    "The floors, which see no text and learn no prompt": ("floor: ",),
}
"""By title, names of variants, or how they begin where that ends in a mark or a blank."""


def sentences(frame: pd.DataFrame, task: str, names: tuple[str, ...]) -> Iterator[str]:
    """One line for every variant of a choice that predicts ``task``."""
    tests = len(frame) - 1
    for _, row in frame.iterrows():
        name = str(row["variant"])
        chosen = any(name == n or (n[-1] in ".- " and name.startswith(n)) for n in names)
        if not chosen or pd.isna(row.get(f"{task} difference")):
            continue
        told = verdict(row.to_dict(), task, tests)
        p = "" if pd.isna(row[f"{task} p"]) else f", p {row[f'{task} p']:.3f}"
        difference = row[f"{task} difference"]
        yield f"- `{name}`: {row[f'{task} mean']:.3f} ({difference:+.3f}{p}): {told}."


def verdicts(frame: pd.DataFrame, task: str) -> Iterator[str]:
    """What the numbers say of the paper's claim, of the defaults and of the floors."""
    tests = len(frame) - 1
    rows = {str(row["variant"]): row.to_dict() for _, row in frame.iterrows()}
    told = {name: verdict(row, task, tests) for name, row in rows.items()}
    parts = [name for name in rows if name.startswith("dcmpl-no-") and told[name]]
    needed = [name for name in parts if told[name].startswith("lower")]
    if needed:
        yield f"- {task}: without it the method is lower: {', '.join(needed)}."
    idle = [
        f"`{name}` ({rows[name][f'{task} difference']:+.3f})"
        for name in parts
        if name not in needed
    ]
    if idle:
        yield (
            f"- {task}, against the paper, which says that every part helps: leaving it out is not "
            f"shown to lower the SRCC here: {', '.join(idle)}."
        )
    variants = [name for name in rows if not name.startswith("floor: ")]
    for kind, bound in (("higher", "after Bonferroni's bound"), ("lower", "after it")):
        some = [f"`{name}`" for name in variants if told[name] == kind]
        yield f"- {task}: {kind} than `dcmpl` {bound}: {', '.join(some) or 'none'}."
    base = rows[str(frame["variant"].iloc[0])][f"{task} mean"]
    above = [
        f"{name} ({row[f'{task} mean']:.3f})"
        for name, row in rows.items()
        if name.startswith("floor: ") and row[f"{task} mean"] > base
    ]
    if above:
        yield f"- {task}: `dcmpl` at this budget ({base:.3f}) is below {' and '.join(above)}."


def page(frame: pd.DataFrame, table: str, notes: str = "") -> str:
    """The whole page."""
    base, repeats = frame.iloc[0], int(frame["repeats"].min())
    tasks = [task for task in TARGETS if f"{task} mean" in frame]
    reached = ", ".join(f"{task} SRCC {base[f'{task} mean']:.3f}" for task in tasks)
    lines = [
        "# Ablations",
        "",
        f"Every variant on the same {repeats} prompt-grouped splits; `dcmpl ablate` made the "
        f"table, `tools/write_ablations.py` this page. The base is `dcmpl`: {reached}. "
        "The budget of a training is small, so what is compared is what a choice is worth after "
        "few steps on a small backbone; it need not hold for a pretrained CLIP at the full recipe.",
        "",
        *([notes, ""] if notes else []),
        "![Means and intervals](ablations.png)",
        "",
        "## What it says",
        "",
        *(line for task in tasks for line in verdicts(frame, task)),
    ]
    for title, names in CHOICES.items():
        lines += ["", f"## {title}"]
        for task in tasks:
            found = list(sentences(frame, task, names))
            if found:
                lines += [
                    "",
                    f"{task.capitalize()} SRCC, and the difference to `dcmpl`:",
                    "",
                    *found,
                ]
    return "\n".join(lines) + "\n\n" + table.replace("# ", "## ", 1).replace("\n## ", "\n### ")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", type=Path, help="the folder that dcmpl ablate wrote to")
    parser.add_argument("--notes", default="", help="what else is to be known of the results")
    options = parser.parse_args()
    frame = pd.read_csv(options.results / "ablation.csv")
    table = (options.results / "ablation.md").read_text(encoding="utf-8")
    (DOCS / "ablations.md").write_text(page(frame, table, options.notes), encoding="utf-8")
    shutil.copy(options.results / "ablation.png", DOCS / "ablations.png")


if __name__ == "__main__":
    main()
