"""The voting page in a real browser, from the disk: keys, mouse, zoom, going on later, and a saved file that is counted."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from user_study_helpers import METHODS, letters, write_results

from alignsr.core.user_study.pages import make_study
from alignsr.core.user_study.votes import read_votes, top_k
from comfyui.browser import Browser, find_chromium

SCALE = "document.querySelector('figure.candidate img').style.transform"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium or Chrome found; install one or name it in CHROMIUM_PATH")
    running = Browser(Path(program), tmp_path_factory.mktemp("chromium"))
    try:
        yield running.start()
    finally:
        running.stop()


def make(tmp_path: Path, mode: str, seed: int) -> Path:
    """Another seed is another study, whose progress the browser keeps apart."""
    root = write_results(tmp_path / "in", scenes=3)
    options = {"lq": root / "lq", "mode": mode, "seed": seed, "title": "Which is best?"}
    make_study({name: root / name for name in METHODS}, tmp_path / "study", **options)
    return tmp_path / "study"


def open_page(browser: Browser, study: Path, voter: str = "") -> None:
    browser.evaluate("window.isOld = true")  # until the new page is there, answers are still the old one's
    browser.open((study / "page" / "index.html").as_uri())
    browser.wait_for("!window.isOld && document.readyState === 'complete' && !!document.querySelector('dialog[open]')")
    if voter:
        browser.evaluate("document.getElementById('voter').focus()")
        browser.call("Input.insertText", text=voter)
        browser.click("#go")
        browser.wait_for("!document.querySelector('dialog[open]')")


def reopen_page(browser: Browser, study: Path) -> None:
    """As if the browser had been closed in between: until it has handed over what the page before kept, which takes a moment."""
    deadline = time.monotonic() + 20
    open_page(browser, study)
    while not browser.evaluate("state.voter"):
        assert time.monotonic() < deadline, "nothing was kept"
        time.sleep(0.1)
        open_page(browser, study)


def ranks(browser: Browser) -> dict[str, str]:
    pairs = (
        "[...document.querySelectorAll('figure.candidate')].map(f => [f.dataset.letter, f.querySelector('.rank').textContent])"
    )
    return dict(browser.evaluate(pairs))


def figure(letter: str) -> str:
    return f'figure[data-letter="{letter}"] .view'


def saved(folder: Path) -> Path:
    deadline = time.monotonic() + 20
    while not (
        found := [path for path in folder.glob("*.json") if path.stat().st_size]
    ):  # the browser makes it empty, then fills it
        assert time.monotonic() < deadline, "nothing was saved"
        time.sleep(0.05)
    return found[0]


def test_ranking_by_keys_and_mouse_until_the_file_is_counted(browser: Browser, tmp_path: Path) -> None:
    study = make(tmp_path, "rank", 0)
    open_page(browser, study, "Anna M.")
    assert browser.evaluate("[...document.querySelectorAll('.view img')].every(i => i.complete && i.naturalWidth > 0)")
    first = letters(study, "g001")
    browser.click(figure(first["Euclid"]))
    assert ranks(browser)[first["Euclid"]] == "1"
    assert browser.evaluate("document.getElementById('next').disabled") is True
    browser.press("Enter")
    assert browser.evaluate("state.at") == 0, "not before every picture has its place"
    browser.press("Backspace")
    assert set(ranks(browser).values()) == {""}
    for method in ("Sobolev", "Euclid"):
        browser.press(first[method])
    assert ranks(browser) == {first[method]: str(place) for place, method in enumerate(METHODS, start=1)}, "the last is clear"
    browser.click(figure(first["Euclid"]))
    assert ranks(browser) == {first["Sobolev"]: "1", first["Euclid"]: "", first["Plain"]: ""}, "with the places after it"
    browser.press(first["Euclid"])
    browser.press("Enter")
    assert browser.evaluate("state.at") == 1

    second = letters(study, "g002")
    for method in ("Sobolev", "Plain"):
        browser.press(str("abc".index(second[method]) + 1))  # digits are places on the page
    browser.press("ArrowLeft")
    assert browser.evaluate("state.at") == 0 and ranks(browser)[first["Sobolev"]] == "1", "going back shows what was chosen"
    browser.press("ArrowRight")
    assert browser.evaluate("document.getElementById('count').textContent") == "2 of 3, 2 done"

    reopen_page(browser, study)
    assert browser.evaluate("document.getElementById('voter').value") == "Anna M."
    assert browser.evaluate("document.getElementById('go').textContent") == "Go on (2 of 3 done)"
    browser.click("#go")
    browser.wait_for("!document.querySelector('dialog[open]')")
    assert browser.evaluate("state.at") == 1
    browser.click("#next")
    third = letters(study, "g003")
    for method in ("Euclid", "Sobolev"):
        browser.click(figure(third[method]))
    assert browser.evaluate("document.getElementById('next').textContent") == "Finish"
    browser.download_to(tmp_path / "downloads")
    browser.click("#next")
    browser.wait_for("document.getElementById('end').open")
    browser.click("#download")
    path = saved(tmp_path / "downloads")
    browser.screenshot(tmp_path / "end.png")
    assert path.name.startswith("votes-") and path.name.endswith("-Anna_M_.json")
    votes = read_votes(study / "key.json", [path])
    assert votes.voters == ("Anna M.",)
    assert {ballot.group: ballot.ranking for ballot in votes.ballots} == {
        "g001": ("Sobolev", "Euclid", "Plain"),
        "g002": ("Sobolev", "Plain", "Euclid"),
        "g003": ("Euclid", "Sobolev", "Plain"),
    }
    assert top_k(votes, "Sobolev", 1) == pytest.approx(2 / 3) and top_k(votes, "Sobolev", 2) == 1
    assert browser.exceptions() == []
    assert [each for each in requests(browser) if not each.startswith(("file:", "blob:"))] == [], "nothing from a network"


def requests(browser: Browser) -> list[str]:
    sent = [event["params"]["request"]["url"] for event in browser.events if event["method"] == "Network.requestWillBeSent"]
    return [url for url in sent if url != "about:blank"]


def test_the_best_alone(browser: Browser, tmp_path: Path) -> None:
    study = make(tmp_path, "top1", 1)
    open_page(browser, study, "Ben")
    browser.press("b")
    browser.press("a")
    assert ranks(browser) == {"a": "best", "b": "", "c": ""}, "one at a time"
    browser.press("Enter")
    browser.press("c")
    browser.download_to(tmp_path / "downloads")
    browser.click("#save")
    record = json.loads(saved(tmp_path / "downloads").read_text())
    assert record["votes"] == {"g001": ["a"], "g002": ["c"]} and record["voter"] == "Ben" and record["mode"] == "top1"
    assert len(read_votes(study / "key.json", [tmp_path / "downloads"]).ballots) == 2


def test_zoom_drag_and_the_input_in_place(browser: Browser, tmp_path: Path) -> None:
    study = make(tmp_path, "rank", 2)
    open_page(browser, study, "Cleo")
    assert "scale(1)" in browser.evaluate(SCALE)
    x, y = browser.point_of(figure("a"))
    browser.mouse("mouseWheel", x, y, deltaX=0, deltaY=-100)
    assert "scale(1.25)" in browser.evaluate(SCALE)
    for _ in range(6):
        browser.press("+")
    assert browser.evaluate("document.body.classList.contains('close')"), "single pixels are shown as such"
    transforms = "new Set([...document.querySelectorAll('.view img')].map(i => i.style.transform)).size"
    assert browser.evaluate(transforms) == 1, "all pictures at the same place"
    before = browser.evaluate("view.x")
    browser.mouse("mousePressed", x, y, button="left", clickCount=1)
    browser.mouse("mouseMoved", x + 60, y, button="left", buttons=1)
    browser.mouse("mouseReleased", x + 60, y, button="left", clickCount=1)
    assert browser.evaluate("view.x") < before
    assert set(ranks(browser).values()) == {""}, "a drag is no click"
    browser.press("0")
    assert "scale(1)" in browser.evaluate(SCALE)
    shown = "getComputedStyle(document.querySelector('figure.candidate img.over')).visibility"
    browser.press(" ", 32, is_held=True)
    assert browser.evaluate(shown) == "visible"
    browser.release(" ")
    assert browser.evaluate(shown) == "hidden"
    browser.press("?")
    assert browser.evaluate("document.getElementById('keys').open")
    browser.press("a")
    assert set(ranks(browser).values()) == {""}, "keys do nothing behind a dialog"
    assert browser.exceptions() == []


def test_a_name_is_needed_and_another_voter_starts_anew(browser: Browser, tmp_path: Path) -> None:
    study = make(tmp_path, "top1", 3)
    open_page(browser, study)
    assert browser.evaluate("document.getElementById('fresh').hidden")
    browser.click("#go")
    assert browser.evaluate("document.getElementById('start').open"), "no name, no start"
    browser.evaluate("document.getElementById('voter').focus()")
    browser.call("Input.insertText", text="Dana")
    browser.click("#go")
    browser.press("a")
    browser.evaluate("window.confirm = () => true; begin()")
    browser.click("#fresh")
    assert browser.evaluate("[state.voter, Object.keys(state.votes).length, document.getElementById('start').open]") == [
        "",
        0,
        True,
    ]
