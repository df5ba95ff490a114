"""Voting pages for a blind comparison of methods: a folder that opens in any browser, and the key that stays with who made it."""

import hashlib
import json
import shutil
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch

from ..image_files import read_image, to_pil
from ..images import to_rgb
from ..pairs import Pair, pairs_from_folders
from ..weights import write_atomic

Mode = Literal["rank", "top1"]
MODES: tuple[Mode, ...] = ("rank", "top1")
MOST_METHODS = 26
TEMPLATE = Path(__file__).resolve().parent.parent / "assets" / "user-study.html"
KEY_FORMAT, VERSION = "alignsr-study-key", 1
TASKS: dict[Mode, str] = {
    "rank": "Order the pictures of each scene from best to worst: natural, sharp, without artefacts{and_true}.",
    "top1": "Choose the best picture of each scene: natural, sharp, without artefacts{and_true}.",
}


@dataclass(frozen=True)
class Study:
    """What was made.

    Attributes:
        page: index.html, in the folder to hand out.
        key: the file that says which letter is which method: not to hand out.
        groups: how many scenes there are to compare.
        methods: their names.
        remarks: what whoever made it should know.
    """

    page: Path
    key: Path
    groups: int
    methods: tuple[str, ...]
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class _Scene:
    """One group: the scene's name, each method's file, and what they can be compared with."""

    name: str
    results: Mapping[str, Path]
    lq: Path | None
    gt: Path | None


def make_study(
    methods: Mapping[str, str | Path],
    out: str | Path,
    *,
    lq: str | Path | None = None,
    gt: str | Path | None = None,
    mode: Mode = "rank",
    seed: int = 0,
    groups: int = 0,
    title: str = "Image comparison",
    progress: Callable[[int, int], None] | None = None,
) -> Study:
    """Write the pages of a blind study: same pictures, same seed, same bytes.

    Every scene is a group. Its results are called A, B, ... in an order drawn for each group; the groups are shuffled too.
    Pictures are written anew, as PNG with nothing but pixels, so that neither their names nor what a file says of itself tell a
    method.

    Args:
        methods: name -> folder of results, at least two.
        out: a new or empty folder; gets `page` (to hand out) and `key.json` (to keep).
        lq: folder of inputs, shown beside the results.
        gt: folder of references, shown likewise.
        mode: "rank": all places, for TopK at every k; "top1": the best alone.
        seed: of all orders, and of which scenes are taken.
        groups: how many scenes, drawn at random; 0: all.
        title: of the page.
        progress: called with (scenes written, scenes in all).

    Raises:
        FileNotFoundError: a folder is absent.
        ValueError: fewer than two methods or more than 26, a scene that a method lacks, results of different sizes, a title that
            names a method, or a folder that is not empty.

    Source:
        ASASR specification, asasr.md 2.8: groups of results by several methods, ranked; Eq. (47).
    """
    names = tuple(methods)
    _check(names, mode, title)
    scenes = _scenes(methods, lq, gt)
    generator = torch.Generator().manual_seed(seed)
    order = _shuffled(len(scenes), generator)
    if groups < 0 or groups > len(scenes):
        raise ValueError(f"groups: expected 0 (all) or up to the {len(scenes)} scenes there are, got {groups}; choose fewer")
    scenes = [scenes[index] for index in order[: groups or None]]
    with _new_folder(Path(out)) as folder:
        draw = {"mode": mode, "seed": seed, "title": title}
        data, key, remarks = _write_scenes(folder / "page" / "images", scenes, names, generator, draw, progress)
        and_true = " and true to the input" if lq is not None else ""
        _write_page(folder / "page" / "index.html", {**data, "task": TASKS[mode].format(and_true=and_true)})
        _write_text(folder / "key.json", json.dumps(key, indent=1) + "\n")
    return Study(folder / "page" / "index.html", folder / "key.json", len(scenes), names, tuple(remarks))


def _write_scenes(
    folder: Path,
    scenes: Sequence[_Scene],
    names: tuple[str, ...],
    generator: torch.Generator,
    draw: Mapping[str, Any],
    progress: Callable[[int, int], None] | None,
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Write all pictures; what the page needs to know, what stands in the key, and pictures that are the same."""
    digest = hashlib.sha256(json.dumps([VERSION, draw, sorted(names)]).encode())
    shown: list[dict[str, Any]] = []
    keyed: list[dict[str, Any]] = []
    remarks: list[str] = []
    for number, scene in enumerate(scenes, start=1):
        group = f"g{number:03d}"
        by_letter = {chr(ord("a") + place): names[index] for place, index in enumerate(_shuffled(len(names), generator))}
        files = {letter: scene.results[name] for letter, name in by_letter.items()}
        entry, marks = _write_group(folder / group, scene, files)
        remarks += [f"{scene.name}: {by_letter[a]} and {by_letter[b]} show the same picture" for a, b in _equal(marks)]
        digest.update(json.dumps([group, marks, by_letter]).encode())
        shown.append({"id": group, **entry})
        keyed.append({"id": group, "name": scene.name, "methods": by_letter})
        if progress is not None:
            progress(number, len(scenes))
    study = digest.hexdigest()[:16]
    page = {"study": study, "mode": draw["mode"], "title": draw["title"], "groups": shown}
    key = {"format": KEY_FORMAT, "version": VERSION, "study": study, **draw, "methods": list(names), "groups": keyed}
    return page, key, remarks


def _shuffled(count: int, generator: torch.Generator) -> list[int]:
    return cast(list[int], torch.randperm(count, generator=generator).tolist())


def _check(names: tuple[str, ...], mode: str, title: str) -> None:
    if mode not in MODES:
        raise ValueError(f"mode: expected {' or '.join(MODES)}, got {mode!r}; rank asks for all places, top1 for the best alone")
    if not 2 <= len(names) <= MOST_METHODS:
        raise ValueError(f"methods: expected 2 to {MOST_METHODS} methods to compare, got {len(names)}; name a folder for each")
    told = next((name for name in names if name.lower() in title.lower()), None)
    if told is not None:
        raise ValueError(f"title: expected one that names no method, got {title!r} with {told}; voters read it")


def _scenes(methods: Mapping[str, str | Path], lq: str | Path | None, gt: str | Path | None) -> list[_Scene]:
    """Results of the same scene, by the name of their input or reference, else by their own."""
    found: dict[str, dict[str, Pair]] = {}
    for method, folder in methods.items():
        for pair in pairs_from_folders(folder, gt, lq):
            found.setdefault(_scene_name(pair, gt, lq), {})[method] = pair
    absent = {name: ", ".join(method for method in methods if method not in pairs) for name, pairs in found.items()}
    lacking = [f"{name} ({who})" for name, who in absent.items() if who]
    if lacking:
        said = ", ".join(lacking[:5]) + (f" and {len(lacking) - 5} more" if len(lacking) > 5 else "")
        raise ValueError(f"methods: expected a result of every method for every scene, got none for {said}; names must agree")
    scenes: list[_Scene] = []
    for name in sorted(found):
        pairs = found[name]
        first = next(iter(pairs.values()))
        results = {method: _path(pair.sr) for method, pair in pairs.items()}
        scenes.append(_Scene(name, results, *(None if each is None else _path(each) for each in (first.lq, first.gt))))
    return scenes


def _path(picture: Any) -> Path:
    assert isinstance(picture, Path)
    return picture


def _scene_name(pair: Pair, gt: str | Path | None, lq: str | Path | None) -> str:
    for partner, folder in ((pair.gt, gt), (pair.lq, lq)):
        if partner is not None and folder is not None:
            return _path(partner).relative_to(folder).with_suffix("").as_posix()
    return pair.name


@contextmanager
def _new_folder(folder: Path) -> Generator[Path]:
    """A new or empty folder; whatever stops the block leaves nothing in it."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"out: expected a new or an empty folder, got {folder}, which is neither; choose another name")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder)
        raise


def _write_group(folder: Path, scene: _Scene, files: Mapping[str, Path]) -> tuple[dict[str, Any], dict[str, str]]:
    """Write the pictures of a group; what the page needs to know, and a mark of each result's pixels."""
    folder.mkdir(parents=True)
    sizes: dict[str, tuple[int, int]] = {}
    marks: dict[str, str] = {}
    for letter, path in files.items():
        sizes[letter], marks[letter] = _write_pixels(path, folder / f"{letter}.png")
    width, height = next(iter(sizes.values()))
    odd = next((letter for letter, size in sizes.items() if size != (width, height)), None)
    if odd is not None:
        first = next(iter(files.values()))
        raise ValueError(
            f"methods: expected results of one size for {scene.name}, got {width}x{height} in {first} and "
            f"{sizes[odd][0]}x{sizes[odd][1]} in {files[odd]}; restore at one scale"
        )
    for name, path in (("input", scene.lq), ("reference", scene.gt)):
        if path is not None:
            _write_pixels(path, folder / f"{name}.png")
    facts = {"candidates": list(files), "width": width, "height": height}
    return facts | {"hasInput": scene.lq is not None, "hasReference": scene.gt is not None}, marks


def _write_pixels(source: Path, target: Path) -> tuple[tuple[int, int], str]:
    """A picture as PNG without anything but its pixels (8 bit, RGB); its size, and a mark of them."""
    image = to_pil(to_rgb(read_image(source).pixels))
    image.save(target, format="PNG", optimize=False)
    return image.size, hashlib.sha256(image.tobytes()).hexdigest()


def _equal(marks: Mapping[str, str]) -> list[tuple[str, str]]:
    """Pairs of letters whose pictures are the same."""
    letters = list(marks)
    return [(a, b) for i, a in enumerate(letters) for b in letters[i + 1 :] if marks[a] == marks[b]]


def _write_page(path: Path, page: Mapping[str, Any]) -> None:
    data = json.dumps(page, sort_keys=True).replace("<", "\\u003c")  # whatever the title says, the element ends where it should
    before, mark, after = TEMPLATE.read_text(encoding="utf-8").partition('<script type="application/json" id="study">{}')
    assert mark
    _write_text(path, f"{before}{mark[:-2]}{data}{after}")


def _write_text(path: Path, text: str) -> None:
    def write(part: Path) -> None:
        part.write_text(text, encoding="utf-8")

    write_atomic(path, write)
