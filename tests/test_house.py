"""Import rules: imports run one way, between packages and between modules. And annotations are checked where tests ask for it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import jaxtyping
import pytest
import torch

import lamina
from lamina.losses.reconstruction import squared_error

SOURCE = Path(lamina.__file__).parent
BASE = {
    "collective", "device", "errors", "files", "images", "intervals", "options",
    "progress", "records", "rng", "types", "version", "weights",
}  # fmt: skip
#: What the modules of a package may import, beside their own package.
ALLOWED = {
    "base": "",
    "data": "base",
    "losses": "base",
    "models": "base losses",
    "methods": "base losses models",
    "inference": "base data models",
    "training": "base data losses models methods inference",
    "envs": "base data",
    "policies": "base data losses models inference training envs",
    "evaluation": "base data losses models methods inference training",
    "play": "base data losses models inference training evaluation",
    "top": "base data losses models methods inference training envs policies evaluation play",
}


def package_of(module: str) -> str:
    """The package that a module belongs to: "base" for the small ones at the root, "top" for what stands above all packages."""
    part = module.split(".")[1] if "." in module else ""
    return "base" if part in BASE else part if part in ALLOWED else "top"


def modules() -> dict[str, Path]:
    """Every module of the library, by its name."""
    found = {}
    for path in SOURCE.rglob("*.py"):
        parts = path.relative_to(SOURCE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path: Path) -> Iterator[tuple[str, ...]]:
    """What a file imports, anywhere in it: for each name the names that it may be, the longest first."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name,) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: relative import"
            yield from ((f"{node.module}.{alias.name}", node.module) for alias in node.names)


def graph() -> dict[str, set[str]]:
    """The modules of the library that each of them imports."""
    known = modules()
    found: dict[str, set[str]] = {}
    for module, path in known.items():
        names = {next((name for name in names if name in known), names[0]) for names in imported(path)}
        found[module] = {name for name in names if name.split(".")[0] in ("lamina", "lamina_research")} - {module}
    return found


def test_packages_import_one_way():
    wrong = []
    for module, names in graph().items():
        own = package_of(module)
        for name in sorted(names):
            if name.startswith("lamina_research") or package_of(name) not in (own, *ALLOWED[own].split()):
                wrong.append(f"{module} imports {name}")
    assert not wrong


def test_no_two_modules_import_each_other():
    TopologicalSorter({module: names - {"lamina"} for module, names in graph().items()}).prepare()  # raises CycleError


def test_the_library_is_found_whole():
    """A test that reads files can be empty without anybody noticing."""
    assert {"lamina", "lamina.cli", "lamina.data.lerobot.reader", "lamina.methods.flexlam"} <= modules().keys()
    assert "lamina.models.lam" in graph()["lamina.models.hub"]
    assert {package_of(module) for module in modules()} == ALLOWED.keys()


@pytest.mark.parametrize("on", [pytest.param(True, marks=pytest.mark.typed), False])
def test_calls_that_break_an_annotation_fail_in_typed_tests(on):
    three, two = torch.ones(3, 2), torch.zeros(2, 2)
    with pytest.raises(jaxtyping.TypeCheckError if on else RuntimeError):
        squared_error(three, two)
