"""StrSR's critic: a frozen CLIP ConvNeXt that looks, and trainable heads that judge."""

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from ..checks import check_image, describe
from ..compat import import_third_party
from ..weights import MissingModelError, find_model, load_into, load_state_dict
from .clip_heads import HEAD_CHANNELS, CriticHeads

CLIP_NAME = "convnext_xxlarge"
CLIP_FILES = ("open_clip_pytorch_model.bin", "open_clip_model.safetensors")  # as its authors publish it, either will do
CLIP_REPOSITORY = "laion/CLIP-convnext_xxlarge-laion2B-s34B-b82K-augreg-soup"
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
MINIMUM_PX = 128  # the third map has a sixteenth of the sides, and a head needs 4 of them


class FrozenFeatures(nn.Module):
    """Three stages and the embedding of a ConvNeXt, frozen and always in eval mode.

    Args:
        trunk: timm's ConvNeXt: `stem`, `stages`, `norm_pre`, `forward_head`.
        projection: pooled features to the image embedding, as CLIP trained it; identity when the trunk's own head does it.

    Shapes:
        [B, 3, H, W] in [0, 1] -> [B, 384, H/4, W/4], [B, 768, H/8, W/8], [B, 1536, H/16, W/16], [B, 1024] for the XXLarge.

    Source:
        strsr.md section 2.3: [-1, 1] -> [0, 1] -> CLIP's mean and deviation, at the full size of the crop; the fourth stage is
        seen through the embedding only.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, trunk: nn.Module, projection: nn.Module) -> None:
        super().__init__()
        self.trunk, self.projection = trunk, projection
        self.register_buffer("mean", torch.tensor(CLIP_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(CLIP_STD).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "FrozenFeatures":
        """Stays in eval mode: stochastic depth and dropout belong to the training that is over."""
        return super().train(False)

    def forward(self, image: Tensor) -> list[Tensor]:
        """See the class for shapes. Differentiable in the image."""
        check_image(image, "image", channels=(3,))
        if min(image.shape[-2:]) < MINIMUM_PX:
            raise ValueError(f"image: expected sides of at least {MINIMUM_PX} px, got {describe(image)}; use larger crops")
        trunk = cast(Any, self.trunk)
        x = trunk.stem((image - self.mean) / self.std)
        maps: list[Tensor] = []
        for stage in trunk.stages:
            x = stage(x)
            maps.append(x)
        return [*maps[:3], self.projection(trunk.forward_head(trunk.norm_pre(x)))]


class ClipCritic(nn.Module):
    """Images to logits at four levels: patches of three resolutions and the whole image.

    `features` and `heads` can be called apart, so that one pass over the ground truth serves the critic's and the generator's
    step. Only the heads have trainable parameters and enter `trainable_state`.

    Args:
        features: frozen backbone: images to maps and an embedding (`FrozenFeatures`, or another of `feature_maps`).
        channels: of its maps and its embedding.
        hidden: width of the heads.

    Shapes:
        [B, 3, H, W] in [0, 1] -> logits [B, H/16, W/16], [B, H/32, W/32], [B, H/64, W/64], [B, 1].
    """

    def __init__(self, features: nn.Module, channels: tuple[int, ...], hidden: int = HEAD_CHANNELS) -> None:
        super().__init__()
        self.features = features
        self.heads = CriticHeads(channels, hidden)

    def forward(self, image: Tensor) -> list[Tensor]:
        """See the class for shapes."""
        return self.heads(self.features(image))

    @contextmanager
    def judging(self) -> Generator[None]:
        """For the generator's step: heads in eval mode (spectral vectors stay) and without gradient; restored afterwards."""
        was_training = self.heads.training
        wanted = [parameter.requires_grad for parameter in self.heads.parameters()]
        self.heads.eval().requires_grad_(False)
        try:
            yield
        finally:
            self.heads.train(was_training)
            for parameter, value in zip(self.heads.parameters(), wanted, strict=True):
                parameter.requires_grad_(value)

    @torch.no_grad()
    def iterate_power(self) -> None:
        """One power iteration of every spectral norm; the heads are in eval mode afterwards, so that forward passes make none.

        Called once per step, it makes the norms a function of the step alone: passes over parts of a batch, or over parts in
        several processes, all see the same weights.
        """
        self.heads.train()
        for module in self.heads.modules():
            if is_parametrized(module, "weight"):
                _ = module.weight  # reading it in train mode is the iteration
        self.heads.eval()

    def trainable_state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps: the heads alone."""
        return self.heads.state_dict()


def tiny_clip_critic(hidden: int = 16, embedding: int = 32) -> ClipCritic:
    """A critic of the same structure with a random ConvNeXt of 0.2 million parameters, for tests and dry runs."""
    timm = import_third_party("timm")
    trunk: nn.Module = timm.create_model("test_convnext", pretrained=False, num_classes=embedding)
    return _assemble(trunk, nn.Identity(), embedding, hidden)


def random_clip_critic(architecture: str = CLIP_NAME, hidden: int = HEAD_CHANNELS) -> ClipCritic:
    """The critic of the published size without CLIP's weights: what it costs does not depend on them.

    Args:
        architecture: open_clip's name of the model.
        hidden: width of the heads.
    """
    visual, embedding = _image_tower(architecture)
    return _assemble(cast(Any, visual).trunk, cast(Any, visual).head, embedding, hidden)


def find_clip(name: str | Path = "", folders: Iterable[str | Path] = ()) -> Path:
    """Where OpenCLIP's weights lie; without a name the first of `CLIP_FILES` that is there.

    Raises:
        MissingModelError: not there; the message says where to get it.
    """
    folders = list(folders)
    missing: list[MissingModelError] = []
    hint = f"get {' or '.join(CLIP_FILES)} from https://huggingface.co/{CLIP_REPOSITORY}"
    for candidate in (name,) if name else CLIP_FILES:
        try:
            return find_model(candidate, folders, what="OpenCLIP's weights, the critic's backbone", hint=hint)
        except MissingModelError as error:
            missing.append(error)
    raise missing[0]


def load_clip_critic(
    name: str | Path = "", folders: Iterable[str | Path] = (), architecture: str = CLIP_NAME, hidden: int = HEAD_CHANNELS
) -> ClipCritic:
    """The critic with CLIP's weights: frozen backbone in float32, freshly initialised heads.

    Only the image tower is built and read; the text tower's entries in the file are left alone.

    Args:
        name: weight file of open_clip (.bin or .safetensors): a path, or a name in one of `folders`; empty: one of `CLIP_FILES`.
        folders: model folders to search.
        architecture: open_clip's name of the model.
        hidden: width of the heads.

    Raises:
        MissingModelError: not there; the message says where to get it. Nothing is ever downloaded.
        WeightsError: another network's file.
    """
    path = find_clip(name, folders)
    with torch.device("meta"):
        visual, embedding = _image_tower(architecture)
    prefix = "visual."
    state = {key.removeprefix(prefix): value.float() for key, value in load_state_dict(path).items() if key.startswith(prefix)}
    visual.to_empty(device="cpu")
    load_into(visual, state, str(path))
    return _assemble(cast(Any, visual).trunk, cast(Any, visual).head, embedding, hidden)


def _image_tower(architecture: str) -> tuple[nn.Module, int]:
    """open_clip's image tower of a timm ConvNeXt (`trunk`, `head`) and the width of its embedding."""
    models = import_third_party("open_clip")
    config: dict[str, Any] | None = models.get_model_config(architecture)
    if config is None or not str(config["vision_cfg"].get("timm_model_name", "")).startswith(("convnext", "test_convnext")):
        known = [found for found in models.list_models() if "convnext" in found]
        raise ValueError(
            f"architecture: expected a ConvNeXt of open_clip, got {architecture!r}; choose one of: {', '.join(known)}"
        )
    vision: dict[str, Any] = config["vision_cfg"]
    tower = import_third_party("open_clip.timm_model").TimmModel(
        vision["timm_model_name"],
        pretrained=False,
        pool=vision.get("timm_pool", "avg"),
        proj=vision.get("timm_proj", "linear"),
        proj_bias=vision.get("timm_proj_bias", False),
        embed_dim=config["embed_dim"],
        image_size=vision.get("image_size", 224),
    )
    return tower, int(config["embed_dim"])


def _assemble(trunk: nn.Module, projection: nn.Module, embedding: int, hidden: int) -> ClipCritic:
    widths = [int(stage["num_chs"]) for stage in cast(Any, trunk).feature_info[:3]]
    return ClipCritic(FrozenFeatures(trunk, projection), (*widths, embedding), hidden)
