"""The model that preferences train: opened with its frozen adapter, an adapter added, written and read back; latents on disk."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from multi_step_helpers import write_folder
from torch import Tensor

from alignsr.core.backbones import load_backbone, open_multi_step
from alignsr.core.backbones.latent import tiny_multi_step
from alignsr.core.backbones.published import PUBLISHED
from alignsr.core.diffusion import MultiStepBackbone
from alignsr.core.lora_files import read_adapter, save_adapter
from alignsr.core.weights import MissingModelError, WeightsError
from alignsr.train.candidates.config import CandidateModelConfig, CandidatesConfig
from alignsr.train.candidates.model import open_model
from alignsr.train.config import ConfigError
from alignsr.train.latent_cache import LatentCache
from alignsr.train.multi_step import (
    ADVERSARY,
    POLICY,
    SFT,
    AdapterConfig,
    Autocast,
    MultiStepModelConfig,
    Trainee,
    add_adapter,
    build_trainee,
    check_multi_step,
    load_adapter,
    save_trained,
)

KINDS = ("flux1", "stable_diffusion", "pixel")


def seed(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def tiny(kind: str, **changes: Any) -> MultiStepModelConfig:
    return MultiStepModelConfig(backbone=kind, source="tiny", precision="fp32", vae_precision="fp32", **changes)


def filled(trainee: Trainee, name: str, number: int) -> None:
    with torch.no_grad():
        for index, parameter in enumerate(trainee.stack.parameters(name)):
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=seed(100 * number + index)))


def write_adapter(kind: str, path: Path, number: int, rank: int = 2, **facts: Any) -> Path:
    trainee = build_trainee(tiny(kind, **facts))
    add_adapter(trainee, "made", AdapterConfig(rank, alpha=2.0 * rank))
    filled(trainee, "made", number)
    save_trained(trainee, "made", path, {"name": path.stem})
    return path.with_name(f"{path.stem}-adapter.safetensors") if kind == "pixel" else path


def answer(backbone: MultiStepBackbone) -> Tensor:
    is_pixel = backbone.spec.latent_stride == 1
    z = torch.randn((1, 3, 16, 24) if is_pixel else (1, 4, 4, 8), generator=seed(4))
    time = torch.tensor([0.6]) if backbone.process.prediction == "velocity" else torch.tensor([600])
    with torch.no_grad():
        return backbone.predict(z, time, z.flip(3))


@pytest.mark.parametrize("kind", KINDS)
def test_reference_policy_and_adversary_share_one_model(kind: str, tmp_path: Path) -> None:
    sft, adversary = write_adapter(kind, tmp_path / "sft.safetensors", 1), write_adapter(kind, tmp_path / "adv.safetensors", 2)
    trainee = build_trainee(tiny(kind, adapter=str(sft)))
    assert trainee.reference == (SFT,) == trainee.stack.active
    reference = answer(trainee.backbone)
    assert not torch.equal(reference, answer(build_trainee(tiny(kind)).backbone))
    add_adapter(trainee, POLICY, AdapterConfig(2), seed=5)
    load_adapter(trainee, ADVERSARY, str(adversary))
    trainee.stack.use(SFT, POLICY)
    assert torch.equal(answer(trainee.backbone), reference)
    trainee.stack.use(SFT, ADVERSARY)
    assert not torch.equal(answer(trainee.backbone), reference)
    assert not [p for _, module in trainee.backbone.modules() for p in module.parameters() if p.requires_grad]
    assert trainee.stack.train(POLICY) == trainee.stack.parameters(POLICY)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_acts_as_what_was_trained(kind: str, tmp_path: Path) -> None:
    sft = write_adapter(kind, tmp_path / "sft.safetensors", 1)
    trainee = build_trainee(tiny(kind, adapter=str(sft)))
    add_adapter(trainee, POLICY, AdapterConfig(3))
    filled(trainee, POLICY, 7)
    trainee.stack.use(SFT, POLICY)
    wanted = answer(trainee.backbone)
    path = save_trained(trainee, POLICY, tmp_path / "policy.safetensors", {"name": "policy"})
    if kind == "pixel":
        opened: Any = load_backbone(path)
        alone = tmp_path / "policy-adapter.safetensors"
    else:
        joined = read_adapter(tmp_path / "policy-with-sft.safetensors")
        assert joined.rank == 5
        opened = open_multi_step(kind, "tiny", precision="fp32", adapters=[(joined, 1.0)])
        twice = open_multi_step(kind, "tiny", precision="fp32", adapters=[(read_adapter(p), 1.0) for p in (sft, path)])
        torch.testing.assert_close(answer(twice), wanted, rtol=1e-5, atol=1e-5)
        alone = path
    torch.testing.assert_close(answer(opened), wanted, rtol=1e-5, atol=1e-5)
    again = build_trainee(tiny(kind, adapter=str(sft)))
    add_adapter(again, POLICY, AdapterConfig(3, alpha=6.0), init=str(alone))  # another alpha: the matrices make up for it
    again.stack.use(SFT, POLICY)
    torch.testing.assert_close(answer(again.backbone), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kind", "version", "name"), [("flux1", "", "flux1"), ("stable_diffusion", "", "sd2")])
def test_an_empty_source_means_the_published_folder_where_there_are_no_single_files(
    kind: str, version: str, name: str, tmp_path: Path
) -> None:
    """For training and for candidates."""
    config = replace(tiny(kind), source="", version=version)
    with pytest.raises(MissingModelError, match=PUBLISHED[name].folders[0]):
        build_trainee(config, folders=[tmp_path])
    write_folder(tmp_path / PUBLISHED[name].folders[0], tiny_multi_step(kind))
    found = build_trainee(config, folders=[tmp_path]).backbone
    assert found.spec.parameters == build_trainee(tiny(kind)).backbone.spec.parameters
    sampled = CandidatesConfig(model=CandidateModelConfig(backbone=kind, source="", version=version, text="none"))
    assert open_model(sampled, tmp_path / "run", torch.device("cpu"), [tmp_path])[1]["parameters"] == found.spec.parameters


def test_condition_only_goes_through_training_and_back(tmp_path: Path) -> None:
    sft = write_adapter("flux1", tmp_path / "sft.safetensors", 1, lora_scope="condition_only", guidance=3.5)
    assert read_adapter(sft).info["lora_scope"] == "condition_only"
    trainee = build_trainee(tiny("flux1", adapter=str(sft)))
    backbone: Any = trainee.backbone
    assert (backbone.lora_scope, backbone.guidance) == ("condition_only", 3.5)
    add_adapter(trainee, POLICY, AdapterConfig(3))
    filled(trainee, POLICY, 7)
    trainee.stack.use(SFT, POLICY)
    wanted = answer(trainee.backbone)
    save_trained(trainee, POLICY, tmp_path / "policy.safetensors", {})
    joined = read_adapter(tmp_path / "policy-with-sft.safetensors")
    assert joined.info["lora_scope"] == "condition_only"
    opened = open_multi_step("flux1", "tiny", precision="fp32", adapters=[(joined, 1.0)])
    torch.testing.assert_close(answer(opened), wanted, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="lora_scope: expected 'condition_only'"):
        build_trainee(tiny("flux1", adapter=str(sft), lora_scope="all"))


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    flux = write_adapter("flux1", tmp_path / "flux.safetensors", 1)
    with pytest.raises(ValueError, match="expected an adapter of stable_diffusion"):
        build_trainee(tiny("stable_diffusion", adapter=str(flux)))
    with pytest.raises(MissingModelError, match="nowhere"):
        build_trainee(tiny("flux1", adapter="nowhere.safetensors"))
    trainee = build_trainee(tiny("flux1"))
    with pytest.raises(WeightsError, match="expected an adapter of rank 3"):
        add_adapter(trainee, POLICY, AdapterConfig(3), init=str(flux))
    with pytest.raises(ValueError, match="expected an adapter of flux1"):
        load_adapter(trainee, ADVERSARY, str(write_adapter("stable_diffusion", tmp_path / "sd.safetensors", 1)))
    with pytest.raises(ConfigError, match=r"model.source: expected a model that is sampled in many steps"):
        build_trainee(MultiStepModelConfig(backbone="pixel", source="lite-x4"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guidance": 2.0}, r"model.guidance: expected none for pixel"),
        ({"lora_scope": "all"}, r"model.lora_scope: expected none for pixel"),
        ({"version": "sd2"}, r"model.version: expected none for pixel"),
        ({"scale": 0}, r"model.scale: expected at least 1"),
        ({"latent_cache": "x", "posterior": "sample"}, r"model.latent_cache: expected model.posterior"),
    ],
)
def test_settings_that_mean_nothing_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_multi_step(tiny("pixel", **changes), AdapterConfig(), 64)


@pytest.mark.parametrize(("patch", "multiple"), [(60, "flux1 takes 16"), (66, "model.scale 4")])
def test_sides_that_do_not_divide_are_refused(patch: int, multiple: str) -> None:
    with pytest.raises(ValueError, match=f"expected a multiple of what {multiple}|expected a multiple of {multiple}"):
        check_multi_step(tiny("flux1"), AdapterConfig(), patch)


def test_rank_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a rank of at least 1"):
        check_multi_step(tiny("flux1"), AdapterConfig(rank=0), 64)


def test_latents_are_encoded_once_and_are_the_same(tmp_path: Path) -> None:
    trainee = build_trainee(tiny("stable_diffusion"))
    calls: list[int] = []

    def encode(image: Tensor) -> Tensor:
        calls.append(image.shape[0])
        return trainee.backbone.encode(image)

    vae = dict(trainee.backbone.modules())["vae"]
    cache = LatentCache(tmp_path, vae, encode)
    pictures = torch.rand(2, 3, 16, 16, generator=seed(1)) * 2 - 1
    first = cache.encode(pictures)
    assert calls == [1, 1]
    again = cache.encode(pictures.flip(0))
    assert calls == [1, 1]
    assert torch.equal(again.flip(0), first)
    torch.testing.assert_close(first, trainee.backbone.encode(pictures))
    with torch.no_grad():
        next(vae.parameters()).add_(1)
    assert LatentCache(tmp_path, vae, encode).folder != cache.folder  # other weights, other latents
    cache.path(pictures[:1]).write_bytes(b"no safetensors")
    with pytest.raises(WeightsError):
        cache.encode(pictures)


def test_autocast_predicts_in_float32_and_reads_the_cache(tmp_path: Path) -> None:
    trainee = build_trainee(tiny("stable_diffusion"))
    model = Autocast(trainee.backbone, lambda: torch.autocast("cpu", torch.bfloat16), tmp_path)
    exact, rough = answer(trainee.backbone), answer(model)
    assert rough.dtype == torch.float32
    assert not torch.equal(exact, rough)
    torch.testing.assert_close(exact, rough, rtol=0.1, atol=0.1)
    picture = torch.rand(1, 3, 16, 16, generator=seed(1)) * 2 - 1
    assert torch.equal(model.encode(picture), trainee.backbone.encode(picture))
    model.encode_lq(picture)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2
    flux = [build_trainee(tiny("flux1", condition_stride=stride)).backbone for stride in (1, 2)]
    shared = [Autocast(backbone, nullcontext, tmp_path / "flux") for backbone in flux]
    wide = torch.rand(1, 3, 32, 32, generator=seed(1)) * 2 - 1
    assert [one.encode_lq(wide).shape[-1] for one in shared] == [4, 2]  # a condition of half the resolution is another latent
    drawn = model.encode(picture, generator=seed(3))
    assert torch.equal(drawn, trainee.backbone.encode(picture, generator=seed(3)))


def test_adapters_of_pixel_models_are_read_back(tmp_path: Path) -> None:
    path = write_adapter("pixel", tmp_path / "one.safetensors", 1)
    adapter = read_adapter(path)
    assert adapter.info["backbone"] == "pixel"
    assert adapter.scale == 2.0
    assert read_adapter(save_adapter(tmp_path / "two.safetensors", adapter)).rank == 2
