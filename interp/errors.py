"""The one exception that means: the user's input was wrong."""


class UserError(Exception):
    """Wrong input. The message is one line: what, where, and what to do.

    The command line prints it on stderr and exits with status 2.
    """
