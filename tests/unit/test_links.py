"""Links of README and docs that lead somewhere."""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)")


def anchors(page: str) -> set[str]:
    """Names that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken(path: Path) -> Iterator[str]:
    """Links of a page to files or headings that aren't there."""
    for name, anchor in LINK.findall(path.read_text()):
        if name.startswith(("http:", "https:")):
            continue
        target = path.parent / name if name else path
        if not target.exists():
            yield f"{name}: no such file"
        elif anchor and anchor not in anchors(target.read_text()):
            yield f"{name}#{anchor}: no such heading"


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A title: of `x`, two\n\n[a](other.md) [b](#a-title-of-x-two) [c](page.md#a-title) [d](https://a.b)\n"
    )
    assert list(broken(page)) == ["other.md: no such file", "page.md#a-title: no such heading"]
    (tmp_path / "other.md").touch()
    assert list(broken(page)) == ["page.md#a-title: no such heading"]


def test_every_link_of_the_documentation_leads_somewhere() -> None:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    found = [f"{page.relative_to(ROOT)}: {fault}" for page in pages for fault in broken(page)]
    assert not found, "\n".join(found)


def test_every_page_that_the_code_names_is_there() -> None:
    files = [path for folder in ("src", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    named = {(path, name) for path in files for name in re.findall(r"\bdocs/[\w/]+\.md\b", path.read_text())}
    missing = [f"{path.relative_to(ROOT)}: {name}" for path, name in sorted(named) if not (ROOT / name).exists()]
    assert not missing, "\n".join(missing)
