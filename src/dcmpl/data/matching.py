"""Which row of a table means which image: by path, or by the file's name alone."""

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from dcmpl.errors import DataError
from dcmpl.storage import local_copy

__all__ = ["match_prompts", "read_prompts", "same_name"]


def same_name(path: str) -> str:
    """``path`` in the one form that systems write its letters in (NFC), with / between folders."""
    plain = path.replace("\\", "/") if "/" not in path and os.sep == "/" else path
    return unicodedata.normalize("NFC", plain)


def read_prompts(file: Path | str, images: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Image -> prompt from a table with the columns image and prompt.

    Returns the prompts and the rows' images that are none of ``images``, as in
    :func:`match_prompts`. Raises :class:`DataError` where the file is no such table too.
    """
    from dcmpl.data.sheets import check_cells, read_sheet  # imports pandas

    with local_copy(str(file)) as here:
        try:
            frame = read_sheet(here)
        except DataError as error:
            raise DataError(*(text.replace(str(here), str(file)) for text in error.args)) from error
    file = Path(file)
    if not {"image", "prompt"} <= {*frame.columns}:
        raise DataError(
            f"the columns image and prompt in {file}", ", ".join(map(str, frame.columns))
        )
    check_cells(frame, ("image", "prompt"), file)
    rows = list(zip(frame["image"], frame["prompt"], strict=True))
    return match_prompts(rows, images, file)


def match_prompts(
    rows: Sequence[tuple[str, str]], images: Sequence[str], file: Path
) -> tuple[dict[str, str], list[str]]:
    """Image -> prompt by the rows (path, prompt) of ``file``, and the rows that mean none.

    A row means the image at its path, as it is or beside the table; else the image whose path
    ends as the row does, so that a row with folders never means an image of another folder. Of
    two rows for an image the one with more of its path counts. Raises :class:`DataError` where
    a row fits several images, or two rows for an image have different prompts.
    """
    each = {os.path.abspath(image): image for image in images}
    paths = {image: same_name(path) for path, image in each.items()}
    by_path: dict[str, list[str]] = {}
    by_name: dict[str, list[str]] = {}
    for image, path in paths.items():
        by_path.setdefault(path, []).append(image)
        by_name.setdefault(os.path.basename(path), []).append(image)
    chosen: dict[str, tuple[int, str]] = {}
    strange = []
    for row, prompt in rows:
        named, weight = _meant(same_name(row), paths, by_path, by_name, file)
        if not named:
            strange.append(row)
            continue
        if len(named) > 1:
            named = [image for image in named if chosen.get(image, (0, ""))[0] <= weight]
        if len(named) > 1:
            raise DataError(
                f"{row} in {file} to name one image", f"{named[0]} and {named[1]}", "write its path"
            )
        for image in named:
            known = chosen.get(image)
            if known is not None and known[0] == weight and known[1] != prompt:
                raise DataError(f"one prompt for {row} in {file}", "two different ones")
            if known is None or known[0] < weight:
                chosen[image] = weight, prompt
    return {image: prompt for image, (_, prompt) in chosen.items()}, strange


def _meant(
    row: str,
    paths: dict[str, str],
    by_path: dict[str, list[str]],
    by_name: dict[str, list[str]],
    file: Path,
) -> tuple[list[str], int]:
    """Images that a row may mean, and how much of their path it has."""
    if not row.strip("/"):
        return [], 0
    beside = same_name(os.path.abspath(file.parent / row))
    for exact in (same_name(os.path.abspath(row)), beside):
        if exact in by_path:
            return by_path[exact], exact.count("/") + 1
    if os.path.isabs(row) or os.path.lexists(beside):
        return [], 0  # it names another file
    end = "/" + os.path.normpath(row)
    named = [
        image for image in by_name.get(os.path.basename(row), []) if paths[image].endswith(end)
    ]
    return named, end.count("/")
