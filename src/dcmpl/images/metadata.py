"""Prompts that image generators write into their PNG files, in the two forms most of them use.

``parameters``: plain text, the prompt first, then lines that begin with "Negative prompt:" or
"Steps:". ``prompt``: a JSON graph of nodes, in which a sampler's positive input leads to the node
that holds the text; or the prompt itself.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

__all__ = ["prompt_in", "whole_text"]

MAX_NODES = 2000
MAX_STEPS = 50
"""Of links between a sampler and the node with the text."""

BEHIND_PROMPT = re.compile(r"^(Negative prompt:|Steps: \d)", re.MULTILINE)


def prompt_in(texts: Mapping[str, str]) -> str:
    """Prompt among the texts of a file, empty where there is none.

    >>> prompt_in({"parameters": "a red fox\\nNegative prompt: blurry\\nSteps: 20, Seed: 1"})
    'a red fox'
    >>> nodes = '{"1": {"inputs": {"text": "a red fox"}}, "2": {"inputs": {"positive": ["1", 0]}}}'
    >>> prompt_in({"prompt": nodes})
    'a red fox'
    """
    if "parameters" in texts:
        return whole_text(BEHIND_PROMPT.split(texts["parameters"], maxsplit=1)[0].strip())
    plain = texts.get("prompt", "").strip()
    try:
        graph = json.loads(plain)
    except (ValueError, RecursionError):
        graph = None
    return whole_text(_of_graph(graph) if isinstance(graph, dict) else plain)


def whole_text(text: str) -> str:
    """``text`` with a replacement mark for lone surrogates, which no text file can hold."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _of_graph(graph: dict[str, Any]) -> str:
    """Prompt of a node graph: the text behind a sampler's positive input, else its first text."""
    nodes = {
        str(name): node["inputs"]
        for name, node in list(graph.items())[:MAX_NODES]
        if isinstance(node, dict) and isinstance(node.get("inputs"), dict)
    }
    for inputs in nodes.values():
        if found := _followed(inputs.get("positive"), nodes):
            return found
    return next((text for inputs in nodes.values() if (text := _text_of(inputs))), "")


def _followed(link: Any, nodes: Mapping[str, dict[str, Any]]) -> str:
    """Text at the end of a link [node, output], through any nodes on its way."""
    for _ in range(MAX_STEPS):
        if not isinstance(link, list) or not link or str(link[0]) not in nodes:
            return ""
        inputs = nodes[str(link[0])]
        if found := _text_of(inputs):
            return found
        names = ("text", "positive", "conditioning", "conditioning_1")
        link = next((inputs[name] for name in names if isinstance(inputs.get(name), list)), None)
    return ""


def _text_of(inputs: Mapping[str, Any]) -> str:
    for name in ("text", "text_g", "string", "value"):
        value = inputs.get(name)
        if isinstance(value, str) and value.strip():
            return value.strip()
    return ""
