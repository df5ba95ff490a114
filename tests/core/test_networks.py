"""AESOP's networks: sizes, counts, errors, precision, memory layout, checkpointing, statistics over processes."""

import copy
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alignsr.core.networks import NETWORKS, build_network, stochastic_depth
from alignsr.core.networks.autoencoder import AutoEncoder, build_autoencoder, start_as_average
from alignsr.core.networks.discriminators import DISCRIMINATORS, UNetDiscriminatorSN, VGGDiscriminator, build_discriminator
from alignsr.core.networks.normalization import BatchNorm2d, SpectralConv2d
from alignsr.core.networks.rrdb import RRDBNet
from alignsr.core.networks.srresnet import MSRResNet
from alignsr.core.networks.stochastic_depth import StochasticDepth
from alignsr.core.resize import imresize
from reference.formula import S, U, load_formula_weights

TRANSFORMER = {"embed_dim": 12, "depths": [2, 2], "num_heads": [2, 2], "img_size": 16, "window_size": 4}
TINY = {
    "lite": {"features": 8, "blocks": 1},
    "rrdb": {"features": 8, "growth": 4, "blocks": 2},
    "srresnet": {"features": 8, "blocks": 2},
    "swinir": TRANSFORMER,
    "drct": TRANSFORMER | {"growth": 4},
}
SMALL_DECODER = {"features": 8, "growth": 4, "blocks": 1}


def tiny(name: str, scale: int = 4, **more: object) -> nn.Module:
    torch.manual_seed(0)
    return build_network(name, {"scale": scale, **TINY[name], **more})


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# counts of the specification, sections 3.1-3.5 (checks 7 and 12)


@pytest.mark.parametrize(
    ("make", "count", "entries"),
    [
        (RRDBNet, 16_697_987, 702),
        (lambda: MSRResNet(), 1_517_571, None),
        (AutoEncoder, 18_175_754, 770),
        (lambda: VGGDiscriminator(128), 14_499_401, None),
        (lambda: VGGDiscriminator(192), 15_523_401, None),
        (lambda: VGGDiscriminator(256), 21_055_049, None),
        (UNetDiscriminatorSN, 4_376_897, None),
        (NETWORKS["swinir"], 11_900_199, 550),
        (NETWORKS["drct"], 14_139_579, 508),
    ],
    ids=["rrdb", "srresnet", "autoencoder", "vgg128", "vgg192", "vgg256", "unet", "swinir", "drct"],
)
def test_parameter_counts_are_those_of_the_specification(make, count, entries):
    with torch.device("meta"):
        network = make()
    assert parameters(network) == count
    assert entries is None or len(network.state_dict()) == entries


def test_encoder_has_its_share():
    with torch.device("meta"):
        autoencoder = AutoEncoder()
        light = AutoEncoder(decoder="srresnet")
    assert parameters(autoencoder) - parameters(autoencoder.decoder) == 1_477_767
    assert parameters(light.decoder) == 1_517_571
    assert parameters(AutoEncoder(encoder="bicubic", decoder_options=SMALL_DECODER)) == parameters(RRDBNet(**SMALL_DECODER))


# super-resolution networks: properties of every entry of the table


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_enlarges_trains_and_is_copied(name):
    network = tiny(name)
    assert (network.scale, network.size_multiple) == (4, 1)
    lq = U("networks/lq", 2, 3, 9, 14)
    sr = network(lq)
    assert sr.shape == (2, 3, 36, 56)
    sr.square().mean().backward()
    grads = [parameter.grad for parameter in network.parameters()]
    assert all(grad is not None and bool(grad.isfinite().all()) for grad in grads)
    network.eval()
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(network)(lq), network(lq))
        assert torch.allclose(network(lq)[:1], network(lq[:1]), atol=1e-6)  # samples do not see one another


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_runs_in_bf16_and_channels_last(name):
    network = tiny(name).eval()
    lq = U("networks/lq", 1, 3, 9, 14)
    with torch.no_grad():
        reference = network(lq)
        with torch.autocast("cpu", torch.bfloat16):
            assert (network(lq).float() - reference).abs().max() < 0.05
        last = copy.deepcopy(network).to(memory_format=torch.channels_last)
        assert torch.allclose(last(lq.to(memory_format=torch.channels_last)), reference, atol=1e-5)
        half = copy.deepcopy(network).to(torch.bfloat16)(lq.bfloat16())
    assert half.dtype == torch.bfloat16
    assert (half.float() - reference).abs().max() < 0.05


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_refuses_what_it_cannot_take(name):
    with pytest.raises(ValueError, match="looks channels-last"):
        tiny(name)(torch.rand(1, 8, 8, 3))
    with pytest.raises(ValueError, match="scale: expected"):
        tiny(name, scale=9)
    with pytest.raises(ValueError, match=f"options: {name} does not take them"):
        tiny(name, colour="blue")


def test_unknown_network_gets_a_suggestion():
    with pytest.raises(ValueError, match="did you mean 'rrdb'"):
        build_network("rrdbnet", {})


@pytest.mark.parametrize(("scale", "multiple"), [(1, 4), (2, 2), (4, 1)])
def test_rrdbnet_folds_its_input_for_small_scales(scale, multiple):
    network = tiny("rrdb", scale)
    assert network.size_multiple == multiple
    assert network.conv_first.weight.shape[1] == 3 * multiple**2
    assert network(torch.rand(1, 3, 8, 12)).shape == (1, 3, 8 * scale, 12 * scale)
    if multiple > 1:
        with pytest.raises(ValueError, match=f"lq: expected sides that are multiples of {multiple}"):
            network(torch.rand(1, 3, 8, 9))


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_srresnet_starts_near_interpolation(scale):
    network = MSRResNet(scale)
    lq = U("networks/lq", 1, 3, 6, 7)
    plain = F.interpolate(lq, scale_factor=scale, mode="bilinear", align_corners=False)
    assert (network(lq) - plain).abs().mean() < 0.02


@pytest.mark.parametrize("name", ["rrdb", "swinir", "drct"])
def test_checkpointed_blocks_give_the_same_gradient(name):
    lq = U("networks/lq", 1, 3, 8, 8)
    grads: list[list[Tensor]] = []
    for keep in (False, True):
        network = tiny(name, checkpoint_blocks=keep)
        torch.manual_seed(3)  # of the stochastic depth
        network(lq).square().mean().backward()
        grads.append([parameter.grad for parameter in network.parameters()])
        assert list(network.state_dict()) == list(tiny(name).state_dict())
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_checkpointed_blocks_keep_less():
    def kept(checkpointed: bool) -> int:
        network, total = tiny("rrdb", blocks=4, checkpoint_blocks=checkpointed), 0

        def pack(x: Tensor) -> Tensor:
            nonlocal total
            total += x.numel()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            network(U("networks/lq", 1, 3, 16, 16))
        return total

    assert kept(True) < 0.5 * kept(False)


@pytest.mark.parametrize("name", ["swinir", "drct"])
def test_stochastic_depth_is_on_in_training_only(name):
    network = tiny(name, drop_path_rate=0.5)
    lq = U("networks/lq", 1, 3, 8, 8)
    torch.manual_seed(0)
    with torch.no_grad():
        trained = [network.train()(lq) for _ in range(4)]
        assert any(not torch.equal(trained[0], other) for other in trained[1:])
        network.eval()
        assert torch.equal(network(lq), network(lq))


def rates(network: nn.Module) -> list[float]:
    return [module.rate for module in network.modules() if isinstance(module, StochasticDepth)]


def test_rates_of_stochastic_depth_rise_to_a_tenth():
    """Specification 3.5: SwinIR per block; DRCT per group, the first of its six, for its five blocks; 0 has no layer."""
    line = torch.linspace(0, 0.1, 36).tolist()
    with torch.device("meta"):
        blocks, groups = (rates(NETWORKS[name]()) for name in ("swinir", "drct"))
    assert blocks == pytest.approx(line[1:])
    assert groups == pytest.approx([line[6 * group] for group in range(1, 6) for _ in range(5)])


@pytest.mark.parametrize("name", ["swinir", "drct"])
@pytest.mark.parametrize("checkpoint_blocks", [False, True])
def test_two_processes_leave_out_what_one_with_all_samples_does(name, checkpoint_blocks, monkeypatch):
    """Their generators start alike; here one process plays both."""
    network = tiny(name, drop_path_rate=0.5, depths=[4, 4], checkpoint_blocks=checkpoint_blocks).train()
    with torch.no_grad():
        for weight in network.parameters():
            weight *= 8 if weight.ndim == 2 else 1  # branches that weigh something: they start near nothing
    lq = U("networks/lq", 4, 3, 8, 8)

    def trained(part: Tensor) -> tuple[Tensor, Tensor]:
        torch.manual_seed(1)
        network.zero_grad()
        result = network(part)
        result.square().sum().backward()
        return result.detach(), torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])

    whole, gradient = trained(lq)
    monkeypatch.setattr(stochastic_depth, "world_size", lambda: 2)
    halves = []
    for rank in range(2):
        monkeypatch.setattr(stochastic_depth, "process_index", lambda rank=rank: rank)
        halves.append(trained(lq[2 * rank : 2 * rank + 2]))
    assert torch.allclose(torch.cat([half for half, _ in halves]), whole, atol=1e-5)
    assert (halves[0][1] + halves[1][1] - gradient).norm() < 1e-5 * gradient.norm()
    monkeypatch.setattr(stochastic_depth, "process_index", lambda: 0)
    assert not torch.allclose(trained(lq[2:])[0], whole[2:], atol=1e-2), "the draws of the other half"


def test_stochastic_depth_by_hand():
    layer = StochasticDepth(0.25)
    x = torch.ones(4000, 2, 3)
    torch.manual_seed(0)
    out = layer(x)
    assert out.unique().tolist() == pytest.approx([0, 4 / 3])
    assert torch.equal(out.amin((1, 2)), out.amax((1, 2))), "a sample is left out as a whole"
    assert out.mean().item() == pytest.approx(1, abs=0.03)
    assert torch.equal(layer.eval()(x), x)
    with pytest.raises(ValueError, match="rate: expected at least 0 and below 1, got 1"):
        StochasticDepth(1.0)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("swinir", {"num_heads": [2, 5]}, r"num_heads: expected head counts that divide the blocks' widths \[12\], got 5"),
        ("drct", {"growth": 5, "num_heads": [4, 4]}, r"num_heads: expected head counts that divide .*\[12, 17, 22, 27, 32\]"),
        ("swinir", {"img_size": 18}, "img_size: expected a multiple of window_size 4, got 18"),
        ("drct", {"num_heads": [2]}, "num_heads: expected one entry per group, 2 as in depths, got 1"),
        ("swinir", {"window_size": 0}, "window_size: expected an integer >= 1, got 0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_when_building(name, options, message):
    with pytest.raises(ValueError, match=message):
        tiny(name, **options)


# auto-encoder


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("decoder", ["rrdb", "srresnet"])
@pytest.mark.parametrize("encoder", ["learned", "bicubic"])
def test_autoencoder_shapes(scale, decoder, encoder):
    """Check 4 and 5: the bottleneck is an RGB image of LR size, the result has the input's size."""
    options = {"features": 8, "blocks": 1} | ({"growth": 4} if decoder == "rrdb" else {})
    net = AutoEncoder(scale, 48, 1, 8, decoder, options, encoder)
    x = U("networks/gt", 1, 3, 32, 64)
    z = net.encode(x)
    assert z.shape == (1, 3, 32 // scale, 64 // scale)
    assert net(x).shape == x.shape
    assert torch.equal(net(x), net.decode(z))
    if encoder == "bicubic":
        assert torch.equal(z, imresize(x, 1 / scale))
    with pytest.raises(ValueError, match=f"x: expected sides that are multiples of {scale}"):
        net(torch.rand(1, 3, 32, 33))


def test_autoencoder_runs_in_bf16_and_channels_last():
    torch.manual_seed(0)
    net = AutoEncoder(features=48, blocks=1, growth=8, decoder_options=SMALL_DECODER)
    x = U("networks/gt", 1, 3, 32, 32)
    with torch.no_grad():
        reference = net(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert (net(x).float() - reference).abs().max() < 0.02
        assert (copy.deepcopy(net).bfloat16()(x.bfloat16()).float() - reference).abs().max() < 0.02
        last = net.to(memory_format=torch.channels_last)
        assert torch.allclose(last(x.to(memory_format=torch.channels_last)), reference, atol=1e-6)


def test_widths_that_cannot_carry_colour_are_refused():
    """The trap of specification 3.2: features / 16 channels after fromRGB, fewer than 3 below 48."""
    for features in (16, 32, 40, 56):
        with pytest.raises(ValueError, match=f"features: expected a multiple of 16, at least 48, got {features}"):
            AutoEncoder(features=features, decoder_options=SMALL_DECODER)
    assert AutoEncoder(features=48, decoder_options=SMALL_DECODER).conv_first[0].weight.shape[0] == 3
    assert AutoEncoder(2, features=12, decoder_options=SMALL_DECODER).conv_first[0].weight.shape[0] == 3
    assert AutoEncoder(2, decoder_options=SMALL_DECODER).conv_first[0].weight.shape[0] == 16


def test_autoencoder_options_are_checked():
    with pytest.raises(ValueError, match="scale: expected 2 or 4, got 3"):
        build_autoencoder({"scale": 3})
    with pytest.raises(ValueError, match="did you mean 'srresnet'"):
        build_autoencoder({"decoder": "resnet"})
    with pytest.raises(ValueError, match="encoder: expected 'learned' or 'bicubic'"):
        build_autoencoder({"encoder": "nearest"})
    with pytest.raises(ValueError, match="options: the auto-encoder does not take them"):
        build_autoencoder({"width": 64})


# discriminators


@pytest.mark.parametrize("px", [32, 64, 96, 128, 192, 256])
def test_vgg_discriminator_sizes(px):
    """Check 7: one logit per image of one size, any other is named."""
    network = VGGDiscriminator(px, 2)
    assert network(torch.rand(2, 3, px, px)).shape == (2, 1)
    with pytest.raises(ValueError, match=rf"x: expected patches of {px}x{px} px, the discriminator's size, got 160x160"):
        network(torch.rand(2, 3, 160, 160))


@pytest.mark.parametrize("px", [16, 100, 288])
def test_vgg_discriminator_refuses_sizes_that_do_not_halve(px):
    with pytest.raises(ValueError, match="input_px: expected"):
        VGGDiscriminator(px, 2)


def test_unet_discriminator_sizes():
    network = UNetDiscriminatorSN(4)
    assert network(torch.rand(2, 3, 24, 40)).shape == (2, 1, 24, 40)
    with pytest.raises(ValueError, match="x: expected sides that are multiples of 8, got 24x41"):
        network(torch.rand(1, 3, 24, 41))


def test_discriminators_are_built_for_a_patch_size():
    assert set(DISCRIMINATORS) == {"vgg", "unet"}
    for kind, cls in DISCRIMINATORS.items():
        assert isinstance(build_discriminator(kind, 64, 4), cls)
    with pytest.raises(ValueError, match="patch_px: expected a multiple of 8"):
        build_discriminator("unet", 60)
    with pytest.raises(ValueError, match="kind: expected a known discriminator"):
        build_discriminator("patch", 64)


@pytest.mark.parametrize("kind", DISCRIMINATORS)
def test_discriminators_run_in_bf16_and_channels_last(kind):
    torch.manual_seed(0)
    network = build_discriminator(kind, 64, 4).eval()
    x = U("networks/d", 2, 3, 64, 64)
    with torch.no_grad():
        reference = network(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert (network(x).float() - reference).abs().max() < 0.02
        assert (copy.deepcopy(network).bfloat16()(x.bfloat16()).float() - reference).abs().max() < 0.02
        last = copy.deepcopy(network).to(memory_format=torch.channels_last)
        assert torch.allclose(last(x.to(memory_format=torch.channels_last)), reference, atol=1e-6)


def test_batch_of_one_works_until_statistics_have_one_value():
    """BatchNorm needs two values per channel: 64 px leaves 2x2, 32 px leaves 1x1."""
    assert VGGDiscriminator(64, 2).train()(torch.rand(1, 3, 64, 64)).isfinite().all()
    small = VGGDiscriminator(32, 2)
    with pytest.raises(ValueError, match="more than one value per channel for batch statistics, got \\(1, 16, 1, 1\\)"):
        small.train()(torch.rand(1, 3, 32, 32))
    assert small.eval()(torch.rand(1, 3, 32, 32)).isfinite().all()


def test_spectral_convolution_is_that_of_torch():
    ours, theirs = SpectralConv2d(3, 5, 4, 2).double(), nn.utils.spectral_norm(nn.Conv2d(3, 5, 4, 2, 1, bias=False)).double()
    load_formula_weights(ours, torch.float64)
    theirs.load_state_dict(ours.state_dict())
    x = S("networks/sn", 2, 3, 8, 8, dtype=torch.float64)
    first = [module.train()(x) + module(x) for module in (ours, theirs)]  # two passes before the backward one, as in a GAN step
    assert torch.allclose(*first, atol=1e-12)
    assert torch.allclose(ours.weight_u, theirs.weight_u, atol=1e-12)
    for result in first:
        result.square().sum().backward()
    assert torch.allclose(ours.weight_orig.grad, theirs.weight_orig.grad, atol=1e-12)


def test_spectral_norm_converges_to_the_largest_singular_value():
    module = SpectralConv2d(4, 6)
    for _ in range(200):
        module(torch.rand(1, 4, 4, 4))
    flat = module.weight_orig.flatten(1)
    sigma = torch.dot(module.weight_u, flat @ module.weight_v).item()
    assert sigma == pytest.approx(torch.linalg.matrix_norm(flat, 2).item(), rel=1e-5)
    assert copy.deepcopy(module)(torch.rand(1, 4, 4, 4)).isfinite().all()


# statistics over processes: two workers are started, which costs the seconds of importing torch twice

WORKER = """
import json, sys
import torch, torch.distributed as distributed
from torch.nn.parallel import DistributedDataParallel
from alignsr.core.networks.discriminators import VGGDiscriminator
rank, folder = int(sys.argv[1]), sys.argv[2]
distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
torch.manual_seed(0)
network = VGGDiscriminator(64, 2).double()
x = torch.rand(4, 3, 64, 64, dtype=torch.float64)[2 * rank : 2 * rank + 2].requires_grad_()
parallel = DistributedDataParallel(network)
logits = parallel(x)
torch.nn.functional.softplus(logits).mean().backward()
torch.save({
    "logits": logits.detach(), "grad_x": x.grad / 2, "buffers": dict(network.named_buffers()),
    "grads": {name: p.grad for name, p in network.named_parameters()},
}, f"{folder}/{rank}.pt")
distributed.destroy_process_group()
"""


def test_two_processes_equal_one_with_the_doubled_batch(tmp_path):
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(rank), str(tmp_path)], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    torch.manual_seed(0)
    network = VGGDiscriminator(64, 2).double()
    x = torch.rand(4, 3, 64, 64, dtype=torch.float64).requires_grad_()
    logits = network(x)
    F.softplus(logits).mean().backward()
    try:
        for worker in workers:
            _, errors = worker.communicate(timeout=120)
            assert worker.returncode == 0, errors
    finally:
        for worker in workers:  # where one failed, the other waits for it
            worker.kill()
            worker.communicate()
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert torch.allclose(torch.cat([part["logits"] for part in found]), logits, atol=1e-10)
    assert torch.allclose(torch.cat([part["grad_x"] for part in found]), x.grad, atol=1e-12)
    for name, parameter in network.named_parameters():
        assert torch.allclose(found[0]["grads"][name], parameter.grad, atol=1e-10), name
    for name, buffer in network.named_buffers():
        assert torch.allclose(found[1]["buffers"][name].double(), buffer.double(), atol=1e-12), name


def test_batch_norm_is_a_drop_in():
    ours, theirs = BatchNorm2d(5).double(), nn.BatchNorm2d(5).double()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x = S("networks/bn", 3, 5, 4, 4, dtype=torch.float64)
    assert torch.equal(ours(x), theirs(x))
    over = ours._over_processes(x)  # the path of several processes, with sums over one
    assert torch.allclose(over, theirs(x), atol=1e-12)
    assert ours.num_batches_tracked.item() == 2
    assert torch.allclose(ours.running_var, theirs.running_var, atol=1e-12)


@pytest.mark.parametrize("scale", [2, 4])
def test_an_encoder_that_starts_as_an_average_gives_the_small_picture(scale):
    torch.manual_seed(0)
    options = {
        "scale": scale,
        "features": 48,
        "blocks": 2,
        "growth": 8,
        "decoder_options": {"features": 8, "blocks": 1, "growth": 4},
    }
    autoencoder = build_autoencoder(options)
    x = torch.rand(1, 3, 64, 64)
    small = torch.nn.functional.avg_pool2d(x, scale)
    before = (autoencoder.encode(x) - small).abs().mean()
    start_as_average(autoencoder)
    after = (autoencoder.encode(x) - small)[..., 2:-2, 2:-2].abs().mean()
    assert after < 0.02 < before
    autoencoder.encode(x).square().mean().backward()
    gradients = [p.grad for name, p in autoencoder.named_parameters() if not name.startswith("decoder") and p.ndim == 4]
    assert all(g.abs().sum() > 0 for g in gradients), "every layer can still learn"


def test_a_bicubic_encoder_has_nothing_to_start():
    with pytest.raises(ValueError, match="expected a learned encoder, got a bicubic one"):
        start_as_average(build_autoencoder({"encoder": "bicubic", "decoder_options": {"features": 8, "blocks": 1, "growth": 4}}))
