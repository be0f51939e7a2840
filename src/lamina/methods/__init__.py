"""One file, one method; the file's name is the method's name. Nothing is registered: a new file is a new method.

Each file has: a docstring (paper, section, the exact command, every deviation), ``Config`` (its options), ``build(config) -> LAMConfig``,
``losses(config) -> f(lam, clip, rng) -> {term: [b]}`` and ``weights(config) -> {term: float}``. A Config that has ``proprio``
(a feature's name) and ``proprio_width`` gets proprioception where the data has it. ``GROUP``: how many frames the objective ties together,
where it is more than two.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from types import ModuleType

from lamina.errors import LaminaError


def names() -> list[str]:
    """The methods there are."""
    return sorted({module.name for module in pkgutil.iter_modules(__path__)} - {"base", "auxiliary"})


def load(name: str) -> ModuleType:
    """The method's module. Raises LaminaError for an unknown name."""
    known = names()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose {', '.join(known)}"
        raise LaminaError(f"unknown method {name!r}: {hint}")
    return importlib.import_module(f"{__name__}.{name}")
