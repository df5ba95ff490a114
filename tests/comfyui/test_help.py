"""Help pages are served under the folder's name, where the page's Info panel looks for them."""

import pytest

from alignsr import nodes
from comfyui.server import PACK, Server
from paths import ROOT

pytestmark = pytest.mark.comfyui


def test_every_node_has_a_help_page_that_is_served(server: Server) -> None:
    for name in nodes.NODE_CLASS_MAPPINGS:
        served = server.request(f"/extensions/{PACK}/docs/{name}.md")
        assert served == (ROOT / "web" / "docs" / f"{name}.md").read_bytes(), name
        assert served.strip(), name


def test_every_script_is_offered_to_the_page(server: Server) -> None:
    offered = {address for address in server.get("/extensions") if address.startswith(f"/extensions/{PACK}/")}
    assert offered == {f"/extensions/{PACK}/{path.relative_to(ROOT / 'web').as_posix()}" for path in (ROOT / "web").rglob("*.js")}
