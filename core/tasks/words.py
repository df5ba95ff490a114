"""Words in pictures: what stands where, and the files that say so."""

import json
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from .polygons import Point, Polygon

SUFFIXES = (".txt", ".json")
UNREADABLE = "###"  # how the ICDAR competitions mark words that nobody has to read


@dataclass(frozen=True)
class Word:
    """A word and its place.

    Attributes:
        polygon: corners (x, y) in pixels, in order; four as a rule.
        text: as written.
        is_ignored: nobody has to read it: reading it is neither right nor wrong.
    """

    polygon: Polygon
    text: str
    is_ignored: bool = False


def same_text(a: str, b: str) -> bool:
    """Whether two words read the same: Unicode compatibility forms, capitals and spaces around do not matter.

    Example:
        >>> same_text("STOP", " stop"), same_text("stop", "stop!")
        (True, False)
    """
    return _plain(a) == _plain(b)


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold().strip()


def split_line(line: Word) -> list[Word]:
    """A line of text as its words, since labels are words and OCR engines read lines.

    A word takes the part of the line's quadrilateral (top left, top right, bottom right, bottom left) that its letters take of
    the line's, all letters and spaces being equally wide.

    Example:
        >>> words = split_line(Word(((0, 0), (80, 0), (80, 10), (0, 10)), "ABC DEFG"))
        >>> [(word.text, word.polygon[0], word.polygon[1]) for word in words]
        [('ABC', (0.0, 0.0), (30.0, 0.0)), ('DEFG', (40.0, 0.0), (80.0, 0.0))]
    """
    text = line.text.strip()
    parts = text.split()
    if len(parts) < 2 or len(line.polygon) != 4:
        return [Word(line.polygon, text, line.is_ignored)]
    words: list[Word] = []
    place = 0
    for part in parts:
        place = text.index(part, place)
        words.append(Word(_slice(line.polygon, place / len(text), (place + len(part)) / len(text)), part, line.is_ignored))
        place += len(part)
    return words


def _slice(quad: Polygon, start: float, end: float) -> Polygon:
    top_left, top_right, bottom_right, bottom_left = quad
    above = _between(top_left, top_right, start), _between(top_left, top_right, end)
    below = _between(bottom_left, bottom_right, end), _between(bottom_left, bottom_right, start)
    return (*above, *below)


def _between(a: Point, b: Point, share: float) -> Point:
    return a[0] + share * (b[0] - a[0]), a[1] + share * (b[1] - a[1])


def read_words(path: str | Path) -> list[Word]:
    """Words of one picture from a file.

    `.txt`: a line per word as in the ICDAR competitions, `x1,y1,x2,y2,x3,y3,x4,y4,text` or `left,top,right,bottom,text`; the text
    may hold commas, and `###` marks a word to ignore. `.json`: a list of {"points": [[x, y], ...], "text": "...", "ignore":
    false}.

    Raises:
        ValueError: a line or an entry that is neither; the message names it.
    """
    path = Path(path)
    content = path.read_text(encoding="utf-8-sig")
    if path.suffix.lower() == ".json":
        return _from_json(content, path)
    lines = enumerate(content.splitlines(), start=1)
    return [_from_line(line, f"{path}, line {number}") for number, line in lines if line.strip()]


def _from_line(line: str, where: str) -> Word:
    fields = line.split(",")
    numbers: list[float] = []
    for field in fields[:8]:
        try:
            numbers.append(float(field))
        except ValueError:
            break
    count = 8 if len(numbers) == 8 and len(fields) > 8 else 4
    if len(numbers) < count or len(fields) <= count:
        raise ValueError(
            f"words: expected x1,y1,...,x4,y4,text or left,top,right,bottom,text in {where}, got {line!r}; correct it"
        )
    text = ",".join(fields[count:]).strip()
    text = text[1:-1] if len(text) > 1 and text[0] == text[-1] == '"' else text
    if count == 4:
        left, top, right, bottom = numbers[:4]
        polygon: Polygon = ((left, top), (right, top), (right, bottom), (left, bottom))
    else:
        polygon = tuple(zip(numbers[::2], numbers[1::2], strict=True))
    return Word(polygon, text, text == UNREADABLE)


def _from_json(content: str, path: Path) -> list[Word]:
    try:
        entries: Any = json.loads(content)
    except ValueError as error:
        raise ValueError(f"words: expected JSON in {path}, got something else ({error}); correct it") from error
    if not isinstance(entries, list):
        raise ValueError(
            f"words: expected a list of words in {path}, got {type(entries).__name__}; see the help of evaluate-task"
        )
    words: list[Word] = []
    for index, entry in enumerate(cast(list[Any], entries)):
        try:
            polygon = tuple((float(x), float(y)) for x, y in entry["points"])
            text = str(entry["text"])
            words.append(Word(polygon, text, bool(entry.get("ignore", text == UNREADABLE))))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f'words: expected {{"points", "text"}} as entry {index} of {path}, got {entry!r:.80}; correct it'
            ) from error
    return words
