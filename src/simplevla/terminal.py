"""The terminal, to which names and errors from elsewhere are shown as they are: they can't colour, link or steer it."""

from typing import Any

import rich.console
from rich.text import Text

from simplevla.errors import printable


class Console(rich.console.Console):
    """A rich console for which `[red]` and `:cat:` are text, and control characters question marks."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """The text, in cells of tables, titles and what is printed alike."""
        return super().render_str(printable(text), **options)
