"""What every node class owes users and saved workflows: fitting declarations, texts, a help page, a stable interface.

Changed an interface on purpose? `python tests/nodes/test_contract.py` writes the snapshot anew; look at its diff: ids, names,
order and types of inputs and outputs are what saved workflows are made of, so only additions at the end keep them working.
"""

import inspect
import json
import re
from pathlib import Path

import pytest

from alignsr.nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

ROOT = Path(__file__).resolve().parents[2]
SNAPSHOT = Path(__file__).with_name("object_info.json")
WIDGETS = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}

every_node = pytest.mark.parametrize(("node_id", "node"), NODE_CLASS_MAPPINGS.items(), ids=list(NODE_CLASS_MAPPINGS))


def entries(node):
    """(name, type, options, is required) of every visible input."""
    for section in ("required", "optional"):
        for name, entry in node.INPUT_TYPES().get(section, {}).items():
            yield name, entry[0], entry[1] if len(entry) > 1 else {}, section == "required"


def describe() -> dict:
    """The part of every node's interface that saved workflows depend on. Models differ between computers and are left out."""
    described = {}
    for node_id, node in NODE_CLASS_MAPPINGS.items():
        inputs = {}
        for name, kind, options, required in entries(node):
            choices = "models on disk" if name.endswith("_name") and isinstance(kind, list) else kind
            inputs[name] = {"type": choices, "required": required}
            inputs[name] |= {key: options[key] for key in ("default", "min", "max", "forceInput") if key in options}
        outputs = [list(pair) for pair in zip(node.RETURN_NAMES, node.RETURN_TYPES, strict=True)]
        described[node_id] = {
            "inputs": inputs,
            "outputs": outputs,
            "output_is_list": list(getattr(node, "OUTPUT_IS_LIST", [False] * len(outputs))),
            "takes_lists": getattr(node, "INPUT_IS_LIST", False),
            "output_node": getattr(node, "OUTPUT_NODE", False),
        }
    return described


def test_interfaces_are_those_of_the_snapshot():
    known = json.loads(SNAPSHOT.read_text(encoding="utf-8"))
    now = json.loads(json.dumps(describe()))
    assert now == known
    assert {node_id: list(info["inputs"]) for node_id, info in now.items()} == {
        node_id: list(info["inputs"]) for node_id, info in known.items()
    }, "the order of inputs is the order of widget values in saved workflows"


@every_node
def test_ids_and_names(node_id, node):
    assert node_id == f"AlignSR{node.__name__}"
    assert NODE_DISPLAY_NAME_MAPPINGS[node_id]
    assert node.CATEGORY.startswith("AlignSR/")
    assert len(node.DESCRIPTION) > 30 and node.DESCRIPTION.endswith(".")


@every_node
def test_function_takes_every_input(node_id, node):
    parameters = inspect.signature(getattr(node(), node.FUNCTION)).parameters
    assert list(parameters) == [name for name, *_ in entries(node)]
    for name, _, options, required in entries(node):
        default = parameters[name].default
        if not required:
            assert default is not inspect.Parameter.empty, f"{name} is optional for the page, so it needs a default in Python"
        if default is not inspect.Parameter.empty and default is not None:
            assert default == options["default"], name


@every_node
def test_outputs_are_declared_alike(node_id, node):
    count = len(node.RETURN_TYPES)
    assert len(node.RETURN_NAMES) == len(node.OUTPUT_TOOLTIPS) == count
    assert len(getattr(node, "OUTPUT_IS_LIST", (False,) * count)) == count
    assert len(set(node.RETURN_NAMES)) == count
    assert all(isinstance(text, str) and len(text) > 15 for text in node.OUTPUT_TOOLTIPS)


@every_node
def test_inputs_are_explained_and_consistent(node_id, node):
    for name, kind, options, _ in entries(node):
        assert re.fullmatch(r"[a-z][a-z0-9_]*", name)
        assert len(options.get("tooltip", "")) > 15, f"{node_id}.{name} needs a tooltip"
        if isinstance(kind, list):
            assert "default" not in options or options["default"] in kind, name
            continue
        assert kind.isupper()
        if kind in WIDGETS and not options.get("forceInput"):
            assert type(options["default"]) is WIDGETS[kind], f"{node_id}.{name}"
        if kind in ("INT", "FLOAT"):
            assert options["min"] <= options["default"] <= options["max"], name


@every_node
def test_help_page(node_id, node):
    """Every input and output is named on the page, and the page names no other in code font in its lists."""
    text = (ROOT / "web" / "docs" / f"{node_id}.md").read_text(encoding="utf-8")
    listed = re.findall(r"^- \*\*(\w+)\*\*", text, flags=re.MULTILINE)
    assert listed == [name for name, *_ in entries(node)] + list(node.RETURN_NAMES)
    assert text.startswith("# ") and text.isascii()


@every_node
def test_defaults_on_the_help_page(node_id, node):
    """Those that it names are the node's; the pages of losses and trainers name all."""
    text = (ROOT / "web" / "docs" / f"{node_id}.md").read_text(encoding="utf-8").partition("## Outputs")[0]
    bullets = [" ".join(bullet.split()) for bullet in text.split("\n- ")]
    said = dict(found.groups() for found in (re.match(r"\*\*(\w+)\*\*.*Default: `(.*?)`\.", b) for b in bullets) if found)
    known = {name: options["default"] for name, _, options, _ in entries(node) if options.get("default", "") != ""}
    known = {name: {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value) for name, value in known.items()}
    if node.CATEGORY in ("AlignSR/losses", "AlignSR/training"):
        assert said == known
    assert said == {name: known[name] for name in said if name in known}


def test_no_help_page_without_its_node():
    assert {path.stem for path in (ROOT / "web" / "docs").glob("*.md")} == set(NODE_CLASS_MAPPINGS)


def test_defaults_are_those_of_the_core():
    """Where node and core have the same knob, they have the same default."""
    from alignsr.core.degradation import degrade
    from alignsr.core.restore import restore

    def defaults(node_id):
        return {name: options.get("default") for name, _, options, _ in entries(NODE_CLASS_MAPPINGS[node_id])}

    pairs = [("AlignSROneStepSR", restore, {"sigma": (0.0, None)}), ("AlignSRDegrade", degrade, {})]
    for node_id, function, special in pairs:
        mine = defaults(node_id)
        shared = {name: p.default for name, p in inspect.signature(function).parameters.items() if p.default is not p.empty}
        assert shared.keys() & mine.keys(), node_id
        for name in shared.keys() & mine.keys():
            assert special.get(name) == (mine[name], shared[name]) or mine[name] == shared[name], f"{node_id}.{name}"


if __name__ == "__main__":
    SNAPSHOT.write_text(json.dumps(describe(), indent=1) + "\n", encoding="utf-8")
