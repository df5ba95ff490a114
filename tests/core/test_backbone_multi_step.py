"""Models of many steps: sign and clock, packing, conditioning that starts as the base model, every source, bad input."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from latent_helpers import seed, vae_original
from multi_step_helpers import flux1_original, unet_original, write_folder
from safetensors.torch import save_file
from torch import Tensor, nn

from alignsr.core.backbones import MULTI_STEP_KINDS, load_backbone, open_multi_step
from alignsr.core.backbones.autoencoders import make_autoencoder
from alignsr.core.backbones.flux1 import Flux1Backbone, control_options, pack, unpack
from alignsr.core.backbones.flux1_tokens import joint_forward, position_ids
from alignsr.core.backbones.latent import MultiStepModel, make_control, make_transformer, save, tiny_multi_step
from alignsr.core.backbones.offload import OffloadedMultiStep, Residency
from alignsr.core.backbones.stable_diffusion import StableDiffusionBackbone, widen
from alignsr.core.backbones.stable_diffusion_files import TINY_XL, UNETS
from alignsr.core.compat import import_diffusers
from alignsr.core.diffusion import MultiStepBackbone
from alignsr.core.lora import LORA_TARGETS, attach, expected_state, resolve_targets
from alignsr.core.records import Conditioning
from alignsr.core.sampling import restore_multi_step
from alignsr.core.weights import MissingModelError, WeightsError

KINDS = list(MULTI_STEP_KINDS)
WAYS = [(kind, control) for kind in KINDS for control in (False, True)]
FLUX, DIFFUSION = (MULTI_STEP_KINDS[kind] for kind in ("flux1", "stable_diffusion"))


def told(backbone: MultiStepModel, batch: int = 1, number: int = 0) -> Conditioning:
    embeddings = torch.randn(batch, 7, backbone.conditioning_dim, generator=seed(number))
    pooled = torch.randn(batch, backbone.pooled_dim, generator=seed(number + 1)) if backbone.pooled_dim else None
    return Conditioning(embeddings, pooled=pooled)


def times(backbone: MultiStepModel, batch: int = 1) -> Tensor:
    return torch.linspace(0.3, 0.9, batch) if backbone.process.prediction == "velocity" else torch.arange(1, batch + 1) * 300


def answer(backbone: MultiStepModel, batch: int = 1, prompt: Conditioning | None = None) -> Tensor:
    image = F.interpolate(torch.rand(batch, 3, 4, 4, generator=seed(3)), (32, 64), mode="bicubic") * 2 - 1
    with torch.no_grad():
        z_lq = backbone.encode_lq(image)
        z = torch.randn(batch, 4, 4, 8, generator=seed(4))
        return backbone.predict(z, times(backbone, batch), z_lq, prompt or told(backbone, batch))


def same(a: MultiStepModel, b: MultiStepModel) -> None:
    for (name, left), (other, right) in zip(a.modules(), b.modules(), strict=True):
        assert name == other
        states = (left.state_dict(), right.state_dict())
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0]), name
    assert torch.allclose(answer(a), answer(b), atol=1e-5)  # how weights lie in memory may move a sum's last bit


def fill_zeros(module: nn.Module) -> None:
    """Trained values in place of the zeros that new control branches and convolutions start with."""
    for index, parameter in enumerate(module.parameters()):
        if not bool(parameter.any()):
            parameter.data.copy_(torch.randn(parameter.shape, generator=seed(index)) * 0.05)


@pytest.mark.parametrize(("kind", "control"), WAYS)
def test_protocol_shapes_and_facts(kind: str, control: bool) -> None:
    backbone = tiny_multi_step(kind, control=control)
    assert isinstance(backbone, MultiStepBackbone)
    image = torch.rand(2, 3, 32, 64, generator=seed(0)) * 2 - 1
    z = backbone.encode(image)
    assert z.shape == (2, 4, 4, 8) and backbone.decode(z).shape == image.shape
    assert answer(backbone, 2).shape == z.shape
    assert [name for name, _ in backbone.modules()] == [MULTI_STEP_KINDS[kind].main, *["control"] * control, "vae"]
    spec = backbone.spec
    assert spec.parameters == sum(p.numel() for _, module in backbone.modules() for p in module.parameters())
    own = spec.sampling
    assert own is not None
    expected = {
        ("flux1", False): (28, "euler", 1.0, "embedded", ""),
        ("flux1", True): (25, "euler", 2.5, "embedded", ""),
        ("stable_diffusion", False): (28, "dpm", 1.0, "classifier_free", ""),
        ("stable_diffusion", True): (50, "ddpm", 3.5, "classifier_free", "dotted, noise, blur, lowres, smooth"),
    }
    assert (own.steps, own.sampler, own.guidance, own.guidance_kind, own.negative_prompt) == expected[kind, control]


def test_full_sizes_are_those_of_the_published_models() -> None:
    with torch.device("meta"):
        flux = make_transformer(FLUX, FLUX.transformer)
        branch = make_control(FLUX, control_options(FLUX.transformer))
        coder = make_autoencoder(FLUX.autoencoder)
        unets = {version: make_transformer(DIFFUSION, options) for version, options in UNETS.items()}
        hint = make_control(DIFFUSION, DIFFUSION.control_options(UNETS["sd2"]) if DIFFUSION.control_options else {})
        by_diffusers = import_diffusers().ControlNetModel.from_unet(unets["sd2"], load_weights_from_unet=False)
        of_flux = import_diffusers().FluxControlNetModel.from_transformer(
            flux, num_layers=4, num_single_layers=0, load_weights_from_transformer=False
        )
    assert sum(p.numel() for p in hint.parameters()) == 364_228_240
    assert sum(p.numel() for p in flux.parameters()) == 11_901_408_320
    assert sum(p.numel() for p in branch.parameters()) == 1_442_333_696  # dp2o-sr.md 3.2: about 1.4 B
    assert {key: sum(p.numel() for p in unet.parameters()) for key, unet in unets.items()} == {
        "sd15": 859_520_964, "sd2": 865_910_724, "sdxl": 2_567_463_684,
    }  # fmt: skip
    for ours, theirs in ((hint, by_diffusers), (branch, of_flux)):  # what the released checkpoints were saved from
        assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    backbone = Flux1Backbone(flux, coder)
    assert backbone.spec.tokens(1024, 1024) == 4096 and backbone.spec.size_multiple == 16
    names = resolve_targets(flux, LORA_TARGETS["flux1"])
    assert len(names) == 1 + 19 * 6 + 38 * 6 and "proj_out" not in names and not any("context" in name for name in names)
    assert sum(p.numel() for p in expected_state(flux, LORA_TARGETS["flux1"], 1).values()) == 3_621_952  # asasr.md 3.1
    assert sum(p.numel() for p in expected_state(flux, LORA_TARGETS["flux1"], 16).values()) == 57_951_232
    with torch.device("meta"):
        z = torch.empty(1, 16, 64, 64)
        assert backbone.predict(z, torch.empty(1), z, Conditioning(torch.empty(1, 512, 4096))).shape == z.shape
        assert Flux1Backbone(flux, coder, branch).predict(z, torch.empty(1), z).shape == z.shape


def test_packing_is_that_of_the_pipeline_and_undone() -> None:
    z = torch.randn(2, 4, 6, 10, generator=seed(0))
    assert torch.equal(pack(z), import_diffusers().FluxPipeline._pack_latents(z, 2, 4, 6, 10))
    assert torch.equal(unpack(pack(z), 3, 5), z)
    wanted = import_diffusers().FluxPipeline._prepare_latent_image_ids(1, 3, 5, torch.device("cpu"), torch.float32)
    assert torch.equal(position_ids(3, 5, torch.device("cpu")), wanted)


def test_without_condition_tokens_the_forward_pass_is_diffusers_own() -> None:
    network: Any = tiny_multi_step("flux1").transformer
    state, text, pooled = (torch.randn(2, *shape, generator=seed(i)) for i, shape in enumerate([(15, 16), (5, 32), (16,)]))
    ids, sigma, guidance = position_ids(3, 5, torch.device("cpu")), torch.tensor([0.3, 0.9]), torch.tensor([1.0, 3.5])
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        cast = [x.to(dtype) for x in (state, text, pooled)]
        nn.Module.to(network, dtype=dtype)
        ours = joint_forward(
            network, cast[0], cast[0][:, :0], *cast[1:], sigma=sigma, guidance=guidance, noisy_ids=ids, condition_ids=ids[:0]
        )
        theirs = network(
            hidden_states=cast[0], encoder_hidden_states=cast[1], pooled_projections=cast[2], timestep=sigma, guidance=guidance,
            img_ids=ids, txt_ids=torch.zeros(5, 3), return_dict=False,
        )[0]  # fmt: skip
        assert torch.equal(ours, theirs) if dtype is torch.float32 else torch.allclose(ours, theirs, atol=0.02), dtype


class Recorder(nn.Module):
    """Takes a network's place, notes what it is given and answers with a chosen tensor."""

    def __init__(self, network: Any, reply: Any) -> None:
        super().__init__()
        self.config, self.reply = network.config, reply
        self.context_embedder = nn.Linear(1, 1)
        self.conv_out = nn.Linear(1, 1)
        self.calls: list[dict[str, Any]] = []

    def forward(self, *args: Any, **given: Any) -> Any:
        self.calls.append({**given, "args": args})
        return self.reply


def recorded(kind: str, reply: Tensor, monkeypatch: pytest.MonkeyPatch) -> tuple[MultiStepModel, Recorder, Recorder]:
    backbone = tiny_multi_step(kind, control=True)
    main = MULTI_STEP_KINDS[kind].main
    network = Recorder(getattr(backbone, main), (reply,))
    branch = Recorder(backbone.control, (["down"], ["middle"]))
    setattr(backbone, main, network)
    backbone.control = branch
    return backbone, network, branch


def test_flux1_sign_and_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that answers (z - clean) / sigma, packed, leads to clean in one step; sigma goes in as it is, 1 = noise."""
    z, clean = torch.randn(1, 4, 4, 6, generator=seed(0)), torch.randn(1, 4, 4, 6, generator=seed(1))
    backbone, network, branch = recorded("flux1", pack((z - clean) / 0.75), monkeypatch)
    adjusted = backbone.adjusted(guidance=3.0, control_scale=0.5)
    found = adjusted.predict(z, torch.tensor([0.75]), z, told(backbone))
    assert torch.allclose(backbone.process.clean(z, found, torch.tensor([0.75])), clean, atol=1e-6)
    given, hint = network.calls[0], branch.calls[0]
    assert given["timestep"].tolist() == [0.75] and given["guidance"].tolist() == [3.0]
    assert given["img_ids"][4].tolist() == [0, 1, 1] and not bool(given["txt_ids"].any())
    assert given["controlnet_block_samples"] == ["down"] and given["controlnet_single_block_samples"] == ["middle"]
    assert torch.equal(hint["controlnet_cond"], pack(z)) and hint["conditioning_scale"] == 0.5
    assert torch.equal(hint["hidden_states"], given["hidden_states"])
    assert backbone.guidance == 2.5 and backbone.control_scale == 1.0  # the one it was made from stays as it was


def test_stable_diffusion_sign_and_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that answers the noise leads back to the clean latents; timesteps go in as integers."""
    clean, noise = torch.randn(1, 4, 4, 6, generator=seed(0)), torch.randn(1, 4, 4, 6, generator=seed(1))
    backbone, network, branch = recorded("stable_diffusion", noise, monkeypatch)
    time = torch.tensor([601])
    z, picture = backbone.process.add_noise(clean, noise, time), torch.rand(1, 3, 32, 48)
    found = backbone.adjusted(control_scale=0.25).predict(z, time, picture, told(backbone))
    assert torch.allclose(backbone.process.clean(z, found, time), clean, atol=1e-5)
    given, hint = network.calls[0], branch.calls[0]
    assert given["timestep"].tolist() == [601] and given["down_block_additional_residuals"] == ["down"]
    assert torch.equal(given["args"][0], z) and torch.equal(hint["controlnet_cond"], picture)
    assert hint["conditioning_scale"] == 0.25


def test_the_hint_of_a_unet_is_the_picture_between_0_and_1() -> None:
    backbone = tiny_multi_step("stable_diffusion", control=True)
    image = torch.rand(1, 3, 16, 16) * 2 - 1
    assert torch.allclose(backbone.encode_lq(image), (image + 1) / 2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_control_branch_changes_nothing(kind: str) -> None:
    backbone = tiny_multi_step(kind, control=True)
    prompt, network = told(backbone), dict(backbone.modules())[MULTI_STEP_KINDS[kind].main]
    z = torch.randn(1, 4, 4, 8, generator=seed(4))
    with torch.no_grad():
        if kind == "flux1":
            base = network(
                hidden_states=pack(z), encoder_hidden_states=prompt.embeddings, pooled_projections=prompt.pooled,
                timestep=torch.tensor([0.3]), guidance=torch.tensor([2.5]), img_ids=position_ids(2, 4, z.device),
                txt_ids=torch.zeros(7, 3), return_dict=False,
            )[0]  # fmt: skip
            base = unpack(base, 2, 4)
        else:
            base = network(z, torch.tensor([300]), encoder_hidden_states=prompt.embeddings, return_dict=False)[0]
    assert torch.equal(answer(backbone), base)
    fill_zeros(backbone.control)
    assert not torch.allclose(answer(backbone), base, atol=1e-3)
    assert torch.equal(answer(backbone.adjusted(control_scale=0.0)), base)


@pytest.mark.parametrize("version", ["sd2", "sdxl"])
def test_new_channels_change_nothing(version: str) -> None:
    changes = TINY_XL if version == "sdxl" else {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet: Any = make_transformer(DIFFUSION, {**DIFFUSION.tiny["transformer"], **changes}).eval()
    z, prompt = torch.randn(1, 4, 4, 8, generator=seed(4)), torch.randn(1, 7, 32, generator=seed(5))
    sizes = {"text_embeds": torch.zeros(1, 16), "time_ids": torch.tensor([[32.0, 64, 0, 0, 32, 64]])}
    added = {"added_cond_kwargs": sizes} if changes else {}
    with torch.no_grad():
        base = unet(z, torch.tensor([300]), encoder_hidden_states=prompt, return_dict=False, **added)[0]
        backbone = StableDiffusionBackbone(unet, tiny_multi_step("stable_diffusion").autoencoder, version=version)
        assert unet.conv_in.weight.shape[1] == 8 and unet.config.in_channels == 8
        for z_lq in (torch.zeros_like(z), torch.randn(z.shape, generator=seed(6))):
            assert torch.allclose(backbone.predict(z, torch.tensor([300]), z_lq, Conditioning(prompt)), base, atol=1e-6)
    fill_zeros(nn.ParameterList([unet.conv_in.weight[:, 4:]]))
    unet.conv_in.weight.data[:, 4:] = 0.1
    assert not torch.allclose(answer(backbone, prompt=Conditioning(prompt)), base, atol=1e-3)


def test_scaling_of_the_latents_follows_the_version() -> None:
    image = torch.rand(1, 3, 16, 16, generator=seed(0)) * 2 - 1
    for version, scaling in (("sd15", 0.18215), ("sd2", 0.18215), ("sdxl", 0.13025)):
        backbone = tiny_multi_step("stable_diffusion", version=version)
        raw = backbone.codec.encode(image)
        assert torch.allclose(backbone.encode(image), raw * scaling)
        assert torch.allclose(backbone.decode(raw * scaling), backbone.codec.decode(raw), atol=1e-4)
    flux = tiny_multi_step("flux1")
    assert torch.allclose(flux.encode(image), (flux.codec.encode(image) - 0.1159) * 0.3611)


def test_half_resolution_has_a_quarter_of_the_tokens_in_the_middle_of_what_they_cover() -> None:
    backbone = tiny_multi_step("flux1", condition_stride=2)
    image = torch.rand(1, 3, 64, 96, generator=seed(0)) * 2 - 1
    z_lq = backbone.encode_lq(image)
    assert z_lq.shape == (1, 4, 4, 6) and backbone.spec.size_multiple == 32
    assert position_ids(2, 3, z_lq.device, 2.0)[:, 1:].tolist() == [[y, x] for y in (0.5, 2.5) for x in (0.5, 2.5, 4.5)]
    z = torch.randn(1, 4, 8, 12, generator=seed(1))
    found = backbone.predict(z, torch.tensor([0.5]), z_lq)
    assert found.shape == z.shape
    moved = backbone.predict(z, torch.tensor([0.5]), z_lq + 1)
    assert not torch.allclose(found, moved, atol=1e-4)
    with pytest.raises(ValueError, match=r"z_lq: expected \(1, 4, 4, 6\), half the resolution of z, got \(1, 4, 8, 12\)"):
        backbone.predict(z, torch.tensor([0.5]), z)


def test_the_condition_is_at_the_clean_end_whatever_sigma() -> None:
    """Its modulation does not depend on the time of the state: with attention cut off, neither does its stream."""
    network: Any = tiny_multi_step("flux1").transformer
    seen: list[Tensor] = []
    real = network.time_text_embed.forward

    def watched(time: Tensor, *rest: Tensor) -> Tensor:
        seen.append(time)
        return real(time, *rest)

    network.time_text_embed.forward = watched
    backbone = Flux1Backbone(network, tiny_multi_step("flux1").autoencoder)
    z = torch.randn(2, 4, 4, 4, generator=seed(0))
    backbone.predict(z, torch.tensor([0.25, 1.0]), z)
    assert [time.tolist() for time in seen] == [[250.0, 1000.0], [0.0, 0.0]]


@pytest.mark.parametrize("scope", ["all", "condition_only"])
def test_scope_of_an_attached_adapter(scope: str) -> None:
    """`all`: equal to the adapter folded in. `condition_only`: text and noisy tokens of the first block see the base alone."""
    base, adapted = (tiny_multi_step("flux1", lora_scope=scope) for _ in range(2))
    parameters = attach(adapted.transformer, LORA_TARGETS["flux1"], 4, generator=seed(0))
    assert torch.equal(answer(adapted), answer(base))  # B is zero
    for index, parameter in enumerate(parameters):
        parameter.data = torch.randn(parameter.shape, generator=seed(index)) * 0.1
    assert not torch.allclose(answer(adapted), answer(base), atol=1e-3)
    network: Any = adapted.transformer
    network.fuse_lora()
    network.unload_lora()
    folded = answer(adapted)
    again = tiny_multi_step("flux1", lora_scope=scope)
    for index, parameter in enumerate(attach(again.transformer, LORA_TARGETS["flux1"], 4)):
        parameter.data = torch.randn(parameter.shape, generator=seed(index)) * 0.1
    assert torch.allclose(answer(again), folded, atol=1e-4) == (scope == "all")


def test_condition_only_reaches_noisy_tokens_through_attention_alone() -> None:
    """With keys and values of the condition as the base has them nothing is left: adapters of other layers see it alone."""
    base, adapted = (tiny_multi_step("flux1", lora_scope="condition_only") for _ in range(2))
    last = "single_transformer_blocks.1"
    targets = [f"{last}.attn.to_q", f"{last}.proj_mlp", f"{last}.proj_out"]  # after the last keys and values
    for index, parameter in enumerate(attach(adapted.transformer, targets, 2)):
        parameter.data = torch.randn(parameter.shape, generator=seed(index))
    assert torch.equal(answer(adapted), answer(base))
    keys = tiny_multi_step("flux1", lora_scope="condition_only")
    for index, parameter in enumerate(attach(keys.transformer, [f"{last}.attn.to_k"], 2)):
        parameter.data = torch.randn(parameter.shape, generator=seed(index))
    assert not torch.allclose(answer(keys), answer(base), atol=1e-4)


@pytest.mark.parametrize("scope", ["all", "condition_only"])
def test_checkpointed_gradient_is_the_plain_one(scope: str) -> None:
    grads: list[list[Tensor]] = []
    for checkpointed in (False, True):
        backbone = tiny_multi_step("flux1", lora_scope=scope)
        parameters = attach(backbone.transformer, LORA_TARGETS["flux1"], 2, generator=seed(0))
        for index, parameter in enumerate(parameters):
            parameter.data = torch.randn(parameter.shape, generator=seed(index)) * 0.1
        if checkpointed:
            backbone.transformer.enable_gradient_checkpointing()
        backbone.transformer.train()
        z = torch.randn(1, 4, 4, 4, generator=seed(1))
        backbone.predict(z, torch.tensor([0.5]), z).square().mean().backward()
        grads.append([parameter.grad for parameter in parameters if parameter.grad is not None])
        used = {name for name, p in backbone.transformer.named_parameters() if p.grad is not None}
        assert all(".lora_" in name for name in used)
    assert len(grads[0]) == len(grads[1]) > 0
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize(("kind", "control"), WAYS)
def test_samples_do_not_depend_on_their_neighbours(kind: str, control: bool) -> None:
    backbone = tiny_multi_step(kind, control=control)
    if control:
        fill_zeros(backbone.control)
    prompt = told(backbone, 2)
    lq = torch.rand(2, 3, 8, 16, generator=seed(0))
    options: dict[str, Any] = {"steps": 2, "seeds": 5}
    together = restore_multi_step(backbone, lq, conditioning=prompt, batch_size=2, **options).sr
    turned = restore_multi_step(backbone, lq.flip(0), conditioning=prompt.rows([1, 0]), **options).sr
    assert torch.allclose(together, turned.flip(0), atol=1e-5)
    assert torch.equal(restore_multi_step(backbone, lq, conditioning=prompt, batch_size=2, **options).sr, together)
    assert not torch.allclose(restore_multi_step(backbone, lq, conditioning=prompt, steps=2, seeds=6).sr, together, atol=1e-3)


def test_a_prompt_in_place_of_none() -> None:
    for kind in KINDS:
        backbone = tiny_multi_step(kind)
        zeros = Conditioning(torch.zeros(1, backbone.text_tokens, backbone.conditioning_dim))
        z = torch.randn(1, 4, 4, 8, generator=seed(4))
        call = (z, times(backbone), z)
        assert torch.equal(backbone.predict(*call), backbone.predict(*call, zeros))
        backbone.empty = told(backbone)
        assert torch.equal(backbone.predict(*call), backbone.predict(*call, told(backbone)))


class Watched(Residency):
    """Counts turns on the CPU."""

    def __init__(self) -> None:
        super().__init__("cpu")
        self.order: list[str] = []

    def use(self, module: nn.Module) -> None:
        if module is not self.resident:
            self.order.append(type(module).__name__)
        super().use(module)


@pytest.mark.parametrize(("kind", "control"), WAYS)
def test_offloaded_parts_change_twice_whatever_the_steps(kind: str, control: bool) -> None:
    backbone, turns = tiny_multi_step(kind, control=control), Watched()
    lq, options = torch.rand(1, 3, 16, 24, generator=seed(0)), {"steps": 3, "tile_px": 64, "overlap_px": 16}
    found = restore_multi_step(OffloadedMultiStep(backbone, turns), lq, **options)
    assert torch.equal(found.sr, restore_multi_step(backbone, lq, **options).sr)
    assert turns.order == ["AutoencoderKL", "ModuleList", "AutoencoderKL"]


@pytest.mark.parametrize(("kind", "control"), WAYS)
def test_one_file_round_trip(kind: str, control: bool, tmp_path: Path) -> None:
    backbone = tiny_multi_step(kind, control=control, seed=3)
    path = save(tmp_path / "model.safetensors", backbone)
    again: Any = load_backbone(path)
    same(backbone, again)
    assert replace(again.spec, name="") == replace(backbone.spec, name="")


@pytest.mark.parametrize(("kind", "control"), WAYS)
def test_diffusers_folder_and_released_branch(kind: str, control: bool, tmp_path: Path) -> None:
    """The control branch comes as released: a plain state dict beside the stock base model."""
    backbone = tiny_multi_step(kind, control=control, seed=3)
    root = write_folder(tmp_path / "base", backbone)
    branch = None
    if control:
        fill_zeros(backbone.control)
        branch = tmp_path / "model.safetensors"
        save_file({key: tensor.contiguous() for key, tensor in backbone.control.state_dict().items()}, branch)
    facts = {key: backbone.options[key] for key in ("version", "text_tokens") if key in backbone.options}
    again = open_multi_step(kind, root, control=branch, precision="fp32", **facts)
    if kind == "flux1":  # diffusers' folder says everything about the transformer; the branch's size comes from its tensors
        assert json.dumps(again.options["transformer"]) == json.dumps(backbone.options["transformer"])
    same(backbone, again)


def test_single_files_of_flux1(tmp_path: Path) -> None:
    backbone = tiny_multi_step("flux1", seed=3)
    (tmp_path / "diffusion_models").mkdir()
    (tmp_path / "vae").mkdir()
    original = flux1_original(backbone.transformer.state_dict())
    save_file(original, tmp_path / "diffusion_models" / "flux1-dev.safetensors")
    save_file(vae_original(dict(backbone.autoencoder.state_dict())), tmp_path / "vae" / "ae.safetensors")
    folders = {key: [tmp_path / key] for key in ("diffusion_models", "vae")}
    same(backbone, open_multi_step("flux1", folders=folders, precision="fp32", text_tokens=16))
    save_file({f"model.diffusion_model.{key}": value for key, value in original.items()}, tmp_path / "checkpoint.safetensors")
    network = tmp_path / "checkpoint.safetensors"
    same(backbone, open_multi_step("flux1", folders=folders, network=network, precision="fp32", text_tokens=16))


def test_original_names_of_flux1_are_those_of_diffusers_converter() -> None:
    """At the published width, which diffusers' converter takes for granted; names and shapes, without memory."""
    from alignsr.core.backbones.flux1_files import to_diffusers
    from alignsr.core.compat import import_third_party

    options = FLUX.transformer | {"num_layers": 2, "num_single_layers": 2}
    with torch.device("meta"):
        state = make_transformer(FLUX, options).state_dict()
    original = flux1_original(dict(state))
    ours = to_diffusers(original, "file")
    converters = import_third_party("diffusers.loaders.single_file_utils")
    theirs = converters.convert_flux_transformer_checkpoint_to_diffusers(dict(original))
    assert (
        {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()} == {k: v.shape for k, v in state.items()}
    )


@pytest.mark.parametrize("version", ["sd2", "sdxl"])
def test_checkpoints_of_stable_diffusion(version: str, tmp_path: Path) -> None:
    """One file holds UNet and autoencoder, as ComfyUI's models/checkpoints has them."""
    changes = {"transformer": TINY_XL} if version == "sdxl" else {}
    backbone = tiny_multi_step("stable_diffusion", seed=3, options=changes, version=version, control=True)
    original = {f"model.diffusion_model.{key}": value for key, value in unet_original(backbone.unet.state_dict()).items()}
    original |= {
        f"first_stage_model.{key}": value for key, value in vae_original(dict(backbone.autoencoder.state_dict())).items()
    }
    original["cond_stage_model.logit_scale"] = torch.ones(1)
    (tmp_path / "checkpoints").mkdir()
    save_file(original, tmp_path / "checkpoints" / "mine.safetensors")
    (tmp_path / "controlnet").mkdir()
    save_file(dict(backbone.control.state_dict()), tmp_path / "controlnet" / "dp2o-sd2.safetensors")
    folders = {key: [tmp_path / key] for key in ("checkpoints", "vae", "controlnet")}
    facts: dict[str, Any] = {"precision": "fp32", "version": version, "text_tokens": 77}
    again = open_multi_step("stable_diffusion", folders=folders, network="mine.safetensors", control="auto", **facts)
    same(backbone, again)
    plain = open_multi_step("stable_diffusion", folders=folders, network="mine.safetensors", **facts)
    assert plain.control is None and plain.options["unet"]["in_channels"] == 8


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["bf16", "fp16", "8bit", "4bit"])
def test_precisions(kind: str, precision: str) -> None:
    exact = answer(open_multi_step(kind, "tiny", control="tiny", precision="fp32"))
    backbone = open_multi_step(kind, "tiny", control="tiny", precision=precision)
    dtypes = {name: next(module.parameters()).dtype for name, module in backbone.modules()}
    assert dtypes["vae"] == (torch.float32 if precision == "fp16" else torch.bfloat16)
    found = answer(backbone)
    assert found.dtype == torch.float32
    tolerance = {"fp16": 0.01, "bf16": 0.1, "8bit": 0.2, "4bit": 0.5}[precision]
    assert 0 < float((found - exact).norm() / exact.norm()) < tolerance


@pytest.mark.parametrize(("kind", "control"), WAYS)
def test_compiled_blocks_give_the_same(kind: str, control: bool) -> None:
    from alignsr.core.backbones.latent import compile_blocks

    backbone = tiny_multi_step(kind, control=control)
    plain = answer(backbone)
    if isinstance(backbone, Flux1Backbone):
        backbone.compile_blocks(backend="eager")
    else:
        compile_blocks(backbone.unet, backend="eager")
    assert torch.allclose(answer(backbone), plain, atol=1e-6)


def test_missing_files_are_named_with_their_places_and_sources(tmp_path: Path) -> None:
    folders = {key: [tmp_path / key] for key in ("diffusion_models", "vae", "checkpoints", "controlnet")}
    with pytest.raises(MissingModelError) as caught:
        open_multi_step("flux1", folders=folders, control="auto")
    text = str(caught.value)
    assert "3 are missing" in text and "flux1-dev.safetensors" in text and "gated" in text
    assert f"no ae.safetensors in {tmp_path / 'vae'}" in text and "taef1" not in text
    assert "dp2o-flux.safetensors" in text and "cswry/DP2O-SR" in text
    with pytest.raises(MissingModelError, match=r"512-base-ema.safetensors .*cswry/DP2O-SR"):
        open_multi_step("stable_diffusion", folders=folders)
    with pytest.raises(MissingModelError, match=r"sd_xl_base_1.0.safetensors .*stable-diffusion-xl-base"):
        open_multi_step("stable_diffusion", folders=folders, version="sdxl")
    with pytest.raises(MissingModelError, match=r"unet/config.json"):
        open_multi_step("stable_diffusion", tmp_path)


def test_files_of_other_models_are_refused(tmp_path: Path) -> None:
    flux, unet = (tiny_multi_step(kind, control=True) for kind in KINDS)
    roots = {kind: write_folder(tmp_path / kind, backbone) for kind, backbone in zip(KINDS, (flux, unet), strict=True)}
    branches = {}
    for kind, backbone in zip(KINDS, (flux, unet), strict=True):
        branches[kind] = tmp_path / f"{kind}.safetensors"
        save_file({key: tensor.contiguous() for key, tensor in backbone.control.state_dict().items()}, branches[kind])
    with pytest.raises(WeightsError, match=r"stable_diffusion.safetensors: the weights do not fit this network; missing: "):
        open_multi_step("flux1", roots["flux1"], control=branches["stable_diffusion"])
    with pytest.raises(WeightsError, match=r"flux1.safetensors: the weights do not fit this network; missing: "):
        open_multi_step("stable_diffusion", roots["stable_diffusion"], control=branches["flux1"])
    with pytest.raises(WeightsError, match="expected a UNet of Stable Diffusion"):
        open_multi_step("stable_diffusion", roots["stable_diffusion"], network=branches["flux1"])
    with pytest.raises(WeightsError, match=r"expected a FLUX.1 transformer"):
        open_multi_step("flux1", roots["flux1"], network=branches["stable_diffusion"])
    with pytest.raises(WeightsError, match=r"flux1/vae: expected a FLUX.1 transformer"):
        open_multi_step("flux1", roots["flux1"], network=roots["flux1"] / "vae")
    config = json.loads((roots["flux1"] / "transformer" / "config.json").read_text())
    wide = make_control(FLUX, {**control_options(config), "num_attention_heads": 4, "num_layers": 1})
    save_file(dict(wide.state_dict()), tmp_path / "wide.safetensors")
    with pytest.raises(WeightsError, match="wrong shape"):
        open_multi_step("flux1", roots["flux1"], control=tmp_path / "wide.safetensors")


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("flux1", {"lora_scope": "noisy"}, "lora_scope: expected all or condition_only, got 'noisy'"),
    ("flux1", {"condition_stride": 3}, "condition_stride: expected 1 or 2, got 3"),
    ("flux1", {"condition_stride": 2, "control": "tiny"}, "condition_stride: expected 1 with a control branch, got 2"),
    ("flux1", {"lora_scope": "condition_only", "control": "tiny"}, "lora_scope: expected 'all' with a control branch"),
    ("flux1", {"guidance": -1.0}, r"guidance: expected a number in \[0, 100\], got -1.0"),
    ("flux1", {"precision": "int3"}, "precision: expected fp32, bf16, fp16, 8bit, 4bit, got 'int3'"),
    ("stable_diffusion", {"version": "sd3"}, "version: expected sd15 or sd2 for this UNet, got 'sd3'"),
    ("stable_diffusion", {"control_scale": 11.0}, r"control_scale: expected a number in \[0, 10\], got 11.0"),
    ("z_image", {}, "kind: expected a model of many steps, got 'z_image'"),
]


@pytest.mark.parametrize(("kind", "options", "message"), BAD, ids=[f"{k}-{'-'.join(o)}" for k, o, _ in BAD])
def test_bad_options_are_one_sentence(kind: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_multi_step(kind, "tiny", **options)


def test_bad_tensors_are_one_sentence() -> None:
    flux, unet = (tiny_multi_step(kind) for kind in KINDS)
    z = torch.zeros(1, 4, 3, 4)
    with pytest.raises(
        ValueError, match=r"z: expected sides that are multiples of 2, got \(3, 4\); pad the picture to multiples"
    ):
        flux.predict(z, torch.tensor([0.5]), z)
    with pytest.raises(ValueError, match="image: expected sides that are multiples of 16"):
        flux.encode_lq(torch.zeros(1, 3, 24, 32))
    z = torch.zeros(1, 4, 4, 4)
    with pytest.raises(
        ValueError, match=r"time: expected integer timesteps 0..999, got torch.float32; a sigma belongs to a flow"
    ):
        unet.predict(z, torch.tensor([0.5]), z)
    with pytest.raises(ValueError, match="z_lq: expected the shape of z"):
        unet.predict(z, torch.tensor([5]), z[..., :2])
    with pytest.raises(ValueError, match=r"z_lq: expected the picture \(1, 3, 32, 32\), got \(1, 4, 4, 4\); use encode_lq"):
        tiny_multi_step("stable_diffusion", control=True).predict(z, torch.tensor([5]), z)
    for backbone in (flux, unet):
        with pytest.raises(ValueError, match=r"conditioning: expected embeddings \[1 or 1, N, 32\], got \(1, 5, 8\)"):
            backbone.predict(z, times(backbone), z, Conditioning(torch.zeros(1, 5, 8)))
        with pytest.raises(ValueError, match=r"control_scale: expected 1, since tiny .* has no control branch, got 0.5"):
            backbone.adjusted(control_scale=0.5)
    with pytest.raises(ValueError, match=r"conditioning: expected pooled embeddings \[1, 16\], got \(1, 3\)"):
        flux.predict(z, torch.tensor([0.5]), z, Conditioning(torch.zeros(1, 5, 32), pooled=torch.zeros(1, 3)))
    inpainting = make_transformer(DIFFUSION, {**DIFFUSION.tiny["transformer"], "in_channels": 9})
    with pytest.raises(ValueError, match="unet: expected 4 or 8 input channels, got 9; inpainting"):
        StableDiffusionBackbone(inpainting, unet.autoencoder)
    with pytest.raises(ValueError, match="autoencoder: expected 4 latent channels as the transformer takes, got 16"):
        Flux1Backbone(
            flux.transformer,
            make_autoencoder(DIFFUSION.tiny["vae"] | {"options": DIFFUSION.tiny["vae"]["options"] | {"latent_channels": 16}}),
        )
    widened = widen(make_transformer(DIFFUSION, DIFFUSION.tiny["transformer"]))
    with pytest.raises(ValueError, match="nor does a UNet conditioned by channels beside a control branch"):
        StableDiffusionBackbone(widened, unet.autoencoder, tiny_multi_step("stable_diffusion", control=True).control)
