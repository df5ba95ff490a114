"""Runs inside ComfyUI's interpreter: its LoRA key map, loader and arithmetic on a weight file and an exported adapter.

    python lora_keys.py COMFYUI_PATH kind weights.safetensors lora.safetensors out.safetensors unet-config-as-JSON

Prints one JSON object: layers its key map does not know, how many patches it made, and tensors it did not use.
"""

import json
import sys
from typing import Any

from launch import PrepareTorchvision


def main(kind: str, weights: str, lora: str, out: str, config: str) -> None:
    """Patch the weights as ComfyUI does and report."""
    import comfy.cli_args  # noqa: TID251

    comfy.cli_args.args.cpu = True
    import comfy.lora  # noqa: TID251
    import comfy.model_base  # noqa: TID251
    from safetensors.torch import load_file, save_file

    state = {f"diffusion_model.{name}": tensor for name, tensor in load_file(weights).items()}
    base: Any = comfy.model_base.Flux2 if kind == "flux2_klein" else comfy.model_base.Lumina2

    class Model(base):
        """What the key map asks of a model: its class, its weights' names and its configuration."""

        def __init__(self) -> None:
            pass

        def state_dict(self) -> dict[str, Any]:
            return state

    model = Model()
    object.__setattr__(model, "model_config", type("Config", (), {"unet_config": json.loads(config)})())
    keys = comfy.lora.model_lora_keys_unet(model, {})
    file = load_file(lora)
    layers = {name.rsplit(".lora_", 1)[0] for name in file if ".lora_" in name}
    patches = comfy.lora.load_lora(file, keys, log_missing=False)
    used = {name for adapter in patches.values() for name in adapter.loaded_keys}
    for key, adapter in patches.items():
        name, offset = (key, None) if isinstance(key, str) else key[:2]
        patch = (1.0, adapter, 1.0, offset, None)
        state[name] = comfy.lora.calculate_weight([patch], state[name].clone(), name)
    save_file({name.removeprefix("diffusion_model."): tensor.contiguous() for name, tensor in state.items()}, out)
    unused = sorted(name for name in set(file) - used if not name.endswith(".alpha"))
    sys.stdout.write(json.dumps({"unknown": sorted(layers - keys.keys()), "patches": len(patches), "unused": unused}) + "\n")


if __name__ == "__main__":
    sys.meta_path.insert(0, PrepareTorchvision)  # type: ignore[arg-type]
    sys.path.insert(0, sys.argv[1])
    main(*sys.argv[2:])
