"""Terms that pages explain: the first use of each on a page leads to the glossary."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GLOSSARY = ROOT / "docs" / "glossary.md"
TERMS = re.findall(r"^### (.+)$", GLOSSARY.read_text(), flags=re.MULTILINE)
PLAIN = {"unit", "split", "ratio", "trace", "bank", "slot"}
"""Terms that are also words of everyday language; nothing but a reader sees which is meant."""
PAGES = [ROOT / "README.md", *(p for p in sorted((ROOT / "docs").glob("*.md")) if p.stem not in {"log", "glossary"})]
HIDDEN = re.compile(
    r"^```.*?^```|^ {4}.*?$|^#.*?$|<!--.*?-->|`[^`]*`|!?\[[^\]]*\]\([^)]*\)|(?<!\*)\*[^*\s][^*]*\*(?!\*)|^:::.*?$",
    flags=re.MULTILINE | re.DOTALL,
)
"""Code, headings, links, and words in italics: a page defines these itself."""


def anchor(term: str) -> str:
    return re.sub(r"[^\w\- ]", "", term.lower()).replace(" ", "-")


def first_uses(page: str) -> Iterator[tuple[str, re.Match[str]]]:
    """The first use of each term that no link to the glossary and no definition precedes."""
    seen = HIDDEN.sub(lambda hidden: " " * len(hidden[0]), page)
    for term in TERMS:
        if term in PLAIN:
            continue
        word = rf"{re.escape(term)}(?:s|es)?"
        use = re.search(rf"(?<![\w/-]){word}(?![\w-]|\.\w)", seen, flags=re.IGNORECASE)
        explained = re.search(rf"glossary\.md#{anchor(term)}\)|(?<!\*)\*{word}\*", page, flags=re.IGNORECASE)
        if use and (explained is None or explained.start() > use.start()):
            yield term, use


@pytest.mark.parametrize(
    "page",
    [
        "A rollout is here, and a [rollout](glossary.md#rollout).",
        "| rollouts |\n|---|",
        "`rollout` and **Rollout**.",
        "- rollout [rollout](other.md#rollout)",
    ],
)
def test_a_term_that_nothing_explains_is_found(page: str) -> None:
    assert [term for term, _ in first_uses(page)] == ["rollout"]


@pytest.mark.parametrize(
    "page",
    [
        "A [rollout](glossary.md#rollout) and a rollout.",
        "# Rollout\n\n    rollout\n\n`rollout`, rollouts-ahead.\n\n```python\nrollout\n```",
        "A *rollout* is this. Rollouts are those.",
    ],
)
def test_explained_terms_and_code_are_no_faults(page: str) -> None:
    assert list(first_uses(page)) == []


def test_terms_are_explained_where_a_page_first_uses_them() -> None:
    found = [f"{page.relative_to(ROOT)}: {term}" for page in PAGES for term, _ in first_uses(page.read_text())]
    assert not found, "\n".join(found)


def test_terms_are_in_the_order_of_the_alphabet_each_once() -> None:
    assert sorted(set(TERMS), key=str.lower) == TERMS
