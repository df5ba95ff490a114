"""ComfyUI loads the pack from a folder with a hyphen in its name, without a word of complaint, and knows all its nodes."""

import json
from typing import Any

import pytest

from alignsr import nodes
from alignsr.runner.specs import object_info
from comfyui.server import PACK, Refused, Server, trouble

pytestmark = pytest.mark.comfyui


@pytest.fixture(scope="module")
def described(server: Server) -> dict[str, Any]:
    """What the server says about the nodes of our pack."""
    everything = server.get("/object_info")
    return {name: info for name, info in everything.items() if info["python_module"] == f"custom_nodes.{PACK}"}


def test_the_log_of_the_start_is_clean(server: Server) -> None:
    start = server.log.partition("To see the GUI go to")[0]
    assert PACK in start
    assert not trouble(start), "\n".join(trouble(start))


def test_the_server_knows_exactly_our_nodes(described: dict[str, Any]) -> None:
    assert sorted(described) == sorted(nodes.NODE_CLASS_MAPPINGS)


def test_the_server_describes_the_nodes_as_our_own_object_info_does(described: dict[str, Any]) -> None:
    own = json.loads(json.dumps(object_info(nodes.NODE_CLASS_MAPPINGS, nodes.NODE_DISPLAY_NAME_MAPPINGS)))
    for name, info in described.items():
        theirs = {key: value for key, value in info.items() if key != "python_module"}
        assert theirs == {key: value for key, value in own[name].items() if key != "python_module"}, name


def test_the_model_folder_is_registered(server: Server) -> None:
    assert "alignsr" in server.get("/models")
    assert "alignsr" not in {path.name for path in (server.base / "models").iterdir()} or server.get("/models/alignsr") == []


def test_a_wrong_value_is_refused_before_anything_runs(server: Server, described: dict[str, Any]) -> None:
    prompt = {"1": {"class_type": "AlignSRLoadSRModel", "inputs": {"model": "no such model"}}}
    prompt["2"] = {"class_type": "AlignSRTestTensorDump", "inputs": {"value": ["1", 0], "folder": "x", "name": "x"}}
    with pytest.raises(Refused, match=r"value_not_in_list|custom_validation_failed|required_input_missing"):
        server.run(prompt)
