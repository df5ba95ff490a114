"""Trainable heads of StrSR's critic: they turn frozen features into logits."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from ..checks import check_positive_int, describe

HEAD_CHANNELS = 512
SLOPE = 0.2


class Blur(nn.Module):
    """Low-pass filter before down-sampling: [1 3 3 1] / 8 in both directions, stride 1, zeros outside.

    Args:
        padding: zeros on every side; the result is 2 padding - 3 larger than the input.

    Shapes:
        [B, C, h, w] -> [B, C, h + 2 padding - 3, w + 2 padding - 3].

    Source:
        strsr.md section 2.3; Zhang 2019, arXiv:1904.11486 (anti-aliased strides).
    """

    kernel: Tensor

    def __init__(self, padding: int) -> None:
        super().__init__()
        self.padding = padding
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.register_buffer("kernel", torch.outer(taps, taps), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """See the class for shapes."""
        kernel = self.kernel.to(x).expand(x.shape[1], 1, 4, 4)
        return F.conv2d(x, kernel, padding=self.padding, groups=x.shape[1])


class ConvHead(nn.Module):
    """A logit per patch of a feature map: blur, 3x3 stride 2, LeakyReLU 0.2, blur, 1x1 stride 2 to one channel.

    Both convolutions are spectrally normalised: one power iteration per forward pass in train mode, none in eval mode.

    Args:
        channels: of the feature map.
        hidden: channels in between.

    Shapes:
        [B, channels, h, w] -> [B, h', w'], a quarter of the sides (256 -> 257 -> 128 -> 127 -> 64); h, w >= 4.

    Source:
        StrSR, arXiv:2603.06275v1; strsr.md section 2.3: 1,770,497 / 3,539,969 / 7,078,913 parameters for 384 / 768 / 1536
        channels.
    """

    def __init__(self, channels: int, hidden: int = HEAD_CHANNELS) -> None:
        super().__init__()
        check_positive_int(channels, "channels")
        check_positive_int(hidden, "hidden")
        self.blur_in, self.blur_out = Blur(2), Blur(1)
        self.conv_in = spectral_norm(nn.Conv2d(channels, hidden, 3, stride=2))
        self.conv_out = spectral_norm(nn.Conv2d(hidden, 1, 1, stride=2))

    def forward(self, features: Tensor) -> Tensor:
        """See the class for shapes."""
        if min(features.shape[-2:]) < 4:
            raise ValueError(f"features: expected sides of at least 4, got {describe(features)}; use larger images")
        x = F.leaky_relu(self.conv_in(self.blur_in(features)), SLOPE)
        return self.conv_out(self.blur_out(x))[:, 0]


class EmbeddingHead(nn.Module):
    """One logit per image from its embedding: linear, LeakyReLU 0.2, linear, both spectrally normalised.

    Args:
        channels: width of the embedding.
        hidden: width in between.

    Shapes:
        [B, channels] -> [B, 1].

    Source:
        strsr.md section 2.3: 525,313 parameters for 1024.
    """

    def __init__(self, channels: int, hidden: int = HEAD_CHANNELS) -> None:
        super().__init__()
        check_positive_int(channels, "channels")
        check_positive_int(hidden, "hidden")
        self.linear_in = spectral_norm(nn.Linear(channels, hidden))
        self.linear_out = spectral_norm(nn.Linear(hidden, 1))

    def forward(self, embedding: Tensor) -> Tensor:
        """See the class for shapes."""
        return self.linear_out(F.leaky_relu(self.linear_in(embedding), SLOPE))


class CriticHeads(nn.Module):
    """The trainable part of the critic: a `ConvHead` per feature map and an `EmbeddingHead`.

    Always float32, also under autocast: the logits feed differences as small as the R1 penalty's.

    Args:
        channels: of each feature map, then the width of the embedding; (384, 768, 1536, 1024) for CLIP ConvNeXt-XXLarge,
            12.915 million parameters.
        hidden: width of every head.
    """

    def __init__(self, channels: tuple[int, ...], hidden: int = HEAD_CHANNELS) -> None:
        super().__init__()
        *maps, embedding = channels
        self.maps = nn.ModuleList(ConvHead(count, hidden) for count in maps)
        self.embedding = EmbeddingHead(embedding, hidden)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Feature maps and embedding, as `FrozenFeatures` gives them -> logits [B, h, w] per map and [B, 1]."""
        if len(features) != len(self.maps) + 1:
            raise ValueError(
                f"features: expected {len(self.maps)} maps and an embedding, got {len(features)} tensors; use the same backbone"
            )
        device = features[0].device.type
        with torch.autocast("cpu" if device == "meta" else device, enabled=False):
            wide = [level.float() if level.element_size() < 4 else level for level in features]
            return [head(level) for head, level in zip([*self.maps, self.embedding], wide, strict=True)]
