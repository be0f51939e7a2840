"""Cache of training runs, keyed by configuration, data recipe and code; interrupted runs resume.

A run's folder is named by a hash of its configuration, its data recipe, and the source code of the Lamina modules that it uses. If one
of them changes, the run is built again; comments do not count.
"""

from __future__ import annotations

import ast
import hashlib
import json
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import lamina
from lamina.errors import LaminaError
from lamina.files import locked, write_text
from lamina.version import __version__

#: The packages whose code counts.
PACKAGES = (Path(lamina.__file__).parent, Path(__file__).parent)
NOTE = "cache.json"


#: For each run that this process is building, the inner ones last: the seconds in which runs were built that it needed.
_inner: list[float] = []


class Busy(Exception):
    """A run is being built by another process, for which this one does not wait (:func:`cached` with ``wait=False``)."""

    def __init__(self, *runs: Path):
        super().__init__(", ".join(map(str, runs)))
        self.runs = runs


@cache
def _file(module: str, packages: tuple[Path, ...]) -> Path | None:
    """The source file of a dotted module name, or None where the name is no module of ``packages``. It is looked for once."""
    head, *rest = module.split(".")
    package = next((package for package in packages if package.name == head), None)
    if package is None:
        return None
    base = package.joinpath(*rest)
    candidates = (base / "__init__.py", base.with_suffix(".py")) if rest else (base / "__init__.py",)
    return next((path for path in candidates if path.is_file()), None)


def _imported(tree: ast.Module, module: str, is_package: bool) -> Iterator[str]:
    """Dotted names that a module imports, also inside functions. ``from a import b`` yields both a and a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".")
            above = parts[: len(parts) - node.level + is_package] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _statements(tree: ast.Module) -> list[str]:
    """Digests of the top-level statements, without imports, docstrings, comments and layout; and the names that imports rename."""
    aliases = [a for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom) for a in node.names]
    renamed = [f"{alias.name} as {alias.asname}" for alias in aliases if alias.asname not in (None, alias.name)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = node.body[1:]
        for name in ("body", "orelse", "finalbody"):
            if isinstance(block := getattr(node, name, None), list):
                setattr(node, name, [part for part in block if not isinstance(part, ast.Import | ast.ImportFrom)])
    return [*renamed, *(hashlib.sha256(ast.dump(statement).encode()).hexdigest() for statement in tree.body)]


@cache
def _read(path: Path, module: str, changed: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The imports of a module and the digests of its statements; ``changed``: its modification time: a changed file is parsed again."""
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    return tuple(_imported(tree, module, path.name == "__init__.py")), tuple(_statements(tree))


def code_digest(modules: Iterable[str], packages: Sequence[Path] = PACKAGES) -> str:
    """SHA-256 (hex) of the code of ``modules`` and of all modules of ``packages`` that they import, directly or not.

    Names of modules do not count: code can move to another file. Imports are read from the source, so a module that is imported by a
    computed name must be named in ``modules``. A parent package counts only if it is itself imported. The root of a package never counts,
    because it imports everything. Raises ValueError for a name that is not a module of the packages.
    """
    statements = [digest for found in code_of(modules, packages).values() for digest in found]
    return hashlib.sha256(json.dumps(sorted(statements)).encode()).hexdigest()


def code_of(modules: Iterable[str], packages: Sequence[Path] = PACKAGES) -> dict[str, tuple[str, ...]]:
    """The modules that :func:`code_digest` counts, each with the digests of its statements."""
    packages = tuple(packages)
    found: dict[str, tuple[str, ...]] = {}
    waiting = list(modules)
    for module in waiting:
        if _file(module, packages) is None:
            raise ValueError(f"{module} is no module of {', '.join(package.name for package in packages)}")
    while waiting:
        module = waiting.pop()
        path = _file(module, packages)
        if path is None or module in found or "." not in module:
            continue
        imported, found[module] = _read(path, module, path.stat().st_mtime_ns)
        waiting.extend(imported)
    return found


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a cache key holds JSON values, dataclasses and paths, not {type(value).__name__}")


def key_text(key: dict[str, Any]) -> str:
    """A key as JSON: equal for equal keys. Raises TypeError for what is no JSON value, dataclass or path."""
    return json.dumps(key, sort_keys=True, default=_plain)


def _folder(folder: Path, text: str, code_hash: str) -> Path:
    return folder / hashlib.sha256(f"{text}\n{code_hash}".encode()).hexdigest()[:16]


def is_cached(folder: Path, key: dict[str, Any], code: Iterable[str]) -> bool:
    """Whether the run with this ``key`` is there, built with the code of today."""
    return _folder(folder, key_text(key), code_digest(code)).is_dir()


def cached(
    folder: Path,
    key: dict[str, Any],
    code: Iterable[str],
    build: Callable[[Path], None],
    progress: Callable[[str], None] = lambda line: None,
    packages: Sequence[Path] = PACKAGES,
    wait: bool = True,
) -> Path:
    """The folder of the run with this ``key``, which ``build`` fills on the first call.

    ``build(path)`` writes to a partial folder, which is renamed when it returns. After an interruption, the next call passes the same
    partial folder, from which ``build`` should resume. If several processes ask for the same run, one builds it and the others wait, or
    with ``wait=False`` raise :class:`Busy`. Raises LaminaError if ``folder`` cannot be written.
    """
    text, code_hash = key_text(key), code_digest(code, packages)
    done = _folder(folder, text, code_hash)
    partial = done.with_name(f"{done.name}.partial")
    if done.is_dir():
        return done

    def taken() -> None:
        if not wait:
            raise Busy(done)
        progress(f"{done}: waiting for another process that builds it")

    with locked(done, taken):
        if not done.is_dir():  # otherwise another process has built it meanwhile
            partial.mkdir(exist_ok=True)
            seconds = _timed(build, partial)
            note = {"key": json.loads(text), "code": code_hash, "seconds": round(seconds, 1)}
            write_text(partial / NOTE, json.dumps(note, indent=1) + "\n")
            partial.rename(done)
    return done


def _timed(build: Callable[[Path], None], path: Path) -> float:
    """The seconds of ``build(path)``, without those of the runs that are built within it: each run counts its own time."""
    started = time.monotonic()
    _inner.append(0.0)
    try:
        build(path)
    finally:
        inner, whole = _inner.pop(), time.monotonic() - started
        if _inner:
            _inner[-1] += whole
    return whole - inner


def is_busy(run: Path) -> bool:
    """Whether a process is building the run."""
    if run.is_dir():
        return False
    try:
        with locked(run):
            return False
    except LaminaError:
        return True


def code_version() -> str:
    """The commit of this source checkout, and whether there are changes since; without a checkout, the version of the package."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(PACKAGES[0]), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        checkout = Path(git("rev-parse", "--show-toplevel"))
        if checkout / "src" / "lamina" != PACKAGES[0].resolve():  # installed inside another project's repository
            return f"lamina {__version__}"
        commit = git("rev-parse", "--short=12", "HEAD")
        return f"{commit} with changes" if git("status", "--porcelain", "--", *map(str, PACKAGES)) else commit
    except (OSError, subprocess.CalledProcessError):
        return f"lamina {__version__}"


def build_seconds(run: Path) -> float:
    """Seconds in which a cached run was built (only the last attempt, if there were several), without those of runs that it needed."""
    return float(json.loads((run / NOTE).read_text(encoding="utf-8"))["seconds"])
