"""Methods by name, by file, or from installed packages (:class:`lamina.methods.base.Method`).

Each file in this package is one method, and the file's name is the method's name; nothing is registered. Its docstring names paper,
section, command and every deviation. A file of one's own is given by its path (``./my_method.py``); an installed package offers methods in
the entry point group ``lamina.methods``.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import importlib
import inspect
import os
import pkgutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from lamina.errors import LaminaError, warn
from lamina.files import reason
from lamina.methods.base import Method, MethodConfig
from lamina.models.config import Side
from lamina.models.registry import load_entry_point
from lamina.options import TRAINING_OPTIONS

GROUP = "lamina.methods"  # of entry points


@dataclass(frozen=True)
class MethodFile:
    """The file that a method was loaded from, and the code that was executed. A run keeps both as a record."""

    path: Path
    source: bytes

    @property
    def sha256(self) -> str:
        """Of the code."""
        return hashlib.sha256(self.source).hexdigest()

    def record(self) -> dict[str, str]:
        """What RUN/config.json stores under "method_file"."""
        return {"path": str(self.path), "sha256": self.sha256}


def names() -> list[str]:
    """Built-in and installed methods."""
    return sorted({*_built_in(), *_installed()})


def summaries() -> dict[str, str]:
    """The first line of the docstring of each method, by name; of one that cannot be used, the reason."""
    found = {}
    for name in names():
        try:
            found[name] = (load(name).__doc__ or "").partition("\n")[0]
        except LaminaError as error:
            found[name] = f"cannot be used: {error}"
    return found


def name_of(method: str | Path) -> str:
    """The name of a method that is given by name or by path: a file's name without ".py"."""
    return Path(method).stem if _is_path(method) else str(method)


def file_of(method: Method) -> MethodFile | None:
    """The file that :func:`load` read a method from; None for a built-in or an installed one."""
    return getattr(method, "__method_file__", None)


def load(method: str | Path) -> Method:
    """A method by name, or from the file at a path (ends in ".py" or holds a separator), whose code is executed.

    Raises LaminaError for an unknown name, a file or package that cannot be imported, and for anything that is no method
    (:func:`check_method`).
    """
    if _is_path(method):
        found: Any = _from_file(Path(method))
    elif method in _built_in():
        found = importlib.import_module(f"{__name__}.{method}")
    elif method in (installed := _installed()):
        found = load_entry_point("method", installed[str(method)])
    else:
        known = names()
        near = difflib.get_close_matches(str(method), known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose {', '.join(known)}, or give a file: ./my_method.py"
        raise LaminaError(f"unknown method {str(method)!r}: {hint}")
    return check_method(str(method), found)


def sum_side(method: str) -> Side | None:
    """The side of the quantiser on which a built-in method's latents are trained to add up (its ``SUMS``); None where it does not say, and
    for any other method, whose code is not run for this."""
    return getattr(load(method), "SUMS", None) if method in _built_in() else None


def check_method(name: str, found: Any) -> Method:
    """``found``, if it is a method. ``name`` is for the message.

    Raises LaminaError for missing members, a Config that is no frozen dataclass derived from MethodConfig, has options without defaults
    or options of the training, and for functions of another signature.
    """
    missing = [member for member in ("Config", "build", "losses", "weights") if not hasattr(found, member)]
    if missing:
        raise LaminaError(f"{name}: a method defines Config, build, losses and weights; missing: {', '.join(missing)}")
    config = found.Config
    derived = isinstance(config, type) and issubclass(config, MethodConfig)
    if not derived or not config.__dataclass_params__.frozen or "__dataclass_params__" not in vars(config):
        raise LaminaError(f"{name}: Config must be a frozen dataclass derived from lamina.methods.base.MethodConfig")
    needed = [
        f.name
        for f in dataclasses.fields(config)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if needed:
        raise LaminaError(f"{name}: every option of Config needs a default; {', '.join(needed)} has none")
    if taken := sorted({f.name for f in dataclasses.fields(config)} & TRAINING_OPTIONS):
        raise LaminaError(f"{name}: Config has '{taken[0]}', which is an option of every training; choose another name")
    for member in ("build", "losses", "weights"):
        _check_arguments(f"{name}.{member}", getattr(found, member), "config")
    return found


def check_losses(name: str, losses: Any) -> None:
    """Raises LaminaError unless a method's ``losses(config)`` returned a function of (lam, view, rng)."""
    _check_arguments(f"{name}.losses(config)", losses, "lam", "view", "rng")


def _check_arguments(name: str, function: Callable[..., Any], *arguments: str) -> None:
    wanted = f"({', '.join(arguments)})"
    if not callable(function):
        raise LaminaError(f"{name} must be a function of {wanted}, it is {type(function).__name__}")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a function that does not say
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise LaminaError(f"{name} must be a function of {wanted}, its arguments are {signature}") from error


def _is_path(method: str | Path) -> bool:
    text = str(method)
    return isinstance(method, Path) or text.endswith(".py") or os.sep in text or "/" in text


def _built_in() -> set[str]:
    return {module.name for module in pkgutil.iter_modules(__path__)} - {"base", "auxiliary"}


def _installed() -> dict[str, EntryPoint]:
    points = {point.name: point for point in entry_points(group=GROUP)}
    for name in sorted(points.keys() & _built_in()):
        warn(f"the installed method '{name}' ({points.pop(name).value}) has the name of a built-in one and is ignored")
    return points


def _from_file(path: Path) -> ModuleType:
    try:
        file = MethodFile(path.resolve(), path.read_bytes())
    except OSError as error:
        raise LaminaError(f"{path}: no method can be read there ({reason(error)})") from error
    # Loaded again without a change, a file gives the same classes. The name is unique, since dataclasses look their module up by it.
    name = f"lamina_method_{hashlib.sha256(os.fsencode(file.path) + file.source).hexdigest()[:16]}"
    if name not in sys.modules:
        module = ModuleType(name)
        module.__file__ = str(file.path)
        module.__method_file__ = file  # type: ignore[attr-defined]
        sys.modules[name] = module
        try:
            exec(compile(file.source, str(file.path), "exec"), module.__dict__)
        except BaseException as error:
            del sys.modules[name]
            if not isinstance(error, Exception):
                raise
            raise LaminaError(f"{path}: cannot be loaded ({type(error).__name__}: {reason(error)})") from error
    return sys.modules[name]
