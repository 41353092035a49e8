"""``dcmpl score`` and ``dcmpl merge``: what was named, to a file of scores. Imports no torch."""

import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from dcmpl import __version__
from dcmpl.config import TARGETS
from dcmpl.data.sources import Entry, read_prompts, requests, with_prompts
from dcmpl.errors import DataError, DcmplError, RunError
from dcmpl.images.decode import quiet_pillow
from dcmpl.progress import say, track
from dcmpl.scoring.files import (
    COLUMNS,
    Row,
    best_first,
    columns_of,
    manifest_of,
    merged,
    read_manifest,
    read_scores,
    write_scores,
)
from dcmpl.scoring.results import Score
from dcmpl.scoring.scorer import CHUNK, Scorer
from dcmpl.selection import copy_best, move
from dcmpl.weights import warn_of_floor

__all__ = ["COMMANDS", "Part", "open_part", "part_of"]


def part_of(out: Path) -> Path:
    """Where the rows of a job stand that is under way."""
    return out.with_name(out.name + ".part")


class Part:
    """The rows of a job that is under way."""

    def __init__(
        self, path: Path, file: BinaryIO, offsets: list[int], columns: Sequence[str]
    ) -> None:
        self.path, self._file = path, file
        self._offsets, self._columns = offsets, columns

    def __len__(self) -> int:
        return len(self._offsets)

    def write(self, row: Row) -> None:
        """Append a row; it is in the file when this returns."""
        line = json.dumps({name: row[name] for name in self._columns}).encode() + b"\n"
        self._offsets.append(self._file.tell())
        self._file.write(line)
        self._file.flush()

    def rows(self, order: Iterable[int] | None = None) -> Iterator[Row]:
        """The rows in the order they came, or those of ``order``; one is held at a time."""
        with self.path.open("rb") as file:
            for index in range(len(self)) if order is None else order:
                file.seek(self._offsets[index])
                row = _row_in(file.readline(), self._columns)
                if row is None:
                    raise RunError(f"expected whole rows in {self.path}, row {index} was changed")
                yield row


@contextmanager
def open_part(out: Path, job: Mapping[str, Any], resume: bool, chunk: int) -> Iterator[Part]:
    """The part file of ``out``, for this process alone.

    With ``resume`` the rows that are there count, up to the last multiple of ``chunk`` (or
    to the job's ``count``). The file is removed when the block ends without an error. Raises
    :class:`RunError` where another process writes it, rows of another job or, without
    ``resume``, any rows stand there, or the disk does not take them.
    """
    path = part_of(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out.with_name(out.name + ".lock"), timeout=0)
        lock.acquire()
    except Timeout:
        raise RunError(
            f"expected to be the only one that writes {out}, another dcmpl does: "
            "wait for it, or choose another -o"
        ) from None
    except OSError as error:
        raise RunError(f"expected to write {out}, got: {error.strerror or error}") from error
    try:
        if path.exists() and not resume:
            raise RunError(
                f"expected no {path}, found the rows of a scoring that was broken off: "
                "add --resume to go on with it, or delete it"
            )
        with _opened(path, job, chunk) as part:
            yield part
        path.unlink()
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_kept(path)) from None
    except OSError as error:
        told = error.strerror or error
        raise RunError(f"expected to write {out}, got: {told}; {_kept(path)}") from error
    except DcmplError:
        raise
    except Exception as error:  # engines raise anything
        told = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise RunError(f"expected to score all pictures, got {told}; {_kept(path)}") from error
    finally:
        with suppress(OSError):
            Path(lock.lock_file).unlink()
        lock.release()


def _kept(path: Path) -> str:
    if not path.is_file():
        return "nothing was scored yet"
    return f"the rows scored so far are in {path}, --resume goes on with them"


@contextmanager
def _opened(path: Path, job: Mapping[str, Any], chunk: int) -> Iterator[Part]:
    head = json.dumps({"job": job}).encode() + b"\n"
    columns = tuple(job.get("columns", COLUMNS))
    with path.open("r+b" if path.exists() else "w+b") as file:
        ends = _complete_rows(file, head, path, columns)  # of the head and of every row
        rows = len(ends) - 1
        if rows < int(job["count"]):
            del ends[rows // chunk * chunk + 1 :]
        file.seek(0)
        file.write(head)
        file.truncate(ends[-1])
        file.seek(ends.pop())
        file.flush()
        yield Part(path, file, ends, columns)


def _complete_rows(file: BinaryIO, head: bytes, path: Path, columns: Sequence[str]) -> list[int]:
    """Where the head ends, and every whole row behind it."""
    found, ends = file.readline(), [len(head)]
    if head.startswith(found) and found != head:  # killed before anything was scored
        return ends
    if found != head:
        raise RunError(
            f"expected the rows of this job in {path}, got those of one that differs in "
            f"{_difference(found, head)}: score as it was started, or delete it"
        )
    for line in file:
        if (
            not line.endswith(b"\n") or _row_in(line, columns) is None
        ):  # torn by a kill or a power cut
            break
        ends.append(ends[-1] + len(line))
    return ends


def _row_in(line: bytes, columns: Sequence[str]) -> Row | None:
    """The row that a line of a part file holds, None where it holds none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and set(row) == set(columns) else None


def _difference(found: bytes, wanted: bytes) -> str:
    """What two jobs differ in."""
    try:
        there, here = (json.loads(line)["job"] for line in (found, wanted))
        names = [name for name in here if there.get(name) != here[name]]
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return "a damaged first line"
    return ", ".join(names) or "other fields"


TOLD_FAULTS = 10


def score(arguments: Any) -> int:
    """``dcmpl score``."""
    with quiet_pillow():
        return _score(arguments)


def _score(arguments: Any) -> int:
    entries = _prompted(arguments)
    scorer = Scorer.from_pretrained(
        arguments.model,
        arguments.backbone,
        arguments.device,
        engine=arguments.engine,
        precision=arguments.precision,
        views=arguments.views,
        targets=arguments.targets,
        workers=arguments.workers,
        long_prompts=arguments.long_prompts,
        against=arguments.against,
    )
    chooses = "sort", "rank", "top", "copy_top", "move_below"
    if arguments.by != "quality" or any(arguments[name] for name in chooses):
        scorer.check_target(arguments.by)
    _say_what_scores_mean(scorer, arguments)
    shard, start = _shard(entries, arguments.shard)
    job = _job(scorer, entries, len(shard), arguments)
    if arguments.out == "-":
        return _to_standard_output(scorer, shard, start, job, arguments)
    out = Path(arguments.out)
    rows = _finished(out, job, shard, arguments) if arguments.resume else None
    if rows is not None:
        say(f"{out} is finished")
        named = {entry.name: entry for entry in shard}
        shard = [named.get(row["image"]) or Entry(row["image"], row["image"]) for row in rows]
        values, faults = [row[arguments.by] for row in rows], _say_faults(iter(rows))
    else:
        with open_part(out, job, arguments.resume, CHUNK) as part:
            _score_into(part, scorer, shard, start, arguments)
            values = [row[arguments.by] for row in part.rows()]
            order = _order(part, values, arguments)
            chosen = part.rows(order)
            if arguments.rank:
                chosen = _ranked(scorer, part, order or [], arguments.by)
            counts = write_scores(out, chosen, job, made_with(scorer))
            faults = _say_faults(part.rows())
        _say_uncalibrated(scorer)
        written = sum(counts.values())
        kept = "" if written == len(shard) else f"; the best {written} are kept"
        ok = len(shard) - faults
        print(f"{ok} of {len(shard)} pictures scored{kept}: {out} and its manifest")
    undone = _move_and_copy(out, shard, values, arguments)
    return 3 if faults or undone else 0


def _score_into(
    part: Part, scorer: Scorer, shard: Sequence[Entry], start: int, arguments: Any
) -> None:
    done, began = len(part), time.monotonic()
    if done:
        say(f"{done} of {len(shard)} pictures were scored before")
    asked = requests(shard[done:], arguments.prompt_from == "metadata")
    left = len(shard) - done
    for score in track(scorer.rows(asked, start + done), "scoring", left):
        part.write(_row(score, arguments.rank))
    if left:
        seconds = time.monotonic() - began
        say(f"{seconds:.1f} s, {left / seconds:.1f} pictures/s")


def _finished(
    out: Path, job: dict[str, Any], shard: Sequence[Entry], arguments: Any
) -> list[Row] | None:
    """The rows in ``out`` where the job is done; files that it moved since may be gone.

    Raises :class:`RunError` where some are gone and others are new.
    """
    there = out.is_file() and manifest_of(out).is_file() and not part_of(out).exists()
    if not there or arguments.top:  # of what --top left out nothing is known
        return None
    found = read_manifest(out)
    differ = {name for name, value in job.items() if found.get(name) != value}
    if differ - {"pictures", "pictures_sha256", "count"} or (differ and not arguments.move_below):
        return None
    rows = list(read_scores(out))
    scored, named = {row["image"] for row in rows}, {entry.name for entry in shard}
    if not named - scored:
        return rows
    if scored - named:
        raise RunError(
            f"expected the pictures of {out} to move on with it, found others, "
            f"{min(named - scored)!r} among them: score those with another -o"
        )
    return None


def _prompted(arguments: Any) -> list[Entry]:
    """What was named, with the prompts that were named; what does not fit is said."""
    entries: list[Entry] = arguments.entries
    if arguments.prompts is None:
        prompt = arguments.prompt
        return (
            entries
            if prompt is None
            else with_prompts(entries, dict.fromkeys((entry.name for entry in entries), prompt))
        )
    names = [entry.name for entry in entries]
    prompts, strange = read_prompts(Path(arguments.prompts), names)
    if strange:
        say(
            f"{len(strange)} rows of {arguments.prompts} name none of the pictures, "
            f"{strange[0]!r} among them"
        )
    if without := [name for name in names if name not in prompts]:
        say(
            f"{len(without)} of {len(names)} pictures have no row in {arguments.prompts}, "
            f"{without[0]!r} among them: they get no prompt"
        )
    return with_prompts(entries, prompts)


def _say_what_scores_mean(scorer: Scorer, arguments: Any) -> None:
    warn_of_floor(scorer.about["backbone"])
    has_prompts = bool(arguments.prompt or arguments.prompts or arguments.prompt_from)
    if scorer.row_of.reads is None and has_prompts and "alignment" in scorer.targets:
        say("note: this model judges alignment from the picture alone; prompts are carried along")
    if scorer.row_of.reads is not None and not has_prompts:
        say(
            f"note: this model judges {scorer.row_of.reads} by the prompt; without --prompt, "
            "--prompts or --prompt-from only prompts that lists bring are known"
        )
    if arguments.targets is None and (lacks := [t for t in TARGETS[:2] if t not in scorer.targets]):
        say(f"note: this model does not predict {lacks[0]}; its column stays empty")


def _say_uncalibrated(scorer: Scorer) -> None:
    if scorer.calibration is None:
        say(f"note: scores without MOS units and labels: {scorer.uncalibrated}")


def _shard(entries: Sequence[Entry], shard: tuple[int, int] | None) -> tuple[Sequence[Entry], int]:
    """The entries of a shard, whole chunks of the job, and the place of the first."""
    number, total = shard or (1, 1)
    chunks = -(-len(entries) // CHUNK)
    first, end = ((i * chunks // total) * CHUNK for i in (number - 1, number))
    return entries[first:end], first


def _job(scorer: Scorer, entries: Sequence[Entry], count: int, arguments: Any) -> dict[str, Any]:
    """All that decides the rows; a job goes on, and shards fit together, where it is the same."""
    digest = hashlib.sha256()
    for entry in entries:
        named = entry.name, entry.prompt, entry.fault
        digest.update(json.dumps(named).encode())
    packages = ["numpy", "pillow", *PACKAGES[scorer.engine.name]]
    return {
        **{name: value for name, value in scorer.about.items() if name != "model"},
        "engine": scorer.engine.name,
        "precision": scorer.engine.precision,
        "views": scorer.views,
        "targets": list(scorer.targets),
        "batch_size": scorer.batch_size,
        "chunk": CHUNK,
        "prompt_from": arguments.prompt_from,
        "long_prompts": scorer.long_prompts if scorer.row_of.reads else None,
        "against": arguments.against,
        "calibration": scorer.calibration and scorer.calibration.digest,
        "columns": list(columns_of([*scorer.row_of.columns, *(RANKED if arguments.rank else ())])),
        "sort": arguments.by if arguments.sort or arguments.rank or arguments.top else None,
        "rank": arguments.rank,
        "top": arguments.top,
        "shard": "/".join(map(str, arguments.shard)) if arguments.shard else None,
        "pictures": len(entries),
        "pictures_sha256": digest.hexdigest(),
        "count": count,
        "dcmpl": __version__,
        **{name: version(name) for name in packages if find_spec(name) or name == "pillow"},
    }


def made_with(scorer: Scorer) -> dict[str, str]:
    """What the rows do not depend on: shards of two machines fit, a renamed run goes on."""
    return {"model": str(scorer.about.get("model", "")), "python": platform.python_version()}


PACKAGES = {"torch": ["torch"], "onnx": ["onnxruntime"], "openvino": ["openvino"]}


RANKED = ("rank", "better_than_next", "call")


def _row(score: Score, rank: bool = False) -> Row:
    """All columns; those of a rank are filled in when all rows are there."""
    row: dict[str, Any] = {column: getattr(score, column) for column in COLUMNS}
    return {**row, **score.more, **(dict.fromkeys(RANKED) if rank else {})}


def _ranked(scorer: Scorer, part: Part, order: Sequence[int], by: str) -> Iterator[Row]:
    """Rows best first with their ranks; what is too close to call is said of the first."""
    target = scorer.target_of(by)
    scores = [row[target] for row in part.rows(order)]
    spreads = [row.get(f"{target}_spread") for row in part.rows(order)]
    places = list(scorer.places(scores, spreads, target))
    for place, row in enumerate(part.rows(order)):
        if place == 0 and (chance := places[0]["better_than_next"]) is not None:
            say(
                f"{row['image']} is ranked first; the chance that people prefer it to the next is "
                f"{chance:.0%}: {places[0]['call']}"
            )
        yield {**row, **places[place]}


def _order(part: Part, values: Sequence[float | None], arguments: Any) -> list[int] | None:
    """Places of the rows to keep, None for all as they came."""
    if not arguments.sort and not arguments.rank and arguments.top is None:
        return None
    order = best_first(values)
    if arguments.top is None:
        return order
    ok = (i for i, row in zip(order, part.rows(order), strict=True) if row["status"] == "ok")
    return list(islice(ok, arguments.top))


def _say_faults(rows: Iterator[Row]) -> int:
    """Say the first reasons; returns how many pictures have no score."""
    faults = 0
    for row in rows:
        if row["status"] == "error":
            faults += 1
            if faults <= TOLD_FAULTS:
                say(f"not scored: {row['reason']}")
    if faults > TOLD_FAULTS:
        say(f"and {faults - TOLD_FAULTS} more, each with its reason in the file")
    return faults


def _move_and_copy(
    out: Path, entries: Sequence[Entry], values: Sequence[float | None], arguments: Any
) -> int:
    """What is done with the files; all rows are in ``out`` by now. Returns how many it was not."""
    faults: list[str] = []
    try:
        if arguments.copy_top is not None:
            count, folder = arguments.copy_top
            best = [i for i in best_first(values)[:count] if values[i] is not None]
            copied, faults = copy_best([entries[i] for i in best], Path(folder))
            say(f"{copied} copied to {folder}")
        if arguments.move_below is not None:
            threshold, folder = arguments.move_below
            pairs = zip(entries, values, strict=True)
            below = [entry for entry, v in pairs if v is not None and v < threshold]
            moved, more = move(below, Path(folder))
            faults += more
            say(f"{moved} moved to {folder}")
    except OSError as error:
        raise RunError(
            f"expected a folder at {folder}, got: {error.strerror or error}; "
            f"all scores are in {out}"
        ) from error
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"all scores are in {out}; the same words with --resume move and copy the rest"
        ) from None
    for fault in faults:
        say(fault)
    return len(faults)


def _to_standard_output(
    scorer: Scorer, shard: Sequence[Entry], start: int, job: dict[str, Any], arguments: Any
) -> int:
    """Rows as JSON lines as they come; the manifest is the last line on standard error."""
    faults = 0
    try:
        for found in scorer.rows(requests(shard, arguments.prompt_from == "metadata"), start):
            faults += found.status == "error"
            print(json.dumps(_row(found)), flush=True)
    except BrokenPipeError:  # whoever reads has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    _say_uncalibrated(scorer)
    say(json.dumps({"manifest": job, "made_with": made_with(scorer)}))
    return 3 if faults else 0


def merge(arguments: Any) -> int:
    """``dcmpl merge``."""
    job, paths = merged([Path(path) for path in arguments.scores])
    if job["sort"] or job["top"]:
        raise RunError("expected shards in the order of their pictures, got sorted ones")
    out = Path(arguments.out)

    def rows() -> Iterator[Row]:
        for path in paths:
            yield from read_scores(path)

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        counts = write_scores(out, rows(), job, {"python": platform.python_version()})
    except OSError as error:
        raise RunError(f"expected to write {out}, got: {error.strerror or error}") from error
    if sum(counts.values()) != job["count"]:
        raise DataError(f"expected {job['count']} rows, got {sum(counts.values())}")
    print(f"{sum(counts.values())} rows of {len(paths)} shards: {out} and its manifest")
    return 3 if counts["error"] else 0


COMMANDS: dict[str, Callable[[Any], int]] = {"score": score, "merge": merge}
