"""The error of a user: a setting, a file or a folder that can't be used."""


class UserError(ValueError):
    """Something that the user can mend. The command line prints it in one line, and anything else with its traceback.

    The message says what was got, what was expected, and what to do.
    """
