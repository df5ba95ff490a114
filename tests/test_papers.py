"""PAPERS.md points at what exists: every file of code and every test that it names is there."""

import re

import pytest

from paths import ROOT

TEXT = (ROOT / "PAPERS.md").read_text(encoding="utf-8")
TESTS = {path.name: path for path in (ROOT / "tests").rglob("test_*.py")}
NAMED = sorted(set(re.findall(r"`(?:[\w/]*/)?(test_\w+\.py)(?:::(\w+))?`", TEXT)))


def test_tests_that_papers_names_exist() -> None:
    assert len(NAMED) > 50
    missing = [
        f"{file}::{name}"
        for file, name in NAMED
        if file not in TESTS or (name and not re.search(rf"(?:def|class) {name}\b", TESTS[file].read_text(encoding="utf-8")))
    ]
    assert not missing


def test_a_name_without_its_file_is_of_the_file_before_it() -> None:
    """`test_a.py::one`, `::two`: the second is looked up in the same file."""
    for line in TEXT.splitlines():
        file = ""
        for found, name in re.findall(r"`(?:[\w/]*/)?(test_\w+\.py)?(?:::(\w+))?`", line):
            file = found or file
            if name and file:
                assert re.search(rf"(?:def|class) {name}\b", TESTS[file].read_text(encoding="utf-8")), f"{file}::{name}"


CHECKS = {
    "AESOP: the checks of specification 9.1": 17,
    "StrSR: the checks of specification 7": 30,
    "ASASR: the checks of specification 6.1": 21,
    "DP2O-SR: the checks of specification 6": 16,
}


@pytest.mark.parametrize(("title", "check"), [(title, n + 1) for title, count in CHECKS.items() for n in range(count)])
def test_every_check_of_a_specification_has_its_row(title: str, check: int) -> None:
    start = TEXT.index(f"### {title}\n")
    table = TEXT[start : TEXT.index("\n#", start + 1)]
    (row,) = re.findall(rf"^\| {check} .*$", table, re.MULTILINE)
    assert "test_" in row


def test_files_of_code_that_papers_names_exist() -> None:
    named = set(re.findall(r"`((?:core|train|nodes|cli|benchmarks|configs)/[\w/.-]+\.(?:py|toml|json))[:`]", TEXT))
    assert len(named) > 30
    assert not [name for name in sorted(named) if not (ROOT / name).exists()]
