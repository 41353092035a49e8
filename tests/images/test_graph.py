"""Prompts in graphs of ComfyUI are those that a sampler reads, however they get there."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcmpl.images import graph as graphs
from dcmpl.images.graph import prompt_of_graph

FOX, OX = "a red fox", "an ox"

Graph = dict[str, Any]


def node(kind: str, **inputs: Any) -> Graph:
    return {"class_type": kind, "inputs": inputs}


def encoded(words: Any) -> Graph:
    return node("CLIPTextEncode", text=words, clip=["4", 1])


def said(words: str) -> Graph:
    return node("Text Multiline", text=words)


def decoded(name: str) -> Graph:
    return node("VAEDecode", samples=link(name), vae=link("4", 2))


def saved(name: str) -> Graph:
    return node("SaveImage", filename_prefix="ComfyUI", images=link(name))


def link(name: str, output: int = 0) -> list[Any]:
    return [name, output]


def sampler(positive: Any, negative: Any = ("7", 0), latent: Any = ("5", 0), **more: Any) -> Graph:
    ends = {"positive": positive, "negative": list(negative), "latent_image": list(latent)}
    numbers = {"seed": 1, "steps": 20, "cfg": 7.0, "denoise": 1.0}
    names = {"sampler_name": "euler", "scheduler": "normal", "model": ["4", 0]}
    return node("KSampler", **numbers, **names, **ends, **more)


def whole(**nodes: Graph) -> Graph:
    """Graph of the template of ComfyUI, with ``nodes`` in it."""
    return {
        "3": sampler(link("fox")),
        "4": node("CheckpointLoaderSimple", ckpt_name="sd.safetensors"),
        "5": node("EmptyLatentImage", width=512, height=512, batch_size=1),
        "7": encoded("blurry"),
        "fox": encoded(FOX),
        "8": decoded("3"),
        "9": saved("8"),
        **nodes,
    }


def drawn(positive: Any, negative: Any = ("7", 0), **nodes: Graph) -> Graph:
    return whole(**{"3": sampler(positive, negative), **nodes})


def guided(guider: Graph, **nodes: Graph) -> Graph:
    inputs = {name: link(name) for name in ("noise", "guider", "sampler", "sigmas")}
    custom = node("SamplerCustomAdvanced", latent_image=link("5"), **inputs)
    parts = {
        "noise": node("RandomNoise", noise_seed=1),
        "sampler": node("KSamplerSelect", sampler_name="euler"),
        "sigmas": node("BasicScheduler", scheduler="simple", steps=20, model=link("4")),
    }
    return whole(**{"3": custom, "guider": guider, **parts, **nodes})


def refined(second: Graph, **nodes: Graph) -> Graph:
    """Graph whose saved image is that of ``second``, which works on the first one's."""
    ends = {"big": decoded("second"), "9": saved("big")}
    return whole(**{"second": second, "ox": encoded(OX), **ends, **nodes})


def control(**nodes: Graph) -> Graph:
    ends = {"positive": link("fox"), "negative": link("7"), "image": link("load")}
    apply = node("ControlNetApplyAdvanced", control_net=link("net"), strength=1.0, **ends)
    parts = {
        "apply": apply,
        "net": node("ControlNetLoader", control_net_name="canny"),
        "load": node("LoadImage", image="in.png"),
    }
    return drawn(link("apply"), link("apply", 1), **{**parts, **nodes})


def unread(graph: Graph) -> bool:
    """Whether there is no prompt but a reason."""
    found, reason = prompt_of_graph(graph)
    return found == "" and len(reason) > 0


def spoken(**nodes: Graph) -> Graph:
    """Graph whose text comes from the node ``words``."""
    return whole(**{"fox": encoded(link("words")), **nodes})


def both(kind: str, **inputs: Any) -> Graph:
    return drawn(link("way"), way=node(kind, **inputs), ox=encoded(OX))


FACE = {"image": link("8"), "bbox_detector": link("bbox"), "wildcard": "", "denoise": 0.4}
LOADER = {"ckpt_name": "sd", "positive": FOX, "negative": "blurry", "clip_skip": -1}
PIPE = {"model": link("4"), "positive": link("fox"), "negative": link("7")}
OX_PIPE = {**PIPE, "positive": link("ox")}
ZERO = node("ConditioningZeroOut", conditioning=link("fox"))
PAIR = {"width": 1024, "height": 1024, "crop_w": 0, "crop_h": 0, "clip": link("4", 1)}

ENCODERS = {
    "CLIPTextEncodeSDXL": ("text_g", "text_l"),
    "CLIPTextEncodeSDXLRefiner": ("text",),
    "CLIPTextEncodeFlux": ("clip_l", "t5xxl"),
    "CLIPTextEncodeSD3": ("clip_l", "clip_g", "t5xxl"),
    "CLIPTextEncodeHiDream": ("clip_l", "clip_g", "t5xxl", "llama"),
    "CLIPTextEncodePixArtAlpha": ("text",),
    "TextEncodeQwenImageEdit": ("prompt",),
    "BNK_CLIPTextEncodeAdvanced": ("text",),
}
"""Nodes that read the prompt, and their inputs for it."""


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("linked", [False, True])
def test_encoders_read_the_prompt_once(kind: str, linked: bool) -> None:
    texts = dict.fromkeys(ENCODERS[kind], link("words") if linked else FOX)
    graph = whole(fox=node(kind, **PAIR, **texts), words=node("PrimitiveString", value=FOX))
    assert prompt_of_graph(graph) == (FOX, "")


@pytest.mark.parametrize("kind", ["CLIPTextEncodeSDXL", "CLIPTextEncodeFlux", "CLIPTextEncodeSD3"])
def test_empty_text_for_one_encoder_counts_for_nothing(kind: str) -> None:
    for one in ENCODERS[kind]:
        texts = {**dict.fromkeys(ENCODERS[kind], FOX), one: ""}
        assert prompt_of_graph(whole(fox=node(kind, **texts))) == (FOX, "")


PASSES: dict[str, Graph] = {
    "ConditioningSetArea": {"width": 64, "height": 64, "x": 0, "y": 0, "strength": 1.0},
    "ConditioningSetMask": {"mask": link("5"), "strength": 1.0},
    "ConditioningSetTimestepRange": {"start": 0.0, "end": 0.5},
    "ControlNetApply": {"control_net": link("net"), "image": link("load")},
    "FluxGuidance": {"guidance": 3.5},
    "ReferenceLatent": {"latent": link("5")},
    "StyleModelApply": {"style_model": link("4"), "clip_vision_output": link("5")},
    "unCLIPConditioning": {"clip_vision_output": link("5")},
}


@pytest.mark.parametrize("kind", PASSES)
def test_prompt_is_found_through_nodes_that_pass_conditions_on(kind: str) -> None:
    way = node(kind, conditioning=link("fox"), **PASSES[kind])
    assert prompt_of_graph(drawn(link("way"), way=way)) == (FOX, "")
    guider = node("BasicGuider", model=link("4"), conditioning=link("way"))
    assert prompt_of_graph(guided(guider, way=way)) == (FOX, "")


WORDS = {
    "primitive": node("PrimitiveString", value=FOX),
    "lines": node("PrimitiveStringMultiline", value=FOX),
    "text": said(FOX),
    "constant": node("StringConstantMultiline", string=FOX, strip_newlines=True),
    "another pack": node("CR Prompt Text", prompt=FOX),
    "shown": node("ShowText|pysssss", text=link("all"), text_0=FOX),
    "filled": node("ImpactWildcardProcessor", wildcard_text="{red|blue}", populated_text=FOX),
    "joined": node("StringConcatenate", string_a="a red", string_b="fox", delimiter=" "),
    "joined from links": node("Text Concatenate", delimiter=" ", text_a=link("a"), text_b="fox"),
    "joined otherwise": node("JoinStrings", string1=link("a"), string2="fox", delimiter=" "),
    "switch": node("ImpactSwitch", select=2, input1=link("ox"), input2=link("all")),
    "switch of texts": node("CR Text Input Switch", Input=2, text1=OX, text2=FOX),
    "first of any": node("Any Switch (rgthree)", any_01=link("all"), any_02=link("ox")),
}


@pytest.mark.parametrize("name", WORDS)
def test_text_may_come_from_another_node(name: str) -> None:
    texts = {"all": said(FOX), "a": said("a red"), "ox": said(OX)}
    assert prompt_of_graph(spoken(words=WORDS[name], **texts)) == (FOX, "")


LAYOUTS = {
    "the template": whole(),
    "numbers in links": {**whole(), "3": sampler([6, 0]), "6": encoded(FOX)},
    "nodes of a subgraph": drawn(link("12:6"), **{"12:6": encoded(FOX)}),
    "guider of two": guided(
        node("CFGGuider", model=link("4"), positive=link("fox"), negative=link("7"), cfg=4.0)
    ),
    "perp-neg guider": guided(
        node("PerpNegGuider", **PIPE, empty_conditioning=link("empty"), cfg=8.0, neg_scale=1.0),
        empty=encoded(""),
    ),
    "positive text zeroed out": drawn(link("fox"), link("zero"), zero=ZERO),
    "zeroed out behind a pass": drawn(
        link("fox"), link("area"), zero=ZERO, area=node("Reroute", conditioning=link("zero"))
    ),
    "control net for both": control(),
    "two control nets": control(
        apply=node("ControlNetApplyAdvanced", positive=link("one"), negative=link("one", 1)),
        one=node("ControlNetApplyAdvanced", positive=link("fox"), negative=link("7")),
    ),
    "control net and zeroed text": control(
        apply=node("ControlNetApplyAdvanced", positive=link("fox"), negative=link("zero")),
        zero=ZERO,
    ),
    "inpainting": drawn(
        link("in"), link("in", 1), **{"in": node("InpaintModelConditioning", **PIPE)}
    ),
    "inpainting of another sampler's image": refined(
        sampler(link("in"), ("in", 1), ("in", 2)),
        **{"in": node("InpaintModelConditioning", **OX_PIPE, pixels=link("8"))},
    ),
    "efficient loader": drawn(
        link("load", 1), link("load", 2), load=node("Efficient Loader", **LOADER)
    ),
    "pipe": whole(
        **{"3": node("ImpactKSamplerBasicPipe", basic_pipe=link("pipe"), latent_image=link("5"))},
        pipe=node("ToBasicPipe", **PIPE),
    ),
    "pipe that is unpacked": drawn(
        link("out", 3),
        link("out", 4),
        out=node("FromBasicPipe", basic_pipe=link("pipe")),
        pipe=node("ToBasicPipe", **PIPE),
    ),
    "context": drawn(
        link("context", 4), link("context", 5), context=node("Context (rgthree)", **PIPE)
    ),
    "loader with a pipe": whole(
        **{"3": node("easy fullkSampler", pipe=link("load"), image_output="Hide")},
        **{"8": node("SaveImage", images=link("3", 1)), "load": node("easy fullLoader", **LOADER)},
    ),
    "second sampler with the same text": refined(sampler(link("fox"), latent=("3", 0))),
    "second sampler with another text": refined(
        sampler(link("ox"), latent=("up", 0)),
        up=node("LatentUpscale", samples=link("3"), width=1024, height=1024),
    ),
    "second sampler on pixels": refined(
        sampler(link("ox"), latent=("up", 0)),
        up=node("VAEEncode", pixels=link("large"), vae=link("4", 2)),
        large=node("ImageScaleBy", image=link("8"), scale_by=2.0),
    ),
    "upscaler with a text of its own": refined(
        node("UltimateSDUpscale", image=link("8"), **OX_PIPE),
        **{"9": saved("second")},
    ),
    "detailer with a text of its own": refined(
        node("FaceDetailer", **FACE, **OX_PIPE),
        **{"9": saved("second")},
    ),
    "cascade": whole(
        b=sampler(link("stage"), ("zero", 0)),
        stage=node(
            "StableCascade_StageB_Conditioning", conditioning=link("zero"), stage_c=link("3")
        ),
        zero=ZERO,
        **{"8": decoded("b")},
    ),
    "image of another sampler as a guide": control(
        load=decoded("other"), other=sampler(link("ox")), ox=encoded(OX)
    ),
    "sampler that makes no image": whole(idle=sampler(link("ox")), ox=encoded(OX)),
    "two images of one text": whole(
        other=sampler(link("fox")), image=decoded("other"), save=saved("image")
    ),
    "text of nothing else": whole(note=said(OX)),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_prompt_is_the_text_that_the_sampler_reads(name: str) -> None:
    assert prompt_of_graph(json.loads(json.dumps(LAYOUTS[name]))) == (FOX, "")


JOINS = {
    "combined": both("ConditioningCombine", conditioning_1=link("fox"), conditioning_2=link("ox")),
    "set end to end": both(
        "ConditioningConcat", conditioning_to=link("fox"), conditioning_from=link("ox")
    ),
    "joined by a function": spoken(
        words=node("StringFunction|pysssss", action="append", text_a=FOX, text_b=OX)
    ),
    "joined by a separator": spoken(
        words=node("CR Text Concatenate", text1=FOX, text2=OX, separator=", ")
    ),
}


@pytest.mark.parametrize("name", JOINS)
def test_parts_are_joined_in_their_order(name: str) -> None:
    found, reason = prompt_of_graph(JOINS[name])
    assert (re.findall(r"\w+", found), reason) == (f"{FOX} {OX}".split(), "")


def test_average_begins_with_the_text_it_starts_from() -> None:
    ends = {"conditioning_to": link("fox"), "conditioning_from": link("ox")}
    found, _ = prompt_of_graph(both("ConditioningAverage", conditioning_to_strength=0.7, **ends))
    assert found.startswith(FOX)


def test_text_of_a_box_does_not_stand_for_the_prompt() -> None:
    found, _ = prompt_of_graph(
        both("GLIGENTextBoxApply", conditioning_to=link("fox"), text="a ball", width=64, height=64)
    )
    assert FOX in found


UNREAD = {
    "no sampler": {"1": encoded(FOX), "2": said(OX)},
    "no node": {},
    "link to nowhere": drawn(link("77")),
    "no positive link": whole(**{"3": node("KSampler", seed=1, latent_image=link("5"))}),
    "negative text alone": drawn(link("empty"), empty=encoded("")),
    "one text for both": drawn(link("7")),
    "one primitive for both": {
        **spoken(words=node("PrimitiveString", value=FOX)),
        "7": encoded(link("words")),
    },
    "ends that are crossed": control(**{"3": sampler(link("apply", 1), ("apply", 0))}),
    "one way for both": control(**{"3": sampler(link("apply"), ("apply", 0))}),
    "caption of a picture": spoken(
        words=node("Florence2Run", image=link("load"), text_input="", task="caption", seed=1)
    ),
    "two images of two texts": whole(
        other=sampler(link("ox")), ox=encoded(OX), image=decoded("other"), save=saved("image")
    ),
    "graph of the editor": {"nodes": [{"id": 1, "type": "KSampler"}], "links": [[1, 2, 0, 3, 0]]},
}


@pytest.mark.parametrize("name", UNREAD)
def test_prompt_that_cannot_be_told_has_a_reason(name: str) -> None:
    assert unread(UNREAD[name])


BLUE = "a blue fox"
CHANGED = {
    "core": node("StringReplace", string=BLUE, find="blue", replace="red"),
    "pysssss": node("StringFunction|pysssss", action="replace", text_a=BLUE, text_b="blue"),
    "another": node("Text Find and Replace", text=BLUE, find="blue", replace="red"),
}


@pytest.mark.parametrize("name", CHANGED)
def test_text_that_is_changed_on_the_way_is_not_given_unchanged(name: str) -> None:
    found, _ = prompt_of_graph(spoken(words=CHANGED[name]))
    assert found in ("", FOX)


@pytest.mark.parametrize("count", [3000, 100_000])
def test_graph_of_too_many_nodes_has_a_reason(count: int) -> None:
    nodes = {f"n{i}": node("Reroute", conditioning=link(f"n{i + 1}")) for i in range(count)}
    assert unread(drawn(link("n0"), link("n1"), **nodes))
    assert unread(whole(**nodes))


def doubled(depth: int, kind: str, ends: tuple[str, str], last: Graph) -> Graph:
    """Graph with ``depth`` joins of a node with itself."""
    joins = {f"j{i}": node(kind, **dict.fromkeys(ends, link(f"j{i + 1}"))) for i in range(depth)}
    return {**joins, f"j{depth}": last}


@pytest.mark.parametrize("depth", [40, 150, 1500])
def test_joins_that_double_the_text_end(depth: int) -> None:
    last = said(FOX)
    joins = doubled(depth, "Text Concatenate", ("text_a", "text_b"), last)
    found, reason = prompt_of_graph(spoken(words=encoded(link("j0")), **joins))
    assert len(found) <= graphs.MAX_TEXT
    assert bool(found) != bool(reason)


@pytest.mark.parametrize("depth", [40, 150, 1500])
@pytest.mark.parametrize("negative", [False, True])
def test_ways_that_double_end(depth: int, negative: bool) -> None:
    ends = ("conditioning_1", "conditioning_2")
    joins = doubled(depth, "ConditioningCombine", ends, encoded(OX))
    way = link("j0")
    found, reason = prompt_of_graph(
        drawn(link("fox"), way, **joins) if negative else drawn(way, **joins)
    )
    assert len(found) <= graphs.MAX_TEXT
    assert bool(found) != bool(reason)
    assert OX not in found or not negative


@pytest.mark.parametrize("depth", [40, 150, 900])
def test_samplers_in_ways_that_double_end(depth: int) -> None:
    nodes = {
        f"s{i}": sampler(link("fox"), latent=(f"s{i + 1}", 0), image=link(f"s{i + 1}"))
        for i in range(depth)
    }
    found, _ = prompt_of_graph(whole(**nodes))
    assert found in ("", FOX)


@pytest.mark.parametrize(
    "select",
    [
        ".",
        ".*",
        "[12]",
        "(",
        "1|2",
        "(1+)+$",
        "\\",
        "",
        "3",
        3,
        0,
        -1,
        10**400,
        1e400,
        None,
        [],
        {},
    ],
)
def test_switch_set_to_nothing_it_has_gives_nothing(select: Any) -> None:
    switch = node("ImpactSwitch", select=select, input1=link("a"), input2=link("b"))
    texts = {"a": said(FOX), "b": said(OX)}
    assert unread(spoken(words=switch, **texts))


ENDS = ("positive", "negative")
WAYS = {
    "ConditioningCombine": ("conditioning_1", "conditioning_2"),
    "ConditioningConcat": ("conditioning_to", "conditioning_from"),
    "ConditioningSetArea": ("conditioning",),
    "ConditioningZeroOut": ("conditioning",),
    "ControlNetApplyAdvanced": ENDS,
    "Text Concatenate": ("text_a", "text_b"),
    "CLIPTextEncode": ("text",),
    "KSampler": (*ENDS, "latent_image"),
    "FaceDetailer": (*ENDS, "image"),
    "CFGGuider": ENDS,
    "SamplerCustomAdvanced": ("guider", "latent_image"),
    "SaveImage": ("images",),
}

IMAGES = ("KSampler", "FaceDetailer", "SamplerCustomAdvanced", "SaveImage")
NO_WAY = ("ConditioningZeroOut", "CFGGuider", *IMAGES)


@st.composite
def graphs_of_texts(draw: st.DrawFn) -> Graph:
    """Graphs of a few nodes, each text of which is a word of its own."""
    size = draw(st.integers(2, 9))
    graph: Graph = {}
    for i in range(size):
        kind = draw(st.sampled_from(sorted(WAYS)))
        inputs: Graph = {}
        for key in WAYS[kind]:
            to, output = draw(st.integers(0, size + 1)), draw(st.integers(0, 1))
            if to < size:
                inputs[key] = [str(to), output]
            elif to == size:
                inputs[key] = f"word{i}{key}"
        graph[str(i)] = {"class_type": kind, "inputs": inputs}
    return graph


def led_to(graph: Graph, name: str, output: int, seen: set[tuple[str, int]]) -> Iterator[str]:
    """Words that a way through ``output`` of a node leads to; images and guiders are no texts."""
    if (name, output) in seen or graph[name]["class_type"] in NO_WAY:
        return
    seen.add((name, output))
    two = graph[name]["class_type"] == "ControlNetApplyAdvanced"
    for key, value in graph[name]["inputs"].items():
        if two and key != ENDS[output]:
            continue
        if isinstance(value, str):
            yield value
        else:
            yield from led_to(graph, value[0], value[1], seen)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(graph=graphs_of_texts())
def test_text_that_a_negative_input_leads_to_is_never_returned(graph: Graph) -> None:
    negative: set[str] = set()
    for one in graph.values():
        value = one["inputs"].get("negative")
        if isinstance(value, list):
            negative |= set(led_to(graph, value[0], value[1], set()))
        elif value is not None:
            negative.add(value)
    found, reason = prompt_of_graph(graph)
    words = set(re.findall(r"word\d\w+", found))
    assert not words & negative
    assert words <= set(re.findall(r"word\d\w+", json.dumps(graph)))
    assert bool(found) != bool(reason)
