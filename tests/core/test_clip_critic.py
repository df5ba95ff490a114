"""The critic: shapes and counts of strsr.md section 2.3, what is frozen when (check 13), and loading a local file."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from alignsr.core.compat import import_third_party
from alignsr.core.losses.relativistic import approximate_r1, r1_noise, ragan_critic_loss, ragan_generator_loss
from alignsr.core.networks.clip_critic import ClipCritic, find_clip, load_clip_critic, tiny_clip_critic
from alignsr.core.networks.clip_heads import Blur, ConvHead, CriticHeads, EmbeddingHead
from alignsr.core.networks.feature_maps import find_features
from alignsr.core.weights import MissingModelError, WeightsError

CHANNELS = (384, 768, 1536, 1024)


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def image(seed: int = 0, batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, 128, 160, generator=torch.Generator().manual_seed(seed))


@pytest.fixture()
def critic() -> ClipCritic:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return tiny_clip_critic()


class TestHeads:
    def test_13_parameters_and_shapes_for_a_1024_crop(self) -> None:  # torch loads its shape functions for meta tensors
        with torch.device("meta"):
            heads = CriticHeads(CHANNELS)
            features = [torch.empty(1, c, s, s) for c, s in zip(CHANNELS, (256, 128, 64), strict=False)] + [torch.empty(1, 1024)]
            logits = heads(features)
        assert [count(head) for head in [*heads.maps, heads.embedding]] == [1_770_497, 3_539_969, 7_078_913, 525_313]
        assert round(count(heads) / 1e6, 3) == 12.915
        assert [tuple(level.shape) for level in logits] == [(1, 64, 64), (1, 32, 32), (1, 16, 16), (1, 1)]

    def test_blur_is_a_low_pass_of_unit_sum(self) -> None:
        impulse = torch.zeros(1, 2, 9, 9)
        impulse[0, 0, 4, 4] = 1.0
        out = Blur(2)(impulse)
        assert out.shape == (1, 2, 10, 10)
        assert out[0, 0].sum() == 1 and out[0, 1].abs().max() == 0
        assert torch.equal(out[0, 0, 4, 3:7], torch.tensor([1.0, 3.0, 3.0, 1.0]) * 3 / 64)
        checker = (torch.arange(16)[:, None] + torch.arange(16)) % 2 * 2.0 - 1
        assert Blur(1)(checker.expand(1, 1, 16, 16))[..., 2:-2, 2:-2].abs().max() == 0

    def test_shifting_by_the_stride_shifts_the_logits(self) -> None:
        head = ConvHead(4, 8).eval()
        x = torch.randn(1, 4, 40, 40, generator=torch.Generator().manual_seed(0))
        assert torch.allclose(head(x.roll(4, 3))[:, 2:-2, 3:-2], head(x)[:, 2:-2, 2:-3], atol=1e-5)

    def test_weights_have_unit_spectral_norm(self) -> None:
        for layer in (ConvHead(6, 8).conv_in, EmbeddingHead(6, 8).linear_in):
            for _ in range(30):
                weight = layer.weight
            assert torch.linalg.matrix_norm(weight.detach().flatten(1), 2).item() == pytest.approx(1.0, abs=0.02)

    def test_eval_mode_is_repeatable_and_autocast_changes_nothing(self) -> None:
        heads = CriticHeads((4, 4, 4, 6), 8).eval()
        features = [torch.randn(1, 4, 8, 8) for _ in range(3)] + [torch.randn(1, 6)]
        first, second = heads(features), heads(features)
        with torch.autocast("cpu", torch.bfloat16):
            cast = heads([level.bfloat16() for level in features])
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        assert all(level.dtype == torch.float32 for level in cast)

    def test_too_small_maps_and_wrong_counts_are_named(self) -> None:
        with pytest.raises(ValueError, match="features: expected sides of at least 4"):
            ConvHead(4, 8)(torch.zeros(1, 4, 3, 8))
        with pytest.raises(ValueError, match="features: expected 3 maps and an embedding, got 2 tensors"):
            CriticHeads((4, 4, 4, 6), 8)([torch.zeros(1, 4, 8, 8), torch.zeros(1, 6)])


class TestCritic:
    def test_logits_of_four_levels(self, critic: ClipCritic) -> None:
        assert [tuple(level.shape) for level in critic(image())] == [(2, 8, 10), (2, 4, 5), (2, 2, 2), (2, 1)]

    def test_13_generator_step_gives_gradient_to_the_image_alone(self, critic: ClipCritic) -> None:
        critic.train()
        sr = image(1).requires_grad_()
        with torch.no_grad():
            real = critic(image())
        before = {name: value.clone() for name, value in critic.state_dict().items()}
        with critic.judging():
            fake = critic(sr)
            ragan_generator_loss(fake, real).mean().backward()
        assert sr.grad is not None and sr.grad.abs().max() > 0
        assert all(parameter.grad is None for parameter in critic.parameters())
        assert all(torch.equal(value, before[name]) for name, value in critic.state_dict().items())
        assert critic.heads.training and all(p.requires_grad for p in critic.heads.parameters())

    def test_13_critic_step_trains_the_heads_alone_and_lowers_its_loss(self, critic: ClipCritic) -> None:
        critic.train()
        assert not critic.features.trunk.training
        optimizer = torch.optim.SGD((p for p in critic.parameters() if p.requires_grad), 0.1)
        gt, sr = image(), image(1) * 0.5
        features = critic.features(gt), critic.features(sr)
        assert not any(level.requires_grad for level in features[0])
        losses = []
        for _ in range(4):
            fake, real = critic.heads(features[1]), critic.heads(features[0])
            noise = r1_noise(gt, generator=torch.Generator().manual_seed(0))
            loss = (ragan_critic_loss(fake, real) + 10 * approximate_r1(critic, gt, noise)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0]
        assert all(parameter.grad is None for parameter in critic.features.parameters())
        assert all(parameter.grad is not None for parameter in critic.heads.parameters())

    def test_heads_round_trip(self, critic: ClipCritic, tmp_path: Path) -> None:
        critic.eval()
        wanted = critic(image())
        save_file(critic.trainable_state(), tmp_path / "heads.safetensors")
        other = tiny_clip_critic().eval()
        other.features.load_state_dict(critic.features.state_dict())
        from safetensors.torch import load_file

        other.heads.load_state_dict(load_file(tmp_path / "heads.safetensors"))
        assert all(torch.equal(a, b) for a, b in zip(other(image()), wanted, strict=True))

    def test_small_images_are_named(self, critic: ClipCritic) -> None:
        with pytest.raises(ValueError, match="image: expected sides of at least 128 px"):
            critic(torch.zeros(1, 3, 96, 256))


class TestLoading:
    @pytest.fixture()
    def tiny_clip(self, tmp_path: Path) -> str:
        """A CLIP whose image tower is a random tiny ConvNeXt, made known to open_clip by a file."""
        config = {
            "embed_dim": 24,
            "vision_cfg": {
                "timm_model_name": "test_convnext", "timm_model_pretrained": False, "timm_pool": "", "timm_proj": "linear",
                "image_size": 64,
            },
            "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
        }  # fmt: skip
        (tmp_path / "tiny_convnext_clip.json").write_text(json.dumps(config))
        import_third_party("open_clip").add_model_config(tmp_path / "tiny_convnext_clip.json")
        return "tiny_convnext_clip"

    def test_reads_the_image_tower_of_open_clips_file(self, tiny_clip: str, tmp_path: Path) -> None:  # 2 s: imports open_clip
        model = import_third_party("open_clip").create_model(tiny_clip, pretrained=None, load_weights=False).eval()
        save_file(dict(model.state_dict()), tmp_path / "clip.safetensors")
        critic = load_clip_critic("clip", [tmp_path], architecture=tiny_clip, hidden=8)
        x = image(batch=1)
        found = critic.features(x)
        normal = (x - critic.features.mean) / critic.features.std
        with torch.no_grad():
            wanted = model.encode_image(normal)
            maps = model.visual.trunk.forward_intermediates(normal, intermediates_only=True)
        assert torch.allclose(found[3], wanted, atol=1e-6)
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found[:3], maps[:3], strict=True))
        assert [tuple(level.shape) for level in critic(x)] == [(1, 8, 10), (1, 4, 5), (1, 2, 2), (1, 1)]

    @pytest.mark.parametrize("file", ["open_clip_pytorch_model.bin", "open_clip_model.safetensors"])
    def test_both_published_names_are_found_without_being_named(self, file: str, tmp_path: Path) -> None:
        if file.endswith(".bin"):
            torch.save({"a": torch.zeros(1)}, tmp_path / file)
        else:
            save_file({"a": torch.zeros(1)}, tmp_path / file)
        for found in (find_clip(folders=[tmp_path]), find_features("clip", "", [tmp_path])):
            assert found == tmp_path / file

    def test_full_size_on_the_meta_device(self) -> None:
        from alignsr.core.networks.clip_critic import _image_tower

        with torch.device("meta"):
            tower, embedding = _image_tower("convnext_xxlarge")
        assert round(count(tower) / 1e6, 1) == 846.5
        assert embedding == 1024

    def test_missing_and_unfitting_files_are_named(self, tiny_clip: str, tmp_path: Path) -> None:
        with pytest.raises(MissingModelError, match=r"open_clip_pytorch_model.bin.*huggingface.co/laion/CLIP-convnext_xxlarge"):
            load_clip_critic(folders=[tmp_path])
        save_file({"visual.trunk.stem.0.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
        with pytest.raises(WeightsError, match="missing: "):
            load_clip_critic("other", [tmp_path], architecture=tiny_clip)
        save_file({"a": torch.zeros(2)}, tmp_path / "third.safetensors")
        with pytest.raises(ValueError, match="architecture: expected a ConvNeXt of open_clip, got 'ViT-B-32'"):
            load_clip_critic("third", [tmp_path], architecture="ViT-B-32")
