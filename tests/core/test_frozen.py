"""Lean twins of frozen networks (check 16 of aesop.md section 9.1) and gradients that are computed at once."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakSet

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from alignsr.core.frozen import eager_gradient, lean
from alignsr.core.losses import LAYERS_SYNTHETIC, VGG19Features, l1_loss
from alignsr.core.networks.autoencoder import AutoEncoder
from alignsr.core.networks.rrdb import RRDBNet
from reference.formula import S, U, load_formula_weights

SMALL = {"features": 48, "growth": 16, "decoder_options": {"blocks": 2, "features": 32, "growth": 16}}


def frozen(network: nn.Module) -> nn.Module:
    load_formula_weights(network)
    return network.requires_grad_(False).eval()


def autoencoder(**options: object) -> AutoEncoder:
    return frozen(AutoEncoder(**{**SMALL, **options}))  # pyright: ignore[reportArgumentType, reportReturnType]


@dataclass(eq=False)
class Held:
    """A tensor in the hands of autograd."""

    tensor: Tensor


def kept_bytes(run: Callable[[], Tensor], network: nn.Module) -> int:
    """What autograd still keeps after `run`, without the network's own tensors; shared storages count once."""
    own = {tensor.untyped_storage().data_ptr() for tensor in [*network.parameters(), *network.buffers()]}
    held: WeakSet[Held] = WeakSet()

    def pack(tensor: Tensor) -> Held:
        holder = Held(tensor)
        held.add(holder)
        return holder

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda holder: holder.tensor):
        result = run()
    assert result.requires_grad
    storages = {holder.tensor.untyped_storage().data_ptr(): holder.tensor.untyped_storage().nbytes() for holder in held}
    return sum(size for address, size in storages.items() if address not in own)


def value_and_gradient(network: Callable[[Tensor], Tensor], image: Tensor) -> tuple[Tensor, Tensor]:
    image = image.clone().requires_grad_()
    out = network(image)
    (out * S("frozen/weights", *out.shape).to(out.device)).sum().backward()
    assert image.grad is not None
    return out.detach(), image.grad


def taps(network: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda image: torch.cat([tap.flatten(1) for tap in network(image, tuple(LAYERS_SYNTHETIC)).values()], 1)


def test_the_released_autoencoder_keeps_a_twentieth_with_the_same_gradient() -> None:  # check 16; issue: at most a quarter
    """A few seconds: 79 GMAC. At 64 px everything is a quarter of the 252 MB of the specification's 128 px."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = AutoEncoder().requires_grad_(False).eval()
    twin = lean(network)
    image = U("frozen/image", 1, 3, 64, 64).requires_grad_()
    plain, ours = kept_bytes(lambda: network(image), network), kept_bytes(lambda: twin(image), twin)
    assert plain * 4 == pytest.approx(252e6, rel=0.01)
    assert ours <= 0.05 * plain
    (value, grad), (twin_value, twin_grad) = value_and_gradient(network, image.detach()), value_and_gradient(twin, image.detach())
    assert torch.equal(value, twin_value)
    assert (grad - twin_grad).norm() <= 1e-6 * grad.norm()
    assert (grad - twin_grad).abs().max() <= 1e-6 * grad.abs().max()


@pytest.mark.parametrize("decoder", ["rrdb", "srresnet"])
@pytest.mark.parametrize("scale", [2, 4])
def test_every_autoencoder_keeps_its_value_and_gradient(decoder: str, scale: int) -> None:
    options = {"blocks": 2, "features": 32} | ({"growth": 16} if decoder == "rrdb" else {})
    network = autoencoder(decoder=decoder, scale=scale, decoder_options=options)
    twin = lean(network)
    image = U("frozen/image", 2, 3, 32, 24)
    (value, grad), (twin_value, twin_grad) = value_and_gradient(network, image), value_and_gradient(twin, image)
    assert torch.equal(value, twin_value)
    assert (grad - twin_grad).norm() <= 1e-6 * grad.norm()
    image.requires_grad_()
    assert kept_bytes(lambda: twin(image), twin) <= 0.25 * kept_bytes(lambda: network(image), network)


def test_vgg19_keeps_less_with_the_same_gradient() -> None:
    network = frozen(VGG19Features())
    twin = lean(network)
    image = U("frozen/image", 1, 3, 35, 33)  # odd sides: pooling leaves a row and a column out
    (value, grad), (twin_value, twin_grad) = (value_and_gradient(taps(n), image) for n in (network, twin))
    assert torch.equal(value, twin_value)
    assert (grad - twin_grad).norm() <= 1e-6 * grad.norm()
    image.requires_grad_()
    assert kept_bytes(lambda: taps(twin)(image), twin) <= 0.25 * kept_bytes(lambda: taps(network)(image), network)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, padding=1),
        nn.Conv2d(4, 6, 4, stride=2, padding=1, bias=False),
        nn.Conv2d(4, 6, (3, 1), stride=(2, 3), padding=(0, 2), dilation=(2, 1)),
        nn.Conv2d(4, 8, 3, stride=3, groups=2),
        nn.Conv2d(4, 6, 3, padding="same"),
        nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
        nn.LeakyReLU(0.2),
        nn.LeakyReLU(-0.3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.MaxPool2d(3, 2, padding=1),
        nn.MaxPool2d(2, ceil_mode=True),
    ],
    ids=str,
)
def test_every_layer_has_the_plain_ones_value_and_gradient(layer: nn.Module) -> None:
    layer = copy.deepcopy(layer).double().requires_grad_(False)
    twin = lean(nn.Sequential(layer))
    image = S("frozen/layer", 2, 4, 11, 10, dtype=torch.float64).requires_grad_()
    out, ours = layer(image), twin(image)
    assert torch.equal(out, ours)
    weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out)
    (grad,), (our_grad,) = (torch.autograd.grad((o * weights).sum(), image) for o in (out, ours))
    assert torch.allclose(grad, our_grad, rtol=1e-12, atol=1e-14)
    assert torch.autograd.gradcheck(twin, (image,))


@pytest.mark.parametrize("layer", [nn.LeakyReLU(0.2, inplace=True), nn.ReLU(inplace=True)], ids=str)
def test_layers_that_overwrite_their_input_still_do(layer: nn.Module) -> None:
    twin = lean(layer)
    image = S("frozen/layer", 2, 4, 8, 8).requires_grad_()
    hidden = image * 2
    out = twin(hidden)
    assert out is hidden or out.data_ptr() == hidden.data_ptr()
    (grad,) = torch.autograd.grad(out.square().sum(), image)
    (expected,) = torch.autograd.grad(copy.deepcopy(layer)(image * 2).square().sum(), image)
    assert torch.allclose(grad, expected)


def test_zero_and_ties_follow_torch() -> None:
    image = torch.zeros(1, 1, 4, 4, requires_grad=True)
    for layer in (nn.LeakyReLU(0.2), nn.ReLU(), nn.MaxPool2d(2)):
        (grad,) = torch.autograd.grad(lean(layer)(image).sum(), image)
        (expected,) = torch.autograd.grad(layer(image).sum(), image)
        assert torch.equal(grad, expected)


def test_twin_shares_its_parameters_and_keeps_its_class() -> None:
    network = autoencoder()
    twin = lean(network)
    assert isinstance(twin, AutoEncoder)
    assert twin.scale == 4
    assert list(twin.state_dict()) == list(network.state_dict())
    assert all(a is b for a, b in zip(network.parameters(), twin.parameters(), strict=True))
    with torch.no_grad():
        network.conv_last[1].bias += 1  # pyright: ignore[reportArgumentType, reportIndexIssue]
    image = U("frozen/image", 1, 3, 16, 16)
    assert torch.equal(network.encode(image), twin.encode(image))


def test_the_original_is_left_as_it_was() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Sequential(), nn.Dropout()).train()
    twin = lean(network)
    assert network.training
    assert [type(child) for child in network] == [nn.Conv2d, nn.ReLU, nn.Sequential, nn.Dropout]
    assert not twin.training
    twin.train()
    assert not any(module.training for module in twin.modules())
    assert all(a is not b for a, b in zip(network.modules(), twin.modules(), strict=True))


def test_a_module_used_twice_stays_one() -> None:
    shared = nn.Conv2d(3, 3, 1)
    twin = lean(nn.ModuleDict({"a": shared, "b": nn.Sequential(shared)}))
    assert twin["a"] is twin["b"][0]  # pyright: ignore[reportIndexIssue]


def test_trainable_layers_learn_as_before() -> None:
    """The real-world auto-encoder trains its encoder through a frozen decoder."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.LeakyReLU(0.2), nn.Conv2d(4, 3, 3, padding=1))
    network[2].requires_grad_(False)
    image = U("frozen/image", 1, 3, 8, 8)
    expected = torch.autograd.grad(network(image).square().sum(), list(network[0].parameters()))
    ours = torch.autograd.grad(lean(network)(image).square().sum(), list(network[0].parameters()))
    for a, b in zip(ours, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_works_in_bf16_autocast(memory_format: torch.memory_format) -> None:
    network = autoencoder().to(memory_format=memory_format)  # pyright: ignore[reportCallIssue]
    twin = lean(network)
    image = U("frozen/image", 1, 3, 32, 32).contiguous(memory_format=memory_format)
    best, exact = value_and_gradient(network, image)
    with torch.autocast("cpu", torch.bfloat16):
        value, grad = value_and_gradient(network, image)
        twin_value, twin_grad = value_and_gradient(twin, image)
        half = image.clone().requires_grad_()
        assert kept_bytes(lambda: twin(half), twin) <= 0.25 * kept_bytes(lambda: network(half), network)
    assert twin_grad.dtype == torch.float32
    assert value.dtype == torch.bfloat16
    assert twin_value.dtype == torch.float32  # convolutions from and to the image keep float32
    assert (twin_value - best).norm() <= 0.8 * (value - best).norm()
    assert (twin_grad - exact).norm() <= 0.9 * (grad - exact).norm()


@pytest.mark.parametrize("reentrant", [False, True])
def test_works_inside_a_checkpoint(reentrant: bool) -> None:
    network = autoencoder()
    twin = lean(network)
    image = U("frozen/image", 1, 3, 16, 16)
    _, grad = value_and_gradient(network, image)
    _, again = value_and_gradient(lambda x: checkpoint(twin, x, use_reentrant=reentrant), image)  # pyright: ignore[reportArgumentType]
    assert (grad - again).norm() <= 1e-6 * grad.norm()


def test_works_with_checkpoints_inside() -> None:
    network = frozen(RRDBNet(blocks=2, features=16, growth=8, checkpoint_blocks=True))
    image = U("frozen/image", 1, 3, 8, 8)
    _, grad = value_and_gradient(network, image)
    _, ours = value_and_gradient(lean(network), image)
    assert (grad - ours).norm() <= 1e-6 * grad.norm()


def test_without_gradient_it_is_the_plain_network() -> None:
    network = autoencoder()
    twin = lean(network)
    image = U("frozen/image", 1, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(twin(image.requires_grad_()), network(image))
    assert not twin(image.detach()).requires_grad
    with torch.inference_mode():
        assert torch.equal(twin(image), network(image))


def test_eager_gradient_equals_the_later_one_and_keeps_one_image() -> None:
    network = autoencoder()
    gt = U("frozen/gt", 2, 3, 16, 16)
    sr = (gt + 0.1 * S("frozen/sr", 2, 3, 16, 16)).requires_grad_()
    weights = torch.tensor([0.5, 3.0])

    def loss(images: Tensor) -> Tensor:
        return l1_loss(network(images), network(gt))

    values = eager_gradient(loss, sr)
    assert torch.equal(values, loss(sr))
    (grad,) = torch.autograd.grad((values * weights).sum(), sr)
    (expected,) = torch.autograd.grad((loss(sr) * weights).sum(), sr)
    assert (grad - expected).norm() <= 1e-6 * expected.norm()
    assert kept_bytes(lambda: eager_gradient(loss, sr), network) == sr.numel() * 4


def test_eager_gradient_without_gradient_is_the_plain_value() -> None:
    image = U("frozen/gt", 2, 3, 4, 4)
    calls: list[bool] = []
    values = eager_gradient(lambda x: (calls.append(x.requires_grad), F.relu(x).mean((1, 2, 3)))[1], image)
    assert calls == [False]
    assert not values.requires_grad
    with torch.no_grad():
        assert torch.equal(eager_gradient(lambda x: x.mean((1, 2, 3)), image.requires_grad_()), values)


def test_eager_gradient_refuses_to_be_differentiated_twice() -> None:
    image = U("frozen/gt", 2, 3, 4, 4).requires_grad_()
    (grad,) = torch.autograd.grad(eager_gradient(lambda x: x.square().mean((1, 2, 3)), image).sum(), image, create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable|does not require grad"):
        grad.sum().backward()


@pytest.mark.gpu
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("half", [False, True])
def test_twin_on_a_gpu(memory_format: torch.memory_format, half: bool) -> None:
    network = autoencoder().cuda().to(memory_format=memory_format)  # pyright: ignore[reportCallIssue]
    image = U("frozen/image", 2, 3, 64, 64).cuda().contiguous(memory_format=memory_format)
    _, exact = value_and_gradient(network, image)
    with torch.autocast("cuda", torch.bfloat16, enabled=half):
        _, plain = value_and_gradient(network, image)
        _, ours = value_and_gradient(lean(network), image)
    assert (ours - exact).norm() <= (1.0 * (plain - exact).norm() if half else 1e-3 * exact.norm())  # tf32 may be on
