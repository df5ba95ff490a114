"""Pipeline A killed with SIGKILL at random moments and started again, until it ends: the same files as without?

python benchmarks/candidates_kills.py [--kills 10] [--pictures 6] [--seed 0] [--config NAME] [--set key=value ...] [--json FILE]

Every start is a process of its own, as after a crash: interpreter, model, folder. Kills fall anywhere between the first and the
last write of what is still to be done. All files but the score cache, whose files depend on where a run stopped,
are compared byte for byte with those of an uninterrupted run.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image


def write_pictures(folder: Path, count: int, side: int = 160) -> None:
    """Crops of scikit-image's astronaut (public domain)."""
    import skimage.data

    folder.mkdir(parents=True)
    photo = np.asarray(skimage.data.astronaut())
    for i in range(count):
        top, left = (61 * i) % (513 - side), (97 * i) % (513 - side)
        Image.fromarray(photo[top : top + side, left : left + side]).save(folder / f"{i:03d}.png")


def start(arguments: argparse.Namespace, data: Path, out: Path) -> subprocess.Popen[bytes]:
    sets = [f'data.folders=["{data.as_posix()}"]', *arguments.sets]
    command = [sys.executable, "-m", "alignsr", "candidates", arguments.config, "--out", str(out), "--quiet"]
    command += [part for item in sets for part in ("--set", item)]
    return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})


def files_of(folder: Path) -> dict[str, bytes]:
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if not name.startswith("score-cache/")}


def writes_of(folder: Path) -> int:
    return sum(path.is_file() for path in folder.rglob("*")) if folder.is_dir() else 0


def wait_for_work(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Return when the process has changed something, or has ended."""
    before = writes_of(folder)
    while process.poll() is None and writes_of(folder) == before:
        time.sleep(0.01)


def run(arguments: argparse.Namespace, root: Path) -> dict[str, object]:
    data, whole, killed = root / "data", root / "whole", root / "killed"
    write_pictures(data, arguments.pictures)
    process = start(arguments, data, whole)
    wait_for_work(process, whole)
    working = time.monotonic()
    if process.wait() != 0:
        raise RuntimeError("expected the uninterrupted run to end well, it did not; see above")
    length = time.monotonic() - working
    rng, moments, starts = random.Random(arguments.seed), [], 0
    while len(moments) < arguments.kills:
        process = start(arguments, data, killed)
        starts += 1
        wait_for_work(process, killed)
        # what is left gets shorter with every start; a run that ends before its kill is followed by one in an emptied folder
        delay = rng.random() * length / (1 + len(moments) / 3)
        try:
            process.wait(delay)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            moments.append({"after_s": round(delay, 3), "files": writes_of(killed)})
            print(f"kill {len(moments)}: {delay:.2f} s after the first write, {moments[-1]['files']} files there", flush=True)
        else:
            for path in sorted((killed / "candidates").glob("*"))[::2]:
                path.unlink()
    process = start(arguments, data, killed)
    if process.wait() != 0:
        raise RuntimeError("expected the resumed run to end well, it did not; see above")
    ours, theirs = files_of(killed), files_of(whole)
    differing = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    return {
        "kills": moments,
        "starts": starts + 1,
        "uninterrupted_s": round(length, 2),
        "files": len(theirs),
        "differing": differing,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--pictures", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--config", default="tiny-dp2o-candidates-pixel")
    parser.add_argument("--set", action="append", default=[], dest="sets", metavar="KEY=VALUE")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        result = run(arguments, Path(name))
    same = not result["differing"]
    counts = f"{len(result['kills'])} kills, {result['starts']} starts, {result['files']} files"
    print(f"{counts}: {'all the same' if same else 'DIFFERENT'}")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if not same:
        raise SystemExit(f"differing: {', '.join(result['differing'])}")


if __name__ == "__main__":
    main()
