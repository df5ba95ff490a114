"""Precision, quantisation, offload and compilation of the latent backbones, every option at every value."""

import pytest
import torch
from latent_helpers import adapter_for, seed
from torch import nn

from alignsr.core.backbones import LATENT_KINDS, Backbone, open_backbone
from alignsr.core.backbones.latent import PRECISIONS, LatentBackbone, compile_blocks, tiny
from alignsr.core.backbones.offload import OffloadedBackbone, Residency
from alignsr.core.backbones.quantization import QuantizedLinear, quantize
from alignsr.core.borrowed import Borrowed, nbytes
from alignsr.core.lora_files import save_adapter
from alignsr.core.memory import DoesNotFitError
from alignsr.core.records import Conditioning
from alignsr.core.restore import one_step, restore

KINDS = list(LATENT_KINDS)


def answer(backbone: LatentBackbone) -> torch.Tensor:
    given = Conditioning(torch.randn(1, 5, backbone.spec.conditioning_dim, generator=seed(2)))
    with torch.no_grad():
        return one_step(backbone, torch.rand(1, 3, 32, 48, generator=seed(1)), conditioning=given)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", list(PRECISIONS))
def test_every_precision_is_near_float32(kind: str, precision: str) -> None:
    exact = answer(tiny(kind))
    backbone = open_backbone(kind, "tiny", precision=precision)
    dtypes = {name: next(module.parameters()).dtype for name, module in backbone.modules()}
    assert dtypes["transformer"] == PRECISIONS[precision]
    assert dtypes["vae"] == (torch.float32 if precision == "fp16" else PRECISIONS[precision])
    sr = answer(backbone)
    assert sr.dtype == torch.float32
    error = float((sr - exact).abs().mean() / exact.std())
    limit = {"fp32": 1e-6, "fp16": 0.01, "bf16": 0.05, "8bit": 0.05, "4bit": 0.3}[precision]
    assert error <= limit
    assert torch.equal(answer(open_backbone(kind, "tiny", precision=precision)), sr)


def test_unknown_precision_is_refused() -> None:
    with pytest.raises(ValueError, match=r"precision: expected fp32, bf16, .*, got 'bf-16'; did you mean 'bf16'"):
        open_backbone("z_image", "tiny", precision="bf-16")


@pytest.mark.parametrize(("bits", "error", "bytes_per_weight"), [(8, 0.02, 1.1), (4, 0.12, 0.6)])
def test_quantized_layers_are_small_and_near(bits: int, error: float, bytes_per_weight: float) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(192, 320).requires_grad_(False)
    layer = QuantizedLinear(linear, bits)
    read = layer.weight_in(torch.float32)
    assert float((read - linear.weight).abs().mean() / linear.weight.abs().mean()) < error
    stored = sum(layer.get_buffer(name).numel() for name in ("codes", "scales"))
    assert stored / linear.weight.numel() < bytes_per_weight
    x = torch.randn(2, 3, 192)
    assert torch.allclose(layer(x), nn.functional.linear(x, read, linear.bias), atol=1e-5)
    moved = layer.to(torch.bfloat16)
    assert torch.equal(moved.weight_in(torch.float32), read)  # scales are not rounded with the rest
    assert moved(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(("kind", "count"), [("flux2_klein", 12 + 2), ("z_image", 4 * 7)])
def test_only_the_blocks_are_quantized(kind: str, count: int) -> None:
    backbone = tiny(kind)
    assert quantize(backbone.transformer, 8) == count
    left = [name for name, module in backbone.transformer.named_modules() if isinstance(module, nn.Linear)]
    assert any("embed" in name for name in left) and not any(name.endswith("to_q") for name in left)
    with pytest.raises(ValueError, match="bits: expected 8 or 4, got 2"):
        quantize(backbone.transformer, 2)
    with pytest.raises(ValueError, match="attach or merge before quantising"):
        adapter_for(kind).merge_into(backbone.transformer)


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_are_merged_before_quantising(kind: str, tmp_path) -> None:
    path = save_adapter(tmp_path / "a.safetensors", adapter_for(kind))
    exact = answer(open_backbone(kind, "tiny", precision="fp32", lora=path))
    base = answer(open_backbone(kind, "tiny", precision="8bit"))
    merged = answer(open_backbone(kind, "tiny", precision="8bit", lora=path))
    assert float((merged - exact).abs().mean()) < 0.5 * float((base - exact).abs().mean())


class Watched(Residency):
    """Notes who is on the device; on a machine without an accelerator nothing really moves."""

    def __init__(self) -> None:
        super().__init__("cpu")
        self.turns: list[nn.Module] = []

    def use(self, module: nn.Module) -> None:
        super().use(module)
        assert self.resident is module
        self.turns.append(module)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keep", [(), ("vae",)])
def test_offloaded_modules_take_turns_and_change_nothing(kind: str, keep: tuple[str, ...]) -> None:
    plain = tiny(kind)
    watched = Watched()
    offloaded = OffloadedBackbone(tiny(kind), watched, keep)
    assert isinstance(offloaded, Backbone)
    x = torch.rand(1, 3, 8, 8, generator=seed(0))
    assert torch.equal(restore(offloaded, x).sr, restore(plain, x).sr)
    names = {id(module): name for name, module in offloaded.modules()}
    assert [names[id(m)] for m in watched.turns] == (["transformer"] if keep else ["vae", "transformer", "vae"])
    watched.leave()
    assert watched.resident is None
    with pytest.raises(ValueError, match="keep: expected names among transformer, vae, got vlm"):
        OffloadedBackbone(tiny(kind), watched, ("vlm",))


class Far(Residency):
    """The meta device stands in for an accelerator: the only second one that every machine has."""

    def __init__(self) -> None:
        super().__init__("meta")


def test_residency_moves_copies_and_keeps_what_is_at_home() -> None:
    """Whoever leaves is not copied back: parameters and buffers are the very tensors that were there before."""
    residency = Far()
    first, second = nn.BatchNorm2d(2), nn.Linear(2, 2)
    homes = [tensor.data_ptr() for tensor in (*first.parameters(), *first.buffers())]
    residency.use(first)
    assert first.running_mean is not None and first.running_mean.is_meta and first.weight.is_meta
    residency.use(second)
    assert [tensor.data_ptr() for tensor in (*first.parameters(), *first.buffers())] == homes
    assert second.weight.is_meta and residency.resident is second
    residency.leave()
    assert not second.weight.is_meta and residency.resident is None
    residency.leave()
    assert nbytes(first, first) == 4 * 2 * 4 + 8


class Full(nn.Linear):
    """A layer that finds no room on the device."""

    def _apply(self, fn: object, recurse: bool = True) -> nn.Module:
        raise torch.OutOfMemoryError("full")


def test_a_device_that_is_full_half_way_leaves_the_module_at_home() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), Full(2, 2))
    before = {name: tensor.data_ptr() for name, tensor in module.state_dict().items()}
    with pytest.raises(
        DoesNotFitError, match=r"for Sequential \(0\.00 GiB of weights\) on meta, got out of memory; .*8bit"
    ) as caught:
        Borrowed(module, "meta")
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)
    assert {tensor.device.type for tensor in module.state_dict().values()} == {"cpu"}
    assert {name: tensor.data_ptr() for name, tensor in module.state_dict().items()} == before


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_blocks_give_the_same_picture(kind: str) -> None:
    """Slow: blocks are traced. The eager back end stands in for code generation, which needs a C++ compiler."""
    backbone = tiny(kind)
    exact = answer(backbone)
    compile_blocks(backbone.transformer, backend="eager")
    assert torch.allclose(answer(backbone), exact, atol=1e-5)


@pytest.mark.parametrize("use_compile", [False, True])
def test_compilation_is_an_option_of_opening(use_compile: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("alignsr.core.backbones.latent.compile_blocks", lambda network: asked.append(type(network).__name__))
    open_backbone("z_image", "tiny", use_compile=use_compile)
    assert asked == (["ZImageTransformer2DModel"] if use_compile else [])
