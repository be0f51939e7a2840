"""Values of JSON that anybody may have written: checked against a dataclass, type by type and limit by limit.

The limits are far above what is trained and far below what could fill a memory: a config is compared with its weights only after
the module that it describes was laid out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from lamina.errors import LaminaError

T = TypeVar("T")

Count = Annotated[int, Field(ge=1, le=65_536)]
#: A count that may be none.
Some = Annotated[int, Field(ge=0, le=65_536)]
#: What is built, or done, one after the other.
Layers = Annotated[int, Field(ge=1, le=256)]
LARGEST_CODEBOOK = 2**20
#: Entries of a codebook.
Codes = Annotated[int, Field(ge=2, le=LARGEST_CODEBOOK)]
Share = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
#: Slots of a code, or pixels of a picture's side: what every frame costs grows with them, whatever the weights hold.
Short = Annotated[int, Field(ge=1, le=1024)]
#: Channels, height, width.
Image = tuple[Annotated[int, Field(ge=1, le=64)], Short, Short]
#: How often something happened.
Whole = Annotated[int, Field(ge=0, lt=2**62)]


class Malformed(LaminaError):
    """Values that are not what they should be, whoever wrote them."""


def checked(kind: type[T], values: Any, name: str = "") -> T:
    """The dataclass ``kind`` from values as JSON has them.

    Raises Malformed (a LaminaError), which names the first field that is wrong, behind ``name``: missing, unknown, of another type
    (no number is taken for another kind of number, but a whole one for a real one), out of its limits, or refused by ``kind`` itself.
    """
    # A plain dataclass takes the strictness of what is around it; it has no place for its own.
    adapter: TypeAdapter[Any] = TypeAdapter(tuple[kind], config=ConfigDict(strict=True, extra="forbid"))  # type: ignore[valid-type]
    try:
        # Names of files may hold half a character, which is no UTF-8 and is shown as a question mark.
        return adapter.validate_json(json.dumps([values], ensure_ascii=False).encode(errors="replace"))[0]
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join([name, *map(str, first["loc"][1:])]).strip(".")
        told = first["msg"].removeprefix("Value error, ")
        simple = isinstance(first["input"], str | int | float | None) and first["type"] != "value_error"
        got = f", got {first['input']!r:.60}" if simple else ""
        raise Malformed(f"{where}: {told}{got}" if where else told) from error


def whole(state: Any, name: str) -> int:
    """A whole number of at least 0 in a saved state. Raises Malformed for anything else."""
    value = state.get(name) if isinstance(state, dict) else None
    if type(value) is not int or value < 0:
        raise Malformed(f"'{name}' is not a whole number of at least 0")
    return value


def differences(before: Any, now: Mapping[str, Any]) -> list[str]:
    """The names of the settings, dotted where they are nested, that are not what they were."""
    if not isinstance(before, Mapping):
        before = {}
    found = []
    for name, value in now.items():
        if isinstance(value, Mapping):
            found += [f"{name}.{inner}" for inner in differences(before.get(name), value)]
        elif before.get(name) != value:
            found.append(name)
    return found
