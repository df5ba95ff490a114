"""Runs a validated graph on the calling thread, under inference mode, with ComfyUI's list semantics and caching."""

import asyncio
import hashlib
import inspect
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..nodes.host import Host, LocalHost, get_host
from .errors import WorkflowError, WorkflowInterrupted
from .specs import Graph, NodeClasses, attribute, is_link, read_hidden, read_inputs, unwrap
from .validate import validate

Lists = list[list[Any]]  # one list of values per output


@dataclass
class RunResult:
    """What a run did.

    Attributes:
        outputs: node id -> its `ui` result, e.g. {"images": [{"filename", "subfolder", "type"}]}, as in /history.
        files: files that the run's output nodes name in the output folder, in order.
        previews: node id -> pictures in the temporary folder, which is gone when the program ends.
        titles: node id -> title of the nodes with a result.
        executed: ids of nodes that ran, in order.
        cached: ids of nodes whose results were known.
        warnings: things worth telling the user that stopped nothing.
    """

    outputs: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)
    previews: dict[str, list[Path]] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    executed: list[str] = field(default_factory=list)
    cached: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Known:
    """The result of one node: a list of values per output, and what it shows."""

    outputs: Lists
    ui: dict[str, list[Any]]


class DynPrompt:
    """What a node that asks for DYNPROMPT gets; here the graph never grows, so display, real and own ids are one."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph

    def get_node(self, node_id: str) -> dict[str, Any]:
        return self._graph[node_id]

    def has_node(self, node_id: str) -> bool:
        return node_id in self._graph

    def all_node_ids(self) -> set[str]:
        return set(self._graph)

    def get_original_prompt(self) -> Graph:
        return self._graph

    def get_real_node_id(self, node_id: str) -> str:
        return node_id

    def get_display_node_id(self, node_id: str) -> str:
        return node_id

    def get_parent_node_id(self, node_id: str) -> None:
        return None


def call_per_element(
    function: Callable[..., Any],
    arguments: Mapping[str, list[Any]],
    *,
    takes_lists: bool,
    before: Callable[[], None] = lambda: None,
) -> list[Any]:
    """Call once per list element, repeating the last element of shorter lists; or once with the lists themselves.

    `before` is called before every call, so that a long list can be cancelled between its elements.

    Raises:
        ValueError: an argument's list is empty, `<name>: ...`.
    """
    if takes_lists:
        before()
        return [_finish(function(**arguments))]
    for name, values in arguments.items():
        if not values:
            raise ValueError(f"{name}: expected at least one value, got an empty list; the node it comes from produced nothing")
    calls = max((len(values) for values in arguments.values()), default=1)
    results: list[Any] = []
    for index in range(calls):
        before()
        results.append(_finish(function(**{name: values[min(index, len(values) - 1)] for name, values in arguments.items()})))
    return results


def _finish(result: Any) -> Any:
    """FUNCTION may be a coroutine."""
    if not inspect.iscoroutine(result):
        return result

    async def wait() -> Any:
        with torch.inference_mode():
            return await result

    return asyncio.run(wait())


def collect(node_class: Any, results: list[Any]) -> _Known:
    """Merge what the calls returned: outputs in lists (OUTPUT_IS_LIST outputs joined), `ui` lists joined.

    Raises:
        TypeError: a return value that ComfyUI could not take either.
    """
    types = attribute(node_class, "RETURN_TYPES", ())
    is_list = attribute(node_class, "OUTPUT_IS_LIST", (False,) * len(types))
    outputs: Lists = [[] for _ in types]
    ui: dict[str, list[Any]] = {}
    for result in results:
        values = result
        if isinstance(result, dict):
            if "expand" in result:
                raise TypeError(
                    "return value: expected results, got a graph expansion; only ComfyUI expands nodes, run the workflow there"
                )
            for key, shown in result.get("ui", {}).items():
                if not isinstance(shown, (list, tuple)):
                    raise TypeError(f"ui[{key!r}]: expected a list, got {type(shown).__name__}; wrap it in a list")
                ui.setdefault(key, []).extend(shown)
            values = result.get("result", ())
        if not isinstance(values, (tuple, list)) or len(values) != len(types):
            got = f"{len(values)} values" if isinstance(values, (tuple, list)) else type(values).__name__
            raise TypeError(f"return value: expected a tuple of {len(types)} values, got {got}; this is a bug of the node")
        for index, value in enumerate(values):
            if is_list[index]:
                outputs[index].extend(value)
            else:
                outputs[index].append(value)
    return _Known(outputs, ui)


class Executor:
    """Runs graphs and remembers results between runs, as ComfyUI does: a node with equal inputs is skipped.

    Args:
        node_classes: class_type -> node class.
        keep_results: remember results for the next run and for `result()`. False frees each tensor after its last use.
    """

    def __init__(self, node_classes: NodeClasses, *, keep_results: bool = True) -> None:
        self.node_classes = node_classes
        self.keep_results = keep_results
        self._instances: dict[str, Any] = {}
        self._known: dict[str, _Known] = {}
        self._keys: dict[str, str] = {}
        self._never = itertools.count()

    def result(self, node_id: str, index: int = 0) -> list[Any]:
        """The values of one output after a run with `keep_results`."""
        return self._known[self._keys[node_id]].outputs[index]

    def run(self, graph: Graph, *, extra_pnginfo: Mapping[str, Any] | None = None, host: Host | None = None) -> RunResult:
        """Validate `graph` and run its output nodes and their ancestors.

        Args:
            graph: API format. Literals are cast in place.
            extra_pnginfo: what EXTRA_PNGINFO answers, {"workflow": UI JSON} as a rule.
            host: cancel and progress; `get_host()` if not given. Nodes ask `get_host()` themselves: see `use_host`.

        Raises:
            WorkflowError: invalid graph (nothing ran), or a node failed (`partial` holds what had finished).
            WorkflowInterrupted: cancelled; `partial` holds what had finished.
        """
        host = host or get_host()
        order = validate(graph, self.node_classes)
        outcome = RunResult()
        job: AbstractContextManager[None] = host.job(len(order)) if isinstance(host, LocalHost) else nullcontext()
        with torch.inference_mode(), job:
            self._keys = self._make_keys(graph, order, outcome)
            users = self._count_users(graph, order)
            for node_id in order:
                try:
                    host.check_interrupt()
                    self._step(graph, node_id, extra_pnginfo, host, outcome)
                except host.interrupt_types as stop:
                    raise WorkflowInterrupted(outcome) from stop
                except WorkflowError as error:
                    error.partial = outcome
                    raise
                if not self.keep_results:
                    self._release(graph, node_id, users)
        used = set(self._keys.values())
        self._known = {key: known for key, known in self._known.items() if self.keep_results and key in used}
        self._instances = {node_id: instance for node_id, instance in self._instances.items() if node_id in graph}
        return outcome

    def _step(self, graph: Graph, node_id: str, pnginfo: Mapping[str, Any] | None, host: Host, outcome: RunResult) -> None:
        key = self._keys[node_id]
        class_type = graph[node_id]["class_type"]
        title = graph[node_id].get("_meta", {}).get("title", class_type)
        if isinstance(host, LocalHost):
            host.node_started(f"{node_id} {title}")
        if key in self._known:
            outcome.cached.append(node_id)
        else:
            self._known[key] = self._run_node(graph, node_id, pnginfo, host)
            outcome.executed.append(node_id)
        if self._known[key].ui:
            outcome.outputs[node_id], outcome.titles[node_id] = self._known[key].ui, title
            outcome.files += [path for path in _files(self._known[key].ui, "output", host) if path not in outcome.files]
            if previews := list(_files(self._known[key].ui, "temp", host)):
                outcome.previews[node_id] = previews
        if isinstance(host, LocalHost):
            host.node_finished()

    def _run_node(self, graph: Graph, node_id: str, pnginfo: Mapping[str, Any] | None, host: Host) -> _Known:
        class_type = graph[node_id]["class_type"]
        node_class: Any = self.node_classes[class_type]
        try:
            instance = self._instances.get(node_id)
            if type(instance) is not node_class:
                instance = self._instances[node_id] = node_class()
            arguments = self._arguments(graph, node_id, pnginfo)
            takes_lists = attribute(node_class, "INPUT_IS_LIST", False)
            function = getattr(instance, node_class.FUNCTION)
            called = call_per_element(function, arguments, takes_lists=takes_lists, before=host.check_interrupt)
            return collect(node_class, called)
        except host.interrupt_types:
            raise
        except Exception as error:  # a node may fail in any way; the user gets one line, the cause stays chained
            raise _as_workflow_error(error, node_id, class_type, graph[node_id]["inputs"]) from error

    def _arguments(self, graph: Graph, node_id: str, pnginfo: Mapping[str, Any] | None) -> dict[str, list[Any]]:
        node_class: Any = self.node_classes[graph[node_id]["class_type"]]
        declared = read_inputs(node_class)
        arguments: dict[str, list[Any]] = {}
        for name, value in graph[node_id]["inputs"].items():
            if is_link(value):
                arguments[name] = self._known[self._keys[value[0]]].outputs[value[1]]
            elif name in declared:
                arguments[name] = [unwrap(value)]
        available = {"UNIQUE_ID": node_id, "PROMPT": graph, "EXTRA_PNGINFO": pnginfo, "DYNPROMPT": DynPrompt(graph)}
        for name, kind in read_hidden(node_class).items():
            arguments[name] = [available.get(kind)]
        return arguments

    # caching

    def _make_keys(self, graph: Graph, order: Sequence[str], outcome: RunResult) -> dict[str, str]:
        """A node's key says what it computes: class, own values, IS_CHANGED, and the keys of what it takes in."""
        keys: dict[str, str] = {}
        for node_id in order:
            node_class: Any = self.node_classes[graph[node_id]["class_type"]]
            inputs = graph[node_id]["inputs"]
            facts: list[Any] = [graph[node_id]["class_type"], self._fingerprint(node_class, node_id, inputs, outcome)]
            if "UNIQUE_ID" in read_hidden(node_class).values() or attribute(node_class, "NOT_IDEMPOTENT", False):
                facts.append(node_id)
            for name in sorted(inputs):
                value = inputs[name]
                facts.append([name, "link", keys[value[0]], value[1]] if is_link(value) else [name, "value", value])
            text = json.dumps(facts, sort_keys=True, default=repr)
            keys[node_id] = hashlib.sha256(text.encode()).hexdigest()
        return keys

    def _fingerprint(self, node_class: Any, node_id: str, inputs: Mapping[str, Any], outcome: RunResult) -> Any:
        is_changed = attribute(node_class, "IS_CHANGED", None)
        if is_changed is None:
            return None
        declared = read_inputs(node_class)
        values = {name: None if is_link(value) else unwrap(value) for name, value in inputs.items() if name in declared}
        if attribute(node_class, "INPUT_IS_LIST", False):
            values = {name: [value] for name, value in values.items()}
        try:
            answer = is_changed(**values)
        except Exception as error:  # noqa: BLE001  # as in ComfyUI: a failing IS_CHANGED means "always run", and is told
            outcome.warnings.append(f"node {node_id}: IS_CHANGED failed, the node always runs ({type(error).__name__}: {error})")
            answer = float("nan")
        return f"never {next(self._never)}" if answer != answer else answer

    def _count_users(self, graph: Graph, order: Sequence[str]) -> dict[str, int]:
        """Key -> how many steps of the run still need its result (its own nodes included)."""
        users: dict[str, int] = {}
        for key in itertools.chain.from_iterable(self._needed(graph, node_id) for node_id in order):
            users[key] = users.get(key, 0) + 1
        return users

    def _needed(self, graph: Graph, node_id: str) -> Iterator[str]:
        yield self._keys[node_id]
        for value in graph[node_id]["inputs"].values():
            if is_link(value):
                yield self._keys[value[0]]

    def _release(self, graph: Graph, node_id: str, users: dict[str, int]) -> None:
        for key in self._needed(graph, node_id):
            users[key] -= 1
            if users[key] == 0:
                self._known.pop(key, None)


def _as_workflow_error(error: Exception, node_id: str, class_type: str, inputs: Mapping[str, Any]) -> WorkflowError:
    """One line. Our own messages start with the argument's name, which is the input where the names agree."""
    text = str(error)
    name, colon, rest = text.partition(": ")
    if colon and name in inputs:
        return WorkflowError(rest, node_id=node_id, class_type=class_type, input_name=name)
    if not text or not isinstance(error, (ValueError, TypeError, OSError)):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return WorkflowError(text, node_id=node_id, class_type=class_type)


def _files(ui: Mapping[str, list[Any]], kind: str, host: Host) -> Iterator[Path]:
    """Paths of the entries of a `ui` result that lie in the folder "output" or "temp"."""
    for entry in itertools.chain.from_iterable(ui.values()):
        if isinstance(entry, dict) and entry.get("type") == kind and "filename" in entry:
            folder = host.output_dir() if kind == "output" else host.temp_dir()
            yield folder / entry.get("subfolder", "") / entry["filename"]
