"""Pipeline A killed with SIGKILL at random moments and started again, until it ends: the same files as without?

python benchmarks/candidates_kills.py [--kills 10] [--pictures 6] [--seed 0] [--config NAME] [--set key=value ...] [--json FILE]

Every start is a process of its own, as after a crash: interpreter, model, folder. Kills are spread at random over the files that
a run writes, half-written ones included. All files but the score cache, whose files depend on where a run stopped, are compared
byte for byte with those of an uninterrupted run.
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


def wait_for_files(process: subprocess.Popen[bytes], folder: Path, count: int) -> None:
    """Return when so many files are there, half-written ones included, or the process has ended."""
    while process.poll() is None and writes_of(folder) < count:
        time.sleep(0.002)


def run(arguments: argparse.Namespace, root: Path) -> dict[str, object]:
    data, whole, killed = root / "data", root / "whole", root / "killed"
    write_pictures(data, arguments.pictures)
    if start(arguments, data, whole).wait() != 0:
        raise RuntimeError("expected the uninterrupted run to end well, it did not; see above")
    total, rng, moments, starts = writes_of(whole), random.Random(arguments.seed), [], 0
    while len(moments) < arguments.kills:
        # the kills to come share what is left; one that would come too late is followed by a start with half of it taken away
        there, left = writes_of(killed), arguments.kills - len(moments)
        target = there + 1 + int(rng.random() * 2 * max(total - there, 0) / (left + 1))
        process = start(arguments, data, killed)
        starts += 1
        wait_for_files(process, killed, min(target, total))
        time.sleep(rng.random() * 0.05)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
            moments.append({"files_before": there, "files": writes_of(killed), "of": total})
            print(f"kill {len(moments)}: {there} -> {writes_of(killed)} of {total} files", flush=True)
        else:
            for path in sorted(path for path in killed.rglob("*") if path.is_file())[1::2]:
                path.unlink()
    if start(arguments, data, killed).wait() != 0:
        raise RuntimeError("expected the resumed run to end well, it did not; see above")
    ours, theirs = files_of(killed), files_of(whole)
    differing = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    return {"kills": moments, "starts": starts + 1, "files": len(theirs), "differing": differing}


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
