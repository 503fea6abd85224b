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


def test_pages_are_read_alike() -> None:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    found = [f"{page.relative_to(ROOT)}:{fault}" for page in pages for fault in misread(page.read_text())]
    assert not found, "\n".join(found)
