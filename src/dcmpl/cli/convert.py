"""``dcmpl export`` and ``dcmpl import``: models that need no torch; a run of CLIP-AGIQA's files."""

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from dcmpl.cli.options import (
    BACKBONE,
    MOVED_BACKBONE,
    RUN,
    Arguments,
    Command,
    Flag,
    check_new_folder,
    check_run,
    check_targets,
)
from dcmpl.errors import DcmplError, UsageError
from dcmpl.progress import say, track
from dcmpl.weights import check_backbone

if TYPE_CHECKING:
    import numpy as np

    from dcmpl.runs import Run

__all__ = ["EXPORT", "IMPORT"]

EXPORT_FLAGS = (
    RUN,
    Flag("--out", "new folder", required=True, short="-o", metavar="DIR"),
    Flag(
        "--targets",
        "what to predict (default: all that was learned); fewer are faster",
        count="+",
        metavar="TARGET",
    ),
    Flag(
        "--images",
        "images that calibrate int8 and tell drifts (default: the run's validation part)",
        count="+",
        metavar="PATH",
    ),
    MOVED_BACKBONE,
)


def export(arguments: Arguments) -> int:
    """Write every variant, each compared with PyTorch's scores."""
    folder = check_run(arguments.RUN)
    check_targets(arguments.targets or ())
    check_new_folder(arguments.out, "-o")
    from dcmpl.scoring.calibration import read_calibration
    from dcmpl.scoring.export import write_export
    from dcmpl.scoring.torch_engine import TorchEngine, load_model

    out = Path(arguments.out)
    run, model = load_model(folder, arguments.backbone, "cpu")  # where exported models run
    targets = _targets(arguments.targets, run)
    images = _images(arguments.images, folder, run)
    calibration = read_calibration(folder, run.weights_sha256)
    record = write_export(TorchEngine(model, targets), run, out, images, calibration)
    if calibration is not None and calibration.enough_views is not None:
        say(f"--views auto is {calibration.enough_views}")
    made = ", ".join(f"{v['engine']} {v['precision']}" for v in record["variants"])
    print(f"exported: {out} ({made})\nnext: dcmpl score PATH --model {out} -o scores.csv")
    return 0


def _targets(asked: tuple[str, ...] | None, run: "Run") -> tuple[str, ...]:
    """The targets to export: an exported model reads no prompt."""
    targets = tuple(asked or run.learned)
    if unknown := [target for target in targets if target not in run.learned]:
        known = ", ".join(run.learned)
        raise UsageError(f"targets the run learned, {known}", unknown[0])
    if not run.model.reads_prompt or "alignment" not in targets:
        return targets
    if asked or len(targets) == 1:
        raise UsageError(
            "targets that no prompt is read for",
            "alignment",
            "only torch reads prompts, score with the run itself",
        )
    targets = tuple(target for target in targets if target != "alignment")
    names = ", ".join(targets)
    say(f"note: alignment reads the prompt, which only torch does; exported: {names}")
    return targets


def _images(paths: tuple[str, ...] | None, folder: Path, run: "Run") -> "list[np.ndarray]":
    from dcmpl.data.sources import find_sources, with_content
    from dcmpl.images.decode import quiet_pillow
    from dcmpl.runs import MOST_IMAGES, validation_images

    if paths is None:
        try:
            return validation_images(folder, run)
        except DcmplError as error:
            say(f"note: no images to compare on: {error}; name some with --images")
            return []
    with quiet_pillow():
        sources = islice(with_content(find_sources(paths)), MOST_IMAGES)
        return [source.read().pixels for source in track(sources, "reading images")]


EXPORT = Command(
    "Make models for ONNX Runtime and OpenVINO of a run: folded, held to torch, and described in "
    "export.json.",
    EXPORT_FLAGS,
    export,
)


IMPORT_FLAGS = (
    Flag("--aux", "auxiliary learner, ..._aux_best.pth", required=True, metavar="FILE"),
    Flag("--main", "main learner, ..._tar_best.pth", metavar="FILE"),
    BACKBONE,
    Flag("--out", "run folder to make", required=True, metavar="RUN"),
)


def import_run(arguments: Arguments) -> int:
    """Make a run of one or two checkpoints."""
    check_backbone(arguments.backbone)
    for name in ("aux", "main"):
        file = getattr(arguments, name)
        if file is not None and not Path(file).is_file():
            raise UsageError(f"a checkpoint at --{name} {file}", "no file")
    check_new_folder(arguments.out)
    from dcmpl.config import TrainConfig
    from dcmpl.runs import MODEL, Run, save_learned
    from dcmpl.weights.backbones import load_backbone
    from dcmpl.weights.clip_agiqa import read_clip_agiqa

    folder, backbone = Path(arguments.out), load_backbone(arguments.backbone)
    main_file = Path(arguments.main) if arguments.main else None
    model = read_clip_agiqa(Path(arguments.aux), main_file, backbone.clip, backbone.tokenizer)
    run = Run(
        preset="clip-agiqa",
        backbone=backbone.name,
        backbone_sha256=backbone.sha256,
        source=None,
        model=model.config,
        train=TrainConfig(views="paper-windows"),
        split_sha256="",
        learned=model.config.tasks,
    )
    save_learned(folder / MODEL, model, run)
    run.finished_in(folder).write(folder)
    text = " and ".join(model.config.tasks)
    print(f"run: {folder}, predicts {text}\nnext: dcmpl score PATH --model {folder} -o scores.csv")
    if main_file is None:
        say("quality is not there: it is learned by the main file, --main")
    return 0


IMPORT = Command(
    "Make a run of the files that CLIP-AGIQA's script saved.", IMPORT_FLAGS, import_run
)
