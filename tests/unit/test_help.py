"""Help: two examples that the command line takes, and a description of every option of every command."""

import ast
import contextlib
import dataclasses
import inspect
import re
import shlex
import textwrap
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tyro
from test_docs_code import PAGES, parse

from simplevla import cli
from simplevla.commands import adapters
from simplevla.commands.help import EXAMPLES
from simplevla.commands.imports import IMPORTS

COMMANDS = [*cli.COMMANDS, *(f"import {kind}" for kind in IMPORTS)]


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "bench"])  # which becomes another process
def test_help_begins_with_the_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(SystemExit):
        assert cli.main([*command.split(), "--help"]) == 0
    shown = capsys.readouterr().out
    at = [shown.index(f"  {line}\n") for line in EXAMPLES[command]]
    assert len(at) == 2
    assert shown[: at[0]].endswith("examples:\n")
    assert shown[: at[0]].count("\n") < 8
    assert "╭─" not in shown[: at[1]]


def test_every_command_has_two_examples_of_itself() -> None:
    assert set(EXAMPLES) == set(COMMANDS)
    for command, lines in EXAMPLES.items():
        assert len(set(lines)) == 2
        assert all(line.startswith(f"simplevla {command}") for line in lines)


FOREIGN = ("docker", "make", "python", "ray", "tensorboard")
"""First words of code whose options aren't ours."""
OTHERS = {"dist", "shm-size"}
"""Options of pytest and Docker that pages name alone."""


def unknown_options(text: str, options: set[str]) -> list[str]:
    """Inline code of a page with an option that no command has, or with a value for a switch."""
    wrong = []
    for code in re.findall(r"`([^`\n]+)`", text):
        for option, value in re.findall(r"--([a-z][\w.-]*)(?: (\w+))?", code):
            named = option in options or option.endswith(".")
            switched = f"no-{option}" in options and value.lower() in ("true", "false")
            if code.split()[0] not in FOREIGN and (switched or not named):
                wrong.append(code)
    return wrong


def test_pages_name_options_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    for command in COMMANDS:
        if command != "bench":  # which becomes another process
            with contextlib.suppress(SystemExit):
                cli.main([*command.split(), "--help"])
    options = OTHERS | set(re.findall(r"--([a-z][a-z0-9.-]*)", capsys.readouterr().out))
    found = {page.name: unknown_options(page.read_text(), options) for page in PAGES}
    assert not {page: wrong for page, wrong in found.items() if wrong}
    faults = (
        "`--rollouts-ahead true`, `--polcy x`, `--rollout.slots_per_worker`, `train --updates 3`, `ray start --head`"
    )
    assert unknown_options(faults, options) == ["--rollouts-ahead true", "--polcy x", "--rollout.slots_per_worker"]


LINES = sorted({line for lines in EXAMPLES.values() for line in lines})


@pytest.mark.parametrize("line", LINES)
def test_the_command_line_takes_the_examples(line: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    parse(shlex.split(line)[1:], monkeypatch)


def described(cls: type) -> set[str]:
    """Fields that have a docstring in the class or in one that it inherits from."""
    found: set[str] = set()
    for base in cls.__mro__:
        if dataclasses.is_dataclass(base):
            (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
            assert isinstance(tree, ast.ClassDef)
            for field, after in zip(tree.body, tree.body[1:], strict=False):
                if isinstance(field, ast.AnnAssign) and isinstance(after, ast.Expr):
                    assert isinstance(field.target, ast.Name)
                    found.add(field.target.id)
    return found


def options(cls: Any) -> Iterator[tuple[Any, str]]:
    """(class, field) of each option and argument of a command that reads a `cls`; those of its groups too."""
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        for part in typing.get_args(cls):
            yield from options(part)
        return
    hints = typing.get_type_hints(cls, vars(inspect.getmodule(cls)))
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            yield from options(hint)
        else:
            yield cls, field.name


def undescribed(cls: Any) -> list[str]:
    return [f"{owner.__name__}.{name}" for owner, name in options(cls) if name not in described(owner)]


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in ("bench", "list", "import")])
def test_every_option_has_a_description(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Any] = []

    def stop(cls: Any, **_: Any) -> None:
        read.append(cls)
        raise KeyboardInterrupt

    monkeypatch.setattr(tyro, "cli", stop)
    assert cli.main([*command.split(), "--help"]) == cli.EXIT_INTERRUPTED
    assert len(list(options(read[0]))) > 0
    assert undescribed(read[0]) == []


def test_a_missing_description_is_seen() -> None:
    @dataclasses.dataclass
    class Undescribed:
        one: int
        """Described."""
        other: int

    @dataclasses.dataclass
    class Group:
        name: str
        """Described."""
        part: Undescribed

    assert undescribed(Group) == ["Undescribed.other"]
    assert len(list(options(adapters.Command))) > 20
