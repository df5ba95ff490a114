"""Candidates scored per second: batched per metric as in pipeline A, beside a loop that calls each metric picture by picture.

python benchmarks/scoring.py [--pictures 2] [--candidates 8] [--side 128] [--metrics musiq,lpips-vgg,...] [--json FILE]
python benchmarks/scoring.py --device cuda --pictures 8 --candidates 32 --side 512 --tf32 --metrics \
  lpips-vgg,topiq_fr,afine_fr,maniqa-pipal,musiq,clipiqa+,topiq_nr,afine_nr

The loop creates each metric once, reads every picture from disk and calls pyiqa's own network with it, without a cache; ours
starts with an empty cache, then runs again with a full one. Both read the same files. Weights are random and written to disk
first, in the sizes of the published ones (`--real` uses those that are there), so the times are real and the scores mean nothing.
The largest difference between the two is printed: batches change the last digits, TensorFloat-32 (`--tf32`, ours only) the third.
"""

import argparse
import json
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from alignsr.core.compat import import_third_party, import_torchvision
from alignsr.core.metrics import METRICS
from alignsr.core.metrics.adapter import build_network, center_crop_to_multiple
from alignsr.train.candidates import CandidateStore, Team, read_scores, score_candidates
from alignsr.train.candidates.config import ScoringConfig
from alignsr.train.candidates.store import Candidates

FAST = ("lpips-vgg", "topiq_fr", "afine_fr", "musiq", "clipiqa+", "topiq_nr", "afine_nr")
VGG_WIDTHS = (64, 128, 256, 512, 512)


def write_pictures(folder: Path, pictures: int, candidates: int, side: int) -> CandidateStore:
    """Noisy copies of crops of scikit-image's astronaut (public domain)."""
    import skimage.data

    photo = torch.from_numpy(skimage.data.astronaut()).permute(2, 0, 1)
    generator = torch.Generator().manual_seed(0)
    facts: dict[str, Any] = {"hash": "benchmark", "store": "shards", "groups_per_shard": 1, "candidates": candidates, "scale": 4}
    facts |= {"latents": "none", "groups": [f"picture {i}" for i in range(pictures)]}
    store = CandidateStore.create(folder, facts)
    for index in range(pictures):
        top, left = (37 * index) % (513 - side), (53 * index) % (513 - side)
        gt = photo[:, top : top + side, left : left + side]
        noise = torch.randn(candidates, *gt.shape, generator=generator) * torch.linspace(2, 30, candidates).view(-1, 1, 1, 1)
        made = (gt + noise).round().clamp(0, 255).to(torch.uint8)
        store.write(index, [Candidates(index, f"picture {index}", gt, gt[:, ::4, ::4].contiguous(), "", made, None)])
    return store


def random_clip(name: str) -> Any:
    """An untrained CLIP of the published size, as pyiqa's own class."""
    text = (77, 49408, 512, 8, 12)
    if name == "RN50":
        made = import_third_party("pyiqa.archs.clip_model").CLIP(1024, 224, (3, 4, 6, 3), 64, None, *text)
    else:
        made = import_third_party("pyiqa.archs.afineclip_model").AFINECLIP(512, 224, 12, 768, 32, *text)
    return made.float().eval()


@contextmanager
def random_weights(folder: Path, metrics: list[str]) -> Iterator[None]:
    """Weight files of the published sizes in a hub folder of their own; CLIP, which checks its files, is put in place by hand."""
    hub, hugging_face = folder / "hub", folder / "hf"
    afine: Any = import_third_party("pyiqa.archs.afine_arch")
    clipiqa: Any = import_third_party("pyiqa.archs.clipiqa_arch")
    constants: Any = import_third_party("huggingface_hub.constants")
    for sub in ("pyiqa", "checkpoints", "clip"):
        (hub / sub).mkdir(parents=True)
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(torch.hub, "_hub_dir", str(hub)))
        stack.enter_context(mock.patch.object(constants, "HF_HUB_CACHE", str(hugging_face)))
        stack.enter_context(mock.patch.dict(os.environ, {"HOME": str(folder), "USERPROFILE": str(folder)}))
        vit = random_clip("afine") if any("afine" in name for name in metrics) else None
        resnet = random_clip("RN50") if any("clipiqa" in name for name in metrics) else None
        if vit is not None:
            stack.enter_context(mock.patch.object(afine, "load", lambda *_, **__: (vit, None)))
            parts = {
                "natural": afine.AFINEQhead(), "fidelity": afine.AFINEDhead(), "adapter": afine.AFINELearnLambda(),
                "fidelity_scale": afine.AFINENLM_FR_Fit_with_limit(), "natural_scale": afine.AFINENLM_NR_Fit(),
                "finetuned_clip": vit,
            }  # fmt: skip
            torch.save({key: part.state_dict() for key, part in parts.items()}, hub / "pyiqa" / "afine.pth")
            (folder / ".cache" / "clip").mkdir(parents=True)
            (folder / ".cache" / "clip" / "ViT-B-32.pt").touch()
        if resnet is not None:
            stack.enter_context(mock.patch.object(clipiqa, "load", lambda *_, **__: resnet))
            torch.save(torch.randn(16, 512) * 0.02, hub / "pyiqa" / "CLIP-IQA%2B_learned_prompts-603f3273.pth")
            (hub / "clip" / "RN50.pt").touch()
        if "lpips-vgg" in metrics:
            torch.save(import_torchvision().models.vgg16(weights=None).state_dict(), hub / "checkpoints" / "vgg16-397923af.pth")
            heads = {f"lin{i}.model.1.weight": torch.rand(1, n, 1, 1) for i, n in enumerate(VGG_WIDTHS)}
            torch.save(heads, hub / "pyiqa" / "LPIPS_v0.1_vgg-a78928a0.pth")
        if "maniqa-pipal" in metrics:
            _place_vit(hugging_face)
        for name in ("topiq_fr", "topiq_nr", "musiq", "maniqa-pipal"):
            if name in metrics:
                state = build_network(METRICS[name], "cpu", pretrained=False).net.state_dict()  # pyright: ignore
                file = next(file for file in METRICS[name].weights if file.folder == "pyiqa")
                torch.save({"params": state} if "topiq" in name else state, hub / "pyiqa" / file.names[0])
        yield


def _place_vit(cache: Path) -> None:
    """MANIQA's backbone in the Hugging Face cache."""
    from safetensors.torch import save_file

    timm: Any = import_third_party("timm")
    folder = cache / "models--timm--vit_base_patch8_224.augreg2_in21k_ft_in1k"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("random")
    (folder / "snapshots" / "random").mkdir(parents=True)
    save_file(timm.create_model("vit_base_patch8_224").state_dict(), folder / "snapshots" / "random" / "model.safetensors")


class Clock:
    """Seconds since it was made: (by the wall, of the processor)."""

    def __init__(self) -> None:
        self.start = time.perf_counter(), time.process_time()

    def __call__(self) -> tuple[float, float]:
        return time.perf_counter() - self.start[0], time.process_time() - self.start[1]


Times = dict[str, tuple[float, float]]


def loop(store: CandidateStore, metrics: list[str], device: torch.device) -> tuple[Times, dict[str, list[Tensor]]]:
    """Metric -> seconds, and scores per picture: created once, called picture by picture."""
    seconds: Times = {}
    scores: dict[str, list[Tensor]] = {}
    for name in metrics:
        clock = Clock()
        spec, network = METRICS[name], build_network(METRICS[name], device)
        rows: list[Tensor] = []
        for index in range(len(store.names)):
            entry, values = store.entry(index), []
            for k in range(entry.candidates):
                keys = [f"{k:02d}.png", *(["gt"] if spec.needs_reference else [])]
                images = [store.picture(entry, key)[None].float().to(device) / 255 for key in keys]
                with torch.no_grad():
                    values.append(float(network(*(center_crop_to_multiple(x, spec.size_multiple).clone() for x in images))))
            rows.append(torch.tensor(values, dtype=torch.float64))
        seconds[name], scores[name] = clock(), rows
        del network
    return seconds, scores


def ours(store: CandidateStore, metrics: list[str], team: Team, batch: int, cache: Path, precision: str) -> Times:
    """Metric -> seconds, weights included."""
    seconds: Times = {}
    for name in metrics:
        clock = Clock()
        config = ScoringConfig(metrics=(name,), batch_size=batch, cache=str(cache), precision=precision)  # pyright: ignore
        score_candidates(config, store, team=team)
        seconds[name] = clock()
    return seconds


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    device = torch.device(arguments.device)
    metrics = [name for name in arguments.metrics.split(",") if name]
    store = write_pictures(folder / "run", arguments.pictures, arguments.candidates, arguments.side)
    precision = "tf32" if arguments.tf32 else "fp32"
    weights = ExitStack() if arguments.real else random_weights(folder, metrics)
    with weights, Team.joined(arguments.threads) as joined:
        team = Team(joined.accelerator, device, 0, 1)
        warm = torch.randn(64, 64, device=device)  # the device starts up outside of what is measured
        (warm @ warm).sum().item()
        baseline, theirs = loop(store, metrics, device)
        cold = ours(store, metrics, team, arguments.batch, folder / "cache", precision)
        config = ScoringConfig(
            metrics=tuple(metrics), batch_size=arguments.batch, cache=str(folder / "cache"), precision=precision
        )  # pyright: ignore
        clock = Clock()
        scores = read_scores(score_candidates(config, store, team=team))
        cached = clock()[0]
    rows: dict[str, dict[str, float]] = {}
    for column, name in enumerate(metrics):
        reference = torch.cat(theirs[name])
        apart = float((torch.cat([group[:, column] for group in scores.groups]) - reference).abs().max())
        rows[name] = {
            **_faster(baseline[name], cold[name]),
            "largest_difference": apart,
            "in_standard_deviations": apart / (float(reference.std()) or 1.0),
        }
    total = [tuple(map(sum, zip(*times.values(), strict=True))) for times in (baseline, cold)]
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": arguments.threads,
        "candidates": arguments.pictures * arguments.candidates,
        "side": arguments.side,
        "batch": arguments.batch,
        "precision": precision,
        "metrics": rows,
        "all": _faster(total[0], total[1]),
        "cached_s": cached,
    }


def _faster(theirs: tuple[float, ...], mine: tuple[float, ...]) -> dict[str, float]:
    return {
        "loop_s": theirs[0],
        "ours_s": mine[0],
        "times_faster": theirs[0] / mine[0],
        "loop_processor_s": theirs[1],
        "ours_processor_s": mine[1],
        "times_less_processor": theirs[1] / mine[1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=2)
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--metrics", default=",".join(FAST))
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tf32", action="store_true", help="TensorFloat-32 matrix products, ours only")
    parser.add_argument("--real", action="store_true", help="published weights, where they are on disk")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("no GPU here: not measured")
        return
    with tempfile.TemporaryDirectory() as name:
        result = measure(arguments, Path(name))
    size, how = f"{result['candidates']} candidates of {result['side']} px", f"batch {result['batch']}, {result['precision']}"
    print(f"{size} on {result['device']}, {how}")
    print(f"{'metric':14} {'loop s':>8} {'ours s':>8} {'faster':>7}   processor only  largest difference")
    for name, row in [*result["metrics"].items(), ("all", result["all"])]:
        apart = f"{row['largest_difference']:.1e} = {row['in_standard_deviations']:.0e} std" if name != "all" else ""
        times = f"{row['loop_s']:8.2f} {row['ours_s']:8.2f} {row['times_faster']:6.2f}x"
        print(f"{name:14} {times} {row['times_less_processor']:15.2f}x  {apart}")
    print(f"again, all cached: {result['cached_s']:.2f} s")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
