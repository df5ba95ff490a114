"""Tags as plain text."""

import re
from collections.abc import Iterable

TAG_WORDS = 4  # of the longest piece that is taken for a tag
_SENTENCE = re.compile(r"[.!?:](\s|$)")


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
    r"""What the encoders of one-step models are given for a prompt: tags are made plain text, prose stays as it is.

    Tags are one line of pieces with commas between, each of at most `TAG_WORDS` words and without a sentence's mark.

    Example:
        >>> as_prompt("cat, wall,,Cat"), as_prompt("a cat;  on a wall")
        ('cat, wall', 'a cat;  on a wall')
        >>> as_prompt("Two people.\n\nOne stands, one sits.")
        'Two people.\n\nOne stands, one sits.'
    """
    is_prose = "\n" in text.strip() or _SENTENCE.search(text) or any(len(p.split()) > TAG_WORDS for p in re.split("[,;]", text))
    return text if is_prose or "," not in text else tags_to_text(text)
