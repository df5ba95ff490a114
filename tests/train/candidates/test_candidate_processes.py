"""Several processes make the tables of one, through the command line; a model of its own size draws the candidates."""

import json
import os
import subprocess
import sys

from candidates_helpers import contents, pictures

NAME = "tiny-dp2o-candidates-pixel"


def command(data, out, processes=1):
    run = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    launch = [*run, "--log-dir", f"{out}-logs", "--tee", "3"] if processes > 1 else []  # each one's last words, in what it says
    sets = ["--set", f'data.folders=["{data.as_posix()}"]']
    return [sys.executable, *launch, "-m", "alignsr", "candidates", NAME, *sets, "--out", str(out), "--quiet"]


def test_two_processes_give_exactly_the_tables_of_one(tmp_path):
    data = pictures(tmp_path / "gt", 5)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
    environment |= {"ACCELERATE_USE_CPU": "true"} if environment.get("CUDA_VISIBLE_DEVICES") else {}
    running = [
        subprocess.Popen(
            command(data, tmp_path / str(n), n), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )
        for n in (1, 2)
    ]
    for process in running:
        said, _ = process.communicate(timeout=280)
        assert process.returncode == 0, said[-8000:]
    one, two = (contents(tmp_path / str(n)) for n in (1, 2))
    assert one == two and len(one) == 3 + 2 * 5
    model = json.loads((tmp_path / "2" / "model.json").read_text())
    assert 1000 < model["parameters"] < 100_000
