"""`--set node.input=value`."""

from typing import Any

import pytest
from toy_nodes import NODES, node

from alignsr.runner import WorkflowError, apply_sets


def graph() -> dict[str, Any]:
    return {
        "1": node("Make", "My maker v1.5", number=1, mode="plain"),
        "2": node("Show", value=["1", 0]),
        "3": node("Show", "twin", value=["1", 0]),
        "4": node("Show", "twin", value=["1", 0]),
    }


@pytest.mark.parametrize(
    ("text", "node_id", "name", "value"),
    [
        ("1.number=7", "1", "number", 7),
        ("Make.number=7", "1", "number", 7),
        ("My maker v1.5.number=7", "1", "number", 7),
        ("1.mode=double", "1", "mode", "double"),
        ("1.text=a=b.c", "1", "text", "a=b.c"),
        ("1.text=5", "1", "text", "5"),
        ("1.text=", "1", "text", ""),
        ("1.exact=False", "1", "exact", False),
        ('2.value=["1", 1]', "2", "value", ["1", 1]),
    ],
)
def test_set(text: str, node_id: str, name: str, value: object) -> None:
    changed = graph()
    apply_sets(changed, [text], NODES)
    assert changed[node_id]["inputs"][name] == value
    assert type(changed[node_id]["inputs"][name]) is type(value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("number=7", "node.input=value"),
        ("1.number", "node.input=value"),
        ("1.numbre=7", "did you mean 'number'"),
        ("Maek.number=7", "did you mean 'Make'"),
        ("9.number=7", "node id, title or class"),
        ("twin.tag=7", "nodes 3, 4; use the id"),
        ("Show.tag=7", "nodes 2, 3, 4; use the id"),
        ("1.number=many", "whole number"),
        ("1.number=3.5", "whole number"),
        ("1.exact=perhaps", "true or false"),
    ],
)
def test_bad_set(text: str, words: str) -> None:
    with pytest.raises(WorkflowError, match=words):
        apply_sets(graph(), [text], NODES)
