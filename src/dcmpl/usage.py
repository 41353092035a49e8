"""What is told of a command: what the parser found wrong, and what a backbone is worth.

jsonargparse and argparse tell a mistake in several forms; each has one entry in ``MISTAKES``.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dcmpl.errors import nearest

__all__ = ["Words", "explain"]

KINDS = {"int": "a whole number", "float": "a finite number"}
COUNTS = {"one": "a value", "at least one": "one or more values"}


@dataclass(frozen=True)
class Words:
    """What was typed, and what the command would have taken."""

    argv: Sequence[str]
    command: str
    flags: Sequence[str]
    positionals: dict[str, str]

    @property
    def help(self) -> str:
        return f"see dcmpl {self.command} --help"


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _unknown(found: re.Match[str], words: Words) -> str:
    strange = found[1].split()
    word = next((w for w in strange if w.startswith("-")), strange[0]).split("=")[0]
    if word in words.argv[: words.argv.index(words.command.split()[-1])]:
        return f"expected flags after {words.command}, got {word} before it"
    hint = nearest(word, words.flags, words.help)
    return f"expected a flag of dcmpl {words.command}, got {word}: {hint}"


def _missing(found: re.Match[str], words: Words) -> str:
    prefix = words.command.replace(" ", ".") + "."
    names = [name.strip().removeprefix(prefix) for name in found[1].split(",")]
    wanted = ", ".join(words.positionals.get(name) or flag(name) for name in names)
    return f"expected {wanted} for dcmpl {words.command}, got none; {words.help}"


def _configuration(found: re.Match[str], words: Words) -> str:
    at = words.argv.index("--config") + 1 if "--config" in words.argv[:-1] else None
    file = words.argv[at] if at else ""
    return f"expected a YAML file at --config {file}, got: {found[1] or 'no such file'}"


def _count(found: re.Match[str], words: Words) -> str:
    wanted = COUNTS.get(found[2], f"{found[2]} values")
    return f"expected {wanted} after {found[1]}, got more or fewer; {words.help}"


def _both(found: re.Match[str], words: Words) -> str:
    return f"expected {found[2]} or {found[1]}, got both: leave one out"


def _value(found: re.Match[str], words: Words) -> str:
    told = found.string
    kinds = re.search(r"Literal\[([^\]]*)\]", told) or re.search(r"class '(\w+)'", told)
    wanted = KINDS.get(kinds[1], kinds[1]) if kinds else "another value"
    return f"expected {wanted} for {flag(found[1])}, got {found[2]}"


MISTAKES: dict[str, Callable[[re.Match[str], Words], str]] = {
    r"[Uu]nrecognized arguments: (.*)": _unknown,
    r"arguments are required: (.*)": _missing,
    r"Problems parsing config: (.*)|config\": File does not exist": _configuration,
    r"argument (?:-\w/)?(--[\w-]+): expected (.*) arguments?$": _count,
    r"argument (--[\w-]+): not allowed with argument (--[\w-]+)": _both,
    r'Parser key "(?:\w+\.)?(\w+)"[^:]*:.*(?:Given value|Got value): (.*)$': _value,
}


def explain(told: str, words: Words) -> str:
    """One sentence for what the parser ``told``."""
    told = " ".join(told.split())
    for pattern, sentence in MISTAKES.items():
        if found := re.search(pattern, told):
            return sentence(found, words)
    return f"expected other arguments for dcmpl {words.command}: {told}"
