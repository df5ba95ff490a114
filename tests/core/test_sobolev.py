"""Sobolev norms: checks 1-8, 11, 12, 15, 16 and 18 of asasr.md 6.1, in float64 unless said."""

import importlib.util
import json
import math
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from alignsr.core.folded import can_fold
from alignsr.core.sobolev import BANDS, SobolevNorm, closed_form, logit_scale, sobolev_energy
from alignsr.core.spectral import dct2, dct_matrix, idct2
from paths import ROOT
from reference.formula import S

ORDERS = (0.5, 1.0, 1.5, 2.0)
TWO_PI = 2 * math.pi


def residuals(*shape: int, key: str = "sobolev/x", dtype: torch.dtype = torch.float64) -> Tensor:
    return S(key, *shape, dtype=dtype)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def dense(norm: SobolevNorm, size: tuple[int, int]) -> Tensor:
    """Sigma_s^{-1} as a matrix: D^T diag(w) D with D the Kronecker product of the two transforms."""
    both = torch.kron(*(dct_matrix(side, dtype=torch.float64) for side in size))
    return both.T @ torch.diag(norm.weights(size).flatten()) @ both


@pytest.mark.parametrize("size", [1, 2, 5, 16, 64, 128])
def test_transform_is_orthonormal(size: int) -> None:
    matrix = dct_matrix(size, dtype=torch.float64)
    assert torch.allclose(matrix @ matrix.T, torch.eye(size, dtype=torch.float64), atol=3e-14)


def test_transform_round_trip_and_parseval() -> None:
    x = residuals(2, 3, 12, 20)
    assert torch.allclose(idct2(dct2(x)), x, atol=1e-14)
    assert float(dct2(x).square().sum()) == pytest.approx(float(x.square().sum()), rel=1e-14)


@pytest.mark.parametrize("length", [1.0, TWO_PI, 64.0])
def test_order_zero_is_the_mean_square(length: float) -> None:
    x = residuals(3, 4, 8, 12)
    assert torch.equal(SobolevNorm(0.0, length).energy(x), x.square().flatten(1).mean(1))


def test_energy_is_continuous_at_order_zero() -> None:
    x = residuals(3, 4, 16, 16)
    flat = x.square().flatten(1).mean(1)
    assert ((sobolev_energy(x, 1e-6) - flat).abs() / flat).max() < 1e-4


@pytest.mark.parametrize("order", ORDERS)
def test_white_residuals_have_their_variance_as_energy(order: float) -> None:
    white = torch.randn(4000, 1, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert float(sobolev_energy(white, order, 16.0).mean()) == pytest.approx(1, abs=0.01)
    norm = SobolevNorm(order, 16.0)
    raw = norm.weights((16, 16))
    assert float((raw / norm.mean_weight((16, 16))).mean()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(("length", "largest", "mean"), [(TWO_PI, 90.3, 22.56), (64.0, 8.847e4, 1.992e4)])
def test_published_weights(length: float, largest: float, mean: float) -> None:
    norm = SobolevNorm(1.5, length)
    weights = norm.weights((64, 64))
    assert float(weights[0, 0]) == 1
    assert torch.equal(weights, weights.T)
    assert bool((weights.diff(dim=0) > 0).all()) and bool((weights.diff(dim=1) > 0).all())
    assert float(weights.max()) == pytest.approx(largest, rel=1e-3)
    assert norm.mean_weight((64, 64)) == pytest.approx(mean, rel=1e-3)


def test_weights_do_not_depend_on_the_resolution() -> None:
    norm = SobolevNorm(1.5, 64.0)
    assert torch.allclose(norm.weights((32, 48)), norm.weights((64, 96))[::2, ::2])


@pytest.mark.parametrize("order", [0.0, 1.5])
def test_gradient_is_the_filtered_euclidean_one(order: float) -> None:
    norm, x = SobolevNorm(order, 8.0), residuals(2, 3, 8, 8).requires_grad_()
    (gradient,) = torch.autograd.grad(norm.energy(x).sum(), x)
    weights = norm.weights((8, 8)) / norm.mean_weight((8, 8))
    assert torch.allclose(dct2(gradient), 2 / (3 * 64) * weights * dct2(x.detach()), rtol=1e-12, atol=1e-15)
    assert torch.autograd.gradcheck(norm.energy, (x,))


def test_energy_is_the_mahalanobis_distance() -> None:
    norm, x = SobolevNorm(1.5, 8.0), residuals(2, 1, 8, 8)
    flat = x.flatten(1)
    wanted = torch.einsum("bi,ij,bj->b", flat, dense(norm, (8, 8)), flat)
    assert torch.allclose(norm.squared_norm(x), wanted, rtol=2e-12)
    assert torch.allclose(norm.energy(x) * 64 * norm.mean_weight((8, 8)), wanted, rtol=2e-12)


def test_covariance_is_the_inverse_matrix() -> None:
    norm, x = SobolevNorm(1.5, 8.0), residuals(1, 1, 8, 8)
    wanted = torch.linalg.solve(dense(norm, (8, 8)), x.flatten())
    assert torch.allclose(norm.covariance(x).flatten(), wanted, rtol=1e-10, atol=1e-14)


def test_colored_noise_has_the_covariance() -> None:
    norm = SobolevNorm(1.5, TWO_PI)
    white = torch.randn(20_000, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    share = dct2(norm.colored(white)).var(0)[0] * norm.weights((8, 8))
    assert float((share - 1).abs().max()) < 0.05


def test_closed_form_is_the_best_direction_of_its_sphere() -> None:
    norm, radius = SobolevNorm(1.5, TWO_PI), 0.7
    g = normal(1, 1, 8, 8, seed=3)
    best = closed_form(g, radius, norm)
    value = float((g * best).sum())
    assert float(norm.squared_norm(best).sqrt()) == pytest.approx(radius, rel=1e-12)
    assert value == pytest.approx(-radius * float((g * norm.covariance(g)).sum().sqrt()), rel=1e-12)
    # Eq. (34) with the multiplier of (36)
    multiplier = float((g * norm.covariance(g)).sum().sqrt()) / radius
    applied = (dense(norm, (8, 8)) @ best.flatten()).reshape(best.shape)
    assert float((g + multiplier * applied).abs().max()) < 1e-12
    for tried in (normal(20_000, 1, 8, 8, seed=4), norm.colored(normal(20_000, 1, 8, 8, seed=5))):
        others = (g * norm.to_sphere(tried, radius)).flatten(1).sum(1)
        assert float(others.min()) > value
    near = norm.to_sphere(best + 1e-2 * normal(500, 1, 8, 8, seed=6), radius)
    assert float((g * near).flatten(1).sum(1).min()) >= value


def test_riesz_map() -> None:
    norm = SobolevNorm(1.5, TWO_PI)
    g, z = normal(3, 2, 8, 12, seed=7), normal(3, 2, 8, 12, seed=8)
    assert torch.allclose((g * z).flatten(1).sum(1), norm.inner(norm.covariance(g), z), rtol=1e-11)
    assert torch.allclose(norm.cosine(g, g), torch.ones(3, dtype=torch.float64))


def test_closed_form_of_no_gradient_is_nothing() -> None:
    assert torch.equal(closed_form(torch.zeros(2, 1, 4, 4), 0.5, SobolevNorm()), torch.zeros(2, 1, 4, 4))


def test_packed_latents_would_excuse_the_worst_artefact() -> None:
    sign = (-1.0) ** (torch.arange(64)[:, None] + torch.arange(64)[None])
    board = sign.double()[None, None]
    packed = F.pixel_unshuffle(board, 2)
    assert torch.equal(F.pixel_shuffle(packed, 2), board)
    norm = SobolevNorm(1.5, TWO_PI)
    ratios = [float(norm.energy(x) / x.square().mean()) for x in (board, packed)]
    assert ratios[0] == pytest.approx(3.80, abs=0.01)
    assert ratios[1] == pytest.approx(0.046, abs=0.001)


@pytest.mark.parametrize(("size", "least"), [(16, 20), (32, 80)])
def test_the_dct_sees_no_edge_in_a_ramp(size: int, least: float) -> None:
    ramp = torch.linspace(-1, 1, size, dtype=torch.float64).expand(1, 1, size, size)
    norm = SobolevNorm(1.5, float(size))
    frequency = torch.fft.fftfreq(size, dtype=torch.float64)
    weights = (1 + size**2 * (frequency.square()[:, None] + frequency.square()[None])) ** 1.5
    periodic = (weights * torch.fft.fft2(ramp, norm="ortho").abs().square()).sum()
    assert float(periodic / norm.squared_norm(ramp)) > least


def test_half_precision_is_widened_before_the_transform() -> None:
    x = residuals(2, 4, 32, 32)
    wanted = sobolev_energy(x)
    assert torch.allclose(sobolev_energy(x.float()).double(), wanted, rtol=1e-6)
    given = x.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        found = sobolev_energy(given)
        assert dct2(given).dtype == torch.float32
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), sobolev_energy(given.double()), rtol=1e-4)
    assert ((found.double() - wanted).abs() / wanted).max() < 1e-3
    for dtype in (torch.bfloat16, torch.float16):
        with pytest.raises(ValueError, match=r"dtype: expected float32 or float64, got .*float16; widen"):
            dct_matrix(8, dtype=dtype)


def test_what_a_preview_has_made_can_be_trained_with() -> None:
    norm = SobolevNorm(1.25, 11.0)
    with torch.inference_mode():
        norm.energy(torch.ones(1, 1, 11, 13))
        norm.band_energies(torch.ones(1, 1, 11, 13))
    x = torch.ones(1, 1, 11, 13, requires_grad=True)
    (norm.energy(x) + norm.band_energies(x).sum(1)).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("size", [(32, 32), (34, 48), (64, 64)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_way_of_processors_gives_the_same_energy_and_gradient(size: tuple[int, int], dtype: torch.dtype) -> None:
    """Half the multiplications on even grids of 32 and more; beside the transform as it is written."""
    x, norm = residuals(3, 2, *size).requires_grad_(), SobolevNorm(1.5, 16.0)
    weights = norm.weights(size)
    plain = (weights / weights.mean() * dct2(x).square()).flatten(1).mean(1)
    leaf = x.detach().to(dtype).requires_grad_()
    assert can_fold(leaf)
    with torch.no_grad():
        still = norm.energy(leaf)
    found = norm.energy(leaf)
    assert torch.equal(found, still), "a reference without graph and a policy with one are equal bit for bit"
    tolerance = {torch.float64: 1e-13, torch.float32: 1e-6}[dtype]
    assert torch.allclose(found.double(), plain, rtol=tolerance)
    share = torch.tensor([1.0, -2.0, 0.0], dtype=torch.float64)
    (wanted,), (gradient,) = torch.autograd.grad(plain @ share, x), torch.autograd.grad(found.double() @ share, leaf)
    assert torch.allclose(gradient.double(), wanted, rtol=0, atol=tolerance * float(wanted.abs().max()))
    alone = torch.cat([norm.energy(leaf[n : n + 1]) for n in range(3)])
    assert torch.allclose(alone, found, rtol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        cast = norm.energy(leaf)
        cast.sum().backward()
    assert torch.equal(cast, found)


def test_an_energy_made_by_a_preview_can_be_trained_with_on_large_grids() -> None:
    norm = SobolevNorm(1.25, 13.0)
    with torch.inference_mode():
        norm.energy(torch.ones(1, 1, 36, 38))
    x = torch.ones(1, 1, 36, 38, requires_grad=True)
    norm.energy(x).sum().backward()
    assert x.grad is not None


def test_bands_add_up_to_the_energy() -> None:
    norm, x = SobolevNorm(1.5, 16.0), residuals(3, 2, 16, 24)
    bands = norm.band_energies(x)
    assert bands.shape == (3, len(BANDS))
    assert torch.allclose(bands.sum(1), norm.energy(x), rtol=1e-12)
    sign = ((-1.0) ** torch.arange(16)).expand(16, 16)[None, None].double()
    low, mid, high = norm.band_energies(sign)[0].tolist()
    assert high > 0.99 * (low + mid + high)
    assert norm.band_energies(torch.ones(1, 1, 16, 16))[0, 1:].abs().max() < 1e-9


def test_raw_scale_is_the_normalised_one_times_the_mean_weight() -> None:
    norm = SobolevNorm(1.5, TWO_PI)
    assert logit_scale(2000.0, norm, (64, 64)) == 2000
    assert logit_scale(2000.0, norm, (64, 64), raw=True) == pytest.approx(2000 * 22.56, rel=1e-3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SobolevNorm(-0.5), "order: expected s of at least 0, got -0.5"),
        (lambda: SobolevNorm(math.nan), "order: expected s of at least 0, got nan"),
        (lambda: SobolevNorm(1.5, 0.0), "length_scale: expected L above 0"),
        (lambda: logit_scale(0.0, SobolevNorm(), (4, 4)), "beta: expected a number above 0, got 0.0"),
        (lambda: logit_scale(-1.0, SobolevNorm(), (4, 4)), "beta: expected a number above 0, got -1.0"),
        (lambda: sobolev_energy(torch.ones(2, 1024, 64)), r"x: expected latents \[B, C, h, w\] float.*unpack tokens"),
        (lambda: sobolev_energy(torch.ones(1, 1, 4, 4, dtype=torch.int64)), "x: expected latents"),
    ],
)
def test_bad_numbers_are_named(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # pyright: ignore[reportCallIssue]


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sobolev_benchmark", ROOT / "benchmarks" / "sobolev.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("size", [(8, 8), (7, 12), (12, 9), (64, 32)])
def test_transforms_that_the_benchmark_compares_with(benchmark: ModuleType, size: tuple[int, int]) -> None:
    x = residuals(2, 3, *size)
    for transform in (benchmark.dct_by_axis, benchmark.dct_at_once):
        assert torch.allclose(transform(x.float()).double(), dct2(x), atol=1e-5)


def test_the_benchmark_compares_like_with_like(benchmark: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    try:
        assert benchmark.main(["--shapes", "2x3x32x48", "--rounds", "3", "--json", str(tmp_path / "r.json")]) == 0
    finally:
        torch.set_num_threads(threads)
    said, found = capsys.readouterr().out, json.loads((tmp_path / "r.json").read_text())
    rows = found["shapes"]["2x3x32x48"]
    for row in (rows[name] for name in (benchmark.BY_AXIS, benchmark.AT_ONCE)):
        assert row["value_gap"] < 1e-6 and row["gradient_gap"] < 1e-6 and row["ratio"] > 0
    assert "by rfft (target 1.5)" in said and "of the time not measured (no GPU)" in said
    assert 0 < found["step"]["flops"] < 1e-5
