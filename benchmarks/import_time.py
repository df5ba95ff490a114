"""What importing the pack costs over `import torch`: seconds and resident memory, each import in a process of its own.

Of the repeats the fastest counts: whatever else the machine does can only add time.

python benchmarks/import_time.py [--repeats 5] [--json FILE]
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUDGET_SECONDS, BUDGET_MB = 0.5, 30.0

PROBE = """
import importlib.util, json, os, sys, time
import psutil
import torch
process = psutil.Process()
seconds, cpu, resident = time.perf_counter(), time.process_time(), process.memory_info().rss
{statement}
print(json.dumps([time.perf_counter() - seconds, time.process_time() - cpu, (process.memory_info().rss - resident) / 2**20]))
"""
TORCH = PROBE.replace("import torch\n", "").replace("{statement}", "import torch")
COMFYUI = f"""
folder = {str(ROOT)!r}
name = folder.replace(".", "_x_")
spec = importlib.util.spec_from_file_location(name, os.path.join(folder, "__init__.py"), submodule_search_locations=[folder])
module = importlib.util.module_from_spec(spec)
sys.modules[name] = module
spec.loader.exec_module(module)
module.NODE_CLASS_MAPPINGS
"""
CASES = {
    "import torch": TORCH,
    "import alignsr.core": PROBE.replace("{statement}", "import alignsr.core"),
    "the pack, as ComfyUI loads it": PROBE.replace("{statement}", COMFYUI),
    "import alignsr.cli": PROBE.replace("{statement}", "import alignsr.cli"),
}


def measure(code: str, repeats: int) -> dict[str, float]:
    """Fastest of `repeats` processes, and their median memory, after one that warms the disk cache and writes the byte code."""
    results = []
    for _ in range(repeats + 1):
        done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
        results.append(json.loads(done.stdout.splitlines()[-1]))
    seconds, cpu, megabytes = zip(*results[1:], strict=True)
    return {"seconds": round(min(seconds), 3), "cpu_seconds": round(min(cpu), 3), "mb": round(statistics.median(megabytes), 1)}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)

    rows = {name: measure(code, options.repeats) for name, code in CASES.items()}
    print(f"{'case':32} {'seconds':>8} {'CPU s':>8} {'MB':>8}")
    for name, row in rows.items():
        over = "" if name == "import torch" else "+"
        cells = (format(row["seconds"], ".3f"), format(row["cpu_seconds"], ".3f"), format(row["mb"], ".1f"))
        print(f"{name:32} " + " ".join(f"{over + cell:>8}" for cell in cells))
    pack = rows["the pack, as ComfyUI loads it"]
    ok = pack["seconds"] < BUDGET_SECONDS and pack["mb"] < BUDGET_MB
    print(f"budget for the pack over import torch: {BUDGET_SECONDS} s, {BUDGET_MB} MB: {'kept' if ok else 'exceeded'}")
    if options.json:
        result = {"cases": rows, "budget": {"seconds": BUDGET_SECONDS, "mb": BUDGET_MB}, "kept": ok}
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
