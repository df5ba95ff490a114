"""StrSR in miniature on disk: adapters with projectors, a vision-language model, text encoders, in ComfyUI's folders."""

from dataclasses import replace
from pathlib import Path

import torch
from latent_helpers import adapter_for, seed
from tiny_language_models import save_text_model, save_vlm

from alignsr.core.backbones.latent import tiny
from alignsr.core.lora import Adapter
from alignsr.core.lora_files import save_adapter

VLM_WIDTH = 32  # of the tiny vision-language model
LATENTS = {"flux2_klein": "native", "z_image": "raw"}
NAMES = {"flux2_klein": "StrSR-flux", "z_image": "StrSR-zimage"}


def projector_for(kind: str, inputs: int = VLM_WIDTH) -> dict[str, torch.Tensor]:
    """A random projector, in the precision and with the names of the released one."""
    width = tiny(kind).spec.conditioning_dim
    shapes = {"0.weight": (width // 2, inputs), "0.bias": (width // 2,), "2.weight": (width, width // 2), "2.bias": (width,)}
    return {name: torch.randn(shape, generator=seed(n)).bfloat16() for n, (name, shape) in enumerate(shapes.items())}


def one_step_adapter(kind: str) -> Adapter:
    """An adapter of the tiny model with a projector."""
    return replace(adapter_for(kind, latents=LATENTS[kind]), projector=projector_for(kind))


def write_released(folder: Path, adapter: Adapter) -> Path:
    """`state_dict.pth` and `projector.pth`, as the authors publish them."""
    folder.mkdir(parents=True)
    names = {f"base_model.model.{name.removesuffix('.weight')}.default.weight": t for name, t in adapter.state.items()}
    torch.save(names, folder / "state_dict.pth")
    torch.save(dict(adapter.projector), folder / "projector.pth")
    return folder


def write_adapters(root: Path) -> None:
    """The two adapters, tiny, under the names of the released ones, in the `loras` of a models folder."""
    for kind, name in NAMES.items():
        save_adapter(root / "loras" / f"{name}.safetensors", one_step_adapter(kind))


def write_models(root: Path, *, text: bool = False) -> Path:
    """What the StrSR workflows name, tiny, below a models folder: `loras`, `text_encoders/tiny-vlm`, `diffusers/tiny-text`."""
    write_adapters(root)
    save_vlm(root / "text_encoders" / "tiny-vlm")
    if text:
        save_text_model(root / "diffusers" / "tiny-text")
    return root
