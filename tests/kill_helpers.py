"""Work in forked processes that a test may kill."""

import os


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
