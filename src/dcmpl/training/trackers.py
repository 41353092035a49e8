"""Trackers that watch a training, TensorBoard, W&B and MLflow, by way of accelerate.

They get the numbers of a run and change none: the record and the learned tensors of a run do not
know whether one watched.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcmpl.errors import UsageError

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["FOLDER", "Log", "check_tracker", "tracked"]

FOLDER = "tracker"
"""Folder of a run in which a tracker writes."""

PROJECT = "dcmpl"

INSTALL = {
    "tensorboard": "pip install 'dcmpl-agiqa[trackers]'",
    "wandb": "pip install 'dcmpl-agiqa[trackers]'",
    "mlflow": "pip install mlflow-skinny",
}
"""By tracker, which is the name of its module too: how it is installed."""

Log = Callable[[Mapping[str, float], int], None]
"""Function that takes numbers by their names, and how many steps were taken before them."""


def check_tracker(name: str) -> None:
    """Check that a tracker is installed; raises :class:`UsageError`."""
    if name in INSTALL and find_spec(name) is None:
        raise UsageError(
            f"the package {name}, which train.tracker={name} writes with",
            "none installed",
            INSTALL[name],
        )


@contextmanager
def tracked(
    name: str, accelerator: "Accelerator", folder: Path, about: Mapping[str, Any], steps: int
) -> Iterator[Log]:
    """Open the tracker ``name`` for a training in ``folder``; gives the function that logs to it.

    ``about`` is what the run is configured with, ``steps`` how many steps were taken before.
    """
    if name == "none":
        yield lambda numbers, step: None
        return
    place = (folder / FOLDER).absolute()
    if accelerator.is_main_process:
        place.mkdir(parents=True, exist_ok=True)
        _keep_here(name, place)
    options: dict[str, dict[str, Any]] = {
        # Steps that a killed run took after its last whole epoch are taken again.
        "tensorboard": {"purge_step": steps + 1},
        "wandb": {"dir": str(place), "name": folder.absolute().name},
        "mlflow": {"run_name": folder.absolute().name},
    }
    project = FOLDER if name == "tensorboard" else PROJECT
    accelerator.init_trackers(project, {k: _plain(v) for k, v in about.items()}, options)
    try:
        yield lambda numbers, step: accelerator.log(dict(numbers), step=step)
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()


def _keep_here(name: str, place: Path) -> None:
    """Keep what a tracker writes in ``place``, and off the network, unless its variables differ."""
    if name == "wandb" and "WANDB_MODE" not in os.environ:
        os.environ |= {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false"}
    if name == "wandb":
        os.environ.setdefault("WANDB_CONSOLE", "off")  # lines go where they went
    if name == "mlflow":
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        if "MLFLOW_TRACKING_URI" not in os.environ:  # files, which later versions must be asked for
            os.environ |= {"MLFLOW_TRACKING_URI": place.as_uri(), "MLFLOW_ALLOW_FILE_STORE": "true"}


def _plain(value: Any) -> Any:
    """``value`` as trackers take it."""
    return value if isinstance(value, (bool, int, float, str)) else str(value)
