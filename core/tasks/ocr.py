"""OCR precision and recall: which of the words in a picture an engine reads, and how much of what it reads is there."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..checks import check_image, check_range
from ..compat import import_third_party
from ..images import quantize_8bit
from ..metrics.table import Row, Table
from .pictures import Labels
from .polygons import area, convex_hull, iou, shared_area
from .words import Word, read_words, same_text, split_line

METRICS = ("ocr_precision", "ocr_recall")
IOU = 0.5
MATCHING = f"OCR: a word is right if text (capitals aside) and place (IoU >= {IOU}) agree; counted over the set"

Reader = Callable[[Tensor], Sequence[Word]]


@dataclass(frozen=True)
class Counts:
    """Words counted in one picture or many.

    Attributes:
        right: read words that are in the picture.
        read: all words that were read, less those that fall on words to ignore.
        present: words in the picture that should be read.
    """

    right: int = 0
    read: int = 0
    present: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(self.right + other.right, self.read + other.read, self.present + other.present)

    def scores(self) -> dict[str, float]:
        """Precision and recall in percent, each where there is something to divide by.

        Example:
            >>> Counts(right=1, read=2, present=4).scores()
            {'ocr_precision': 50.0, 'ocr_recall': 25.0}
        """
        scores = {"ocr_precision": 100 * self.right / self.read} if self.read else {}
        return scores | ({"ocr_recall": 100 * self.right / self.present} if self.present else {})


def match_words(read: Sequence[Word], present: Sequence[Word], *, threshold: float = IOU) -> Counts:
    """Count what was read right.

        precision = right / read,   recall = right / present

    A read word is right if a word of the picture has the same text (`words.same_text`) and an IoU of at least the threshold;
    each word counts once, pairs of larger IoU first. A read word that is not right and lies by half of its area or more on a word
    to ignore does not count at all.

    Args:
        read: words that the engine gave.
        present: words of the labels, those to ignore included.
        threshold: least IoU, in (0, 1].

    Returns:
        Counts of this picture.

    Source:
        The end-to-end protocol of the ICDAR robust reading competitions (word level, IoU 0.5, capitals do not matter). ASASR
        reports precision and recall without saying how words are matched (asasr.md 4.2), so this is our reading.
    """
    check_range(threshold, "threshold", 1e-6, 1.0)
    wanted = [word for word in present if not word.is_ignored]
    ignored = [word for word in present if word.is_ignored]
    overlaps = [
        (iou(seen.polygon, true.polygon), i, j)
        for i, seen in enumerate(read)
        for j, true in enumerate(wanted)
        if same_text(seen.text, true.text)
    ]
    used_read: set[int] = set()
    used_present: set[int] = set()
    for overlap, i, j in sorted(overlaps, key=lambda entry: (-entry[0], entry[1], entry[2])):
        if overlap >= threshold and i not in used_read and j not in used_present:
            used_read.add(i)
            used_present.add(j)
    void = [seen for i, seen in enumerate(read) if i not in used_read and any(_covers(word, seen) for word in ignored)]
    return Counts(len(used_read), len(read) - len(void), len(wanted))


def _covers(ignored: Word, seen: Word) -> bool:
    own = area(convex_hull(seen.polygon))
    return own > 0 and shared_area(ignored.polygon, seen.polygon) >= own / 2


class PaddleReader:
    """PaddleOCR as a function of one picture: lines, split into words.

    Args:
        engine: a paddleocr.PaddleOCR.
        version: 3, whose `predict` gives dictionaries, or 2, whose `ocr` gives lists.
        min_score: lines that the engine is less sure of are left out.

    Source:
        ASASR specification, asasr.md 4.2: PaddleOCR v3, settings not said.
    """

    def __init__(self, engine: Any, *, version: int = 3, min_score: float = 0.5) -> None:
        self.engine, self.version, self.min_score = engine, version, check_range(min_score, "min_score", 0.0, 1.0)

    @classmethod
    def load(cls, folder: str | Path, *, min_score: float = 0.5) -> "PaddleReader":
        """Open PaddleOCR on models that are on disk; nothing is downloaded.

        Args:
            folder: holds `det` and `rec`, the folders of a detection and a recognition model (PP-OCRv3 in the paper).
            min_score: as in the class.

        Raises:
            FileNotFoundError: a model's folder is absent.
            ModuleNotFoundError: paddleocr is not installed; the message says how to install it.
        """
        parts = {part: Path(folder) / part for part in ("det", "rec")}
        for part, path in parts.items():
            if not path.is_dir():
                raise FileNotFoundError(
                    f"weights: expected PaddleOCR's models in {folder}/det and {folder}/rec, found no {part}; "
                    "get en_PP-OCRv3_det_infer and en_PP-OCRv3_rec_infer"
                )
        paddle = _import_paddle()
        version = int(paddle.__version__.partition(".")[0])
        if version >= 3:
            options = {
                "text_detection_model_dir": str(parts["det"]),
                "text_detection_model_name": _model_name(parts["det"]),
                "text_recognition_model_dir": str(parts["rec"]),
                "text_recognition_model_name": _model_name(parts["rec"]),
                "use_doc_orientation_classify": False,
                "use_doc_unwarping": False,
                "use_textline_orientation": False,
            }
        else:
            options = {
                "det_model_dir": str(parts["det"]),
                "rec_model_dir": str(parts["rec"]),
                "use_angle_cls": False,
                "lang": "en",
            }
        return cls(paddle.PaddleOCR(**options), version=version, min_score=min_score)

    def __call__(self, image: Tensor) -> list[Word]:
        """Read a picture.

        Args:
            image: [1, 3, H, W] float in [0, 1].

        Returns:
            Words with their places, lines split at spaces.
        """
        check_image(image, "image", channels=(3,))
        levels = (quantize_8bit(image)[0] * 255).round().byte().permute(1, 2, 0).cpu().numpy()
        pixels = np.ascontiguousarray(levels[..., ::-1])  # it takes pictures as OpenCV reads them
        lines = self._new_lines(pixels) if self.version >= 3 else self._old_lines(pixels)
        return [word for line, score in lines if score >= self.min_score and line.text.strip() for word in split_line(line)]

    def _new_lines(self, pixels: Any) -> list[tuple[Word, float]]:
        lines: list[tuple[Word, float]] = []
        for page in self.engine.predict(pixels):
            for quad, text, score in zip(page["rec_polys"], page["rec_texts"], page["rec_scores"], strict=True):
                lines.append((_line(quad, text), float(score)))
        return lines

    def _old_lines(self, pixels: Any) -> list[tuple[Word, float]]:
        pages = self.engine.ocr(pixels, cls=False)
        return [(_line(quad, text), float(score)) for page in pages for quad, (text, score) in page or ()]  # None: nothing read


def _line(quad: Any, text: str) -> Word:
    return Word(tuple((float(x), float(y)) for x, y in quad), text)


def _model_name(folder: Path) -> str | None:
    """The name that PaddleOCR 3 wants beside a folder: it stands in the model's own settings, or nowhere."""
    settings = folder / "inference.yml"
    if not settings.is_file():
        return None
    names = (line.partition(":") for line in settings.read_text(encoding="utf-8").splitlines())
    return next((value.strip().strip("'\"") for key, _, value in names if key.strip() == "model_name"), None)


def _import_paddle() -> Any:
    try:
        return import_third_party("paddleocr")
    except ModuleNotFoundError as error:
        if error.name != "paddleocr":
            raise
        message = "ocr: expected the package paddleocr, got none; run `python -m pip install paddleocr paddlepaddle`"
        raise ModuleNotFoundError(message, name=error.name) from error


class OCRJudge:
    """Precision and recall of what an engine reads in one method's pictures.

    Args:
        reader: maps [1, 3, H, W] in [0, 1] to words.
        labels: folder of word lists, as `words.read_words` takes them.
        remarks: which engine it is.

    Attributes:
        metrics: precision and recall.
        remarks: engine, and how words are matched.
    """

    def __init__(self, reader: Reader, labels: Labels, remarks: tuple[str, ...] = ()) -> None:
        self.reader, self.labels = reader, labels
        self.metrics = METRICS
        self.remarks = (*remarks, MATCHING)
        self._total = Counts()

    def size_of(self, name: str) -> None:
        """Word lists do not say the size of their picture; a picture without one is refused."""
        self.labels.file(name)

    def see(self, name: str, image: Tensor) -> dict[str, float]:
        """Read the picture; its own precision and recall."""
        counts = match_words(self.reader(image), read_words(self.labels.file(name)))
        self._total += counts
        return counts.scores()

    def result(self) -> dict[str, float]:
        """Precision and recall over the whole set, percent."""
        return self._total.scores()


def score_word_files(title: str, read: Labels, present: Labels) -> Table:
    """Precision and recall of words that an engine read elsewhere, a file per picture.

    Args:
        title: the method.
        read: files of what was read; a picture where nothing was read has an empty file.
        present: files of the labels.

    Returns:
        The table of the method.

    Raises:
        ValueError: a picture is in one folder alone, or a file that holds no words.
    """
    files = {present.file(name): read.file(name) for name in read.names}
    alone = [name for name in present.names if present.file(name) not in files]
    if alone:
        said = ", ".join(alone[:5]) + (f" and {len(alone) - 5} more" if len(alone) > 5 else "")
        raise ValueError(
            f"words: expected what was read of every picture in {read.folder}, got nothing of {said}; add empty files"
        )
    counts = {name: match_words(read_words(read.file(name)), read_words(present.file(name))) for name in read.names}
    total = sum(counts.values(), Counts()).scores()
    missing = {name: "nothing to score in these pictures" for name in METRICS if name not in total}
    rows = tuple(Row(name, each.scores()) for name, each in counts.items())
    return Table(METRICS, rows, total, missing, remarks=(MATCHING,), crop=0, title=title)
