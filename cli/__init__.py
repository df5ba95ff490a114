"""The command line: `alignsr COMMAND`. Thin: each command reads its options, calls the library and says what happened.

Exit codes: 0 done; 1 an error (one line on stderr), a value that is not accepted included; 2 no such command or option, or a
required one left out; 130 stopped by Ctrl-C.
Progress and messages go to stderr; stdout carries tables, and JSON where it is asked for.
"""

from .app import main

__all__ = ["main"]
