"""`alignsr user-study make` and `read`: from folders to a page, from saved votes to a table, a chart and files."""

import csv
import json
from pathlib import Path

import pytest
from cli_helpers import call
from PIL import Image
from user_study_helpers import METHODS, files_of, write_results, write_votes


@pytest.fixture
def made(tmp_path: Path) -> Path:
    root = write_results(tmp_path / "in")
    arguments = [part for name in METHODS for part in ("--sr", root / name)]
    done = call("user-study", "make", *arguments, "--lq", root / "lq", "--out", tmp_path / "study", "--seed", "5")
    assert done.code == 0, done.err
    assert Path(done.out.strip()) == tmp_path / "study" / "page" / "index.html"
    assert "4 scenes, 3 methods" in done.err and f"keep: {tmp_path / 'study' / 'key.json'}" in done.err
    return tmp_path


def test_make_is_what_the_core_makes(made: Path) -> None:
    from alignsr.core.user_study.pages import make_study

    folders = {name: made / "in" / name for name in METHODS}
    make_study(folders, made / "again", lq=made / "in" / "lq", seed=5)
    assert files_of(made / "study") == files_of(made / "again")


def test_read(made: Path) -> None:
    for voter, best in (("Anna", "Sobolev"), ("Ben", "Euclid")):
        ranking = (best, *(method for method in METHODS if method != best))
        groups = {f"g00{number}": ranking for number in range(1, 5)}
        write_votes(made / "study", made / "votes" / f"{voter}.json", voter, groups)
    files = {kind: made / f"out.{kind}" for kind in ("json", "csv", "md", "png")}
    done = call(
        *("user-study", "read", made / "votes", "--key", made / "study" / "key.json", "--published", "asasr-user-study"),
        *("--json", files["json"], "--csv", files["csv"], "--markdown", files["md"], "--picture", files["png"]),
    )
    assert done.code == 0, done.err
    assert done.out.splitlines()[2].startswith("Sobolev  50.0 [21.5, 78.5] (50.0, 50.0)")
    assert "ASASR" in done.out and "91.1" in done.out
    record = json.loads(files["json"].read_text())
    assert record["voters"] == ["Anna", "Ben"] and record["top_k"]["Euclid"]["2"]["value"] == 1
    assert len(list(csv.DictReader(files["csv"].open()))) == 6
    assert files["md"].read_text().startswith("| method | Top-1")
    with Image.open(files["png"]) as chart:
        assert chart.size == (900, 540)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("make", "--sr", "in/Plain", "--out", "new"), "methods: expected 2 to 26 methods to compare, got 1"),
        (("make", "--sr", "in/Plain", "--sr", "in/Plain", "--out", "new"), "got Plain twice; write --sr NAME=DIR"),
        (("make", "--sr", "in/Plain", "--sr", "in/Euclid", "--out", "in"), "out: expected a new or an empty folder, got in"),
        (("make", "--sr", "in/Plain", "--sr", "nowhere", "--out", "new"), "sr: expected a folder of images at nowhere"),
        (("make", "--sr", "in/Plain", "--sr", "in/Euclid", "--out", "new", "--mode", "all"), "mode: expected rank or top1"),
        (("read", "votes", "--key", "study/key.json"), "votes: expected a file at votes, found none"),
        (("read", "study/key.json", "--key", "study/key.json"), "votes: expected a file of the kind alignsr-study-votes"),
        (("read", "in", "--key", "none.json"), "key: expected a file at none.json, found none"),
        (("read", "in", "--key", "study/key.json"), "votes: expected files that voters saved"),
        (("read", "in", "--key", "study/key.json", "--picture", "a.jpg"), "--picture: expected the name of a PNG file"),
    ],
)
def test_one_clear_line_for_each_mistake(
    arguments: tuple[str, ...], message: str, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made)
    done = call("user-study", *arguments)
    assert done.code == 1
    assert len(done.errors) == 1
    assert message in done.errors[0]
    assert not (made / "new").exists() or not any((made / "new").rglob("*.html"))
