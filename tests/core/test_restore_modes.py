"""Latent models in stages: parity is the released recipe, best the better one; strength, seeds, conditions, memory, NaN.

Checks 15, 18, 21, 22, 23 and the inference part of section 6 of strsr.md.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from latent_helpers import seed
from torch import Generator, Tensor, nn

from alignsr.core import batch
from alignsr.core.backbones import LATENT_KINDS
from alignsr.core.backbones.base import BackboneSpec
from alignsr.core.backbones.latent import tiny
from alignsr.core.backbones.offload import OffloadedBackbone, Residency
from alignsr.core.batch import restore_picture
from alignsr.core.images import truncate_8bit
from alignsr.core.memory import DoesNotFitError
from alignsr.core.records import Conditioning, Restored
from alignsr.core.restore import one_step, restore, tiles_for
from alignsr.core.tiling import TilePlan

KINDS = list(LATENT_KINDS)


def picture(*size: int, batch: int = 1, number: int = 1) -> Tensor:
    """Smooth, so that autoencoders of random weights do not saturate."""
    coarse = torch.rand(batch, 3, 4, 4, generator=seed(number))
    return F.interpolate(coarse, size, mode="bicubic").clamp(0, 1)


class Simple:
    """A latent model of stride 8 whose every part is known: local by default, or with a mean over the tile."""

    def __init__(self, *, spread: float = 0.0, noise: float = 0.0) -> None:
        self.spread, self.noise = spread, noise
        self.module = nn.Linear(1, 1)
        self.calls: list[str] = []
        self.told: list[Conditioning | None] = []
        self.spec = BackboneSpec(
            name="simple", kind="flow", scale=None, size_multiple=16, tile_px=1152, overlap_px=64, start_sigma=0.8,
            latent_channels=192, latent_stride=8, conditioning_dim=2, bytes_per_pixel=1, parameters=2, licence="CC0-1.0",
            is_antialiased=False,
        )  # fmt: skip

    def modules(self) -> Iterator[tuple[str, nn.Module]]:
        yield "network", self.module

    def encode(self, image: Tensor, *, generator: Generator | None = None) -> Tensor:
        self.calls.append("encode")
        z = F.pixel_unshuffle(image, 8)
        return z if generator is None else z + self.noise * torch.randn(z.shape, generator=generator)

    def velocity(self, z: Tensor, sigma: Tensor, z_lq: Tensor, conditioning: Conditioning | None = None) -> Tensor:
        self.calls.append("velocity")
        self.told.append(conditioning)
        shift = 0.0 if conditioning is None else conditioning.embeddings.mean((1, 2)).view(-1, 1, 1, 1)
        return 0.3 * z**3 + self.spread * z.mean((1, 2, 3), keepdim=True) + shift

    def decode(self, z: Tensor) -> Tensor:
        self.calls.append("decode")
        return F.pixel_shuffle(z, 8)


def by_hand(backbone: Any, lq: Tensor, tile: int, overlap: int, number: int, told: Conditioning | None = None) -> Tensor:
    """The released loop, section 1.2 steps 1 to 9 and 1.6, written down once more without our tiler: one picture."""
    up = F.interpolate(lq, scale_factor=4, mode="bicubic", align_corners=False).clamp(0, 1)
    height, width = up.shape[-2:]
    padded = F.pad(up, (0, -width % 16, 0, -height % 16), mode="reflect")
    full_h, full_w = padded.shape[-2:]

    def starts(length: int) -> list[int]:
        if length <= tile:
            return [0]
        found = list(range(0, length - tile + 1, tile - overlap))
        return found if found[-1] == length - tile else [*found, length - tile]

    total, weights, draw = torch.zeros_like(padded), torch.zeros(full_h, full_w), seed(number)
    ramp = torch.linspace(0, 1, overlap)
    for top in starts(full_h):
        for left in starts(full_w):
            part = padded[..., top : top + tile, left : left + tile]
            z = backbone.encode(part * 2 - 1, generator=draw)
            z = z - 0.8 * backbone.velocity(z, torch.tensor([0.8]), z, told)
            weight = torch.ones(part.shape[-2:])
            if top > 0:
                weight[:overlap] *= ramp[:, None]
            if top + tile < full_h:
                weight[-overlap:] *= ramp.flip(0)[:, None]
            if left > 0:
                weight[:, :overlap] *= ramp
            if left + tile < full_w:
                weight[:, -overlap:] *= ramp.flip(0)
            total[..., top : top + tile, left : left + tile] += backbone.decode(z) * weight
            weights[top : top + tile, left : left + tile] += weight
    out = ((total / weights.clamp_min(1e-6)).clamp(-1, 1) + 1) / 2
    return (out[..., :height, :width] * 255).to(torch.uint8).float() / 255


def parity(backbone: Any, lq: Tensor, number: int = 0, **options: Any) -> Any:
    with torch.no_grad():
        return restore(backbone, lq, mode="parity", generator=seed(number), **options)


@pytest.mark.parametrize("kind", KINDS)
def test_parity_is_the_released_recipe(kind: str) -> None:
    """To one grey level, which cutting off the rest may turn a difference of 1e-7 into."""
    backbone, lq = tiny(kind, **({"latents": "raw"} if kind == "z_image" else {})), picture(19, 27)
    told = Conditioning(torch.randn(1, 68, backbone.spec.conditioning_dim, generator=seed(2)))
    with torch.no_grad():
        wanted = by_hand(backbone, lq, 48, 16, 5, told)
    found = parity(backbone, lq, 5, tile_px=48, overlap_px=16, conditioning=told)
    assert found.info["tiles"] == 6 and found.info["mode"] == "parity" and found.info["encoder"] == "sample"
    assert (found.sr - wanted).abs().max() <= 1.01 / 255
    assert ((found.sr - wanted).abs() > 1e-6).float().mean() < 1e-3
    assert torch.equal(found.sr, (found.sr * 255).round() / 255)
    assert torch.equal(found.lq_up, F.interpolate(lq, scale_factor=4, mode="bicubic", align_corners=False).clamp(0, 1))


def test_parity_takes_the_tiles_of_the_release_and_whole_patches() -> None:
    assert tiles_for(Simple(), mode="parity") == (1024, 64) and tiles_for(Simple()) == (1152, 64)
    assert tiles_for(Simple(), 1000, mode="parity") == (992, 64)
    assert parity(Simple(), picture(30, 20), tile_px=57, overlap_px=9).info["tile_px"] == 48
    with pytest.raises(ValueError, match="generator: expected one, since parity draws"):
        restore(Simple(), picture(8, 8), mode="parity")
    with pytest.raises(ValueError, match=r"mode: expected best or parity, got 'pairty'; did you mean 'parity'"):
        restore(Simple(), picture(8, 8), mode="pairty")


def test_truncation_loses_half_a_grey_level_and_only_parity_does_it() -> None:
    x = torch.linspace(0, 1, 100_001).view(1, 1, 1, -1)
    assert float((truncate_8bit(x) - x).mean() * 255) == pytest.approx(-0.5, abs=0.01)
    backbone, lq = Simple(), picture(12, 12)
    exact, cut = restore(backbone, lq).sr, parity(backbone, lq).sr
    assert torch.equal(cut, truncate_8bit(exact)) and not torch.equal(cut, exact)


@pytest.mark.parametrize("kind", KINDS)
def test_seeds(kind: str) -> None:
    """Same seed, same picture: alone or in a batch, tile by tile or together; another seed, another one. Best has no chance."""
    backbone, lq = tiny(kind), picture(16, 20, batch=2)
    options: dict[str, Any] = {"tile_px": 48, "overlap_px": 16}
    first = parity(backbone, lq, 1, **options).sr
    assert torch.equal(first, parity(backbone, lq, 1, **options).sr)
    assert not torch.equal(first, parity(backbone, lq, 2, **options).sr)
    assert torch.equal(first[1:], parity(backbone, lq[1:], 1, **options).sr)
    assert (first - parity(backbone, lq, 1, batch_size=3, **options).sr).abs().max() <= 1.01 / 255
    with torch.no_grad():
        assert torch.equal(restore(backbone, lq, **options).sr, restore(backbone, lq, **options).sr)


def test_a_try_with_smaller_tiles_starts_from_the_same_seed() -> None:
    lq, notes, backbone = picture(40, 40), [], Simple(noise=0.1)
    real = backbone.velocity

    def small_only(z: Tensor, *rest: Any) -> Tensor:
        if z.shape[-1] > 10:
            raise torch.OutOfMemoryError("out of memory")
        return real(z, *rest)

    backbone.velocity = small_only  # type: ignore[method-assign]
    retried = restore_picture(backbone, lq, mode="parity", seed=3, notify=notes.append)
    backbone.velocity = real  # type: ignore[method-assign]
    direct = restore_picture(backbone, lq, mode="parity", seed=3, tile_px=80, overlap_px=32, notify=notes.append)
    assert notes == ["out of memory with tiles of 160 px; trying again with 80 px"]
    assert retried.info["tile_px"] == 80 and retried.info["overlap_px"] == 32
    assert torch.equal(retried.sr, direct.sr)


def test_pictures_are_prepared_on_the_device_unless_they_are_large_or_memory_ran_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The meta device stands in for a GPU."""
    places: list[str] = []

    def watched(_: Any, lq: Tensor, **options: Any) -> Restored:
        places.append(lq.device.type)
        if len(places) == 1:
            raise torch.OutOfMemoryError("out of memory")
        return Restored(torch.zeros(1, 3, 256, 256), torch.zeros(1, 3, 256, 256), {})

    monkeypatch.setattr(batch, "restore", watched)
    backbone, lq, told = tiny("z_image"), picture(64, 64), []
    batch.restore_picture(backbone, lq, device="meta", notify=told.append)
    assert places == ["meta", "cpu"] and len(told) == 1
    monkeypatch.setattr(batch, "LARGEST_PICTURE_BYTES", batch.picture_bytes(lq, 4) - 1)
    batch.restore_picture(backbone, lq, device="meta", notify=told.append)
    assert places[2:] == ["cpu"]
    assert batch.picture_bytes(torch.empty(1, 3, 1024, 1024, device="meta"), 4) == 8 * 12 * 4096**2 < 2**31


def test_weights_that_do_not_fit_beside_the_pictures_send_these_home_and_the_tile_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[tuple[str, int]] = []

    def watched(_: Any, lq: Tensor, **options: Any) -> Restored:
        tries.append((lq.device.type, options["tile_px"]))
        if len(tries) == 1 or lq.shape[0] > 1:
            raise DoesNotFitError("the transformer")
        return Restored(torch.zeros(1, 3, 256, 256), torch.zeros(1, 3, 256, 256), {})

    monkeypatch.setattr(batch, "restore", watched)
    told: list[str] = []
    batch.restore_picture(tiny("z_image"), picture(64, 64), tile_px=128, device="meta", notify=told.append)
    assert tries == [("meta", 128), ("cpu", 128)]
    assert told == ["out of memory for the transformer; trying again with the pictures in main memory"]
    with pytest.raises(DoesNotFitError):
        batch.restore_picture(tiny("z_image"), picture(64, 64, batch=2), tile_px=128, notify=told.append)
    assert len(tries) == 3 and len(told) == 1


def test_no_memory_while_conditioning_is_no_reason_for_smaller_tiles() -> None:
    asked, told = [], []

    def conditioner(sample: int, tiles: TilePlan, scale: int) -> Conditioning:
        asked.append(len(tiles.starts))
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(DoesNotFitError, match="room for what conditions the model, got out of memory; let the models take turns"):
        restore_picture(Simple(), picture(64, 64), conditioning=conditioner, notify=told.append)
    assert asked == [1] and told == []


@pytest.mark.parametrize("kind", KINDS)
def test_no_memory_for_weights_is_no_reason_for_smaller_tiles(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, told, real = tiny(kind), [], nn.Module.to
    name = type(backbone.transformer).__name__

    def full(module: nn.Module, *where: Any, **more: Any) -> nn.Module:
        if module is backbone.transformer:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(module, *where, **more)

    monkeypatch.setattr(nn.Module, "to", full)
    with pytest.raises(DoesNotFitError, match=rf"room for {name} \(0\.00 GiB of weights\) on cpu, .*8bit or 4bit .*offload"):
        restore_picture(OffloadedBackbone(backbone, Residency("cpu")), picture(64, 64), notify=told.append)
    assert told == []


@pytest.mark.parametrize("fails", ["encode", "velocity", "decode"])
def test_nothing_of_an_offloaded_model_is_on_the_device_while_it_is_conditioned(fails: str) -> None:
    """Neither at the first try, nor at the next one after memory ran out in any stage, nor at the next picture."""
    backbone, turns, resident = tiny("z_image"), Residency("cpu"), []
    real = getattr(backbone, fails)

    def conditioner(sample: int, tiles: TilePlan, scale: int) -> Conditioning:
        resident.append(turns.resident)
        return Conditioning(torch.zeros(1, 4, backbone.spec.conditioning_dim))

    def once(*args: Any, **options: Any) -> Tensor:
        if len(resident) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*args, **options)

    setattr(backbone, fails, once)
    for _ in range(2):
        restore_picture(OffloadedBackbone(backbone, turns), picture(32, 32), conditioning=conditioner, notify=lambda _: None)
    assert resident == [None, None, None] and turns.resident is not None


@pytest.mark.parametrize(("kind", "latents"), [("flux2_klein", "native"), ("z_image", "scaled"), ("z_image", "raw")])
def test_strength_goes_from_the_autoencoder_alone_to_the_trained_step(kind: str, latents: str) -> None:
    """Also where one-step weights have learned the map between raw and scaled latents (check 18 shows that they must)."""
    backbone, up = tiny(kind, latents=latents), picture(32, 48)
    base = tiny(kind)  # scaled: zero velocity is decode(encode)
    with torch.no_grad():
        alone = (base.decode(base.encode(up * 2 - 1)) + 1) / 2
        assert torch.allclose(one_step(backbone, up, strength=0.0), alone, atol=1e-5)
        z = backbone.encode(up * 2 - 1)
        full = (backbone.decode(z - 0.8 * backbone.velocity(z, torch.tensor([0.8]), z)) + 1) / 2
        assert torch.allclose(one_step(backbone, up), full, atol=1e-6)
        half = one_step(backbone, up, strength=0.5)
    assert not torch.allclose(half, full, atol=1e-3) and not torch.allclose(half, alone, atol=1e-3)


def test_21_constants_and_pointwise_models_do_not_depend_on_tiles() -> None:
    lq = picture(30, 40)
    whole = restore(Simple(), lq).sr
    for tile, overlap in ((48, 0), (64, 16), (80, 33), (160, 64)):
        assert torch.allclose(restore(Simple(), lq, tile_px=tile, overlap_px=overlap).sr, whole, atol=1e-6)
        assert (parity(Simple(), lq, tile_px=tile, overlap_px=overlap).sr - whole).abs().max() < 1.01 / 255
    flat = restore(Simple(spread=0.2), torch.full((1, 3, 30, 40), 0.6), tile_px=64, overlap_px=16).sr
    assert float(flat.max() - flat.min()) < 1e-6


def test_22_models_that_see_the_whole_tile_do_depend_on_it() -> None:
    lq = picture(30, 40)
    whole, tiled = (restore(Simple(spread=0.5), lq, tile_px=tile, overlap_px=0).sr for tile in (0, 64))
    assert not torch.allclose(whole, tiled, atol=1e-3)


@pytest.mark.parametrize(("size", "most", "factor"), [((512, 512), 4, 1.07), ((340, 512), 4, 1.10), ((540, 960), 8, 1.10)])
def test_23_work_of_the_tiles(size: tuple[int, int], most: int, factor: float) -> None:
    """Section 6.1 item 1: 2048x2048, 1360x2048, 2160x3840; planned only, nothing is computed at these sizes."""
    from alignsr.core.tiling import plan

    height, width = (side * 4 + -side * 4 % 16 for side in size)
    tiles = plan(height, width, *tiles_for(Simple()), 16)
    assert len(tiles.starts) <= most and tiles.pixel_factor <= factor
    assert all(side % 16 == 0 for side in tiles.tile_size)


def test_stages_follow_one_another_and_progress_counts_them() -> None:
    backbone, seen = Simple(), []
    restore(
        backbone, picture(24, 24, batch=2), tile_px=64, overlap_px=16, batch_size=3,
        on_tile=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert backbone.calls == ["encode"] * 3 + ["velocity"] * 3 + ["decode"] * 3
    assert seen == [(n, 24) for n in (3, 6, 8, 11, 14, 16, 19, 22, 24)]


def test_progress_counts_the_stage_that_looks_at_the_tiles() -> None:
    """Eight tiles in four stages; a conditioner that says how far it is moves the bar tile by tile."""

    class Looking:
        def __init__(self, on_part: Any = None) -> None:
            self.on_part = on_part

        def watched(self, on_part: Any) -> "Looking":
            return Looking(on_part)

        def __call__(self, sample: int, tiles: TilePlan, scale: int) -> Conditioning:
            for done in range(len(tiles.starts)):
                self.on_part(done + 1, len(tiles.starts))
            return Conditioning(torch.zeros(1, 1, 2))

    plain = lambda *_: Conditioning(torch.zeros(1, 1, 2))  # noqa: E731
    for conditioner, first in ((plain, [4, 8]), (Looking(), [1, 2, 3, 4, 5, 6, 7, 8])):
        seen: list[tuple[int, int]] = []
        options: dict[str, Any] = {"tile_px": 64, "overlap_px": 16, "batch_size": 8}
        on_tile = lambda done, total, seen=seen: seen.append((done, total))  # noqa: E731
        restore(Simple(), picture(24, 24, batch=2), conditioning=conditioner, on_tile=on_tile, **options)
        assert list(dict.fromkeys(seen)) == [(n, 32) for n in (*first, 16, 24, 32)]


def test_every_tile_gets_its_own_row_and_every_picture_its_own_entry() -> None:
    lq, asked = picture(24, 24, batch=2), []

    def conditioner(sample: int, tiles: TilePlan, scale: int) -> Conditioning:
        asked.append((sample, tiles.tile_size, scale))
        return Conditioning(torch.full((len(tiles.starts), 5, 2), 10.0 * sample) + torch.arange(4.0).view(4, 1, 1))

    backbone = Simple()
    restore(backbone, lq, tile_px=64, overlap_px=16, batch_size=3, conditioning=conditioner)
    rows = torch.cat([told.embeddings[:, 0, 0] for told in backbone.told if told is not None])
    assert rows.tolist() == [0, 1, 2, 3, 10, 11, 12, 13] and asked == [(0, (64, 64), 4), (1, (64, 64), 4)]
    backbone = Simple()
    restore(backbone, lq, tile_px=64, overlap_px=16, conditioning=Conditioning(torch.tensor([1.0, 2.0]).view(2, 1, 1)))
    assert [float(told.embeddings) for told in backbone.told if told is not None] == [1.0] * 4 + [2.0] * 4
    with pytest.raises(ValueError, match="conditioning: expected 1 or 2 entries, one per picture, got 3"):
        restore(backbone, lq, conditioning=Conditioning(torch.zeros(3, 1, 2)))
    with pytest.raises(ValueError, match="expected 1 row or one for each of 4 tiles, got 2"):
        restore(backbone, lq, tile_px=64, conditioning=lambda *_: Conditioning(torch.zeros(2, 1, 2)))


class Watched(Residency):
    """A residency whose device is counted, not used: all weights stay on the CPU."""

    def __init__(self) -> None:
        super().__init__("cpu")
        self.order: list[nn.Module] = []

    def use(self, module: nn.Module) -> None:
        if module is not self.resident:
            self.order.append(module)
        super().use(module)


@pytest.mark.parametrize("kind", KINDS)
def test_offloaded_parts_take_three_turns_whatever_the_number_of_tiles(kind: str) -> None:
    backbone, lq = tiny(kind), picture(24, 24, batch=2)
    turns = Watched()
    with torch.no_grad():
        options: dict[str, Any] = {"tile_px": 64, "overlap_px": 16}
        found = restore(OffloadedBackbone(backbone, turns), lq, **options)
        assert torch.equal(found.sr, restore(backbone, lq, **options).sr)
    assert [type(module).__name__[:4] for module in turns.order] == [
        type(part).__name__[:4] for part in (backbone.autoencoder, backbone.transformer, backbone.autoencoder)
    ]


@pytest.mark.parametrize(("part", "where"), [("encode", "when encoding"), ("velocity", r"in step 1 of 1 \(sigma 0.8\)")])
def test_nan_latents_name_stage_step_and_tile(part: str, where: str) -> None:
    backbone, calls = Simple(), []
    real = getattr(backbone, part)

    def broken(z: Tensor, *rest: Any, **options: Any) -> Tensor:
        calls.append(1)
        return real(z, *rest, **options) * (float("nan") if len(calls) == 4 else 1)

    setattr(backbone, part, broken)
    with pytest.raises(FloatingPointError, match=rf"simple produced NaN or infinity {where}, in the tile at row 32, column 32"):
        restore(backbone, picture(24, 24), tile_px=64, overlap_px=16)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (3, 2), (17, 5)])
@pytest.mark.parametrize("mode", ["best", "parity"])
def test_pictures_below_the_size_multiple(size: tuple[int, int], mode: str) -> None:
    for scale in (1, 4):
        sr = restore(tiny("flux2_klein"), torch.rand(1, 3, *size), scale=scale, mode=mode, generator=seed(0)).sr
        assert sr.shape[-2:] == (size[0] * scale, size[1] * scale)
