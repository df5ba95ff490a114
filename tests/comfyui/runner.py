"""Our own runner on the server's folders, and tensors of both hosts side by side."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from alignsr.nodes import NODE_CLASS_MAPPINGS
from alignsr.nodes.host import LocalHost, use_host
from alignsr.runner.builtins import BUILTIN_CLASSES
from alignsr.runner.execute import Executor, RunResult
from comfyui.server import HERE, Server, node

DUMP = "AlignSRTestTensorDump"
COMPARABLE = ("IMAGE", "MASK", "STRING", "FLOAT", "INT", "LOSS_MAP")
DIFFERS = {  # outputs that must differ between two runs
    ("AlignSRTrainSRNetwork", 0): "a path in the output folder",
    ("AlignSRTrainSRNetwork", 3): "seconds",
    ("AlignSRTrainAutoEncoder", 0): "a path in the output folder",
    ("AlignSRTrainAutoEncoder", 3): "seconds",
    ("AlignSRTrainPerceptualSR", 0): "a path in the output folder",
    ("AlignSRTrainPerceptualSR", 3): "seconds",
    ("AlignSROneStepTrainer", 0): "a path in the output folder",
    ("AlignSROneStepTrainer", 3): "seconds",
    ("AlignSROneStepTrainer", 7): "a path in the output folder",
    ("AlignSRSFTTrainer", 0): "a path in the output folder",
    ("AlignSRSFTTrainer", 3): "seconds",
    ("AlignSRSFTTrainer", 6): "a path in the output folder",
    ("AlignSRAdversaryTrainer", 0): "a path in the output folder",
    ("AlignSRAdversaryTrainer", 3): "seconds",
    ("AlignSRAdversaryTrainer", 6): "a path in the output folder",
    ("AlignSRSobolevDPOTrainer", 0): "a path in the output folder",
    ("AlignSRSobolevDPOTrainer", 3): "seconds",
    ("AlignSRSobolevDPOTrainer", 7): "a path in the output folder",
    ("AlignSRPerceptualDPOTrainer", 0): "a path in the output folder",
    ("AlignSRPerceptualDPOTrainer", 3): "seconds",
    ("AlignSRPerceptualDPOTrainer", 6): "a path in the output folder",
    ("AlignSRSampleCandidates", 2): "a path in the output folder",
    ("AlignSRScoreCandidates", 3): "a path in the output folder",
    ("AlignSRCuratePreferences", 0): "a path in the output folder",
    ("AlignSRCuratePreferences", 1): "a path in the output folder",
    ("AlignSRSaveLoRA", 0): "a path in the output folder",
    ("AlignSRSaveReport", 0): "a path in the output folder",
}


def dump_class() -> type:
    """The node of tests/comfyui/packs/tensor_dump."""
    spec = importlib.util.spec_from_file_location("tensor_dump", HERE / "packs" / "tensor_dump" / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.NODE_CLASS_MAPPINGS[DUMP]


def with_dumps(prompt: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A copy of the prompt that writes every comparable output of our nodes into `folder`."""
    result = json.loads(json.dumps(prompt))
    for node_id, entry in prompt.items():
        kinds = NODE_CLASS_MAPPINGS[entry["class_type"]].RETURN_TYPES if entry["class_type"] in NODE_CLASS_MAPPINGS else ()
        for index, kind in enumerate(kinds):
            if kind in COMPARABLE and (entry["class_type"], index) not in DIFFERS:
                name = f"{node_id}_{index}"
                result[f"dump_{name}"] = node(DUMP, value=[node_id, index], folder=str(folder), name=name)
    return result


def run_locally(prompt: dict[str, Any], server: Server, output: Path) -> RunResult:
    """Execute a prompt with our runner, on the input and models of the server."""
    classes = {**BUILTIN_CLASSES, **NODE_CLASS_MAPPINGS, DUMP: dump_class()}
    host = LocalHost(output_dir=output, input_dirs=[server.base / "input"], models_dirs=[server.base / "models"])
    with use_host(host):
        return Executor(classes).run(prompt, host=host)


def differences(one: Path, other: Path) -> list[str]:
    """What differs between two folders of dumps; empty when they are equal, bit for bit."""
    names = sorted({path.name for path in [*one.iterdir(), *other.iterdir()]})
    found: list[str] = []
    for name in names:
        if not ((one / name).is_file() and (other / name).is_file()):
            found.append(f"{name}: only on one side")
        elif name.endswith(".json"):
            texts = [(folder / name).read_text(encoding="utf-8") for folder in (one, other)]
            found += [f"{name}: {texts[0][:300]} != {texts[1][:300]}"] if texts[0] != texts[1] else []
        else:
            found += tensor_differences(name, load_file(one / name), load_file(other / name))
    return found


def tensor_differences(name: str, one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    if one.keys() != other.keys():
        return [f"{name}: {len(one)} and {len(other)} elements"]
    found: list[str] = []
    for key, left in one.items():
        right = other[key]
        if left.shape != right.shape or left.dtype != right.dtype:
            found.append(f"{name}[{key}]: {tuple(left.shape)} {left.dtype} != {tuple(right.shape)} {right.dtype}")
        elif not torch.equal(left, right):
            found.append(f"{name}[{key}]: largest difference {float((left - right).abs().max()):.3g}")
    return found
