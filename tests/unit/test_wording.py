"""Docstrings that a stranger can read, and sources that a stranger can find."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FRAGMENT = re.compile(r"(Of|With|What|Which|Whether|How|Where|When|Why)\b")
PRIVATE_SOURCE = re.compile(r"\bSPEC\s*[:§]?\s*\d")
WIDTH = 120


def faults(source: str) -> Iterator[str]:
    """Lines and faults of the docstrings of a Python file, those of attributes and constants included."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if not (
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        ):
            continue
        if FRAGMENT.match(node.value.value.lstrip()):
            yield f"{node.lineno}: begins with a fragment; expected a noun phrase or a verb in the third person"
        assert node.end_lineno is not None
        for number in range(node.lineno, node.end_lineno + 1):
            if len(lines[number - 1]) > WIDTH:
                yield f"{number}: {len(lines[number - 1])} columns; expected at most {WIDTH}"


def private_sources(text: str) -> list[str]:
    """Citations of a document that isn't in the repository, `SPEC` and a number."""
    return PRIVATE_SOURCE.findall(text)


@pytest.mark.parametrize("word", ["Of", "With", "What", "Which", "Whether", "How", "Where", "When", "Why"])
def test_a_docstring_that_begins_with_a_fragment_is_found(word: str) -> None:
    assert len(list(faults(f'def f():\n    """{word} a batch."""\n'))) == 1


@pytest.mark.parametrize(
    "source",
    [
        '"""Of a module."""\n',
        'class A:\n    """When it is made."""\n',
        'class A:\n    x: int\n    """\n    Whether it is odd."""\n',
        'LIMIT = 3\n"""How many."""\n',
        f'"""One line.\n\n{"x" * 121}\n"""\n',
        f'x = 1\n"""{"x" * 115}"""\n',
    ],
)
def test_a_fault_is_found_wherever_a_docstring_stands(source: str) -> None:
    assert len(list(faults(source))) == 1


@pytest.mark.parametrize(
    "source",
    [
        '"""Offsets of a batch; what it holds."""\n',
        '"""Returns a batch.\n\nOf these, half."""\n',
        'x = "Of a batch"\n# Of a batch\n',
        f'"""{"x" * 114}"""\n',
        f"x = [{'1, ' * 60}]\n",
    ],
)
def test_other_words_strings_and_lines_are_no_faults(source: str) -> None:
    assert list(faults(source)) == []


def test_a_private_source_is_found_and_a_constant_of_that_name_is_not() -> None:
    number = 1.4
    assert (
        len(
            private_sources(
                f"as in SPEC {number}\nSPEC: {number}, (SPEC\N{NO-BREAK SPACE}{number}), SPEC\n    {number}"
            )
        )
        == 4
    )
    assert private_sources("SPEC = FakeSuite.spec\nSlotArrays.nbytes(SPEC, 2)\nSPEC, slots, 4") == []


def test_docstrings_are_plain_and_fit() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{fault}"
        for path in sorted((ROOT / "src").rglob("*.py"))
        for fault in faults(path.read_text())
    ]
    assert not found, "\n".join(found)


def test_every_source_is_public() -> None:
    folders = ("src", "docs", "tests", "benchmarks", "examples")
    paths = [ROOT / "README.md", *(p for name in folders for p in (ROOT / name).rglob("*"))]
    texts = [p for p in paths if p.suffix in {".py", ".md", ".toml", ".html", ".sh", ".txt"} and p.is_file()]
    found = [f"{path.relative_to(ROOT)}: {line}" for path in texts for line in private_sources(path.read_text())]
    assert not found, "\n".join(found)


LONGEST_SENTENCE, LONGEST_CELL = 30, 15
"""Words."""
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *(page for page in sorted((ROOT / "docs").glob("*.md")) if page.stem != "log"),
]
CODE, LINK = re.compile(r"`[^`]*`"), re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
FENCED = re.compile(r"^```.*?^```$", flags=re.MULTILINE | re.DOTALL)
CELLS = re.compile(r"(?<!\\)\|")
ITEM = re.compile(r" *(?:[-*]|\d+\.) +(?=\S)")
BETWEEN_SENTENCES = re.compile(r"(?<=[.!?])\**\s+(?=[\W_]*[A-Z0-9])")


def paragraphs(page: str) -> Iterator[tuple[int, str]]:
    """First lines and texts of a page's paragraphs and list items, without headings, tables and indented code."""
    started, lines = 0, list[str]()
    inside_list = False
    for number, line in enumerate([*page.splitlines(), ""], start=1):
        item = ITEM.match(line)
        inside_list = bool(item) or (inside_list and (not line or line.startswith(" ")))
        left_out = not line.strip() or line.startswith(("#", "|")) or (line.startswith("    ") and not inside_list)
        if (left_out or item) and lines:
            yield started, " ".join(lines)
            lines = []
        if not left_out:
            started = started if lines else number
            lines.append(line[item.end() if item else 0 :].strip())


def unclear(page: str) -> Iterator[str]:
    """Lines and faults of a page's sentences and table cells; a piece of code counts as one word."""
    page = FENCED.sub(lambda block: "\n" * block[0].count("\n"), page)
    for number, line in enumerate(page.splitlines(), start=1):
        for cell in CELLS.split(LINK.sub(r"\1", CODE.sub("Code", line))) if line.startswith("|") else ():
            if (words := len(cell.split())) > LONGEST_CELL:
                yield f"{number}: a table cell of {words} words; expected at most {LONGEST_CELL}: {cell[:60]}..."
    for number, text in paragraphs(page):
        plain = LINK.sub(r"\1", CODE.sub("Code", text))
        if re.search(r"\([^()]*\(", plain):
            yield f"{number}: nested parentheses; expected one level at most"
        for sentence in BETWEEN_SENTENCES.split(plain):
            if (words := len(sentence.split())) > LONGEST_SENTENCE:
                yield f"{number}: a sentence of {words} words; expected at most {LONGEST_SENTENCE}: {sentence[:60]}..."
        if re.search(r"\brooms?\b", plain):
            yield f"{number}: 'room' for a part of the code; expected 'package'"


LONG = "word " * LONGEST_SENTENCE + "more."
CELL = "word " * LONGEST_CELL + "more"


@pytest.mark.parametrize(
    "page",
    [
        f"# Title\n\n{LONG}",
        f"Short. {LONG} Short.",
        f"**Bold.** {LONG}",
        f"- Short.\n- {LONG}",
        f"1. Short.\n   - {LONG}",
        f"word\n{LONG}",
        "One (two (three)).",
        "One (two\n(three)).",
        "The room of the suites.",
        f"| a | {CELL} |\n|---|---|",
    ],
)
def test_a_sentence_that_a_stranger_reads_twice_is_found(page: str) -> None:
    assert len(list(unclear(page))) == 1


@pytest.mark.parametrize(
    "page",
    [
        f"Text:\n\n    {LONG}",
        f"```python\n{LONG}\n\n# {LONG}\n```",
        f"| {CELL[5:]} | `a \\| {CELL}` |\n|---|---|",
        f"# {LONG}",
        f"{LONG[5:].capitalize()} {LONG[5:].capitalize()}",
        f"- {LONG[5:]}\n- {LONG[5:]}",
        f"`f(g({LONG}))` and [one (two)](page_(1).md) more (three).",
    ],
)
def test_short_sentences_code_and_tables_are_no_faults(page: str) -> None:
    assert list(unclear(page)) == []


def test_documentation_is_plain() -> None:
    found = [f"{page.relative_to(ROOT)}:{fault}" for page in PAGES for fault in unclear(page.read_text())]
    assert not found, "\n".join(found)
