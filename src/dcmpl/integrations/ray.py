"""Scoring on Ray Data: many machines, one result, no row lost and none twice.

Needs the extra ``[ray]``. :func:`score` adds scores to a data set of one's own.
:class:`RayJob` is what ``dcmpl score --on ray`` runs: it reads what is named, decodes in a stage
of its own, scores in actors, and writes partitions that count once a manifest names them.
"""

import logging
import os
import re
import socket
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from dcmpl.data.shards import (
    Prompts,
    Task,
    chunks_of,
    packed,
    stamp,
    tasks_of,
    unpacked,
    write_sources,
)
from dcmpl.data.sources import Source
from dcmpl.errors import DcmplError, RunError, UsageError
from dcmpl.images.decode import cores
from dcmpl.integrations.batch import BatchScorer
from dcmpl.integrations.stages import KEPT, Decode, Score, Write, identity_of
from dcmpl.progress import progress_bar, say
from dcmpl.scoring.files import columns_of
from dcmpl.scoring.job import made_with
from dcmpl.scoring.journal import FILE
from dcmpl.scoring.judge import CHUNK
from dcmpl.scoring.partitions import (
    MANIFEST,
    Done,
    OpenParts,
    Part,
    begin,
    check_new,
    check_owner,
    claim,
    commit,
    finished,
    list_of,
)
from dcmpl.scoring.scorer import Scorer
from dcmpl.storage import is_url, join, reason_of, remove, upload

__all__ = ["Actors", "RayJob", "connected", "score"]

SMALL = 0.25
"""Share of a core that decoding and writing reserve: scoring takes ten times as long."""

BLOCK = 16 * 2**20
"""Bytes that chunks of small images are sent in together."""

PATIENCE = 600
"""Seconds without any progress after which a job ends with a sentence, not in silence."""

ANSWER = 15
"""Seconds within which the head of a cluster takes a connection."""

MOST_TOGETHER = 64
"""Chunks in a partition at most."""

PER_ARCHIVE = 10_000
"""Images that an archive is taken to hold before it was read."""


@dataclass(frozen=True)
class Actors:
    """Actors that score: how many (as many as fit unless given), and what each reserves.

    ``cores`` of a processor, and ``gpus``, of which a part will do. Raises :class:`UsageError`
    for numbers that reserve nothing.
    """

    count: int | None = None
    cores: int = 1
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if (self.count is not None and self.count < 1) or self.cores < 1 or self.gpus < 0:
            raise UsageError(
                "at least one actor with a core, and GPUs or parts of them",
                f"{self.count}, {self.cores} and {self.gpus}",
            )

    def fitted(self) -> int:
        """Number of actors for the cluster that is connected.

        Raises :class:`UsageError` where it has not what they and the other stages reserve.
        """
        import ray

        there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        cpus, gpus = float(there.get("CPU", 0)), float(there.get("GPU", 0))
        fits = int((cpus - SMALL) / (self.cores + SMALL))
        if self.gpus:
            fits = min(fits, int(gpus / self.gpus))
        count = self.count or max(1, fits)
        # With less than a task beside the actors nothing would be read, for ever.
        if count * self.cores + 2 * SMALL > cpus or count * self.gpus > gpus:
            raise UsageError(
                f"a cluster for {count} actors of {self.cores} cores and {self.gpus:g} GPUs, with "
                f"{2 * SMALL:g} cores beside them",
                f"one of {cpus:g} cores and {gpus:g} GPUs",
                "ask for fewer actors, or for less in each",
            )
        return count


@contextmanager
def connected(address: str | None = None) -> Iterator[None]:
    """Connect to a cluster, or start Ray on this machine and end it with the block.

    ``address`` is what ``ray.init`` takes, as ``auto``, ``HOST:PORT`` or ``ray://HOST:PORT``; a
    connection of this program is used as it is. Raises :class:`UsageError` without Ray,
    :class:`RunError` where no cluster answers.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its sentences are for its makers
    try:
        import ray
    except ImportError:
        raise UsageError("ray[data]", "none", "pip install 'dcmpl-agiqa[ray]'") from None
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None and not os.environ.get("RAY_ADDRESS"):
        # Decoding and writing take turns on one more than there are.
        options |= {"num_cpus": cores() + 1, "include_dashboard": False}
    where = address or os.environ.get("RAY_ADDRESS") or "this machine"
    try:
        _check_answer(where)
        with _hushed():
            ray.init(address, **options)
    except Exception as error:  # of whatever kind the connection is
        raise RunError(f"a Ray cluster at {where}", "none", reason=reason_of(error)) from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_answer(address: str) -> None:
    """Check that something listens at HOST:PORT, where Ray would try for many minutes.

    Raises :class:`OSError`.
    """
    if found := re.fullmatch(r"(?:ray://)?\[?([^/\[\]]+)\]?:(\d+)", address):
        socket.create_connection((found[1], int(found[2])), ANSWER).close()


@contextmanager
def _hushed() -> Iterator[None]:
    """Keep what Ray's own code, not its Python, says while it starts from standard error."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def score(
    dataset: Any,
    model: str | Path | None = None,
    *,
    actors: Actors | None = None,
    image: str = "image",
    prompt: str = "prompt",
    **options: Any,
) -> Any:
    """A ``ray.data.Dataset`` with the columns of :class:`BatchScorer` added, computed lazily.

    ``options`` are those of :class:`~dcmpl.scoring.scorer.ScoringOptions`.
    """
    from ray.data import ActorPoolStrategy

    actors = actors or Actors()
    options = {"workers": actors.cores, **options}
    return dataset.map_batches(
        BatchScorer,
        fn_constructor_args=(None if model is None else str(model),),
        fn_constructor_kwargs={"image": image, "prompt": prompt, **options},
        batch_size=CHUNK,
        compute=ActorPoolStrategy(size=actors.fitted()),
        num_cpus=actors.cores,
        num_gpus=actors.gpus,
    )


OF_THE_JOB = ("chunk", "prompt_from", "columns")
"""What a job's record has beside the identity of its scorer."""


@dataclass(frozen=True)
class RayJob:
    """The scoring of what is named to partitions in ``folder``, a path or a URL.

    ``sources``: all of it, an archive as one source. ``prompts`` are those of images in
    archives; all others bring their own.
    """

    scorer: Scorer
    sources: Iterable[Source]
    folder: str
    model: str | None = None
    prompts: Prompts = Prompts()
    actors: Actors = Actors()

    def write(self, resume: bool) -> dict[str, int]:
        """Score everything; returns how many images are ok and how many are not.

        With ``resume`` finished partitions are kept. Raises :class:`RunError` where the cluster
        or the folder fails; what is finished then stays.
        """
        check_new(self.folder, resume)
        count = self.actors.fitted()
        job = {
            **self._identity(),
            "chunk": CHUNK,
            "prompt_from": self.prompts.of,
            "columns": list(columns_of(self.scorer.columns)),
        }
        with tempfile.TemporaryDirectory(prefix="dcmpl-") as place:
            table = Path(place, "list.parquet")
            shards, digest, is_relative = self._listed(table)
            images = sum(PER_ARCHIVE if archive else rows for archive, rows in shards)
            tasks = list(tasks_of(str(table), shards, CHUNK, images // (4 * count)))
            # Until the job is known to be this one nothing of the folder is touched.
            mark, done = begin(self.folder, {**job, "inputs_sha256": digest}, resume)
            done = _unchanged(self.folder, done, tasks)
            if manifest := self._standing(done):
                say(f"{self.folder} is finished")
                return {name: int(manifest["rows"][name]) for name in ("ok", "error")}
            owner = claim(self.folder)
            path = self._put(table, list_of(digest))
        tasks = [task if task.is_archive else replace(task, path=path) for task in tasks]
        together = min(MOST_TOGETHER, max(1, images // (CHUNK * MOST_TOGETHER)))
        if done.parts:
            say(f"{sum(p.ok + p.error for p in done.parts)} images were scored before")
        place = os.getcwd() if is_relative else ""
        left = [*_left(tasks, done)]
        parts = (*done.parts, *self._run(left, mark, job, count, together, place))
        check_owner(self.folder, owner)
        _check_whole(tasks, Done(parts))
        return commit(self.folder, job, parts, made_with(self.scorer))

    def _standing(self, done: Done) -> dict[str, Any] | None:
        """Manifest of the finished job; None, and removed, where a partition of it is gone."""
        manifest = finished(self.folder)
        if manifest and not {*manifest["parts"]} <= {part.name for part in done.parts}:
            say(f"not all partitions of {self.folder} stand: making the others anew")
            remove(join(self.folder, MANIFEST))
            return None
        return manifest

    def _put(self, table: Path, name: str) -> str:
        """Put the table of images into the folder; returns the path that all machines have."""
        path = join(self.folder, name)
        try:
            upload(table, path)
        except OSError as error:
            raise RunError(f"to write {self.folder}", reason=reason_of(error)) from error
        return path if is_url(path) else os.path.abspath(path)

    def _identity(self) -> dict[str, Any]:
        """What the actors score with: on a GPU the driver may have none."""
        if not self.actors.gpus:
            return self.scorer.identity()
        import ray

        kind = {"num_cpus": self.actors.cores, "num_gpus": self.actors.gpus}
        remote: Any = ray.remote(**kind)  # type: ignore[call-overload]
        found = ray.get(remote(identity_of).remote(self._own))
        if isinstance(found, DcmplError):
            raise found
        return dict(found)

    @property
    def _own(self) -> BatchScorer:
        """Scorer as actors open it."""
        is_path = self.model not in (None, "default") and not is_url(self.model)
        model = os.path.abspath(str(self.model)) if is_path else self.model
        options = {**vars(self.scorer.options), "workers": self.actors.cores}
        return BatchScorer(model, **options)

    def _listed(self, table: Path) -> tuple[list[tuple[str, int]], str, bool]:
        """Shards of what is named, the digest of all, and whether any path is a relative one.

        What is in no archive is in the ``table`` then.
        """
        digest, is_relative = sha256(), False

        def seen() -> Iterator[Source]:
            nonlocal is_relative
            for source in self.sources:
                is_relative |= not (is_url(source.path) or os.path.isabs(source.path))
                about = stamp(source.path) if source.shard else source.digest("")
                digest.update(f"{source.path}\n{about}\n".encode("utf-8", "surrogateescape"))
                yield source

        try:
            with table.open("wb") as file:
                shards = list(write_sources(file, seen()))
        except OSError as error:
            raise RunError("to list all images", reason=reason_of(error)) from error
        return shards, digest.hexdigest(), is_relative

    def _run(
        self,
        tasks: list[Task],
        mark: str,
        job: Mapping[str, Any],
        count: int,
        together: int,
        place: str,
    ) -> Iterator[Part]:
        """Parts of all tasks, as they are written."""
        if not tasks:
            return
        import ray
        from ray.data import ActorPoolStrategy, TaskPoolStrategy

        # Each of Ray's processes costs seconds of CPU to start. One that decodes keeps many actors
        # on processors busy; a GPU takes what as many as fit can give.
        readers = TaskPoolStrategy(None if self.actors.gpus else -(-count // 2))
        with _settings():
            data: Any = ray.data.from_items(
                [{"task": packed(task)} for task in tasks], override_num_blocks=len(tasks)
            )
            data = data.map_batches(
                Decode(self.prompts, place), batch_size=1, compute=readers, num_cpus=SMALL
            )
            identity = {name: job[name] for name in job if name not in OF_THE_JOB}
            given = (self._own, identity, self.prompts.of == "metadata", place)
            data = data.map_batches(
                Score,
                fn_constructor_args=given,
                batch_size=1,
                # On a processor a chunk takes seconds: none waits for an actor while another idles.
                compute=ActorPoolStrategy(
                    size=count, max_tasks_in_flight_per_actor=None if self.actors.gpus else 1
                ),
                num_cpus=self.actors.cores,
                num_gpus=self.actors.gpus,
            )
            folder = self.folder if is_url(self.folder) else os.path.abspath(self.folder)
            write = Write(folder, mark, job["columns"])
            data = data.map_batches(write, batch_size=together, num_cpus=SMALL)
            with progress_bar() as bar, _faults():
                shown = bar.add_task("scoring", total=None)
                for row in data.iter_rows():
                    part = unpacked(row["part"])
                    if isinstance(part, DcmplError):
                        raise part
                    bar.advance(shown, part.ok + part.error)
                    yield part


def _left(tasks: Iterable[Task], done: Done) -> Iterator[Task]:
    """Tasks with chunks that are not done, which name those that are."""
    chunks = done.chunks()
    for task in tasks:
        own = chunks.get(task.shard, [])
        numbers = {chunk.number for chunk in own}
        if task.is_archive:
            whole = any(c.is_last and numbers >= set(range(c.number + 1)) for c in own)
        else:
            ends = task.first + task.rows[1] - task.rows[0]
            mine = set(range(task.first // CHUNK, -(-ends // CHUNK)))
            whole, numbers = numbers >= mine, numbers & mine
        if not whole:
            yield replace(task, done=tuple(sorted(numbers)))


def _unchanged(folder: str, done: Done, tasks: Iterable[Task]) -> Done:
    """Partitions without an image of this machine's disks that is another by now.

    Archives that changed make another job; images of a store would be a request each.
    """
    place = {chunk[:2]: (p.name, i) for p in done.parts for i, chunk in enumerate(p.chunks)}
    changed = set[str]()
    with OpenParts(folder) as files:
        for task in tasks if place else ():
            for chunk in chunks_of(task, CHUNK, Prompts()) if not task.is_archive else ():
                name, group = place.get((chunk.shard, chunk.number), ("", 0))
                if not name or name in changed:
                    continue
                known = files[name].read_row_group(group, columns=[FILE])[FILE].to_pylist()
                pairs = zip(chunk.sources, known, strict=True)
                if any(_is_another(source, file) for source, file in pairs):
                    changed.add(name)
    if changed:
        say(f"images of {len(changed)} partitions were changed: scoring these anew")
    return Done(tuple(part for part in done.parts if part.name not in changed))


def _is_another(source: Source, file: str) -> bool:
    """Whether an image is not the file that it was, by its size and time, then its content."""
    before, _, content = file.rpartition(" ")
    if is_url(source.path) or source.stat() == before:
        return False
    return source.file().rpartition(" ")[2] != content


def _check_whole(tasks: Iterable[Task], done: Done) -> None:
    """Check that the chunks of all tasks are there; raises :class:`RunError`."""
    if missing := next(_left(tasks, done), None):
        what = missing.path if missing.is_archive else f"rows from {missing.first} on"
        raise RunError(f"all chunks of {what}", "fewer", KEPT)


@contextmanager
def _settings() -> Iterator[None]:
    """Ray Data's settings for a job, as they were behind it."""
    from ray.data import DataContext

    context = DataContext.get_current()
    wanted = {
        "enable_progress_bars": False,
        "execution_no_progress_timeout_s": PATIENCE,
        "target_max_block_size": BLOCK,
        "print_on_execution_start": False,
    }
    before = {name: getattr(context, name) for name in wanted}
    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.ERROR)
    for name, value in wanted.items():
        setattr(context, name, value)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="ray")  # advice on its own numbers
            yield
    finally:
        logger.setLevel(level)
        for name, value in before.items():
            setattr(context, name, value)


@contextmanager
def _faults() -> Iterator[None]:
    """Turn what Ray itself raises into a :class:`RunError`; say what an interruption leaves."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(KEPT) from None
    except DcmplError:
        raise
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise RunError(
            "to score all images on Ray", type(error).__name__, KEPT, " ".join(lines[-1:])
        ) from error
