"""The words of the commands that score: score, merge, export; and what all parsers share."""

import argparse
from typing import Any, Literal, Optional

from jsonargparse import ArgumentParser

from dcmpl.data.sources import PROMPTS_FROM
from dcmpl.model.tokenizer import LONG_PROMPTS
from dcmpl.scoring.engines import ENGINES, PRECISIONS

__all__ = [
    "add_common",
    "add_device",
    "explain_parser",
    "export_parser",
    "merge_parser",
    "plain_parser",
    "score_parser",
]


def plain_parser(**options: Any) -> ArgumentParser:
    return ArgumentParser(
        exit_on_error=False,
        allow_abbrev=False,
        default_env=False,
        formatter_class=argparse.HelpFormatter,
        **options,
    )


def add_common(parser: ArgumentParser) -> None:
    parser.add_argument("--config", action="config", help="YAML file with any of these flags")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def add_device(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--device",
        type=str,
        default="auto",
        metavar="{auto,cpu,cuda,cuda:N,mps}",
        help="what computes (default: a GPU where there is one)",
    )


def score_parser() -> ArgumentParser:
    parser = plain_parser(
        description="Score pictures with a run or an exported model. Every picture gets a row; "
        "what is finished is kept."
    )
    add_common(parser)
    parser.add_argument(
        "paths",
        type=str,
        nargs="+",
        metavar="PATH",
        help="file, folder, glob, zip or tar archive, or a list (CSV, JSONL, Parquet, ...)",
    )
    parser.add_argument(
        "--model", type=str, required=True, metavar="DIR", help="run folder, or an exported one"
    )
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument("--prompt", type=str, metavar="TEXT", help="prompt of all the pictures")
    prompts.add_argument("--prompts", type=str, metavar="FILE", help="table: image, prompt")
    prompts.add_argument(
        "--prompt-from",
        type=str,
        metavar=f"{{{','.join(PROMPTS_FROM)}}}",
        help="NAME.txt beside each picture, or what generators write into PNG files",
    )
    parser.add_argument(
        *("-o", "--out"),
        type=str,
        required=True,
        metavar="FILE",
        help=".csv, .jsonl or .parquet; - for JSON lines on standard output",
    )
    parser.add_argument(
        "--long-prompts",
        type=Literal["truncate", "window", "error"],
        default="truncate",
        metavar=f"{{{','.join(LONG_PROMPTS)}}}",
        help="where prompts are read: drop the end of one too long, average over parts that "
        "overlap, or make its row an error (default: %(default)s)",
    )
    parser.add_argument(
        "--against",
        type=str,
        metavar="GENERATOR",
        help="also percentiles among its training pictures; dcmpl info lists them",
    )
    _add_speed(parser)
    _add_selection(parser)
    parser.add_argument(
        "--resume", action="store_true", help="go on with a scoring that was broken off"
    )
    parser.add_argument(
        "--shard", type=str, metavar="I/N", help="score the I-th of N parts; dcmpl merge joins them"
    )
    return parser


def _add_speed(parser: ArgumentParser) -> None:
    add_device(parser)
    parser.add_argument(
        "--engine",
        type=Literal["auto", "torch", "onnx", "openvino"],
        default="auto",
        metavar=f"{{auto,{','.join(ENGINES)}}}",
        help="what computes; onnx and openvino run exported models (default: the fastest here)",
    )
    parser.add_argument(
        "--precision",
        type=Literal["fp32", "bf16", "int8"],
        default="fp32",
        metavar=f"{{{','.join(PRECISIONS)}}}",
        help="of the towers' products (default: %(default)s)",
    )
    parser.add_argument(
        "--views",
        type=str,
        metavar="NAME",
        help="windows (the paper's), center, resize, grid-N, or auto: the fewest that were found "
        "to be enough (default: as the model was measured)",
    )
    parser.add_argument(
        "--targets",
        type=str,
        nargs="+",
        metavar="TARGET",
        help="what to predict (default: all that was learned)",
    )
    parser.add_argument(
        "--workers",
        type=Optional[int],
        metavar="N",
        help="threads that decode and compute, a core each (default: all cores)",
    )
    parser.add_argument(
        "--backbone", type=str, metavar="DIR", help="where the run's backbone lies now"
    )


def _add_selection(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--by",
        type=str,
        default="quality",
        metavar="TARGET",
        help="what best means in the flags below: a target, or a number that goes with one, as "
        "quality_mos (default: %(default)s)",
    )
    parser.add_argument("--sort", action="store_true", help="write the best first")
    parser.add_argument(
        "--rank",
        action="store_true",
        help="pictures of one prompt: the best first, with the chance that people prefer each to "
        "the next, and what is too close to call",
    )
    parser.add_argument(
        "--top", type=Optional[int], metavar="K", help="write the K best only, the best first"
    )
    parser.add_argument(
        "--copy-top",
        type=str,
        nargs=2,
        metavar=("K", "DIR"),
        help="copy the K best pictures into a folder",
    )
    parser.add_argument(
        "--move-below",
        type=str,
        nargs=2,
        metavar=("SCORE", "DIR"),
        help="move pictures with a lower score into a folder",
    )


def explain_parser() -> ArgumentParser:
    parser = plain_parser(
        description="Draw where a picture looks bad, and which words of its prompt it lacks."
    )
    add_common(parser)
    parser.add_argument("image", type=str, metavar="IMAGE", help="a picture")
    add_device(parser)
    parser.add_argument("--model", type=str, required=True, metavar="RUN", help="run folder")
    parser.add_argument("--prompt", type=str, metavar="TEXT", help="its prompt")
    parser.add_argument("-o", "--out", type=str, required=True, metavar="FILE", help=".png")
    parser.add_argument(
        "--backbone", type=str, metavar="DIR", help="where the run's backbone lies now"
    )
    return parser


def export_parser() -> ArgumentParser:
    parser = plain_parser(
        description="Make models for ONNX Runtime and OpenVINO of a run: folded, held to torch, "
        "and described in export.json."
    )
    add_common(parser)
    parser.add_argument("run", type=str, metavar="RUN", help="folder made by dcmpl train")
    parser.add_argument("-o", "--out", type=str, required=True, metavar="DIR", help="new folder")
    parser.add_argument(
        "--targets",
        type=str,
        nargs="+",
        metavar="TARGET",
        help="what to predict (default: all that was learned); fewer are faster",
    )
    parser.add_argument(
        "--pictures",
        type=str,
        nargs="+",
        metavar="PATH",
        help="what calibrates int8 and tells drifts (default: the run's validation part)",
    )
    parser.add_argument(
        "--backbone", type=str, metavar="DIR", help="where the run's backbone lies now"
    )
    return parser


def merge_parser() -> ArgumentParser:
    parser = plain_parser(description="Join the scores of all shards of one job.")
    add_common(parser)
    parser.add_argument("scores", type=str, nargs="+", metavar="FILE", help="scores of a shard")
    parser.add_argument(
        "-o", "--out", type=str, required=True, metavar="FILE", help=".csv, .jsonl or .parquet"
    )
    return parser
