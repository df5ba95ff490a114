"""Small folders of results for user studies, and votes as the page saves them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image, PngImagePlugin

from alignsr.core.image_files import to_pil
from reference.formula import U

METHODS = ("Sobolev", "Euclid", "Plain")


def write_results(root: Path, methods: Sequence[str] = METHODS, scenes: int = 4, size: tuple[int, int] = (24, 32)) -> Path:
    """A folder per method, inputs in `lq`; the files tell their method in their metadata, as saved ones do."""
    for scene in range(scenes):
        picture = U(f"study/{scene}", 1, 3, *size)
        for place, method in enumerate(methods):
            folder = root / method
            folder.mkdir(parents=True, exist_ok=True)
            info = PngImagePlugin.PngInfo()
            info.add_text("prompt", f"made by {method}")
            to_pil((picture * (1 - 0.2 * place)).clamp(0, 1)).save(folder / f"scene{scene}_x4.png", pnginfo=info)
        (root / "lq").mkdir(exist_ok=True)
        to_pil(torch.nn.functional.avg_pool2d(picture, 4)).save(root / "lq" / f"scene{scene}.png")
    return root


def key_of(study: Path) -> dict:
    return json.loads((study / "key.json").read_text())


def letters(study: Path, group: str) -> dict[str, str]:
    """Method -> letter."""
    (found,) = [entry for entry in key_of(study)["groups"] if entry["id"] == group]
    return {method: letter for letter, method in found["methods"].items()}


def write_votes(study: Path, path: Path, voter: str, rankings: Mapping[str, Sequence[str]], **changes: object) -> Path:
    """A vote file: group -> methods from best to worst."""
    key = key_of(study)
    votes = {group: [letters(study, group)[method] for method in ranking] for group, ranking in rankings.items()}
    facts = {"format": "alignsr-study-votes", "version": 1, "study": key["study"], "mode": key["mode"], "voter": voter}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**facts, "votes": votes} | changes))
    return path


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
        return image
