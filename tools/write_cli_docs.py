"""Write ``docs/cli.md`` from the program's own help: ``python tools/write_cli_docs.py``."""

import os
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "cli.md"


def cli_docs() -> str:
    """The page, from the parsers."""
    os.environ["COLUMNS"] = "100"  # argparse wraps to the terminal it finds
    from dcmpl.cli.main import COMMANDS, command_of, overview, parser_of

    parts = ["# Every flag\n\nWritten by `make docs` from the program; a test keeps it true.\n"]
    helps = {"dcmpl": overview()}
    for name in COMMANDS:
        helps[f"dcmpl {name}"] = parser_of(name, command_of(name)).format_help()
    for name, text in helps.items():
        parts.append(f"## {name}\n\n```text\n{text.rstrip()}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(cli_docs())
