"""Thumbnails of the shipped workflows: each is run on small free pictures, and what it showed becomes its picture."""

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from asasr_graphs import ABLATION as ASASR_ABLATION
from graph_parts import EXAMPLE
from PIL import Image, ImageDraw
from strsr_graphs import ABLATION as STRSR_ABLATION
from strsr_graphs import PICTURES
from workflow_graphs import ABLATION

from alignsr.core.drawing import INK, MUTED, PAPER, RULE, SHADE, write
from alignsr.core.pictures import contact_sheet, thumbnail
from alignsr.core.weights import write_atomic
from alignsr.nodes.host import LocalHost
from alignsr.runner import run_workflow

API = Path(__file__).resolve().parent.parent / "workflows" / "api"
THUMBNAIL_PX = (512, 384)
PHOTOS = ("astronaut", "chelsea", "coffee", "rocket")
TRAINING = ("training-pictures", "DF2K", "DF2K-OST", PICTURES)  # folders that workflows train on


def lines(*overrides: str) -> str:
    return "\n".join(overrides)


FAST = lines(  # a network that learns something in half a minute
    "run.steps=500",
    "run.log_every=1",
    "run.validate_every=50",
    "run.ema_decay=0.98",
    "run.precision='fp32'",
    "data.gt_patch_px=96",
    "data.holdout=1",
    "model.options={ features = 24, blocks = 2 }",
    "optimizer.learning_rate=1e-3",
    "schedule.warmup_steps=20",
)
SHORT = lines(
    "run.log_every=1",
    "run.preview_every=1000",
    "run.checkpoint_every=1000",
    "run.validate_every=0",
    "run.export_every=0",
    "run.precision='fp32'",
    "run.batch_size=2",
    "data.gt_patch_px=64",
    "data.subimage_px=0",
    "data.subimage_step_px=0",
    "data.decoded_cache=''",
    "data.workers=0",
    "data.holdout=0",
)
# a network of the bundled size, from the bundled weights, with a small opponent
SHORT_GAN = """
recipe = "perceptual_gan"
[model]
init = "lite-x4"
[discriminator]
features = 16
[discriminator.optimizer]
learning_rate = 2e-4
[optimizer]
learning_rate = 2e-4
[run]
steps = 80
ema_decay = 0.95
"""


def write_thumbnails(folder: Path, names: Sequence[str]) -> None:
    """Run these workflows and write `<name>.jpg` into `folder`.

    Args:
        folder: where the templates lie.
        names: keys of SHEETS.
    """
    for workflow in names:
        with tempfile.TemporaryDirectory() as name:
            root = Path(name)
            _materials(root / "input")
            picture = _on_paper(SHEETS[workflow](root))
        write_atomic(folder / f"{workflow}.jpg", lambda part, picture=picture: picture.save(part, format="JPEG", quality=88))


def photo(name: str, box: tuple[int, int, int, int] | None = None) -> Image.Image:
    """One of scikit-image's pictures: astronaut, rocket (public domain), coffee and chelsea (CC0)."""
    from skimage import data

    picture = Image.fromarray(getattr(data, name)())
    return picture.crop(box) if box else picture


def portrait() -> Image.Image:
    return photo("astronaut", (120, 0, 376, 192))


def quarter(picture: Image.Image) -> Image.Image:
    return picture.resize((picture.width // 4, picture.height // 4), Image.Resampling.BICUBIC)


def _materials(inputs: Path) -> None:
    """What the workflows name: an example, photos, and folders to train on."""
    for sub in ("photos", *TRAINING):
        (inputs / sub).mkdir(parents=True)
    portrait().resize((128, 96), Image.Resampling.BICUBIC).save(inputs / EXAMPLE)
    for title in PHOTOS:
        whole = photo(title)
        quarter(whole).save(inputs / "photos" / f"{title}.png")
        for sub in TRAINING:
            whole.save(inputs / sub / f"{title}.png")


def _run(workflow: str, root: Path, sets: list[str], shown: str) -> Image.Image:
    """The first picture that node `shown` gave."""
    return _first_picture(API / f"{workflow}.json", root / workflow, root, sets, shown)


def _run_without(dropped: Sequence[str], workflow: str, root: Path, sets: list[str], shown: str) -> Image.Image:
    """The same, without the nodes of these classes and without what would come from them."""
    graph = json.loads((API / f"{workflow}.json").read_text(encoding="utf-8"))
    gone = {node_id for node_id, entry in graph.items() if entry["class_type"] in dropped}
    graph = {node_id: entry for node_id, entry in graph.items() if node_id not in gone}
    for entry in graph.values():
        entry["inputs"] = {k: v for k, v in entry["inputs"].items() if not (isinstance(v, list) and v[0] in gone)}
    path = root / f"{workflow}.json"
    path.write_text(json.dumps(graph), encoding="utf-8")
    return _first_picture(path, root / workflow, root, sets, shown)


def _first_picture(path: Path, out: Path, root: Path, sets: list[str], shown: str) -> Image.Image:
    host = LocalHost(output_dir=out, input_dirs=[root / "input"])
    result = run_workflow(path, sets=sets, out_dir=out, quiet=True, host=host)
    entry = result.outputs[shown]["images"][0]
    base = host.temp_dir() if entry["type"] == "temp" else host.output_dir()
    with Image.open(base / entry["subfolder"] / entry["filename"]) as opened:
        return opened.convert("RGB")


def _zoom(node: str, x: int, y: int, side: int) -> list[str]:
    return [f"{node}.crop_centers={x},{y}", f"{node}.crop_px={side}", f"{node}.panel_px=240"]


def upscale_folder(root: Path) -> Image.Image:
    _run("upscale-folder", root, [], "4")
    pictures = {path.stem.removesuffix("_00001_"): Image.open(path) for path in sorted((root / "upscale-folder").glob("*.png"))}
    return contact_sheet(pictures, columns=2, cell_px=240)


def degrade_restore_score(root: Path) -> Image.Image:
    portrait().save(root / "input" / EXAMPLE)
    return _run("degrade-restore-score", root, _zoom("6", 103, 95, 60), "8")


def train_aesop(root: Path) -> Image.Image:
    no_vgg = "4.weight=0"  # its file is not among the free materials
    sets = [no_vgg, "5.weight=0.02", f"6.config={SHORT_GAN}", f"6.overrides={SHORT}"]
    return _run("train-aesop", root, sets, "12")


def train_aesop_real_world(root: Path) -> Image.Image:
    portrait().save(root / "input" / EXAMPLE)
    own = lines(
        SHORT,
        "model.init='lite-real-x4'",
        "data.degradation='aesop_realworld'",
        "data.pool_size=8",
        "data.pool_refresh=1",
        "data.pool_patch_px=64",
    )
    sets = ["3.weight=0", "4.weight=0.02", f"5.config={SHORT_GAN}", f"5.overrides={own}", *_zoom("9", 103, 95, 60)]
    return _run("train-aesop-real-world", root, sets, "10")


def pretrain(root: Path) -> Image.Image:
    sets = ["1.config=aesop-autoencoder-tiny", f"1.overrides={lines(SHORT, 'run.steps=120', 'schedule.warmup_steps=5')}"]
    return _run("pretrain-aesop-autoencoder", root, sets, "6")


def upscale_with_aesop(root: Path) -> Image.Image:
    photo("coffee", (40, 60, 296, 252)).resize((128, 96), Image.Resampling.BICUBIC).save(root / "input" / EXAMPLE)
    return _run("upscale-with-aesop", root, _zoom("5", 260, 150, 120), "6")


def spectral_comparison(root: Path) -> Image.Image:
    portrait().save(root / "input" / EXAMPLE)
    return _run("spectral-comparison", root, [], "33")


def view_autoencoder(root: Path) -> Image.Image:
    photo("chelsea", (96, 40, 352, 232)).save(root / "input" / EXAMPLE)
    sheet = _run("view-autoencoder", root, [], "4")
    return sheet.crop((0, 0, sheet.width, round(0.62 * sheet.width)))  # the rest would be too small to read


def ablation(root: Path) -> Image.Image:
    portrait().save(root / "input" / EXAMPLE)
    sets = ["4.weight=0", "5.weight=0.02", *_zoom("60", 103, 95, 60), "60.crop_centers=103,95; 110,40; 40,165"]
    for m, (_, _, autoencoder, _) in enumerate(ABLATION):
        sets += [f"3{m}.config={SHORT_GAN}", f"3{m}.overrides={lines(SHORT, 'run.steps=25')}"]
        if autoencoder:
            own = lines(SHORT, "run.steps=20", *ENCODERS[autoencoder])
            sets += [f"1{m}.config=aesop-autoencoder-tiny", f"1{m}.overrides={own}"]
    return _run("aesop-ablation", root, sets, "62")


ENCODERS = {  # what sets the three auto-encoders apart
    "aesop-autoencoder-bicubic": ("lq_weight=0.0", "model.options.encoder='bicubic'", "model.init_encoder='random'"),
    "aesop-autoencoder-no-lr-term": ("lq_weight=0.0",),
    "aesop-autoencoder": (),
}


def evaluate_folders(root: Path) -> Image.Image:
    """Enlarged by interpolation and by bundled networks."""
    inputs = root / "input"
    for sub in ("Set14", "results/bicubic"):
        (inputs / sub).mkdir(parents=True)
    for path in sorted((inputs / "photos").iterdir()):
        photo(path.stem).crop((0, 0, 256, 256)).save(inputs / "Set14" / path.name)
        small = quarter(photo(path.stem).crop((0, 0, 256, 256)))
        small.save(path)
        small.resize((256, 256), Image.Resampling.BICUBIC).save(inputs / "results" / "bicubic" / path.name)
    methods = ["bicubic = results/bicubic"]
    for model in ("lite-x4", "pixel-x4"):
        _run("upscale-folder", root, [f"2.model_name={model}"], "4")
        target = inputs / "results" / model
        (root / "upscale-folder").rename(target)
        for file in target.glob("*_00001_.png"):
            file.rename(file.with_name(file.name.replace("_00001_", "")))
        methods.append(f"{model} = results/{model}")
    sets = [f"2.sr={lines(*methods)}", "2.metrics=psnr_y, ssim_y, ae_psnr, lr_psnr, lsd", "2.published=none"]
    return _run("evaluate-folders", root, sets, "3")


def diagram(title: str, parts: Sequence[tuple[str, str]], foot: str, seeing: Sequence[int]) -> Image.Image:
    """What is connected to what, and which parts see the picture: the weights are the authors', we have no result to show."""
    page = Image.new("RGB", THUMBNAIL_PX, PAPER)
    draw = ImageDraw.Draw(page)
    small = portrait().resize((176, 132), Image.Resampling.BICUBIC)
    page.paste(small, (20, 126))
    write(page, 108, 266, "low resolution", 14, colour=MUTED, anchor="ma")
    for row, (name, text) in enumerate(parts):
        top = 62 + 92 * row
        draw.rounded_rectangle((270, top, 490, top + 66), 8, fill=SHADE, outline=RULE, width=2)
        write(page, 380, top + 12, name, 17, bold=True, anchor="ma")
        write(page, 380, top + 38, text, 14, colour=MUTED, anchor="ma")
        if row in seeing:
            draw.line((206, 192, 262, top + 33), fill=INK, width=2)
            draw.ellipse((258, top + 29, 266, top + 37), fill=INK)
        if row:
            draw.line((380, top - 26, 380, top), fill=INK, width=2)
    write(page, 20, 20, title, 24, bold=True)
    write(page, 380, 344, foot, 14, colour=MUTED, anchor="ma")
    return page


def strsr(transformer: str) -> Image.Image:
    parts = (
        ("Qwen3-VL 4B", "sees the picture"),
        (f"{transformer} + LoRA", "one Euler step"),
        ("autoencoder", "encodes and decodes"),
    )
    return diagram("StrSR", parts, "4x, tile by tile", (0, 1, 2))


def asasr() -> Image.Image:
    parts = (("autoencoder", "encodes the picture"), ("FLUX.1 + 2 LoRAs", "28 steps from noise"), ("autoencoder", "decodes"))
    return diagram("ASASR", parts, "4x, Sobolev preferences", (0,))


def dp2o(model: str, steps: int) -> Image.Image:
    parts = (("control branch", "sees the picture"), (model, f"{steps} steps from noise"), ("autoencoder", "decodes"))
    return diagram("DP2O-SR", parts, "4x, perceptual preferences", (0,))


def sample_score_curate(root: Path) -> Image.Image:
    return _run("sample-score-curate", root, [f"1.overrides={lines('data.limit=2', FEW)}"], "9")


FEW = lines("data.gt_patch_px=128", "data.crop='center'", "sampling.candidates=8", "pairs.picks=2")
SHORT_DPO = lines(
    "guard.pictures=1", "guard.every=5", "run.steps=25", "run.batch_size=6", "run.preview_every=100", "data.workers=0"
)


def train_dp2o(root: Path) -> Image.Image:
    return _run("train-dp2o", root, [f"1.overrides={FEW}", f"4.overrides={SHORT_DPO}"], "11")


def compare_dp2o(root: Path) -> Image.Image:
    (root / "input" / "Set14").mkdir()
    for title in PHOTOS:
        photo(title).save(root / "input" / "Set14" / f"{title}.png")
    drawn = lines("data.gt_patch_px=128", "data.crop='center'", "sampling.candidates=8")
    sets = [f"{node}.overrides={drawn}" for node in "56"]
    return _run("compare-dp2o", root, [f"1.overrides={FEW}", f"4.overrides={SHORT_DPO}", *sets], "10")


# StrSR's method on the bundled pixel model, for a minute: the published backbones need files that are not free to show
SHORT_STRSR = lines(SHORT, "optimizer.learning_rate=3e-4", "discriminator.optimizer.learning_rate=1e-3")
LARGE = ("AlignSRLoadVLM", "AlignSRVLMEncode", "AlignSRSaveLoRA", "PreviewAny")  # what the pixel model has no use for


def _small_critic(node: str) -> list[str]:
    return [f"{node}.features=network", f"{node}.model_name=lite-x4", f"{node}.hidden=64"]


def _small_fdl(node: str) -> list[str]:
    return [f"{node}.features=network", f"{node}.projections=64"]


def train_strsr(root: Path) -> Image.Image:
    portrait().resize((64, 48), Image.Resampling.BICUBIC).save(root / "input" / EXAMPLE)
    sets = [*_small_critic("1"), "3.weight=0", *_small_fdl("5"), *_zoom("16", 103, 95, 60)]
    for node, stage, steps in (("6", 1, 60), ("7", 2, 30)):
        sets += [f"{node}.config=strsr-pixel-stage{stage}", f"{node}.overrides={SHORT_STRSR}\nrun.steps={steps}"]
    return _run_without(LARGE, "train-strsr", root, sets, "17")


def strsr_ablation(_: Path) -> Image.Image:
    """What each method has: results of ours there are none, the backbones need files that are not free to show."""
    page = Image.new("RGB", THUMBNAIL_PX, PAPER)
    draw = ImageDraw.Draw(page)
    write(page, 20, 20, "StrSR: what does each part do?", 22, bold=True)
    columns = ("VLM", "text", "GAN", "FDL")
    for column, title in enumerate(columns):
        write(page, 262 + 66 * column, 78, title, 15, colour=MUTED, anchor="ma")
    for row, (title, _name, told, has_game, has_fdl) in enumerate(STRSR_ABLATION):
        top = 106 + 50 * row
        draw.rounded_rectangle((20, top, 492, top + 40), 6, fill=SHADE)
        write(page, 34, top + 11, title, 17, bold=row == 0)
        for column, has in enumerate((not told, '"text"' in told, has_game, has_fdl)):
            x, y = 262 + 66 * column, top + 20
            draw.ellipse((x - 8, y - 8, x + 8, y + 8), fill=INK if has else PAPER, outline=INK if has else RULE, width=2)
    return page


def train_asasr(stage: int) -> Image.Image:
    """The three stages of training, the one that a workflow holds in bold; 0: all of them."""
    page = Image.new("RGB", THUMBNAIL_PX, PAPER)
    draw = ImageDraw.Draw(page)
    write(page, 20, 20, "ASASR: training" if not stage else f"ASASR: stage {stage} of 3", 24, bold=True)
    stages = (
        ("1  supervised", "learns to restore", "pictures"),
        ("2  adversary", "learns others' artefacts", "results of other methods"),
        ("3  preferences", "ground truth over adversary", "in a Sobolev norm"),
    )
    for row, (title, what, source) in enumerate(stages):
        top, has = 76 + 92 * row, stage in (0, row + 1)
        draw.rounded_rectangle((20, top, 492, top + 70), 8, fill=SHADE if has else PAPER, outline=RULE, width=2)
        write(page, 40, top + 12, title, 19, bold=has, colour=INK if has else MUTED)
        write(page, 40, top + 40, what, 15, colour=MUTED)
        write(page, 474, top + 40, source, 15, colour=MUTED, anchor="ra")
        if row:
            draw.line((256, top - 22, 256, top), fill=INK if has else RULE, width=2)
    write(page, 256, 352, "three adapters on one base", 14, colour=MUTED, anchor="ma")
    return page


def asasr_ablation(_: Path) -> Image.Image:
    """What each method has."""
    page = Image.new("RGB", THUMBNAIL_PX, PAPER)
    draw = ImageDraw.Draw(page)
    write(page, 20, 20, "ASASR: what does each part do?", 22, bold=True)
    columns = ("Sobolev", "adversary")
    for column, title in enumerate(columns):
        write(page, 330 + 104 * column, 84, title, 15, colour=MUTED, anchor="ma")
    has = ((True, True), (False, True), (True, False), (False, False))
    for row, (title, marks) in enumerate(zip((*(t for t, *_ in ASASR_ABLATION), "supervised alone"), has, strict=True)):
        top = 112 + 60 * row
        draw.rounded_rectangle((20, top, 492, top + 48), 6, fill=SHADE)
        write(page, 34, top + 14, title, 17, bold=row == 0)
        for column, mark in enumerate(marks):
            x, y = 330 + 104 * column, top + 24
            draw.ellipse((x - 8, y - 8, x + 8, y + 8), fill=INK if mark else PAPER, outline=INK if mark else RULE, width=2)
    return page


SHEETS: dict[str, Callable[[Path], Image.Image]] = {
    "upscale-image": lambda root: _run("upscale-image", root, _zoom("5", 205, 190, 120), "6"),
    "upscale-folder": upscale_folder,
    "degrade-restore-score": degrade_restore_score,
    "train-small-network": lambda root: _run("train-small-network", root, [f"1.overrides={FAST}"], "5"),
    "pretrain-aesop-autoencoder": pretrain,
    "train-aesop": train_aesop,
    "train-aesop-real-world": train_aesop_real_world,
    "train-strsr": train_strsr,
    "strsr-ablation": strsr_ablation,
    "upscale-with-aesop": upscale_with_aesop,
    "upscale-with-strsr-flux": lambda _: strsr("FLUX.2 klein"),
    "upscale-with-strsr-z": lambda _: strsr("Z-Image"),
    "upscale-with-asasr": lambda _: asasr(),
    "train-asasr": lambda _: train_asasr(0),
    "train-asasr-sft": lambda _: train_asasr(1),
    "train-asasr-adversary": lambda _: train_asasr(2),
    "train-asasr-preferences": lambda _: train_asasr(3),
    "asasr-ablation": asasr_ablation,
    "upscale-with-dp2o-flux": lambda _: dp2o("FLUX.1 [dev]", 25),
    "upscale-with-dp2o-sd2": lambda _: dp2o("Stable Diffusion 2", 50),
    "sample-score-curate": sample_score_curate,
    "train-dp2o": train_dp2o,
    "compare-dp2o": compare_dp2o,
    "view-autoencoder": view_autoencoder,
    "aesop-ablation": ablation,
    "evaluate-folders": evaluate_folders,
    "spectral-comparison": spectral_comparison,
}


def _on_paper(sheet: Image.Image) -> Image.Image:
    """The whole sheet inside a thumbnail on white."""
    width, height = THUMBNAIL_PX
    ratio = min(width / sheet.width, height / sheet.height)
    fitted = sheet.resize((round(sheet.width * ratio), round(sheet.height * ratio)), Image.Resampling.LANCZOS)
    page = Image.new("RGB", THUMBNAIL_PX, (255, 255, 255))
    page.paste(fitted, ((width - fitted.width) // 2, (height - fitted.height) // 2))
    return thumbnail(page, width, height)
