"""OCR precision and recall by hand: shared areas, lists of words, matching, PaddleOCR's two interfaces."""

import json
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from alignsr.core.tasks.ocr import Counts, OCRJudge, PaddleReader, match_words, score_word_files
from alignsr.core.tasks.pictures import Labels
from alignsr.core.tasks.polygons import area, convex_hull, iou, shared_area
from alignsr.core.tasks.words import SUFFIXES, Word, read_words, same_text, split_line


def box(left: float, top: float, width: float, height: float) -> tuple[tuple[float, float], ...]:
    return ((left, top), (left + width, top), (left + width, top + height), (left, top + height))


UNIT = box(0, 0, 1, 1)
DIAMOND = ((0.5, 0.5 - math.sqrt(0.5)), (0.5 + math.sqrt(0.5), 0.5), (0.5, 0.5 + math.sqrt(0.5)), (0.5 - math.sqrt(0.5), 0.5))


def test_areas_by_hand() -> None:
    assert area(UNIT) == 1 == area(UNIT[::-1])
    assert shared_area(box(0, 0, 4, 2), box(3, 1, 4, 2)) == 1
    assert iou(box(0, 0, 4, 2), box(0, 0, 4, 1)) == 0.5
    assert shared_area(UNIT, UNIT[::-1]) == 1, "either direction"
    assert shared_area(UNIT, box(1, 0, 1, 1)) == 0 == shared_area(UNIT, box(5, 5, 1, 1))
    octagon = 2 * (math.sqrt(2) - 1)  # a unit square and the same turned by 45 degrees
    assert shared_area(UNIT, DIAMOND) == pytest.approx(octagon) == shared_area(DIAMOND, UNIT)
    assert iou(UNIT, DIAMOND) == pytest.approx(octagon / (2 - octagon))


def test_hulls() -> None:
    assert convex_hull([(0, 0), (1, 1), (2, 2)]) == ((0, 0), (2, 2)), "a line"
    dented = ((0, 0), (4, 0), (2, 1), (4, 4), (0, 4))
    assert area(convex_hull(dented)) == 16
    assert shared_area([(0, 0), (1, 1)], UNIT) == 0 == iou([(0, 0)], [(0, 0)])


def test_shared_area_beside_counting_points() -> None:
    generator = np.random.default_rng(0)
    for _ in range(5):
        a, b = (convex_hull([tuple(p) for p in generator.random((6, 2)).tolist()]) for _ in range(2))
        points = generator.random((100_000, 2))

        def inside(polygon, points=points):
            corners = np.array(polygon)
            sides = zip(corners, np.roll(corners, -1, 0), strict=True)
            turns = [(q - p)[0] * (points - p)[:, 1] - (q - p)[1] * (points - p)[:, 0] for p, q in sides]
            return np.all(np.array(turns) >= 0, 0)

        assert shared_area(a, b) == pytest.approx((inside(a) & inside(b)).mean(), abs=6e-3)


def test_matching_by_hand() -> None:
    present = [Word(box(0, 0, 10, 4), "STOP"), Word(box(20, 0, 10, 4), "exit"), Word(box(40, 0, 10, 4), "###", is_ignored=True)]
    read = [
        Word(box(0, 0, 10, 3), "stop"),  # IoU 0.75, capitals do not matter: right
        Word(box(20, 0, 10, 4), "exlt"),  # the right place, another text: wrong
        Word(box(20, 0, 4, 4), "exit"),  # the right text, IoU 0.4: wrong
        Word(box(41, 0, 8, 4), "KFZ"),  # on a word to ignore: does not count
        Word(box(70, 0, 5, 4), "tree"),  # nowhere: wrong
    ]
    counts = match_words(read, present)
    assert counts == Counts(right=1, read=4, present=2)
    assert counts.scores() == {"ocr_precision": 25.0, "ocr_recall": 50.0}
    assert match_words(read, present, threshold=0.4).right == 2
    assert match_words([], present).scores() == {"ocr_recall": 0.0}
    assert match_words(read, []).scores() == {"ocr_precision": 0.0}
    assert match_words([], []).scores() == {}
    with pytest.raises(ValueError, match="threshold"):
        match_words(read, present, threshold=0)


def test_every_word_counts_once_and_the_closest_goes_first() -> None:
    present = [Word(box(0, 0, 10, 4), "a"), Word(box(2, 0, 10, 4), "a")]
    twice = [Word(box(1, 0, 10, 4), "a"), Word(box(0, 0, 10, 4), "a"), Word(box(0, 0, 10, 4), "a")]
    assert match_words(twice, present) == Counts(right=2, read=3, present=2)
    assert match_words(twice[1:], present[:1]) == Counts(right=1, read=2, present=1)


def test_texts_and_lines() -> None:
    assert same_text("Straße", "STRASSE") and same_text("\uff21", "a") and not same_text("a", "a.")
    tilted = Word(((0, 0), (8, 4), (8, 6), (0, 2)), " no  entry ")
    first, second = split_line(tilted)
    assert (first.text, second.text) == ("no", "entry")
    assert first.polygon == ((0, 0), (8 * 2 / 9, 4 * 2 / 9), (8 * 2 / 9, 4 * 2 / 9 + 2), (0, 2))
    assert second.polygon[1:3] == ((8, 4), (8, 6))
    assert [word.text for word in split_line(Word(UNIT, "one"))] == ["one"]


def test_lists_of_words(tmp_path) -> None:
    path = tmp_path / "a.txt"
    path.write_text(
        '\ufeff0,0,10,0,10,4,0,4,Stop, please\n\n20,0,30,4,"exit"\n1,2,3,4,12\n0,0,1,0,1,1,0,1,###\n', encoding="utf-8"
    )
    words = read_words(path)
    assert [word.text for word in words] == ["Stop, please", "exit", "12", "###"]
    assert words[1].polygon == box(20, 0, 10, 4) and words[2].polygon == box(1, 2, 2, 2)
    assert [word.is_ignored for word in words] == [False, False, False, True]
    for line in ("1,2,3", "a,b,c,d,text", "1,2,3,4"):
        path.write_text(f"0,0,1,1,good\n{line}\n")
        with pytest.raises(ValueError, match=r"words: expected x1,y1,.*a\.txt, line 2, got"):
            read_words(path)
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"points": UNIT, "text": "a"}, {"points": UNIT, "text": "b", "ignore": True}]))
    assert read_words(path) == [Word(UNIT, "a"), Word(UNIT, "b", is_ignored=True)]
    for content, said in (("{", "expected JSON"), ("{}", "expected a list of words"), ('[{"text": "a"}]', "as entry 0 of")):
        path.write_text(content)
        with pytest.raises(ValueError, match=said):
            read_words(path)


def test_the_judge_adds_up_words(tmp_path) -> None:
    (tmp_path / "a.txt").write_text("0,0,10,4,one\n20,0,30,4,two\n")
    (tmp_path / "b.txt").write_text("0,0,10,4,three\n")
    read = {0.0: [Word(box(0, 0, 10, 4), "one")], 1.0: [Word(box(0, 0, 10, 4), "four"), Word(box(0, 0, 10, 4), "three")]}
    judge = OCRJudge(lambda image: read[float(image.mean())], Labels(tmp_path, SUFFIXES), ("toy",))
    assert judge.see("a_x4", torch.zeros(1, 3, 8, 8)) == {"ocr_precision": 100, "ocr_recall": 50}
    assert judge.see("b", torch.ones(1, 3, 8, 8)) == {"ocr_precision": 50, "ocr_recall": 100}
    assert judge.result() == {"ocr_precision": pytest.approx(200 / 3), "ocr_recall": pytest.approx(200 / 3)}
    assert judge.size_of("a") is None
    assert judge.remarks[0] == "toy" and "IoU >= 0.5" in judge.remarks[1]
    with pytest.raises(ValueError, match="labels: expected a file for c"):
        judge.size_of("c")


def test_words_that_were_read_elsewhere(tmp_path) -> None:
    for folder, name, text in (("gt", "a", "one"), ("gt", "b", "two"), ("mine", "a_x4", "ONE"), ("mine", "b_x4", "to")):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / f"{name}.txt").write_text(f"0,0,10,4,{text}\n")
    mine, truth = (Labels(tmp_path / folder, SUFFIXES) for folder in ("mine", "gt"))
    table = score_word_files("mine", mine, truth)
    assert table.mean() == {"ocr_precision": 50.0, "ocr_recall": 50.0}
    assert [row.name for row in table.rows] == ["a_x4", "b_x4"]
    (tmp_path / "mine" / "b_x4.txt").unlink()
    with pytest.raises(ValueError, match="words: expected what was read of every picture in"):
        score_word_files("mine", Labels(tmp_path / "mine", SUFFIXES), truth)


QUAD = [[0, 0], [80, 0], [80, 10], [0, 10]]


class NewEngine:
    """PaddleOCR 3: pages as dictionaries."""

    def __init__(self, **options) -> None:
        self.options = options

    def predict(self, pixels):
        self.seen = pixels
        return [{"rec_polys": np.array([QUAD, QUAD]), "rec_texts": ["ABC DEFG", "faint"], "rec_scores": [0.9, 0.2]}]


class OldEngine(NewEngine):
    """PaddleOCR 2: pages as lists, None where nothing was read."""

    def ocr(self, pixels, cls):
        assert cls is False
        self.seen = pixels
        return [[[QUAD, ("ABC DEFG", 0.9)], [QUAD, ("faint", 0.2)]], None]


@pytest.mark.parametrize(("engine", "version"), [(NewEngine, "3.7.0"), (OldEngine, "2.9.1")])
def test_both_interfaces_of_paddleocr(engine, version, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "paddleocr", SimpleNamespace(PaddleOCR=engine, __version__=version))
    for part in ("det", "rec"):
        with pytest.raises(FileNotFoundError, match=f"weights: expected PaddleOCR's models in .*, found no {part}"):
            PaddleReader.load(tmp_path)
        (tmp_path / part).mkdir()
    (tmp_path / "rec" / "inference.yml").write_text("Global:\n  model_name: en_PP-OCRv3_mobile_rec\n")
    reader = PaddleReader.load(tmp_path)
    image = torch.zeros(1, 3, 6, 8)
    image[:, 0] = 1.0
    assert [word.text for word in reader(image)] == ["ABC", "DEFG"], "lines are split, faint ones left out"
    assert reader.engine.seen.shape == (6, 8, 3) and reader.engine.seen[0, 0].tolist() == [0, 0, 255], "blue, green, red"
    assert [word.text for word in PaddleReader(reader.engine, version=reader.version, min_score=0.1)(image)][-1] == "faint"
    folders = {key: value for key, value in reader.engine.options.items() if key.endswith("_dir")}
    assert set(folders.values()) == {str(tmp_path / "det"), str(tmp_path / "rec")}
    if version.startswith("3"):
        assert reader.engine.options["text_recognition_model_name"] == "en_PP-OCRv3_mobile_rec"
        assert reader.engine.options["text_detection_model_name"] is None


def test_without_paddleocr_it_says_how_to_get_it(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "paddleocr", None)
    for part in ("det", "rec"):
        (tmp_path / part).mkdir()
    with pytest.raises(ModuleNotFoundError, match="ocr: expected the package paddleocr, got none; run `python"):
        PaddleReader.load(tmp_path)
