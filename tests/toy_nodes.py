"""Tiny node classes for tests of the runner: each shows one rule of the node protocol."""

# ruff: noqa: N802  # the names of the node protocol

from typing import Any

import torch

from alignsr.nodes.host import get_host

CALLS: list[str] = []  # class names in the order in which nodes ran; tests clear it


class Make:
    """A number and a counted image."""

    RETURN_TYPES = ("INT", "IMAGE")
    RETURN_NAMES = ("number", "image")
    FUNCTION = "make"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {"number": ("INT", {"default": 1, "min": 0, "max": 10}), "mode": (["plain", "double"],)},
            "optional": {"text": ("STRING", {"default": "x", "multiline": True}), "exact": ("BOOLEAN", {"default": True})},
        }

    def make(self, number: int, mode: str, text: str = "unset", exact: bool = True) -> tuple[int, torch.Tensor]:
        CALLS.append("Make")
        return number * (2 if mode == "double" else 1), torch.full((1, 4, 5, 3), number / 10)


class Seeded:
    """An INT called seed, in the middle of other widgets."""

    RETURN_TYPES = ("FLOAT,INT",)
    FUNCTION = "draw"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "number": ("INT", {"forceInput": True}),
                "strength": ("FLOAT", {"default": 0.5, "min": 0.0, "max": 1.0}),
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**64 - 1}),
                "kind": (["fixed", "free"], {"default": "free"}),
                "image": ("IMAGE",),
            }
        }

    def draw(self, number: int, strength: float, seed: int, kind: str, image: torch.Tensor) -> tuple[float]:
        CALLS.append("Seeded")
        return (number + strength + seed,)


class Split:
    """A list output."""

    RETURN_TYPES = ("INT",)
    OUTPUT_IS_LIST = (True,)
    FUNCTION = "split"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"count": ("INT", {"default": 3, "min": 0})}}

    def split(self, count: int) -> tuple[list[int]]:
        CALLS.append("Split")
        return (list(range(count)),)


class Join:
    """Takes whole lists."""

    RETURN_TYPES = ("STRING",)
    INPUT_IS_LIST = True
    FUNCTION = "join"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"values": ("*",), "sep": ("STRING", {"default": ","})}}

    def join(self, values: list[Any], sep: list[str]) -> tuple[str]:
        CALLS.append("Join")
        return (sep[0].join(map(str, values)),)


class Add:
    """Called once per element."""

    RETURN_TYPES = ("INT",)
    FUNCTION = "add"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"a": ("INT", {"forceInput": True}), "b": ("INT", {"default": 0})}}

    def add(self, a: int, b: int) -> tuple[int]:
        CALLS.append("Add")
        return (a + b,)


class Show:
    """Output node."""

    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "show"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {"value": ("INT,STRING,FLOAT", {"forceInput": True})},
            "optional": {"tag": ("STRING", {"default": ""})},
        }

    def show(self, value: Any, tag: str = "none") -> dict[str, Any]:
        CALLS.append("Show")
        return {"ui": {"text": [f"{tag}:{value}"]}}


class ShowAny(Show):
    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"value": ("*",)}, "optional": {"tag": ("STRING", {"default": ""})}}


class Mode(Show):
    """What torch's modes are inside a node."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}}

    def show(self) -> dict[str, Any]:  # type: ignore[override]
        made = torch.zeros(1)
        return {"ui": {"text": [torch.is_inference_mode_enabled(), made.is_inference()]}}


class Hidden(Show):
    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        kinds = {"me": "UNIQUE_ID", "graph": "PROMPT", "png": "EXTRA_PNGINFO", "dyn": "DYNPROMPT"}
        return {"required": {}, "hidden": kinds}

    def show(self, me: str, graph: Any, png: Any, dyn: Any) -> dict[str, Any]:  # type: ignore[override]
        CALLS.append("Hidden")
        return {"ui": {"text": [me, sorted(graph), png, dyn.get_node(me)["class_type"]]}}


class Picky(Show):
    """Its own check of `value` replaces the built-in one."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"value": ("INT", {"min": 5, "max": 6}), "other": ("INT", {"min": 5, "max": 6})}}

    @classmethod
    def VALIDATE_INPUTS(cls, value: int) -> bool | str:
        return True if value % 2 == 0 else "expected an even number"

    def show(self, value: int, other: int) -> dict[str, Any]:  # type: ignore[override]
        return {"ui": {"text": [value]}}


class Clock:
    """IS_CHANGED by what a test puts into STAMP."""

    STAMP: Any = 0
    RETURN_TYPES = ("INT",)
    FUNCTION = "tick"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}}

    @classmethod
    def IS_CHANGED(cls) -> Any:
        return cls.STAMP

    def tick(self) -> tuple[int]:
        CALLS.append("Clock")
        return (7,)


class Fail(Show):
    def show(self, value: Any, tag: str = "") -> dict[str, Any]:
        if tag == "named":
            raise ValueError("value: expected a small number, got a large one; make it smaller")
        if tag == "none":
            return None  # type: ignore[return-value]
        if tag == "string":
            return {"ui": {"text": "letters"}}
        if tag == "expand":
            return {"result": (), "expand": {}}
        raise KeyError("lost")


class Cancel(Show):
    """Cancels as Ctrl-C would, then reports progress."""

    def show(self, value: Any, tag: str = "") -> dict[str, Any]:
        host = get_host()
        bar = host.progress(3, "steps")
        for step in range(3):
            if step == 1:
                host.cancel()  # type: ignore[attr-defined]
            bar.update(step + 1)
            CALLS.append(f"step {step + 1}")
        return {"ui": {"text": ["finished"]}}


class Lazy(Show):
    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"value": ("INT", {"lazy": True, "forceInput": True})}}


class Later:
    """FUNCTION is a coroutine."""

    RETURN_TYPES = ("INT",)
    FUNCTION = "wait"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"number": ("INT", {"default": 4})}}

    async def wait(self, number: int) -> tuple[int]:
        return (number + int(torch.is_inference_mode_enabled()),)


NODES: dict[str, type] = {
    cls.__name__: cls
    for cls in (Make, Seeded, Split, Join, Add, Show, ShowAny, Mode, Hidden, Picky, Clock, Fail, Cancel, Lazy, Later)
}


def node(class_type: str, title: str | None = None, **inputs: Any) -> dict[str, Any]:
    """One node in API format."""
    return {"class_type": class_type, "inputs": inputs} | ({"_meta": {"title": title}} if title else {})
