"""UI-format workflows (what the page saves, version 0.4 and 1) -> API format, by the front end's rules."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import WorkflowError, did_you_mean
from .specs import Graph, InputSpec, NodeClasses, is_link, read_inputs

MUTED, BYPASSED = 2, 4
NOTES = ("Note", "MarkdownNote")
CONTROL_VALUES = ("fixed", "increment", "decrement", "randomize", "increment-wrap")
UPLOAD_VALUES = ("image", "video", "audio")


@dataclass(frozen=True)
class _Link:
    source: str
    slot: int


def convert(ui: Mapping[str, Any], node_classes: NodeClasses, display_names: Mapping[str, str] | None = None) -> Graph:
    """API-format graph of a UI-format workflow.

    Notes and muted nodes are left out, bypassed nodes and Reroutes are passed through, PrimitiveNode values are written into the
    inputs they feed. Widgets that the file does not know yet get their default, as the page would fill them in.

    Args:
        ui: the parsed file.
        node_classes: class_type -> node class; gives the order of the widgets.
        display_names: class_type -> name, for `_meta.title` of nodes without a title of their own.

    Raises:
        WorkflowError: subgraphs, unknown node classes, a damaged file.
    """
    try:
        return _Converter(ui, node_classes, display_names or {}).run()
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:  # any part of the file may be of another type
        raise WorkflowError(
            f"workflow: expected UI format with nodes and links, got a damaged file ({error!r}); save it again"
        ) from error


class _Converter:
    def __init__(self, ui: Mapping[str, Any], node_classes: NodeClasses, display_names: Mapping[str, str]) -> None:
        self.node_classes, self.display_names = node_classes, display_names
        subgraphs = {str(entry.get("id")) for entry in (ui.get("definitions") or {}).get("subgraphs") or []}
        self.nodes: dict[str, Mapping[str, Any]] = {str(node["id"]): node for node in ui["nodes"]}
        self.links = dict(_read_links(ui.get("links") or []))
        for node_id, node in self.nodes.items():
            if str(node.get("type")) in subgraphs:
                raise WorkflowError(
                    "expected a flat workflow, got a subgraph; unpack it in ComfyUI (Unpack Subgraph) or export as API format",
                    node_id=node_id,
                    class_type=str(node.get("title") or node.get("type")),
                )

    def run(self) -> Graph:
        graph: Graph = {}
        for node_id, node in self.nodes.items():
            class_type = str(node.get("type"))
            if class_type in (*NOTES, "Reroute", "PrimitiveNode") or node.get("mode", 0) in (MUTED, BYPASSED):
                continue
            if class_type not in self.node_classes:
                hint = did_you_mean(class_type, self.node_classes)
                raise WorkflowError(
                    f"expected a known node class, got {class_type!r}; {hint}", node_id=node_id, class_type=class_type
                )
            specs = read_inputs(self.node_classes[class_type])
            inputs = self._widgets(node, specs) | self._linked(node)
            graph[node_id] = {"class_type": class_type, "inputs": inputs}
            title = str(node.get("title") or "") or self.display_names.get(class_type)
            if title:
                graph[node_id]["_meta"] = {"title": title}
        for node in graph.values():
            node["inputs"] = {name: value for name, value in node["inputs"].items() if not is_link(value) or value[0] in graph}
        return graph

    def _widgets(self, node: Mapping[str, Any], specs: Mapping[str, InputSpec]) -> dict[str, Any]:
        stored = node.get("widgets_values")
        if isinstance(stored, dict):
            return {name: _wrap(stored.get(name, spec.default)) for name, spec in specs.items() if spec.is_widget}
        values = list(stored or [])
        widgets = [spec for spec in specs.values() if spec.is_widget]
        # a file with an entry for every button needs no guessing; a shorter one is read by what the entries look like
        complete = len(values) >= sum(1 + spec.has_control + spec.has_upload for spec in widgets)
        inputs: dict[str, Any] = {}
        for spec in widgets:
            inputs[spec.name] = _wrap(values.pop(0) if values else spec.default)
            for has, known in ((spec.has_control, CONTROL_VALUES), (spec.has_upload, UPLOAD_VALUES)):
                if has and values and (complete or values[0] in known):
                    values.pop(0)
        return inputs

    def _linked(self, node: Mapping[str, Any]) -> dict[str, Any]:
        inputs: dict[str, Any] = {}
        for slot in node.get("inputs") or []:
            if slot.get("link") is None:
                continue
            found = self._origin(slot["link"])
            if isinstance(found, _Link):
                inputs[slot["name"]] = [found.source, found.slot]
            elif found is not None:
                inputs[slot["name"]] = _wrap(found[0])
            # else: nothing comes through a bypassed node; a widget keeps its own value and a socket stays empty
        return inputs

    def _origin(self, link_id: Any) -> "_Link | tuple[Any] | None":
        """Where a link really comes from: a node that runs, the value of a PrimitiveNode, or nothing."""
        seen: set[str] = set()
        while link_id is not None:
            link = self.links.get(str(link_id))
            node = self.nodes.get(link.source) if link else None
            if link is None or node is None:
                raise WorkflowError(f"workflow: expected every link to exist, got a use of missing link {link_id}; save it again")
            if str(link_id) in seen:
                raise WorkflowError(
                    "expected a graph without cycles, got Reroutes in a circle; remove one link", node_id=link.source
                )
            seen.add(str(link_id))
            mode, kind = node.get("mode", 0), node.get("type")
            if mode == MUTED:
                return link  # `run` removes the input, as the page does
            if kind == "PrimitiveNode":
                values = node.get("widgets_values") or []
                return (values[0],) if values else None
            if kind != "Reroute" and mode != BYPASSED:
                return link
            slots = node.get("inputs") or []
            through = 0 if kind == "Reroute" else _bypass_slot(node, link.slot)
            link_id = slots[through].get("link") if through is not None and through < len(slots) else None
        return None


def _read_links(links: Any) -> Iterator[tuple[str, _Link]]:
    for link in links:
        if isinstance(link, Mapping):
            yield str(link["id"]), _Link(str(link["origin_id"]), int(link["origin_slot"]))
        else:
            yield str(link[0]), _Link(str(link[1]), int(link[2]))


def _bypass_slot(node: Mapping[str, Any], output: int) -> int | None:
    """The input that a bypassed node's output stands for: same place if the type agrees, else the first of that type."""
    inputs, outputs = node.get("inputs") or [], node.get("outputs") or []
    kind = outputs[output].get("type") if output < len(outputs) else "*"
    if kind in ("*", "", None):
        return output if output < len(inputs) else 0
    if output < len(inputs) and inputs[output].get("type") in (kind, "*"):
        return output
    return next((index for index, slot in enumerate(inputs) if slot.get("type") == kind), None)


def _wrap(value: Any) -> Any:
    return {"__value__": value} if isinstance(value, list) else value
