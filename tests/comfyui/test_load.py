"""ComfyUI loads the pack from a folder with a hyphen in its name, without a word of complaint, and knows all its nodes."""

import json
from typing import Any

import pytest

from alignsr import nodes
from alignsr.nodes.host import LocalHost, use_host
from alignsr.runner.specs import object_info
from comfyui.server import PACK, Refused, Server, node, trouble

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


def test_the_server_describes_the_nodes_as_our_own_object_info_does(server: Server, described: dict[str, Any]) -> None:
    with use_host(LocalHost(input_dirs=[server.base / "input"], models_dirs=[server.base / "models"])):
        own = json.loads(json.dumps(object_info(nodes.NODE_CLASS_MAPPINGS, nodes.NODE_DISPLAY_NAME_MAPPINGS)))
    for name, info in described.items():
        theirs = {key: value for key, value in info.items() if key != "python_module"}
        assert theirs == {key: value for key, value in own[name].items() if key != "python_module"}, name


def test_models_in_our_own_folder_and_bundled_ones_are_offered(server: Server, described: dict[str, Any]) -> None:
    assert "alignsr" in server.get("/models")
    own = server.base / "models" / "alignsr" / "mine.safetensors"
    own.parent.mkdir(exist_ok=True)
    try:
        own.write_bytes(b"")
        offered = server.get("/object_info/AlignSRLoadSRModel")["AlignSRLoadSRModel"]["input"]["required"]["model_name"][0]
    finally:
        own.unlink()
    assert own.name in offered
    assert set(described["AlignSRLoadSRModel"]["input"]["required"]["model_name"][0]) < set(offered)


def test_a_wrong_value_is_refused_before_anything_runs(server: Server) -> None:
    model = node("AlignSRLoadSRModel", model_name="no such model", precision="fp32", device="auto")
    shown = node("PreviewAny", source=["1", 1])
    with pytest.raises(Refused, match="value_not_in_list"):
        server.run({"1": model, "2": shown})
