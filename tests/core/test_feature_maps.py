"""Sources of feature maps for the FDL and the critic: shapes, freezing, and what each is sensitive to."""

import pytest
import torch
from pass_helpers import counted_passes
from torch import Tensor

from alignsr.core.losses.frequency import FDL_CHANNELS, fdl_loss, make_projections
from alignsr.core.losses.relativistic import ragan_critic_loss
from alignsr.core.networks.autoencoder import build_autoencoder
from alignsr.core.networks.clip_critic import ClipCritic
from alignsr.core.networks.feature_maps import EncoderMaps, LiteMaps, VGGMaps, critic_on, open_features, set_checkpointing
from alignsr.core.weights import MissingModelError, WeightsError
from reference.formula import S, U

SOURCES = {"vgg19": "random", "clip": "random", "network": "lite-x4", "encoder": "autoencoder-tiny-x4"}


def source(name: str) -> VGGMaps | LiteMaps | EncoderMaps:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return open_features("network" if name == "encoder" else name, SOURCES[name])  # pyright: ignore[reportReturnType]


def image(side: int = 128) -> Tensor:
    return U("maps", 1, 3, side, side)


@pytest.mark.parametrize("name", SOURCES)
def test_maps_have_the_channels_they_say_and_are_frozen(name: str) -> None:
    maps = source(name)
    x = image().requires_grad_()
    found = maps(x)
    assert tuple(level.shape[1] for level in found) == maps.channels
    assert not any(parameter.requires_grad for parameter in maps.parameters())
    assert not any(module.training for module in maps.modules())
    sum(level.square().mean() for level in found).backward()  # pyright: ignore[reportAttributeAccessIssue]
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    assert float(x.grad.abs().max()) > 0


def test_vgg_maps_are_the_levels_of_the_published_loss() -> None:
    maps = source("vgg19")
    assert maps.channels == FDL_CHANNELS
    found = maps(image(96))
    assert [level.shape[-1] for level in found] == [96, 48, 24, 12, 6]
    assert all(bool((level >= 0).all()) for level in found)


@pytest.mark.parametrize("name", SOURCES)
def test_a_critic_on_any_source_has_trainable_heads_only_and_can_learn(name: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        critic = critic_on(source(name), hidden=16)  # pyright: ignore[reportArgumentType]
    real, fake = image(), (image() + 0.1 * S("maps/fake", 1, 3, 128, 128)).clamp(0, 1)
    logits = critic(real)
    assert len(logits) == len(critic.heads.maps) + 1
    assert logits[-1].shape == (1, 1)
    assert {n for n, p in critic.named_parameters() if p.requires_grad} == {
        f"heads.{n}" for n, _ in critic.heads.named_parameters()
    }
    assert set(critic.trainable_state()) == set(critic.heads.state_dict())
    with torch.no_grad():
        features = critic.features(real), critic.features(fake)
    values: list[float] = []
    optimizer = torch.optim.Adam(critic.heads.parameters(), 2e-3)
    for _ in range(12):
        critic.iterate_power()
        loss = ragan_critic_loss(critic.heads(features[1]), critic.heads(features[0]), reference="paired").mean()
        values.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert values[-1] < values[0]


def test_power_iterations_happen_when_asked_and_not_in_passes() -> None:
    critic = critic_on(source("network"), hidden=8)  # pyright: ignore[reportArgumentType]
    vectors = [buffer.clone() for buffer in critic.heads.buffers()]
    with torch.no_grad():  # weights that have moved since the last iteration
        for parameter in critic.heads.parameters():
            parameter.add_(0.3 * S("maps/heads", parameter.numel()).view_as(parameter))
    critic.iterate_power()
    moved = [buffer.clone() for buffer in critic.heads.buffers()]
    assert any(not torch.equal(a, b) for a, b in zip(vectors, moved, strict=True))
    critic(image(64))
    assert all(torch.equal(a, b) for a, b in zip(moved, critic.heads.buffers(), strict=True))
    assert not critic.heads.training


def test_checkpointing_runs_blocks_again_and_changes_no_gradient() -> None:
    critic = critic_on(source("clip"), hidden=8)  # pyright: ignore[reportArgumentType]
    critic.iterate_power()
    grads: list[Tensor] = []
    passes: list[int] = []
    for _ in range(2):
        x = image().requires_grad_()
        with counted_passes() as calls:
            sum(level.mean() for level in critic(x)).backward()  # pyright: ignore[reportAttributeAccessIssue]
        assert x.grad is not None
        grads.append(x.grad)
        passes.append(calls["ConvNeXtBlock"])
        set_checkpointing(critic)
    assert torch.allclose(*grads, atol=1e-7)
    assert passes[1] == 2 * passes[0] > 0
    assert isinstance(critic, ClipCritic)


@pytest.mark.parametrize("name", ["network", "encoder"])
def test_our_networks_feel_a_grid_through_the_fdl(name: str) -> None:
    """What section 5's experiment relies on: a period-16 grid costs something and more of it costs more."""
    maps = source(name)
    filters = make_projections(maps.channels, 8, generator=torch.Generator().manual_seed(0))
    gt = image(64) * 0.5 + 0.25
    grid = torch.zeros(64)
    grid[::16] = 1
    pattern = (grid[:, None] + grid[None]).clamp(max=1)
    values = [float(fdl_loss(gt + amount * pattern, gt, maps, filters)) for amount in (0.0, 0.02, 0.05, 0.1)]
    assert values[0] == 0
    assert values == sorted(values)
    assert values[-1] > values[1] > 0


def test_what_cannot_be_a_source_is_named() -> None:
    with pytest.raises(ValueError, match="kind: expected one of vgg19, clip, network"):
        open_features("vgg")
    with pytest.raises(MissingModelError, match="nowhere"):
        open_features("network", "nowhere")
    with pytest.raises(WeightsError, match="expected a lite network or an auto-encoder with a header, got pixel"):
        open_features("network", "pixel-x4")
    with pytest.raises(ValueError, match="got a bicubic one"):
        EncoderMaps(build_autoencoder({"encoder": "bicubic", "decoder": "lite", "decoder_options": {"features": 8, "blocks": 1}}))
