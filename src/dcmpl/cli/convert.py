"""``dcmpl import``: the files that CLIP-AGIQA's script saved, as a run."""

from pathlib import Path

from dcmpl.cli.options import BACKBONE, Arguments, Command, Flag, check_new_folder
from dcmpl.errors import UsageError
from dcmpl.progress import say
from dcmpl.weights import check_backbone

__all__ = ["IMPORT"]

FLAGS = (
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


IMPORT = Command("Make a run of the files that CLIP-AGIQA's script saved.", FLAGS, import_run)
