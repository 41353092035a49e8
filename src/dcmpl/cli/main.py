"""The command ``dcmpl``: find the command, read its flags, run it.

A command is one file of this folder; :data:`COMMANDS` says which. Only that file is imported,
and it imports torch only where its work begins. Exit codes: 0 done, 1 failed, 2 wrong usage,
3 done but for some images, 130 interrupted.
"""

import argparse
import io
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from dcmpl import __version__
from dcmpl.cli.options import COMMON, Arguments, Command, Flag
from dcmpl.errors import DcmplError, RunError, UsageError, nearest
from dcmpl.files import read_yaml
from dcmpl.progress import leave, say
from dcmpl.storage import (
    StoreError,
    fetched,
    fetched_file,
    fetched_table,
    is_url,
    reason_of,
)

__all__ = ["COMMANDS", "command_of", "main", "overview", "parse", "parser_of"]

COMMANDS = {
    "train": ("train", "learn from human scores"),
    "evaluate": ("evaluate", "measure a run on prompts it has never seen"),
    "benchmark": ("benchmark", "train and test presets, grids and protocols over repeats"),
    "compare": ("compare", "set runs beside published numbers"),
    "score": ("score", "score images"),
    "serve": ("serve", "score images over HTTP, and on a page in the browser"),
    "merge": ("score", "join the scores of shards"),
    "select": ("select", "keep, copy or move the best of what was scored"),
    "export": ("convert", "make models that need no torch"),
    "explain": ("explain", "where an image looks bad, and which words it does not show"),
    "info": ("info", "what a run is, what its scores mean, where to cut"),
    "presets": ("info", "list the published variants and every field"),
    "import": ("convert", "make a run of CLIP-AGIQA's published files"),
    "data check": ("data", "is the copy whole?"),
    "data show": ("data", "what is in it, as a page"),
    "data split": ("data", "write splits as files"),
}
"""By the words it is called with: the file that holds a command, and what it does."""

GROUPS = {name.split()[0] for name in COMMANDS if " " in name}
MAX_CONFIG_BYTES = 2**20


class _Parser(argparse.ArgumentParser):
    """Parser that raises :class:`UsageError` in place of printing and exiting."""

    def error(self, message: str) -> Any:
        raise argparse.ArgumentError(None, message)


def command_of(name: str) -> Command:
    """The :class:`Command` called ``name``."""
    module = import_module(f"dcmpl.cli.{COMMANDS[name][0]}")
    found: Command = getattr(module, name.split()[-1].upper())
    return found


def overview() -> str:
    """Text of ``dcmpl --help``."""
    rows = "\n".join(f"  {name:12} {about}" for name, (_, about) in COMMANDS.items())
    return (
        "usage: dcmpl COMMAND ...\n\n"
        "Score AI-generated images: how good each looks, how well it follows its prompt.\n\n"
        f"commands:\n{rows}\n\noptions:\n"
        "  -h, --help   this page; dcmpl COMMAND --help has the flags of a command\n"
        "  --version    the version of dcmpl"
    )


def parser_of(name: str, command: Command, helping: bool = True) -> argparse.ArgumentParser:
    """The parser of one command.

    With ``helping`` its help says what is needed; without, nothing is, since :func:`parse`
    names what is missing in one sentence.
    """
    parser = _Parser(
        prog=f"dcmpl {name}",
        description=command.about,
        allow_abbrev=False,
        exit_on_error=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for flag in (*command.flags, *COMMON):
        options: dict[str, Any] = {"help": flag.help_text.replace("%", "%%")}
        if flag.kind is bool:
            parser.add_argument(*flag.names, action="store_true", default=None, **options)
            continue
        nargs: Any = flag.count
        if not helping and flag.positional:
            nargs = "*" if nargs == "+" else "?"
        if flag.positional:
            shown = {"metavar": flag.metavar}
        else:
            shown = {"metavar": flag.metavar, "dest": flag.dest}
            options["required"] = helping and flag.required
        if flag.count == "+" and not flag.positional:
            options["action"] = "extend"  # the flag may be given again
        names = [flag.dest] if flag.positional else flag.names
        parser.add_argument(*names, nargs=nargs, default=None, **shown, **options)
    return parser


def _name_in(words: Sequence[str]) -> tuple[str, list[str]]:
    """The command that ``words`` begin with, and its own words."""
    if words and words[0].startswith("-") and not {"-h", "--help", "--version"} & {words[0]}:
        named = next((w for w in words if w in COMMANDS or w in GROUPS), "the command")
        raise UsageError(f"flags after {named}", f"{words[0]} before it")
    length = 2 if words and words[0] in GROUPS else 1
    name = " ".join(words[:length])
    if name not in COMMANDS:
        hint = nearest(name, COMMANDS, "see dcmpl --help")
        raise UsageError(f"a command ({', '.join(COMMANDS)})", name or "none", hint)
    return name, list(words[length:])


def parse(words: Sequence[str]) -> tuple[Command, Arguments]:
    """The command and its arguments; raises :class:`UsageError` for what does not fit."""
    name, own = _name_in(words)
    command = command_of(name)
    flags = {flag.dest: flag for flag in (*command.flags, *COMMON)}
    parser = parser_of(name, command, helping=bool({"-h", "--help"} & {*own}))
    try:
        found, strange = parser.parse_known_args(own)
    except argparse.ArgumentError as error:
        raise _wrong_count(name, flags, error) from error
    if strange:
        word = next((w for w in strange if w.startswith("-")), strange[0]).split("=")[0]
        hint = nearest(word, [n for f in flags.values() for n in f.names], _see(name))
        raise UsageError(f"a flag of dcmpl {name}", word, hint)
    given = {dest: value for dest, value in vars(found).items() if value not in (None, [])}
    if "config" in given:
        given = {**_configuration(str(given["config"]), flags, name), **given}
    arguments = Arguments()
    for dest, flag in flags.items():
        value = flag.read(given[dest]) if dest in given else flag.default
        setattr(arguments, dest, value)
    missing = [flag for dest, flag in flags.items() if flag.required and dest not in given]
    if missing and not arguments.print_config:
        names = ", ".join(flag.metavar if flag.positional else flag.names[-1] for flag in missing)
        raise UsageError(f"{names} for dcmpl {name}", "none", _see(name))
    return command, arguments


def _see(name: str) -> str:
    return f"see dcmpl {name} --help"


def _wrong_count(name: str, flags: Mapping[str, Flag], error: argparse.ArgumentError) -> UsageError:
    """Sentence for argparse's own errors: a wrong number of values behind a flag."""
    word = (error.argument_name or "").split("/")[-1]
    flag = next((f for f in flags.values() if word in f.names), None)
    if flag is None:
        return UsageError(f"other arguments for dcmpl {name}", reason=error)
    words = {"None": "a value", "+": "one or more values"}
    wanted = words.get(str(flag.count), f"{flag.count} values")
    return UsageError(f"{wanted} after {word}", "more or fewer", _see(name))


def _configuration(path: str, flags: Mapping[str, Flag], name: str) -> dict[str, Any]:
    """Values of a YAML file as words of the command line."""
    try:
        record = read_yaml(Path(path), MAX_CONFIG_BYTES)
        record = {} if record is None else record
        if not isinstance(record, dict):
            raise ValueError(f"a {type(record).__name__} and no mapping from flags to values")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UsageError(f"a YAML file at --config {path}", reason=reason) from error
    found = {}
    for key, value in record.items():
        dest = str(key).replace("-", "_")
        if dest not in flags or dest in ("config", "print_config"):
            hint = nearest(str(key), flags, _see(name))
            raise UsageError(f"flags of dcmpl {name} in {path}", key, hint)
        if value is not None and value != [] and value is not False:
            found[dest] = flags[dest].written(value)
            flags[dest].read(found[dest])  # also one that the command line replaces
    return found


def _print_config(command: Command, arguments: Arguments) -> None:
    values = {flag.dest: getattr(arguments, flag.dest) for flag in command.flags}
    plain = {
        dest: list(value) if isinstance(value, tuple) else value for dest, value in values.items()
    }
    print(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True), end="")


def _run(words: Sequence[str]) -> int:
    if words and words[0] in ("-h", "--help"):
        print(overview())
        return 0
    if words and words[0] == "--version":
        print(f"dcmpl {__version__}")
        return 0
    command, arguments = parse(words)
    if arguments.print_config:
        _print_config(command, arguments)
        return 0
    _bring(command, arguments)
    return command.run(arguments)


PLACES = ("DIR", "FILE", "IMAGE", "PATH", "RUN", "SCORES")
"""What flags call the paths that they take."""

COPIES = {"folder": fetched, "file": fetched_file, "table": fetched_table}


def _bring(command: Command, arguments: Arguments) -> None:
    """Put copies in the place of what URLs name, for what a command does not read there itself.

    Raises :class:`UsageError` where a flag takes no URL.
    """
    for flag in command.flags:
        if flag.metavar in PLACES and flag.at_url != "read":
            value = getattr(arguments, flag.dest)
            if isinstance(value, str):
                setattr(arguments, flag.dest, _here(flag, value, arguments))
            elif value:
                setattr(arguments, flag.dest, tuple(_here(flag, p, arguments) for p in value))


def _here(flag: Flag, path: str, arguments: Arguments) -> str:
    """Path of this machine for what a flag names."""
    if not is_url(path):
        return path
    name = flag.metavar if flag.positional else flag.name
    if flag.at_url not in COPIES:
        hint = "copy from and to the store with its own programs"
        raise UsageError(f"a path of this machine at {name}", path, hint)
    if flag.positional and getattr(arguments, "out", "") is None:
        raise UsageError(f"--out for the results, with a URL at {name}", "none")
    return str(COPIES[flag.at_url](path))


def _open_streams() -> None:
    """Open what was closed to nowhere, or the next file would take its number and our notes."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _say_traceback() -> None:
    for line in traceback.format_exc().splitlines():
        say(line)


def _answered(words: list[str]) -> int:
    """Run one command; a store that does not answer is an error like any other."""
    try:
        return _run(words)
    except StoreError as error:
        raise RunError("an object store that answers", reason=reason_of(error)) from error


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file name may hold bytes that are no text
        sys.stdout.reconfigure(errors="backslashreplace")
    _open_streams()
    code = 0
    try:
        code = _answered(words)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever reads has enough
        leave(sys.stdout)
        return code
    except DcmplError as error:
        if "--debug" in words:
            _say_traceback()
        for line in f"dcmpl: {error}".split("\n"):  # a hint may list what is wrong
            say(line)
        return error.exit_code
    except KeyboardInterrupt as interrupt:
        reason = str(interrupt) or "what was written so far is whole"
        say(f"dcmpl: interrupted; {reason}")
        return 130
    except Exception as error:
        if "--debug" in words:
            _say_traceback()
        reason = " ".join(str(error).split()) or "no message"
        kind = type(error).__name__
        say(f"dcmpl: unexpected {kind}: {reason}; run again with --debug for the traceback")
        return 1
