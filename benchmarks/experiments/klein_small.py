"""Does the one-step recipe learn in FLUX.2's latent space? Its transformer in small, on real TAEF2 latents, on a processor.

python benchmarks/experiments/klein_small.py --data DIR --out RUNS [--steps 600] [--json FILE] [--picture FILE]

The transformer of FLUX.2 [klein] with 4.6 million parameters, started with a zero output layer so that it answers with no
velocity, is trained whole by the recipe `one_step_distill` (L1) on BSDS500, x4, between the pretrained halves of TAEF2. Measured
on Set5: the result against the bicubic input after the same autoencoder round trip (what zero velocity gives), and against the
round trip of the ground truth, which no transformer can beat by much.
The picture shows scikit-image's astronaut (public domain), which neither saw.

DIR holds bsds500/, set5/ and taef2/ (taef2_encoder.pth, taef2_decoder.pth). A finished training in RUNS is found again.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from common import SCALE, test_pairs, trained, training_folders
from PIL import Image
from torch import Tensor

from alignsr.core.backbones import latent, load_backbone
from alignsr.core.images import quantize_8bit, to_model_range
from alignsr.core.metrics import psnr
from alignsr.core.pictures import side_by_side
from alignsr.core.records import Restored
from alignsr.core.resize import imresize
from alignsr.core.restore import restore
from alignsr.core.weights import write_atomic
from alignsr.train.one_step import build_backbone
from alignsr.train.recipes import load_config

CONFIG = Path(__file__).with_name("klein_small.toml")


def silent_start(config: Any, path: Path) -> Path:
    """A model file of the config's transformer, random but for an output layer of zeros."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.run.seed)
        backbone: Any = build_backbone(config.model, config.name, config.licence)
    with torch.no_grad():
        backbone.transformer.proj_out.weight.zero_()
    return latent.save(path, backbone, {"start_sigma": config.model.sigma, "step_length": config.model.step_length})


def score(images: Sequence[Tensor], pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Mean PSNR-Y of 8-bit results."""
    return statistics.fmean(float(psnr(quantize_8bit(sr), gt, crop=SCALE)) for sr, (gt, _) in zip(images, pairs, strict=True))


def round_trip(backbone: Any, image: Tensor) -> Tensor:
    """The image through the autoencoder, in [0, 1]; sides are multiples of 4 here and the autoencoder's of 16."""
    height, width = image.shape[-2:]
    padded = torch.nn.functional.pad(image, (0, -width % 16, 0, -height % 16), mode="reflect")
    back = (backbone.decode(backbone.encode(to_model_range(padded))) + 1) / 2
    return back[..., :height, :width].clamp(0, 1)


def look(backbone: Any) -> Image.Image:
    """A photograph that is free to show: the input, what no velocity gives, the result and the ground truth."""
    import skimage.data

    gt = torch.from_numpy(skimage.data.astronaut()[0:256, 96:352].copy()).movedim(2, 0)[None].float() / 255
    result = restore(backbone, quantize_8bit(imresize(gt, 1 / SCALE).clamp(0, 1)), scale=SCALE)
    panels = {
        "input (bicubic)": result.lq_up,
        "input after the round trip": round_trip(backbone, result.lq_up),
        "result": result.sr,
        "ground truth": gt,
    }
    titles = [name if image is gt else f"{name}, {score([image], [(gt, gt)]):.2f} dB" for name, image in panels.items()]
    return side_by_side(dict(zip(titles, map(quantize_8bit, panels.values()), strict=True)), crops=[(132, 60), (60, 190)])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with bsds500/, set5/ and taef2/")
    parser.add_argument("--out", type=Path, required=True, help="folder for the training")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the config")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="also draw a photograph side by side here, .jpg or .png")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args(argv)
    sets = [
        f"data.folders={training_folders(options.data)}",
        f"model.autoencoder={json.dumps(str(options.data / 'taef2' / 'taef2_encoder.pth'))}",
        f"run.steps={options.steps}",
        *options.set,
    ]
    folder = options.out / "klein-small"
    start = folder.with_name("klein-small-start.safetensors")
    if not start.exists():
        silent_start(load_config(CONFIG, sets)[1], start)
    weights = trained(CONFIG, [*sets, f"model.init={json.dumps(str(start))}"], folder)
    logs = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    tenth = max(1, len(logs) // 10)
    losses = [statistics.fmean(line["loss"] for line in part) for part in (logs[:tenth], logs[-tenth:])]

    pairs = test_pairs(options.data, ["set5"])
    with torch.inference_mode():
        taught, untouched = (cast(Any, load_backbone(path)) for path in (weights, start))
        results: dict[str, list[Restored]] = {
            name: [restore(backbone, lq, scale=SCALE) for _, lq in pairs]
            for name, backbone in (("trained", taught), ("zero velocity", untouched))
        }
        figures = {
            "parameters": sum(p.numel() for p in taught.transformer.parameters()),
            "loss, first tenth": losses[0],
            "loss, last tenth": losses[1],
            "bicubic input": score([result.lq_up for result in results["trained"]], pairs),
            "bicubic input after the round trip": score([round_trip(taught, r.lq_up) for r in results["trained"]], pairs),
            "zero velocity": score([result.sr for result in results["zero velocity"]], pairs),
            "trained": score([result.sr for result in results["trained"]], pairs),
            "ground truth after the round trip": score([round_trip(taught, gt) for gt, _ in pairs], pairs),
        }
        if options.picture:
            picture = look(taught)
            write_atomic(options.picture, lambda temporary: picture.save(temporary, quality=90))
    print("| figure | value |", "| --- | --- |", sep="\n")
    for name, value in figures.items():
        print(f"| {name} | {value:,.0f} |" if name == "parameters" else f"| {name} | {value:.3f} |")
    if options.json:
        report = json.dumps(figures, indent=2)
        write_atomic(options.json, lambda temporary: temporary.write_text(report + "\n", encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
