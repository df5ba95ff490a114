"""Several processes that train together, and what each of them said when one dies."""

import os
import subprocess
import sys
from pathlib import Path

_TAIL = 4000  # characters of each process


def run_processes(arguments: list[str], logs: Path, *, processes: int = 2, environment: dict[str, str] | None = None) -> None:
    """Run a module or script under torchrun, and fail with every process's last words: torchrun says who died, not why.

    Args:
        arguments: what torchrun starts: a script, or `-m module`, with its arguments.
        logs: folder for what the processes write.
        processes: how many.
        environment: of the processes, beside this one's.

    Raises:
        AssertionError: a process failed.
    """
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    keep = ["--log-dir", str(logs), "--redirects", "3"]  # 3: stdout and stderr, to a file each
    own = {"PYTHONFAULTHANDLER": "1"}  # a process that is killed by a signal writes where it was
    command = [*launch, *keep, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | own | (environment or {}), check=False)
    if done.returncode:
        said = {path: path.read_text(encoding="utf-8", errors="replace") for path in sorted(logs.rglob("*.log"))}
        parts = [f"--- {path.relative_to(logs)}\n{text[-_TAIL:]}" for path, text in said.items() if text]
        raise AssertionError("\n".join([f"exit code {done.returncode}", done.stderr[-_TAIL:], *parts]))
