"""What autograd keeps for AE(SR), the gradient of the frozen auto-encoder to its input: plain torch beside the lean twin.

python benchmarks/autoencoded_memory.py [--patch 128 --patch 256] [--threads 1] [--device cpu] [--json FILE]

Bytes are counted through saved_tensors_hooks, each storage once, without the networks' own tensors; specification aesop.md 8.1
gives 252 MB per 128-px patch and 1,007 MB per 256-px patch for the released code. The gradients of a random output weighting are
compared in the same run. Rows: the released auto-encoder, the one with the SRResNet decoder, VGG19 up to conv5_4.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from alignsr.core.frozen import lean
from alignsr.core.losses import VGG19Features
from alignsr.core.networks.autoencoder import AutoEncoder

LIMIT = 0.25  # of the plain auto-encoder's bytes
TOLERANCE = 1e-6  # relative, of the gradient


@dataclass(eq=False)
class Held:
    """A tensor in the hands of autograd."""

    tensor: Tensor


def kept_bytes(run: Callable[[], Tensor], network: nn.Module) -> tuple[Tensor, int]:
    """The result, and what autograd keeps for its backward pass beside the network's own tensors."""
    own = {tensor.untyped_storage().data_ptr() for tensor in [*network.parameters(), *network.buffers()]}
    held: WeakSet[Held] = WeakSet()

    def pack(tensor: Tensor) -> Held:
        holder = Held(tensor)
        held.add(holder)
        return holder

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda holder: holder.tensor):
        result = run()
    storages = {holder.tensor.untyped_storage().data_ptr(): holder.tensor.untyped_storage().nbytes() for holder in held}
    return result, sum(size for address, size in storages.items() if address not in own)


def output(network: nn.Module, image: Tensor) -> Tensor:
    """One vector of everything that the network gives."""
    result: Any = network(image)
    return torch.cat([part.flatten() for part in (result.values() if isinstance(result, dict) else [result])])


def measure(network: nn.Module, image: Tensor, weights: Tensor | None) -> dict[str, Any]:
    image = image.clone().requires_grad_()
    started = time.perf_counter()
    result, kept = kept_bytes(lambda: output(network, image), network)
    middle = time.perf_counter()
    weights = torch.rand_like(result) - 0.5 if weights is None else weights
    (grad,) = torch.autograd.grad(result, image, weights)
    if image.device.type == "cuda":
        torch.cuda.synchronize()
    seconds = (middle - started, time.perf_counter() - middle)
    return {
        "kept": kept,
        "forward": seconds[0],
        "backward": seconds[1],
        "grad": grad,
        "value": result.detach(),
        "weights": weights,
    }


def compare(name: str, network: nn.Module, patch: int, device: str) -> dict[str, Any]:
    network = network.requires_grad_(False).eval().to(device)
    image = torch.rand(1, 3, patch, patch, generator=torch.Generator().manual_seed(0)).to(device)
    plain = measure(network, image, None)
    ours = measure(lean(network), image, plain["weights"])
    gap = float((ours["grad"] - plain["grad"]).norm() / plain["grad"].norm())
    return {
        "network": name,
        "patch": patch,
        "plain_mb": round(plain["kept"] / 1e6, 2),
        "lean_mb": round(ours["kept"] / 1e6, 2),
        "share": round(ours["kept"] / plain["kept"], 4),
        "gradient_gap": gap,
        "value_gap": float((ours["value"] - plain["value"]).abs().max()),
        "plain_seconds": round(plain["forward"] + plain["backward"], 3),
        "lean_seconds": round(ours["forward"] + ours["backward"], 3),
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--patch", type=int, action="append", help="side of the patch in pixels; may be repeated")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    networks = {
        "AE, RRDB decoder": AutoEncoder(),
        "AE, SRResNet decoder": AutoEncoder(decoder="srresnet"),
        "VGG19": VGG19Features(),
    }
    rows = [
        compare(name, network, patch, options.device)
        for patch in options.patch or (128, 256)
        for name, network in networks.items()
    ]
    print(
        f"{'network':22} {'patch':>5} {'plain MB':>9} {'lean MB':>8} {'share':>6} {'gradient gap':>12} "
        f"{'plain s':>8} {'lean s':>7}"
    )
    for row in rows:
        print(
            f"{row['network']:22} {row['patch']:>5} {row['plain_mb']:>9.1f} {row['lean_mb']:>8.1f} {row['share']:>6.3f} "
            f"{row['gradient_gap']:>12.1e} {row['plain_seconds']:>8.2f} {row['lean_seconds']:>7.2f}"
        )
    if options.json:
        options.json.write_text(json.dumps({"rows": rows}, indent=2) + "\n", encoding="utf-8")
    failed = [
        row for row in rows if row["network"].startswith("AE") and (row["share"] > LIMIT or row["gradient_gap"] > TOLERANCE)
    ]
    for row in failed:
        print(f"{row['network']} at {row['patch']} px: expected a share of at most {LIMIT} and a gap of at most {TOLERANCE}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
