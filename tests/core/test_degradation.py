"""What degradation promises: repeatable per sample, exact sizes, right noise, JPEG like the codec, gradients, clear errors."""

import json
import math
import os
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from alignsr.core.degradation import PRESETS, degrade, lq_size, replay, sharpen
from alignsr.core.degradation.blur import (
    fast_fft_size,
    filter_images,
    filter_separable,
    gaussian_taps,
    reflect_pad,
    sinc_kernel,
    smooth_kernel,
)
from alignsr.core.degradation.draw import draw_steps
from alignsr.core.degradation.jpeg import _dct_matrix, jpeg_codec, jpeg_differentiable, jpeg_diffjpeg, quality_factor
from alignsr.core.degradation.noise import gaussian_field, poisson_counts, poisson_field, poisson_tables, random_bits
from alignsr.core.degradation.parallel import side_by_side
from alignsr.core.degradation.steps import apply_steps, make_kernel
from alignsr.core.resize import imresize

CPU = torch.device("cpu")


def photographs(side: int = 96) -> list[Tensor]:
    """Crops of four public photographs, [3, side, side]."""
    import skimage.data

    pictures = [skimage.data.astronaut()[100:], skimage.data.chelsea(), skimage.data.coffee()[150:, 100:], skimage.data.rocket()]
    return [torch.from_numpy(p[:side, :side].copy()).permute(2, 0, 1).float() / 255 for p in pictures]


@pytest.fixture(scope="module")
def gt() -> Tensor:
    return torch.stack(photographs())


# repeatable per sample


@pytest.mark.parametrize("name", PRESETS)
def test_a_sample_does_not_depend_on_its_batch(gt: Tensor, name: str) -> None:
    seeds = [5, 6, 7, 8]
    together = degrade(gt, name, seeds=seeds)
    order = [2, 0, 3, 1]
    shuffled = degrade(gt[order], name, seeds=[seeds[k] for k in order])
    assert torch.equal(shuffled.lq, together.lq[order])
    for b, seed in enumerate(seeds):
        alone = degrade(gt[b : b + 1], name, seeds=[seed])
        assert torch.equal(alone.lq[0], together.lq[b])
        assert torch.equal(alone.gt[0], together.gt[b])
        assert alone.params[0] == together.params[b]


def test_same_seed_same_result_and_other_seed_another_result(gt: Tensor) -> None:
    one = degrade(gt[:1].repeat(3, 1, 1, 1), "realesrgan", seeds=[3, 3, 4])
    assert torch.equal(one.lq[0], one.lq[1])
    assert not torch.equal(one.lq[0], one.lq[2])


def test_the_number_of_threads_changes_neither_the_result_nor_itself(gt: Tensor) -> None:
    before = torch.get_num_threads()
    results: list[Tensor] = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            with torch.inference_mode():
                results.append(degrade(gt, "realesrgan", seeds=list(range(gt.shape[0]))).lq)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])
    assert all(result.is_inference() for result in results)


def test_the_first_exception_of_several_threads_is_raised_again() -> None:
    def work(index: int) -> int:
        if index % 2:
            raise ArithmeticError(f"sample {index}")
        return index

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with pytest.raises(ArithmeticError, match="sample 1"):
            side_by_side(work, 4)
        assert side_by_side(lambda index: index * index, 4) == [0, 1, 4, 9]
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_degrades_too(gt: Tensor) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        degrade(gt, "bicubic", seeds=list(range(gt.shape[0])))  # the threads of this process exist now
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                torch.set_num_threads(2)
                values = side_by_side(lambda index: index + 1, 3)
                os.write(writer, bytes(values))
            finally:
                os._exit(0)
        os.close(writer)
        with os.fdopen(reader, "rb") as stream:
            assert stream.read() == bytes([1, 2, 3])
        os.waitpid(child, 0)
    finally:
        torch.set_num_threads(before)


def test_the_state_of_the_global_generator_neither_matters_nor_changes(gt: Tensor) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = degrade(gt, "strsr", seeds=range(4)).lq
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(degrade(gt, "strsr", seeds=range(4)).lq, first)


@pytest.mark.parametrize("jpeg", ["codec", "differentiable", "diffjpeg"])
def test_records_survive_json_and_bring_the_result_back(gt: Tensor, jpeg: Any) -> None:
    made = degrade(gt, "strsr", seeds=[1, 2, 3, 4], jpeg=jpeg)
    again = replay(gt, json.loads(json.dumps(made.params)), jpeg=jpeg)
    assert torch.equal(again.lq, made.lq)
    assert torch.equal(again.gt, made.gt)
    assert made.lq_up is not None and again.lq_up is not None
    assert torch.equal(again.lq_up, made.lq_up)
    assert made.params[2]["seed"] == 3 and made.params[0]["config"] == "strsr"


@pytest.mark.parametrize("jpeg", ["differentiable", "diffjpeg"])
def test_one_batch_on_padded_canvases_is_the_same_as_image_by_image(gt: Tensor, jpeg: str) -> None:
    """The path of a GPU: samples of different sizes, padded to one; float rounding differs, which JPEG can turn into a step."""
    images = [image[:, : 96 - 7 * b, : 80 + 3 * b] for b, image in enumerate(gt)]
    steps = [
        draw_steps(PRESETS["realesrgan"], (i.shape[1], i.shape[2]), (24, 20), 4, generator=torch.Generator().manual_seed(b))
        for b, i in enumerate(images)
    ]
    together = apply_steps(images, steps, jpeg)
    for b, image in enumerate(images):
        alone = apply_steps([image], [steps[b]], jpeg)[0]
        gap = (together[b] - alone).abs()
        assert float(gap.mean()) < 0.1 / 255
        assert float((gap > 0.5 / 255).float().mean()) < 0.02


@pytest.mark.gpu
def test_a_gpu_gives_what_the_cpu_gives_up_to_rounding(gt: Tensor) -> None:
    ours = degrade(gt.cuda(), "realesrgan", seeds=range(4), jpeg="differentiable")
    assert ours.lq.is_cuda and ours.gt.is_cuda
    gap = (ours.lq.cpu() - degrade(gt, "realesrgan", seeds=range(4), jpeg="differentiable").lq).abs()
    assert float(gap.mean()) < 0.2 / 255


# sizes and ranges


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 5), (37, 53), (64, 33)])
@pytest.mark.parametrize("scale", [1, 2, 3.5, 4])
def test_every_size_and_scale_gives_the_promised_size(size: tuple[int, int], scale: float) -> None:
    image = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    for name in PRESETS:
        for jpeg in ("codec", "differentiable"):
            out = degrade(image, name, seeds=[1, 2], scale=scale, jpeg=jpeg)
            assert tuple(out.lq.shape[-2:]) == lq_size(*size, scale) == tuple(out.params[0]["lq_size"])
            assert out.gt.shape == image.shape
            assert float(out.lq.min()) >= 0 and float(out.lq.max()) <= 1
            if out.lq_up is not None:
                assert out.lq_up.shape == image.shape


def test_strsr_makes_256_of_1024() -> None:
    """strsr.md check 25, on a photograph enlarged to the size of a training crop."""
    crop = torch.nn.functional.interpolate(photographs(256)[0][None], scale_factor=4, mode="bicubic").clamp(0, 1)
    lq = degrade(crop, "strsr", seeds=[3]).lq
    assert lq.shape == (1, 3, 256, 256) and float(lq.min()) >= 0 and float(lq.max()) <= 1
    assert torch.equal(lq, degrade(crop, "strsr", seeds=[3]).lq)
    assert not torch.equal(lq, degrade(crop, "strsr", seeds=[4]).lq)


def test_lq_size_rounds_half_up() -> None:
    assert lq_size(256, 258, 4) == (64, 65)
    assert lq_size(257, 7, 3.5) == (73, 2)
    assert lq_size(1, 2, 8) == (1, 1)


def test_rounded_presets_lie_on_the_8_bit_grid_and_strsr_does_not(gt: Tensor) -> None:
    for name in PRESETS:
        out = degrade(gt, name, seeds=range(10, 14))
        steps = out.lq.double() * 255
        on_grid = float((steps - steps.round()).abs().max()) < 1e-4
        assert on_grid == PRESETS[name].round_lq or name == "strsr"
        if out.lq_up is not None:
            enlarged = out.lq_up.double() * 255
            assert float((enlarged - enlarged.round()).abs().max()) < 1e-4


def test_half_precision_keeps_its_dtype(gt: Tensor) -> None:
    out = degrade(gt.to(torch.bfloat16), "realesrgan", seeds=range(4))
    assert out.lq.dtype == out.gt.dtype == torch.bfloat16


def test_bicubic_is_matlabs_rounded(gt: Tensor) -> None:
    expected = (imresize(gt, 0.25).clamp(0, 1) * 255).round() / 255
    assert torch.allclose(degrade(gt, "bicubic", seeds=range(4)).lq, expected, atol=1e-6)


def test_target_is_sharpened_where_asked(gt: Tensor) -> None:
    sharp = sharpen(gt)
    assert not torch.equal(sharp, gt)
    assert torch.equal(degrade(gt, "realesrgan", seeds=range(4)).gt, sharp)
    assert torch.equal(degrade(gt, "aesop_realworld", seeds=range(4)).gt, gt)
    plain = degrade(gt, "realesrgan", seeds=range(4), sharpen_target=False)
    assert torch.equal(plain.gt, gt)
    assert torch.equal(plain.lq, degrade(gt, "realesrgan", seeds=range(4)).lq)
    only_target = degrade(gt, "dp2o", seeds=range(4), sharpen_target=True)
    assert torch.equal(only_target.gt, sharp)
    assert torch.equal(only_target.lq, degrade(gt, "dp2o", seeds=range(4)).lq)


# blur


@pytest.mark.parametrize("name", ["realesrgan", "aesop_realworld", "strsr"])
def test_drawn_kernels_sum_to_one_in_the_common_frame(name: str) -> None:
    for seed in range(60):
        for step in draw_steps(PRESETS[name], (256, 256), (64, 64), 4, generator=torch.Generator().manual_seed(seed)):
            if step["op"] == "blur" and step["kernel"] is not None:
                kernel = make_kernel(step["kernel"], pad_to=21)
                assert tuple(kernel.shape) == (21, 21)
                assert float(kernel.sum()) == pytest.approx(1.0, abs=1e-9)


def test_pulse_kernel_is_the_identity_and_constants_stay(gt: Tensor) -> None:
    pulse = torch.zeros(21, 21)
    pulse[10, 10] = 1
    assert torch.allclose(filter_images([gt[0]], [pulse])[0], gt[0], atol=1e-6)
    constant = torch.full((3, 30, 41), 0.37)
    assert torch.allclose(filter_images([constant], [sinc_kernel(21, 1.1)])[0], constant, atol=1e-6)


def test_filter_is_a_correlation_with_mirrored_borders() -> None:
    generator = torch.Generator().manual_seed(3)
    image, kernel = torch.rand(3, 19, 26, generator=generator), torch.rand(7, 7, generator=generator) - 0.4
    padded = torch.nn.functional.pad(image[None], (3, 3, 3, 3), mode="reflect")
    direct = torch.nn.functional.conv2d(padded, kernel.expand(3, 1, 7, 7), groups=3)[0]
    assert torch.allclose(filter_images([image], [kernel])[0], direct, atol=1e-5)


def test_separable_filter_equals_the_full_kernel() -> None:
    line = torch.tensor([0.1, 0.2, 0.4, 0.25, 0.05], dtype=torch.float64)
    for height, width in ((5, 5), (64, 65), (70, 129)):
        image = torch.rand(3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        assert torch.allclose(filter_separable(image, line), filter_images([image], [line[:, None] * line])[0], atol=1e-12)


def test_isotropic_gaussians_are_separable() -> None:
    for size, sigma in ((7, 0.2), (13, 1.4), (21, 3.0)):
        taps = gaussian_taps(size, sigma)
        assert torch.allclose(taps[:, None] * taps, smooth_kernel("iso", size, sigma_x=sigma), atol=1e-15)


def test_reflection_goes_on_where_the_side_is_shorter_than_the_margin() -> None:
    line = torch.tensor([[[1.0, 2.0, 3.0]]])
    assert reflect_pad(line, 5)[0, 0].tolist() == [2, 1, 2, 3, 2, 1, 2, 3, 2, 1, 2, 3, 2]
    assert reflect_pad(torch.ones(1, 1, 1), 2).shape == (1, 5, 5)


def test_fft_sizes_have_small_factors_only() -> None:
    assert [fast_fft_size(n) for n in (1, 17, 262, 276, 306, 321)] == [16, 32, 288, 288, 320, 384]


def test_sharpening_leaves_constants_and_faint_texture_alone_and_steepens_edges() -> None:
    constant = torch.full((1, 3, 40, 40), 0.6)
    assert torch.equal(sharpen(constant), constant)
    faint = constant + 0.02 * torch.sign(torch.sin(torch.arange(40.0)))[None, None, None]
    assert torch.allclose(sharpen(faint), faint, atol=1e-6)
    edge = torch.full((1, 3, 64, 64), 0.3)
    edge[..., 32:] = 0.7
    out = sharpen(edge)
    assert float(out[..., 32].mean()) > 0.75 and float(out[..., 31].mean()) < 0.25
    assert torch.equal(sharpen(edge, weight=0.0), edge)


# noise


def test_gaussian_field_is_normal_and_white() -> None:
    field = gaussian_field(random_bits([(1, 2), (1, 3)], 3, 256, 256, CPU)).double()
    count = field.numel()
    assert abs(float(field.mean())) < 5 / count**0.5
    assert float(field.var()) == pytest.approx(1, abs=5 * (2 / count) ** 0.5)
    assert float((field**3).mean()) == pytest.approx(0, abs=5 * (15 / count) ** 0.5)
    assert float((field**4).mean()) == pytest.approx(3, abs=5 * (96 / count) ** 0.5)
    for other in (field.roll(1, -1), field.roll(1, -2), field.roll(1, 1), field.roll(1, 0), field.roll((1, 1), (-1, -2))):
        assert abs(float((field * other).mean())) < 5 / count**0.5


def test_a_field_does_not_depend_on_the_size_it_is_computed_in() -> None:
    small, large = random_bits([(8, 9)], 1, 5, 7, CPU), random_bits([(4, 4), (8, 9)], 3, 20, 30, CPU)
    assert torch.equal(large[1:, :1, :5, :7], small)


def test_random_bits_are_balanced_in_every_position() -> None:
    bits = random_bits([(123, 456)], 3, 200, 200, CPU).flatten().long()
    for position in range(32):
        ones = float(((bits >> position) & 1).double().mean())
        assert ones == pytest.approx(0.5, abs=5 * 0.5 / bits.numel() ** 0.5)


@pytest.mark.parametrize("counts", [1, 8, 256])
def test_poisson_tables_hold_the_exact_distribution(counts: int) -> None:
    threshold, alias = (table.view(256, 512).double() for table in poisson_tables(counts, CPU))
    mass = (threshold / 512).scatter_add(1, alias.long(), (1 - threshold) / 512)
    rate = torch.arange(256, dtype=torch.float64)[:, None] / 255 * counts
    k = torch.arange(512, dtype=torch.float64)[None]
    expected = torch.exp(torch.xlogy(k, rate) - rate - torch.lgamma(k + 1))
    assert torch.allclose(mass, expected, atol=2e-9)


def test_poisson_noise_has_mean_zero_and_variance_level_over_counts() -> None:
    for level, counts in ((3, 2), (40, 16), (128, 64), (255, 256)):
        levels = torch.full((1, 3, 200, 200), level, dtype=torch.int32)
        field = poisson_field(levels, random_bits([(level, counts)], 3, 200, 200, CPU), [counts])
        variance = level / 255 / counts
        assert float(field.var()) == pytest.approx(variance, rel=0.05)
        assert abs(float(field.mean())) < 5 * (variance / field.numel()) ** 0.5


def test_counts_are_the_power_of_two_above_the_number_of_levels() -> None:
    rows = [[0, 0, 0, 0, 0, 0], [1, 2, 1, 2, 1, 2], [1, 2, 3, 1, 2, 3], [9, 8, 7, 6, 5, 5], [0, 1, 2, 3, 4, 255]]
    assert poisson_counts(torch.tensor(rows)) == [1, 2, 4, 8, 8]
    assert poisson_counts(torch.arange(256)[None]) == [256]


@pytest.mark.parametrize("kind", [{"kind": "gaussian", "std_255": 20.0}, {"kind": "poisson", "scale": 1.5}])
def test_grey_noise_is_one_field_per_sample_for_all_colours(kind: dict[str, Any]) -> None:
    image = torch.full((2, 3, 40, 40), 0.5)
    image[:, :, ::2] = 0.45
    for grey in (True, False):
        records = [{"steps": [{"op": "noise", **kind, "grey": grey, "key": [7, b]}], "round_lq": False} for b in range(2)]
        noise = replay(image, records).lq - image
        equal_colours = torch.allclose(noise[:, 0], noise[:, 1], atol=1e-6)
        assert equal_colours == grey
        assert not torch.allclose(noise[0], noise[1], atol=1e-3)


# JPEG


@pytest.mark.parametrize(("sigma", "limit"), [(0, 1.0), (25, 2.0)])
def test_differentiable_jpeg_stays_within_grey_levels_of_the_codec(sigma: float, limit: float) -> None:
    generator = torch.Generator().manual_seed(0)
    images = [(p[:, :, :91] + torch.randn(3, 96, 91, generator=generator) * sigma / 255).clamp(0, 1) for p in photographs()]
    for quality in range(30, 96, 5):
        qualities = [quality] * len(images)
        pairs = zip(jpeg_differentiable(images, qualities), jpeg_codec(images, qualities), strict=True)
        assert max(float((a - b).abs().mean()) for a, b in pairs) * 255 < limit


def test_differentiable_jpeg_matches_the_codec_on_flat_graphics() -> None:
    """Flat areas give coefficients that are exact halves, where rounding the other way would shift whole areas."""
    image = torch.ones(3, 64, 64)
    image[:, 10:30, 8:40] = torch.tensor([0.2, 0.4, 0.9])[:, None, None]
    image[:, 40:, :] = 128 / 255
    for quality in (49, 50, 51, 75):
        gap = (jpeg_differentiable([image], [quality])[0] - jpeg_codec([image], [quality])[0]).abs()
        assert float(gap.mean()) * 255 < 0.5


def test_padding_for_a_batch_changes_nothing_in_differentiable_jpeg(gt: Tensor) -> None:
    images = [gt[0, :, :33, :47], gt[1], gt[2, :, :7, :90]]
    for ours, image, quality in zip(jpeg_differentiable(images, [40, 60, 80]), images, [40, 60, 80], strict=True):
        assert ours.shape == image.shape
        assert torch.allclose(ours, jpeg_differentiable([image], [quality])[0], atol=1e-6)


def test_quality_factors_and_grey_survive() -> None:
    assert [quality_factor(q) for q in (25, 50, 75, 95)] == pytest.approx([2.0, 1.0, 0.5, 0.1])
    grey = torch.full((3, 20, 37), 128 / 255)
    for form in (jpeg_codec, jpeg_differentiable, jpeg_diffjpeg):
        inner = form([grey], [60])[0][:, :16, :32]  # the official form pads with black, which rings in the last blocks
        assert torch.allclose(inner, grey[:, :16, :32], atol=1e-5)


def test_lower_quality_is_further_from_the_original(gt: Tensor) -> None:
    for form in (jpeg_codec, jpeg_differentiable, jpeg_diffjpeg):
        errors = [float((form([gt[0]], [quality])[0] - gt[0]).square().mean()) for quality in (95, 60, 30)]
        assert errors == sorted(errors)


# gradient


@pytest.mark.parametrize("name", PRESETS)
def test_gradient_flows_to_the_ground_truth(gt: Tensor, name: str) -> None:
    leaf = gt.clone().requires_grad_()
    out = degrade(leaf, name, seeds=range(4), jpeg="differentiable")
    (gradient,) = torch.autograd.grad(out.lq.sum(), leaf)
    assert bool(torch.isfinite(gradient).all())
    per_sample = gradient.flatten(1).sum(1)
    # A brighter input gives a brighter output; away from clipping the sum over the input is about one per output value.
    assert bool((per_sample > 0.3 * out.lq[0].numel()).all()) and bool((per_sample < 2 * out.lq[0].numel()).all())


@pytest.mark.parametrize("jpeg", ["differentiable", "diffjpeg"])
def test_gradient_flows_after_a_first_call_in_inference_mode(jpeg: Any) -> None:
    _dct_matrix.cache_clear()
    gt = photographs(32)[0][None]
    with torch.inference_mode():
        degrade(gt, "realesrgan", seeds=[1], jpeg=jpeg)
    gt.requires_grad_()
    degrade(gt, "realesrgan", seeds=[1], jpeg=jpeg).lq.sum().backward()
    assert gt.grad is not None and bool(torch.isfinite(gt.grad).all())


def test_a_step_along_the_gradient_brings_lq_nearer(gt: Tensor) -> None:
    leaf = gt.clone().requires_grad_()
    wanted = degrade(gt, "bicubic", seeds=range(4)).lq
    loss = (degrade(leaf, "strsr", seeds=range(4), jpeg="differentiable").lq - wanted).square().sum()
    (gradient,) = torch.autograd.grad(loss, leaf)
    stepped = (gt - 0.5 * gradient).clamp(0, 1)
    after = (degrade(stepped, "strsr", seeds=range(4), jpeg="differentiable").lq - wanted).square().sum()
    assert after.item() < loss.item()


# errors


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"config": "realesgan"},
            ValueError,
            "preset: expected one of .*, got 'realesgan'; did you mean 'realesrgan'?",
        ),
        ({"config": 3}, TypeError, "preset: expected a preset's name"),
        ({"scale": 0}, ValueError, "scale: expected a finite number >= 1, got 0"),
        ({"scale": -1}, ValueError, "scale: expected a finite number >= 1, got -1"),
        ({"scale": math.nan}, ValueError, "scale: expected a finite number >= 1, got nan"),
        ({"scale": math.inf}, ValueError, "scale: expected a finite number >= 1, got inf"),
        ({"scale": "4"}, ValueError, "scale: expected a finite number >= 1, got '4'"),
        ({"seeds": [1]}, ValueError, r"seeds: expected one per image \(2\), got 1"),
        ({"seeds": [1, 2.5]}, TypeError, "seeds: expected integers, got float 2.5"),
        ({"seeds": [1, 1 << 64]}, ValueError, "seeds: expected integers in"),
        (
            {"jpeg": "codecs"},
            ValueError,
            "jpeg: expected one of codec, differentiable, diffjpeg, got 'codecs'; did you mean 'codec'?",
        ),
        ({"gt": torch.full((2, 3, 8, 8), math.nan)}, ValueError, "gt: expected finite values"),
        ({"gt": torch.full((2, 3, 8, 8), -math.inf)}, ValueError, "gt: expected finite values"),
        ({"gt": torch.full((2, 3, 8, 8), 255.0)}, ValueError, r"gt: expected values in \[0, 1\], got .*divide by 255"),
        ({"gt": torch.full((2, 3, 8, 8), -1.0)}, ValueError, r"gt: expected values in \[0, 1\], got .*from_model_range"),
        ({"gt": torch.rand(2, 1, 8, 8)}, ValueError, r"gt: expected \[B, 3, H, W\] float"),
        ({"gt": torch.rand(2, 8, 8, 3)}, ValueError, "looks channels-last"),
        ({"gt": torch.rand(2, 3, 0, 8)}, ValueError, "gt: expected at least one image"),
        ({"gt": torch.zeros(2, 3, 8, 8, dtype=torch.uint8)}, TypeError, "divide 8-bit images by 255"),
    ],
)
def test_errors_name_the_argument_and_the_remedy(change: dict[str, Any], error: type[Exception], message: str) -> None:
    call: dict[str, Any] = {"gt": torch.rand(2, 3, 8, 8), "config": "realesrgan", "seeds": [1, 2]} | change
    with pytest.raises(error, match=message.replace("?", r"\?")):
        degrade(call.pop("gt"), call.pop("config"), **call)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ([], r"params: expected one record per image \(1\), got 0"),
        ([{"steps": [{"op": "blurr", "kernel": None}]}], r"got 'blurr'; did you mean 'blur'\?"),
        ([{"seed": 3}], "params: expected a record with 'steps'"),
        ([{"steps": [{"op": "jpeg"}]}], "params: expected 'quality' in a jpeg step"),
    ],
)
def test_replay_says_what_is_wrong_with_a_record(params: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replay(torch.rand(1, 3, 8, 8), params)


def test_records_that_end_in_different_sizes_are_refused() -> None:
    records = [{"steps": [{"op": "bicubic", "size": [side, side]}]} for side in (4, 5)]
    with pytest.raises(ValueError, match="params: expected samples that end in one size"):
        replay(torch.rand(2, 3, 8, 8), records)


def test_a_configuration_of_ones_own_is_used(gt: Tensor) -> None:
    quiet = replace(PRESETS["bicubic"], name="mine", round_lq=False)
    out = degrade(gt, quiet, seeds=np.arange(4).tolist())
    assert out.params[0]["config"] == "mine"
    assert torch.allclose(out.lq, imresize(gt, 0.25).clamp(0, 1), atol=1e-6)
