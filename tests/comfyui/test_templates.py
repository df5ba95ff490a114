"""Every template is listed, has a thumbnail, opens in a browser without a missing node, and exports what workflows/api holds."""

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from comfyui.browser import Browser
from comfyui.server import PACK, Server
from paths import ROOT

pytestmark = pytest.mark.comfyui

TEMPLATES = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
UNKNOWN_NODES = "app.graph._nodes.filter(n => !(n.type in LiteGraph.registered_node_types)).map(n => n.type)"
USUAL_404 = ("user.css", "userdata", "favicon.ico", "/docs/")  # ComfyUI's page asks for files that a fresh user does not have


def open_template(server: Server, browser: Browser, name: str) -> None:
    expected = len(json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))["nodes"])
    browser.open(f"{server.url}/?template={name}&source={PACK}")
    browser.wait_for(f"window.app?.graph?._nodes?.length === {expected}")
    browser.wait_for("document.readyState === 'complete' && app.vueAppReady")


def test_there_are_templates() -> None:
    assert TEMPLATES


def test_the_server_lists_every_template(server: Server) -> None:
    assert sorted(server.get("/workflow_templates")[PACK]) == TEMPLATES


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_and_its_thumbnail_are_served(server: Server, name: str) -> None:
    served = server.get(f"/api/workflow_templates/{PACK}/{name}.json")
    assert served == json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    thumbnail = Image.open(BytesIO(server.request(f"/api/workflow_templates/{PACK}/{name}.jpg")))
    assert thumbnail.format == "JPEG"
    assert min(thumbnail.size) >= 128


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_opens_with_no_missing_node(server: Server, browser: Browser, tmp_path: Path, name: str) -> None:
    open_template(server, browser, name)
    browser.screenshot(tmp_path / f"{name}.png")
    assert browser.evaluate(UNKNOWN_NODES) == []
    assert browser.evaluate("[...document.querySelectorAll('[role=dialog], .p-dialog')].map(d => d.textContent)") == []
    assert browser.exceptions() == []
    assert [failed for failed in browser.failed_requests() if not any(usual in failed for usual in USUAL_404)] == []
    exported = json.loads(browser.evaluate("app.graphToPrompt().then(prompt => JSON.stringify(prompt.output))"))
    twin = json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))
    declared = server.get("/object_info")
    assert essence(exported, declared) == essence(twin, declared)


def essence(prompt: dict[str, Any], declared: dict[str, Any]) -> dict[str, Any]:
    """Classes and inputs. Titles are left out, and so is what scripts of the page add to nodes by themselves (PreviewAny)."""
    known = {name: {key for section in info["input"].values() for key in section} for name, info in declared.items()}
    return {
        node_id: (
            entry["class_type"],
            {key: value for key, value in entry["inputs"].items() if key in known[entry["class_type"]]},
        )
        for node_id, entry in prompt.items()
    }
