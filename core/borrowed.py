"""Frozen modules on a device for a while: copies go there, the originals wait at home, and nothing is copied back."""

import torch
from torch import Tensor, nn

from .memory import LOWER_PRECISION, must_fit


class Borrowed:
    """A frozen module whose tensors are on a device until `give_back`.

    `module.to(device)` and `module.to("cpu")` would copy all weights twice, the second time for nothing, since what is frozen
    comes back as it went. Here the tensors at home are kept and put in place again.

    Args:
        module: frozen; changes that are made to it meanwhile are lost.
        device: where its tensors go; those that are there already stay as they are.
        advice: what a user can do where the device is full.

    Raises:
        DoesNotFitError: the device is full; the module is at home again, whole.
    """

    def __init__(self, module: nn.Module, device: str | torch.device, advice: str = LOWER_PRECISION) -> None:
        self.kept = [
            (owner, name, tensor, tensor.data)
            for owner in module.modules()
            for name, tensor in (*owner.named_parameters(recurse=False), *owner.named_buffers(recurse=False))
        ]
        try:
            # parameters that move under inference mode would be of no use outside it
            with must_fit(f"{told(module)} on {device}", advice), torch.inference_mode(False):
                nn.Module.to(module, device=device)
        except BaseException:  # the device is full half-way: what has moved goes home, or it would be taken for the original
            self.give_back()
            raise

    def give_back(self) -> None:
        """Put the tensors at home in place again."""
        with torch.inference_mode(False):
            for owner, name, tensor, home in self.kept:
                tensor.data = home  # torch puts the copy of a parameter into the parameter, where both devices allow it
                setattr(owner, name, tensor)


def told(module: nn.Module) -> str:
    """What a module is and what its weights take, for people."""
    parts = list(module) if isinstance(module, nn.ModuleList) else [module]
    return f"{' and '.join(type(part).__name__ for part in parts)} ({nbytes(module) / 2**30:.2f} GiB of weights)"


def nbytes(*modules: nn.Module) -> int:
    """Bytes of all parameters and buffers, shared ones counted once."""
    tensors: dict[int, Tensor] = {id(t): t for module in modules for t in (*module.parameters(), *module.buffers())}
    return sum(tensor.nbytes for tensor in tensors.values())
