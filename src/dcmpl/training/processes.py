"""Processes that train together: they join, and share work out."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import gather_object
from torch import distributed

from dcmpl.errors import RunError, UsageError

__all__ = [
    "accelerator_of",
    "add_gradients",
    "by_all",
    "check_same",
    "processes_of",
]


def processes_of(device: torch.device) -> PartialState:
    """The processes that train together, as ``torchrun`` and its like start them.

    Each gets a GPU of its own as the current one, or joins the others on the CPU. Raises
    :class:`UsageError` where the variables that tell it of the others do not fit.
    """
    try:
        with warnings.catch_warnings():  # how many threads each takes is nobody's mistake
            warnings.filterwarnings("ignore", "OMP_NUM_THREADS")
            return PartialState(cpu=device.type == "cpu")
    except (ValueError, RuntimeError) as error:  # the latter: the first process is not reached
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            "RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT of processes that "
            "train together",
            hint="start them with torchrun, or unset these variables",
            reason=reason,
        ) from error


def accelerator_of(device: torch.device) -> Accelerator:
    """Accelerator of a training on ``device``; the model stays there."""
    processes_of(device)
    return Accelerator(device_placement=False)


def add_gradients(optimizer: torch.optim.Optimizer, accelerator: Accelerator) -> None:
    """Add up the gradients of all processes' parts of a batch, in each of them."""
    if accelerator.num_processes == 1:
        return
    learned = [p for group in optimizer.param_groups for p in group["params"]]
    # All processes compute alike, so what has no gradient in one has none in any.
    gradients = [p.grad for p in learned if p.grad is not None]
    summed = accelerator.reduce(torch.cat([part.flatten() for part in gradients]), "sum")
    for part, whole in zip(
        gradients, summed.split([part.numel() for part in gradients]), strict=True
    ):
        part.copy_(whole.view_as(part))


def check_same(facts: list[Any], folder: Path) -> None:
    """Check that all processes go on with the same run; raises :class:`RunError`."""
    if not _are_several():
        return
    known = gather_object([facts])
    if any(other != known[0] for other in known):
        raise RunError(
            f"the same run at {folder} in all processes, which share the folder and the data",
            "another in one of them",
            "give all the same arguments, and folders that all machines see",
        )


def _are_several() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def by_all(count: int, chunk: int, work: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Rows that ``work`` makes of items 0 to ``count``, each in one process; all get all of them.

    ``work`` is called with the numbers of some of the items, in order, and not for none: of
    whole chunks of ``chunk`` items.
    """
    items = np.arange(count)
    if not _are_several():
        return work(items)
    processes = PartialState()
    own = items[items // chunk % processes.num_processes == processes.process_index]
    parts = gather_object([(own, work(own))] if len(own) else [])
    found = np.concatenate([rows for _, rows in parts])
    return found[np.argsort(np.concatenate([known for known, _ in parts]))]
