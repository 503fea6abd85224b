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
