"""Commands about variants: list them, compare them, take them over from elsewhere."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from dcmpl.commands import read_data, source_of
from dcmpl.config import ModelConfig, TrainConfig, recipe_for
from dcmpl.data.leaks import check_pictures
from dcmpl.evaluation.summary import write_report
from dcmpl.evaluation.trials import Workbench, read_grid, run_trials, summary, trials_of
from dcmpl.model.clip import VIT_B_32, Clip
from dcmpl.model.dcmpl import DCMPL, trainable_parameters
from dcmpl.model.tokenizer import Tokenizer
from dcmpl.presets import PRESETS, differences, model_fields
from dcmpl.progress import say
from dcmpl.runs import MODEL, Run, save_learned
from dcmpl.scoring.torch_engine import choose_device
from dcmpl.weights import EMBEDDED, warn_of_floor
from dcmpl.weights.backbones import load_backbone
from dcmpl.weights.clip_agiqa import read_clip_agiqa

__all__ = ["COMMANDS"]


def ablate(arguments: Any) -> int:
    """``dcmpl ablate``."""
    recipe = recipe_for(arguments.backbone)
    variants = read_grid(Path(arguments.grid), recipe, arguments.recipe)
    table = read_data(arguments)
    bench = Workbench(
        table,
        load_backbone(arguments.backbone),
        check_pictures(table),
        choose_device(arguments.device),
    )
    warn_of_floor(arguments.backbone)
    out, seeds = Path(arguments.out), range(arguments.repeats)
    say(f"{len(variants)} variants on {len(seeds)} splits of {table.name}, {len(table)} pictures")
    trials = trials_of(bench, source_of(arguments, table), variants, seeds, out)
    results = run_trials(trials, bench, say)
    title = f"{table.name} with {arguments.backbone}"
    names = write_report(summary(results, [v.name for v in variants]), out, title)
    print((out / "ablation.md").read_text(encoding="utf-8"))
    print(f"results: {out}/{', '.join(names)}")
    return 0


def import_run(arguments: Any) -> int:
    """``dcmpl import``."""
    folder = Path(arguments.out)
    backbone = load_backbone(arguments.backbone)
    main_file = Path(arguments.main) if arguments.main else None
    model = read_clip_agiqa(Path(arguments.aux), main_file, backbone.clip, backbone.tokenizer)
    run = Run(
        preset="clip-agiqa",
        backbone=backbone.name,
        backbone_sha256=backbone.sha256,
        source=None,
        model=model.config,
        train=TrainConfig(),
        split_sha256="",
        learned=model.config.tasks,
    )
    save_learned(folder / MODEL, model, run)
    run.finished_in(folder).write(folder)
    told = " and ".join(model.config.tasks)
    print(f"run: {folder}, predicts {told}\nnext: dcmpl score PATH --model {folder} -o scores.csv")
    if main_file is None:
        say("quality is not there: it is learned by the main file, --main")
    return 0


def presets(arguments: Any) -> int:
    """``dcmpl presets``."""
    listed = Table("preset", "learns, ViT-B/32", "what it is", "differs from dcmpl in", "paper")
    for name, preset in PRESETS.items():
        changes = ", ".join(
            f"{field} {'+'.join(value) if isinstance(value, dict) else value}"
            for field, value in differences(preset.model).items()
        )
        listed.add_row(
            name, f"{count_of_vit_b_32(preset.model):,}", preset.about, changes, preset.paper
        )
    console = Console()
    console.print(listed)
    fields_of = Table("--set", "values", "default", "what it is")
    for name, kind, default, about in model_fields():
        fields_of.add_row(f"model.{name}", kind, default, about)
    console.print(fields_of)
    return 0


def count_of_vit_b_32(config: ModelConfig) -> int:
    """How many numbers a model of that configuration learns on CLIP ViT-B/32."""
    with torch.device("meta"):
        clip = Clip(VIT_B_32)
    tokenizer = Tokenizer(EMBEDDED["tiny"] / "tokenizer.json", 77)
    model = DCMPL(clip, tokenizer, config, 0)
    return sum(parameter.numel() for parameter in trainable_parameters(model).values())


COMMANDS: dict[str, Callable[[Any], int]] = {
    "presets": presets,
    "ablate": ablate,
    "import": import_run,
}
