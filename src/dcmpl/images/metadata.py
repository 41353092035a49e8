"""Prompts that image generators write into the files they make.

``parameters`` and the EXIF comment hold A1111's text (the prompt, then lines that begin with
"Negative prompt:" or "Steps:") or JSON (Fooocus, SwarmUI, Draw Things); ``prompt`` a graph of
ComfyUI's or the prompt itself; InvokeAI, NovelAI and Midjourney have entries of their own. A
prompt is read or it is not: where the form is unknown, there is none, and the reason says so.
"""

import html
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from PIL import Image
from PIL.PngImagePlugin import iTXt

from dcmpl.images.graph import prompt_of_graph

__all__ = [
    "Found",
    "find_prompt",
    "infotext_prompt",
    "plain_prompt",
    "prompt_in",
    "texts_of",
    "whole_text",
]

BEHIND_PROMPT = re.compile(r"^(Negative prompt:|Steps: \d)", re.MULTILINE)

USER_COMMENT, EXIF = 0x9286, 0x8769
COMFY = {0x010E: "ImageDescription", 0x010F: "Make", 0x0110: "Model"}
"""EXIF tags in which ComfyUI writes "prompt: {...}" and "workflow: {...}"."""

MAX_JSON = 16 * 2**20
"""Characters of a text that is read as JSON."""


class Found(NamedTuple):
    """Prompt in a file, or the reason why there is none."""

    prompt: str
    reason: str = ""


def prompt_in(texts: Mapping[str, str]) -> str:
    """Prompt among the texts of a file, empty where there is none.

    >>> prompt_in({"parameters": "a red fox\\nNegative prompt: blurry\\nSteps: 20, Seed: 1"})
    'a red fox'
    """
    return find_prompt(texts).prompt


def find_prompt(texts: Mapping[str, str]) -> Found:
    """Prompt among the texts of a file, with the reason where there is none.

    >>> find_prompt({"prompt": '{"1": {"inputs": {"text": "a red fox"}}}'})
    Found(prompt='', reason='its graph has no sampler')
    """
    reasons = []
    for key, reader in READERS.items():
        if key in texts:
            found = reader(texts[key], texts)
            if found.prompt:
                return Found(whole_text(found.prompt))
            reasons.append(found.reason or "it is empty")
    if not reasons and "workflow" in texts:
        reasons.append("its workflow has no prompt beside it")
    return Found("", reasons[0] if reasons else "the file has none")


def _of_parameters(text: str, texts: Mapping[str, str]) -> Found:
    """Prompt before the settings of A1111, or in JSON."""
    if isinstance(record := _json(text), dict):
        return _of_record(record)
    return Found(infotext_prompt(text))


def infotext_prompt(text: str) -> str:
    """Prompt of A1111's text: what stands before the negative prompt and the settings."""
    return BEHIND_PROMPT.split(text, maxsplit=1)[0].strip()


def _of_prompt(text: str, texts: Mapping[str, str]) -> Found:
    """Prompt of ComfyUI's graph, or the text itself."""
    record = _json(text)
    return Found(*prompt_of_graph(record)) if isinstance(record, dict) else Found(text.strip())


RECORDS = ("prompt", "positive_prompt", "Prompt", "positivePrompt", "c")
"""Where JSON has the prompt: Fooocus and SwarmUI, InvokeAI, others, Draw Things."""


def _of_record(record: Mapping[str, Any]) -> Found:
    """Prompt in the JSON of Fooocus, SwarmUI, InvokeAI, Draw Things or NovelAI, or a graph."""
    for name in ("sui_image_params", "image"):
        if isinstance(record.get(name), dict):
            record = record[name]
    if any(isinstance(node, dict) and "class_type" in node for node in record.values()):
        return Found(*prompt_of_graph(record))
    value = next((record[name] for name in RECORDS if name in record), None)
    if isinstance(value, list):  # InvokeAI's parts with weights
        parts = [part.get("prompt") for part in value if isinstance(part, dict)]
        value = ", ".join(part for part in parts if isinstance(part, str))
    if isinstance(value, str):
        return Found(value.strip(), "its prompt is empty")
    return Found("", "its JSON has no prompt that is known")


def _of_json(text: str, texts: Mapping[str, str]) -> Found:
    record = _json(text)
    return _of_record(record) if isinstance(record, dict) else Found("", "its JSON is damaged")


def _of_old_invoke(text: str, texts: Mapping[str, str]) -> Found:
    """Prompt of InvokeAI's JSON before version 3, where [...] are negative words."""
    found = _of_json(text, texts)
    return Found(_without_brackets(found.prompt), found.reason)


def _of_dream(text: str, texts: Mapping[str, str]) -> Found:
    """Prompt of InvokeAI's first form: "a prompt [negative words]" -s 50 -S 1."""
    quoted = re.match(r'\s*"(.*?)"(?:\s+-|\s*$)', text, re.DOTALL)
    return Found(_without_brackets(quoted[1] if quoted else ""), "its text has another form")


def _without_brackets(text: str) -> str:
    return " ".join(re.sub(r"\[[^\[\]]*\]", " ", text).split())


def _of_comment(text: str, texts: Mapping[str, str]) -> Found:
    """Prompt of NovelAI, whose fourth version has one per character too."""
    record = _json(text)
    if not isinstance(record, dict) or ("uc" not in record and "v4_prompt" not in record):
        return Found("", "its comment has another form")
    caption = record.get("v4_prompt")
    caption = caption.get("caption") if isinstance(caption, dict) else None
    if isinstance(caption, dict) and isinstance(caption.get("base_caption"), str):
        chars = caption.get("char_captions")
        parts = [c.get("char_caption") for c in chars or () if isinstance(c, dict)]
        texts_of_it = [caption["base_caption"], *(p for p in parts if isinstance(p, str))]
        return Found(" | ".join(part.strip() for part in texts_of_it if part.strip()))
    return _of_record(record)


def _of_description(text: str, texts: Mapping[str, str]) -> Found:
    """Prompt of NovelAI or Midjourney; a description of anything else is no prompt."""
    if "novelai" in f"{texts.get('Software', '')} {texts.get('Source', '')}".lower():
        return Found(text.strip())
    prompt, _, job = text.rpartition("Job ID: ")
    if re.fullmatch("[0-9a-f-]{36}", job.strip()):
        return Found(prompt.strip())
    return Found("", "its description is of no generator that is known")


XMP_COMMENT = re.compile(r"<exif:UserComment>.{0,200}?<rdf:li[^>]*>([^<]*)</rdf:li>", re.DOTALL)


def _of_xmp(text: str, texts: Mapping[str, str]) -> Found:
    """Prompt of Draw Things, JSON in the comment of XMP."""
    comment = XMP_COMMENT.search(text)
    record = _json(html.unescape(comment[1])) if comment else None
    return _of_record(record) if isinstance(record, dict) else Found("", "its XMP has none")


READERS = {
    "parameters": _of_parameters,
    "prompt": _of_prompt,
    "invokeai_metadata": _of_json,
    "sd-metadata": _of_old_invoke,
    "Dream": _of_dream,
    "Comment": _of_comment,
    "Description": _of_description,
    "XML:com.adobe.xmp": _of_xmp,
}
"""Name of a text -> what reads it, in the order in which they count."""


def _json(text: str) -> Any:
    """JSON of a text that looks like a record, else None."""
    if not text.lstrip().startswith("{") or len(text) > MAX_JSON:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def whole_text(text: str) -> str:
    """``text`` with a replacement mark for lone surrogates, which no text file can hold."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


BRACKETS = re.compile(r"[(\[{]([^()\[\]{}]*)[)\]}]")
NETWORK = re.compile(r"<(lora|lyco|hypernet|embedding|wlora):[^<>]*>")
ESCAPED, KEPT = re.compile(r"\\([()\[\]{}])"), re.compile("[\ue028\ue029\ue05b\ue05d\ue07b\ue07d]")
"""Brackets that are meant, and what stands for them while weights are taken off."""


def _unweighted(text: str) -> str:
    """What stands in brackets, without a number behind a colon."""
    words, colon, number = text.rpartition(":")
    try:
        float(number[:40])
    except ValueError:
        return text
    return words if colon else text


def plain_prompt(prompt: str) -> str:
    """Words of a prompt: without weights, networks and BREAK, which a generator reads.

    >>> plain_prompt("a (red:1.3) fox <lora:snow:0.8> BREAK in ((snow))")
    'a red fox in snow'
    """
    text = ESCAPED.sub(lambda found: chr(0xE000 + ord(found[1])), NETWORK.sub(" ", prompt))
    for _ in range(10):  # from the inside out
        text, count = BRACKETS.subn(lambda found: _unweighted(found[1]), text)
        if not count:
            break
    text = KEPT.sub(lambda found: chr(ord(found[0]) - 0xE000), text)
    text = re.sub(r"\bBREAK\b", " ", text)
    return " ".join(text.split()) if text != prompt else prompt


def texts_of(image: Image.Image, exif: Image.Exif) -> dict[str, str]:
    """Texts in a file by name; those of EXIF under the names they have in a PNG.

    Pillow reads ``tEXt`` as Latin-1; what is UTF-8 by its bytes was UTF-8.
    """
    found: dict[str, str] = {}
    for name, text in getattr(image, "text", {}).items():
        if isinstance(text, str):
            found[str(name)] = str(text) if isinstance(text, iTXt) else _as_utf8(text)
    for name, text in _exif_texts(exif):
        found.setdefault(name, text)
    return found


def _as_utf8(text: str) -> str:
    try:
        return text.encode("latin-1").decode()
    except UnicodeError:
        return text


def _exif_texts(exif: Image.Exif) -> Iterator[tuple[str, str]]:
    for tag in COMFY:
        named = re.match(r"(prompt|workflow):\s*(\{.*)", str(exif.get(tag, "")), re.S | re.I)
        if named:
            yield named[1].lower(), named[2].rstrip("\0")
    comment = exif.get_ifd(EXIF).get(USER_COMMENT) or exif.get(USER_COMMENT)
    if text := _comment(comment):
        yield "parameters", text


def _comment(comment: Any) -> str:
    """Text of an EXIF comment, whose first eight bytes name its encoding."""
    if isinstance(comment, str):
        return comment.strip("\0 ")
    if not isinstance(comment, bytes):
        return ""
    code, content = comment[:8], comment[8:]
    if code == b"UNICODE\0":
        return _utf16(content).strip("\0 ")
    if code == b"JIS\0\0\0\0\0":
        japanese = "iso2022_jp" if b"\x1b" in content else "shift_jis"
        return content.decode(japanese, "replace").strip("\0 ")
    if code not in (b"ASCII\0\0\0", b"\0" * 8):
        content = comment
    try:
        return content.decode().strip("\0 ")
    except UnicodeDecodeError:
        return content.decode("latin-1").strip("\0 ")


def _utf16(content: bytes) -> str:
    """UTF-16 of either order: by its mark, else the one with more letters of ASCII."""
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return content.decode("utf-16", "replace")
    big = content[::2].count(0) >= content[1::2].count(0)
    return content.decode("utf-16-be" if big else "utf-16-le", "replace")
