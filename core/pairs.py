"""Which restored image belongs to which reference and which input: by name from folders, read when its turn comes."""

from collections.abc import Collection, Sized
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from .checks import check_image
from .image_files import list_images, read_image
from .images import to_rgb

Picture = Path | str | Tensor


@dataclass(frozen=True)
class Pair:
    """One restored image and what it is compared with.

    Attributes:
        name: row title.
        sr: restored image: a file, read when its turn comes, or [1, C, H, W] float in [0, 1].
        gt: reference of the same size, or None.
        lq: low-resolution input, or None.
    """

    name: str
    sr: Picture
    gt: Picture | None = None
    lq: Picture | None = None


def pairs_from_folders(sr: Path | str, gt: Path | str | None = None, lq: Path | str | None = None) -> list[Pair]:
    """Match the images of two or three folders by file name.

    A restored file belongs to the reference with the same stem, else to the one with the longest stem that its own starts with
    before an underscore (`baby_x4.png` to `baby.png`).

    Args:
        sr: folder of restored images.
        gt: folder of references, or None for metrics that need none.
        lq: folder of low-resolution inputs, or None.

    Returns:
        One pair per restored image, in the order of the names; nothing is read yet.

    Raises:
        FileNotFoundError: a folder is absent.
        ValueError: a folder without images, a restored image without its partner, or a reference without a restored image.
    """
    restored = _images_of(sr, "sr")
    partners: dict[str, dict[str, Path]] = {}
    for side, folder in (("gt", gt), ("lq", lq)):
        if folder is not None:
            partners[side] = _match(restored, _images_of(folder, side), side, Path(folder))
    return [
        Pair(stem, path, partners.get("gt", {}).get(stem), partners.get("lq", {}).get(stem)) for stem, path in restored.items()
    ]


def _images_of(folder: Path | str, name: str) -> dict[str, Path]:
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{name}: expected a folder of images at {folder}, found none; check the path")
    result: dict[str, Path] = {}
    for path in list_images(folder):
        stem = path.relative_to(folder).with_suffix("").as_posix()
        if stem in result:
            raise ValueError(
                f"{name}: expected one file per name, got {result[stem].name} and {path.name} in {folder}; remove one"
            )
        result[stem] = path
    if not result:
        raise ValueError(f"{name}: expected images in {folder}, got none; check the path")
    return result


def partner(name: str, known: Collection[str]) -> str | None:
    """The name that a picture's own belongs to: the same, else the longest that it starts with before an underscore, or None.

    Example:
        >>> partner("baby_big_x4", {"baby", "baby_big"}), partner("babyx4", {"baby"})
        ('baby_big', None)
    """
    parts = name.split("_")
    shorter = ("_".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((candidate for candidate in shorter if candidate in known), None)


def _match(restored: dict[str, Path], partners: dict[str, Path], side: str, folder: Path) -> dict[str, Path]:
    chosen: dict[str, str] = {}
    alone: list[str] = []
    for stem in restored:
        other = partner(stem, partners)
        if other is None:
            alone.append(restored[stem].name)
            continue
        chosen[stem] = other
    if alone:
        raise ValueError(
            f"{side}: expected a partner in {folder} for every image to score, got none for {_count(alone, restored)}; "
            "names must agree (baby_x4.png belongs to baby.png)"
        )
    unused = sorted(set(partners) - set(chosen.values()))
    if unused:
        raise ValueError(
            f"sr: expected a restored image for every file in {folder}, got none for {_count(unused, partners)}; "
            "restore them or remove them"
        )
    return {stem: partners[other] for stem, other in chosen.items()}


def _count(names: list[str], of: Sized) -> str:
    """`3 of 14: a, b, c`, at most five by name."""
    return f"{len(names)} of {len(of)}: " + ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _read(picture: Picture | None, name: str) -> Tensor | None:
    if picture is None:
        return None
    if isinstance(picture, Tensor):
        check_image(picture, name)
        if len(picture) != 1:
            raise ValueError(f"{name}: expected one image [1, C, H, W], got a batch of {len(picture)}; make one pair per image")
        return to_rgb(picture)
    return to_rgb(read_image(picture).pixels)


def _label(picture: Picture | None, name: str) -> str:
    return name if picture is None or isinstance(picture, Tensor) else str(picture)


def _size(image: Tensor) -> str:
    return f"{image.shape[-2]}x{image.shape[-1]}"


def load_pair(pair: Pair) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """(sr, gt, lq) as RGB [1, 3, H, W] float32 in [0, 1]; what the pair lacks is None.

    Raises:
        ValueError: `sr` and `gt` differ in size (both are named), a batch of several images, or a file that is no image.
        FileNotFoundError: an image file is gone.
    """
    sr, gt, lq = _read(pair.sr, "sr"), _read(pair.gt, "gt"), _read(pair.lq, "lq")
    assert sr is not None
    if gt is not None and sr.shape[-2:] != gt.shape[-2:]:
        raise ValueError(
            f"{pair.name}: expected images of one size, got {_size(sr)} for {_label(pair.sr, 'sr')} and {_size(gt)} for "
            f"{_label(pair.gt, 'gt')}; restore at the right scale or crop one of them"
        )
    return sr, gt, lq
