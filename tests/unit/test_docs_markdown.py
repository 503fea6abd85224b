"""Markdown that the site's reader (Python-Markdown) and a repository's viewer understand alike."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FENCED = re.compile(r"^```.*?^```$", flags=re.MULTILINE | re.DOTALL)
ITEM = re.compile(r" *(?:[-*]|\d+\.) ")


def misread(page: str) -> Iterator[str]:
    """Lines of lists, tables and code that only one of the two takes for what they are."""
    lines = FENCED.sub(lambda block: "\n" * block[0].count("\n"), page).splitlines()
    in_list = False
    for number, (before, line) in enumerate(zip(["", *lines], lines, strict=False), start=1):
        indent = len(line) - len(line.lstrip())
        item, follows = bool(ITEM.match(line)), bool(before.strip()) and not before.startswith("#")
        in_list = item or (in_list and (not line or indent > 0))
        if item and in_list and indent % 4:
            yield f"{number}: a nested list indented by {indent}; expected 4"
        if item and follows and not ITEM.match(before) and not before.startswith(" ") and not line.startswith(" "):
            yield f"{number}: a list right after a paragraph; expected an empty line"
        if line.startswith("|") and follows and not before.startswith("|"):
            yield f"{number}: a table right after a paragraph; expected an empty line"
        if indent >= 4 and not in_list and follows and not before.startswith("    "):
            yield f"{number}: code right after a paragraph; expected an empty line"


@pytest.mark.parametrize(
    "page",
    ["1. a\n   - b", "a\n- b", "a\n1. b", "a\n| b |\n|---|", "a\n    b", "- a\n  - b"],
)
def test_what_only_one_of_them_understands_is_found(page: str) -> None:
    assert len(list(misread(page))) == 1


@pytest.mark.parametrize(
    "page",
    [
        "1. a\n    - b\n    - c\n2. d",
        "a\n\n- b\n  more\n- c",
        "a\n\n| b |\n|---|",
        "# a\n- b",
        "# a\n    b\n    c",
        "```\na\n- b\n```",
    ],
)
def test_what_both_understand_is_no_fault(page: str) -> None:
    assert list(misread(page)) == []


WIDEST = 91
"""Columns of code that the site shows without scrolling, where it has three columns (1280 pixels)."""


def code(page: str) -> Iterator[tuple[int, str]]:
    """Number and text of each line of code."""
    fenced, in_list = False, False
    for number, line in enumerate(page.splitlines(), start=1):
        in_list = bool(ITEM.match(line)) or (in_list and (not line or line.startswith(" ")))
        if line.startswith("```"):
            fenced = not fenced
        elif fenced:
            yield number, line
        elif line.startswith("    ") and not in_list:
            yield number, line[4:]


def test_code_is_found() -> None:
    assert list(code("a\n\n    b\n\n```\nc\n```\n- d\n\n    e\n")) == [(3, "b"), (6, "c")]


def test_code_fits_into_the_page() -> None:
    found = [
        f"{page.relative_to(ROOT)}:{number}: {len(line)} columns; expected at most {WIDEST}"
        for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
        for number, line in code(page.read_text())
        if len(line) > WIDEST
    ]
    assert not found, "\n".join(found)


def test_pages_are_read_alike() -> None:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    found = [f"{page.relative_to(ROOT)}:{fault}" for page in pages for fault in misread(page.read_text())]
    assert not found, "\n".join(found)
