"""The exceptions that mean something to the command line."""


class UserError(Exception):
    """Wrong input. The message is one line: what, where, and what to do.

    The command line prints it on stderr and exits with status 2.
    """


class NoSpaceError(UserError):
    """The disk is full: nothing else can be done either until there is room."""


class StudyFailedError(Exception):
    """Not one model of a study could be measured. Exit status 1."""
