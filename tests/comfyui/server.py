"""A real ComfyUI as a child process, and a client that talks to it as the page does.

COMFYUI_PATH names the checkout, COMFYUI_PYTHON the interpreter with ComfyUI's requirements (this one if not given). All that the
server writes lies in a temporary base folder; the checkout stays clean.
"""

import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from paths import ROOT

HERE = Path(__file__).resolve().parent
PACK = "Align-SR"  # a hyphen, and not our name: users may clone into any folder
END = ("execution_success", "execution_error", "execution_interrupted")
PREVIEW, PREVIEW_WITH_METADATA = 1, 4
TROUBLE = re.compile(
    r"Traceback \(most recent|IMPORT FAILED|Cannot import|^Skip .* module|\b(ERROR|WARNING)\b|(Error|Warning|Exception)\b"
)
# what ComfyUI 0.8.0 itself says on a machine without torchaudio, without CUDA, or with newer packages than its own
NOT_OURS = re.compile(r"torchaudio|comfy_extras|comfy_kitchen|nodes_(lt_)?audio|missing dependencies|pip install -r", re.I)

Message = dict[str, Any]


@dataclass
class Preview:
    """One binary preview frame."""

    image: Image.Image
    node_id: str | None
    after: int  # messages that came before it


@dataclass
class Job:
    """What the websocket and /history said about one prompt."""

    prompt_id: str
    messages: list[Message] = field(default_factory=list)
    times: list[float] = field(default_factory=list)  # when each message arrived, time.monotonic()
    previews: list[Preview] = field(default_factory=list)
    history: dict[str, Any] = field(default_factory=dict)

    @property
    def end(self) -> str:
        return self.messages[-1]["type"]

    def of_type(self, kind: str) -> list[dict[str, Any]]:
        return [message["data"] for message in self.messages if message["type"] == kind]

    def progress(self, node_id: str, total: int = 0) -> list[int]:
        """The values of a node's bar, in the order in which they came; of the bar of that total alone, if given."""
        told = [data for data in self.of_type("progress") if data["node"] == node_id]
        return [data["value"] for data in told if data["max"] == total or not total]

    def progress_after(self, moment: float) -> int:
        """How many steps of a bar were reported after a moment."""
        kinds = [message["type"] for message in self.messages]
        return sum(kind == "progress" and arrived > moment for kind, arrived in zip(kinds, self.times, strict=True))

    @property
    def cached(self) -> set[str]:
        return {node for data in self.of_type("execution_cached") for node in data["nodes"]}

    @property
    def executed(self) -> list[str]:
        """Nodes that really ran, in order."""
        return [data["node"] for data in self.of_type("executing") if data["node"] is not None]

    def images(self, node_id: str) -> list[dict[str, str]]:
        return self.history["outputs"][node_id]["images"]

    def why(self) -> str:
        """The end, and the error if there is one; for assertion messages."""
        errors = [f"{data['node_type']}: {data['exception_message']}" for data in self.of_type("execution_error")]
        return f"{self.end} {errors}"


class Refused(Exception):  # noqa: N818  # an answer that tests expect
    """The server answered with an error status."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__(f"{status}: {body[:2000]}")
        self.status, self.body = status, body


def trouble(log: str) -> list[str]:
    """Lines of a log that speak of a failure and are not ComfyUI's own; a traceback counts as one."""
    found: list[str] = []
    lines = log.splitlines()
    number = 0
    while number < len(lines):
        start = number
        number += 1
        if lines[start].startswith("Traceback "):
            while number < len(lines) and (lines[number].startswith(" ") or not lines[number]):
                number += 1
            number += 1  # the line with the exception
        block = "\n".join(lines[start:number])
        if TROUBLE.search(block) and not NOT_OURS.search(block):
            found.append(block)
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    """One entry of an API-format prompt."""
    return {"class_type": class_type, "inputs": inputs}


class Server:
    """ComfyUI with our pack as `custom_nodes/Align-SR` and the packs in `tests/comfyui/packs`."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.url = f"http://127.0.0.1:{free_port()}"
        self.log_path = base / "server.log"
        for name in ("user", "input", "output", "models"):
            (base / name).mkdir(parents=True, exist_ok=True)
        settings = base / "user" / "default" / "comfy.settings.json"
        settings.parent.mkdir()
        settings.write_text(
            '{"Comfy.TutorialCompleted": true}'
        )  # the page of a new user opens the template browser over the graph
        nodes = base / "custom_nodes"
        nodes.mkdir()
        (nodes / PACK).symlink_to(ROOT, target_is_directory=True)
        for pack in sorted((HERE / "packs").iterdir()):
            shutil.copytree(pack, nodes / pack.name, ignore=shutil.ignore_patterns("__pycache__"))
        self.process: subprocess.Popen[bytes] | None = None

    # life

    def start(self, timeout_s: float = 300) -> "Server":
        python = os.environ.get("COMFYUI_PYTHON") or sys.executable
        checkout = str(Path(os.environ["COMFYUI_PATH"]).expanduser().resolve())
        port = self.url.rpartition(":")[2]
        command = [python, str(HERE / "launch.py"), checkout, "--cpu", "--listen", "127.0.0.1", "--port", port]
        command += ["--base-directory", str(self.base), "--disable-api-nodes"]
        # a file: ComfyUI leaves a connection open, and one in memory complains when another thread happens to collect it
        command += ["--database-url", f"sqlite:///{self.base / 'comfyui.db'}"]
        environment = {name: value for name, value in os.environ.items() if name != "ALIGNSR_MODELS"}
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, cwd=self.base, env=environment, start_new_session=True
            )
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"ComfyUI stopped with code {self.process.returncode}:\n{self.log[-4000:]}")
            try:
                self.get("/system_stats")
                return self
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.2)
        self.stop()
        raise TimeoutError(f"ComfyUI did not answer within {timeout_s} s:\n{self.log[-4000:]}")

    def stop(self) -> int:
        """Ask it to stop as Ctrl-C does; its exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
        return self.process.wait()

    @property
    def log(self) -> str:
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    # HTTP

    def request(self, path: str, body: Any = None) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, headers={"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            raise Refused(error.code, error.read().decode(errors="replace")) from error

    def get(self, path: str) -> Any:
        return json.loads(self.request(path))

    def view(self, entry: dict[str, str]) -> Image.Image:
        """A picture by its entry in a node's `ui` result."""
        return Image.open(BytesIO(self.request("/view?" + urllib.parse.urlencode(entry))))

    def interrupt(self) -> None:
        self.request("/interrupt", {})

    def forget_results(self) -> None:
        """Drop all cached results and wait until it is done: what a restart or a lack of memory does."""
        self.request("/free", {"unload_models": True, "free_memory": True})
        probe = {"1": node("EmptyImage", width=8, height=8, batch_size=1, color=0), "2": node("PreviewImage", images=["1", 0])}
        while self.run(probe).cached:  # the queue looks at the flag before it waits for the next prompt
            time.sleep(0.1)

    # one prompt from start to end

    def run(self, prompt: dict[str, Any], on_message: Callable[[Job], None] | None = None, timeout_s: float = 120) -> Job:
        """Queue an API-format prompt and follow it. `on_message` is called after every message and preview.

        Raises:
            Refused: validation failed for the whole prompt, or for a part of it.
        """
        import websocket

        client = uuid.uuid4().hex
        socket_url = f"{self.url.replace('http', 'ws')}/ws?clientId={client}"
        connection = websocket.create_connection(socket_url, timeout=timeout_s)
        try:
            # the page says this too; previews then name their node
            connection.send(json.dumps({"type": "feature_flags", "data": {"supports_preview_metadata": True}}))
            answer = json.loads(self.request("/prompt", {"prompt": prompt, "client_id": client}))
            if answer["node_errors"]:
                raise Refused(200, json.dumps(answer["node_errors"]))
            job = Job(answer["prompt_id"])
            self._follow(connection, job, on_message, time.monotonic() + timeout_s)
        finally:
            connection.close()
        for _ in range(50):  # the end message comes a moment before the history entry
            job.history = self.get(f"/history/{job.prompt_id}").get(job.prompt_id, {})
            if job.history:
                break
            time.sleep(0.1)
        return job

    def _follow(self, connection: Any, job: Job, on_message: Callable[[Job], None] | None, deadline: float) -> None:
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                self.interrupt()
                raise TimeoutError(f"prompt still running; last messages: {job.messages[-3:]}")
            connection.settimeout(left)
            received = connection.recv()
            if isinstance(received, bytes):
                preview = read_preview(received, len(job.messages))
                if preview is None:
                    continue
                job.previews.append(preview)
            else:
                message = json.loads(received)
                if message.get("data", {}).get("prompt_id") != job.prompt_id:
                    continue
                job.messages.append(message)
                job.times.append(time.monotonic())
                if message["type"] in END:
                    return
            if on_message is not None:
                on_message(job)


def read_preview(frame: bytes, after: int) -> Preview | None:
    """Decode a binary frame; None if it is no picture."""
    (kind,) = struct.unpack(">I", frame[:4])
    if kind == PREVIEW:
        return Preview(Image.open(BytesIO(frame[8:])), None, after)
    if kind == PREVIEW_WITH_METADATA:
        (length,) = struct.unpack(">I", frame[4:8])
        metadata = json.loads(frame[8 : 8 + length])
        return Preview(Image.open(BytesIO(frame[8 + length :])), metadata.get("node_id"), after)
    return None
