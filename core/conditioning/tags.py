"""Tags as plain text."""

from collections.abc import Iterable


def tags_to_text(tags: str | Iterable[str]) -> str:
    r"""One line of text from tags: trimmed, without empty ones and repetitions, joined by commas, in their order.

    Args:
        tags: a list, or text with commas, semicolons or line breaks between tags.

    Returns:
        The text, empty when there is no tag; encode it like any other prompt.

    Example:
        >>> tags_to_text(" cat, Outdoor;cat\n\nsharp focus ")
        'cat, Outdoor, sharp focus'
    """
    pieces = [tags] if isinstance(tags, str) else list(tags)
    for mark in (",", ";", "\n"):
        pieces = [part for piece in pieces for part in piece.split(mark)]
    kept: dict[str, str] = {}
    for piece in pieces:
        tag = " ".join(piece.split())
        if tag:
            kept.setdefault(tag.casefold(), tag)
    return ", ".join(kept.values())


def as_prompt(text: str) -> str:
    """What the encoders of one-step models are given for a prompt: tags, known by their commas, are made plain text.

    Example:
        >>> as_prompt("cat, wall,,Cat"), as_prompt("a cat;  on a wall")
        ('cat, wall', 'a cat;  on a wall')
    """
    return tags_to_text(text) if "," in text else text
