"""Image files in and out: 8 and 16 bit, grey, RGB, alpha; EXIF, ICC profile and format are kept; writing is atomic."""

import io
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from .checks import check_finite, check_image, check_positive_int, describe
from .weights import write_atomic

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
MAX_PIXELS = 100_000_000 - 1  # a header that claims 100 megapixels or more is refused before anything is decoded
_EXIF_PARTS = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)
# what a TIFF file says about its own pixels and where they lie, and the orientation, which reading has applied
_TIFF_LAYOUT = (
    *(254, 255, 256, 257, 258, 259, 262, 263, 266, 273, 274, 277, 278, 279, 280, 281, 284, 292, 293, 297, 317, 320, 322, 323),
    *(324, 325, 330, 332, 338, 339, 340, 341, 347, 512, 513, 514, 519, 520, 521, 529, 530, 531, 532, 34675),
)
_LONGEST = {"JPEG": 65500, "WEBP": 16383}  # sides in px that the format (for JPEG: libjpeg) can hold
_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP", ".tif": "TIFF", ".tiff": "TIFF"}


class ImageFileError(ValueError):
    """A file that is not a usable image; the message names it and says what is wrong."""


@dataclass(frozen=True)
class ImageFile:
    """A decoded picture and what has to survive a round trip.

    Attributes:
        pixels: [1, C, H, W] float32 in [0, 1]; C = 1 grey, 3 RGB, 4 RGBA. EXIF orientation is applied.
        bit_depth: 8 or 16, of the file.
        exif: raw EXIF block without the orientation, or None.
        icc: raw ICC profile, or None.
    """

    pixels: Tensor
    bit_depth: int
    exif: bytes | None = None
    icc: bytes | None = None


def list_images(folder: str | Path) -> list[Path]:
    """All image files below a folder, sorted by path; hidden files are left out."""
    return sorted(
        p for p in Path(folder).rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file() and not p.name.startswith(".")
    )


def read_image(path: str | Path, content: bytes | None = None) -> ImageFile:
    """Decode an image file.

    Args:
        path: the file; with `content` only its name, for messages.
        content: the encoded picture where it lies inside another file, such as a tar archive.

    Raises:
        FileNotFoundError: no such file.
        ImageFileError: a folder, not an image, truncated, empty, or too large a header (decompression bomb).
    """
    path = Path(path)
    if content is None and path.is_dir():
        raise ImageFileError(f"{path}: expected an image file, got a folder; name one of the pictures in it")
    if content is None and not path.is_file():
        raise FileNotFoundError(f"image: expected a file at {path}, found none; check the path")
    if (path.stat().st_size if content is None else len(content)) == 0:
        raise ImageFileError(f"{path}: expected an image, got an empty file; get it again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit below is the stricter one
            with Image.open(path if content is None else io.BytesIO(content)) as opened:
                width, height = opened.size
                if width * height > MAX_PIXELS:
                    raise ImageFileError(
                        f"{path}: expected fewer than {MAX_PIXELS + 1} pixels, the header says {width}x{height}; "
                        "cut the picture into parts"
                    )
                icc = cast("bytes | None", opened.info.get("icc_profile"))
                is_deep = _has_16bit_colour(opened)
                exif, orientation = _read_exif(opened)  # before decoding: Pillow turns TIFF files then and forgets their tags
                opened.load()
                array, depth = (
                    (_read_16bit_colour(path, content, orientation), 16)
                    if is_deep
                    else _to_array(ImageOps.exif_transpose(opened), str(path))
                )
                icc = icc if _fits(icc, array.shape[2]) else None
    except UnidentifiedImageError as error:
        raise ImageFileError(
            f"{path}: expected an image, got a file of another kind; supported are {', '.join(SUFFIXES)}"
        ) from error
    except Image.DecompressionBombError as error:
        raise ImageFileError(
            f"{path}: expected fewer than {MAX_PIXELS + 1} pixels, the header claims more; cut the picture into parts"
        ) from error
    except (OSError, SyntaxError, EOFError, ValueError, struct.error) as error:
        if isinstance(error, ImageFileError):
            raise
        raise ImageFileError(f"{path}: expected a whole image, got a damaged or truncated one ({error}); get it again") from error
    pixels = torch.from_numpy(np.ascontiguousarray(array)).movedim(-1, 0)[None]
    return ImageFile(pixels, depth, exif, icc)


def _has_16bit_colour(image: Image.Image) -> bool:
    """16-bit RGB, RGBA or grey with alpha in PNG or TIFF: Pillow has no mode for them and would silently drop 8 bits."""
    if image.mode not in ("RGB", "RGBA", "LA"):
        return False
    if image.format == "TIFF":
        depths: Any = getattr(image, "tag_v2", {}).get(258, ())
        return bool(depths) and all(depth == 16 for depth in depths)
    return image.format == "PNG" and any("16" in str(tile[3]) for tile in getattr(image, "tile", ()))


def _read_exif(image: Image.Image) -> tuple[bytes | None, int]:
    """The EXIF block without orientation and (TIFF) without the tags that describe the file's own layout; and the orientation."""
    read, kept = image.getexif(), Image.Exif()
    dropped = _TIFF_LAYOUT if image.format == "TIFF" else (ExifTags.Base.Orientation,)
    for tag, value in read.items():
        if tag not in (*dropped, *_EXIF_PARTS):
            kept[tag] = value
    for part in _EXIF_PARTS:
        values = {tag: value for tag, value in read.get_ifd(part).items() if tag != ExifTags.IFD.Interop}
        if values:
            kept.get_ifd(part).update(values)
    is_empty = not len(kept) and not any(kept.get_ifd(part) for part in _EXIF_PARTS)
    return None if is_empty else kept.tobytes(), int(read.get(ExifTags.Base.Orientation, 1))


def _read_16bit_colour(path: Path, content: bytes | None, orientation: int) -> Any:
    """float32 [H, W, 3|4] of a file for which `_has_16bit_colour` holds, turned as its EXIF block says."""
    from .compat import import_third_party

    cv2 = import_third_party("cv2")
    encoded = np.fromfile(path, np.uint8) if content is None else np.frombuffer(content, np.uint8)
    values: Any = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED)
    if values is None or values.dtype != np.uint16 or values.ndim != 3:
        raise ImageFileError(f"{path}: expected 16-bit colours, got a coding that cannot be read; save it again as PNG or TIFF")
    values = values[..., [2, 1, 0, 3][: values.shape[2]]]
    turns: dict[int, Callable[[Any], Any]] = {
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.swapaxes(0, 1),
        6: lambda x: x.swapaxes(0, 1)[:, ::-1],
        7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
        8: lambda x: x.swapaxes(0, 1)[::-1],
    }
    turn = turns.get(orientation, lambda x: x)
    return (turn(values) / 65535).astype(np.float32)


def _fits(icc: bytes | None, channels: int) -> bool:
    """Does a profile describe colours of this kind? A CMYK or palette source is converted, so its profile no longer applies."""
    space = (icc or b"")[16:20]
    return space not in (b"CMYK", b"Lab ", b"GRAY", b"RGB ") or space == (b"GRAY" if channels == 1 else b"RGB ")


def _to_array(image: Image.Image, name: str = "image") -> tuple[Any, int]:
    """(float32 [H, W, C] in [0, 1], bit depth) for any of Pillow's modes; `name` is for the message."""
    if image.mode == "F":
        values = np.asarray(image)
        finite = values[np.isfinite(values)]  # NaN passes: whoever uses the pixels says where it is
        low, high = finite.min(initial=0), finite.max(initial=0)
        if low < -0.5 or high > 1.5:
            raise ImageFileError(
                f"{name}: expected floating-point samples in [0, 1], got {low:g} to {high:g}; save the picture with 8 or 16 bits"
            )
        return values.clip(0, 1).astype(np.float32)[..., None], 16
    if image.mode.startswith("I"):
        return (np.asarray(image, dtype=np.float64) / 65535).clip(0, 1).astype(np.float32)[..., None], 16
    if image.mode in ("1", "L"):
        wanted = "L"
    elif image.mode in ("LA", "PA", "RGBA", "RGBa", "La") or "transparency" in image.info:
        wanted = "RGBA"
    else:
        wanted = "RGB"
    array = np.asarray(image.convert(wanted), dtype=np.float32) / 255
    return (array[..., None] if array.ndim == 2 else array), 8


def to_pil(pixels: Tensor) -> Image.Image:
    """One picture [1, C, H, W] (or [C, H, W]) in [0, 1] -> 8-bit PIL image, rounded, not truncated."""
    x = check_image(pixels if pixels.ndim == 4 else pixels[None], "pixels")
    array = (x[0].detach().float().clamp(0, 1) * 255).round().to(torch.uint8).movedim(0, -1).cpu().numpy()
    return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)


def from_pil(image: Image.Image) -> Tensor:
    """PIL image -> [1, C, H, W] float32 in [0, 1]."""
    array, _ = _to_array(image)
    return torch.from_numpy(np.ascontiguousarray(array)).movedim(-1, 0)[None]


def write_image(path: str | Path, pixels: Tensor, like: ImageFile | None = None, quality: int = 95) -> Path:
    """Write a picture atomically; the suffix chooses the format.

    Args:
        path: .png, .jpg, .jpeg, .webp, .bmp, .tif or .tiff.
        pixels: [1, C, H, W] in [0, 1]; clamped and rounded.
        like: take bit depth (16 for PNG and TIFF), EXIF and ICC profile from this picture.
        quality: of JPEG (4:4:4) and WebP, 1..100.

    Raises:
        ValueError: unknown suffix, alpha in a format that has none, a picture too large for the format, several pictures,
            values that are not finite.
        OSError: not writable or disk full; nothing is left behind.
    """
    path = Path(path)
    kind = _FORMATS.get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"path: expected one of {', '.join(SUFFIXES)}, got {path.name}; choose another suffix")
    check_image(pixels, "pixels")
    if pixels.shape[1] == 4 and kind in ("JPEG", "BMP"):
        raise ValueError(
            f"path: expected a format with transparency for a picture with alpha, got {path.suffix}; use .png or .webp"
        )
    if pixels.shape[0] != 1:
        raise ValueError(f"pixels: expected one picture [1, C, H, W], got {describe(pixels)}; write them one by one")
    check_finite(pixels, "pixels")
    check_positive_int(quality, "quality", high=100)
    height, width = pixels.shape[-2:]
    if max(height, width) > _LONGEST.get(kind, max(height, width)):
        raise ValueError(
            f"path: expected sides of at most {_LONGEST[kind]} px for {path.suffix}, got {width}x{height}; use .png or .tif"
        )
    options: dict[str, Any] = {}
    if like is not None and like.icc:
        options["icc_profile"] = like.icc
    if like is not None and like.exif and kind in ("PNG", "JPEG", "WEBP", "TIFF"):
        options["exif"] = like.exif
    if kind in ("JPEG", "WEBP"):
        options["quality"] = quality
    if kind == "JPEG":
        options["subsampling"] = 0
    if like is not None and like.bit_depth == 16 and kind in ("PNG", "TIFF"):
        return _write_16bit(path, pixels, kind, options)
    image = to_pil(pixels)

    def write(temporary: Path) -> None:
        image.save(temporary, format=kind, **options)

    return write_atomic(path, write)


def _write_16bit(path: Path, pixels: Tensor, kind: str, options: dict[str, Any]) -> Path:
    values = (
        (pixels[0].detach().double().clamp(0, 1) * 65535).round().to(torch.int32).movedim(0, -1).cpu().numpy().astype(np.uint16)
    )

    def write(temporary: Path) -> None:
        if values.shape[2] == 1:
            Image.fromarray(values[..., 0]).save(temporary, format=kind, **options)
        else:
            _write_16bit_colour(temporary, values, kind, options)

    return write_atomic(path, write)


def _write_16bit_colour(path: Path, values: Any, kind: str, options: dict[str, Any]) -> None:
    """Pillow has no 16-bit colour mode, so the file is assembled here: a PNG from its chunks, a TIFF from tags and samples."""
    if kind == "TIFF":
        _write_16bit_tiff(path, values, options)
        return
    import zlib

    def chunk(tag: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data))

    height, width, channels = values.shape
    rows = np.zeros((height, 1 + width * channels * 2), np.uint8)  # filter byte 0, then big-endian samples
    rows[:, 1:] = values.astype(">u2").reshape(height, -1).view(np.uint8)
    parts = [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 6 if channels == 4 else 2, 0, 0, 0))]
    if options.get("icc_profile"):
        parts.append(chunk(b"iCCP", b"ICC\0\0" + zlib.compress(options["icc_profile"])))
    if options.get("exif"):
        parts.append(chunk(b"eXIf", options["exif"].removeprefix(b"Exif\0\0")))
    parts += [chunk(b"IDAT", zlib.compress(rows.tobytes(), 6)), chunk(b"IEND", b"")]
    path.write_bytes(b"".join(parts))


def _write_16bit_tiff(path: Path, values: Any, options: dict[str, Any]) -> None:
    """One uncompressed strip of little-endian samples after Pillow's table of tags (TIFF 6.0, section 2)."""
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    height, width, channels = values.shape
    tags: Any = ImageFileDirectory_v2()
    if options.get("exif"):
        exif = Image.Exif()
        exif.load(options["exif"])
        for tag, value in exif.items():
            if tag not in (*_TIFF_LAYOUT, *_EXIF_PARTS):
                tags[tag] = value
        for part in _EXIF_PARTS:
            if exif.get_ifd(part):
                tags[part] = dict(exif.get_ifd(part))
    samples = values.astype("<u2").tobytes()
    layout = {
        256: width,
        257: height,
        258: (16,) * channels,
        259: 1,
        262: 2,
        273: 0,
        277: channels,
        278: height,
        279: len(samples),
        284: 1,
    }
    for tag, value in layout.items():
        tags[tag] = value
    if channels == 4:
        tags[338] = 2  # the fourth sample is alpha, not multiplied in
    if options.get("icc_profile"):
        tags.tagtype[34675] = 7
        tags[34675] = options["icc_profile"]
    with open(path, "wb") as file:
        tags.save(file)  # the strip's place, 0, is moved behind the table by Pillow
        file.write(samples)
