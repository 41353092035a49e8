"""Tables that name pictures and their prompts, as people who score bring them."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from dcmpl.errors import DataError

__all__ = ["LISTS", "PROMPT_COLUMNS", "read_list", "read_prompts"]

LISTS = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".xlsx")

IMAGE_COLUMNS = ("image", "image_path", "filepath", "file_name", "filename", "file", "path", "name")
PROMPT_COLUMNS = ("prompt", "text", "caption", "title")
"""The names in use, the first that is there counts."""


def _column(columns: Sequence[str], known: Sequence[str]) -> str | None:
    return next((name for name in known if name in columns), None)


def read_list(file: Path) -> Iterator[tuple[str, str]]:
    """(path, prompt) of every row of a table; paths are relative to it, prompts may be empty.

    Raises :class:`DataError` where it is no table or has no column of pictures.
    """
    from dcmpl.sheets import read_sheet  # imports pandas

    frame = read_sheet(file)
    image, prompt = (_column([*frame.columns], known) for known in (IMAGE_COLUMNS, PROMPT_COLUMNS))
    if image is None:
        raise DataError(
            f"expected a column of pictures in {file} ({', '.join(IMAGE_COLUMNS)}), got "
            f"{', '.join(map(str, frame.columns))}"
        )
    prompts = frame[prompt] if prompt else [""] * len(frame)
    for name, text in zip(frame[image], prompts, strict=True):
        yield os.path.join(file.parent, name) if name else "", text


def read_prompts(file: Path, pictures: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Picture -> prompt from a table with the columns image and prompt.

    A row means the picture of that path (as it is, or beside the table) or else of that file
    name. Returns the prompts and the rows' images that are none of ``pictures``. Raises
    :class:`DataError` where the file is no such table, or a row fits several pictures.
    """
    from dcmpl.sheets import read_sheet  # imports pandas

    frame = read_sheet(file)
    if not {"image", "prompt"} <= {*frame.columns}:
        raise DataError(
            f"expected the columns image and prompt in {file}, got "
            f"{', '.join(map(str, frame.columns))}"
        )
    by_path = {os.path.abspath(picture): picture for picture in pictures}
    by_name: dict[str, list[str]] = {}
    for picture in by_path.values():  # each once
        by_name.setdefault(os.path.basename(picture), []).append(picture)
    prompts: dict[str, str] = {}
    strange = []
    for image, prompt in zip(frame["image"], frame["prompt"], strict=True):
        beside = by_path.get(os.path.abspath(file.parent / image))
        exact = by_path.get(os.path.abspath(image)) or beside
        named = [exact] if exact else by_name.get(os.path.basename(image), [])
        if len(named) > 1:
            raise DataError(
                f"expected {image} in {file} to name one picture, it fits {named[0]} and "
                f"{named[1]}: write its path"
            )
        if not named:
            strange.append(image)
        elif prompts.setdefault(named[0], prompt) != prompt:
            raise DataError(f"expected one prompt for {image} in {file}, got two different ones")
    return prompts, strange
