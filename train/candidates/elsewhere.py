"""Candidates that another program made: a folder of pictures for each picture."""

from pathlib import Path

import torch
from torch import Tensor

from ...core.image_files import list_images, read_image
from ...core.images import to_rgb
from ..sources import DataError
from .sources import Group
from .store import Candidates


def read_candidates(folder: Path, group: Group, most: int) -> Candidates:
    """The candidates FOLDER/STEM/*.png of a picture STEM, in the order of their names.

    Args:
        folder: holds a folder for each picture.
        group: the picture.
        most: use so many.

    Raises:
        DataError: no such folder, no pictures in it, one that cannot be read, or one of another size than the ground truth.
    """
    place = folder / Path(group.name).stem
    files = list_images(place)[:most] if place.is_dir() else []
    if not files:
        raise DataError(
            f"data.candidates: expected pictures in {place} for {group.name}, found none; add them or remove the picture"
        )
    pictures: list[Tensor] = []
    for path in files:
        try:
            image = to_rgb(read_image(path).pixels)[0]
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: not readable as an image ({error}); remove it") from error
        if image.shape != group.gt.shape:
            wanted, got = ("x".join(map(str, x.shape[-2:])) for x in (group.gt, image))
            raise DataError(
                f"{path}: expected {wanted} px as the ground truth {group.name}, got {got}; candidates of a group have one size "
                "(data.gt_patch_px = 0 uses whole pictures)"
            )
        pictures.append((image * 255).round().to(torch.uint8))
    return Candidates(group.index, group.name, group.gt, group.lq, group.prompt, torch.stack(pictures), None)
