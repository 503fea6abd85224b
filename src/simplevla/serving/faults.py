"""Errors in the words that a client is told."""

import sys
import traceback

from simplevla.errors import UserError, one_line


def complaint(error: Exception) -> str:
    """One line for the client; a fault of the program also leaves its traceback with whoever runs the server."""
    if isinstance(error, UserError):
        return one_line(str(error))
    traceback.print_exception(error, file=sys.stderr)
    return one_line(f"a fault of the server: {type(error).__name__}: {error}; its log says more")
