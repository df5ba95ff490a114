"""What the descriptions of the shipped workflows share."""

from typing import Any

EXAMPLE = "example.png"  # the picture that comes with ComfyUI
ONE_GPU = "run.accumulation_steps=4"  # one process on one GPU: four accumulated batches are the four GPUs of the papers

Graph = dict[str, dict[str, Any]]


def node(class_type: str, title: str = "", **inputs: Any) -> dict[str, Any]:
    """One node of an API-format graph; links are written as `["4", 0]`."""
    return {"class_type": class_type, "inputs": inputs} | ({"_meta": {"title": title}} if title else {})
