"""The words of every command, as parsers; nothing here imports torch or pandas."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Literal, Optional, get_type_hints

from jsonargparse import ArgumentParser

from dcmpl import __version__
from dcmpl.config import COLUMNS, PROTOCOLS, RECIPES, TARGETS, TrainConfig
from dcmpl.presets import PRESETS
from dcmpl.score_parsers import (
    add_common,
    add_device,
    explain_parser,
    export_parser,
    merge_parser,
    plain_parser,
    score_parser,
)
from dcmpl.usage import flag

__all__ = ["COMMANDS", "GROUPS", "POSITIONAL", "build_parser"]

DATA = "folder of a published data set, or a table: image, prompt, mos_quality, ..."


def _recipe_defaults(name: str) -> str:
    """``default: 50; 30 for tiny``, from the recipes themselves."""
    paper = getattr(RECIPES["paper"], name)
    others = [
        f"{getattr(recipe, name)} for {backbone}"
        for backbone, recipe in RECIPES.items()
        if getattr(recipe, name) != paper
    ]
    return "; ".join([f"default: {'none' if paper is None else paper}", *others])


def _add_data(parser: ArgumentParser, what: str, required: bool = True) -> None:
    parser.add_argument("--data", type=str, required=required, metavar="PATH", help=what)
    _add_own_table(parser)


def _add_own_table(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--mos-scale",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="worst and best value of the MOS in a table of your own",
    )
    parser.add_argument(
        "--columns",
        type=str,
        nargs="+",
        default=[],
        metavar="OURS=THEIRS",
        help=f"names of {', '.join(COLUMNS)} in that table",
    )


def _add_backbone(parser: ArgumentParser) -> None:
    """Also the device that it computes on."""
    add_device(parser)
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
    parser = plain_parser(description="Train on a data set; writes a run folder.")
    add_common(parser)
    _add_data(parser, DATA)
    parser.add_argument("--out", type=str, required=True, metavar="RUN", help="run folder to make")
    parser.add_argument(
        "--protocol",
        type=str,
        metavar="NAME",
        help=f"how pictures are dealt out, of {', '.join(PROTOCOLS)} (default: clean)",
    )
    parser.add_argument(
        "--split", type=str, metavar="FILE", help="a split that dcmpl data split wrote"
    )
    _add_model(parser)
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    _add_recipe(parser)
    return parser


def _add_model(parser: ArgumentParser) -> None:
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
    parser.add_argument(
        "--tasks",
        type=dict[str, Any],
        default={},
        metavar="{NAME: [GOOD, BAD]}",
        help="further targets, each a column mos_NAME of the data with its positive and negative "
        "word; in YAML, tasks: {realism: [realistic photo, fake photo]}",
    )
    parser.add_argument(
        "--targets",
        type=str,
        nargs="+",
        metavar="TARGET",
        help=f"what to learn, of {', '.join(TARGETS)}, the main one first (default: the preset's, "
        "and authenticity where the data has it and the preset has several)",
    )


def _ablate_parser() -> ArgumentParser:
    parser = plain_parser(
        description="Train and test presets and options on the same prompt-grouped splits."
    )
    add_common(parser)
    _add_data(parser, DATA)
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
    parser = plain_parser(description="Make a run of the files that CLIP-AGIQA's script saved.")
    add_common(parser)
    parser.add_argument(
        "--aux", type=str, required=True, metavar="FILE", help="auxiliary learner, ..._aux_best.pth"
    )
    parser.add_argument("--main", type=str, metavar="FILE", help="main learner, ..._tar_best.pth")
    _add_backbone(parser)
    parser.add_argument("--out", type=str, required=True, metavar="RUN", help="run folder to make")
    return parser


def _presets_parser() -> ArgumentParser:
    parser = plain_parser(description="List the presets and the fields that --set may change.")
    add_common(parser)
    return parser


def _evaluate_parser() -> ArgumentParser:
    parser = plain_parser(
        description="Measure a run against human scores; or, with --protocol, train and measure "
        "repeats of protocols beside clean. What is finished is kept."
    )
    add_common(parser)
    parser.add_argument(
        "run", type=Optional[str], nargs="?", metavar="RUN", help="folder made by dcmpl train"
    )
    _add_data(parser, "another data set than the run's own, or that of the protocols", False)
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
    parser.add_argument(
        "--protocol",
        type=str,
        nargs="+",
        metavar="NAME",
        help=f"of {', '.join(PROTOCOLS)}; clean is always run too",
    )
    parser.add_argument(
        "--repeats", type=int, default=10, help="splits of each protocol (default: %(default)s)"
    )
    _add_model(parser)
    _add_recipe(parser, leave_out=("seed",))
    return parser


def _info_parser() -> ArgumentParser:
    parser = plain_parser(
        description="Show what a run is, what its scores mean, how sure they are, where to cut."
    )
    add_common(parser)
    parser.add_argument("run", type=str, metavar="RUN", help="folder made by dcmpl train")
    return parser


def _compare_parser() -> ArgumentParser:
    parser = plain_parser(description="Set runs beside what others published, like beside like.")
    add_common(parser)
    parser.add_argument(
        "runs", type=str, nargs="+", metavar="RUN", help="measured runs, or protocols' --out"
    )
    parser.add_argument(
        "--out", type=str, metavar="DIR", help="where the tables go (default: the first RUN)"
    )
    return parser


def _cross_parser() -> ArgumentParser:
    parser = plain_parser(description="Train on each data set, test on all: a matrix.")
    add_common(parser)
    parser.add_argument(
        "--data", type=str, nargs="+", required=True, metavar="PATH", help=f"several: {DATA}"
    )
    _add_own_table(parser)
    parser.add_argument("--out", type=str, required=True, metavar="DIR", help="runs and tables")
    _add_model(parser)
    _add_recipe(parser)
    return parser


def _data_parser(about: str) -> ArgumentParser:
    parser = plain_parser(description=about)
    add_common(parser)
    parser.add_argument("path", type=str, metavar="PATH", help=DATA)
    _add_own_table(parser)
    return parser


def _data_check_parser() -> ArgumentParser:
    return _data_parser("Count against the published figures and decode every picture.")


def _data_show_parser() -> ArgumentParser:
    parser = _data_parser("Write a page: opinions, generators, pictures from worst to best.")
    parser.add_argument("-o", "--out", type=str, required=True, metavar="FILE", help=".html")
    return parser


def _data_split_parser() -> ArgumentParser:
    parser = _data_parser("Write the splits of a protocol as files.")
    parser.add_argument(
        "--protocol",
        type=str,
        default="clean",
        metavar="NAME",
        help=f"of {', '.join(PROTOCOLS)} (default: %(default)s)",
    )
    parser.add_argument(
        "--repeats", type=int, default=1, help="how many splits (default: %(default)s)"
    )
    parser.add_argument("--out", type=str, required=True, metavar="DIR", help="folder of the files")
    return parser


POSITIONAL = {"run": "RUN", "runs": "RUN", "path": "PATH", "paths": "PATH", "scores": "FILE"}

GROUPS = {"data": "check, show and split data sets"}

COMMANDS = {
    "train": (_train_parser, "learn from human scores"),
    "evaluate": (_evaluate_parser, "measure a run on prompts it has never seen, or protocols"),
    "compare": (_compare_parser, "set runs beside published numbers"),
    "cross": (_cross_parser, "train on one data set, test on another"),
    "info": (_info_parser, "what a run is, what its scores mean, where to cut"),
    "explain": (explain_parser, "where a picture looks bad, and which words it does not show"),
    "score": (score_parser, "score pictures"),
    "merge": (merge_parser, "join the scores of shards"),
    "export": (export_parser, "make models that need no torch"),
    "presets": (_presets_parser, "list the published variants"),
    "ablate": (_ablate_parser, "compare variants over repeated splits"),
    "import": (_import_parser, "make a run of CLIP-AGIQA's published files"),
    "data check": (_data_check_parser, "is the copy whole?"),
    "data show": (_data_show_parser, "what is in it, as a page"),
    "data split": (_data_split_parser, "write splits as files"),
}
"""By the words they are called with."""


def build_parser() -> ArgumentParser:
    """The whole command line."""
    parser = plain_parser(
        prog="dcmpl",
        description="Score AI-generated images: how good each looks, how well it follows its text.",
    )
    parser.add_argument("--version", action="version", version=f"dcmpl {__version__}")
    commands = parser.add_subcommands(dest="command", title="commands")
    for name, (build, about) in COMMANDS.items():
        if " " not in name:
            commands.add_subcommand(name, build(), help=about)
    for group, about in GROUPS.items():
        below = plain_parser(description=about)
        commands.add_subcommand(group, below, help=about)
        actions = below.add_subcommands(dest="action", title="commands")
        for name, (build, told) in COMMANDS.items():
            if name.startswith(f"{group} "):
                actions.add_subcommand(name.removeprefix(f"{group} "), build(), help=told)
    return parser
