"""UI format -> API format by the front end's rules, and back again."""

import copy
from typing import Any

import pytest
from toy_nodes import NODES, node

from alignsr.runner import WorkflowError, api_to_ui, convert, fill_defaults, validate
from alignsr.runner.builtins import BUILTIN_CLASSES


def ui_node(
    node_id: int, kind: str, values: Any = None, inputs: Any = (), outputs: Any = (), mode: int = 0, **more: Any
) -> dict[str, Any]:
    slots = [{"name": name, "type": type_, "link": link} for name, type_, link in inputs]
    outs = [{"name": type_, "type": type_, "links": []} for type_ in outputs]
    return {"id": node_id, "type": kind, "mode": mode, "inputs": slots, "outputs": outs, "widgets_values": values, **more}


def document(nodes: list[dict[str, Any]], links: list[Any]) -> dict[str, Any]:
    return {"nodes": nodes, "links": links, "version": 0.4}


MAKE = ui_node(1, "Make", [4, "double", "hi", False], outputs=("INT", "IMAGE"))


def test_seed_has_an_extra_value_and_sockets_have_none() -> None:
    seeded = ui_node(2, "Seeded", [0.25, 123, "randomize", "fixed"], [("number", "INT", 1), ("image", "IMAGE", 2)])
    links = [[1, 1, 0, 2, 0, "INT"], [2, 1, 1, 2, 1, "IMAGE"]]
    assert convert(document([MAKE, seeded], links), NODES) == {
        "1": node("Make", number=4, mode="double", text="hi", exact=False),
        "2": node("Seeded", number=["1", 0], strength=0.25, seed=123, kind="fixed", image=["1", 1]),
    }


def test_converted_widget_keeps_its_place_in_the_values() -> None:
    add = ui_node(2, "Add", [99], [("a", "INT", 1), ("b", "INT", 2)])
    links = [[1, 1, 0, 2, 0, "INT"], [2, 1, 0, 2, 1, "INT"]]
    assert convert(document([MAKE, add], links), NODES)["2"]["inputs"] == {"a": ["1", 0], "b": ["1", 0]}


def test_missing_values_get_defaults_and_titles_are_kept() -> None:
    short = ui_node(1, "Make", [4], title="Maker")
    converted = convert(document([short], []), NODES, {"Make": "Make a number"})
    assert converted == {"1": node("Make", "Maker", number=4, mode="plain", text="x", exact=True)}
    assert convert(document([MAKE], []), NODES, {"Make": "Make a number"})["1"]["_meta"] == {"title": "Make a number"}


def test_values_by_name_and_list_values() -> None:
    named = ui_node(1, "Make", {"number": 2, "mode": "plain", "text": [1, 2], "other": 1})
    assert convert(document([named], []), NODES)["1"]["inputs"] == {
        "number": 2,
        "mode": "plain",
        "text": {"__value__": [1, 2]},
        "exact": True,
    }


def test_reroute_primitive_and_notes() -> None:
    nodes = [
        ui_node(1, "PrimitiveNode", [6, "fixed"], outputs=("INT",)),
        ui_node(2, "Make", [4, "plain", "", True], [("number", "INT", 1)], ("INT", "IMAGE")),
        ui_node(3, "Reroute", None, [("", "*", 2)], ("INT",)),
        ui_node(4, "Reroute", None, [("", "*", 3)], ("INT",)),
        ui_node(5, "Show", ["t"], [("value", "INT", 4)]),
        ui_node(6, "Note", ["text"]),
        ui_node(7, "MarkdownNote", ["text"]),
    ]
    links = [[1, 1, 0, 2, 0, "INT"], [2, 2, 0, 3, 0, "*"], [3, 3, 0, 4, 0, "*"], [4, 4, 0, 5, 0, "INT"]]
    assert convert(document(nodes, links), NODES) == {
        "2": node("Make", number=6, mode="plain", text="", exact=True),
        "5": node("Show", value=["2", 0], tag="t"),
    }


def test_bypassed_nodes_are_passed_through_by_type() -> None:
    seeded = ui_node(
        2, "Add", [1], [("other", "IMAGE", None), ("a", "INT", 1)], ("INT",), mode=4
    )  # output 0 is INT, input 0 is not: the first INT input is taken
    show = ui_node(3, "Show", [""], [("value", "INT", 2)])
    links = [[1, 1, 0, 2, 1, "INT"], [2, 2, 0, 3, 0, "INT"]]
    assert convert(document([MAKE, seeded, show], links), NODES)["3"]["inputs"]["value"] == ["1", 0]


def test_muted_nodes_take_their_links_with_them() -> None:
    muted = copy.deepcopy(MAKE) | {"mode": 2}
    show = ui_node(3, "Show", [""], [("value", "INT", 1)])
    converted = convert(document([muted, show], [[1, 1, 0, 3, 0, "INT"]]), NODES)
    assert converted == {"3": node("Show", tag="")}
    with pytest.raises(WorkflowError, match="required"):
        validate(converted, NODES)


def test_links_as_objects() -> None:
    show = ui_node(3, "Show", [""], [("value", "INT", 8)])
    link = {"id": 8, "origin_id": 1, "origin_slot": 0, "target_id": 3, "target_slot": 0, "type": "INT"}
    assert convert(document([MAKE, show], [link]), NODES)["3"]["inputs"]["value"] == ["1", 0]


def test_upload_button_has_an_extra_value() -> None:
    for values in (["a.png", "image"], ["a.png"]):
        assert convert(document([ui_node(1, "LoadImage", values)], []), BUILTIN_CLASSES)["1"]["inputs"] == {"image": "a.png"}


@pytest.mark.parametrize(
    ("ui", "words"),
    [
        (document([ui_node(1, "b-1")], []) | {"definitions": {"subgraphs": [{"id": "b-1"}]}}, "subgraph"),
        (document([ui_node(1, "Mkae")], []), "did you mean 'Make'"),
        (document([ui_node(3, "Show", [""], [("value", "INT", 1)])], []), "missing link 1"),
        (document([ui_node(1, "Make")], [[1, 2]]), "damaged"),
    ],
)
def test_refused(ui: dict[str, Any], words: str) -> None:
    with pytest.raises(WorkflowError, match=words):
        convert(ui, NODES)


GRAPHS: dict[str, dict[str, Any]] = {
    "chain with seed": {
        "1": node("Make", "Maker", number=4, mode="double", text="a\nb", exact=False),
        "5": node("Seeded", number=["1", 0], strength=0.25, seed=2**63, kind="fixed", image=["1", 1]),
        "9": node("Show", value=["5", 0], tag="x"),
    },
    "linked widgets": {
        "1": node("Split", count=2),
        "2": node("Add", a=["1", 0], b=["1", 0]),
        "3": node("Show", value=["2", 0], tag=""),
        "4": node("Show", "again", value=["2", 0], tag="y"),
    },
    "words as ids": {
        "maker": node("Make", number=1, mode="plain", text="x", exact=True),
        "show": node("ShowAny", value=["maker", 1], tag=""),
    },
}


@pytest.mark.parametrize("name", GRAPHS)
def test_round_trip(name: str) -> None:
    ui = api_to_ui(GRAPHS[name], NODES, note="# Hello")
    assert convert(ui, NODES) == GRAPHS[name]
    assert ui == api_to_ui(GRAPHS[name], NODES, note="# Hello")  # deterministic
    by_id = {entry["id"]: entry for entry in ui["nodes"]}
    for link_id, source, slot, target, target_slot, kind in ui["links"]:
        assert link_id in by_id[source]["outputs"][slot]["links"]
        assert by_id[target]["inputs"][target_slot]["link"] == link_id
        assert kind == by_id[source]["outputs"][slot]["type"]
        assert by_id[source]["pos"][0] < by_id[target]["pos"][0]
    boxes = [(*entry["pos"], *entry["size"]) for entry in ui["nodes"]]
    for index, (x, y, w, h) in enumerate(boxes):
        for other_x, other_y, other_w, other_h in boxes[:index]:
            assert x + w <= other_x or other_x + other_w <= x or y + h <= other_y or other_y + other_h <= y


def test_round_trip_fills_in_what_the_page_would_fill_in() -> None:
    graph = {"1": node("Make", number=1, mode="plain"), "2": node("Show", value=["1", 0])}
    full = fill_defaults(graph, NODES)
    assert full["1"]["inputs"] == {"number": 1, "mode": "plain", "text": "x", "exact": True}
    assert convert(api_to_ui(graph, NODES), NODES) == full


@pytest.mark.parametrize(
    "change",
    [
        {"inputs": [1]},
        {"inputs": True},
        {"inputs": [{"link": 1}]},
        {"inputs": [{"link": 1, "name": {}}]},
        {"widgets_values": True},
        {"outputs": 5, "mode": 4},
    ],
)
def test_damage_anywhere_is_one_error(change: dict[str, Any]) -> None:
    show = ui_node(2, "Show", ["t"], [("value", "*", 1)])
    links = [[1, 1, 0, 2, 0, "INT"]]
    target = show if "mode" not in change else MAKE
    broken = [node_ | change if node_ is target else node_ for node_ in (MAKE, show)]
    with pytest.raises(WorkflowError):
        validate(convert(document(broken, links), NODES), NODES)
