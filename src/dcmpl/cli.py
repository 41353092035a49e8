"""The command ``dcmpl``: words to typed functions.

Parsing imports neither torch nor pandas, so that help and mistakes answer at once. Exit
codes: 0 done, 1 failed, 2 wrong usage, 3 done but for some pictures, 130 interrupted.
"""

import argparse
import io
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

from jsonargparse import Namespace

from dcmpl.checks import CHECKS
from dcmpl.errors import DcmplError, UsageError, nearest
from dcmpl.parsers import COMMANDS, GROUPS, POSITIONAL, build_parser
from dcmpl.score_checks import check_device
from dcmpl.usage import Words, explain

__all__ = ["main"]

HOMES = {
    "scoring": ("score", "merge"),
    "commands": ("train",),
    "measuring": ("evaluate", "compare", "cross"),
    "data_commands": ("data check", "data show", "data split"),
    "studies": ("presets", "ablate", "import"),
    "export": ("export",),
    "info": ("info",),
    "explain": ("explain",),
}
"""By module: the commands it holds, so that only what a command needs is imported."""


def command_of(argv: Sequence[str]) -> str | None:
    """The command that ``argv`` names, of one word or of two."""
    for index, word in enumerate(argv):
        if word in GROUPS:
            action = next((w for w in argv[index + 1 :] if not w.startswith("-")), "")
            return f"{word} {action}" if f"{word} {action}" in COMMANDS else None
        if word in COMMANDS:
            return word
    return None


def _wrong_usage(error: Exception, argv: Sequence[str]) -> UsageError:
    """What the parser found wrong, in one sentence, with the nearest word there is."""
    command = command_of(argv)
    if command is None:
        words = [w for w in argv if not w.startswith("-")]
        word = " ".join(words[:2]) if words and words[0] in GROUPS else "".join(words[:1])
        hint = nearest(word, COMMANDS, "see dcmpl --help")
        return UsageError(
            f"expected a command ({', '.join(COMMANDS)}), got {word or 'none'}: {hint}"
        )
    flags = list(COMMANDS[command][0]()._option_string_actions)
    return UsageError(explain(str(error), Words(argv, command, flags, POSITIONAL)))


def parse(argv: Sequence[str]) -> Namespace:
    """Arguments of one command; raises :class:`UsageError` for what does not fit."""
    try:
        arguments = build_parser().parse_args(list(argv))
    except (argparse.ArgumentError, TypeError, ValueError) as error:
        raise _wrong_usage(error, argv) from error
    command, chosen = arguments.command, arguments[arguments.command]
    if command in GROUPS:
        command, chosen = f"{command} {chosen.action}", chosen[chosen.action]
    chosen.command = command
    check_device(chosen)
    CHECKS[command](chosen)
    found: Namespace = chosen
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file name may hold bytes that are no text
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        arguments = parse(words)
        home = next(home for home, names in HOMES.items() if arguments.command in names)
        module = import_module(f"dcmpl.{home}")  # most of them import torch
        code: int = module.COMMANDS[arguments.command](arguments)
        return code
    except DcmplError as error:
        if "--debug" in words:
            traceback.print_exc()
        print(f"dcmpl: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as interrupt:
        told = str(interrupt) or "what was written so far is whole"
        print(f"dcmpl: interrupted; {told}", file=sys.stderr)
        return 130
    except Exception as error:
        if "--debug" in words:
            traceback.print_exc()
        told = " ".join(str(error).split()) or "no message"
        print(
            f"dcmpl: unexpected {type(error).__name__}: {told}; "
            "run again with --debug for the traceback",
            file=sys.stderr,
        )
        return 1
