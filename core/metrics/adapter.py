"""One pyiqa metric, built without the network and called without its traps."""

from typing import Any

import torch
from torch import Tensor, nn

from ..checks import check_same_shape
from ..compat import import_third_party
from ..images import quantize_8bit, to_rgb
from .batched import BATCHED
from .files import missing_files
from .inputs import check_picture
from .offline import no_downloads
from .spec import MetricSpec, MissingWeightsError

SEED = 0


def center_crop_to_multiple(image: Tensor, multiple: int) -> Tensor:
    """Cut both sides down to multiples of `multiple`, around the centre.

    Args:
        image: [B, C, H, W], sides >= multiple.
        multiple: >= 1.

    Returns:
        [B, C, H - H % multiple, W - W % multiple], a view. The reference is cut at the same place, and no pixel is invented.
    """
    height, width = image.shape[-2:]
    new_height, new_width = height - height % multiple, width - width % multiple
    top, left = (height - new_height) // 2, (width - new_width) // 2
    return image[..., top : top + new_height, left : left + new_width]


def build_network(spec: MetricSpec, device: torch.device | str, **options: Any) -> nn.Module:
    """Build a pyiqa metric from files on disk.

    Args:
        spec: a learned or set metric.
        device: where to put it.
        options: keyword arguments of the pyiqa architecture, over those of `spec.options`.

    Returns:
        pyiqa's InferenceModel, in eval mode. The global random state is as before.

    Raises:
        MissingWeightsError: it wanted to download something.
    """
    random: Any = torch.random
    with no_downloads(spec.name), random.fork_rng(devices=[]):
        model_class: Any = import_third_party("pyiqa.models.inference_model").InferenceModel
        try:
            network: nn.Module = model_class(spec.pyiqa_name, device=torch.device(device), **{**spec.options, **options})
        except MissingWeightsError:
            raise
        except OSError as error:  # what the Hugging Face client raises when it is kept offline
            raise MissingWeightsError(spec.name, [str(error)]) from error
    return network.eval()


class LearnedMetric:
    """A learned metric in memory.

    Args:
        spec: its facts; batch limit, size rule and input copies follow them.
        network: callable (image, reference) or (image) -> scores, as pyiqa's InferenceModel; taken over, with parts replaced by
            those of `batched`.
        device: where the network is.
    """

    def __init__(self, spec: MetricSpec, network: Any, device: torch.device | str = "cpu") -> None:
        self.spec = spec
        self.network: Any = BATCHED[spec.name](network) if spec.name in BATCHED else network
        self.device = torch.device(device)

    @classmethod
    def load(cls, spec: MetricSpec, device: torch.device | str = "cpu") -> "LearnedMetric":
        """Load the metric from files on disk.

        Raises:
            MissingWeightsError: before anything is imported, if a file is not there; it names all of them.
        """
        missing = missing_files(spec)
        if missing:
            raise MissingWeightsError(spec.name, missing)
        return cls(spec, build_network(spec, device), device)

    def _prepare(self, image: Tensor, name: str, quantize: bool) -> Tensor:
        check_picture(image, name)
        height, width = image.shape[-2:]
        if min(height, width) < self.spec.min_side_px:
            side = self.spec.min_side_px
            raise ValueError(
                f"{name}: expected at least {side}x{side} pixels for {self.spec.name}, got {height}x{width}; use a larger image"
            )
        image = to_rgb(image).float()
        image = quantize_8bit(image) if quantize else image.clamp(0, 1)
        return center_crop_to_multiple(image, self.spec.size_multiple)

    def _repeatable(self, chunk: list[Tensor]) -> Tensor:
        """The network's answer under one seed: some versions of pyiqa draw MANIQA's 20 crops at random."""
        random: Any = torch.random
        cuda: Any = torch.cuda
        gpus = [self.device.index or 0] if self.device.type == "cuda" else []
        with random.fork_rng(devices=gpus):
            random.default_generator.manual_seed(SEED)  # not torch.manual_seed: that one reseeds every GPU as well
            for gpu in gpus:
                cuda.default_generators[gpu].manual_seed(SEED)
            result: Tensor = self.network(*chunk)
        return result

    @torch.no_grad()
    def __call__(self, sr: Tensor, gt: Tensor | None = None, *, quantize: bool = True) -> Tensor:
        """Score a batch; the same batch always gets the same scores, and the global random state stays as it was.

        Args:
            sr: [B, C, H, W] float in [0, 1], C in (1, 3, 4); never changed, whatever the network does to its own input.
            gt: reference of the same size for full-reference metrics; left unused by the others.
            quantize: round to 8 bit first.

        Returns:
            [B] float64 on the CPU.
        """
        images = [self._prepare(sr, "sr", quantize)]
        if self.spec.needs_reference:
            if gt is None:
                raise ValueError(
                    f"gt: expected a reference image for {self.spec.name}, got None; pass gt or choose a no-reference metric"
                )
            images.append(self._prepare(gt, "gt", quantize))
            check_same_shape(images[0], images[1], "sr", "gt")
        size = self.spec.max_batch or len(sr)
        parts: list[Tensor] = []
        for start in range(0, len(sr), size):
            # clones: A-FINE normalises what it is given in place, and every later metric would see that
            chunk = [image[start : start + size].to(self.device).clone() for image in images]
            parts.append(self._repeatable(chunk).detach().reshape(-1).double().cpu())
        scores = torch.cat(parts)
        if len(scores) != len(sr):
            raise RuntimeError(
                f"{self.spec.name}: expected {len(sr)} scores, got {len(scores)}; the installed pyiqa is not the supported one"
            )
        return scores
