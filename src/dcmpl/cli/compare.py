"""``dcmpl compare``: runs beside what others published, like beside like."""

from pathlib import Path

from dcmpl.cli.options import (
    Arguments,
    Command,
    Flag,
    check_folder,
    check_results_replace,
    check_run,
)

__all__ = ["COMPARE"]

FLAGS = (
    Flag(
        "RUN",
        "measured runs, or --out of a benchmark",
        count="+",
        required=True,
        metavar="RUN",
        at_url="folder",
    ),
    Flag("--out", "where the tables go (default: the first RUN)", metavar="DIR"),
)


def compare(arguments: Arguments) -> int:
    """Compare runs with published results of the same protocol, and with one another."""
    for run in arguments.RUN:
        check_run(run)
    out = Path(arguments.out or arguments.RUN[0])
    check_folder(str(out))
    check_results_replace(out, ["comparison.md"], ["comparison.csv", "comparison.png"])
    from dcmpl.evaluation.compare import compare as compare_runs
    from dcmpl.evaluation.compare import paired_rows, write_comparison

    folders = [Path(run) for run in arguments.RUN]
    names = write_comparison(compare_runs(folders), paired_rows(folders), out)
    print((out / "comparison.md").read_text(encoding="utf-8"))
    print(f"results: {out}/{', '.join(names)}")
    return 0


COMPARE = Command("Set runs beside what others published, like beside like.", FLAGS, compare)
