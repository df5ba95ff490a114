"""Inputs and weights of the golden cases, regenerated from a name.

With k = 0..n-1 the row-major flat index, s = crc32("alignsr-ref:" + name) and 32-bit unsigned arithmetic:

    z = k * 0x9E3779B9 + s
    z ^= z >> 16;  z *= 0x85EBCA6B;  z ^= z >> 13;  z *= 0xC2B2AE35;  z ^= z >> 16
    U(name)[k] = z / 2^32          S(name)[k] = 2 U(name)[k] - 1

Everything is computed in float64 and rounded once to float32. Tests import it as `from reference.formula import S, U`.
"""

import math
import zlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn


def uniform_float64(name: str, count: int) -> np.ndarray:
    """The first `count` values of U(name), float64 in [0, 1)."""
    z = np.arange(count, dtype=np.uint64) * 0x9E3779B9 + zlib.crc32(f"alignsr-ref:{name}".encode())
    z &= 0xFFFFFFFF
    z ^= z >> 16
    z = (z * 0x85EBCA6B) & 0xFFFFFFFF
    z ^= z >> 13
    z = (z * 0xC2B2AE35) & 0xFFFFFFFF
    z ^= z >> 16
    return z.astype(np.float64) / 2.0**32


def U(name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """U(name) as a tensor of this shape, in [0, 1) before the rounding to `dtype`."""
    return torch.from_numpy(uniform_float64(name, math.prod(shape)).reshape(shape)).to(torch.float32).to(dtype)


def S(name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """S(name) = 2 U(name) - 1 as a tensor of this shape, in [-1, 1)."""
    return torch.from_numpy(2.0 * uniform_float64(name, math.prod(shape)).reshape(shape) - 1.0).to(torch.float32).to(dtype)


def _signed(name: str, shape: torch.Size) -> np.ndarray:
    return 2.0 * uniform_float64(name, math.prod(shape)).reshape(tuple(shape)) - 1.0


def formula_tensor(name: str, shape: torch.Size, dtype: torch.dtype = torch.float32) -> Tensor:
    """The value that the formula gives the state-dict entry `name` of this shape (name = official key, no module prefix).

    Spectral-norm vectors (`weight_u`, `weight_v`) are S(name) / |S(name)|; use `converge_spectral_norm` where a case says so.
    """
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "num_batches_tracked":
        return torch.zeros(shape, dtype=torch.long)
    signed = _signed(name, shape)
    if leaf in ("weight_u", "weight_v"):
        value = signed / np.linalg.norm(signed)
    elif len(shape) >= 2:
        value = 1.4 * math.sqrt(3.0 / math.prod(shape[1:])) * signed
    elif leaf in ("bias", "running_mean"):
        value = 0.1 * signed
    elif leaf == "running_var":
        value = 1.0 + 0.5 * signed
    elif leaf == "weight":
        value = 1.0 + 0.1 * signed
    else:
        raise ValueError(
            f"name: expected a key that the formula covers, got {name!r} of shape {tuple(shape)}; extend formula_tensor"
        )
    return torch.from_numpy(np.asarray(value)).to(torch.float32).to(dtype)


def formula_state_dict(shapes: Mapping[str, Tensor], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Formula values for every key of a state dict; only the shapes of `shapes` are read."""
    return {name: formula_tensor(name, tensor.shape, dtype) for name, tensor in shapes.items()}


def converge_spectral_norm(state: dict[str, Tensor]) -> None:
    """Replace every `weight_u`, `weight_v` by the leading singular pair of `weight_orig` flattened to (out, rest), in place."""
    for name in [key for key in state if key.endswith("weight_orig")]:
        left, _, right = torch.linalg.svd(state[name].double().flatten(1), full_matrices=False)
        prefix = name.removesuffix("weight_orig")
        state[prefix + "weight_u"] = left[:, 0].to(state[name].dtype)
        if prefix + "weight_v" in state:
            state[prefix + "weight_v"] = right[0].to(state[name].dtype)


def load_formula_weights(module: nn.Module, dtype: torch.dtype = torch.float32) -> None:
    """Fill `module`, whose state-dict keys must be the official ones, with the formula's weights, in place."""
    module.load_state_dict(formula_state_dict(module.state_dict(), dtype))


def scattered(name: str, array: Tensor) -> Tensor:
    """A twentieth of an array's values, at most 200, at places that the formula draws from the case's name: a flat list.

    Golden outputs of cases whose input is a photograph are kept in this form only, so that no picture is in the repository.
    """
    places = uniform_float64(f"places/{name}", min(200, array.numel() // 20)) * array.numel()
    return array.flatten()[torch.from_numpy(places.astype(np.int64))]
