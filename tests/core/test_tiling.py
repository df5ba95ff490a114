"""The tiler: parity with the released scheme, and what holds for every size, tile and overlap."""

import json
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from alignsr.core.images import pad_to_multiple
from alignsr.core.tiling import Side, TilePlan, blend, crop_tiles, plan, plan_snapped
from paths import REFERENCE
from reference.formula import U

GOLDEN = json.loads((REFERENCE / "tiling.json").read_text(encoding="utf-8"))
ARRAYS = load_file(REFERENCE / "tiling.safetensors")


@st.composite
def layouts(draw, largest=90):
    """(height, width, tile_px, overlap_px, multiple) for which a plan exists, with few enough tiles for a quick test."""
    multiple = draw(st.sampled_from([1, 1, 2, 8]))
    height, width = (multiple * draw(st.integers(1, largest // multiple)) for _ in range(2))
    tile_units = draw(st.integers(2, 50 // multiple))
    overlap_px = draw(st.integers(0, (tile_units - 1) * multiple - 1))
    if multiple > 1 and tile_units - -(-overlap_px // multiple) < 2:
        overlap_px = 0
    tile_px = max(tile_units * multiple, overlap_px + 5 if multiple == 1 else 0)
    return height, width, tile_px, overlap_px, multiple


def sides(tile_plan: TilePlan) -> list[Side]:
    return [tile_plan.rows, tile_plan.columns]


@pytest.mark.parametrize(
    ("size", "count", "limit", "released"),
    [
        ((2048, 2048), 4, 1.064, (9, 2.25)),
        ((1360, 2048), 4, 1.092, (6, 2.26)),
        ((2160, 3840), 8, 1.089, (12, 1.52)),
        ((4096, 4096), 16, 1.096, (25, 1.56)),
    ],
)
def test_23_tiles_and_pixel_factor_stay_below_the_limits(size, count, limit, released):
    """Both columns of strsr.md section 6.1 item 1: ours, and what the released scheme needs."""
    even = plan(*size, tile_px=1152, overlap_px=64, multiple=16)
    assert len(even.starts) == count and even.pixel_factor <= limit
    assert max(even.tile_size) <= 1152 and all(side % 16 == 0 for side in even.tile_size)
    snapped = plan_snapped(*size, tile_px=1024, overlap_px=64)
    assert (len(snapped.starts), round(snapped.pixel_factor, 2)) == released


@pytest.mark.parametrize("snapped", [False, True])
def test_23_no_overlap_works_with_several_tiles(snapped):
    made = plan_snapped(96, 80, 32, 0) if snapped else plan(96, 80, 32, 0, multiple=16)
    image = torch.rand(1, 3, 96, 80, generator=torch.Generator().manual_seed(0))
    assert len(made.starts) == 9
    torch.testing.assert_close(blend(lambda x, _: x**2, image, made), image**2, atol=1e-6, rtol=0)


@settings(deadline=None, max_examples=150)
@given(layouts())
def test_plan_covers_the_image_with_equal_overlapping_tiles(layout):
    height, width, tile_px, overlap_px, multiple = layout
    for side in sides(plan(height, width, tile_px, overlap_px, multiple)):
        assert side.starts[0] == 0
        assert side.starts[-1] + side.tile_px == side.length
        assert side.tile_px <= tile_px
        assert side.tile_px % multiple == 0
        assert all(start % multiple == 0 for start in side.starts)
        overlaps = [before + side.tile_px - after for before, after in pairwise(side.starts)]
        assert all(overlap >= overlap_px for overlap in overlaps)
        assert not overlaps or max(overlaps) - min(overlaps) <= multiple


@settings(deadline=None, max_examples=150)
@given(layouts(), st.sampled_from([1, 3]), st.booleans())
def test_weights_of_every_output_pixel_sum_to_one(layout, scale, snapped):
    height, width, tile_px, overlap_px, multiple = layout
    made = plan_snapped(height, width, tile_px, overlap_px) if snapped else plan(height, width, tile_px, overlap_px, multiple)
    for side in sides(made):
        total = torch.zeros(side.length * scale, dtype=torch.float64)
        weights = side.weights(scale)
        assert bool((weights >= 0).all())
        for start, row in zip(side.starts, weights, strict=True):
            total[start * scale : (start + side.tile_px) * scale] += row
        torch.testing.assert_close(total, torch.ones_like(total), atol=1e-12, rtol=0)


@settings(deadline=None, max_examples=60)
@given(layouts(largest=70), st.sampled_from([1, 2]), st.integers(1, 5), st.booleans())
def test_pointwise_function_gives_the_untiled_result(layout, scale, batch_size, snapped):
    height, width, tile_px, overlap_px, multiple = layout
    made = plan_snapped(height, width, tile_px, overlap_px) if snapped else plan(height, width, tile_px, overlap_px, multiple)
    image = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))

    def pointwise(x, boxes=None):
        return torch.nn.functional.interpolate(0.7 * x - 0.2 * x**3, scale_factor=scale, mode="nearest")[:, :2]

    out = blend(pointwise, image, made, scale=scale, batch_size=batch_size)
    torch.testing.assert_close(out, pointwise(image), atol=1e-6, rtol=0)
    constant = blend(lambda x, _: x, torch.full_like(image, 0.37), made, batch_size=batch_size)
    torch.testing.assert_close(constant, torch.full_like(image, 0.37), atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (2, 300), (33, 1)])
def test_tiny_and_thin_images(size):
    image = torch.rand(1, 3, *size)
    out = blend(lambda x, _: 1 - x, image, plan(*size, tile_px=32, overlap_px=8))
    torch.testing.assert_close(out, 1 - image, atol=1e-6, rtol=0)


def test_result_moves_smoothly_from_tile_to_tile():
    """A function that answers with the tile's own number shows the ramps: linear, from one number to the next."""
    made = plan(1, 20, tile_px=12, overlap_px=4)
    out = blend(lambda x, boxes: torch.zeros_like(x) + float(boxes[0].left > 0), torch.zeros(1, 1, 1, 20), made)
    assert made.starts == ((0, 0), (0, 8))
    torch.testing.assert_close(out[0, 0, 0], torch.tensor([0.0] * 8 + [0.125, 0.375, 0.625, 0.875] + [1.0] * 8))


@pytest.mark.parametrize("size", [(1024, 1024), (1360, 2048), (2160, 3840)])
def test_snapped_starts_equal_the_released_code(size):
    golden = GOLDEN[f"c06_strsr/tiles/{size[0]}x{size[1]}_t1024_o64"]["value"]
    assert [list(start) for start in plan_snapped(*size, tile_px=1024, overlap_px=64).starts] == golden


@pytest.mark.parametrize("name", ["pointwise", "tile_mean"])
def test_snapped_blend_equals_the_released_code(name):
    functions = {
        "pointwise": lambda z: 0.7 * z - 0.2 * z**3,
        "tile_mean": lambda z: 0.8 * z - 0.5 * z.mean(dim=(1, 2, 3), keepdim=True),
    }
    padded, (height, width) = pad_to_multiple(U("c06/blend", 1, 3, 70, 90), 16)
    made = plan_snapped(*padded.shape[-2:], tile_px=48, overlap_px=16)
    assert [list(start) for start in made.starts] == GOLDEN["c06_strsr/blend/starts"]["value"]
    out = blend(lambda tiles, _: functions[name](2 * tiles - 1), padded, made, batch_size=2)
    difference = ((out.clamp(-1, 1) + 1) / 2)[..., :height, :width] - ARRAYS[f"c06_strsr/blend/{name}"]
    assert difference.abs().max() <= GOLDEN[f"c06_strsr/blend/{name}"]["atol"]
    assert difference.abs().mean() <= GOLDEN[f"c06_strsr/blend/{name}"]["mean_atol"]


def test_tile_size_matters_only_within_the_receptive_field_of_seams():
    """strsr.md check 22: a 5-pixel box differs from the untiled result only within 2 pixels of where a tile ends."""

    def box(x, _=None):
        return torch.nn.functional.avg_pool2d(x, 5, stride=1, padding=2, count_include_pad=False)

    image = torch.rand(1, 1, 1, 64, generator=torch.Generator().manual_seed(1)).expand(-1, -1, 5, -1)
    made = plan(5, 64, tile_px=40, overlap_px=8)
    differs = (blend(box, image, made) - box(image)).abs().amax(dim=(0, 1, 2)) > 1e-6
    ends = [edge for start in made.columns.starts for edge in (start, start + made.columns.tile_px) if 0 < edge < 64]
    near = torch.tensor([any(edge - 2 <= x < edge + 2 for edge in ends) for x in range(64)])
    assert bool(differs.any())
    assert not bool((differs & ~near).any())


def test_boxes_cut_a_second_image_alike():
    image = torch.rand(2, 1, 30, 40)
    enlarged = image.repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)
    out = blend(lambda tiles, boxes: crop_tiles(enlarged, boxes, scale=2), image, plan(30, 40, 16, 4), scale=2, batch_size=3)
    torch.testing.assert_close(out, enlarged, atol=1e-6, rtol=0)


def test_tiles_are_batched_and_progress_is_reported():
    calls, reports = [], []
    made = plan(100, 100, tile_px=60, overlap_px=10)

    def note(tiles, boxes):
        assert tiles.shape[0] == len(boxes)
        calls.append(len(boxes))
        return tiles

    blend(note, torch.rand(2, 3, 100, 100), made, batch_size=3, on_tile=lambda done, total: reports.append((done, total)))
    assert calls == [3, 3, 2]
    assert reports == [(3, 8), (6, 8), (8, 8)]


@pytest.mark.parametrize(("layout", "kinds"), [((400, 400, 48, 16), 9), ((403, 97, 48, 16), 25), ((50, 60, 64, 8), 1)])
def test_weight_maps_are_made_once_per_kind(layout, kinds, monkeypatch):
    """First, middle and last tile of a side, and a few more middle ones where overlaps differ by rounding."""
    made, calls, outer = plan(*layout), [], torch.outer
    monkeypatch.setattr(torch, "outer", lambda *sides: calls.append(1) or outer(*sides))
    blend(lambda x, _: x, torch.zeros(2, 3, *layout[:2]), made)
    assert len(calls) <= min(kinds, len(made.starts))


def test_weight_maps_are_the_products_of_the_sides():
    """Bit for bit what a product per tile gives: sharing maps changes no number."""
    image, made = torch.rand(1, 2, 83, 131, generator=torch.Generator().manual_seed(2)), plan(83, 131, 40, 12)
    expected = torch.zeros_like(image)
    for top, down in zip(made.rows.starts, made.rows.weights(), strict=True):
        for left, across in zip(made.columns.starts, made.columns.weights(), strict=True):
            part = (..., slice(top, top + made.tile_size[0]), slice(left, left + made.tile_size[1]))
            expected[part] += image[part] ** 2 * torch.outer(down, across).float()
    assert torch.equal(blend(lambda x, _: x**2, image, made), expected)


def test_progress_hook_can_cancel():
    class CancelledError(Exception):
        pass

    def cancel(done, total):
        raise CancelledError

    with pytest.raises(CancelledError):
        blend(lambda x, _: x, torch.rand(1, 3, 50, 50), plan(50, 50, 32, 8), on_tile=cancel)


def test_blend_is_differentiable():
    image = torch.rand(1, 2, 7, 9, dtype=torch.float64, requires_grad=True)
    made = plan(7, 9, tile_px=5, overlap_px=2)
    assert torch.autograd.gradcheck(lambda x: blend(lambda tiles, _: tiles**2 * tiles.mean(), x, made, batch_size=2), image)


def test_half_precision_is_accumulated_in_float32():
    out = blend(lambda x, _: x.bfloat16(), torch.full((1, 3, 64, 64), 0.3), plan(64, 64, 40, 12))
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, torch.full_like(out, torch.tensor(0.3).bfloat16().item()), atol=1e-6, rtol=0)


def test_works_under_inference_mode():
    with torch.inference_mode():
        image = torch.rand(1, 3, 50, 50)
        torch.testing.assert_close(blend(lambda x, _: x, image, plan(50, 50, 32, 8)), image, atol=1e-6, rtol=0)


@pytest.mark.gpu
def test_tiles_on_a_gpu_stay_there_and_give_the_same():
    image, made = torch.rand(1, 3, 200, 300), plan(200, 300, 64, 16)
    devices = set()

    def square(tiles, _):
        devices.add(tiles.device.type)
        return tiles**2

    out = blend(square, image.cuda(), made, batch_size=4)
    assert out.device.type == "cuda" and devices == {"cuda"}
    torch.testing.assert_close(out.cpu(), blend(lambda x, _: x**2, image, made), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((100, 100, 64, 64), r"overlap_px: expected 0 <= overlap_px < tile_px \(64\), got 64"),
        ((100, 100, 64, -1), "overlap_px: expected 0 <= overlap_px"),
        ((100, 100, 0, 0), "tile_px: expected an integer >= 1, got 0"),
        ((0, 100, 64, 8), "height: expected an integer >= 1, got 0"),
        ((100, 96, 64, 8, 16), "height: expected a multiple of 16, got 100; use images.pad_to_multiple"),
        ((96, 96, 8, 0, 16), "tile_px: expected at least 16, of which sides are multiples, got 8"),
        ((96, 96, 24, 17, 16), "overlap_px: expected less than tile_px after rounding both to multiples of 16"),
    ],
)
def test_impossible_plans_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        plan(*arguments)


def test_snapped_plan_refuses_overlap_of_a_whole_tile():
    with pytest.raises(ValueError, match="overlap_px: expected 0 <= overlap_px < tile_px"):
        plan_snapped(100, 100, 64, 64)


def test_wrong_image_and_wrong_answer_are_named():
    made = plan(50, 50, 32, 8)
    with pytest.raises(ValueError, match=r"image: expected \[B, C, 50, 50\] as the plan says, got \(1, 3, 60, 50\)"):
        blend(lambda x, _: x, torch.rand(1, 3, 60, 50), made)
    with pytest.raises(ValueError, match=r"fn: expected to return .* check that scale=2"):
        blend(lambda x, _: x, torch.rand(1, 3, 50, 50), made, scale=2)
