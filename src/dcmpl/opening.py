"""A folder with a model, of a run or exported, as what scores its windows."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcmpl.calibration import Calibration, read_calibration
from dcmpl.config import RECORD
from dcmpl.engines import Engine, open_export, read_export
from dcmpl.errors import UsageError
from dcmpl.fewest import fewest_of_run
from dcmpl.scores import ENGINES, EXPORT, PRECISIONS

__all__ = ["Opened", "chosen_targets", "open_model"]


@dataclass(frozen=True)
class Opened:
    """An engine, the targets asked of it, its views, and what tells its model from all others.

    ``uncalibrated`` says why there is no calibration, as a part of a sentence.
    """

    engine: Engine
    targets: tuple[str, ...]
    views: str
    about: dict[str, Any]
    calibration: Calibration | None
    uncalibrated: str


def open_model(
    folder: Path,
    engine: str,
    precision: str,
    views: str | None,
    targets: Sequence[str] | None,
    backbone: str | None,
    device: str,
    lanes: int,
) -> Opened:
    """As :meth:`dcmpl.predict.Scorer.from_pretrained` says."""
    if engine not in ("auto", *ENGINES) or precision not in PRECISIONS:
        raise UsageError(
            f"expected an engine of auto, {', '.join(ENGINES)} and a precision of "
            f"{', '.join(PRECISIONS)}, got {engine} and {precision}"
        )
    if (folder / EXPORT).is_file():
        if device not in ("auto", "cpu"):
            raise UsageError(
                f"expected the device cpu for an exported model, got {device}: score with the run "
                "itself, or leave the device out"
            )
        return _exported(folder, engine, precision, views, targets, lanes)
    return _trained(folder, engine, precision, views, targets, backbone, device)


def _exported(
    folder: Path,
    engine: str,
    precision: str,
    views: str | None,
    targets: Sequence[str] | None,
    lanes: int,
) -> Opened:
    exported = read_export(folder)
    chosen_targets(targets, exported.tasks, folder)
    record = exported.record
    if views == "auto":
        views = record.get("fewest_views")
        if not isinstance(views, str):
            raise UsageError(
                f"expected views that {folder} was measured with, it was exported without "
                "pictures: name --views"
            )
    opened = open_export(exported, engine, precision, lanes)
    return Opened(
        opened,
        chosen_targets(targets, opened.tasks, folder),
        views or str(record["views"]),
        {"model": folder.name, **exported.about},
        exported.calibration,
        "its run was not calibrated when it was exported",
    )


def _trained(
    folder: Path,
    engine: str,
    precision: str,
    views: str | None,
    targets: Sequence[str] | None,
    backbone: str | None,
    device: str,
) -> Opened:
    if engine not in ("auto", "torch") and (folder / RECORD).is_file():
        raise UsageError(
            f"expected an exported model for the engine {engine}, got the run {folder}: "
            f"dcmpl export {folder} -o DIR, then --model DIR"
        )
    from dcmpl.calibrating import uncalibrated
    from dcmpl.trained import TorchEngine, load_model, validation_pictures  # import torch

    run, network = load_model(folder, backbone, device)
    opened = TorchEngine(network, chosen_targets(targets, run.learned, folder), precision)
    if views == "auto":
        key = " ".join([run.identity, precision, *opened.tasks])
        views = fewest_of_run(folder, key, opened, lambda: validation_pictures(folder, run))
    return Opened(
        opened,
        opened.tasks,
        views or run.train.views,
        {"model": folder.name, **run.about(), "device": opened.device.type},
        read_calibration(folder, run.weights_sha256),
        uncalibrated(run),
    )


def chosen_targets(
    targets: Sequence[str] | None, known: Sequence[str], folder: Path
) -> tuple[str, ...]:
    """``targets`` where all are ``known``; raises :class:`UsageError` where not."""
    if not targets:
        return tuple(known)
    if unknown := [target for target in targets if target not in known]:
        raise UsageError(
            f"expected targets that {folder} predicts ({', '.join(known)}), got {unknown[0]}"
        )
    return tuple(targets)
