"""What can be told wrong of the words of commands that score, before torch is imported."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import Namespace

from dcmpl.config import TARGETS, check_views, target_of
from dcmpl.data.sources import PROMPTS_FROM
from dcmpl.errors import UsageError, nearest
from dcmpl.scoring.files import FORMATS
from dcmpl.usage import flag

__all__ = [
    "check_device",
    "check_explain",
    "check_export",
    "check_merge",
    "check_run",
    "check_score",
    "is_empty",
]


def check_device(arguments: Namespace) -> None:
    """How a device is written; whether it is there only torch can tell."""
    if not re.fullmatch(r"[a-z]+(:\d+)?", arguments.get("device") or "auto"):
        raise UsageError(
            "expected --device of auto, cpu, cuda, cuda:N and mps, got "
            f"{arguments.device}: leave it out for a GPU where there is one"
        )


def check_run(run: str) -> None:
    if not Path(run).is_dir():
        raise UsageError(f"expected a run folder made by dcmpl train, found none at {run}")


def is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _check_output(out: str) -> None:
    if Path(out).suffix.lower() not in FORMATS:
        raise UsageError(f"expected -o to end in {', '.join(FORMATS)}, got {out}")
    if Path(out).is_dir():
        raise UsageError(f"expected a file at -o {out}, found a folder")


def check_score(arguments: Namespace) -> None:
    if not Path(arguments.model).is_dir():
        raise UsageError(
            "expected a run folder or an exported model at --model, found none at "
            f"{arguments.model}"
        )
    _check_destination(arguments)
    if arguments.prompts is not None and not Path(arguments.prompts).is_file():
        raise UsageError(f"expected a table at --prompts {arguments.prompts}, found no file")
    if arguments.prompt_from not in (None, *PROMPTS_FROM):
        raise UsageError(
            f"expected --prompt-from of {', '.join(PROMPTS_FROM)}, got {arguments.prompt_from}"
        )
    if arguments.views not in (None, "auto"):
        check_views(arguments.views)
    _check_targets(arguments.targets or [])
    for name in ("workers", "top"):
        if arguments[name] is not None and arguments[name] < 1:
            raise UsageError(f"expected --{name} of at least 1, got {arguments[name]}")
    _read_shard(arguments)
    _read_selection(arguments)
    from dcmpl.data.sources import find_entries  # imports numpy and Pillow

    try:
        arguments.entries = find_entries(arguments.paths, arguments.prompt_from == "sidecar")
    except UsageError:
        # All of them may have been moved by the job that is gone on with.
        if not (arguments.resume and arguments.move_below and Path(arguments.out).is_file()):
            raise
        arguments.entries = []
    if arguments.move_below and any(entry.member for entry in arguments.entries):
        raise UsageError("expected files for --move-below, got an archive: its pictures stay in it")


def _check_destination(arguments: Namespace) -> None:
    if arguments.out != "-":
        _check_output(arguments.out)
    elif any(
        arguments[name] for name in ("resume", "sort", "rank", "top", "copy_top", "move_below")
    ):
        raise UsageError(
            "expected a file at -o with --resume, --sort, --rank, --top, --copy-top and "
            "--move-below, got -: rows go to standard output as they come"
        )
    for path in (*arguments.paths, arguments.prompts):
        if path and os.path.abspath(path) == os.path.abspath(arguments.out):
            raise UsageError(f"expected a new file at -o, got {path}, which is to be read")
    if arguments.rank and arguments.prompts:
        raise UsageError("expected --rank with one --prompt, got --prompts: --sort takes several")
    if arguments.move_below and arguments.top:
        raise UsageError("expected --move-below without --top: the rows of what is moved are lost")


def _check_targets(targets: Sequence[str]) -> None:
    """A run may have targets of its own, so only what no target can be called is refused here."""
    for target in targets:
        if target_of(f"mos_{target}") is None:
            hint = nearest(target, TARGETS, "they are what people were asked")
            raise UsageError(f"expected a target of {', '.join(TARGETS)}, got {target}: {hint}")


def _read_shard(arguments: Namespace) -> None:
    if arguments.shard is None:
        return
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", arguments.shard)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise UsageError(f"expected --shard I/N with I from 1 to N, got {arguments.shard}")
    if arguments.sort or arguments.rank or arguments.top:
        raise UsageError("expected --sort, --rank, --top without --shard: shards keep their order")
    arguments.shard = int(found[1]), int(found[2])


def _read_selection(arguments: Namespace) -> None:
    """Numbers for the words of --copy-top and --move-below; what best means may be a target's."""
    if not re.fullmatch(r"[a-z]\w{0,63}", arguments.by):
        _check_targets([arguments.by])
    for name, kind, wanted in (("copy_top", int, "K DIR"), ("move_below", float, "SCORE DIR")):
        if arguments[name] is None:
            continue
        word, folder = arguments[name]
        try:
            value = kind(word)
        except ValueError:
            value = -1
        if not 0 <= value < float("inf"):
            raise UsageError(f"expected {flag(name)} {wanted}, got {word} {folder}")
        if Path(folder).exists() and not Path(folder).is_dir():
            raise UsageError(f"expected a folder for {flag(name)}, found a file at {folder}")
        for path in arguments.paths:
            if os.path.isdir(path) and Path(folder).resolve().is_relative_to(Path(path).resolve()):
                raise UsageError(
                    f"expected a folder outside of {path} for {flag(name)}, got {folder}: it "
                    "would be scored the next time"
                )
        arguments[name] = value, folder


def check_explain(arguments: Namespace) -> None:
    check_run(arguments.model)
    if not Path(arguments.image).is_file():
        raise UsageError(f"expected a picture at {arguments.image}, found no file")
    if Path(arguments.out).suffix.lower() != ".png" or Path(arguments.out).is_dir():
        raise UsageError(f"expected -o to be a file that ends in .png, got {arguments.out}")
    if Path(arguments.out).exists() and Path(arguments.out).samefile(arguments.image):
        raise UsageError(f"expected -o beside the picture, got the picture itself, {arguments.out}")


def check_export(arguments: Namespace) -> None:
    check_run(arguments.run)
    _check_targets(arguments.targets or [])
    if Path(arguments.out).exists() and not is_empty(Path(arguments.out)):
        raise UsageError(f"expected a new folder at -o {arguments.out}, found something there")
    if arguments.pictures is not None:
        from dcmpl.data.sources import find_entries  # imports numpy and Pillow

        arguments.entries = find_entries(arguments.pictures)


def check_merge(arguments: Namespace) -> None:
    _check_output(arguments.out)
    for path in arguments.scores:
        if not Path(path).is_file():
            raise UsageError(f"expected the scores of a shard at {path}, found no file")
        if Path(path).suffix.lower() not in FORMATS:
            raise UsageError(f"expected scores that end in {', '.join(FORMATS)}, got {path}")
        if Path(path).absolute() == Path(arguments.out).absolute():
            raise UsageError(f"expected a new file at -o, got {path}, which is to be merged")
