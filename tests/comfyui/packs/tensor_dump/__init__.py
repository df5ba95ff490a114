"""A node for tests only: writes whatever arrives to disk, so that two hosts can be compared bit for bit."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file


class TensorDump:
    """Tensors go to FOLDER/NAME.safetensors (one key per list element), anything else to FOLDER/NAME.json."""

    INPUT_IS_LIST = True
    OUTPUT_NODE = True
    RETURN_TYPES = ()
    FUNCTION = "dump"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802  # ComfyUI's name
        return {"required": {"value": ("*",), "folder": ("STRING", {"default": ""}), "name": ("STRING", {"default": "value"})}}

    @classmethod
    def IS_CHANGED(cls, **_inputs):  # noqa: N802  # ComfyUI's name
        return float("nan")

    def dump(self, value, folder, name):
        target = Path(folder[0])
        target.mkdir(parents=True, exist_ok=True)
        if all(isinstance(item, torch.Tensor) for item in value):
            tensors = {str(index): item.detach().cpu().contiguous().clone() for index, item in enumerate(value)}
            save_file(tensors, str(target / f"{name[0]}.safetensors"))
        else:
            (target / f"{name[0]}.json").write_text(json.dumps(value, default=repr, sort_keys=True), encoding="utf-8")
        return ()


NODE_CLASS_MAPPINGS = {"AlignSRTestTensorDump": TensorDump}
