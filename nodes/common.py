"""What several nodes share: IMAGE in and out of the core's layout, lists, models on their device, tiles on one bar."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..core.channels import Channels, join_channels, split_channels
from ..core.checks import check_finite, describe
from ..core.image_files import from_pil
from ..core.images import bchw_to_bhwc, bhwc_to_bchw
from .host import Bar, Host, get_host

SR_MODEL = "ALIGNSR_MODEL"  # socket type of a loaded restoration model; the value is a models.LoadedModel


def take_pixels(image: Any, name: str) -> Tensor:
    """Check an IMAGE and convert it to [B, C, H, W] float32 in [0, 1] on the CPU, C = 1, 3 or 4, never the node's input itself.

    Raises:
        TypeError, ValueError: not [B, H, W, 1|3|4], empty, or with NaN; the message starts with the input's name.
    """
    if not isinstance(image, Tensor):
        raise TypeError(f"{name}: expected an IMAGE, got {describe(image)}; connect a node that gives images")
    if image.ndim != 4 or image.shape[3] not in (1, 3, 4) or 0 in image.shape:
        raise ValueError(
            f"{name}: expected [B, H, W, C] with C = 1, 3 or 4, got {describe(image)}; convert it to grey, RGB or RGBA"
        )
    return check_finite(bhwc_to_bchw(image.detach().to("cpu")), name).clamp(0, 1)


def take(image: Any, name: str) -> Channels:
    """`take_pixels` as RGB, with alpha and greyness kept aside."""
    return split_channels(take_pixels(image, name))


def give(rgb: Tensor, like: Channels) -> Tensor:
    """An IMAGE with the channels that came in: grey stays grey, alpha is resized (bicubic) and put back."""
    return bchw_to_bhwc(join_channels(rgb, like))


@contextmanager
def input_names(blamed: str = "", /, **inputs: str) -> Iterator[None]:
    """Inside the block complaints of the core, `argument: expected ...`, name the input of the node instead of the argument.

    Args:
        blamed: the input that complaints about anything else are put down to; empty: they stay as they are.
        inputs: argument of the core -> input of the node.
    """
    try:
        yield
    except (TypeError, ValueError, FileNotFoundError) as error:
        argument, _, rest = str(error).partition(":")
        if argument in inputs:
            error.args = (f"{inputs[argument]}:{rest}",)
        elif blamed and argument != blamed:
            error.args = (f"{blamed}: {error}",)
        raise


def match_batch(pixels: Tensor, batch: int, name: str) -> Tensor:
    """The tensor with `batch` samples; a single one serves for all.

    Raises:
        ValueError: another number of samples.
    """
    if pixels.shape[0] not in (1, batch):
        raise ValueError(f"{name}: expected 1 or {batch} images as on the other input, got {pixels.shape[0]}; connect as many")
    return pixels.expand(batch, -1, -1, -1)


def to_image(pictures: Sequence[Image.Image]) -> Tensor:
    """PIL pictures -> one IMAGE; smaller ones get white margins right and below."""
    width, height = (max(getattr(picture, side) for picture in pictures) for side in ("width", "height"))
    pages: list[Tensor] = []
    for picture in pictures:
        page = Image.new("RGB", (width, height), (255, 255, 255))
        page.paste(picture.convert("RGB"), (0, 0))
        pages.append(from_pil(page))
    return bchw_to_bhwc(torch.cat(pages))


def as_list(value: Any) -> list[Any]:
    """What INPUT_IS_LIST nodes get: a list, or the bare default of an input that is not connected."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def first(value: Any) -> Any:
    """The value of a widget of an INPUT_IS_LIST node."""
    return value[0] if isinstance(value, (list, tuple)) else value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def read_json(text: str, name: str) -> Any:
    """Parse JSON from a STRING input.

    Raises:
        ValueError: not JSON; the message starts with the input's name.
    """
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: expected JSON text, got {describe(text)} ({error}); connect the matching output") from error


class JobBar:
    """One progress bar for a job whose size is known when its first part is done, and may change when it is tried again."""

    def __init__(self, host: Host, desc: str) -> None:
        self.host, self.desc = host, desc
        self.bar: Bar | None = None
        self.total, self.done = 1, 0

    def __call__(self, done: int, total: int) -> None:
        """Say that `done` of `total` parts are done; raises if the user cancelled."""
        if self.bar is None:
            self.bar, self.total = self.host.progress(total, self.desc), total
        self.done = done * self.total // total
        self.bar.update(self.done)

    def show(self, preview: Image.Image) -> None:
        """Show a picture at the place where the job is; raises if the user cancelled."""
        if self.bar is not None:
            self.bar.update(self.done, preview)


def room_on(device: torch.device) -> Callable[[int], None] | None:
    """What asks the host of the moment for memory there, before a model comes; the processor needs no asking."""
    return None if device.type == "cpu" else lambda vram_bytes: get_host().free_memory(vram_bytes)


@contextmanager
def in_turns(backbone: Any, device: torch.device, host: Host, activation_bytes: int) -> Iterator[Any]:
    """A model whose modules take turns on the device for the time of the block; at its end none is left there."""
    from ..core.backbones import Backbone
    from ..core.backbones.offload import OffloadedBackbone, OffloadedMultiStep, Residency
    from ..core.borrowed import nbytes

    parts = dict(backbone.modules())
    coder = parts.pop("vae")  # what predicts is one part, with its control branch
    largest = max(nbytes(coder), nbytes(*parts.values()))
    if device.type != "cpu":
        host.free_memory(largest + activation_bytes)
    turns = Residency(device)
    try:
        yield OffloadedBackbone(backbone, turns) if isinstance(backbone, Backbone) else OffloadedMultiStep(backbone, turns)
    finally:
        turns.leave()
        if device.type != "cpu":
            host.soft_empty_cache()


@contextmanager
def on_device(backbone: Any, device: torch.device, host: Host, vram_bytes: int) -> Iterator[Any]:
    """A frozen model on the device for the time of the block; what lies at home stays there and is in place again at its end."""
    from ..core.borrowed import Borrowed

    if device.type != "cpu":
        host.free_memory(vram_bytes)
    borrowed: list[Borrowed] = []
    try:
        for _, module in backbone.modules():
            borrowed.append(Borrowed(module, device))
        yield backbone
    finally:
        for module in borrowed:
            module.give_back()
        if device.type != "cpu":
            host.soft_empty_cache()


def file_stamp(path: Path) -> str:
    """Changes when the file is replaced: what IS_CHANGED answers for it."""
    stat = path.stat()
    return f"{stat.st_mtime_ns} {stat.st_size}"
