"""Errors and warnings with one-line messages for the user."""

from __future__ import annotations


class LaminaError(ValueError):
    """An input error with a one-line message: what is wrong, in which file, and how to fix it.

    The command line prints the message and exits with status 2; ``--debug`` adds the traceback.
    """


class LaminaWarning(UserWarning):
    """A warning for the user; the command continues."""
