"""The error of a user: a setting, a file or a folder that can't be used."""

import reprlib

LONGEST = 2000
"""Characters of a message; libraries' own run to megabytes."""


class UserError(ValueError):
    """Something that the user can mend. The command line prints it in one line, and anything else with its traceback.

    The message says what was got, what was expected, and what to do.
    """


def one_line(text: str) -> str:
    """`text` on one line, without what steers a terminal, and with its middle left out where it is very long.

    >>> one_line("red:\\x1b[31m\\n  two")
    'red:?[31m two'
    """
    if len(text) > LONGEST:
        text = f"{text[: LONGEST * 3 // 4]} ... {text[-LONGEST // 4 :]}"
    return printable(" ".join(text.split()))


def printable(text: str) -> str:
    """`text` with question marks for control characters, but for line breaks and tabs."""
    return "".join(letter if letter.isprintable() or letter in "\n\t" else "?" for letter in text)


def brief(value: object) -> str:
    """A value for a message, its beginning and end where it is long; nested values are cut at a depth of three.

    >>> brief("a" * 1000)
    "'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa...aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa'"
    """
    return _SHORT.repr(value)


_SHORT = reprlib.Repr()
_SHORT.maxlevel = 3
_SHORT.maxstring = _SHORT.maxother = 80
_SHORT.maxlong = 40


def require(condition: bool, message: str) -> None:
    """Raises `UserError(message)` unless `condition` holds."""
    if not condition:
        raise UserError(message)
