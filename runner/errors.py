"""What the runner raises: one readable line per problem, naming node id, class and input."""

import difflib
import json
from collections.abc import Iterable
from typing import Any


class WorkflowError(Exception):
    """A workflow that cannot run, or a node that failed.

    Args:
        message: `expected <contract>, got <what came>; <what to do>`, or the text of the node's own exception.
        node_id: id in the API-format file.
        class_type: the node's class.
        input_name: the input at fault, where one is.

    Attributes:
        problems: every problem found by validation, this one first; a single entry for an error while running.
        partial: the RunResult of what had finished before a node failed, else None.
    """

    def __init__(
        self, message: str, *, node_id: str | None = None, class_type: str | None = None, input_name: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = " ".join(message.split())
        self.node_id, self.class_type, self.input_name = node_id, class_type, input_name
        self.problems: list[WorkflowError] = [self]
        self.partial: Any = None

    @property
    def line(self) -> str:
        """This problem alone, on one line."""
        where: list[str] = []
        if self.node_id is not None:
            where.append(f"node {self.node_id}" + (f" ({self.class_type})" if self.class_type else ""))
        if self.input_name is not None:
            where.append(f"input {self.input_name!r}")
        return f"{', '.join(where)}: {self.message}" if where else self.message

    def __str__(self) -> str:
        return "\n".join(problem.line for problem in self.problems)


class WorkflowInterrupted(Exception):  # noqa: N818  # the user's wish, not an error
    """The user cancelled the run; `partial` is the RunResult of what had finished."""

    def __init__(self, partial: Any) -> None:
        super().__init__(f"cancelled; {len(partial.executed)} nodes had finished, their outputs are kept")
        self.partial = partial


def raise_all(problems: list[WorkflowError]) -> None:
    """Raise the first problem, carrying all of them; nothing if there are none."""
    if problems:
        first = problems[0]
        first.problems = problems
        raise first


def did_you_mean(word: object, known: Iterable[object]) -> str:
    """`did you mean 'x'?`, or the known words when nothing is close."""
    names = [str(name) for name in known]
    lower = {name.lower(): name for name in names}
    close = difflib.get_close_matches(str(word).lower(), list(lower), n=1, cutoff=0.6)
    if close:
        return f"did you mean {lower[close[0]]!r}?"
    if not names:
        return "there are none"
    return f"known: {', '.join(names[:12])}" + (f", ... ({len(names) - 12} more)" if len(names) > 12 else "")


def shown(value: object, limit: int = 60) -> str:
    """A value as it stands in the file, shortened."""
    try:
        text = json.dumps(value)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
