"""Write docs/protocols.md and its plot from the results of protocols.

    dcmpl evaluate --protocol image-level clip-agiqa --repeats 5 --data AGIQA-3K \
        --backbone tiny --out runs/protocols
    python tools/write_protocols.py runs/protocols --command "..."

The sentences are made from the numbers.
"""

import argparse
import json
import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dcmpl.evaluation.baselines import FLOORS

DOCS = Path(__file__).parents[1] / "docs"

INTRODUCTION = """# What a protocol is worth

The same model, data and recipe under three protocols; what differs is only who is in which part
and which part chooses the epoch. `optimism` is what a protocol adds to the mean SRCC of `clean`.
"""


def sentences(rows: list[Mapping[str, Any]], model: str) -> Iterator[str]:
    """One for every protocol and target that can be held against ``clean``."""
    for row in rows:
        if row["protocol"] == "clean" or row["optimism"] is None:
            continue
        who = "the model" if row["predictor"] == model else f"the floor ({row['predictor']})"
        interval, sure = "", "over too few repeats to say more"
        if row.get("optimism low") is not None and not math.isnan(row["optimism low"]):
            low, high = row["optimism low"], row["optimism high"]
            interval = f" [{low:+.3f}, {high:+.3f}]"
            sure = "shown" if low > 0 or high < 0 else "not shown by these repeats"
        yield (
            f"- {row['target']}, `{row['protocol']}`, {who}: {row['optimism']:+.3f}{interval}, "
            f"{sure}."
        )


def chosen(rows: list[Mapping[str, Any]], model: str) -> Iterator[str]:
    """What choosing the epoch is worth on the part that chooses."""
    for row in rows:
        if row["predictor"] == model and row["selection"] is not None:
            yield (
                f"- {row['target']}, `{row['protocol']}`: the chosen epoch is "
                f"{row['selection']:+.3f} above the last, on the part that chose it."
            )


def page(found: Mapping[str, Any], table: str, command: str) -> str:
    """The whole page."""
    rows, model = found["rows"], found["model"]
    own = [row for row in rows if row["predictor"] == model]
    floors = [row for row in rows if row["predictor"] in FLOORS.values()]
    lines = [
        INTRODUCTION,
        f"`{command}`, then `tools/write_protocols.py`, which wrote this page.",
        "",
        "![SRCC by protocol](protocols.png)",
        "",
        "## What leakage and selection on the test part are worth",
        "",
        *sentences(own, model),
        "",
        "For the floors, fitted on the same training parts:",
        "",
        *sentences(floors, model),
        "",
        "What choosing the epoch is worth:",
        "",
        *chosen(rows, model),
    ]
    return "\n".join(lines) + "\n\n" + table.replace("\n## ", "\n### ").replace("# ", "## ", 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", type=Path, help="the --out of dcmpl evaluate --protocol")
    parser.add_argument("--command", required=True, help="the command that made them")
    options = parser.parse_args()
    found = json.loads((options.results / "protocols.json").read_text(encoding="utf-8"))
    table = (options.results / "protocols.md").read_text(encoding="utf-8")
    (DOCS / "protocols.md").write_text(page(found, table, options.command), encoding="utf-8")
    shutil.copy(options.results / "protocols.png", DOCS / "protocols.png")


if __name__ == "__main__":
    main()
