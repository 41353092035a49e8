"""Sidecars: the files beside an image that may hold its prompt."""

import json

from dcmpl.data.lists import PROMPT_COLUMNS
from dcmpl.data.texts import decode_text
from dcmpl.images.metadata import find_prompt, infotext_prompt, whole_text

__all__ = ["MAX_SIDECAR_BYTES", "SIDECARS", "prompt_of_sidecar"]

MAX_SIDECAR_BYTES = 64 * 2**10

SIDECARS = (".txt", ".caption", ".json")
"""Endings of the files beside an image that may hold its prompt; the first that is there counts."""


def prompt_of_sidecar(name: str, content: bytes) -> tuple[str, str]:
    """Prompt in a sidecar, and a note where it could not be read as it is.

    A text may be A1111's, with its settings behind the prompt; JSON has its prompt under one of
    ``PROMPT_COLUMNS``, or in the form of an image generator.
    """
    if len(content) > MAX_SIDECAR_BYTES:
        return "", f"no prompt read: {name} has more than {MAX_SIDECAR_BYTES} bytes"
    try:
        text, note = decode_text(content)
    except ValueError as error:
        return "", f"no prompt read: {name} holds {error}"
    note = note and f"{name} {note}"
    if not name.lower().endswith(".json"):
        return infotext_prompt(text.strip()), note
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return "", f"no prompt read: {name} is no JSON"
    if not isinstance(record, dict):  # which would be taken for a text without settings
        return "", f"no prompt read: {name} has none"
    found = [record.get(column) for column in PROMPT_COLUMNS]
    prompt = next((value.strip() for value in found if isinstance(value, str)), "")
    prompt = prompt or find_prompt({"parameters": text}).prompt
    return whole_text(prompt), note if prompt else f"no prompt read: {name} has none"
