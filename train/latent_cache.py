"""Latents of training pictures on disk: what an autoencoder made of one picture is made once, by whatever run asks for it."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.weights import WeightsError, load_state_dict, save_weights


class LatentCache:
    """Encodes pictures one by one and keeps what came out, by the picture's content and the autoencoder's weights.

    Runs that draw the same crops (another loss, another strength) read what the first of them wrote; so do later epochs where
    crops do not change. Random crops of a single run never meet again: there it only costs disk.

    Args:
        folder: where latents lie, one small safetensors file each; made when the first is written.
        modules: the autoencoder, for its fingerprint.
        encode: [1, 3, H, W] in [-1, 1] -> z [1, C, h, w]; deterministic.
    """

    def __init__(self, folder: str | Path, modules: nn.Module, encode: Callable[[Tensor], Tensor]) -> None:
        self.folder = Path(folder).expanduser() / fingerprint(modules)
        self.encode_one = encode

    def encode(self, image: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] -> z [B, C, h, w] on the pictures' device.

        Raises:
            WeightsError: a damaged file.
        """
        return torch.cat([self._encoded(one) for one in image.split(1)])

    def path(self, image: Tensor) -> Path:
        """The file of one picture [1, 3, H, W]."""
        data = image.detach().float().contiguous().cpu()
        digest = hashlib.sha256(repr(tuple(data.shape)).encode() + data.numpy().tobytes()).hexdigest()[:32]
        return self.folder / digest[:2] / f"{digest}.safetensors"

    def _encoded(self, image: Tensor) -> Tensor:
        path = self.path(image)
        if path.is_file():
            state = load_state_dict(path)
            if "z" not in state:
                raise WeightsError(f"{path}: expected latents, got {', '.join(state)}; remove the file")
            return state["z"].to(image.device)
        z = self.encode_one(image).detach()
        save_weights(path, {"z": z}, {"architecture": "latents"})
        return z


def fingerprint(module: nn.Module) -> str:
    """16 hexadecimal digits of a module's weights and their precision."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        plain: Any = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(plain.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
