"""Every way in which a graph can be wrong gives one line that names node, class and input, before anything runs."""

import json
from pathlib import Path
from typing import Any

import pytest
from toy_nodes import CALLS, NODES, node

from alignsr.runner import WorkflowError, load_workflow, run_workflow, validate

MAKE = node("Make", number=1, mode="plain")
SHOW = node("Show", value=["1", 0])

# name -> graph, node id, class, input, and words of the message
BAD: dict[str, tuple[dict[str, Any], str | None, str | None, str | None, str]] = {
    "unknown class": ({"1": node("Mkae", number=1), "2": SHOW}, "1", "Mkae", None, "did you mean 'Make'?"),
    "missing required": ({"1": node("Make", number=1), "2": SHOW}, "1", "Make", "mode", "required"),
    "missing link target": ({"1": MAKE, "2": node("Show", value=["9", 0])}, "2", "Show", "value", "existing node, got node '9'"),
    "missing output": (
        {"1": MAKE, "2": node("Show", value=["1", 5])},
        "2",
        "Show",
        "value",
        "output 0..1 of node 1 (Make), got 5",
    ),
    "wrong link type": ({"1": MAKE, "2": node("Show", value=["1", 1])}, "2", "Show", "value", "got IMAGE"),
    "list without wrapper": ({"1": MAKE, "2": node("Show", value=[1, 2, 3])}, "2", "Show", "value", "__value__"),
    "number as node id": ({"1": MAKE, "2": node("Show", value=[1, 0])}, "2", "Show", "value", "link ['node id', output index]"),
    "too big": ({"1": node("Make", number=11, mode="plain"), "2": SHOW}, "1", "Make", "number", "at most 10, got 11"),
    "too small": ({"1": node("Make", number=-1, mode="plain"), "2": SHOW}, "1", "Make", "number", "at least 0, got -1"),
    "fraction for INT": (
        {"1": node("Make", number=3.5, mode="plain"), "2": SHOW},
        "1",
        "Make",
        "number",
        "whole number, got 3.5",
    ),
    "text for INT": ({"1": node("Make", number="many", mode="plain"), "2": SHOW}, "1", "Make", "number", 'got "many"'),
    "null for INT": ({"1": node("Make", number=None, mode="plain"), "2": SHOW}, "1", "Make", "number", "got null"),
    "not a choice": ({"1": node("Make", number=1, mode="dubble"), "2": SHOW}, "1", "Make", "mode", "did you mean 'double'?"),
    "text for BOOLEAN": (
        {"1": node("Make", number=1, mode="plain", exact="false"), "2": SHOW},
        "1",
        "Make",
        "exact",
        "true or false",
    ),
    "object for STRING": ({"1": node("Make", number=1, mode="plain", text={}), "2": SHOW}, "1", "Make", "text", "a text, got {}"),
    "literal for socket": (
        {
            "1": node("Seeded", number=["2", 0], strength=0.1, seed=1, kind="free", image="a.png"),
            "2": MAKE,
            "3": node("Show", value=["1", 0]),
        },
        "1",
        "Seeded",
        "image",
        "link to an output of type IMAGE",
    ),
    "nan": (
        {
            "1": node("Seeded", number=["2", 0], strength=float("nan"), seed=1, kind="free", image=["2", 1]),
            "2": MAKE,
            "3": node("Show", value=["1", 0]),
        },
        "1",
        "Seeded",
        "strength",
        "a number, got NaN",
    ),
    "cycle": (
        {"1": node("Add", a=["2", 0], b=1), "2": node("Add", a=["1", 0], b=1), "3": node("Show", value=["1", 0])},
        "1",
        "Add",
        None,
        "1 -> 2 -> 1",
    ),
    "own loop": ({"1": node("Add", a=["1", 0], b=1), "3": node("Show", value=["1", 0])}, "1", "Add", None, "1 -> 1"),
    "no output node": ({"1": MAKE}, None, None, None, "output node"),
    "own check": ({"1": node("Picky", value=3, other=5)}, "1", "Picky", "value", "even number"),
    "lazy": ({"1": MAKE, "2": node("Lazy", value=["1", 0])}, "2", "Lazy", "value", "lazy"),
    "unknown linked input": (
        {"1": MAKE, "2": node("Show", value=["1", 0], tga=["1", 0])},
        "2",
        "Show",
        "tga",
        "did you mean 'tag'?",
    ),
    "empty": ({}, None, None, None, "empty"),
    "not a node": ({"1": 5}, "1", None, None, "class_type"),
    "inputs no object": ({"1": {"class_type": "Make", "inputs": []}}, "1", "Make", None, "expected an object"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_graph(name: str, tmp_path: Path) -> None:
    graph, node_id, class_type, input_name, words = BAD[name]
    CALLS.clear()
    with pytest.raises(WorkflowError) as caught:
        run_workflow(graph, out_dir=tmp_path / "out", node_classes=NODES, progress=False)
    error = caught.value
    assert (error.node_id, error.class_type, error.input_name) == (node_id, class_type, input_name)
    assert words in error.line
    assert "\n" not in error.line
    for part in (f"node {node_id}" if node_id else "", class_type or "", repr(input_name) if input_name else ""):
        assert part in str(error)
    assert not CALLS
    assert not (tmp_path / "out").exists()


def test_all_problems_are_told_at_once() -> None:
    graph = {"1": node("Make", number=99, mode="no"), "2": node("Show", value=["1", 1])}
    with pytest.raises(WorkflowError) as caught:
        validate(graph, NODES)
    assert [(problem.node_id, problem.input_name) for problem in caught.value.problems] == [
        ("1", "number"),
        ("1", "mode"),
        ("2", "value"),
    ]
    assert len(str(caught.value).splitlines()) == 3


def test_own_check_replaces_limits_of_its_arguments_only() -> None:
    validate({"1": node("Picky", value=4, other=5)}, NODES)  # 4 is below the declared minimum
    with pytest.raises(WorkflowError, match="at least 5"):
        validate({"1": node("Picky", value=4, other=4)}, NODES)


def test_literals_are_cast_by_type() -> None:
    graph = {"1": node("Make", number="3", mode="plain", text=5, exact=0), "2": SHOW}
    validate(graph, NODES)
    assert graph["1"]["inputs"] == {"number": 3, "mode": "plain", "text": "5", "exact": False}
    assert type(graph["1"]["inputs"]["exact"]) is bool


def test_large_seed_keeps_every_digit() -> None:
    graph = {
        "1": node("Seeded", number=["2", 0], strength=1, seed=2**64 - 1, kind="free", image=["2", 1]),
        "2": MAKE,
        "3": node("Show", value=["1", 0]),
    }
    validate(graph, NODES)
    assert graph["1"]["inputs"]["seed"] == 2**64 - 1
    assert type(graph["1"]["inputs"]["strength"]) is float


def test_unions_and_star_fit() -> None:
    graph = {"1": MAKE, "2": SHOW, "3": node("ShowAny", value=["1", 1]), "4": node("ShowAny", value="literal")}
    assert validate(graph, NODES) == ["1", "2", "3", "4"]


def test_only_ancestors_of_outputs_are_checked_and_ordered() -> None:
    graph = {"1": node("Make"), "2": node("Show", value=["3", 0]), "3": MAKE}
    assert validate(graph, NODES) == ["3", "2"]


def test_long_chains_do_not_hit_the_recursion_limit() -> None:
    graph: dict[str, Any] = {"0": MAKE}
    graph |= {str(index): node("Add", a=[str(index - 1), 0], b=1) for index in range(1, 2000)}
    graph["end"] = node("Show", value=["1999", 0])
    assert len(validate(graph, NODES)) == 2001


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"1": ', "line 1"),
        (b"", "invalid JSON|line 1"),
        (b"[1, 2]", "JSON object"),
        (b"\xff\xfe\x00\x01", "not text"),
        (json.dumps({"hello": "world"}).encode(), "class_type"),
        (json.dumps({"nodes": [{"type": "Show"}], "links": []}).encode(), "damaged"),
    ],
)
def test_not_a_workflow(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "w.json"
    path.write_bytes(content)
    with pytest.raises(WorkflowError, match=words):
        load_workflow(path, node_classes=NODES)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(WorkflowError, match="check the path"):
        load_workflow(tmp_path / "none.json", node_classes=NODES)


def test_prompt_body_is_opened() -> None:
    graph, ui = load_workflow({"prompt": {"1": MAKE, "2": SHOW}, "client_id": "x"}, node_classes=NODES)
    assert list(graph) == ["1", "2"]
    assert ui is None
