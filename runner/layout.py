"""API format -> UI format with a tidy automatic layout, so that templates can be made from their API twins by a script."""

import json
import uuid
from collections.abc import Mapping
from typing import Any

from .errors import WorkflowError
from .specs import Graph, InputSpec, NodeClasses, attribute, is_link, read_inputs, unwrap
from .validate import validate

WIDTH_PX, GAP_X_PX, GAP_Y_PX = 320, 80, 60
TITLE_PX, SLOT_PX, WIDGET_PX, TEXT_PX, PICTURE_PX = 40, 20, 24, 100, 280
SHAPE_OPTIONAL, SHAPE_LIST = 7, 6  # LiteGraph's slot shapes: hollow circle, grid


def fill_defaults(graph: Graph, node_classes: NodeClasses) -> Graph:
    """A copy in which every widget that the graph leaves out has its default, as the page's own export has it."""
    filled: Graph = {}
    for node_id, node in graph.items():
        specs = read_inputs(node_classes[node["class_type"]])
        defaults = {name: spec.default for name, spec in specs.items() if spec.is_widget}
        filled[node_id] = {**node, "inputs": defaults | node["inputs"]}
    return filled


def api_to_ui(
    graph: Graph, node_classes: NodeClasses, display_names: Mapping[str, str] | None = None, note: str | None = None
) -> dict[str, Any]:
    """UI-format (0.4) workflow of a valid API-format graph; `convert` of it gives `fill_defaults(graph)` back.

    Args:
        graph: API format; every node is drawn, in columns by its distance from the inputs.
        node_classes: class_type -> node class.
        display_names: class_type -> name, for nodes without `_meta.title`.
        note: Markdown for a note left of the graph.

    Raises:
        WorkflowError: the graph is not valid.
    """
    graph = fill_defaults(graph, node_classes)
    order = validate(json.loads(json.dumps(graph)), node_classes)
    unused = [node_id for node_id in graph if node_id not in order]
    if unused:
        raise WorkflowError(
            "expected every node to lead to an output node, got one that would not run; remove it", node_id=unused[0]
        )
    ids = {node_id: int(node_id) if node_id.isdecimal() else node_id for node_id in graph}
    drawn = {node_id: _draw(ids[node_id], graph[node_id], node_classes, display_names or {}) for node_id in graph}
    links: list[list[Any]] = []
    for node_id in order:
        _connect(graph, node_id, ids, drawn, links)
    _place(graph, order, drawn)
    for position, node_id in enumerate(order):
        drawn[node_id]["order"] = position
    nodes = list(drawn.values())
    last = max((node_id for node_id in ids.values() if isinstance(node_id, int)), default=0)
    if note:
        last += 1
        nodes.append(_note(last, note))
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(graph, sort_keys=True))),
        "revision": 0,
        "last_node_id": last,
        "last_link_id": len(links),
        "nodes": nodes,
        "links": links,
        "groups": [],
        "config": {},
        "extra": {},  # no saved view: the page then shows the whole graph, whatever the size of the window
        "version": 0.4,
    }


def _draw(node_id: int | str, node: Mapping[str, Any], node_classes: NodeClasses, names: Mapping[str, str]) -> dict[str, Any]:
    class_type = node["class_type"]
    node_class = node_classes[class_type]
    specs = list(read_inputs(node_class).values())
    # as the front end writes them: sockets first, then one slot per widget
    slots = [_slot(spec) for spec in specs if not spec.is_widget] + [_slot(spec) for spec in specs if spec.is_widget]
    types = attribute(node_class, "RETURN_TYPES", ())
    names_of_outputs = attribute(node_class, "RETURN_NAMES", types)
    is_list = attribute(node_class, "OUTPUT_IS_LIST", (False,) * len(types))
    outputs = [
        {"name": str(name), "type": kind if isinstance(kind, str) else "COMBO", "links": None}
        | ({"shape": SHAPE_LIST} if many else {})
        for name, kind, many in zip(names_of_outputs, types, is_list, strict=True)
    ]
    drawn: dict[str, Any] = {
        "id": node_id,
        "type": class_type,
        "pos": [0, 0],
        "size": [WIDTH_PX, _height(specs, len(types), node_class)],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": slots,
        "outputs": outputs,
        "properties": {"Node name for S&R": class_type},
        "widgets_values": _widget_values(specs, node["inputs"]),
    }
    title = node.get("_meta", {}).get("title")
    if title and title != names.get(class_type):
        drawn["title"] = title
    return drawn


def _slot(spec: InputSpec) -> dict[str, Any]:
    slot: dict[str, Any] = {"name": spec.name, "type": spec.type, "link": None}
    if not spec.required:
        slot["shape"] = SHAPE_OPTIONAL
    if spec.is_widget:
        slot["widget"] = {"name": spec.name}
    return slot


def _widget_values(specs: list[InputSpec], inputs: Mapping[str, Any]) -> list[Any]:
    values: list[Any] = []
    for spec in specs:
        if spec.is_widget:
            value = inputs[spec.name]
            values.append(spec.default if is_link(value) else unwrap(value))
            values += ["fixed"] * spec.has_control + ["image"] * spec.has_upload
    return values


def _height(specs: list[InputSpec], outputs: int, node_class: type) -> int:
    sockets = sum(not spec.is_widget for spec in specs)
    widgets = [
        TEXT_PX if spec.options.get("multiline") else WIDGET_PX * (1 + spec.has_control + spec.has_upload)
        for spec in specs
        if spec.is_widget
    ]
    shows = any(spec.has_upload for spec in specs) or attribute(node_class, "OUTPUT_NODE", False)
    return TITLE_PX + SLOT_PX * max(sockets, outputs) + sum(widgets) + (PICTURE_PX if shows else 0)


def _connect(graph: Graph, node_id: str, ids: Mapping[str, Any], drawn: Mapping[str, Any], links: list[list[Any]]) -> None:
    for index, slot in enumerate(drawn[node_id]["inputs"]):
        value = graph[node_id]["inputs"].get(slot["name"])
        if not is_link(value):
            continue
        source, output = value
        link_id = len(links) + 1
        out_slot = drawn[source]["outputs"][output]
        links.append([link_id, ids[source], output, ids[node_id], index, out_slot["type"]])
        slot["link"] = link_id
        out_slot["links"] = [*(out_slot["links"] or []), link_id]


def _place(graph: Graph, order: list[str], drawn: Mapping[str, Any]) -> None:
    """Columns by depth; inside a column nodes stand in the order of their highest parent."""
    parents = {node_id: [value[0] for value in graph[node_id]["inputs"].values() if is_link(value)] for node_id in order}
    depth: dict[str, int] = {}
    for node_id in order:
        depth[node_id] = max((depth[parent] + 1 for parent in parents[node_id]), default=0)
    top: dict[str, int] = {}
    for column in range(max(depth.values()) + 1):
        members = [node_id for node_id in order if depth[node_id] == column]
        y = 0
        for node_id in sorted(members, key=lambda node_id: min((top[parent] for parent in parents[node_id]), default=0)):
            drawn[node_id]["pos"] = [column * (WIDTH_PX + GAP_X_PX), y]
            top[node_id] = y
            y += drawn[node_id]["size"][1] + GAP_Y_PX


def _note(node_id: int, text: str) -> dict[str, Any]:
    return {
        "id": node_id,
        "type": "MarkdownNote",
        "pos": [-(WIDTH_PX + GAP_X_PX), 0],
        "size": [WIDTH_PX, PICTURE_PX],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": [],
        "outputs": [],
        "title": "Read me",
        "properties": {},
        "widgets_values": [text],
        "color": "#432",
        "bgcolor": "#653",
    }
