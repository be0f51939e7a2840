"""What checks annotations in tests (conftest.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import beartype
import jaxtyping

#: An int is a float, as type checkers say (PEP 484).
CHECK = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """beartype; but a function that is defined within another one while nothing is checked stays as it is: there are thousands of them,
    and each would be compiled."""
    if "<locals>" in function.__qualname__ and jaxtyping.config.jaxtyping_disable:
        return function
    checked: Callable[..., Any] = CHECK(function)
    return checked
