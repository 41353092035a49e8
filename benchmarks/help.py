"""What ``dcmpl COMMAND --help`` costs: CPU seconds beside those of an empty program.

    python benchmarks/help.py [--rounds 5]

Every command takes its turn in each round, and the empty program between them; medians are
compared. Asked: under 0.5 s of CPU for each command.
"""

import argparse
import os
import statistics
import subprocess
import sys

from dcmpl.cli.main import COMMANDS

ASKED = 0.5
"""CPU seconds."""


def cpu_seconds(*words: str) -> float:
    """CPU seconds of a Python process of its own."""
    before = os.times()
    subprocess.run([sys.executable, *words], check=True, capture_output=True)  # noqa: S603  (this interpreter)
    after = os.times()
    spent = after.children_user + after.children_system
    return spent - before.children_user - before.children_system


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    runs = {"an empty program": ("-c", "")}
    runs |= {name: ("-m", "dcmpl", *name.split(), "--help") for name in ["", *COMMANDS]}
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.rounds):
        for name, words in runs.items():
            found[name].append(cpu_seconds(*words))
    medians = {name: statistics.median(values) for name, values in found.items()}
    empty = medians["an empty program"]
    for name, value in medians.items():
        verdict = "" if value < ASKED else f", over the {ASKED} s asked"
        print(f"{name or 'no command':18} {value:.2f} s of CPU, {value / empty:.1f} x{verdict}")


if __name__ == "__main__":
    main()
