"""Run folders: record, split, learned tensors and calibration; strict when read back.

    run.json            configurations, data, backbone, history (this file says "finished")
    split.json          the images of training, validation and test
    model.safetensors   learned tensors of the chosen epoch; never the backbone
    last.safetensors    learned tensors and Adam's state after the last epoch, for --resume

Every file is written beside its place and moved there, so a kill or a full disk leaves
the old one or the new one, whole.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from jaxtyping import UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor, nn

from dcmpl import __version__
from dcmpl.config import ModelConfig, TrainConfig, check_recorded_views, set_fields
from dcmpl.data.datasets import load_table
from dcmpl.data.splits import Split
from dcmpl.data.table import ImageTable, MosScale
from dcmpl.errors import DataError, RunError
from dcmpl.files import (
    UNREADABLE,
    as_json,
    read_most,
    read_record,
    sealed,
    sha256_of,
    write_atomically,
)
from dcmpl.images.decode import read_image
from dcmpl.model.dcmpl import trainable_parameters
from dcmpl.progress import track
from dcmpl.weights.backbones import Backbone

__all__ = [
    "LAST",
    "MODEL",
    "MOST_IMAGES",
    "RECORD",
    "SPLIT",
    "DataSource",
    "History",
    "Run",
    "load_learned",
    "read_run",
    "read_split",
    "save_learned",
    "table_of_run",
    "uncalibrated",
    "validation_images",
    "write_split",
]

RECORD, SPLIT, MODEL, LAST = "run.json", "split.json", "model.safetensors", "last.safetensors"
"""The files of a run folder; ``dcmpl.runs`` says what is in them."""

MOST_IMAGES = 256


History = tuple[dict[str, float], ...]
"""One entry per epoch: the loss and what validation found."""


@dataclass(frozen=True)
class DataSource:
    """Origin of the opinions, enough to read them again; ``sha256`` is the table's digest."""

    path: str
    name: str
    scale: MosScale
    sha256: str
    columns: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """Record of a run; an imported run has no source and no split.

    ``learned`` are the tasks with opinions in training; scores of other tasks are noise.
    ``weights_sha256`` is that of the learned tensors of a finished run.
    """

    preset: str
    backbone: str
    backbone_sha256: str
    source: DataSource | None
    model: ModelConfig
    train: TrainConfig
    split_sha256: str
    history: History = ()
    best_epoch: int = 0
    finished: bool = False
    learned: tuple[str, ...] = ()
    weights_sha256: str = ""
    version: str = __version__

    @staticmethod
    def begin(
        preset: str,
        backbone: Backbone,
        source: DataSource,
        model: ModelConfig,
        train: TrainConfig,
        split: Split,
        table: ImageTable,
    ) -> "Run":
        """Record of a new run, before its first epoch."""
        return Run(
            preset=preset,
            backbone=backbone.name,
            backbone_sha256=backbone.sha256,
            source=source,
            model=model,
            train=train,
            split_sha256=split.digest,
            learned=tuple(task for task in model.tasks if task in table.judged),
        )

    @property
    def identity(self) -> str:
        """SHA-256 of everything that determines the learned tensors, which carry it.

        Of the configurations only what is not the default: a field that a later version adds
        leaves the runs of earlier ones what they are.
        """
        data = self.source.sha256 if self.source else ""
        decides = self.preset, self.backbone_sha256, self.split_sha256, data
        text = as_json([*decides, set_fields(self.model), set_fields(self.train)])
        return hashlib.sha256(text).hexdigest()

    def about(self) -> dict[str, str]:
        """Description of the run for the records of scores and exports."""
        names = "weights_sha256", "backbone", "backbone_sha256", "preset"
        return {"identity": self.identity, **{name: str(getattr(self, name)) for name in names}}

    def write(self, folder: Path) -> None:
        """Write ``run.json``."""
        write_atomically(folder / RECORD, sealed(asdict(self)))

    def finished_in(self, folder: Path) -> "Run":
        """Record of the finished run with the learned tensors in ``folder``, not yet written."""
        return replace(self, finished=True, weights_sha256=sha256_of(folder / MODEL))

    def check_backbone(self, backbone: Backbone) -> None:
        """Check that the run was made with this backbone; raises :class:`RunError`."""
        if backbone.sha256 != self.backbone_sha256:
            raise RunError(
                f"the backbone the run was trained with ({self.backbone}, SHA-256 "
                f"{self.backbone_sha256[:12]})",
                f"{backbone.name} ({backbone.sha256[:12]})",
                "learned prompts mean nothing to another backbone, train again",
            )


def read_run(folder: Path) -> Run:
    """Read the record of a run folder; raises :class:`RunError` for other folders."""
    path = folder / RECORD
    if not path.is_file():
        raise RunError(f"a run folder made by dcmpl train at {folder}", f"no {RECORD} in it")
    return read_record(path, "the record of a run", _run_of)


def _run_of(record: dict[str, Any]) -> Run:
    run = msgspec.convert({**record, "history": _numbers(record["history"])}, Run)
    if unknown := sorted(_names(record) - _names(asdict(run))):
        raise ValueError(f"an entry that no run has, {unknown[0]}")
    check_recorded_views(run.train.views, run.version)
    if not 0 <= run.best_epoch <= len(run.history):
        raise ValueError(f"a best epoch {run.best_epoch} of {len(run.history)}")
    if set(run.learned) - set(run.model.tasks):
        raise ValueError(f"learned tasks {run.learned} that the model has not")
    return run


def _names(record: Any, prefix: str = "") -> set[str]:
    """Dotted names of all entries of a record; items of lists have none."""
    found = set()
    for name, value in record.items():
        found.add(f"{prefix}{name}")
        if isinstance(value, dict):
            found |= _names(value, f"{prefix}{name}.")
    return found


def _numbers(history: Any) -> list[dict[str, float]]:
    """History of epochs from JSON, in which null is nan."""
    return [
        {str(name): math.nan if value is None else float(value) for name, value in entry.items()}
        for entry in history
    ]


def read_split(folder: Path, run: Run) -> Split | None:
    """The split of a run, None for an imported one.

    Raises :class:`RunError` where it is not the one the run was made with.
    """
    if run.source is None:
        return None
    path = folder / SPLIT
    if not path.is_file():
        raise RunError(f"the split of the run at {path}", "no file")
    split = Split.read(path)
    if split.digest != run.split_sha256:
        raise RunError(f"the split that {RECORD} names at {path}", "another one")
    return split


def write_split(folder: Path, split: Split) -> None:
    write_atomically(folder / SPLIT, as_json(split.to_json()))


def save_learned(
    path: Path,
    model: nn.Module,
    run: Run,
    optimizer_state: Mapping[str, Tensor] | None = None,
) -> None:
    """Write learned tensors with their run's identity, and Adam's state as ``optimizer/``."""
    tensors = {
        name: p.detach().cpu().contiguous() for name, p in trainable_parameters(model).items()
    }
    for name, tensor in (optimizer_state or {}).items():
        tensors[f"optimizer/{name}"] = tensor.cpu().contiguous()
    # One entry: safetensors writes several in any order, and equal runs have equal files.
    record = as_json({"run": run.identity, "history": run.history})
    write_atomically(path, save(tensors, {"dcmpl": record.decode()}))


def load_learned(path: Path, model: nn.Module, run: Run) -> tuple[History, dict[str, Tensor]]:
    """Put learned tensors into ``model``, strictly.

    Returns the epochs they have seen and Adam's state, if any is there. Raises
    :class:`RunError` where they are not tensors of ``run``, or not numbers.
    """
    try:
        content = read_most(path, _most_bytes(model))
        if run.finished and path.name == MODEL:
            _check_unchanged(path, content, run)
        tensors = load(content)
        with safe_open(path, framework="pt") as file:
            record = json.loads((file.metadata() or {})["dcmpl"])
        identity, history = str(record["run"]), tuple(_numbers(record["history"]))
    except (OSError, SafetensorError, *UNREADABLE) as error:
        raise RunError(f"learned tensors at {path}", reason=error) from error
    if identity != run.identity:
        raise RunError(
            f"the tensors that {RECORD} beside {path} describes",
            "those of another run",
            "files of two runs do not mix",
        )
    optimizer_state = {
        name.removeprefix("optimizer/"): tensors.pop(name)
        for name in list(tensors)
        if name.startswith("optimizer/")
    }
    parameters = trainable_parameters(model)
    wrong = sorted(parameters.keys() ^ tensors.keys()) or sorted(
        name for name, p in parameters.items() if p.shape != tensors[name].shape
    )
    if wrong:
        raise RunError(
            f"exactly the {len(parameters)} learned tensors of this model in {path}",
            f"{len(wrong)} that differ, {wrong[0]} among them",
        )
    broken = [
        name
        for name, tensor in tensors.items()
        if not tensor.is_floating_point() or not tensor.float().isfinite().all()
    ]
    if broken:
        raise RunError(f"finite numbers in {path}", f"others in {broken[0]}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])
    return history, optimizer_state


def _most_bytes(model: nn.Module) -> int:
    """Bytes of learned tensors in double precision with two of Adam's beside each, and more."""
    count = sum(p.numel() for p in trainable_parameters(model).values())
    return 24 * count + 64 * 2**20


def _check_unchanged(path: Path, content: bytes, run: Run) -> None:
    if hashlib.sha256(content).hexdigest() != run.weights_sha256:
        raise RunError(
            f"{path} as dcmpl wrote it",
            f"one of another SHA-256 than {RECORD} beside it names",
            "the file was changed, train again",
        )


def table_of_run(run: Run) -> ImageTable:
    """Table of a run's own data set; raises an error where it has changed since."""
    if run.source is None:
        raise DataError("the data of the run", "none in an imported one")
    source = run.source
    table = load_table(source.path, source.scale, source.columns)
    if table.digest != source.sha256:
        raise DataError(f"the table the run was made with at {source.path}", "another")
    return table


def validation_images(folder: Path, run: Run) -> list[UInt8[np.ndarray, "_ _ 3"]]:
    """Pixels of up to 256 validation images of a run, evenly spread."""
    table, split = table_of_run(run), read_split(folder, run)
    if split is None:
        raise DataError("the split of the run", "none in an imported one")
    chosen = split.validation_part(table).table.spread_images(MOST_IMAGES)
    return [read_image(path) for path in track(chosen, "reading validation images")]


def uncalibrated(run: Run) -> str:
    """Reason why a run has no calibration, as part of a sentence."""
    if run.source is None:
        return "it was imported, so there is no validation part to calibrate on"
    return "it was not calibrated (dcmpl train --resume does that)"
