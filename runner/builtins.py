"""Stand-ins for the few core nodes that our workflows use: same ids, inputs and outputs as ComfyUI's, written for headless runs.

Differences, all on the side of more precision: 16-bit grey pictures keep their depth (16-bit colours: Load Image Folder), pixels
are rounded to 8 bit where ComfyUI cuts off, and any path on disk may be loaded.
"""

import hashlib
import itertools
import json
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ..core.image_files import MAX_PIXELS, from_pil
from ..core.weights import write_atomic
from ..nodes.host import get_host

EMPTY_MASK_PX = 64  # the size of ComfyUI's mask of a picture without alpha
PNG_COMPRESSION = 4


def read_frames(path: Path) -> tuple[Tensor, Tensor]:
    """Every frame of the first one's size.

    Args:
        path: any picture PIL reads; turned upright by its EXIF orientation.

    Returns:
        image [B, H, W, 3] float32 in [0, 1]; mask [B, H, W], 1 where transparent, [B, 64, 64] of zeros without alpha.

    Raises:
        ValueError: not a picture, damaged, empty, or too large to be meant.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is the stricter one
            with Image.open(path) as file:
                return _decode(file)
    except Image.DecompressionBombError as error:
        raise ValueError(f"image: expected fewer than {MAX_PIXELS + 1} pixels, {path} claims more; cut it into parts") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"image: expected a picture, got {path}, which is of no known picture format; check the file") from error
    except (OSError, SyntaxError, EOFError) as error:
        raise ValueError(
            f"image: expected a whole picture, got {path}: {error}; the file is damaged or cannot be read"
        ) from error


def _decode(file: ImageFile) -> tuple[Tensor, Tensor]:
    if file.width * file.height > MAX_PIXELS:
        raise Image.DecompressionBombError(f"{file.width}x{file.height}")
    frames = 1 if file.format == "MPO" else getattr(file, "n_frames", 1)  # MPO: further frames are other views
    decoded = [from_pil(ImageOps.exif_transpose(frame)) for frame in itertools.islice(ImageSequence.Iterator(file), frames)]
    same = [pixels for pixels in decoded if pixels.shape[2:] == decoded[0].shape[2:]]
    images = [pixels[:, :3].expand(-1, 3, -1, -1) for pixels in same]
    has_alpha = any(pixels.shape[1] == 4 for pixels in same)
    shape = same[0].shape[2:] if has_alpha else (EMPTY_MASK_PX, EMPTY_MASK_PX)
    masks = [1 - pixels[:, 3] if pixels.shape[1] == 4 else torch.zeros(1, *shape) for pixels in same]
    return torch.cat(images).movedim(1, -1).contiguous(), torch.cat(masks)


def to_pictures(images: Tensor) -> list[Image.Image]:
    """IMAGE [B, H, W, 1|3|4] in [0, 1] -> 8-bit pictures, rounded.

    Raises:
        ValueError: other shape, or values that are not finite.
    """
    if images.ndim != 4 or images.shape[-1] not in (1, 3, 4) or 0 in images.shape:
        raise ValueError(f"images: expected [B, H, W, C] with C = 1, 3 or 4, got {tuple(images.shape)}; check the node before")
    if not bool(torch.isfinite(images).all()):
        raise ValueError("images: expected finite pixels, got NaN or infinity; check the node before")
    bytes_ = (images.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    return [Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture) for picture in bytes_]


def save_pictures(images: Tensor, prefix: str, folder: Path, kind: str, texts: Mapping[str, Any]) -> list[dict[str, str]]:
    """Write numbered PNGs, each whole or not at all, with `texts` as JSON in their metadata.

    Returns:
        The entries of the node's `ui` result.
    """
    pictures = to_pictures(images)
    target = get_host().save_target(prefix, pictures[0].width, pictures[0].height, folder)
    metadata = PngInfo()
    for name, value in texts.items():
        metadata.add_text(name, json.dumps(value))
    entries: list[dict[str, str]] = []
    for index, picture in enumerate(pictures):
        path = target.path(index)
        write_atomic(path, lambda part, picture=picture: picture.save(part, pnginfo=metadata, compress_level=PNG_COMPRESSION))
        entries.append({"filename": path.name, "subfolder": target.subfolder, "type": kind})
    return entries


class LoadImage:
    """Load a picture; alpha becomes the mask."""

    CATEGORY = "image"
    RETURN_TYPES = ("IMAGE", "MASK")
    FUNCTION = "load_image"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"image": (get_host().list_inputs(), {"image_upload": True})}}

    @classmethod
    def VALIDATE_INPUTS(cls, image: str) -> bool | str:  # noqa: N802
        try:
            found = get_host().find_input(image)
        except FileNotFoundError as error:
            return str(error).removeprefix("image: ")
        return found.is_file() or f"expected a file, got the folder {found}; name a file in it"

    @classmethod
    def IS_CHANGED(cls, image: str) -> str:  # noqa: N802
        return hashlib.sha256(get_host().find_input(image).read_bytes()).hexdigest()

    def load_image(self, image: str) -> tuple[Tensor, Tensor]:
        return read_frames(get_host().find_input(image))


class SaveImage:
    """Save pictures as PNG in the output folder, with the workflow in their metadata."""

    CATEGORY = "image"
    RETURN_TYPES = ()
    FUNCTION = "save_images"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {"images": ("IMAGE",), "filename_prefix": ("STRING", {"default": "ComfyUI"})},
            "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"},
        }

    def save_images(
        self, images: Tensor, filename_prefix: str = "ComfyUI", prompt: Any = None, extra_pnginfo: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        texts = ({"prompt": prompt} if prompt is not None else {}) | dict(extra_pnginfo or {})
        return {"ui": {"images": save_pictures(images, filename_prefix, get_host().output_dir(), "output", texts)}}


class PreviewImage:
    """Show pictures; headless they go to the temporary folder."""

    CATEGORY = "image"
    RETURN_TYPES = ()
    FUNCTION = "save_images"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"images": ("IMAGE",)}, "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"}}

    def save_images(self, images: Tensor, prompt: Any = None, extra_pnginfo: Any = None) -> dict[str, Any]:
        return {"ui": get_host().save_preview_images(to_pictures(images))}


class PreviewAny:
    """Show any value as text. Newer ComfyUI also gives it as an output, 0.8.0 does not: do not link it in shared workflows."""

    CATEGORY = "utils"
    RETURN_TYPES = ("STRING",)
    FUNCTION = "main"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"source": ("*", {})}}

    def main(self, source: Any = None) -> dict[str, Any]:
        text = source if isinstance(source, str) else str(source)
        if isinstance(source, (dict, list, tuple)):
            text = json.dumps(source, indent=4, default=str)
        return {"ui": {"text": [text]}, "result": (text,)}


class _Primitive:
    CATEGORY = "utils/primitive"
    FUNCTION = "execute"

    def execute(self, value: Any) -> tuple[Any]:
        return (value,)


class PrimitiveInt(_Primitive):
    """A whole number."""

    RETURN_TYPES = ("INT",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        limits = {"default": 0, "min": -sys.maxsize, "max": sys.maxsize, "control_after_generate": True}
        return {"required": {"value": ("INT", limits)}}


class PrimitiveFloat(_Primitive):
    """A number."""

    RETURN_TYPES = ("FLOAT",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"value": ("FLOAT", {"default": 0.0, "min": -sys.maxsize, "max": sys.maxsize, "step": 0.1})}}


class PrimitiveString(_Primitive):
    """A text."""

    RETURN_TYPES = ("STRING",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"value": ("STRING", {"default": ""})}}


class PrimitiveStringMultiline(_Primitive):
    """A text of several lines."""

    RETURN_TYPES = ("STRING",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"value": ("STRING", {"default": "", "multiline": True})}}


class PrimitiveBoolean(_Primitive):
    """Yes or no."""

    RETURN_TYPES = ("BOOLEAN",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"value": ("BOOLEAN", {"default": False})}}


BUILTIN_CLASSES: dict[str, type] = {
    "LoadImage": LoadImage,
    "SaveImage": SaveImage,
    "PreviewImage": PreviewImage,
    "PreviewAny": PreviewAny,
    "PrimitiveInt": PrimitiveInt,
    "PrimitiveFloat": PrimitiveFloat,
    "PrimitiveString": PrimitiveString,
    "PrimitiveStringMultiline": PrimitiveStringMultiline,
    "PrimitiveBoolean": PrimitiveBoolean,
}
BUILTIN_DISPLAY_NAMES = {
    "LoadImage": "Load Image",
    "SaveImage": "Save Image",
    "PreviewImage": "Preview Image",
    "PreviewAny": "Preview as Text",
    "PrimitiveInt": "Int",
    "PrimitiveFloat": "Float",
    "PrimitiveString": "String",
    "PrimitiveStringMultiline": "String (Multiline)",
    "PrimitiveBoolean": "Boolean",
}
