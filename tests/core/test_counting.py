"""Work and memory counted without a device: by hand, beside real runs, of the full-size models (strsr.md sections 4 and 6.1)."""

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from alignsr.core.backbones import LATENT_KINDS
from alignsr.core.conditioning import strsr_prompt
from alignsr.core.conditioning.tiny import tiny_vlm
from alignsr.core.counting import count_flops, peak_bytes, vlm_flops
from paths import ROOT

KINDS = list(LATENT_KINDS)


def opened(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{name}_benchmark", ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    return opened("one_step")


@pytest.fixture(scope="module")
def multi_step() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))  # as a script it finds its neighbours
        yield opened("multi_step")


def test_products_by_hand() -> None:
    x, layer = torch.empty(1, 3, 8, 8, device="meta"), nn.Conv2d(3, 5, 3, padding=1, device="meta")
    assert count_flops(lambda: layer(x)) == 2 * 64 * 5 * 3 * 9
    q = torch.empty(1, 2, 7, 4, device="meta")
    assert count_flops(lambda: F.scaled_dot_product_attention(q, q, q)) == 2 * (2 * 2 * 7 * 7 * 4)


def test_memory_by_hand() -> None:
    layers = nn.Sequential(nn.Linear(10, 1000, bias=False), nn.ReLU(), nn.Linear(1000, 10, bias=False)).to("meta")
    x = torch.empty(100, 10, device="meta")

    def run() -> None:
        with torch.no_grad():
            layers(x)

    assert peak_bytes(run) == 2 * 100 * 1000 * 4  # before and after the ReLU; neither weights nor input count
    q = torch.empty(1, 1, 1000, 8, device="meta")
    assert peak_bytes(lambda: F.scaled_dot_product_attention(q, q, q)) == 1000 * 8 * 4, "no matrix of scores"
    inplace = torch.empty(50, device="meta")
    assert peak_bytes(lambda: inplace.add_(1).view(5, 10).relu_()) == 0


def test_work_of_the_language_model_beside_a_run() -> None:
    model = tiny_vlm()
    whole: Any = model.model
    whole.set_attn_implementation("eager")  # the processor's fused kernel is not counted by torch
    pictures = [torch.rand(3, 256, 320)]
    tokens: list[torch.Tensor] = []
    counted = count_flops(lambda: tokens.append(model.embed(pictures, strsr_prompt(), parity=False)))
    assert vlm_flops(model.model.config, 256, 320, tokens[0].shape[1]) == pytest.approx(counted, rel=1e-3)


@pytest.mark.parametrize(
    ("kind", "step", "decode", "weights"),
    [("flux2_klein", 30.88, 10.47, 3_875_544_576), ("z_image", 56.09, 10.47, 6_154_908_736)],
)
def test_work_of_the_full_models(benchmark: ModuleType, kind: str, step: float, decode: float, weights: int) -> None:
    """The specification derives about 31 and 56 TFLOP for the step on a tile of 1024 px; 8.9 GB of language model in 16 bits."""
    rows = benchmark.count(kind, 1024)
    assert rows["step"]["flops"] / 1e12 == pytest.approx(step, abs=0.01)
    assert rows["step"]["flops"] / 1e12 == pytest.approx(benchmark.SPECIFIED[kind], rel=0.01)
    assert rows["decode"]["flops"] / 1e12 == pytest.approx(decode, abs=0.01)
    assert rows["step"]["weights"] == 2 * weights
    assert rows["vlm"]["weights"] / 1e9 == pytest.approx(8.9, abs=0.05)
    assert rows["vlm"]["flops"] < 0.05 * rows["step"]["flops"]
    spec = benchmark.make_backbone(kind, "meta", torch.bfloat16, False).spec
    for stage in ("encode", "step", "decode"):
        assert rows[stage]["activations"] <= spec.bytes_per_pixel * 1024**2, "what tiles are chosen by is an upper value"


@pytest.mark.parametrize("kind", KINDS)
def test_4096_fits_into_24_gib_when_parts_take_turns(benchmark: ModuleType, kind: str) -> None:
    found = benchmark.memory_plan(kind, 4096)
    assert (found["tiles"], found["tile_px"]) == (16, 1072)
    assert max(found[stage] for stage in benchmark.STAGES) < 0.6 * benchmark.MEMORY_TARGET


def test_the_benchmark_says_what_is_not_measured(
    benchmark: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert benchmark.main(["--kind", "flux2_klein", "--json", str(tmp_path / "r.json")]) == 0
    said = capsys.readouterr().out
    assert said.count("not measured") == 5 and "30.88" in said and "at most 9.8 of 24 GiB" in said
    assert json.loads((tmp_path / "r.json").read_text())["models"]["flux2_klein"]["measured"] is None


@pytest.mark.parametrize(
    ("kind", "more"), [("flux2_klein", ["--train-steps", "2"]), ("z_image", ["--train-steps", "0", "--channels-last"])]
)
def test_the_benchmark_runs_whole_on_miniatures(
    kind: str, more: list[str], benchmark: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "r.json"
    assert benchmark.main(["--tiny", "--kind", kind, "--rounds", "1", *more, "--json", str(out)]) == 0
    found: Any = json.loads(out.read_text())["models"][kind]["measured"]
    assert sum(found["stage_seconds"].values()) > 0 and set(found["stage_seconds"]) == set(benchmark.STAGES)
    assert found["large_seconds"] > 0 and found["flops_per_second"] > 0
    assert ("train" in found) == ("2" in more) and "x its bound (target 1.6)" in capsys.readouterr().out


def test_training_is_measured_with_the_published_critic(benchmark: ModuleType) -> None:
    """strsr.md 2.3: 384, 768 and 1536 channels, an embedding of 1024, and heads of 12.9 million parameters on them."""
    maps = benchmark.make_critic("meta")
    assert (maps.channels, maps.embedding) == ((384, 768, 1536), 1024)
    assert sum(parameter.numel() for parameter in maps.parameters()) == pytest.approx(846.5e6, abs=0.1e6)


def test_what_was_measured_is_kept_when_training_fails(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("no memory for a training step")

    monkeypatch.setattr(benchmark, "train", fail)
    out = tmp_path / "r.json"
    with pytest.raises(MemoryError, match="training step"):
        benchmark.main(["--tiny", "--kind", "z_image", "--rounds", "1", "--json", str(out)])
    assert json.loads(out.read_text())["models"]["z_image"]["measured"]["seconds"] > 0


def test_work_and_memory_of_28_steps(multi_step: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """asasr.md 4.7 derives 1.055, 2.659 and 4.633 PFLOP, 3.1 a policy of 57.95 M; a step of 8 pairs fits 80 GB (20 s)."""
    assert multi_step.main(["--batches", "8", "--json", str(tmp_path / "r.json")]) == 0
    counted: Any = json.loads((tmp_path / "r.json").read_text())["counted"]
    for name, row in counted["cases"].items():
        assert row["pflop"] == pytest.approx(row["specified"], abs=0.0005), name
    assert set(counted["cases"]) == {"512/512", "1024/512", "1024/1024"}
    training = counted["training"]
    assert training["policy_parameters"] == 57_951_232
    assert training["kept"] + training["passes"]["8"] < 0.65 * multi_step.LARGE_MEMORY
    weights = counted["weights"]
    assert weights["16"] == 2 * 11_901_408_320 and weights["4"] < weights["8"] < 0.7 * multi_step.SMALL_MEMORY
    assert "not measured (no GPU)" in capsys.readouterr().out


def test_recomputed_blocks_are_counted_in_the_backward_pass() -> None:
    """Two blocks of 8 wide layers: whole, all their results live until the backward pass; recomputed, those of one block do."""
    layers = [nn.Sequential(*(nn.Sequential(nn.Linear(64, 64), nn.Tanh()) for _ in range(8))).to("meta") for _ in range(2)]
    x = torch.empty(10_000, 64, device="meta", requires_grad=True)

    def run(again: bool) -> None:
        out = x
        for block in layers:
            out = checkpoint(block, out, use_reentrant=False) if again else block(out)
        torch.autograd.backward(out.sum())

    whole, recomputed = peak_bytes(lambda: run(False)), peak_bytes(lambda: run(True))
    assert 0.5 * whole < recomputed < 0.75 * whole
    q = torch.empty(1, 1, 1000, 8, device="meta", requires_grad=True)
    attended = peak_bytes(lambda: torch.autograd.backward(F.scaled_dot_product_attention(q, q, q).sum()))
    assert attended <= 6 * q.numel() * 4, "no matrix of scores in the backward pass either"


def test_the_multi_step_benchmark_runs_whole_on_miniatures(
    multi_step: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes", reason="weights of 8 and 4 bits need it")
    words = ["--tiny", "--rounds", "1", "--batches", "1", "2", "--train-steps", "2", "--candidates"]
    words += ["--json", str(tmp_path / "r.json")]
    assert multi_step.main(words) == 0
    found: Any = json.loads((tmp_path / "r.json").read_text())
    assert set(found["measured"]["pictures"]) == {"16 bits, 64/32", "16 bits, 64/64", "8 bits, 64/64", "4 bits, 64/64"}
    assert set(found["measured"]["training"]) == {"1", "2"}
    said = capsys.readouterr().out
    assert (
        said.count("% of a product of matrices") == 4
        and said.count("AS-DPO step, batch") == 2
        and said.count("candidates of 64 px per minute") == 2
    )
