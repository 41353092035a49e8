"""Prompts are found in what image generators write, and nothing else raises anything."""

import json
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcmpl.images import graph as graphs
from dcmpl.images.metadata import Found, find_prompt, prompt_in

SETTINGS = "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512, Model: sd"


def node(**inputs: Any) -> dict[str, Any]:
    return {"class_type": "Any", "inputs": inputs}


def graph_prompt(graph: Any) -> str:
    return prompt_in({"prompt": json.dumps(graph), "workflow": "{}"})


@pytest.mark.parametrize(
    ("parameters", "prompt"),
    [
        (f"a red fox\nNegative prompt: blurry, bad\n{SETTINGS}", "a red fox"),
        (f"a red fox\n{SETTINGS}", "a red fox"),
        ("a red fox", "a red fox"),
        (
            f"a red fox,\nin snow\n\nNegative prompt: blurry\nmore\n{SETTINGS}",
            "a red fox,\nin snow",
        ),
        (f"a book of Steps: 20 ways\n{SETTINGS}", "a book of Steps: 20 ways"),
        (f"no Negative prompt: here\n{SETTINGS}", "no Negative prompt: here"),
        ("Steps: to the sea", "Steps: to the sea"),
        (f"Negative prompt: blurry\n{SETTINGS}", ""),
        (SETTINGS, ""),
        ("", ""),
        ("  <lora:x:1> 狐  \n", "<lora:x:1> 狐"),
    ],
)
def test_parameters_begin_with_the_prompt(parameters: str, prompt: str) -> None:
    assert prompt_in({"parameters": parameters}) == prompt


def test_parameters_count_before_a_graph() -> None:
    graph = {"1": node(positive=["2", 0]), "2": node(text="an ox")}
    texts = {"prompt": json.dumps(graph), "parameters": "a red fox"}
    assert prompt_in(texts) == "a red fox"


@pytest.mark.parametrize("texts", [{}, {"Software": "x"}, {"prompt": ""}, {"prompt": " \n"}])
def test_no_prompt_is_an_empty_one_with_a_reason(texts: dict[str, str]) -> None:
    assert prompt_in(texts) == ""
    assert find_prompt(texts).reason


def test_prompt_that_is_found_needs_no_reason() -> None:
    assert find_prompt({"parameters": f"a red fox\n{SETTINGS}"}) == Found("a red fox", "")


def test_positive_input_of_the_sampler_leads_to_the_prompt() -> None:
    graph = {
        "3": node(seed=1, model=["4", 0], positive=["6", 0], negative=["7", 0]),
        "4": node(ckpt_name="sd.safetensors"),
        "7": node(text="blurry", clip=["4", 1]),
        "6": node(text="a red fox", clip=["4", 1]),
    }
    assert graph_prompt(graph) == "a red fox"


def test_prompt_is_found_through_nodes_that_pass_conditions_on() -> None:
    graph = {
        "9": node(text="blurry"),
        "1": node(positive=["2", 0], negative=["9", 0]),
        "2": node(conditioning=["3", 0], guidance=3.5),
        "3": node(conditioning_1=["4", 0], conditioning_2=["10", 0]),
        "4": node(positive=["5", 0]),
        "5": node(text=["6", 0], clip=["8", 0]),
        "6": node(value="a red fox"),
    }
    assert graph_prompt(graph) == "a red fox"


@pytest.mark.parametrize("name", ["text", "text_g", "string", "value"])
def test_text_may_have_several_names(name: str) -> None:
    graph = {"1": node(positive=["2", 0]), "2": node(**{name: " a red fox "})}
    assert graph_prompt(graph) == "a red fox"


def test_number_of_a_node_may_be_a_number() -> None:
    assert graph_prompt({"1": node(positive=[2, 0]), "2": node(text="a red fox")}) == "a red fox"


@pytest.mark.parametrize(
    "graph",
    [
        {"1": node(steps=3), "2": node(text="a red fox"), "3": node(text="an ox")},
        {"1": node(positive=["77", 0]), "2": node(text="a red fox")},
        {"1": node(negative=["2", 0]), "2": node(text="a red fox")},
        {"1": node(positive=["2", 0], negative=["2", 0]), "2": node(text="a red fox")},
    ],
)
def test_text_that_no_sampler_reads_is_no_prompt(graph: Any) -> None:
    found = find_prompt({"prompt": json.dumps(graph), "workflow": "{}"})
    assert found.prompt == ""
    assert found.reason


LOOPS = {
    "to itself": {"1": node(positive=["1", 0])},
    "of two": {"1": node(positive=["2", 0]), "2": node(conditioning=["1", 0])},
    "beside a text": {
        "1": node(positive=["2", 0]),
        "2": node(positive=["1", 0]),
        "3": node(text="a red fox"),
    },
    "of passes": {
        "1": node(positive=["2", 0]),
        "2": node(conditioning=["3", 0]),
        "3": node(conditioning=["2", 0]),
    },
    "of joins": {
        "1": node(positive=["2", 0]),
        "2": node(conditioning_1=["2", 0], conditioning_2=["2", 0]),
    },
    "of samplers": {
        "1": node(positive=["2", 0], latent_image=["2", 0]),
        "2": node(positive=["1", 0], latent_image=["1", 0]),
    },
    "of texts": {
        "1": node(positive=["2", 0]),
        "2": node(text=["3", 0]),
        "3": node(text_a=["2", 0], text_b=["3", 0], delimiter=["3", 0]),
    },
    "of negatives": {
        "1": node(positive=["2", 0], negative=["2", 0]),
        "2": node(negative=["2", 0]),
    },
}


@pytest.mark.parametrize("kind", LOOPS)
def test_loop_of_links_ends(kind: str) -> None:
    assert graph_prompt(LOOPS[kind]) == ""


def test_nodes_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = {"1": node(positive=["2", 0]), "2": node(text="a red fox"), "3": node()}
    assert graph_prompt(graph) == "a red fox"
    monkeypatch.setattr(graphs, "MAX_NODES", 2)
    assert graph_prompt(graph) == ""


def chain(length: int) -> dict[str, Any]:
    """Graph with ``length`` links between the sampler and the text."""
    ways = {str(i): node(conditioning=[str(i + 1), 0]) for i in range(1, length)}
    return {"0": node(positive=["1", 0]), **ways, str(length): node(text="a red fox")}


@pytest.mark.parametrize(("more", "prompt"), [(-30, "a red fox"), (-2, "a red fox"), (2, "")])
def test_links_are_counted(more: int, prompt: str) -> None:
    assert graph_prompt(chain(graphs.MAX_STEPS + more)) == prompt


@pytest.mark.parametrize(
    "graph",
    [
        {},
        {"1": 5, "2": None, "3": [], "4": "x"},
        {"1": {"inputs": None}, "2": {"inputs": ["text"]}, "3": {}},
        {"1": node(positive=[])},
        {"1": node(positive=[None, 0])},
        {"1": node(positive=[["1"], 0])},
        {"1": node(positive={"1": 0})},
        {"1": node(positive=2), "2": node(text=5)},
        {"1": node(text=["2", 0]), "2": node(text="  ")},
        {"nodes": [{"id": 1}], "links": [[1, 2, 3]]},
        {"1": node(positive=[10**400, 0])},
        {"1": node(positive=["2", 10**400]), "2": node(text=5)},
        {"1": node(positive=["2", -1]), "2": node(text=["2", -1])},
        {"1": node(positive=[float("inf"), float("nan")])},
        {"1": node(positive=["2", 0, 1]), "2": node(text={"text": "a red fox"})},
        {"1": node(positive=["2", 0]), "2": node(text=[["a red fox"]])},
        {"1": node(guider={}, latent_image=[[]], negative=[{}, 0])},
        {"1": {"class_type": ["KSampler"], "inputs": {"positive": ["2", 0]}}, "2": 5},
    ],
)
def test_graph_of_anything_else_has_no_prompt(graph: Any) -> None:
    assert graph_prompt(graph) == ""


@pytest.mark.parametrize("text", ["a red fox", "{a|b} fox", '{"1":', "[a fox", '"fox"', "5", "[]"])
def test_prompt_that_is_no_graph_is_the_prompt(text: str) -> None:
    assert prompt_in({"prompt": f" {text} "}) == text


@pytest.mark.parametrize("letter", ["[", '{"a":'])
def test_json_nested_without_end_is_taken_as_it_is(letter: str) -> None:
    text = letter * 100_000
    assert prompt_in({"prompt": text}) == text


def test_link_nested_as_deep_as_json_may_be_raises_nothing() -> None:
    limit = sys.getrecursionlimit()
    for depth in range(limit - 200, limit + 20):
        link = "[" * depth + "]" * depth
        found = prompt_in({"prompt": f'{{"1": {{"inputs": {{"positive": [{link}]}}}}}}'})
        assert found == "" or found.startswith('{"1"')


def test_number_too_long_for_python_raises_nothing() -> None:
    text = f'{{"1": {{"inputs": {{"positive": [{"9" * 5000}]}}}}}}'
    assert prompt_in({"prompt": text}) == text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(0, 5) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["1", "2", "inputs", "positive", "text", "conditioning"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@pytest.mark.parametrize("delimiter", [5, None, [], {}, "\\n", "\\1", "\\g<0>", "." * 100_000])
def test_delimiter_of_anything_raises_nothing(delimiter: Any) -> None:
    join = node(text_a="a red", text_b="fox", delimiter=delimiter)
    found = graph_prompt({"1": node(positive=["2", 0]), "2": join})
    assert len(found) <= graphs.MAX_TEXT


@settings(derandomize=True, deadline=None, max_examples=200)
@given(graph=st.dictionaries(st.sampled_from("12345"), st.fixed_dictionaries({"inputs": JSON})))
def test_any_graph_gives_a_text_or_a_reason(graph: dict[str, Any]) -> None:
    found = find_prompt({"prompt": json.dumps(graph)})
    assert found.prompt == found.prompt.strip()
    assert bool(found.prompt) != bool(found.reason)
