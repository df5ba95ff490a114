"""A blind study: pages that tell no method and are the same for the same seed; votes read back; TopK and intervals by hand."""

import csv
import io
import json
import math
import re

import numpy as np
import pytest
from scipy.stats import binomtest
from user_study_helpers import METHODS, files_of, key_of, letters, opened, write_results, write_votes

from alignsr.core.user_study.pages import make_study
from alignsr.core.user_study.report import StudyReport, find_study
from alignsr.core.user_study.votes import Ballot, Votes, read_votes, share, top_k, wilson

METHOD_FOLDERS = METHODS


def folders(root, methods=METHOD_FOLDERS):
    return {name: root / name for name in methods}


@pytest.fixture
def results(tmp_path):
    return write_results(tmp_path / "in")


@pytest.fixture
def study(results, tmp_path):
    make_study(folders(results), tmp_path / "study", lq=results / "lq", seed=3)
    return tmp_path / "study"


def page_data(study) -> dict:
    text = (study / "page" / "index.html").read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="study">(.*?)</script>', text, re.DOTALL)[1])


# Pages


def test_the_page_tells_no_method(study) -> None:
    files = files_of(study / "page")
    assert len(files) == 1 + 4 * 4
    for name, content in files.items():
        for method in METHODS:
            assert method.lower() not in name.lower()
            assert method.encode().lower() not in content.lower(), name
        assert b"scene" not in content.replace(b"each scene", b""), "names of files neither"
    assert {name.rpartition("/")[2] for name in files if name.endswith("png")} == {"a.png", "b.png", "c.png", "input.png"}
    assert opened(study / "page" / "images" / "g001" / "a.png").info == {}


def test_pictures_are_those_that_the_key_names(study, results) -> None:
    for group in key_of(study)["groups"]:
        for letter, method in group["methods"].items():
            shown = opened(study / "page" / "images" / group["id"] / f"{letter}.png")
            assert np.array_equal(shown, opened(results / method / f"{group['name']}_x4.png"))
        given = opened(study / "page" / "images" / group["id"] / "input.png")
        assert np.array_equal(given, opened(results / "lq" / f"{group['name']}.png"))
    data = page_data(study)
    assert data["study"] == key_of(study)["study"]
    assert data["groups"][0] == {
        **{"id": "g001", "candidates": ["a", "b", "c"], "width": 32, "height": 24},
        **{"hasInput": True, "hasReference": False},
    }
    assert data["task"].startswith("Order the pictures") and data["task"].endswith("and true to the input.")


def test_the_same_seed_makes_the_same_bytes(results, tmp_path) -> None:
    for name, seed in (("one", 3), ("two", 3), ("other", 4)):
        make_study(folders(results), tmp_path / name, lq=results / "lq", seed=seed)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    assert key_of(tmp_path / "one")["study"] != key_of(tmp_path / "other")["study"]
    orders = {json.dumps(key_of(tmp_path / name)["groups"]) for name in ("one", "other")}
    assert len(orders) == 2


def test_letters_and_groups_are_shuffled(tmp_path) -> None:
    root = write_results(tmp_path / "in", scenes=30, size=(4, 4))
    make_study(folders(root), tmp_path / "study")
    groups = key_of(tmp_path / "study")["groups"]
    assert len({json.dumps(group["methods"]) for group in groups}) == math.factorial(3), "every order occurs"
    first = [list(group["methods"].values()).index("Plain") for group in groups]
    assert all(6 <= first.count(place) <= 14 for place in range(3)), "no method is always at the same place"
    assert [group["name"] for group in groups] != sorted(group["name"] for group in groups)
    some = make_study(folders(root), tmp_path / "some", groups=5, mode="top1")
    assert some.groups == 5 == len(list((tmp_path / "some" / "page" / "images").iterdir()))
    assert page_data(tmp_path / "some")["mode"] == "top1"


def test_a_title_cannot_break_the_page(results, tmp_path) -> None:
    title = "Which </script><b>is</b> 'best' & \"true\"?"
    make_study(folders(results), tmp_path / "study", title=title)
    assert page_data(tmp_path / "study")["title"] == title
    assert "</script><b>" not in (tmp_path / "study" / "page" / "index.html").read_text()


def test_equal_pictures_are_said(results, tmp_path) -> None:
    (results / "Euclid" / "scene1_x4.png").write_bytes((results / "Plain" / "scene1_x4.png").read_bytes())
    made = make_study(folders(results), tmp_path / "study", gt=results / "Sobolev")
    (remark,) = made.remarks
    assert remark.startswith("scene1_x4: ") and set(re.findall(r"Euclid|Plain", remark)) == {"Euclid", "Plain"}
    assert page_data(tmp_path / "study")["groups"][0]["hasReference"] is True


def test_bad_input_for_pages(results, tmp_path) -> None:
    out = tmp_path / "study"
    with pytest.raises(ValueError, match="methods: expected 2 to 26 methods to compare, got 1"):
        make_study(folders(results, METHODS[:1]), out)
    with pytest.raises(ValueError, match="mode: expected rank or top1, got 'best'"):
        make_study(folders(results), out, mode="best")
    with pytest.raises(ValueError, match="title: expected one that names no method, got 'Is plain better"):
        make_study(folders(results), out, title="Is plain better?")
    with pytest.raises(ValueError, match=r"groups: expected 0 \(all\) or up to the 4 scenes there are, got 5"):
        make_study(folders(results), out, groups=5)
    with pytest.raises(FileNotFoundError, match="sr: expected a folder of images at"):
        make_study({**folders(results), "other": tmp_path / "nowhere"}, out)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"sr: expected images in .*empty, got none"):
        make_study({**folders(results), "other": tmp_path / "empty"}, out)
    (results / "Plain" / "scene2_x4.png").rename(results / "Plain" / "elsewhere.png")
    with pytest.raises(ValueError, match=r"for every scene, got none for scene2_x4 \(Plain\), elsewhere \("):
        make_study(folders(results), out)
    with pytest.raises(ValueError, match=r"got none for 1 of 4: elsewhere\.png"):
        make_study(folders(results), out, lq=results / "lq")
    (results / "Plain" / "elsewhere.png").rename(results / "Plain" / "scene2_x4.png")
    opened(results / "Plain" / "scene2_x4.png").resize((16, 12)).save(results / "Plain" / "scene2_x4.png")
    with pytest.raises(ValueError, match=r"methods: expected results of one size for scene2, got .*16x12 in .*; restore"):
        make_study(folders(results), out, lq=results / "lq")
    assert not out.exists(), "nothing half made"
    out.mkdir()
    (out / "mine.txt").write_text("")
    with pytest.raises(ValueError, match="out: expected a new or an empty folder, got"):
        make_study(folders(results, METHODS[:2]), out)


# Votes


def votes_of(*rankings: str, methods: str = "ABC", mode: str = "rank") -> Votes:
    """`AB|BA`: one group per ranking, one person."""
    ballots = [Ballot(f"v{index % 2}", f"g{index // 2}", tuple(ranking)) for index, ranking in enumerate(rankings)]
    groups = tuple(dict.fromkeys(ballot.group for ballot in ballots))
    return Votes(mode, tuple(methods), groups, tuple(ballots))


def test_top_k_by_hand() -> None:
    votes = votes_of("ABC", "ACB", "BAC", "CAB")
    assert [top_k(votes, "A", k) for k in (1, 2, 3)] == [0.5, 1.0, 1.0]
    assert [top_k(votes, "B", k) for k in (1, 2, 3)] == [0.25, 0.5, 1.0]
    assert [top_k(votes, "C", k) for k in (1, 2, 3)] == [0.25, 0.5, 1.0]
    assert sum(top_k(votes, method, 1) for method in "ABC") == 1, "Top-1 is the share of votes"


def test_top_k_grows_to_one() -> None:
    """Check 20."""
    generator = np.random.default_rng(0)
    votes = votes_of(*("".join(generator.permutation(list("ABCDE"))) for _ in range(41)), methods="ABCDE")
    for method in "ABCDE":
        shares = [top_k(votes, method, k) for k in range(1, 6)]
        assert shares == sorted(shares) and shares[-1] == 1
        assert sum(top_k(votes, other, 2) for other in "ABCDE") == pytest.approx(2)


def test_what_a_study_does_not_tell() -> None:
    votes = votes_of("A", "B", mode="top1")
    assert votes.places == (1,)
    with pytest.raises(ValueError, match="k: expected 1, since voters chose the best alone, got 2"):
        top_k(votes, "A", 2)
    with pytest.raises(ValueError, match=r"k: expected 1\.\.3, got 4"):
        top_k(votes_of("ABC"), "A", 4)
    with pytest.raises(ValueError, match="method: expected one of A, B, C, got 'D'"):
        top_k(votes_of("ABC"), "D", 1)


@pytest.mark.parametrize(("hits", "count"), [(0, 7), (3, 8), (8, 8), (911, 1000), (1, 1)])
def test_wilson_beside_scipy(hits: int, count: int) -> None:
    expected = binomtest(hits, count).proportion_ci(0.95, "wilson")
    assert wilson(hits, count) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_intervals_over_groups() -> None:
    """Ten people who agree on each of two groups are no twenty independent votes."""
    agree = Votes(
        "top1", ("A", "B"), ("g0", "g1"), tuple(Ballot(f"v{v}", f"g{g}", ("AB"[g],)) for v in range(10) for g in range(2))
    )
    found = share(agree, "A", 1)
    assert found.value == 0.5 and (found.low, found.high) == pytest.approx(wilson(10, 20))
    assert (found.group_low, found.group_high) == (0, 1)
    assert share(agree, "A", 1) == found, "the same seed, the same interval"
    mixed = votes_of(*["ABC", "BAC"] * 40)
    spread = share(mixed, "A", 1)
    assert spread.group_low == spread.group_high == 0.5, "every group says the same, so drawing them anew changes nothing"
    one = share(votes_of("ABC", "BAC"), "A", 1)
    assert (one.group_low, one.group_high) == (0.5, 0.5)


def test_bootstrap_beside_numpy() -> None:
    generator = np.random.default_rng(1)
    sizes, chances = generator.integers(1, 6, 12), generator.random(12)
    ballots = [
        Ballot(f"v{v}", f"g{g}", ("A",) if generator.random() < chances[g] else ("B",))
        for g in range(12)
        for v in range(sizes[g])
    ]
    votes = Votes("top1", ("A", "B"), tuple(f"g{g}" for g in range(12)), tuple(ballots))
    hits = np.array([sum(b.ranking == ("A",) for b in ballots if b.group == f"g{g}") for g in range(12)])
    picks = generator.integers(0, 12, (20_000, 12))
    means = hits[picks].sum(1) / sizes[picks].sum(1)
    found = share(votes, "A", 1, draws=20_000)
    assert (found.group_low, found.group_high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.02)


def test_votes_are_read_back(study, tmp_path) -> None:
    first = {f"g00{g}": METHODS for g in range(1, 5)}
    write_votes(study, tmp_path / "votes" / "anna.json", "Anna", first)
    write_votes(study, tmp_path / "votes" / "ben.json", "Ben", {"g001": ("Euclid", "Sobolev", "Plain")})
    votes = read_votes(study / "key.json", [tmp_path / "votes"])
    assert votes.voters == ("Anna", "Ben") and len(votes.ballots) == 5 and votes.methods == METHODS
    assert top_k(votes, "Sobolev", 1) == 0.8 and top_k(votes, "Plain", 2) == 0
    report = StudyReport(votes, find_study("asasr user study"))
    text = report.to_text().splitlines()
    low, high = (100 * end for end in wilson(4, 5))
    assert text[2].startswith(f"Sobolev  80.0 [{low:.1f}, {high:.1f}] (")
    assert text[2].endswith("measured, 5 votes")
    assert next(line for line in text if line.startswith("ASASR")).split() == ["ASASR", "91.1", "published,", "user", "study"]
    assert any(line.startswith("2 voters, 4 of 4 groups, 3 methods; by chance Top-k is 33.3 k %") for line in text)
    assert "between 1 and 2 votes per group: not everybody finished" in text
    assert any("50 people, 64 images, 7 methods" in line for line in text)
    rows = list(csv.DictReader(io.StringIO(report.to_csv())))
    assert [(row["method"], row["k"], row["share"]) for row in rows[:2]] == [("Sobolev", "1", "0.8"), ("Sobolev", "2", "1")]
    record = report.to_dict()
    assert record["top_k"]["Plain"]["2"]["value"] == 0 and record["published"] == {"ASASR": 91.1}
    assert "| *ASASR* | *91.1* |" in report.to_markdown()
    assert report.picture().size == (900, 540)
    json.dumps(record, allow_nan=False)


def test_bars_are_as_high_as_they_say() -> None:
    """The bar of the first method, found by its colour, is twice as high as that of the second."""
    votes = votes_of(*["A", "A", "B"] * 12, methods="AB", mode="top1")
    pixels = np.asarray(StudyReport(votes).picture()).astype(int)
    blue = np.abs(pixels - np.array([87, 154, 199])).sum(2) < 30  # matplotlib's first colour at an alpha of 0.75
    columns = np.where(blue.sum(0) > 20)[0]
    middle = (columns[0] + columns[-1]) / 2
    left, right = blue[:, columns[columns < middle]].sum(0), blue[:, columns[columns > middle]].sum(0)
    assert left.max() / right.max() == pytest.approx(2, rel=0.05)


def test_bad_votes(study, results, tmp_path) -> None:
    key, whole = study / "key.json", {"g001": METHODS}
    good = write_votes(study, tmp_path / "anna.json", "Anna", whole)
    again = write_votes(study, tmp_path / "anna (1).json", "Anna ", whole)
    make_study(folders(results), tmp_path / "other", seed=9)
    bad = tmp_path / "bad.json"

    def refused(files, said: str, which=key) -> None:
        with pytest.raises((ValueError, FileNotFoundError), match=said):
            read_votes(which, files)

    refused([good, again], r"votes: expected one file per voter, got .*anna\.json and .*anna \(1\)\.json by 'Anna'; keep one")
    refused(
        [write_votes(tmp_path / "other", bad, "Cleo", whole)], "votes: expected votes of study .*, got .*bad.json of study .*"
    )
    refused([], "votes: expected files that voters saved")
    (tmp_path / "none").mkdir()
    refused([tmp_path / "none"], "votes: expected files that voters saved")
    refused([tmp_path / "gone.json"], "votes: expected a file at")
    refused([good], "key: expected a file of the kind alignsr-study-key, got .*anna.json", good)
    refused([key], "votes: expected a file of the kind alignsr-study-votes")
    bad.write_text("no json")
    refused([bad], "votes: expected JSON in .*bad.json")
    bad.write_text("[]")
    refused([bad], "got .*bad.json of the kind None")
    refused([write_votes(study, bad, "Cleo", {})], "votes: expected at least one comparison in .*bad.json")
    refused([write_votes(study, bad, "Cleo", whole, version=2)], "votes: expected version 1, got 2")
    for wrong in (["a"], ["a", "a", "b"], ["a", "b", "z"], "abc", None, [["a"], "b", "c"]):
        refused(
            [write_votes(study, bad, "Cleo", {}, votes={"g001": wrong})],
            r"votes: expected all of a, b, c once in .*bad.json, g001",
        )
    refused([write_votes(study, bad, "Cleo", {}, votes={"g999": ["a", "b", "c"]})], "expected groups of the study, got another")
    make_study(folders(results), tmp_path / "best", mode="top1")
    votes = {"votes": {"g001": ["a", "b"]}}
    refused(
        [write_votes(tmp_path / "best", bad, "Cleo", {}, **votes)], "expected one of a, b, c in", tmp_path / "best" / "key.json"
    )
    with pytest.raises(ValueError, match="published: expected a user study, got ASASR COCO; there are ASASR user study"):
        find_study("asasr coco")


def test_a_voter_who_stopped_early(study, tmp_path) -> None:
    path = write_votes(study, tmp_path / "anna.json", "Anna", {"g002": METHODS})
    notes = StudyReport(read_votes(study / "key.json", [path])).notes()
    assert "no votes on 3 of 4 groups: g001, g003, g004" in notes
    assert any(note.startswith("fewer than 10 groups: the interval over groups is too narrow") for note in notes)
    assert letters(study, "g002")["Sobolev"] in "abc"
