"""Pipeline A killed at random moments and run again: the same files as without, byte for byte. Two processes: likewise."""

import os
import random
import signal
import sys

import pytest
from candidates_helpers import contents, pictures, run, small
from kill_helpers import in_child, wait

KILLS = 4


def written(folder) -> int:
    """Files in the run folder, half-written ones included; folders may vanish meanwhile, which os.walk passes over."""
    return sum(len(files) for _, _, files in os.walk(folder))


def killed_at(count: int, config, folder) -> None:
    """Runs until `count` files are there, half-written ones included, and is killed before the next is opened or renamed.

    It kills itself: a signal from outside comes late, and a fast machine is past that place by then.
    """

    def watch(event: str, _) -> None:
        if event in ("open", "os.rename", "os.mkdir") and written(folder) >= count:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    run(config, folder)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("kind", ["shards", "folder"])
def test_killed_at_random_moments_it_ends_with_the_same_files(kind, tmp_path):
    config, folder = small(pictures(tmp_path / "gt", 6), store__kind=kind), tmp_path / "killed"
    assert wait(in_child(lambda: run(config, tmp_path / "whole"))) == 0
    total, rng, places = written(tmp_path / "whole"), random.Random(f"kills:{kind}"), []
    while len(places) < KILLS:
        target = written(folder) + 1 + int(rng.random() * 2 * (total - written(folder)) / (KILLS - len(places) + 1))
        code = wait(in_child(lambda stop=target: killed_at(min(stop, total), config, folder)))
        if code == -signal.SIGKILL:
            places.append(written(folder))
        else:  # it ended before: take half of it away
            assert code == 0
            for path in sorted(path for path in folder.rglob("*") if path.is_file())[1::2]:
                path.unlink()
    assert len(set(places)) > 2 and min(places) < total / 2, places
    assert wait(in_child(lambda: run(config, folder))) == 0
    assert contents(folder) == contents(tmp_path / "whole")
    assert not list((folder / "candidates").glob(".*")), "half-written files are swept"
