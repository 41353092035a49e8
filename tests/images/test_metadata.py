"""Prompts are found in what image generators write, and nothing else raises anything."""

import json
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcmpl.images.metadata import _followed, prompt_in

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
    texts = {"prompt": json.dumps({"1": node(text="an ox")}), "parameters": "a red fox"}
    assert prompt_in(texts) == "a red fox"


@pytest.mark.parametrize("texts", [{}, {"Software": "x"}, {"prompt": ""}, {"prompt": " \n"}])
def test_no_prompt_is_an_empty_one(texts: dict[str, str]) -> None:
    assert prompt_in(texts) == ""


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
        "3": node(conditioning_1=["4", 0], conditioning_2=["9", 0]),
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


def test_graph_without_a_sampler_gives_its_first_text() -> None:
    graph = {"1": node(steps=3), "2": node(text="a red fox"), "3": node(text="an ox")}
    assert graph_prompt(graph) == "a red fox"


def test_sampler_that_leads_nowhere_leaves_the_first_text() -> None:
    graph = {"1": node(positive=["77", 0]), "2": node(text="a red fox")}
    assert graph_prompt(graph) == "a red fox"


LOOPS = {
    "to itself": {"1": node(positive=["1", 0])},
    "of two": {"1": node(positive=["2", 0]), "2": node(conditioning=["1", 0])},
    "beside a text": {
        "1": node(positive=["2", 0]),
        "2": node(positive=["1", 0]),
        "3": node(text="a red fox"),
    },
}


@pytest.mark.parametrize("kind", LOOPS)
def test_loop_of_links_ends(kind: str) -> None:
    assert graph_prompt(LOOPS[kind]) == ("a red fox" if "3" in LOOPS[kind] else "")


def test_nodes_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dcmpl.images.metadata.MAX_NODES", 2)
    graph = {"1": node(), "2": node(), "3": node(text="a red fox")}
    assert graph_prompt(graph) == ""


@pytest.mark.parametrize(("steps", "prompt"), [(4, ""), (5, "a red fox")])
def test_links_are_counted(monkeypatch: pytest.MonkeyPatch, steps: int, prompt: str) -> None:
    monkeypatch.setattr("dcmpl.images.metadata.MAX_STEPS", steps)
    chain = {str(i): node(conditioning=[str(i + 1), 0]) for i in range(1, 5)}
    graph = {"0": node(positive=["1", 0]), **chain, "5": {"inputs": {"text": "a red fox"}}}
    links = {name: node["inputs"] for name, node in graph.items()}
    assert _followed(links["0"]["positive"], links) == prompt


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
        {"1": node(positive="2"), "2": node(text=5)},
        {"1": node(text=["2", 0]), "2": node(text="  ")},
        {"nodes": [{"id": 1}], "links": [[1, 2, 3]]},
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


@settings(deadline=None, max_examples=200)
@given(graph=st.dictionaries(st.sampled_from("12345"), st.fixed_dictionaries({"inputs": JSON})))
def test_any_graph_gives_a_text(graph: dict[str, Any]) -> None:
    found = graph_prompt(graph)
    assert found == found.strip()
    assert json.dumps(found)[1:-1] in json.dumps(graph)
