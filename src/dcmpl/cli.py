"""The command ``dcmpl``: words to typed functions.

Parsing imports neither torch nor pandas, so that help and mistakes answer at once. Exit
codes: 0 done, 1 failed, 2 wrong usage, 3 done but for some pictures, 130 interrupted.
"""

import argparse
import sys
import traceback
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Literal, Optional, get_type_hints

from jsonargparse import ArgumentParser, Namespace

from dcmpl import __version__
from dcmpl.checks import CHECKS
from dcmpl.config import COLUMNS, RECIPES, TrainConfig
from dcmpl.errors import DcmplError, UsageError
from dcmpl.presets import PRESETS
from dcmpl.usage import Words, explain, flag, nearest

__all__ = ["build_parser", "main"]


def _parser(**options: Any) -> ArgumentParser:
    return ArgumentParser(
        exit_on_error=False,
        allow_abbrev=False,
        default_env=False,
        formatter_class=argparse.HelpFormatter,
        **options,
    )


def _recipe_defaults(name: str) -> str:
    """``default: 50; 30 for tiny``, from the recipes themselves."""
    paper = getattr(RECIPES["paper"], name)
    others = [
        f"{getattr(recipe, name)} for {backbone}"
        for backbone, recipe in RECIPES.items()
        if getattr(recipe, name) != paper
    ]
    return "; ".join([f"default: {'none' if paper is None else paper}", *others])


def _add_common(parser: ArgumentParser) -> None:
    parser.add_argument("--config", action="config", help="YAML file with any of these flags")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def _add_data(parser: ArgumentParser, required: bool, what: str) -> None:
    parser.add_argument("--data", type=str, required=required, metavar="PATH", help=what)
    parser.add_argument(
        "--mos-scale",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="worst and best value of the MOS in a CSV of your own",
    )
    parser.add_argument(
        "--columns",
        type=str,
        nargs="+",
        default=[],
        metavar="OURS=THEIRS",
        help=f"names of {', '.join(COLUMNS)} in that CSV",
    )


def _add_backbone(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--backbone",
        type=str,
        default="tiny",
        help="tiny, a folder, or a Hugging Face id (default: %(default)s)",
    )


def _add_recipe(parser: ArgumentParser, leave_out: Sequence[str] = ()) -> None:
    types = get_type_hints(TrainConfig)
    for field in fields(TrainConfig):
        if field.name not in leave_out:
            about = f"{field.metadata['help']} ({_recipe_defaults(field.name)})"
            parser.add_argument(flag(field.name), type=Optional[types[field.name]], help=about)


def _train_parser() -> ArgumentParser:
    parser = _parser(description="Train on a data set; writes a run folder.")
    _add_common(parser)
    _add_data(parser, True, "folder of AGIQA-3K, or a CSV: image, prompt, mos_quality, ...")
    parser.add_argument("--out", type=str, required=True, metavar="RUN", help="run folder to make")
    parser.add_argument(
        "--preset",
        type=str,
        default="dcmpl",
        help=f"of {', '.join(PRESETS)} (default: %(default)s)",
    )
    _add_backbone(parser)
    parser.add_argument(
        "--set",
        type=str,
        nargs="+",
        default=[],
        metavar="model.FIELD=VALUE",
        help="change fields of the preset, as in model.mpa.form=joint; dcmpl presets lists them",
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    _add_recipe(parser)
    return parser


def _ablate_parser() -> ArgumentParser:
    parser = _parser(
        description="Train and test presets and options on the same prompt-grouped splits."
    )
    _add_common(parser)
    _add_data(parser, True, "folder of AGIQA-3K, or a CSV: image, prompt, mos_quality, ...")
    parser.add_argument(
        "--grid", type=str, required=True, metavar="FILE", help="YAML file of the variants"
    )
    parser.add_argument(
        "--repeats", type=int, default=5, help="splits, of seeds 0, 1, ... (default: %(default)s)"
    )
    parser.add_argument(
        "--out", type=str, required=True, metavar="DIR", help="results; what is there is kept"
    )
    _add_backbone(parser)
    _add_recipe(parser, leave_out=("seed",))
    return parser


def _import_parser() -> ArgumentParser:
    parser = _parser(description="Make a run of the files that CLIP-AGIQA's script saved.")
    _add_common(parser)
    parser.add_argument(
        "--aux", type=str, required=True, metavar="FILE", help="auxiliary learner, ..._aux_best.pth"
    )
    parser.add_argument("--main", type=str, metavar="FILE", help="main learner, ..._tar_best.pth")
    _add_backbone(parser)
    parser.add_argument("--out", type=str, required=True, metavar="RUN", help="run folder to make")
    return parser


def _presets_parser() -> ArgumentParser:
    parser = _parser(description="List the presets and the fields that --set may change.")
    _add_common(parser)
    return parser


def _evaluate_parser() -> ArgumentParser:
    parser = _parser(description="Measure a run against human scores.")
    _add_common(parser)
    parser.add_argument("run", type=str, metavar="RUN", help="folder made by dcmpl train")
    _add_data(parser, False, "another data set than the run's own")
    parser.add_argument(
        "--split",
        type=Optional[Literal["test", "val", "train", "all"]],
        metavar="{test,val,train,all}",
        help="part of the data (default: test of the run's own data, all of another)",
    )
    parser.add_argument(
        "--out",
        type=str,
        metavar="DIR",
        help="where the results go (default: RUN for its test part)",
    )
    return parser


def _score_parser() -> ArgumentParser:
    parser = _parser(description="Score pictures with a trained run.")
    _add_common(parser)
    parser.add_argument("paths", type=str, nargs="+", metavar="PATH", help="file, folder or glob")
    parser.add_argument("--model", type=str, required=True, metavar="RUN", help="run folder")
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument("--prompt", type=str, metavar="TEXT", help="prompt of all the pictures")
    prompts.add_argument("--prompts", type=str, metavar="FILE", help="CSV: image, prompt")
    parser.add_argument(
        "-o", "--out", type=str, required=True, metavar="FILE", help=".csv, .jsonl or .parquet"
    )
    return parser


POSITIONAL = {"run": "RUN", "paths": "PATH"}

COMMANDS = {
    "train": (_train_parser, "learn from human scores"),
    "evaluate": (_evaluate_parser, "measure a run on prompts it has never seen"),
    "score": (_score_parser, "score pictures"),
    "presets": (_presets_parser, "list the published variants"),
    "ablate": (_ablate_parser, "compare variants over repeated splits"),
    "import": (_import_parser, "make a run of CLIP-AGIQA's published files"),
}


def build_parser() -> ArgumentParser:
    """The whole command line."""
    parser = _parser(
        prog="dcmpl",
        description="Score AI-generated images: how good each looks, how well it follows its text.",
    )
    parser.add_argument("--version", action="version", version=f"dcmpl {__version__}")
    commands = parser.add_subcommands(dest="command", title="commands")
    for name, (build, about) in COMMANDS.items():
        commands.add_subcommand(name, build(), help=about)
    return parser


def _wrong_usage(error: Exception, argv: Sequence[str]) -> UsageError:
    """What the parser found wrong, in one sentence, with the nearest word there is."""
    command = next((word for word in argv if word in COMMANDS), None)
    if command is None:
        word = next((w for w in argv if not w.startswith("-")), "")
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
    chosen: Namespace = arguments[arguments.command]
    chosen.command = arguments.command
    CHECKS[arguments.command](chosen)
    return chosen


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        arguments = parse(words)
        from dcmpl import commands, studies  # import torch

        return {**commands.COMMANDS, **studies.COMMANDS}[arguments.command](arguments)
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
