"""Processes that train together: they join, share work out, and end together."""

import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import gather_object
from torch import distributed

from dcmpl.errors import RunError, UsageError
from dcmpl.progress import say

__all__ = [
    "accelerator_of",
    "add_gradients",
    "by_all",
    "check_same",
    "processes_of",
    "together",
]

PATIENCE = 5.0
"""Seconds in which a process finds out whether another one's end is what failed it."""


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


def accelerator_of(device: torch.device, tracker: str, folder: Path) -> Accelerator:
    """Accelerator of a training on ``device``, with a tracker in ``folder``, or ``none``.

    The model stays on its device.
    """
    processes_of(device)
    watched = {} if tracker == "none" else {"log_with": tracker, "project_dir": folder}
    return Accelerator(device_placement=False, **watched)


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


@contextmanager
def together(device: torch.device) -> Iterator[PartialState]:
    """Join the processes that train together, none of which is left alone in the block.

    Where one ends before its block does, killed or by an error, the others end within seconds,
    each with a sentence and the exit code of a :class:`RunError`, whatever they wait for.
    """
    processes = processes_of(device)
    if processes.num_processes == 1:
        yield processes
        return
    watch = _Watch(processes)
    try:
        yield processes
        watch.part()
    except RuntimeError:  # perhaps of a connection to a process that is gone
        time.sleep(PATIENCE)
        raise
    finally:
        watch.end()


class _Watch:
    """Threads that wait for the last word of other processes: the first of all, or of all others.

    The system closes a connection with the process that held it, so that an end is seen at once,
    where a beat of the heart would be missed by a machine that is merely busy. What the first
    process sees the others see by its own end.
    """

    def __init__(self, processes: PartialState) -> None:
        first = processes.process_index == 0
        self.others = list(range(1, processes.num_processes)) if first else [0]
        self.ended = RunError(
            f"{processes.num_processes} processes to train together until all are done",
            "one that ended before",
            "see why in its own lines, then start all with --resume, which goes on from the last "
            "whole epoch",
        )
        self.speaks = threading.Lock()
        # Words between two processes wait for nothing else, on GPUs too; they take days to come.
        self.group = distributed.new_group(backend="gloo", timeout=timedelta(days=365))
        self.threads = [
            threading.Thread(target=self._listen, args=(other,), daemon=True)
            for other in self.others
        ]
        for thread in self.threads:
            thread.start()
        self.before: Any = None
        if threading.current_thread() is threading.main_thread():
            self.before = signal.signal(signal.SIGTERM, self._terminated)

    def _listen(self, other: int) -> None:
        try:
            distributed.recv(torch.zeros(1), src=other, group=self.group)
        except RuntimeError:
            self.speaks.acquire()  # for good: one sentence a process
            say(f"dcmpl: {self.ended}")
            os._exit(self.ended.exit_code)  # the main thread may be waiting for ever

    def _terminated(self, *_: object) -> None:
        """End as a signal wants it, but not before a launcher's reason for it is found.

        Launchers end all processes where one has ended.
        """
        time.sleep(PATIENCE)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)

    def part(self) -> None:
        """Part from the others once all are done."""
        for other in self.others:
            distributed.send(torch.ones(1), dst=other, group=self.group)
        for thread in self.threads:
            thread.join()

    def end(self) -> None:
        """Leave the word to the main thread, which is done or has an error of its own."""
        self.speaks.acquire()
        if self.before is not None:
            signal.signal(signal.SIGTERM, self.before)
