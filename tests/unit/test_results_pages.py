"""Results pages that say first what was found, and whose first table is read at a glance."""

import re
from pathlib import Path

import pytest

PAGES = sorted((Path(__file__).parents[2] / "docs" / "results").glob("*.md"))
COLUMNS = 5
SENTENCE_END = re.compile(r"[.!?](?=\s|$)")


def faults(page: str) -> list[str]:
    """The ways in which a results page doesn't open as all of them do."""
    blocks = [block.splitlines() for block in page.strip().split("\n\n")]
    found = []
    if not (len(blocks[0]) == 1 and re.match(r"# \S", blocks[0][0])):
        found.append(f"begins with {blocks[0][0]!r}; expected a title, `# ...`, and an empty line")
    opening = " ".join(blocks[1]) if len(blocks) > 1 else ""
    if not re.match(r"[A-Z`*\d]", opening) or len(SENTENCE_END.findall(opening)) != 1 or not opening.endswith("."):
        found.append(f"has {opening[:60]!r} under its title; expected one sentence that says what was found")
    elif not re.search(r"\d", opening):
        found.append("opens without a figure; expected what was found, with its figure")
    table = next((lines for lines in blocks if lines[0].startswith("|")), None)
    if table and (columns := table[0].count("|") - 1) > COLUMNS:
        found.append(f"has {columns} columns in its first table; expected at most {COLUMNS}, the rest in a second one")
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_results_page_opens_with_its_finding(page: Path) -> None:
    assert faults(page.read_text()) == []


GOOD = "# Speed\n\nOurs takes 3.5 s, theirs 7 s (`a.b`).\n\n| a | b | c | d | e |\n|---|---|---|---|---|\n\n- Command."


def test_a_good_page_passes() -> None:
    assert faults(GOOD) == []
    assert faults(GOOD + "\n\n| a | b | c | d | e | f |\n|---|---|---|---|---|---|") == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# Speed\n\n", ""),
        ("# Speed\n\n", "# Speed\n"),
        ("theirs 7 s (`a.b`).", "theirs 7 s. It was quick."),
        ("Ours takes 3.5 s, theirs 7 s (`a.b`).", "Command: `run`"),
        ("Ours takes 3.5 s, theirs 7 s (`a.b`).", "Ours is the faster one."),
        ("Ours takes 3.5 s, theirs 7 s (`a.b`).\n\n", ""),
        ("| e |\n", "| e | f |\n"),
    ],
)
def test_a_page_that_opens_otherwise_is_found(old: str, new: str) -> None:
    assert old in GOOD
    assert faults(GOOD.replace(old, new, 1))
