"""Work in forked processes that a test may kill."""

import os
import random
import shutil
import signal
import sys


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


MOST_ENDS = 3
EVENTS = ("open", "os.rename", "os.mkdir")


def count_events(train, out) -> None:
    """Train, and write down how many times a file was opened, made or renamed."""
    seen = []
    sys.addaudithook(lambda event, _: seen.append(event) if event in EVENTS else None)
    train()
    out.write_text(str(len(seen)))


def killed_at(number: int, train) -> None:
    """Train or go on, and die at that event: a file half written, or whole and not renamed, or between two steps."""
    seen = []

    def watch(event: str, _) -> None:
        if event in EVENTS:
            seen.append(event)
            if len(seen) == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    train()


def kill_and_go_on(train, folder, kills: int, seed: str, share: float = 0.6) -> int:
    """Train into folder/whole; then into folder/killed, killed at random moments and resumed.

    Args:
        train: called with a run folder; resumes what is there.
        folder: of both runs.
        kills: at most.
        seed: of the moments.
        share: of the uninterrupted run's events, among which the moments of each part are drawn: less leaves more to go on with.

    Returns:
        How many times it was killed.
    """
    assert wait(in_child(lambda: count_events(lambda: train(folder / "whole"), folder / "events"))) == 0
    total, rng, done = int((folder / "events").read_text()), random.Random(seed), 0
    ends = 0
    while done < kills:
        place = 1 + int(rng.random() * total * share)
        code = wait(in_child(lambda place=place: killed_at(place, lambda: train(folder / "killed"))))
        if code != -signal.SIGKILL:  # it came to its end before its moment: the kills that are left fall into another run
            assert code == 0
            ends += 1
            if ends > MOST_ENDS:
                break
            shutil.rmtree(folder / "killed")
            continue
        done += 1
    assert wait(in_child(lambda: train(folder / "killed"))) == 0
    return done
