"""Pages that list things list all of them."""

import re
from pathlib import Path

import simplevla

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def keys(page: str, first: str, last: str) -> set[str]:
    """Names in the first cells of the tables between two headings of a page."""
    text = page[page.index(f"## {first}\n") : page.index(f"## {last}\n")]
    return {
        name
        for row in re.findall(r"^\| (`[^|]*)\|", text, flags=re.MULTILINE)
        for name in re.findall(r"`([^`]+)`", row)
    }


def test_every_metric_of_a_run_is_read() -> None:
    page = (DOCS / "metrics.md").read_text()
    written = keys(page, "Counters", "Warnings") | keys(page, "Speed", "`simplevla eval`")
    assert len(written) > 50
    read = keys((DOCS / "reading_a_run.md").read_text(), "Success", "When is it done?")
    assert written - read == set()
    assert read - written == set()


def test_every_result_has_its_line() -> None:
    listed = re.findall(r"^\| \[\w+\]\(results/(\w+)\.md\)", (DOCS / "results.md").read_text(), flags=re.MULTILINE)
    assert sorted(listed) == sorted(page.stem for page in (DOCS / "results").glob("*.md"))


def test_every_page_is_in_the_menu_and_in_the_overview() -> None:
    there = {page.name for page in DOCS.glob("*.md")}
    menu = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    assert set(re.findall(r": (\S+\.md)$", menu, flags=re.MULTILINE)) == there
    assert set(re.findall(r"\]\((\w+\.md)\)", (DOCS / "index.md").read_text())) == there - {"index.md"}


def test_the_reference_has_every_name_that_is_offered() -> None:
    page = (DOCS / "api.md").read_text()
    shown = {name.rpartition(".")[2] for name in re.findall(r"^::: (\S+)$", page, flags=re.MULTILINE)} | {"recipes"}
    assert set(simplevla.__all__) - shown == set()


def test_the_reference_shows_names_that_are_there() -> None:
    for name in re.findall(r"^::: (\S+)$", (DOCS / "api.md").read_text(), flags=re.MULTILINE):
        module, _, what = name.rpartition(".")
        source = ROOT / "src" / f"{module.replace('.', '/')}.py"
        assert re.search(rf"^(class|def) {what}\b", source.read_text(), flags=re.MULTILINE), name
