"""`--set node.input=value`: changes inputs of a graph before it runs."""

import json
from collections.abc import Sequence
from typing import Any

from .errors import WorkflowError, did_you_mean
from .specs import Graph, InputSpec, NodeClasses, read_inputs
from .validate import cast_literal

TRUE, FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off")


def apply_sets(graph: Graph, sets: Sequence[str], node_classes: NodeClasses) -> None:
    """Change `graph` in place.

    Args:
        graph: API format.
        sets: each `node.input=value`; the node by id, by its title, or by its class where only one has it. The value is read by
            the input's type; a socket takes a link as JSON, `["4", 0]`.
        node_classes: class_type -> node class.

    Raises:
        WorkflowError: unknown or ambiguous node, unknown input, or no such value.
    """
    for text in sets:
        key, equals, value = text.partition("=")
        node, dot, name = key.strip().rpartition(".")
        if not (equals and dot and node and name):
            raise WorkflowError(f"--set: expected node.input=value, got {text!r}; for example --set 5.scale=2")
        node_id = find_node(graph, node)
        class_type = graph[node_id]["class_type"]
        if class_type not in node_classes:
            hint = did_you_mean(class_type, node_classes)
            raise WorkflowError(
                f"expected a known node class, got {class_type!r}; {hint}", node_id=node_id, class_type=class_type
            )
        specs = read_inputs(node_classes[class_type])
        if name not in specs:
            hint = did_you_mean(name, specs)
            raise WorkflowError(
                f"--set: expected an input of this node, got {name!r}; {hint}",
                node_id=node_id,
                class_type=class_type,
                input_name=name,
            )
        try:
            graph[node_id]["inputs"][name] = parse_value(specs[name], value)
        except ValueError as error:
            raise WorkflowError(f"--set: {error}", node_id=node_id, class_type=class_type, input_name=name) from error


def find_node(graph: Graph, name: str) -> str:
    """Node id by id, by `_meta.title`, or by class_type (with or without the prefix AlignSR).

    Raises:
        WorkflowError: none or several.
    """
    if name in graph:
        return name
    titled = [node_id for node_id, node in graph.items() if node.get("_meta", {}).get("title") == name]
    typed = [node_id for node_id, node in graph.items() if node["class_type"] in (name, f"AlignSR{name}")]
    found = titled or typed
    if len(found) == 1:
        return found[0]
    if found:
        raise WorkflowError(f"--set: expected one node called {name!r}, got nodes {', '.join(found)}; use the id")
    known = [
        *graph,
        *(node.get("_meta", {}).get("title", "") for node in graph.values()),
        *(n["class_type"] for n in graph.values()),
    ]
    raise WorkflowError(
        f"--set: expected a node id, title or class, got {name!r}; {did_you_mean(name, dict.fromkeys(filter(None, known)))}"
    )


def parse_value(spec: InputSpec, text: str) -> Any:
    """The text as the input's type; range and choices are checked with the whole graph.

    Raises:
        ValueError: no such value.
    """
    if spec.type == "STRING":
        return text
    if spec.choices is not None:
        return next((choice for choice in spec.choices if str(choice) == text), text)
    if spec.type == "BOOLEAN":
        if text.lower() in (*TRUE, *FALSE):
            return text.lower() in TRUE
        raise ValueError(f"expected true or false, got {text!r}; change the value")
    if spec.type in ("INT", "FLOAT"):
        return cast_literal(spec, text)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        if spec.takes_literal:
            return text
        raise ValueError(
            f'expected a link such as ["4", 0] to an output of type {spec.type}, got {text!r}; change the value'
        ) from error
