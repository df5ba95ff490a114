"""Pipeline A killed at random moments and run again: the same files as without, byte for byte. Two processes: likewise."""

import os
import random
import signal
import time

import pytest
from candidates_helpers import contents, pictures, run, small

KILLS = 6


def in_child(work) -> int:
    """A forked process that does the work; torch is imported already, so that it starts at once."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:  # noqa: BLE001  # a child must not go on with the parent's tests
            os._exit(1)
        os._exit(0)
    return pid


def wait(pid: int) -> int:
    """Its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("kind", ["shards", "folder"])
def test_killed_at_random_moments_it_ends_with_the_same_files(kind, tmp_path):
    config = small(pictures(tmp_path / "gt", 6), store__kind=kind)
    start = time.monotonic()
    assert wait(in_child(lambda: run(config, tmp_path / "whole"))) == 0
    length = time.monotonic() - start
    rng, killed = random.Random(f"kills:{kind}"), 0
    folder = tmp_path / "killed"
    for attempt in range(8 * KILLS):
        pid = in_child(lambda: run(config, folder))
        time.sleep(rng.random() * length * (1 if attempt % 2 else 0.3))
        os.kill(pid, signal.SIGKILL)
        killed += wait(pid) == -signal.SIGKILL
        if killed == KILLS:
            break
    assert killed == KILLS
    assert wait(in_child(lambda: run(config, folder))) == 0
    assert contents(folder) == contents(tmp_path / "whole")
    assert not list((folder / "candidates").glob(".*")), "half-written files are swept"
