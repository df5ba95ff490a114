"""Networks of AESOP against numbers of the official code: golden cases c01_ae and c02_nets, weights and inputs by formula."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from alignsr.core.networks.autoencoder import AutoEncoder, unshuffle_by_twos
from alignsr.core.networks.discriminators import UNetDiscriminatorSN, VGGDiscriminator
from alignsr.core.networks.rrdb import RRDBNet
from paths import REFERENCE
from reference.formula import S, U, converge_spectral_norm, formula_state_dict, load_formula_weights

GOLDEN = load_file(REFERENCE / "networks.safetensors")
FACTS = json.loads((REFERENCE / "networks.json").read_text(encoding="utf-8"))


def check(result: Tensor, key: str) -> None:
    """Hold a result to the golden array, of which every `every`-th row and column is kept, or to the golden scalar."""
    facts = FACTS[key]
    every = facts.get("every", 1)
    golden = GOLDEN[key] if key in GOLDEN else torch.tensor(facts["value"])
    gap = ((result[..., ::every, ::every] if every > 1 else result).detach().double() - golden.double()).abs()
    assert gap.shape == golden.shape
    assert gap.max() <= facts["atol"]
    assert gap.mean() <= facts.get("mean_atol", facts["atol"])


@pytest.mark.parametrize("scale", [4, 2, 1])
def test_rrdbnet_is_the_official_one(scale: int) -> None:
    network = RRDBNet(scale, blocks=2)
    load_formula_weights(network)
    side = 64 // scale
    with torch.no_grad():
        check(network(U(f"c02/rrdb_x{scale}", 1, 3, side, side)), f"c02_nets/rrdb_x{scale}")


def test_autoencoder_and_its_loss_gradient_are_the_official_ones() -> None:
    autoencoder = AutoEncoder(decoder_options={"blocks": 2})
    load_formula_weights(autoencoder)
    autoencoder.eval().requires_grad_(False)
    gt = U("c01/hr", 1, 3, 32, 32)
    check(autoencoder.encode(gt), "c01_ae/bottleneck")
    target = autoencoder(gt)
    check(target, "c01_ae/output")
    sr = (gt + 0.2 * S("c01/sr", 1, 3, 32, 32)).requires_grad_()
    loss = (autoencoder(sr) - target).abs().mean()
    check(loss, "c01_ae/loss")
    check(torch.autograd.grad(loss, sr)[0], "c01_ae/grad_sr")


def test_channel_order_is_that_of_two_unshuffles() -> None:
    """Check 5 of the specification: a single PixelUnshuffle(4) would take the weights and compute something else."""
    ramp = torch.arange(16.0).view(1, 1, 4, 4)
    assert unshuffle_by_twos(ramp, 4).flatten().int().tolist() == FACTS["c01_ae/unshuffle_order"]["value"]
    x = U("shuffle", 1, 4, 8, 8)
    assert unshuffle_by_twos(x, 4).shape == (1, 64, 2, 2)
    assert not torch.equal(unshuffle_by_twos(x, 4), torch.nn.functional.pixel_unshuffle(x, 4))
    assert unshuffle_by_twos(U("shuffle", 1, 16, 8, 8), 2).shape == (1, 64, 4, 4)


def test_unet_discriminator_is_the_official_one() -> None:
    network = UNetDiscriminatorSN(8)
    state = formula_state_dict(network.state_dict())
    x = U("c02/unet", 2, 3, 32, 32)
    network.load_state_dict(state)
    with torch.no_grad():
        check(network.train()(x), "c02_nets/unet_train_1")
    check(network.conv1.weight_u, "c02_nets/unet_train_1_conv1_u")
    converge_spectral_norm(state)
    network.load_state_dict(state)
    with torch.no_grad():
        check(network.eval()(x), "c02_nets/unet_eval")


def test_vgg_discriminator_is_the_official_one() -> None:
    network = VGGDiscriminator(128, 8)
    load_formula_weights(network)
    x = U("c02/vgg128", 2, 3, 128, 128).requires_grad_()
    logits = network.eval()(x)
    check(logits, "c02_nets/vgg128_eval")
    check(torch.autograd.grad(logits.sum(), x)[0][..., ::8, ::8], "c02_nets/vgg128_eval_grad_sub8")
    with torch.no_grad():
        check(network.train()(x), "c02_nets/vgg128_train_1")
    check(network.bn4_1.running_mean, "c02_nets/vgg128_train_1_bn4_1_mean")
    check(network.bn4_1.running_var, "c02_nets/vgg128_train_1_bn4_1_var")
