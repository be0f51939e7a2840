"""What the user is told when something is wrong with the input."""

from __future__ import annotations


class LaminaError(ValueError):
    """A mistake in the input, told in ONE line: what is wrong, in which file, and what to do about it.

    The command line prints the line and exits with status 2; no traceback unless ``--debug``.
    """


class LaminaWarning(UserWarning):
    """Something that the user should know and that does not stop the work."""
