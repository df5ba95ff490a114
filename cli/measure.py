"""Commands that measure: bench here, evaluate from its own file."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from .evaluate import evaluate
from .terminal import JsonFile, Quiet, check_reports, say, write_json

__all__ = ["BENCHMARKS", "bench", "evaluate"]


class Benchmark(NamedTuple):
    """A script in benchmarks/: its file, what it measures, and the arguments without which it does not run."""

    file: str
    about: str
    needs: str = ""


BENCHMARKS = {
    "import-time": Benchmark("import_time.py", "seconds and memory of importing the pack over `import torch`"),
    "degradation": Benchmark("degradation.py", "degraded images per second beside a per-image OpenCV pipeline"),
    "tiling": Benchmark("tiling.py", "work and time of tiles over one whole pass"),
    "upscale": Benchmark("upscale.py", "megapixels per second of each bundled model"),
    "autoencoded-memory": Benchmark("autoencoded_memory.py", "what autograd keeps for AE(SR): plain torch beside lean networks"),
    "aesop-step": Benchmark("aesop_step.py", "memory and time of one AESOP training step beside the straightforward order"),
    "pair-data": Benchmark("pair_data.py", "training pairs per second beside what a step needs"),
    "one-step": Benchmark("one_step.py", "work, memory and time of the large one-step models beside their bound"),
    "multi-step": Benchmark("multi_step.py", "work, memory and time of FLUX.1-dev in 28 steps and trained by preferences"),
    "fdl": Benchmark("fdl.py", "time and memory of the frequency distribution loss beside the published order of operations"),
    "sobolev": Benchmark("sobolev.py", "time of the Sobolev energy beside the same by real FFTs and beside a mean square"),
    "scoring": Benchmark("scoring.py", "candidates scored per second, batched per metric, beside a loop picture by picture"),
    "candidates": Benchmark("candidates.py", "candidates sampled per minute by the models of DP2O-SR"),
    "candidates-kills": Benchmark("candidates_kills.py", "pipeline A killed at random moments: the same files?", "--kills N"),
    "preference-memory": Benchmark("preference_memory.py", "memory of policy and reference of DP2O-SR beside two full copies"),
    "bundled-models": Benchmark("bundled_models.py", "PSNR and SSIM of each bundled model against bicubic", "--data DIR"),
}
BENCHMARK_FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"


def bench(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="One benchmark; default: all that need no arguments.", show_default=False),
    ] = None,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- ARGUMENTS]", help="For the benchmark itself, after --, e.g. -- --help.", show_default=False),
    ] = None,
    json_file: JsonFile = None,
    list_only: Annotated[bool, typer.Option("--list", help="Say which there are.")] = False,
    quiet: Quiet = False,
) -> None:
    """Run the benchmarks of the repository and print their tables."""
    if list_only:
        for known, item in BENCHMARKS.items():
            typer.echo(f"{known:18} {item.about}" + (f" (needs -- {item.needs})" if item.needs else ""))
        return
    chosen = _choose(name)
    check_reports(json_file)
    report: dict[str, Any] = {}
    failed: list[str] = []
    for known, item in chosen.items():
        say(f"== {known}: {item.about}", quiet)
        to_stderr = str(json_file) == "-"
        code, report[known] = _run_benchmark(BENCHMARK_FOLDER / item.file, arguments or [], to_stderr=to_stderr, quiet=quiet)
        if code:
            failed.append(f"{known} (exit code {code})")
    write_json(json_file, next(iter(report.values())) or {} if name else report)
    if failed:
        raise RuntimeError(f"{', '.join(failed)}: expected to pass, did not; see above")


def _choose(name: str | None) -> dict[str, Benchmark]:
    """The named benchmark, or all that run without arguments; their files exist.

    Raises:
        ValueError: unknown name.
        FileNotFoundError: installed without the repository.
    """
    from ..core.checks import did_you_mean

    key = name.replace("_", "-") if name is not None else None
    if key is not None and key not in BENCHMARKS:
        raise ValueError(f"NAME: expected a benchmark, got {name!r}; {did_you_mean(key, list(BENCHMARKS))}")
    chosen = {key: BENCHMARKS[key]} if key else {known: item for known, item in BENCHMARKS.items() if not item.needs}
    for item in chosen.values():
        if not (BENCHMARK_FOLDER / item.file).is_file():
            raise FileNotFoundError(
                f"{BENCHMARK_FOLDER / item.file}: expected the benchmarks of the repository, found none; they are not part of an "
                "installed package: clone the repository and install it with `pip install -e .`"
            )
    return chosen


def _run_benchmark(path: Path, arguments: list[str], *, to_stderr: bool, quiet: bool) -> tuple[int, Any]:
    """Run one benchmark in a process of its own and read its JSON."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        output: Any = subprocess.DEVNULL if quiet else sys.stderr if to_stderr else None
        code = subprocess.run(
            [sys.executable, str(path), *arguments, "--json", str(result)], stdout=output, check=False
        ).returncode
        return code, json.loads(result.read_text(encoding="utf-8")) if result.is_file() else None
