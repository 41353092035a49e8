"""Commands and flags as data; the flags and checks that several commands share.

Imports neither torch nor pandas: help and mistakes answer at once. Functions that begin the
work import what they need themselves.
"""

import argparse
import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcmpl.config import (
    COLUMNS,
    PROTOCOLS,
    RECIPES,
    TARGETS,
    ModelConfig,
    TrainConfig,
    WatchConfig,
    recipe_for,
    target_of,
)
from dcmpl.errors import UsageError, nearest
from dcmpl.presets import PRESETS, with_settings, with_targets
from dcmpl.progress import say
from dcmpl.storage import about, is_url
from dcmpl.weights import check_backbone, model_folder

if TYPE_CHECKING:
    from dcmpl.data.leaks import Facts
    from dcmpl.data.splits import Split
    from dcmpl.data.table import ImageTable, MosScale
    from dcmpl.runs import DataSource

__all__ = ["COMMON", "Arguments", "Command", "Flag"]

Arguments = argparse.Namespace
"""The values of a command's flags, by their names with ``_`` for ``-``."""

KINDS: dict[type, str] = {str: "a value", int: "a whole number", float: "a finite number"}


@dataclass(frozen=True)
class Flag:
    """One flag, or a positional argument where its name has no dashes.

    ``count``: None for one value, a number of values, or ``+``. A flag of kind bool takes none.
    ``at_url``: what becomes of a URL in place of a path. It is ``read`` by the command itself,
    or copied here as a ``folder``, a ``file``, or a ``table`` with what lies beside it; without,
    it is refused.
    """

    name: str
    about: str
    kind: type = str
    default: Any = None
    count: int | str | None = None
    metavar: Any = None
    choices: tuple[str, ...] = ()
    required: bool = False
    short: str = ""
    at_url: str = ""

    @property
    def positional(self) -> bool:
        return not self.name.startswith("-")

    @property
    def names(self) -> list[str]:
        return [*([self.short] if self.short else []), self.name]

    @property
    def dest(self) -> str:
        return self.name.lstrip("-").replace("-", "_")

    @property
    def help_text(self) -> str:
        """The explanation with the default, where that is a value."""
        if self.default in (None, (), False):
            return self.about
        return f"{self.about} (default: {self.default})"

    def read(self, given: Any) -> Any:
        """Values of the words behind a flag; raises :class:`UsageError` for invalid ones.

        Several values come as a tuple.
        """
        if self.kind is bool:
            return True
        if isinstance(given, list):
            return tuple(self._value(word) for word in given)
        return self._value(given)

    def _value(self, word: str) -> Any:
        if self.choices and word not in self.choices:
            hint = nearest(word, self.choices, "take one of these")
            raise UsageError(f"{self._shown} of {', '.join(self.choices)}", word, hint)
        try:
            value = self.kind(word)
        except ValueError:
            value = math.nan
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"{KINDS[self.kind]} for {self._shown}", word)
        return value

    @property
    def _shown(self) -> str:
        return str(self.metavar or self.name) if self.positional else self.name

    def written(self, value: Any) -> Any:
        """A value of YAML as the words of the command line."""
        many = self.count is not None
        if self.kind is bool and not isinstance(value, bool):
            raise UsageError(f"true or false for {self.dest}", f"{value!r}")
        if isinstance(value, (dict, bool)) and self.kind is not bool:
            raise UsageError(f"{KINDS[self.kind]} for {self.dest}", f"{value!r}")
        if many != isinstance(value, list):
            wanted = "a list" if many else "one value"
            raise UsageError(f"{wanted} for {self.dest}", f"{value!r}")
        return [str(entry) for entry in value] if many else str(value)


@dataclass(frozen=True)
class Command:
    """One command: its help, its flags, and a function that runs it and returns the exit code."""

    about: str
    flags: tuple[Flag, ...]
    run: Callable[[Arguments], int]


COMMON = (
    Flag("--config", "YAML file with any of these flags", metavar="FILE"),
    Flag("--print-config", "print the flags as such a file, and do nothing else", bool, False),
    Flag("--debug", "show the traceback of an error", bool, False),
)

DATA_ABOUT = "folder of a published data set, or a table: image, prompt, mos_quality, ..."

TABLE_FLAGS = (
    Flag(
        "--mos-scale",
        "worst and best value of the MOS in a table of your own",
        float,
        count=2,
        metavar=("LOW", "HIGH"),
    ),
    Flag(
        "--columns",
        f"names of {', '.join(COLUMNS)} in that table",
        default=(),
        count="+",
        metavar="OURS=THEIRS",
    ),
)

BACKBONE = Flag("--backbone", "small, a folder, or a Hugging Face id", default="small")
RUN = Flag(
    "RUN",
    "folder made by dcmpl train, or default",
    required=True,
    metavar="RUN",
    at_url="folder",
)
MOVED_BACKBONE = Flag("--backbone", "where the run's backbone lies now", metavar="DIR")
DEVICE = Flag(
    "--device",
    "what computes: auto (a GPU where there is one), cpu, cuda, cuda:N or mps",
    default="auto",
    metavar="NAME",
)

SETTINGS = Flag(
    "--set",
    "change fields of the preset and the recipe, as in model.mpa.form=joint or "
    "train.patience=none; dcmpl presets lists them",
    default=(),
    count="+",
    metavar="FIELD=VALUE",
)

TARGET_FLAG = Flag(
    "--targets",
    f"what to learn, of {', '.join(TARGETS)}, the main one first; NAME=GOOD/BAD names the ends of "
    "another, whose column is mos_NAME (default: the preset's, and authenticity where the data "
    "has it and the preset has several)",
    count="+",
    metavar="TARGET",
)


def _recipe_flag(name: str, kind: type) -> Flag:
    """Flag for a field of the recipe, with the default of every recipe in its help."""
    paper = getattr(RECIPES["paper"], name)
    others = [
        f"{getattr(recipe, name)} for {backbone}"
        for backbone, recipe in RECIPES.items()
        if getattr(recipe, name) != paper
    ]
    about = TrainConfig.__dataclass_fields__[name].metadata["help"]
    defaults = "; ".join([f"default: {paper}", *others])
    return Flag(f"--{name.replace('_', '-')}", f"{about} ({defaults})", kind)


RECIPE_FLAGS = (
    _recipe_flag("epochs", int),
    _recipe_flag("batch_size", int),
    _recipe_flag("lr", float),
)
SEED = _recipe_flag("seed", int)


def check_device(device: str) -> None:
    """Check the spelling of a device; only PyTorch knows which devices exist."""
    if not re.fullmatch(r"(?!(auto|cpu|mps):)[a-z]+(:\d+)?", device):
        raise UsageError(
            "--device of auto, cpu, cuda, cuda:N and mps",
            device,
            "leave it out for a GPU where there is one",
        )


def check_run(run: str | None) -> Path:
    """Folder of a run: that of the package's model for none or ``default``."""
    folder = model_folder(run)
    if run == "" or not folder.is_dir():
        raise UsageError("a run folder made by dcmpl train", f"none at {run or 'an empty path'}")
    return folder


def check_scoring_model(model: str | None) -> Path:
    """Folder of a run or an export: that of the package's model for none or ``default``."""
    folder = model_folder(model)
    if model == "" or not folder.is_dir():
        place = model or "an empty path"
        raise UsageError("a run folder or an exported model at --model", f"none at {place}")
    return folder


def check_folder(out: str) -> None:
    if Path(out).exists() and not Path(out).is_dir():
        raise UsageError(f"a folder at --out {out}", "a file")


def check_new_folder(out: str, flag: str = "--out") -> None:
    if Path(out).exists() and not (Path(out).is_dir() and not any(Path(out).iterdir())):
        raise UsageError(f"a new folder at {flag} {out}", "something there")


def check_protocols(names: Sequence[str]) -> None:
    for name in names:
        if name not in PROTOCOLS:
            hint = nearest(name, PROTOCOLS, "see dcmpl data split --help")
            raise UsageError(f"--protocol of {', '.join(PROTOCOLS)}", name, hint)


def check_repeats(repeats: int) -> None:
    if repeats < 1:
        raise UsageError("--repeats of at least 1", repeats)


def check_targets(targets: Sequence[str]) -> None:
    """Check names of targets; a run may have its own, so only impossible names fail."""
    for target in targets:
        if target_of(f"mos_{target}") is None:
            hint = nearest(target, TARGETS, "they are what people were asked")
            raise UsageError(f"a target of {', '.join(TARGETS)}", target, hint)


def columns_of(arguments: Arguments) -> dict[str, str]:
    """``--columns`` as a mapping from our names to those of the table."""
    pairs = [column.split("=", 1) for column in arguments.columns]
    if not all(len(pair) == 2 and all(pair) for pair in pairs):
        raise UsageError("--columns OURS=THEIRS ...", " ".join(arguments.columns))
    columns = dict(pairs)
    names = [ours for ours in columns if ours not in COLUMNS]
    if unknown := [ours for ours in names if target_of(ours) is None]:
        hint = nearest(unknown[0], COLUMNS, "map one of ours to one of theirs")
        raise UsageError(f"--columns to map {', '.join(COLUMNS)}", unknown[0], hint)
    return columns


def check_table(arguments: Arguments, paths: Sequence[str]) -> None:
    """Check that ``paths`` exist, and the flags that describe a user's own table."""
    check_own_table(arguments)
    for path in paths:
        if not Path(path).exists():
            raise UsageError(f"a data set at {path}", "nothing there")
        if not Path(path).is_dir() and arguments.mos_scale is None:
            raise UsageError(
                f"the ends of the MOS scale of {path}",
                "none",
                "add --mos-scale LOW HIGH, for example --mos-scale 1 5",
            )


def check_own_table(arguments: Arguments) -> None:
    if arguments.mos_scale and not arguments.mos_scale[0] < arguments.mos_scale[1]:
        low, high = arguments.mos_scale
        raise UsageError("--mos-scale LOW HIGH with LOW below HIGH", f"{low:g} {high:g}")
    columns_of(arguments)


def check_preset(name: str) -> None:
    if name not in PRESETS:
        hint = nearest(name, PRESETS, "see dcmpl presets")
        raise UsageError(f"--preset of {', '.join(PRESETS)}", name, hint)


def model_of(
    preset: str, settings: Sequence[str], targets: Sequence[str] | None, judged: Sequence[str]
) -> ModelConfig:
    """Configuration of the preset with the chosen fields and targets."""
    of_model = [setting for setting in settings if not setting.startswith("train.")]
    return with_targets(with_settings(PRESETS[preset].model, of_model), judged, targets)


def check_model(preset: str, settings: Sequence[str], targets: Sequence[str] | None) -> None:
    """:func:`model_of` before the data set is read, when any target may still have MOS."""
    check_preset(preset)
    named = [target.partition("=")[0] for target in targets or ()]
    model_of(preset, settings, targets, [*TARGETS, *named])


def recipe_of(arguments: Arguments, base: TrainConfig | None = None) -> TrainConfig:
    """Recipe of the backbone with the chosen flags and fields."""
    recipe = base or recipe_for(check_backbone(arguments.backbone))
    names = ("epochs", "batch_size", "lr", "seed")
    chosen = {name: getattr(arguments, name, None) for name in names}
    recipe = replace(recipe, **{n: value for n, value in chosen.items() if value is not None})
    of_recipe = [setting for setting in arguments.set if setting.startswith("train.")]
    return with_settings(recipe, of_recipe, "train")


def tracker_of(arguments: Arguments) -> str:
    """Tracker that ``--set`` names; that setting is taken out, for the recipe has none."""
    of_tracker = [s for s in arguments.set if s.partition("=")[0] == "train.tracker"]
    arguments.set = tuple(s for s in arguments.set if s not in of_tracker)
    return with_settings(WatchConfig(), of_tracker, "train").tracker


def mos_scale(arguments: Arguments) -> "MosScale | None":
    from dcmpl.data.table import MosScale

    return MosScale(*arguments.mos_scale) if arguments.mos_scale else None


def check_not_read(out: str, inputs: Iterable[str]) -> None:
    """Check that ``-o`` is none of the files to be read, by whatever path."""
    for path in inputs:
        is_same = out == path if is_url(out) else Path(out).resolve() == Path(path).resolve()
        if is_same and about(path) is not None:
            raise UsageError("a new file at -o", f"{out}, which is to be read")


def check_replaces(out: str, flag: str = "-o") -> None:
    """Check that a page or plot replaces nothing but one that dcmpl made."""
    if Path(out).is_file() and not _is_marked(Path(out)):
        raise UsageError(f"a new file at {flag} {out}", "one that dcmpl did not make", NEW_PLACE)


def check_results_replace(folder: Path, records: Sequence[str], names: Sequence[str] = ()) -> None:
    """Check that results replace nothing but results, of which a record bears our mark."""
    there = [name for name in (*records, *names) if os.path.lexists(folder / name)]
    if there and not any(_is_marked(folder / name) for name in records):
        raise UsageError(
            f"a folder at --out {folder} without a {there[0]} of others",
            "one that dcmpl did not make",
            "choose another --out, or delete it",
        )


def _is_marked(path: Path) -> bool:
    """Whether a file bears the mark of what dcmpl makes."""
    from dcmpl.files import MADE_BY

    if not path.is_file():
        return False
    with path.open("rb") as file:
        return MADE_BY.encode() in file.read(MARK_BYTES)


def check_scores_replace(out: str) -> None:
    """Check that scores replace nothing but scores: their manifest is beside them."""
    from dcmpl.scoring.files import manifest_of

    if about(out) is not None and about(manifest_of(out)) is None:
        raise UsageError(f"a new file at -o {out}", "one that dcmpl score did not write", NEW_PLACE)


MARK_BYTES, NEW_PLACE = 2**12, "choose another -o, or delete it"


def read_data(arguments: Arguments, path: str) -> "ImageTable":
    """The table at ``path``; its irregularities are printed."""
    from dcmpl.data.datasets import load_table

    table = load_table(path, mos_scale(arguments), columns_of(arguments))
    for note in table.notes:
        say(f"note: {table.name}: {note}")
    return table


def source_of(arguments: Arguments, table: "ImageTable", path: str) -> "DataSource":
    from dcmpl.runs import DataSource

    place, columns = str(Path(path).absolute()), columns_of(arguments)
    return DataSource(place, table.name, table.scale, table.digest, columns)


def say_leaks(split: "Split", table: "ImageTable", facts: "Facts") -> None:
    """Check a split for leaks; print those that its protocol commits by design."""
    from dcmpl.data.leaks import check_leaks
    from dcmpl.data.splits import PROTOCOLS

    protocol = PROTOCOLS.get(split.protocol)
    for note in check_leaks(split, table, facts, protocol.leaks if protocol else frozenset()):
        say(f"leak, as the protocol {split.protocol} has it: {note}")


LEAST_KEY = 16


def key_in(file: Path) -> str:
    """Key of a service in ``file``; raises :class:`UsageError` where there is none."""
    try:
        key = file.read_bytes()[: 2**16].decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"a key in the file {file}", getattr(error, "strerror", "") or error
        ) from error
    if not LEAST_KEY <= len(key) <= 1024 or not (key.isascii() and key.isprintable()) or " " in key:
        raise UsageError(
            f"a key of {LEAST_KEY} to 1024 letters without blanks in {file}", f"{len(key)} letters"
        )
    return key
