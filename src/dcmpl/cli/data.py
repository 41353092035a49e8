"""``dcmpl data check``, ``show`` and ``split``: audit a data set, show it, write its splits."""

from pathlib import Path

from dcmpl.cli.options import (
    DATA_ABOUT,
    TABLE_FLAGS,
    Arguments,
    Command,
    Flag,
    check_folder,
    check_not_read,
    check_protocols,
    check_repeats,
    check_replaces,
    check_results_replace,
    check_table,
    columns_of,
    mos_scale,
    read_data,
)
from dcmpl.config import PROTOCOLS as NAMES
from dcmpl.errors import UsageError
from dcmpl.files import as_json, write_atomically
from dcmpl.progress import say, shown

__all__ = ["CHECK", "SHOW", "SPLIT"]

PATH = Flag("PATH", DATA_ABOUT, required=True, metavar="PATH", at_url="table")

MOST_LINES = 100
"""Of one kind; a copy without any image would fill the screen."""


def check(arguments: Arguments) -> int:
    """Count and decode the images of a data set; exit code 1 where the copy is incomplete."""
    check_table(arguments, [arguments.PATH])
    from dcmpl.data.datasets import load_table
    from dcmpl.data.leaks import survey
    from dcmpl.data.report import check_table as look_into

    table = load_table(arguments.PATH, mos_scale(arguments), columns_of(arguments))
    facts = survey(table.frame["image"])
    found = look_into(table, facts)
    frame = table.frame
    prompts = frame["prompt"].nunique() if (frame["prompt"] != "").any() else 0
    print(
        f"{shown(table.name)}: {len(table):,} images, "
        f"{prompts or frame['group'].nunique():,} prompts, "
        f"{frame['generator'].nunique()} generators, MOS {table.scale.low:g} to "
        f"{table.scale.high:g} for {', '.join(table.judged)}"
    )
    for kind, lines in (("note", found.notes), ("wrong", found.faults)):
        for line in lines[:MOST_LINES]:
            print(f"  {kind}: {shown(line)}")
        if len(lines) > MOST_LINES:
            print(f"  {kind}: and {len(lines) - MOST_LINES} more")
    readable = sum(not facts[path].fault for path in frame["image"])
    print(f"{readable:,} of {len(table):,} images decode; {len(found.faults)} things are wrong")
    return 1 if found.faults else 0


def show(arguments: Arguments) -> int:
    """Write a page about a data set."""
    check_table(arguments, [arguments.PATH])
    if Path(arguments.out).is_dir():
        raise UsageError(f"a file at -o {arguments.out}", "a folder")
    check_not_read(arguments.out, [arguments.PATH])
    check_replaces(arguments.out)
    from dcmpl.data.leaks import survey
    from dcmpl.data.report import data_page

    table = read_data(arguments, arguments.PATH)
    write_atomically(Path(arguments.out), data_page(table, survey(table.frame["image"])))
    print(f"report: {arguments.out}")
    return 0


def split(arguments: Arguments) -> int:
    """Write the splits of a protocol as files, checked for leaks."""
    check_table(arguments, [arguments.PATH])
    check_protocols([arguments.protocol])
    check_repeats(arguments.repeats)
    check_folder(arguments.out)
    from dcmpl.data.leaks import check_images, check_leaks, tied_units
    from dcmpl.data.splits import PARTS, PROTOCOLS, draw_split

    files = [f"{arguments.protocol}-{repeat}.json" for repeat in range(arguments.repeats)]
    for name in files:
        check_results_replace(Path(arguments.out), [name])
    table = read_data(arguments, arguments.PATH)
    facts = check_images(table)
    units, protocol = tied_units(table, facts), PROTOCOLS[arguments.protocol]
    say(f"{table.name}, protocol {arguments.protocol}: {protocol.about}")
    lines = []
    for repeat in range(arguments.repeats):
        drawn = draw_split(arguments.protocol, table, units, repeat)
        notes = check_leaks(drawn, table, facts, protocol.leaks)
        file = Path(arguments.out) / files[repeat]
        write_atomically(file, as_json(drawn.to_json()))
        sizes = ", ".join(f"{part} {len(getattr(drawn, part))}" for part in PARTS)
        left = f", left out {len(drawn.left_out)}" if drawn.left_out else ""
        lines.append(f"repeat {repeat}: {sizes}{left}  sha256 {drawn.digest[:12]}  {file}")
        for note in notes:
            say(f"  leak, by design: {note}")
    print("\n".join(lines))
    return 0


CHECK = Command(
    "Count against the published figures and decode every image.", (PATH, *TABLE_FLAGS), check
)
SHOW = Command(
    "Write a page: opinions, generators, images from worst to best.",
    (PATH, *TABLE_FLAGS, Flag("--out", ".html", required=True, short="-o", metavar="FILE")),
    show,
)
SPLIT = Command(
    "Write the splits of a protocol as files.",
    (
        PATH,
        *TABLE_FLAGS,
        Flag("--protocol", f"of {', '.join(NAMES)}", default="clean", metavar="NAME"),
        Flag("--repeats", "how many splits", int, default=1, metavar="N"),
        Flag("--out", "folder of the files", required=True, metavar="DIR"),
    ),
    split,
)
