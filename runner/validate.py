"""Checks a workflow before any of it runs, by ComfyUI's rules; stricter only where ComfyUI would change a value in silence."""

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..nodes.host import get_host
from .errors import WorkflowError, did_you_mean, raise_all, shown
from .specs import (
    Graph,
    InputSpec,
    NodeClasses,
    accepts_any_input,
    attribute,
    is_link,
    read_hidden,
    read_inputs,
    unwrap,
)

NUMBER_NAMES = {"INT": "a whole number", "FLOAT": "a number", "STRING": "a text", "BOOLEAN": "true or false"}


_PICTURE = "a picture, whose metadata is not read"
_OTHER_FILES = {
    ".toml": "a TOML file",
    ".md": "a Markdown file",
    ".txt": "a text file",
    ".csv": "a table",
    ".yaml": "a YAML file",
} | {suffix: _PICTURE for suffix in (".png", ".jpg", ".jpeg", ".webp")}


def load_json(path: str | Path) -> dict[str, Any]:
    """Read a workflow file of either format.

    Raises:
        WorkflowError: no such file, not text, not JSON, or not a JSON object.
    """
    path = Path(path)
    kind = _OTHER_FILES.get(path.suffix.lower())
    if path.is_dir():
        raise WorkflowError(f"{path}: not a workflow: expected a JSON file, got a folder; name a workflow file in it")
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise WorkflowError(
            f"{path}: not a workflow: expected JSON, got {kind or 'a file that is not text'}; export the workflow as JSON"
        ) from error
    except json.JSONDecodeError as error:
        got = kind or f"something else ({error.msg} at line {error.lineno}, column {error.colno})"
        hint = "give it to `alignsr train`" if path.suffix.lower() == ".toml" else "save or export the workflow as JSON"
        raise WorkflowError(f"{path}: not a workflow: expected JSON, got {got}; {hint}") from error
    except OSError as error:
        raise WorkflowError(f"{path}: expected a readable workflow file, got: {error.strerror}; check the path") from error
    if not isinstance(document, dict):
        raise WorkflowError(f"{path}: expected a JSON object of nodes, got a {type(document).__name__}; this is not a workflow")
    return document


def is_ui_format(document: Mapping[str, Any]) -> bool:
    """The format that the page saves (and templates have), as opposed to API format."""
    return isinstance(document.get("nodes"), list)


def check_api_shape(document: Mapping[str, Any]) -> Graph:
    """A copy of the API-format graph; the body of a POST /prompt is opened.

    Raises:
        WorkflowError: not a workflow.
    """
    inner = document.get("prompt")
    nodes = inner if isinstance(inner, dict) and "class_type" not in inner else document
    if not nodes:
        raise WorkflowError("workflow: expected nodes, got an empty object; export the workflow again (API format)")
    graph: Graph = {}
    for node_id, node in nodes.items():
        if not isinstance(node, dict) or not isinstance(node.get("class_type"), str):
            raise WorkflowError(
                f"expected a node with a class_type, got {shown(node)}; this is not an API-format workflow",
                node_id=str(node_id),
            )
        inputs = node.get("inputs", {})
        if not isinstance(inputs, dict):
            raise WorkflowError(
                f"inputs: expected an object, got {shown(inputs)}; export the workflow again",
                node_id=str(node_id),
                class_type=node["class_type"],
            )
        graph[str(node_id)] = {**node, "inputs": dict(inputs)}
        title = node["_meta"].get("title") if isinstance(node.get("_meta"), dict) else None
        if not isinstance(title, str):  # only for show: a damaged one is left out
            graph[str(node_id)].pop("_meta", None)
    return graph


def cast_literal(spec: InputSpec, value: Any) -> Any:
    """The literal as the node's type, e.g. "5" -> 5 for INT; range and choices are not looked at.

    Raises:
        ValueError: it is no such value (also 3.5 for INT and a text for BOOLEAN, which ComfyUI would change in silence).
    """
    wrong = ValueError(f"expected {NUMBER_NAMES.get(spec.type, spec.type)}, got {shown(value)}; change the value")
    if spec.type in ("INT", "FLOAT") and isinstance(value, (int, float, str)):
        try:
            number = int(value) if spec.type == "INT" else float(value)
        except (ValueError, OverflowError) as error:
            raise wrong from error
        if number != number or (isinstance(value, float) and number != value):
            raise wrong
        return number
    if spec.type == "STRING" and isinstance(value, (str, int, float)):
        return str(value)
    if spec.type == "BOOLEAN" and isinstance(value, (bool, int, float)):
        return bool(value)
    if spec.type in NUMBER_NAMES:
        raise wrong
    return value


def check_limits(spec: InputSpec, value: Any) -> None:
    """Minimum, maximum and choices.

    Raises:
        ValueError: outside.
    """
    low, high = spec.options.get("min"), spec.options.get("max")
    if spec.type in ("INT", "FLOAT") and low is not None and value < low:
        raise ValueError(f"expected a value of at least {low}, got {shown(value)}; raise it")
    if spec.type in ("INT", "FLOAT") and high is not None and value > high:
        raise ValueError(f"expected a value of at most {high}, got {shown(value)}; lower it")
    if spec.choices is not None and not spec.options.get("multiselect") and value not in spec.choices:
        raise ValueError(f"expected one of {len(spec.choices)} choices, got {shown(value)}; {did_you_mean(value, spec.choices)}")


def types_fit(received: Any, wanted: Any) -> bool:
    """May an output of type `received` feed an input of type `wanted`? Unions overlap, "*" fits everything."""
    if received == wanted or "*" in (received, wanted):
        return True
    if isinstance(received, (list, tuple)) or isinstance(wanted, (list, tuple)):
        return "COMBO" in (received, wanted)
    return bool({part.strip() for part in received.split(",")} & {part.strip() for part in wanted.split(",")})


class Validator:
    """One validation of one graph. Casts literals in place, as ComfyUI does, and collects every problem."""

    def __init__(self, graph: Graph, node_classes: NodeClasses) -> None:
        self.graph, self.node_classes = graph, node_classes
        self.problems: list[WorkflowError] = []

    def run(self) -> list[str]:
        """Validate everything that will run.

        Returns:
            Ids in an order in which they can run.

        Raises:
            WorkflowError: carrying all problems.
        """
        for node_id, node in self.graph.items():
            if node["class_type"] not in self.node_classes:
                hint = did_you_mean(node["class_type"], self.node_classes)
                self._problem(node_id, None, f"expected a known node class, got {node['class_type']!r}; {hint}")
        raise_all(self.problems)
        outputs = [node_id for node_id in self.graph if attribute(self._class(node_id), "OUTPUT_NODE", False)]
        if not outputs:
            raise WorkflowError("workflow: expected an output node such as SaveImage, got none; add one, nothing would run")
        order = self._order(outputs)
        for node_id in order:
            self._check_node(node_id)
        raise_all(self.problems)
        return order

    def _class(self, node_id: str) -> Any:
        return self.node_classes[self.graph[node_id]["class_type"]]

    def _problem(self, node_id: str, input_name: str | None, message: str) -> None:
        class_type = self.graph[node_id]["class_type"]
        self.problems.append(WorkflowError(message, node_id=node_id, class_type=class_type, input_name=input_name))

    def _parents(self, node_id: str) -> list[str]:
        values = self.graph[node_id]["inputs"].values()
        return [value[0] for value in values if is_link(value) and value[0] in self.graph]

    def _order(self, outputs: list[str]) -> list[str]:
        """Depth first from each output, so that one output is finished before the next begins. Iterative: graphs may be long."""
        order: list[str] = []
        done: set[str] = set()
        for output in outputs:
            path: list[str] = []
            stack = [(output, False)]
            while stack:
                node_id, leaving = stack.pop()
                if leaving:
                    path.pop()
                    done.add(node_id)
                    order.append(node_id)
                elif node_id in path:
                    circle = " -> ".join([*path[path.index(node_id) :], node_id])
                    message = (
                        f"expected a graph without cycles, got {circle} (each takes from the next); remove one of these links"
                    )
                    raise WorkflowError(message, node_id=node_id, class_type=self.graph[node_id]["class_type"])
                elif node_id not in done:
                    path.append(node_id)
                    stack.append((node_id, True))
                    stack += [(parent, False) for parent in reversed(self._parents(node_id))]
        return order

    def _check_node(self, node_id: str) -> None:
        node_class, inputs = self._class(node_id), self.graph[node_id]["inputs"]
        specs = read_inputs(node_class)
        before = len(self.problems)
        lazy = [name for name, spec in specs.items() if spec.options.get("lazy")]
        if lazy:
            self._problem(node_id, lazy[0], "expected plain inputs, got a lazy one; only ComfyUI runs these")
            return
        own = attribute(node_class, "VALIDATE_INPUTS", None)
        parameters = inspect.signature(own).parameters if own is not None else {}
        covers_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        for name, spec in specs.items():
            if name not in inputs:
                if spec.required:
                    hint = f" (the node's default is {shown(spec.default)})" if "default" in spec.options else ""
                    self._problem(
                        node_id, name, f"expected a value for this required input, got none{hint}; set it in the workflow"
                    )
                continue
            if isinstance(inputs[name], list):
                self._check_link(node_id, spec, inputs[name], check_type="input_types" not in parameters)
            else:
                self._check_literal(node_id, spec, own_check=covers_all or name in parameters)
        self._check_undeclared(node_id, specs)
        if own is not None and len(self.problems) == before:
            self._run_own_check(node_id, own, parameters, covers_all, specs)

    def _check_link(self, node_id: str, spec: InputSpec, value: list[Any], *, check_type: bool) -> None:
        if not is_link(value):
            message = f"expected a link ['node id', output index], got {shown(value)}; wrap lists as {{\"__value__\": [...]}}"
            self._problem(node_id, spec.name, message)
            return
        source, index = value
        if source not in self.graph:
            hint = did_you_mean(source, self.graph)
            self._problem(node_id, spec.name, f"expected a link to an existing node, got node {source!r}; {hint}")
            return
        outputs = attribute(self._class(source), "RETURN_TYPES", ())
        name = self.graph[source]["class_type"]
        if not 0 <= index < len(outputs):
            message = (
                f"expected an output 0..{len(outputs) - 1} of node {source} ({name}), got {index}; it has {len(outputs)} outputs"
            )
            self._problem(node_id, spec.name, message)
        elif check_type and not types_fit(outputs[index], spec.declared):
            wanted, got = (kind if isinstance(kind, str) else "COMBO" for kind in (spec.declared, outputs[index]))
            message = f"expected type {wanted}, got {got} from output {index} of node {source} ({name}); link a {wanted}"
            self._problem(node_id, spec.name, message)

    def _check_literal(self, node_id: str, spec: InputSpec, *, own_check: bool) -> None:
        inputs = self.graph[node_id]["inputs"]
        value = inputs[spec.name]
        if not spec.takes_literal and not (isinstance(value, dict) and "__value__" in value):
            message = (
                f"expected a link to an output of type {spec.type}, got the value {shown(value)}; link it or remove the input"
            )
            self._problem(node_id, spec.name, message)
            return
        try:
            value = cast_literal(spec, unwrap(value))
            if not own_check:
                check_limits(spec, value)
        except ValueError as error:
            self._problem(node_id, spec.name, f"{error}{self._home(node_id, spec)}")
            return
        inputs[spec.name] = {"__value__": value} if isinstance(value, list) else value

    def _home(self, node_id: str, spec: InputSpec) -> str:
        """Where a model file of one's own belongs to be a choice of this input, for the end of a message."""
        key = dict(attribute(self._class(node_id), "MODEL_FOLDERS", ())).get(spec.name)
        folders = get_host().model_dirs(key) if key and spec.choices is not None else []
        return f"; a file of your own is a choice once it lies in {folders[-1]}, under its name in there" if folders else ""

    def _check_undeclared(self, node_id: str, specs: Mapping[str, InputSpec]) -> None:
        """As in ComfyUI unknown literals are ignored and unknown links reach the function, if it takes any."""
        for name, value in self.graph[node_id]["inputs"].items():
            if name not in specs and is_link(value) and not accepts_any_input(self._class(node_id)):
                self._problem(node_id, name, f"expected an input of this node, got an unknown name; {did_you_mean(name, specs)}")

    def _run_own_check(
        self, node_id: str, own: Any, parameters: Mapping[str, Any], covers_all: bool, specs: Mapping[str, InputSpec]
    ) -> None:
        inputs = self.graph[node_id]["inputs"]
        wanted = {name for name in inputs if name in specs and (covers_all or name in parameters)}
        arguments = {name: None if is_link(inputs[name]) else unwrap(inputs[name]) for name in wanted}
        hidden = {"UNIQUE_ID": node_id, "PROMPT": self.graph}
        for name, kind in read_hidden(self._class(node_id)).items():
            if name in parameters and kind in hidden:
                arguments[name] = hidden[kind]
        if attribute(self._class(node_id), "INPUT_IS_LIST", False):
            arguments = {name: [value] for name, value in arguments.items()}
        if "input_types" in parameters:
            arguments["input_types"] = {
                name: attribute(self._class(value[0]), "RETURN_TYPES", ())[value[1]]
                for name, value in inputs.items()
                if is_link(value)
            }
        try:
            verdict = own(**arguments)
        except Exception as error:  # noqa: BLE001  # a node's own check may fail in any way; the user gets it as that node's problem
            verdict = f"{type(error).__name__}: {error}"
        if verdict is not True:
            name = next(iter(wanted)) if len(wanted) == 1 else None
            self._problem(node_id, name, verdict if isinstance(verdict, str) else "the node refuses these inputs; change them")


def validate(graph: Graph, node_classes: NodeClasses) -> list[str]:
    """Check `graph` (API format) and cast its literals in place.

    Returns:
        Ids of the output nodes and their ancestors, in an order in which they can run.

    Raises:
        WorkflowError: `problems` holds everything that is wrong.
    """
    return Validator(graph, node_classes).run()
