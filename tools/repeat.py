"""Train and test on several prompt-grouped splits, and say mean and deviation.

    python tools/repeat.py --data DATA --out runs/repeats --seeds 0 1 2 3 4 [-- dcmpl train flags]

A seed that is measured already is not run again, so that the list can be shared between
processes or continued.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from dcmpl.cli import main as dcmpl

NUMBERS = [(t, m) for t in ("quality", "alignment") for m in ("srcc", "plcc", "krcc")]


def measured(folder: Path) -> dict[str, float]:
    """The numbers of one seed."""
    found = json.loads((folder / "metrics.json").read_text())
    numbers = {f"{t} {m.upper()}": found[t][m]["value"] for t, m in NUMBERS}
    for target in ("quality", "alignment"):
        numbers[f"{target} SRCC within generator"] = found[target]["within_generator_srcc"]
    return numbers


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    options, flags = parser.parse_known_args()
    flags = [flag for flag in flags if flag != "--"]
    for seed in options.seeds:
        run = options.out / f"seed{seed}"
        if not (run / "metrics.json").exists():
            words = ["train", "--data", options.data, "--out", str(run), "--seed", str(seed)]
            code = dcmpl([*words, "--resume", *flags]) or dcmpl(["evaluate", str(run)])
            if code:
                sys.exit(code)
    rows = [measured(options.out / f"seed{seed}") for seed in options.seeds]
    print(f"\n{len(rows)} splits by prompt, test part, mean and standard deviation")
    for name in rows[0]:
        values = np.array([row[name] for row in rows])
        each = "  ".join(f"{value:.3f}" for value in values)
        spread = values.std(ddof=1) if len(values) > 1 else np.nan
        print(f"{name:32} {values.mean():.3f} +- {spread:.3f}   ({each})")


if __name__ == "__main__":
    main()
