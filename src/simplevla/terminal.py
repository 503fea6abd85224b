"""The terminal, to which names and errors from elsewhere are shown as they are: they can't colour, link or steer it."""

import io
from typing import Any

import rich.console
from rich.control import Control
from rich.text import Text

from simplevla.errors import printable
from simplevla.record import record

RECORDED_WIDTH = 160
"""Columns of a table in a run's log."""


class Console(rich.console.Console):
    """A rich console for which `[red]` and `:cat:` are text, and control characters question marks.

    What is printed goes to the run's log too, without colours. A notebook gets plain lines, as a file does: rich's own
    output there would need ipywidgets.
    """

    def __init__(self, **options: Any) -> None:
        if rich.console.Console().is_jupyter:
            # It asks all programs for colours, by which rich would take it for a terminal.
            options = {"force_terminal": False, **options}
        super().__init__(markup=False, emoji=False, force_jupyter=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """The text, in cells of tables, titles and what is printed alike."""
        return super().render_str(printable(text), **options)

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*objects, **options)
        # A live display redraws itself by printing a control code.
        if not (self.quiet or all(isinstance(one, Control) for one in objects)):
            plain = Console(file=io.StringIO(), width=RECORDED_WIDTH, color_system=None)
            super(Console, plain).print(*objects, **options)
            record(plain.file.getvalue())  # type: ignore[attr-defined]

    def say(self, line: str) -> None:
        """Prints a line where no terminal shows the same live; records it either way."""
        if not self.is_terminal:
            self.print(line, highlight=False, soft_wrap=True)
        elif not self.quiet:
            record(line)
