"""Commands on data sets: check one, show it, split it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dcmpl.commands import mos_scale, read_data
from dcmpl.data.datasets import load_table
from dcmpl.data.leaks import check_leaks, check_pictures, survey, tied_units
from dcmpl.data.report import check_table, data_page
from dcmpl.data.splits import PARTS, PROTOCOLS, draw_split
from dcmpl.files import as_json, write_atomically
from dcmpl.progress import say

__all__ = ["COMMANDS"]

MOST_LINES = 100
"""Of one kind; a copy without any picture would fill the screen."""


def check(arguments: Any) -> int:
    """``dcmpl data check``: 1 where the copy is not whole."""
    table = load_table(arguments.path, mos_scale(arguments), arguments.columns)
    facts = survey(table.frame["image"])
    found = check_table(table, facts)
    frame = table.frame
    prompts = frame["prompt"].nunique() if (frame["prompt"] != "").any() else 0
    print(
        f"{table.name}: {len(table):,} images, {prompts or frame['group'].nunique():,} prompts, "
        f"{frame['generator'].nunique()} generators, MOS {table.scale.low:g} to "
        f"{table.scale.high:g} for {', '.join(table.judged)}"
    )
    for kind, lines in (("note", found.notes), ("wrong", found.faults)):
        for line in lines[:MOST_LINES]:
            print(f"  {kind}: {line}")
        if len(lines) > MOST_LINES:
            print(f"  {kind}: and {len(lines) - MOST_LINES} more")
    readable = sum(not facts[path].fault for path in frame["image"])
    print(f"{readable:,} of {len(table):,} pictures decode; {len(found.faults)} things are wrong")
    return 1 if found.faults else 0


def show(arguments: Any) -> int:
    """``dcmpl data show``."""
    table = read_data(arguments, arguments.path)
    page = data_page(table, survey(table.frame["image"]))
    write_atomically(Path(arguments.out), page)
    print(f"report: {arguments.out}")
    return 0


def split(arguments: Any) -> int:
    """``dcmpl data split``."""
    table = read_data(arguments, arguments.path)
    facts = check_pictures(table)
    units, allowed = tied_units(table, facts), PROTOCOLS[arguments.protocol].leaks
    say(f"{table.name}, protocol {arguments.protocol}: {PROTOCOLS[arguments.protocol].about}")
    for repeat in range(arguments.repeats):
        drawn = draw_split(arguments.protocol, table, units, repeat)
        notes = check_leaks(drawn, table, facts, allowed)
        file = Path(arguments.out) / f"{arguments.protocol}-{repeat}.json"
        write_atomically(file, as_json(drawn.to_json()))
        sizes = ", ".join(f"{part} {len(getattr(drawn, part))}" for part in PARTS)
        left = f", left out {len(drawn.left_out)}" if drawn.left_out else ""
        print(f"repeat {repeat}: {sizes}{left}  sha256 {drawn.digest[:12]}  {file}")
        for note in notes:
            say(f"  leak, by design: {note}")
    return 0


COMMANDS: dict[str, Callable[[Any], int]] = {
    "data check": check,
    "data show": show,
    "data split": split,
}
