"""Load Multi-Step Backbone and Multi-Step SR in miniature: what they pass on, prompts, previews, cancel, files, bad input."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from latent_helpers import seed, vae_original
from multi_step_helpers import flux1_original, write_folder
from node_helpers import picture
from PIL import Image
from safetensors.torch import save_file

from alignsr.core.backbones.latent import tiny_multi_step
from alignsr.core.conditioning import PromptStore
from alignsr.core.images import quantize_8bit
from alignsr.core.lora import LORA_TARGETS, Adapter, expected_state
from alignsr.core.lora_files import save_adapter
from alignsr.core.records import Conditioning
from alignsr.core.sampling import restore_multi_step
from alignsr.core.weights import MissingModelError, WeightsError
from alignsr.nodes import condition, lora, models, one_step
from alignsr.nodes.host import Interrupted, LocalHost, use_host
from alignsr.nodes.multi_step import LoadMultiStepBackbone
from alignsr.nodes.multi_step_sampling import MultiStepSR
from alignsr.nodes.restore import OneStepSR

WAYS = [("flux1", "none"), ("flux1", "auto"), ("sd2", "none"), ("sd2", "auto")]
SMALL: dict[str, Any] = {"tile_px": 64, "overlap_px": 16, "steps": 2}


@pytest.fixture(autouse=True)
def prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ALIGNSR_PROMPTS", str(tmp_path / "prompts"))
    return tmp_path / "prompts"


@pytest.fixture
def host(tmp_path: Path) -> Any:
    with use_host(LocalHost(models_dirs=[tmp_path / "models"], output_dir=tmp_path / "out")) as found:
        yield found


def load(backbone: str, control: str = "none", **options: Any) -> Any:
    return LoadMultiStepBackbone().load(backbone, "tiny", control, precision="fp32", **options)[0]


@pytest.mark.parametrize(("backbone", "control"), WAYS)
def test_the_node_is_what_core_does(backbone: str, control: str, host: Any) -> None:
    model, image = load(backbone, control), picture(2, 20, 24)
    sr, up, said = MultiStepSR().upscale(model, image, seed=7, **SMALL)
    facts = json.loads(said)
    assert sr.shape == up.shape == (2, 80, 96, 3) and facts["tiles"] == 8 and facts["seeds"] == [7, 7]
    assert (
        facts["color_fix"] == "adain"
        and facts["sampler"] == {"flux1": "euler", "sd2": "ddpm" if control == "auto" else "dpm"}[backbone]
    )
    by_hand = tiny_multi_step("flux1" if backbone == "flux1" else "stable_diffusion", control=control == "auto")
    wanted = restore_multi_step(by_hand, image.movedim(-1, 1), seeds=7, **SMALL).sr
    assert torch.equal(sr, quantize_8bit(wanted).movedim(1, -1))
    assert torch.equal(MultiStepSR().upscale(model, image.flip(0), seed=7, **SMALL)[0], sr.flip(0))
    copies = MultiStepSR().upscale(model, image[:1].expand(2, -1, -1, -1), seed=6, seeds="count up", **SMALL)
    assert torch.equal(copies[0][1], sr[0]) and json.loads(copies[2])["seeds"] == [6, 7]


def test_facts_of_the_loader(host: Any) -> None:
    _, said = LoadMultiStepBackbone().load("flux1", "tiny", "auto")
    facts = json.loads(said)
    assert facts["sampling"]["steps"] == 25 and facts["sampling"]["guidance_kind"] == "embedded"
    assert facts["files_used"] == {"transformer": "tiny", "vae": "auto", "control": "tiny"} and facts["token_px"] == 16
    half = load("flux1", condition="half")
    assert half.spec.size_multiple == 32 and load("flux1", "auto", condition="half").spec.size_multiple == 16


@pytest.mark.parametrize("offload", one_step.OFFLOADS)
def test_what_runs_in_inference_mode_is_of_use_outside(offload: str, host: Any) -> None:
    with torch.inference_mode():
        model, image = load("flux1", "auto", offload=offload), picture(1, 12, 12)
        inside = MultiStepSR().upscale(model, image, **SMALL)[0]
    assert not any(p.is_inference() for _, part in model.backbone.modules() for p in part.parameters())
    assert torch.equal(inside, MultiStepSR().upscale(model, image.clone(), **SMALL)[0])


def test_previews_show_the_picture_and_cancel_comes_within_a_step(tmp_path: Path) -> None:
    shown: list[tuple[int, int, Image.Image | None]] = []
    host = LocalHost(models_dirs=[tmp_path], on_progress=lambda value, total, _, preview: shown.append((value, total, preview)))
    with use_host(host):
        model, image = load("flux1"), picture(1, 20, 24)
        shown.clear()
        MultiStepSR().upscale(model, image, **SMALL)
        previews = [preview for *_, preview in shown if preview is not None]
        jobs = [(value, total) for value, total, preview in shown if preview is None and total > 1]
        assert len(previews) == 2 and previews[0].size == (12, 10)
        assert jobs[-1] == (16, 16) and [value for value, _ in jobs] == list(range(1, 17))
        calls: list[int] = []
        real = model.backbone.predict

        def stop(*given: Any) -> Any:
            calls.append(1)
            if len(calls) == 6:
                host.cancel()
            return real(*given)

        model.backbone.predict = stop
        with pytest.raises(Interrupted):
            MultiStepSR().upscale(model, image, **SMALL)
        assert len(calls) == 6


def test_grey_and_alpha_stay(host: Any) -> None:
    model = load("flux1")
    assert MultiStepSR().upscale(model, torch.rand(1, 8, 8, 4), steps=1)[0].shape == (1, 32, 32, 4)
    grey = MultiStepSR().upscale(model, torch.rand(1, 8, 8, 1), steps=1)[0]
    assert grey.shape == (1, 32, 32, 1)


def test_prompts_go_through_the_models_own_encoders(host: Any) -> None:
    model, image = load("sd2", "auto"), picture(1, 12, 12)
    (tags,) = condition.TextEncode().encode(model, "cat, wall", "tiny", "fp32")
    assert tags.embeddings.shape == (1, 77, 32) and tags.pooled is None
    (bad,) = condition.TextEncode().encode(model, "blur", "tiny", "fp32")
    options: dict[str, Any] = {"guidance": 3.0, **SMALL}
    plain, with_tags, without = (
        MultiStepSR().upscale(model, image, conditioning=told, negative=other, **options)[0]
        for told, other in ((None, None), (tags, bad), (tags, None))
    )
    assert not torch.equal(plain, with_tags) and not torch.equal(with_tags, without)
    assert torch.equal(
        MultiStepSR().upscale(model, image, conditioning=tags, negative=bad, guidance=1.0, **SMALL)[0],
        MultiStepSR().upscale(model, image, conditioning=tags, guidance=1.0, **SMALL)[0],
    )
    (of_flux,) = condition.TextEncode().encode(load("flux1"), "", "tiny", "fp32")
    assert of_flux.embeddings.shape == (1, 512, 32) and of_flux.pooled.shape == (1, 16)
    (zeros,) = condition.EmptyConditioning().make(load("flux1"), 5)
    assert MultiStepSR().upscale(load("flux1"), image, conditioning=zeros, **SMALL)[0].shape == (1, 48, 48, 3)


def put_flux1(folder: Path) -> Any:
    """Single files as ComfyUI users have them."""
    backbone = tiny_multi_step("flux1", seed=3)
    for key in ("diffusion_models", "vae"):
        (folder / key).mkdir(parents=True)
    save_file(flux1_original(backbone.transformer.state_dict()), folder / "diffusion_models" / "flux1-dev.safetensors")
    save_file(vae_original(dict(backbone.autoencoder.state_dict())), folder / "vae" / "ae.safetensors")
    return backbone


def test_files_are_found_and_prompts_remembered(host: Any, tmp_path: Path, prompts: Path) -> None:
    """The whole way of a user: single files, no text encoders, the empty prompt on disk."""
    backbone, image = put_flux1(tmp_path / "models"), picture(1, 12, 12)
    model, _ = LoadMultiStepBackbone().load("flux1", precision="fp32")
    assert "backbone" not in vars(model) and next(model.meta.transformer.parameters()).is_meta
    with pytest.raises(MissingModelError, match=r"clip_l.safetensors.*download flux1-text.*needed once, for the prompt ''"):
        MultiStepSR().upscale(model, image, **SMALL)
    told = Conditioning(torch.randn(1, 9, 32, generator=seed(1)), pooled=torch.randn(1, 16, generator=seed(2)))
    PromptStore(prompts).put("flux1", "", told)
    sr = MultiStepSR().upscale(model, image, **SMALL)[0]
    wanted = restore_multi_step(backbone, image.movedim(-1, 1), conditioning=told, **SMALL).sr
    assert torch.allclose(sr, quantize_8bit(wanted).movedim(1, -1), atol=1.01 / 255)
    assert torch.equal(condition.TextEncode().encode(model, "")[0].embeddings, told.embeddings)


def test_diffusers_folders_and_branches_are_found(host: Any, tmp_path: Path, prompts: Path) -> None:
    backbone = tiny_multi_step("stable_diffusion", control=True, seed=3)
    write_folder(tmp_path / "models" / "diffusers" / "stable-diffusion-2-base", backbone)
    (tmp_path / "models" / "controlnet").mkdir()
    save_file(dict(backbone.control.state_dict()), tmp_path / "models" / "controlnet" / "c-sd2.safetensors")
    model, said = LoadMultiStepBackbone().load("sd2", control_name="auto", precision="fp32")
    assert json.loads(said)["name"] == "Stable Diffusion 2 base with a control branch"
    negative = "dotted, noise, blur, lowres, smooth"
    for text in ("", negative):
        PromptStore(prompts).put("sd2", text, Conditioning(torch.randn(1, 9, 32, generator=seed(len(text)))))
    sr, _, info = MultiStepSR().upscale(model, picture(1, 12, 12), **SMALL)
    assert json.loads(info)["guidance"] == 3.5 and sr.shape == (1, 48, 48, 3)
    assert "c-sd2.safetensors" in LoadMultiStepBackbone.INPUT_TYPES()["required"]["control_name"][0]


@pytest.mark.parametrize("backbone", ["flux1", "sd2"])
def test_adapters_of_many_steps_merge(backbone: str, host: Any, tmp_path: Path) -> None:
    kind = "flux1" if backbone == "flux1" else "stable_diffusion"
    base = tiny_multi_step(kind)
    network = next(iter(base.modules()))[1]
    state = {
        key: torch.randn(like.shape, generator=seed(i)) * 0.1
        for i, (key, like) in enumerate(expected_state(network, LORA_TARGETS[kind], 4).items())
    }
    info = {"backbone": kind, "rank": 4, "alpha": 4.0, "targets": list(LORA_TARGETS[kind])}
    (tmp_path / "models" / "loras").mkdir(parents=True)
    save_adapter(tmp_path / "models" / "loras" / "mine.safetensors", Adapter(state, info))
    adapter, _ = lora.LoadLoRA().load("mine.safetensors")
    model, said = lora.MergeLoRA().merge(load(backbone), adapter, 0.5)
    assert json.loads(said)["loras"][0]["strength"] == 0.5
    image = picture(1, 12, 12)
    merged, plain = (MultiStepSR().upscale(one, image, **SMALL)[0] for one in (model, load(backbone)))
    assert not torch.equal(merged, plain)
    with pytest.raises(ValueError, match=f"lora: expected an adapter of .*is one of {kind}"):
        lora.MergeLoRA().merge(load("sd2" if backbone == "flux1" else "flux1"), adapter, 1.0)


BAD_LOAD: list[tuple[dict[str, Any], str]] = [
    ({"backbone": "flux2"}, "backbone: expected one of flux1, sd2, sd15, sdxl, got 'flux2'"),
    ({"offload": "never"}, "offload: expected one of sequential, none, got 'never'"),
    ({"condition": "third"}, "condition: expected one of full, half, got 'third'"),
    ({"precision": "int1"}, "precision: expected fp32, bf16, fp16, 8bit, 4bit, got 'int1'"),
    ({"vae_tile_px": 12}, "vae_tile_px: expected"),
    ({"backbone": "sdxl"}, "model_name: expected files for sdxl, tiny is made for flux1, sd2 and sd15"),
]


@pytest.mark.parametrize(("options", "message"), BAD_LOAD, ids=[next(iter(options)) for options, _ in BAD_LOAD])
def test_bad_settings_of_the_loader(options: dict[str, Any], message: str, host: Any) -> None:
    with pytest.raises(ValueError, match=message):
        LoadMultiStepBackbone().load(**{"backbone": "flux1", "model_name": "tiny", **options})


def test_missing_files_name_a_download(host: Any) -> None:
    with pytest.raises(MissingModelError, match=r"flux1-dev.safetensors .*gated.*`alignsr models download flux1 --to .*FLUX.1"):
        LoadMultiStepBackbone().load("flux1")
    with pytest.raises(MissingModelError, match=r"512-base-ema.safetensors .*Or a diffusers folder in .*stable-diffusion-2-base"):
        LoadMultiStepBackbone().load("sd2")
    with pytest.raises(MissingModelError, match=r"ASASR/dpo_lora.*`alignsr models download ASASR`"):
        lora.LoadLoRA().load(lora.ASASR[1])


def test_a_branch_of_the_other_backbone_is_refused(host: Any, tmp_path: Path) -> None:
    put_flux1(tmp_path / "models")
    branch = tiny_multi_step("stable_diffusion", control=True).control
    (tmp_path / "models" / "controlnet").mkdir()
    save_file(dict(branch.state_dict()), tmp_path / "models" / "controlnet" / "dp2o-sd2.safetensors")
    with pytest.raises(WeightsError, match=r"dp2o-sd2.safetensors: the weights do not fit this network"):
        LoadMultiStepBackbone().load("flux1", control_name="dp2o-sd2.safetensors")


BAD: list[tuple[dict[str, Any], str]] = [
    ({"sampler": "ddim"}, "sampler: expected euler for a model that predicts velocity, got 'ddim'; use auto"),
    ({"seeds": "random"}, "seeds: expected one of same, count up, got 'random'"),
    ({"steps": 1001}, "steps: expected an integer in 1..1000, got 1001"),
    ({"control_scale": 0.5}, "control_scale: expected 1, since tiny flux1 has no control branch, got 0.5"),
    ({"guidance": 200.0}, r"guidance: expected a number in \[0, 100\], got 200.0"),
    ({"image": torch.full((1, 8, 8, 3), float("nan"))}, "image: expected finite values"),
    ({"conditioning": Conditioning(torch.zeros(1, 4, 7))}, r"conditioning: expected embeddings \[1 or 1, N, 32\]"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=[next(iter(options)) for options, _ in BAD])
def test_bad_input_is_one_sentence(options: dict[str, Any], message: str, host: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        MultiStepSR().upscale(**{"model": load("flux1"), "image": picture(1, 8, 8), "steps": 1, **options})


def test_models_of_one_step_and_of_many_are_told_apart(host: Any) -> None:
    network = models.LoadSRModel().load("lite-x4")[0]
    with pytest.raises(TypeError, match="model: expected a model that is sampled in many steps"):
        MultiStepSR().upscale(network, picture(1, 8, 8))
    one = one_step.LoadOneStepBackbone().load("z_image", "tiny", precision="fp32")[0]
    with pytest.raises(TypeError, match=r"model: expected a model that is sampled in many steps .*got tiny z_image"):
        MultiStepSR().upscale(one, picture(1, 8, 8))
    with pytest.raises(TypeError, match="model: expected a network or a model of one step, got tiny flux1; use Multi-Step SR"):
        OneStepSR().upscale(load("flux1"), picture(1, 8, 8), 4)


def test_memory_that_runs_out_halves_the_tiles(host: Any, caplog: pytest.LogCaptureFixture) -> None:
    model, image = load("flux1"), picture(1, 40, 40)
    real = model.backbone.predict

    def scarce(z: torch.Tensor, *rest: Any) -> torch.Tensor:
        if z.shape[-1] > 10:
            raise torch.OutOfMemoryError("out of memory")
        return real(z, *rest)

    model.backbone.predict = scarce
    _, _, said = MultiStepSR().upscale(model, image, steps=1)
    assert json.loads(said)["tile_px"] == 80 and "trying again with 80 px" in caplog.text


def test_a_bundled_pixel_model_samples_too(host: Any) -> None:
    model = models.LoadSRModel().load("pixel-x4")[0]
    sr, _, said = MultiStepSR().upscale(model, picture(1, 12, 12), steps=2)
    assert sr.shape == (1, 48, 48, 3) and json.loads(said)["shift"] == 1.0
