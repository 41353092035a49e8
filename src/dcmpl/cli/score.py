"""``dcmpl score`` and ``dcmpl merge``: images to a file of scores; shards to the whole."""

import os
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dcmpl.cli.options import (
    DEVICE,
    MOVED_BACKBONE,
    Arguments,
    Command,
    Flag,
    check_device,
    check_not_read,
    check_scores_replace,
    check_scoring_model,
    check_targets,
    key_in,
)
from dcmpl.config import MOST_WORKERS, TARGETS, check_views
from dcmpl.data.lists import LISTS
from dcmpl.errors import DataError, RunError, UsageError
from dcmpl.progress import say
from dcmpl.storage import about, is_folder, is_url, reason_of
from dcmpl.weights import model_folder, warn_of_model

if TYPE_CHECKING:
    from dcmpl.data.sources import Source
    from dcmpl.scoring.judge import Judge
    from dcmpl.scoring.scorer import Scorer

__all__ = ["MERGE", "SCORE"]

OPTIONS = (
    "backbone",
    "device",
    "engine",
    "precision",
    "views",
    "targets",
    "workers",
    "long_prompts",
    "against",
)
"""Flags that are options of a scorer on this machine."""

FORMATS = (".csv", ".jsonl", ".parquet")
PROMPTS = ("prompt", "prompts", "prompt_from")
"""Flags of which one at most may be given."""

FLAGS = (
    Flag(
        "PATH",
        "file, folder, glob, zip or tar archive, or a list (CSV, JSONL, Parquet, ...)",
        count="+",
        required=True,
        metavar="PATH",
        at_url="read",
    ),
    Flag(
        "--model",
        "run folder, or an exported one (default: the model of the package)",
        metavar="DIR",
        at_url="read",
    ),
    Flag("--url", "service (dcmpl serve) that scores in place of this machine", metavar="URL"),
    Flag("--key-file", "file with the key that the service asks for", metavar="FILE"),
    Flag("--prompt", "prompt of all the images", metavar="TEXT"),
    Flag("--prompts", "table: image, prompt", metavar="FILE", at_url="read"),
    Flag(
        "--prompt-from",
        "NAME.txt beside each image, or what generators write into PNG files",
        choices=("sidecar", "metadata"),
        metavar="{sidecar,metadata}",
    ),
    Flag(
        "--out",
        ".csv, .jsonl or .parquet; - for JSON lines on standard output",
        required=True,
        short="-o",
        metavar="FILE",
        at_url="read",
    ),
    Flag(
        "--long-prompts",
        "where prompts are read: drop the end of one too long, average over parts that overlap, "
        "or make its row an error",
        default="truncate",
        choices=("truncate", "window", "error"),
        metavar="{truncate,window,error}",
    ),
    Flag(
        "--against",
        "add percentiles relative to this generator's training images; dcmpl info lists them",
        metavar="GENERATOR",
    ),
    DEVICE,
    Flag(
        "--engine",
        "what computes; onnx and openvino run exported models",
        default="auto",
        choices=("auto", "torch", "onnx", "openvino"),
        metavar="{auto,torch,onnx,openvino}",
    ),
    Flag(
        "--precision",
        "of the towers' products",
        default="fp32",
        choices=("fp32", "bf16", "int8"),
        metavar="{fp32,bf16,int8}",
    ),
    Flag(
        "--views",
        "windows, paper-windows (none at the edges), center, resize, grid-N, or auto: the fewest "
        "that were found to be enough (default: as the model was measured)",
        metavar="NAME",
    ),
    Flag(
        "--targets",
        "what to predict (default: all that was learned)",
        count="+",
        metavar="TARGET",
    ),
    Flag(
        "--workers",
        "threads that decode and compute, a core each (default: all cores)",
        int,
        metavar="N",
    ),
    MOVED_BACKBONE,
    Flag(
        "--rank",
        "images of one prompt: the best first, with the chance that people prefer each to the "
        "next; near-ties are reported as too close to call",
        bool,
        False,
    ),
    Flag(
        "--by",
        "what --rank goes by: a target, or a number that goes with one, as quality_mos",
        default="quality",
        metavar="TARGET",
    ),
    Flag(
        "--on",
        "ray: score on a Ray cluster, or on this machine with one started for it; -o is a folder",
        metavar="ray[://ADDRESS]",
    ),
    Flag("--actors", "processes that score with --on (default: as many as fit)", int, metavar="N"),
    Flag(
        "--gpus",
        "GPUs of each of them, 0.5 to share one; --workers are its cores (default: 1)",
        float,
        0.0,
        metavar="G",
    ),
    Flag("--resume", "go on with a scoring that was broken off", bool, False),
    Flag(
        "--new",
        "keep the rows that -o has already of the same image, prompt and content by the same "
        "model; score the rest",
        bool,
        False,
    ),
    Flag("--sha256", "add the SHA-256 of each image's file to its row", bool, False),
    Flag("--shard", "score the I-th of N parts; dcmpl merge joins them", metavar="I/N"),
)


def score(arguments: Arguments) -> int:
    """Score all named images, one row per image."""
    shard = _checked(arguments)
    from dcmpl.data.sources import Found
    from dcmpl.images.decode import quiet_pillow
    from dcmpl.scoring.files import read_scores
    from dcmpl.scoring.job import Job, plan_of, say_faults

    if arguments.on is not None:
        return _score_on_ray(arguments)
    sidecar = arguments.prompt_from == "sidecar"
    sources: Iterable[Source] = Found(arguments.PATH, sidecar, arguments.prompt)
    if arguments.prompts is not None:
        sources = _prompted(list(sources), arguments.prompts)
    plan = plan_of(sources)
    with quiet_pillow():
        judge = _judge(arguments)
        if arguments.rank or arguments.by != "quality":
            judge.check_target(arguments.by)
        _say_what_scores_mean(judge, arguments)
        by = arguments.by if arguments.rank else None
        kinds = {"hashes": arguments.sha256, "new": arguments.new}
        job = Job(judge, sources, plan, shard, arguments.prompt_from, by, **kinds)
        if arguments.out == "-":
            _say_uncalibrated(judge)
            return 3 if job.print() else 0
        out = arguments.out
        counts = job.write(out, arguments.resume)
    reasons = (row["reason"] for row in read_scores(out) if row["status"] == "error")
    say_faults(reasons, counts["error"])
    _say_uncalibrated(judge)
    print(f"{counts['ok']} of {job.count} images scored: {out} and its manifest")
    return 3 if counts["error"] else 0


def _score_on_ray(arguments: Arguments) -> int:
    """Score on a Ray cluster, to partitions."""
    from dcmpl.data.shards import Prompts
    from dcmpl.data.sources import iterate_sources
    from dcmpl.integrations.ray import Actors, RayJob, connected
    from dcmpl.scoring.job import say_faults
    from dcmpl.scoring.partitions import fault_reasons

    cores = arguments.workers or 1
    actors = Actors(arguments.actors, cores, arguments.gpus)
    address = arguments.on.partition("://")[2]
    sources = iterate_sources(arguments.PATH, arguments.prompt_from == "sidecar", closed=True)
    if arguments.prompts is not None:
        named = list(sources)
        if shard := next((source.shard for source in named if source.shard), None):
            raise UsageError(
                "--prompts with --on for images beside archives", shard, "put sidecars into it"
            )
        sources = iter(_prompted(named, arguments.prompts))
    elif arguments.prompt is not None:
        sources = (replace(source, prompt=arguments.prompt) for source in sources)
    prompts = Prompts(arguments.prompt, arguments.prompt_from)
    with connected(address or None):
        arguments.workers = cores
        scorer = _scorer(arguments)
        _say_what_scores_mean(scorer, arguments)
        job = RayJob(scorer, sources, arguments.out, arguments.model, prompts, actors)
        counts = job.write(arguments.resume)
    say_faults(fault_reasons(arguments.out), counts["error"])
    _say_uncalibrated(scorer)
    print(f"{counts['ok']} of {sum(counts.values())} images scored: {arguments.out}")
    return 3 if counts["error"] else 0


def _judge(arguments: Arguments) -> "Judge":
    """What scores: the service that was named, or a model on this machine."""
    if arguments.url is not None:
        from dcmpl.client import Client

        return Client(arguments.url, arguments.key_file and key_in(Path(arguments.key_file)))
    return _scorer(arguments)


def _scorer(arguments: Arguments) -> "Scorer":
    """Model on this machine."""
    from dcmpl.scoring.scorer import Scorer

    options = {name: getattr(arguments, name) for name in OPTIONS}
    return Scorer.from_pretrained(arguments.model, **options)


def _check_where(arguments: Arguments) -> None:
    """Check that options of a model on this machine were not given with a service."""
    if arguments.url is None:
        if arguments.key_file is not None:
            raise UsageError("--key-file with --url", "it alone", "name the service")
        return
    usual = {flag.dest: flag.default for flag in FLAGS}
    for name in ("model", *OPTIONS):
        if getattr(arguments, name) != usual[name]:
            flag = "--" + name.replace("_", "-")
            raise UsageError(f"--url or {flag}", "both", "dcmpl serve has its own model and views")


def _check_on(arguments: Arguments) -> None:
    """Check the flags of a cluster, and that no flag was given that it does not take."""
    usual = {flag.dest: flag.default for flag in FLAGS}
    if arguments.on is None:
        for name in ("actors", "gpus"):
            if getattr(arguments, name) != usual[name]:
                raise UsageError(f"--{name} with --on", "it alone", "add --on ray")
        return
    if not re.fullmatch(r"ray(://.+)?", arguments.on):
        raise UsageError("--on ray, or ray://ADDRESS of a cluster", arguments.on)
    for name in ("url", "shard", "rank", "new", "sha256"):
        if getattr(arguments, name) != usual[name]:
            raise UsageError(f"--on or --{name}", "both", "leave one out")


def _checked(arguments: Arguments) -> tuple[int, int] | None:
    """The shard to score, after all checks that need no model."""
    for path in (*arguments.PATH, arguments.model, arguments.prompts, arguments.out):
        is_url(path or "")  # before any sentence shows a key that one may have in it
    given = ["--" + n.replace("_", "-") for n in PROMPTS if getattr(arguments, n) is not None]
    if len(given) > 1:
        raise UsageError(f"{given[0]} or {given[1]}", "both", "leave one out")
    _check_where(arguments)
    _check_on(arguments)
    if arguments.url is None:
        check_scoring_model(arguments.model)
    check_device(arguments.device)
    _check_destination(arguments)
    if arguments.prompts is not None and about(arguments.prompts) is None:
        raise UsageError(f"a table at --prompts {arguments.prompts}", "no file")
    if arguments.views not in (None, "auto"):
        check_views(arguments.views)
    check_targets(arguments.targets or ())
    if arguments.workers is not None and not 1 <= arguments.workers <= MOST_WORKERS:
        raise UsageError(f"--workers from 1 to {MOST_WORKERS}", arguments.workers)
    if not re.fullmatch(r"[a-z]\w{0,63}", arguments.by):
        check_targets([arguments.by])
    return _shard(arguments)


def _check_output(out: str) -> None:
    if Path(out).suffix.lower() not in FORMATS:
        raise UsageError(f"-o to end in {', '.join(FORMATS)}", out)
    if Path(out).is_dir():
        raise UsageError(f"a file at -o {out}", "a folder")


def _check_folder(out: str) -> None:
    is_table = Path(out).suffix.lower() in (*FORMATS, *LISTS)
    if is_table or out in ("", "-") or Path(out).is_file():
        raise UsageError(
            "a folder at -o with --on",
            out or "none",
            "dcmpl merge makes one file of its partitions",
        )


def _check_destination(arguments: Arguments) -> None:
    if arguments.on is not None:
        _check_folder(arguments.out)
    elif arguments.out != "-":
        _check_output(arguments.out)
        if (arguments.rank or arguments.new) and is_url(arguments.out):
            raise UsageError("a file of this machine at -o with --rank or --new", arguments.out)
    elif arguments.resume or arguments.rank or arguments.new:
        raise UsageError(
            "a file at -o with --resume, --rank and --new",
            "-",
            "rows go to standard output as they come",
        )
    for path in (*arguments.PATH, arguments.prompts):
        if path and os.path.abspath(path) == os.path.abspath(arguments.out):
            raise UsageError("a new file at -o", f"{path}, which is to be read")
    if arguments.out != "-" and arguments.on is None:
        check_scores_replace(arguments.out)


def _shard(arguments: Arguments) -> tuple[int, int] | None:
    if arguments.shard is None:
        return None
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", arguments.shard)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise UsageError("--shard I/N with I from 1 to N", arguments.shard)
    if arguments.rank:
        raise UsageError("--rank without --shard", "both", "shards keep their order")
    return int(found[1]), int(found[2])


def _prompted(sources: "list[Source]", file: str) -> "list[Source]":
    """Images with the prompts of a table; rows and images without a partner are reported."""
    from dcmpl.data.matching import read_prompts
    from dcmpl.data.sources import with_prompts

    names = [source.name for source in sources]
    prompts, strange = read_prompts(file, names)
    if strange:
        say(f"{len(strange)} rows of {file} name none of the images, {strange[0]!r} among them")
    if without := [name for name in names if name not in prompts]:
        say(
            f"{len(without)} of {len(names)} images have no row in {file}, "
            f"{without[0]!r} among them: they get no prompt"
        )
    return with_prompts(sources, prompts)


def _say_what_scores_mean(judge: "Judge", arguments: Arguments) -> None:
    model, backbone = (str(judge.about.get(name, "unknown")) for name in ("model", "backbone"))
    if arguments.url is not None:
        say(f"note: {arguments.url} scores, with its model {model} on {backbone}")
    else:
        warn_of_model(model_folder(arguments.model), backbone)
    has_prompts = bool(arguments.prompt or arguments.prompts or arguments.prompt_from)
    reads = judge.reads
    if reads is None and has_prompts and "alignment" in judge.targets:
        say("note: this model judges alignment from the image alone; prompts are carried along")
    if reads is not None and not has_prompts:
        say(
            f"note: this model judges {reads} by the prompt; without --prompt, "
            "--prompts or --prompt-from only prompts that lists bring are known"
        )
    if arguments.targets is None and (lacks := [t for t in TARGETS[:2] if t not in judge.targets]):
        say(f"note: this model does not predict {lacks[0]}; its column stays empty")


def _say_uncalibrated(judge: "Judge") -> None:
    if judge.calibration is None:
        say(f"note: scores without MOS units and labels: {judge.uncalibrated}")


def merge(arguments: Arguments) -> int:
    """Join the scores of all shards of one job."""
    _check_output(arguments.out)
    folders = [path for path in arguments.FILE if is_folder(path)]
    if folders and len(arguments.FILE) > 1:
        raise UsageError("the partitions of one job", f"{len(arguments.FILE)} paths")
    for path in () if folders else arguments.FILE:
        if about(path) is None:
            raise UsageError(f"the scores of a shard at {path}", "no file")
        if Path(path).suffix.lower() not in FORMATS:
            raise UsageError(f"scores that end in {', '.join(FORMATS)}", path)
    check_not_read(arguments.out, arguments.FILE)
    check_scores_replace(arguments.out)
    from dcmpl.scoring.files import merged, read_scores, write_scores
    from dcmpl.scoring.partitions import described, read_partitions

    out = arguments.out
    if folders:
        job, made_with = described(folders[0])
        rows, what = read_partitions(folders[0]), f"partitions of {folders[0]}"
    else:
        job, made_with, paths = merged(arguments.FILE)
        rows, what = (row for path in paths for row in read_scores(path)), f"{len(paths)} shards"
    try:
        counts = write_scores(out, rows, job, made_with)
    except OSError as error:
        raise RunError(f"to write {out}", reason=reason_of(error)) from error
    if sum(counts.values()) != job["count"]:
        raise DataError(f"{job['count']} rows", sum(counts.values()))
    print(f"{sum(counts.values())} rows of {what}: {out} and its manifest")
    return 3 if counts["error"] else 0


SCORE = Command(
    "Score images with a run or an exported model. Every image gets a row; what is finished is "
    "kept.",
    FLAGS,
    score,
)
MERGE = Command(
    "Join the scores of all shards of one job, or the partitions that --on ray wrote.",
    (
        Flag(
            "FILE",
            "scores of a shard, or a folder of partitions",
            count="+",
            required=True,
            metavar="FILE",
            at_url="read",
        ),
        Flag(
            "--out",
            ".csv, .jsonl or .parquet",
            required=True,
            short="-o",
            metavar="FILE",
            at_url="read",
        ),
    ),
    merge,
)
