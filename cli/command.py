"""How a command presents itself: `alignsr upscale [OPTIONS] FILE_OR_FOLDER`, without the types of the program behind it."""

from typing import Any

import typer.core


class Command(typer.core.TyperCommand):
    """A command whose help names its arguments as README does: `IMAGE`, not `[[IMAGE]]` or `IMAGE <path>`."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        for parameter in self.params:
            if isinstance(parameter, typer.core.TyperArgument):
                _plain(parameter)


def _plain(argument: Any) -> None:
    """Say name and optionality of an argument in the usual way."""
    name = str(argument.metavar or argument.name)
    words = name if argument.required or name.startswith("[") else f"[{name}]"
    argument.get_usage_pieces = lambda _context: [words]
    argument.display_type_rich = lambda ctx: None
