"""Untrusted JSON values, checked against the types and limits of a dataclass.

The limits are far above the sizes that are trained and far below those that could exhaust memory. They matter because a config is compared
with its weights only after the module that it describes has been laid out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from lamina.errors import LaminaError
from lamina.files import read_json

T = TypeVar("T")

Count = Annotated[int, Field(ge=1, le=65_536)]
#: A count that may be 0.
CountOrZero = Annotated[int, Field(ge=0, le=65_536)]
#: Number of layers or of sequential steps.
Layers = Annotated[int, Field(ge=1, le=256)]
LARGEST_CODEBOOK = 2**20
#: Size of a codebook.
CodebookSize = Annotated[int, Field(ge=2, le=LARGEST_CODEBOOK)]
Share = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
#: Slots of a code, or height or width of an image. The cost per frame grows with them even if the weights are small.
Extent = Annotated[int, Field(ge=1, le=1024)]
#: Image shape: channels, height, width.
Image = tuple[Annotated[int, Field(ge=1, le=64)], Extent, Extent]
#: A counter.
NonNegative = Annotated[int, Field(ge=0, lt=2**62)]


class Malformed(LaminaError):
    """Values of a wrong type or outside their limits."""


def validated(kind: type[T], values: Any, name: str = "") -> T:
    """An instance of the dataclass ``kind`` from JSON values. Types are strict, except that an int is accepted for a float.

    Raises Malformed (a LaminaError) that names the first invalid field, prefixed by ``name``: missing, unknown, of a wrong type, outside
    its limits, or rejected by ``kind`` itself.
    """
    # A plain dataclass has no pydantic config; it inherits the strictness of the enclosing tuple.
    adapter: TypeAdapter[Any] = TypeAdapter(tuple[kind], config=ConfigDict(strict=True, extra="forbid"))  # type: ignore[valid-type]
    try:
        # File names may contain lone surrogates, which are not valid UTF-8; they are replaced by question marks.
        return adapter.validate_json(json.dumps([values], ensure_ascii=False).encode(errors="replace"))[0]
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join([name, *map(str, first["loc"][1:])]).strip(".")
        told = first["msg"].removeprefix("Value error, ")
        simple = isinstance(first["input"], str | int | float | None) and first["type"] != "value_error"
        got = f", got {first['input']!r:.60}" if simple else ""
        raise Malformed(f"{where}: {told}{got}" if where else told) from error


def non_negative(state: Any, name: str) -> int:
    """The non-negative integer ``state[name]`` of a saved state. Raises Malformed for any other value."""
    value = state.get(name) if isinstance(state, dict) else None
    if type(value) is not int or value < 0:
        raise Malformed(f"'{name}' is not a whole number of at least 0")
    return value


def differences(before: Any, now: Mapping[str, Any]) -> list[str]:
    """Names of the settings that differ, also where one of the two lacks them; names of nested settings are joined by dots."""
    if not isinstance(before, Mapping):
        before = {}
    found = []
    for name in [*now, *(name for name in before if name not in now)]:
        old, new = before.get(name), now.get(name)
        if isinstance(new, Mapping) or isinstance(old, Mapping):
            found += [f"{name}.{inner}" for inner in differences(old, new if isinstance(new, Mapping) else {})]
        elif old != new:
            found.append(name)
    return found


def read_note(path: Path, kind: type[T], expected: Mapping[str, Any], remedy: str) -> tuple[T, dict[str, Any]]:
    """What a JSON file says of the weights beside it: its fields that ``kind`` has, checked, and as they stand in the file.

    ``expected``: fields with the values that this version reads, such as the format. Raises LaminaError, which ends with ``remedy``.
    """
    values = read_json(path, remedy)
    for name, wanted in expected.items():
        if values.get(name) != wanted:
            told = f"{name} {values.get(name)!r:.60}, this version of lamina reads {wanted}"
            raise LaminaError(f"{path}: damaged ({told}); {remedy}")
    record = {field.name: values[field.name] for field in fields(kind) if field.name in values}  # type: ignore[arg-type]
    try:
        return validated(kind, record), record
    except LaminaError as error:
        raise LaminaError(f"{path}: damaged ({error}); {remedy}") from error
