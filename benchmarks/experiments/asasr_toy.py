"""The synthetic world of asasr_synthetic.py: pictures, their degradation, artefacts, the network, and how a result is measured.

The set-up of the ASASR specification (asasr.md 6.2): one-channel pictures of 16 x 16, a conditional U-Net of 151,585 parameters,
sampling in 16 Euler steps. What that section leaves open (amplitudes, blur, artefacts) is chosen here so that the errors of the
supervised model and of the adversary are about those of section 6.3.
"""

import copy
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from alignsr.core.backbones.base import BackboneSpec, parameter_count
from alignsr.core.diffusion import FlowProcess
from alignsr.core.images import from_model_range
from alignsr.core.metrics import psnr
from alignsr.core.records import Conditioning
from alignsr.core.sampling import draw_noise, sample, seeded
from alignsr.core.spectral import dct2, log_spectral_distance
from alignsr.core.weights import load_into, load_state_dict, save_weights

SIZE = 16
HELD_OUT = 256
STEPS = 16
_FIELD_STD, _NOISE_STD, _BLUR_STD = 0.1, 0.05, 0.5
_SLOWEST, _FASTEST, _FAINTEST, _TEXTURE = 1.5, 5.5, 0.5, 1.2


def pictures(count: int, generator: Generator) -> Tensor:
    """Random fields of amplitude (1 + k)^-1.2 with a patch of an oriented wave: [count, 1, 16, 16], about [-1, 1]."""
    k = torch.fft.fftfreq(SIZE) * SIZE
    amplitude = (1 + torch.hypot(k[:, None], k[None])) ** -1.2
    # of white noise with deviation 1 the field has deviation sqrt(mean amplitude^2)
    white = torch.randn(count, 1, SIZE, SIZE, generator=generator)
    field = torch.fft.ifft2(torch.fft.fft2(white) * amplitude).real / amplitude.square().mean().sqrt()

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, 1, 1, generator=generator)

    rows, columns = torch.arange(SIZE)[:, None], torch.arange(SIZE)[None]
    angle, frequency, phase = uniform(0, math.pi), uniform(_SLOWEST, _FASTEST) / SIZE, uniform(0, 2 * math.pi)
    wave = torch.cos(2 * math.pi * frequency * (rows * angle.sin() + columns * angle.cos()) + phase)
    top, left, radius = uniform(0, SIZE), uniform(0, SIZE), SIZE * uniform(0.15, 0.35)
    mask = torch.exp(-((rows - top) ** 2 + (columns - left) ** 2) / (2 * radius**2))
    return _FIELD_STD * field + uniform(_FAINTEST, _TEXTURE) * mask * wave


def blur(x: Tensor, std: float) -> Tensor:
    """Gaussian of 7 taps per axis, borders repeated."""
    taps = torch.exp(-(torch.arange(-3, 4) ** 2) / (2 * std**2))
    kernel = (taps / taps.sum()).reshape(1, 1, 1, 7)
    return F.conv2d(F.conv2d(F.pad(x, (3, 3, 3, 3), mode="replicate"), kernel), kernel.mT)


def degrade(gt: Tensor, generator: Generator) -> Tensor:
    """Blur, 2 x 2 means, noise of deviation 0.05, and back to the old size by linear interpolation."""
    small = F.avg_pool2d(blur(gt, _BLUR_STD), 2)
    small = small + _NOISE_STD * torch.randn(small.shape, generator=generator)
    return F.interpolate(small, scale_factor=2.0, mode="bilinear", align_corners=False)


def artefacts(gt: Tensor) -> Tensor:
    """What the adversary imitates: of each three pictures one is blurred, one sharpened too much, one rings as a checkerboard."""
    detail = gt - blur(gt, 1.5)
    sign = (-1.0) ** (torch.arange(SIZE)[:, None] + torch.arange(SIZE)[None])
    results = (gt - detail, gt + detail, gt + sign * detail.abs())
    kind = torch.arange(gt.shape[0]) % len(results)
    return torch.stack(results)[kind, torch.arange(gt.shape[0])]


class Block(nn.Module):
    """Two convolutions with group norms and the time added between them, beside a shortcut."""

    def __init__(self, channels_in: int, channels_out: int, time_width: int) -> None:
        super().__init__()
        self.norm_in, self.norm_out = nn.GroupNorm(8, channels_in), nn.GroupNorm(8, channels_out)
        self.conv_in = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.conv_out = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.time = nn.Linear(time_width, channels_out)
        self.shortcut = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        hidden = self.conv_in(F.silu(self.norm_in(x))) + self.time(time)[:, :, None, None]
        return self.shortcut(x) + self.conv_out(F.silu(self.norm_out(hidden)))


class UNet(nn.Module):
    """Velocity from the noisy picture and the enlarged input as channels; one level down. 151,585 parameters for two channels."""

    def __init__(self, channels_in: int = 2, width: int = 32, time_width: int = 64) -> None:
        super().__init__()
        self.time_width = time_width
        self.time = nn.Sequential(nn.Linear(time_width, time_width), nn.SiLU(), nn.Linear(time_width, time_width))
        self.stem = nn.Conv2d(channels_in, width, 3, padding=1)
        self.top_in = Block(width, width, time_width)
        self.down = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.bottom = Block(width, 2 * width, time_width)
        self.up = nn.Conv2d(2 * width, width, 3, padding=1)
        self.top_out = Block(2 * width, width, time_width)
        self.head = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        half = self.time_width // 2
        angles = 1000 * sigma[:, None] * torch.exp(-math.log(10_000) / half * torch.arange(half))
        time = self.time(torch.cat((angles.cos(), angles.sin()), 1))
        top = self.top_in(self.stem(x), time)
        bottom = self.bottom(self.down(top), time)
        up = self.up(F.interpolate(bottom, scale_factor=2.0, mode="nearest"))
        return self.head(self.top_out(torch.cat((top, up), 1), time))


class ToyBackbone:
    """The `MultiStepBackbone` protocol over a `UNet`; the latent is the picture."""

    def __init__(self, network: UNet) -> None:
        self.network, self.process = network, FlowProcess()
        self.spec = BackboneSpec(
            name="toy",
            kind="flow",
            scale=None,
            size_multiple=2,
            tile_px=SIZE,
            overlap_px=0,
            start_sigma=None,
            latent_channels=1,
            latent_stride=1,
            conditioning_dim=0,
            bytes_per_pixel=4096,
            parameters=parameter_count(network),
            licence="Apache-2.0",
        )

    def modules(self) -> Iterator[tuple[str, nn.Module]]:
        yield "network", self.network

    def encode(self, image: Tensor, *, generator: Generator | None = None) -> Tensor:
        del generator
        return image

    encode_lq = encode

    def predict(self, z: Tensor, time: Tensor, z_lq: Tensor, conditioning: Conditioning | None = None) -> Tensor:
        del conditioning
        return self.network(torch.cat((z, z_lq), 1), time)

    def decode(self, z: Tensor) -> Tensor:
        return z


def flow_loss(backbone: ToyBackbone, clean: Tensor, z_lq: Tensor, generator: Generator) -> Tensor:
    """Conditional flow matching, Eq. (2): mean squared velocity error, [B]."""
    process = backbone.process
    noise = torch.randn(clean.shape, generator=generator)
    time = process.draw_times(clean.shape[0], generator=generator)
    found = backbone.predict(process.add_noise(clean, noise, time), time, z_lq)
    return (found - process.target(clean, noise)).square().flatten(1).mean(1)


def trained(
    network: UNet,
    path: Path,
    steps: int,
    loss: Callable[[int], Tensor],
    rate: Callable[[int], float],
    max_grad_norm: float = math.inf,
) -> UNet:
    """`network` after `steps` AdamW steps on `loss(step)`, from `path` if an earlier call has finished there; frozen.

    Preferences are trained without clipping: 6.2 names none, and it makes all steps alike, whether pairs are satisfied or not.

    Raises:
        FloatingPointError: a loss is NaN or infinite.
    """
    if path.exists():
        load_into(network, load_state_dict(path), str(path))
    else:
        optimizer = torch.optim.AdamW(network.parameters(), lr=0.0, weight_decay=0.0)
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = rate(step)
            value = loss(step)
            if not bool(torch.isfinite(value)):
                raise FloatingPointError(f"{path.stem}: the loss of step {step + 1} is {float(value)}; lower the rate")
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            nn.utils.clip_grad_norm_(network.parameters(), max_grad_norm)
            optimizer.step()
        save_weights(path, network.state_dict(), {"steps": steps})
    return network.eval().requires_grad_(False)


def one_cycle(peak: float, steps: int) -> Callable[[int], float]:
    """Up to `peak` over the first three tenths and down to nothing, both along a cosine."""
    top = max(1, round(0.3 * steps))

    def rate(step: int) -> float:
        share = step / top if step < top else 1 - (step - top) / max(1, steps - top)
        return peak * (0.5 - 0.5 * math.cos(math.pi * (0.04 + 0.96 * share)))

    return rate


class HeldOut:
    """Pictures that no training sees, with their inputs and the noise that sampling starts from, the same for every model."""

    def __init__(self, count: int = HELD_OUT) -> None:
        generator = Generator().manual_seed(2**31)
        self.gt = pictures(count, generator)
        self.lq = degrade(self.gt, generator)
        self.noise = draw_noise((1, SIZE, SIZE), seeded(range(count)))
        k = torch.arange(SIZE)
        radius = torch.maximum(k[:, None], k[None])
        self.bands = {"low": radius < 4, "mid": (radius >= 4) & (radius < 8), "high": radius >= 8}

    @torch.inference_mode()
    def sampled(self, network: UNet) -> Tensor:
        return sample(ToyBackbone(network), self.lq, noise=self.noise, steps=STEPS, sampler="euler")

    def measure(self, sr: Tensor) -> dict[str, float]:
        """Squared error per band of the DCT (their sum is the mean squared error), PSNR, LSD, share of the high band's energy."""
        power = dct2(sr - self.gt).square().mean((0, 1))
        errors = {name: float(power[band].sum()) / SIZE**2 for name, band in self.bands.items()}
        ours, theirs = (dct2(x).square().mean((0, 1))[self.bands["high"]].sum() for x in (sr, self.gt))
        as_images = [from_model_range(x).clamp(0, 1) for x in (sr, self.gt)]
        return {
            **errors,
            "psnr": float(psnr(*as_images, crop=0, channel="rgb", quantize=False).mean()),
            "lsd": float(log_spectral_distance(*as_images).mean()),
            "detail": float(ours / theirs),
        }


BATCH = 32
SFT_STEPS, ADVERSARY_STEPS = 3000, 600


def stream(seed: int, purpose: int) -> Generator:
    """Random numbers of one training: `purpose` tells those of one seed apart."""
    return Generator().manual_seed(1000 * seed + purpose)


def supervised(folder: Path, seed: int, shorter: int = 1) -> UNet:
    """The reference: flow matching from random weights, one-cycle rate up to 2e-3."""
    torch.manual_seed(seed)
    network, generator, steps = UNet(), stream(seed, 1), SFT_STEPS // shorter
    backbone = ToyBackbone(network)

    def loss(step: int) -> Tensor:
        del step
        gt = pictures(BATCH, generator)
        return flow_loss(backbone, gt, degrade(gt, generator), generator).mean()

    return trained(network, folder / f"sft-{seed}.safetensors", steps, loss, one_cycle(2e-3, steps), 1.0)


def adversary(reference: UNet, folder: Path, seed: int, shorter: int = 1) -> UNet:
    """Goes on from the reference, with every weight, to what `artefacts` makes of the pictures; rate 1e-3."""
    network, generator = clone(reference), stream(seed, 2)
    backbone = ToyBackbone(network)

    def loss(step: int) -> Tensor:
        del step
        gt = pictures(BATCH, generator)
        return flow_loss(backbone, artefacts(gt), degrade(gt, generator), generator).mean()

    return trained(network, folder / f"adversary-{seed}.safetensors", ADVERSARY_STEPS // shorter, loss, lambda _: 1e-3, 1.0)


def clone(network: UNet) -> UNet:
    """A trainable copy."""
    return copy.deepcopy(network).train().requires_grad_(True)
