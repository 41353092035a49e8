"""Images of a request: files of a form, or base64 in JSON; one prompt, or one for each."""

import base64
import binascii
import errno
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.datastructures import FormData
from starlette.datastructures import UploadFile as FormFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from dcmpl.client import MOST_PROMPT
from dcmpl.serve.problems import Problem
from dcmpl.serve.queue import Limits, Upload

__all__ = ["Asked", "body", "read_request"]

MOST_NAME = 1024
"""Letters of a name; a prompt or another field has MOST_PROMPT bytes at most."""

FIELDS = ("prompt", "by")
CHARSET = re.compile(r"charset[^=]*=\s*[\"']?([^\"';\s]*)", re.IGNORECASE)


@dataclass(frozen=True)
class Asked:
    """What a request brings: images with their prompts, and the name of a target."""

    images: tuple[Upload, ...]
    by: str = ""


class _Image(msgspec.Struct, forbid_unknown_fields=True):
    data: str
    name: str = ""
    prompt: str | None = None


class _Body(msgspec.Struct, forbid_unknown_fields=True):
    images: list[_Image]
    prompt: str = ""
    by: str = ""


def body(count: int | None = None) -> dict[str, Any]:
    """Body of a request, for OpenAPI; ``count``: how many images there must be."""
    bounds = {"minItems": count or 1, **({"maxItems": count} if count else {})}
    prompts = "the prompt of all images, or one for each, in their order"
    by = {"type": "string", "description": "what to rank by, as quality or quality_mos"}
    form = {
        "files": {
            "type": "array",
            **bounds,
            "items": {"type": "string", "contentMediaType": "application/octet-stream"},
            "description": "the images",
        },
        "prompt": {"type": "array", "items": {"type": "string"}, "description": prompts},
        "by": by,
    }
    image = {
        "data": {"type": "string", "contentEncoding": "base64"},
        "name": {"type": "string", "maxLength": MOST_NAME},
        "prompt": {"type": ["string", "null"]},
    }
    json = {
        "images": {
            "type": "array",
            **bounds,
            "items": _object("data", image),
            "description": "the images: data in base64, and a name and a prompt if they have them",
        },
        "prompt": {"type": "string", "description": "of images that have none of their own"},
        "by": by,
    }
    content = {
        "multipart/form-data": {"schema": _object("files", form)},
        "application/json": {"schema": _object("images", json)},
    }
    return {"requestBody": {"required": True, "content": content}}


def _object(required: str, properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "required": [required],
        "additionalProperties": False,
        "properties": properties,
    }


@asynccontextmanager
async def read_request(
    request: Request, limits: Limits, count: int | None = None
) -> AsyncIterator[Asked]:
    """Read images and prompts; what was spooled to disk is gone when the block ends.

    ``count``: how many images there must be. Raises :class:`Problem`.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        yield _checked(_of_json(await request.body(), limits), count)
        return
    if kind != "multipart/form-data":
        raise Problem(415, "multipart/form-data or application/json", kind or "no content type")
    for charset in CHARSET.findall(request.headers["content-type"]):  # the last counts
        if charset.lower() not in ("utf-8", "utf8", "us-ascii"):
            raise Problem(400, "a form in UTF-8", charset)
    form = await _form(request, limits)
    try:
        yield _checked(_of_form(form), count)
    finally:
        await form.close()


def _checked(asked: Asked, count: int | None) -> Asked:
    if not asked.images or count not in (None, len(asked.images)):
        wanted = {None: "at least one image", 1: "one image"}.get(count, f"{count} images")
        raise Problem(422, f"{wanted} in files or images", str(len(asked.images)))
    return asked


async def _form(request: Request, limits: Limits) -> FormData:
    try:
        return await request.form(
            max_files=limits.images,
            max_fields=limits.images + len(FIELDS),
            max_part_size=MOST_PROMPT,
        )
    except HTTPException as error:  # of starlette's, whose detail is the reason
        much = error.detail.startswith(("Too many", "Part exceeded", "Field exceeded"))
        raise Problem(
            413 if much else 400,
            f"a form of at most {limits.images} files, and fields of at most {MOST_PROMPT:,} bytes",
            error.detail.rstrip("."),
        ) from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise Problem(507, "room for what was sent", str(error.strerror)) from error


def _of_form(form: FormData) -> Asked:
    known = ("files", *FIELDS)
    if unknown := [name for name in form if name not in known]:
        raise Problem(422, f"fields of {', '.join(known)}", repr(unknown[0][:MOST_NAME]))
    files = [file for file in form.getlist("files") if isinstance(file, FormFile)]
    texts = {name: [v for v in form.getlist(name) if isinstance(v, str)] for name in known}
    if texts["files"] or any(len(form.getlist(n)) > len(texts[n]) for n in FIELDS):
        raise Problem(
            422, "files in files, and texts in prompt and by", "one in place of the other"
        )
    if len(texts["by"]) > 1:
        raise Problem(422, "one target in by", str(len(texts["by"])))
    prompts = texts["prompt"] or [""]
    if len(prompts) == 1:
        prompts *= len(files)
    if len(prompts) != len(files):
        raise Problem(
            422, f"one prompt for all, or one for each of {len(files)} images", str(len(prompts))
        )
    named = [file.filename or "" for file in files]
    reads = [_reader(file) for file in files]
    return Asked(_uploads(named, prompts, reads), "".join(texts["by"]))


def _reader(file: FormFile) -> Callable[[], bytes]:
    def read() -> bytes:
        file.file.seek(0)
        return file.file.read()

    return read


def _of_json(content: bytes, limits: Limits) -> Asked:
    try:
        body = msgspec.json.decode(content, type=_Body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Problem(422, "JSON of images, prompt and by", str(error)) from error
    if len(body.images) > limits.images:
        raise Problem(413, f"at most {limits.images} images", str(len(body.images)))
    prompts = [body.prompt if each.prompt is None else each.prompt for each in body.images]
    reads = [_decoder(each.data, place) for place, each in enumerate(body.images)]
    return Asked(_uploads([each.name for each in body.images], prompts, reads), body.by)


def _decoder(data: str, place: int) -> Callable[[], bytes]:
    try:
        content = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Problem(422, f"base64 in data of image {place}", str(error)) from error
    return lambda: content


def _uploads(
    names: Sequence[str], prompts: Sequence[str], reads: Sequence[Callable[[], bytes]]
) -> tuple[Upload, ...]:
    for prompt in prompts:
        if len(prompt.encode(errors="surrogatepass")) > MOST_PROMPT:
            raise Problem(413, f"prompts of at most {MOST_PROMPT:,} bytes", "a longer one")
    rows: Any = zip(names, prompts, reads, strict=True)
    return tuple(
        Upload(name[:MOST_NAME] or f"image {place}", prompt, read)
        for place, (name, prompt, read) in enumerate(rows, 1)
    )
