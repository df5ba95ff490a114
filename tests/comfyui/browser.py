"""Chromium without a window, driven over its DevTools protocol: the only thing needed besides the browser is websocket-client."""

import base64
import json
import os
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1600,1000",
    "--remote-debugging-port=0",
)


def find_chromium() -> str | None:
    """CHROMIUM_PATH, else the first browser of the family on PATH."""
    return os.environ.get("CHROMIUM_PATH") or next(filter(None, map(shutil.which, NAMES)), None)


class PageError(Exception):
    """JavaScript threw, or the page did not get ready."""


class Browser:
    """One page. `open`, then `evaluate` JavaScript in it."""

    def __init__(self, program: Path, profile: Path) -> None:
        self.program, self.profile = program, profile
        self.process: subprocess.Popen[bytes] | None = None
        self.connection: Any = None
        self.sent = 0
        self.events: list[dict[str, Any]] = []

    def start(self, timeout_s: float = 60) -> "Browser":
        import websocket

        command = [str(self.program), *FLAGS, f"--user-data-dir={self.profile}", "about:blank"]
        with (self.profile / "chromium.log").open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        address = self.profile / "DevToolsActivePort"
        deadline = time.monotonic() + timeout_s
        while not (address.is_file() and address.read_text().strip()):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise PageError("Chromium did not start:\n" + (self.profile / "chromium.log").read_text(errors="replace")[-2000:])
            time.sleep(0.1)
        port = address.read_text().splitlines()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=timeout_s) as answer:
            target = next(entry for entry in json.loads(answer.read()) if entry["type"] == "page")
        self.connection = websocket.create_connection(target["webSocketDebuggerUrl"], timeout=timeout_s, suppress_origin=True)
        for domain in ("Page", "Runtime", "Network"):
            self.call(f"{domain}.enable")
        return self

    def stop(self) -> None:
        if self.connection is not None:
            self.connection.close()
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One DevTools command; events that arrive meanwhile are kept."""
        self.sent += 1
        self.connection.send(json.dumps({"id": self.sent, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.connection.recv())
            if message.get("id") == self.sent:
                if "error" in message:
                    raise PageError(f"{method}: {message['error']}")
                return message["result"]
            self.events.append(message)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; a promise is awaited."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise PageError(details.get("exception", {}).get("description") or details["text"])
        return answer["result"].get("value")

    def open(self, url: str) -> None:
        """Go to a page; what earlier pages reported is forgotten."""
        self.call("Page.navigate", url="about:blank")
        self.events.clear()
        self.call("Page.navigate", url=url)

    def wait_for(self, expression: str, timeout_s: float = 90) -> Any:
        """Poll until a JavaScript expression is true."""
        deadline = time.monotonic() + timeout_s
        value: Any = None
        while time.monotonic() < deadline:
            try:
                if value := self.evaluate(expression):
                    return value
            except PageError as error:  # as a rule the page is still loading its scripts
                value = error
            time.sleep(0.25)
        raise PageError(f"never became true within {timeout_s} s: {expression}; the last answer: {value!r}")

    def exceptions(self) -> list[str]:
        """Uncaught JavaScript exceptions of this page."""
        details = [event["params"]["exceptionDetails"] for event in self.events if event["method"] == "Runtime.exceptionThrown"]
        return [detail.get("exception", {}).get("description") or detail["text"] for detail in details]

    def failed_requests(self) -> list[str]:
        """Addresses that answered with an error status."""
        answers = [event["params"]["response"] for event in self.events if event["method"] == "Network.responseReceived"]
        return [f"{answer['status']} {answer['url']}" for answer in answers if answer["status"] >= 400]

    def point_of(self, selector: str) -> tuple[float, float]:
        """The middle of an element, in pixels of the window."""
        middle = "(box => [box.x + box.width / 2, box.y + box.height / 2])"
        box = self.evaluate(f"{middle}(document.querySelector('{selector}').getBoundingClientRect())")
        return box[0], box[1]

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        """One event of a real mouse: mousePressed, mouseReleased, mouseMoved, mouseWheel."""
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def click(self, selector: str) -> None:
        """Press and release the left button in the middle of an element."""
        x, y = self.point_of(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.mouse(kind, x, y, button="left", clickCount=1)

    def press(self, key: str, code: int = 0, *, is_held: bool = False) -> None:
        """Press a key and, unless it is held, release it; letters and digits by themselves, others as in KeyboardEvent.key."""
        text = {"text": key} if len(key) == 1 else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, **text)
        if not is_held:
            self.release(key)

    def release(self, key: str) -> None:
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def download_to(self, folder: Path) -> None:
        """Save downloads there without asking."""
        self.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))
