"""The prompt in a node graph, as ComfyUI writes it into the images it makes.

A graph is JSON, ``{"3": {"class_type": "KSampler", "inputs": {"positive": ["6", 0], ...}}, ...}``:
an input is a value or a link ``[node, output]``. The prompt is the text that the positive input
of a sampler leads to. Of several samplers in a row the first counts, since those behind it refine
its image. Nothing else is a prompt: a text that no sampler reads may be a rest or a remark, and a
text that a negative input leads to is never one.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["prompt_of_graph"]

MAX_NODES = 2000
MAX_STEPS = 50
"""Links between a sampler and the node that holds the text."""

MAX_TEXT = 2**16
"""Characters of a prompt: joins of joins could double it at each step."""

NEGATIVE, POSITIVE = re.compile("negative|^neg(_|$)"), re.compile("positive|^pos(_|$)")

IS_END = re.compile("positive|negative|^cond|conditioning")
"""Links that carry a condition from one end to another."""

NO_TEXT = re.compile(
    "model|unet|^clip($|_name|_vision)|vae|image|pixels|mask|latent|samples?$|control_?net|noise"
    "|sigmas|sampler|scheduler|seed|lora|bbox|segm|sam_|width|height"
)
"""Links that lead to no text: pixels, latents, weights, numbers."""

NO_IMAGE = re.compile("guider|conditioning|^cond|model|^clip|vae|control_?net|noise|sigmas|lora")
"""Links by which no image comes, besides those of prompts."""

ENCODED = ("text_g", "text_l", "clip_g", "clip_l", "bert", "mt5xl", "t5xxl", "llama")
"""Texts of one prompt for several text encoders: SDXL, SD3, Flux, Hunyuan, HiDream."""

TEXTS = ("populated_text", "text", "prompt", "string", "value", "user_prompt", "caption", "str")
"""Inputs that hold a text or lead to it; the first that has one counts."""

CONDITIONS = ("conditioning", "guider", "conditioning_to", "cond1", "cond")
"""Inputs that lead to a text; of an average (to, from) and of two (cond1, cond2) the first."""

SERIES = re.compile(r"(text|string|prompt|str|input|conditioning|part|any)_?([a-h]|\d{1,2})$")
"""Inputs of nodes that join: text_a, string2, conditioning_1."""

DELIMITERS = ("delimiter", "separator")
CHOSEN = ("select", "index", "Input", "input")
"""Inputs of switches that hold the number of what is passed on."""

CHANGED = re.compile("replace|regex|random|wildcard|ollama|llm|translat|generat|florence", re.I)
"""Nodes that write a text of their own from what they are given: it is not in the graph."""


def prompt_of_graph(graph: Mapping[str, Any]) -> tuple[str, str]:
    """Prompt of a graph and, where it is empty, the reason for that.

    >>> nodes = {"1": {"inputs": {"text": "a red fox"}}, "2": {"inputs": {"positive": ["1", 0]}}}
    >>> prompt_of_graph(nodes)
    ('a red fox', '')
    >>> prompt_of_graph({"1": {"inputs": {"text": "a red fox"}}})
    ('', 'its graph has no sampler')
    """
    if len(graph) > MAX_NODES:
        return "", f"its graph has more than {MAX_NODES} nodes"
    read = _Graph(graph)
    samplers = read.samplers()
    if not samplers:
        return "", "its graph has no sampler"
    found = [read.text(name) for name in samplers]
    prompts = [*dict.fromkeys(text for text in found if text)]
    if len(prompts) > 1:
        return "", f"its graph has {len(prompts)} prompts"
    if prompts:
        return prompts[0], ""
    return "", "its prompt is empty" if "" in found else "no text leads to its sampler"


class _Graph:
    """Nodes by number, and the texts that their negative inputs lead to."""

    def __init__(self, graph: Mapping[str, Any]) -> None:
        nodes = {name: node for name, node in graph.items() if isinstance(node, dict)}
        self.inputs: dict[str, Mapping[str, Any]] = {
            str(name): node["inputs"]
            for name, node in nodes.items()
            if isinstance(node.get("inputs"), dict)
        }
        self.kinds = {str(name): str(node.get("class_type", "")) for name, node in nodes.items()}
        self.negative = self._negative()
        self.known: dict[str, str | None] = {}

    def node_of(self, value: Any) -> str | None:
        """Node that a link leads to; None for a value and for a link to nowhere."""
        if not isinstance(value, list) or len(value) != 2:
            return None
        name = str(value[0]) if isinstance(value[0], (str, int)) else ""
        return name if name in self.inputs else None

    def links(self, name: str) -> Iterator[tuple[str, str]]:
        """(input, node) of the links into a node."""
        for key, value in self.inputs[name].items():
            if (node := self.node_of(value)) is not None:
                yield key, node

    def _negative(self) -> set[str]:
        """Texts that a negative input holds or leads to, at any distance."""
        texts: set[str] = set()
        seen: set[tuple[str, bool]] = set()
        stack = [
            (value, True)
            for inputs in self.inputs.values()
            for key, value in inputs.items()
            if NEGATIVE.search(key)
        ]
        while stack:
            value, is_end = stack.pop()
            if isinstance(value, str):
                texts.add(value.strip())
            node = self.node_of(value)
            if node is None or "ZeroOut" in self.kinds[node]:  # of a positive one
                continue
            crossed = is_end and value[1] == 0 and self._passes_both(node)
            if (node, crossed) in seen:
                continue
            seen.add((node, crossed))
            inputs = self.inputs[node]
            ends = POSITIVE if crossed else NEGATIVE
            own = [key for key in inputs if ends.search(key)]
            stack += [
                (inputs[key], IS_END.search(key) is not None)
                for key in own or inputs
                if not NO_TEXT.search(key)
            ]
        return texts - {""}

    def _passes_both(self, name: str) -> bool:
        """Whether a node passes a positive condition on as output 0 and a negative one as 1.

        Loaders hold both as texts, and have other outputs before them.
        """
        ends = [key for key in self.inputs[name] if POSITIVE.search(key) or NEGATIVE.search(key)]
        both = any(map(POSITIVE.search, ends)) and any(map(NEGATIVE.search, ends))
        return both and any(self.node_of(self.inputs[name][key]) for key in ends)

    def samplers(self) -> list[str]:
        """First samplers on the way to each image: those that get none from another sampler."""
        read = {node for name in self.inputs for _, node in self.links(name)}
        ends = [name for name in self.inputs if name not in read]
        saved = [name for name in ends if "save" in self.kinds[name].lower()]
        reached = self._behind(saved or ends or [*self.inputs])
        found = [name for name in self.inputs if name in reached and self._draws(name)]
        return [name for name in found if not (self._behind([name]) - {name}) & {*found}]

    def _draws(self, name: str) -> bool:
        """Whether a node has a prompt to draw an image by, as samplers and detailers have."""
        inputs = self.inputs[name]
        guided = self.node_of(inputs.get("guider")) is not None
        return guided or any(
            POSITIVE.search(key) and (isinstance(value, str) or self.node_of(value) is not None)
            for key, value in inputs.items()
        )

    def _behind(self, ends: list[str]) -> set[str]:
        """``ends`` and the nodes their images come from."""
        seen, stack = {*ends}, [*ends]
        while stack:
            for key, node in self.links(stack.pop()):
                prompts = NEGATIVE.search(key) or POSITIVE.search(key) or NO_IMAGE.search(key)
                if not prompts and node not in seen:
                    seen.add(node)
                    stack.append(node)
        return seen

    def text(self, name: str, steps: int = MAX_STEPS) -> str | None:
        """Text of a node or of the nodes it links to; None where there is none."""
        if name in self.known or not steps:
            return self.known.get(name)
        self.known[name] = None  # what a loop finds
        self.known[name] = found = self._text(name, steps - 1)
        return found

    def _text(self, name: str, steps: int) -> str | None:
        inputs, kind = self.inputs[name], self.kinds[name]
        is_changed = CHANGED.search(kind) or inputs.get("action") == "replace"
        if "ZeroOut" in kind or (is_changed and not inputs.get("populated_text")):
            return None
        if positive := [key for key in inputs if POSITIVE.search(key)]:
            return self._joined(inputs, positive, steps)
        if any(key in inputs for key in ENCODED):
            return self._joined(inputs, ENCODED, steps)
        series = sorted((m[1], m[2].zfill(2), m[0]) for key in inputs if (m := SERIES.match(key)))
        if series and not any(self._value(inputs, key, steps) for key in TEXTS):
            return self._series(inputs, [key for *_, key in series], steps)
        if "Concat" in kind and "conditioning_to" in inputs:
            return self._joined(inputs, ("conditioning_to", "conditioning_from"), steps)
        if "conditioning_to" in inputs:  # before a text that is added to it, as a box's
            is_from = inputs.get("conditioning_to_strength") == 0
            return self._value(inputs, "conditioning_from" if is_from else "conditioning_to", steps)
        found = [self._value(inputs, key, steps) for key in TEXTS]
        if any(found):
            return next(text for text in found if text)
        found += [self._value(inputs, key, steps) for key in CONDITIONS]
        if all(text is None for text in found):
            known = (*TEXTS, *CONDITIONS, "conditioning_from", "cond2")
            skip = (key in known or NO_TEXT.search(key) or NEGATIVE.search(key) for key in inputs)
            others = [key for key, no in zip(inputs, skip, strict=True) if not no]
            linked = [key for key in others if self.node_of(inputs[key]) is not None]
            found = [*{self._value(inputs, key, steps) for key in linked} - {None}]
            if len(found) > 1:  # a switch, or what is not known: not guessed
                return None
        texts = [text for text in found if text is not None]
        return next((text for text in texts if text), "" if texts else None)

    def _value(self, inputs: Mapping[str, Any], key: str, steps: int) -> str | None:
        """Text of one input, if no negative one leads to it."""
        value = inputs.get(key)
        if isinstance(value, str):
            text = value.strip()
            return None if text in self.negative or len(text) > MAX_TEXT else text
        node = self.node_of(value)
        if (
            node
            and isinstance(value, list)
            and value[1] == 1
            and IS_END.search(key)
            and self._passes_both(node)
        ):
            return None  # its negative end
        found = None if node is None else self.text(node, steps)
        return None if found in self.negative else found

    def _series(self, inputs: Mapping[str, Any], keys: list[str], steps: int) -> str | None:
        """Text of a node that joins several, or chooses one of them by its number."""
        if numbers := [inputs[name] for name in CHOSEN if name in inputs]:
            chosen = numbers[0] if isinstance(numbers[0], (int, str)) else ""
            keys = [key for key in keys if re.search(rf"[a-z_]0?{re.escape(str(chosen))}$", key)][
                :1
            ]
        if keys and keys[0].startswith("any"):  # the first that is there
            keys = [key for key in keys if self._value(inputs, key, steps) is not None][:1]
        return self._joined(inputs, keys, steps)

    def _joined(self, inputs: Mapping[str, Any], keys: Any, steps: int) -> str | None:
        """Different texts of some inputs, joined as the node says."""
        found = [self._value(inputs, key, steps) for key in keys if key in inputs]
        texts = [*dict.fromkeys(text for text in found if text)]
        given = (inputs[key] for key in DELIMITERS if isinstance(inputs.get(key), str))
        joined = next(given, ", ").replace("\\n", "\n").join(texts).strip()
        if joined in self.negative or len(joined) > MAX_TEXT:
            return None
        return joined if texts else ("" if "" in found else None)
