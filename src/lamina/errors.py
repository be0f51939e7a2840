"""Errors and warnings with one-line messages for the user."""

from __future__ import annotations

import sys
import warnings


class LaminaError(ValueError):
    """An input error with a one-line message: what is wrong, in which file, and how to fix it.

    The command line prints the message and exits with status 2; ``--debug`` adds the traceback.
    """


class LaminaWarning(UserWarning):
    """A warning for the user; the command continues."""


def warn(text: str) -> None:
    """Issue a LaminaWarning that names, as its place in the code, the last caller outside of this package."""
    level, frame = 1, sys._getframe()
    inside = {__package__, "jaxtyping"}  # which wraps the functions whose calls it checks
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in inside:
        level, frame = level + 1, frame.f_back
    warnings.warn(text, LaminaWarning, stacklevel=level)
