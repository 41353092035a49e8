"""Data sets of AI-generated pictures with human scores: what lies at a path becomes one table."""

from collections.abc import Mapping
from pathlib import Path

from dcmpl.config import COLUMNS, target_of
from dcmpl.errors import DataError, UsageError
from dcmpl.official import DATASETS
from dcmpl.sheets import SHEETS, read_sheet
from dcmpl.table import ImageTable, MosScale, image_table

__all__ = ["load_table"]


def load_table(
    path: str | Path,
    mos_scale: MosScale | None = None,
    columns: Mapping[str, str] | None = None,
) -> ImageTable:
    """Read a data set, recognised by what lies at ``path``.

    ``path`` is the folder of a published one (``DATASETS``), or a table of one's own, for
    which ``mos_scale`` is needed; ``columns`` maps our names (``COLUMNS``) to those of the
    file. Raises :class:`DataError` when it is neither.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"expected a data set at {path}, found nothing there")
    if path.is_file():
        return _read_own(path.stem, path, mos_scale, columns or {})
    for name, official in DATASETS.items() if not columns else ():
        if (file := official.told_by(path)) is not None:
            scale = official.scale
            if mos_scale not in (None, scale):
                raise UsageError(
                    f"expected no MOS scale for {name} at {path}, whose own is {scale.low:g} to "
                    f"{scale.high:g}, got {mos_scale.low:g} to {mos_scale.high:g}: "
                    "leave --mos-scale out"
                )
            return official.read(path, file)
    own = [path / f"data{ending}" for ending in SHEETS if (path / f"data{ending}").is_file()]
    if own:
        return _read_own(path.absolute().name, own[0], mos_scale, columns or {})
    raise DataError(
        f"expected {path} to be a table, or a folder with data.csv or with one of "
        f"{', '.join(DATASETS)} as its authors ship it, found "
        f"{len(list(path.iterdir()))} entries and none of their tables"
    )


def _read_own(
    name: str, file: Path, mos_scale: MosScale | None, columns: Mapping[str, str]
) -> ImageTable:
    frame = read_sheet(file)
    unknown = [ours for ours in columns if ours not in COLUMNS and target_of(ours) is None]
    absent = [theirs for theirs in columns.values() if theirs not in frame]
    if unknown or absent:
        raise DataError(
            f"expected --columns to map {', '.join(COLUMNS)} to columns of {file} "
            f"({', '.join(frame.columns)}), got {', '.join(unknown or absent)}"
        )
    frame = frame.drop(columns=set(columns) - set(columns.values()), errors="ignore")
    frame = frame.rename(columns={theirs: ours for ours, theirs in columns.items()})
    missing = [column for column in ("image", "prompt") if column not in frame]
    if not any(target_of(str(column), ("mos",)) for column in frame):
        missing.append("mos_quality")
    if missing:
        raise DataError(
            f"expected the columns image, prompt and mos_quality in {file}, got "
            f"{', '.join(frame.columns)}: rename them or map them, "
            f"as in --columns {missing[0]}=THEIR_NAME"
        )
    if mos_scale is None:
        raise UsageError(
            f"expected the ends of the MOS scale of {file}, got none: "
            "add --mos-scale LOW HIGH, for example --mos-scale 1 5"
        )
    return image_table(name, mos_scale, frame, [file.parent], file, declared=True)
