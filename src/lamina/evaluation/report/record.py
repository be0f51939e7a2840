"""What the record of an evaluation holds, checked as it is read: numbers, estimates, rows of tables.

Every reader raises Malformed for what is something else; ``where`` names the place in its message.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

ROLES = ("model", "reference", "control")


class Malformed(Exception):
    """Where a record differs from what it should hold."""


@dataclass(frozen=True)
class Metric:
    """A column of a table: its key in the record, its heading, and which way is better."""

    key: str
    name: str
    better: str
    percent: bool = False


@dataclass(frozen=True)
class Estimate:
    """A measured value with its 95% interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """One method, at one budget k (None: the budget does not matter), with what was measured of it."""

    name: str
    role: str
    k: int | None
    values: dict[str, Estimate | None]


def is_number(value: object) -> bool:
    """An int or a float, and no bool."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def get(record: dict[str, Any], key: str, kind: type, where: str = "") -> Any:
    """``record[key]``, or an empty value of ``kind`` where it is absent or null."""
    value = record.get(key)
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise Malformed(f"{where}{key} is not a {kind.__name__}")
    return value


def numbers(record: dict[str, Any], key: str, where: str) -> list[float]:
    """A list of numbers, NaN for null."""
    values = get(record, key, list, where)
    if not all(v is None or is_number(v) for v in values):
        raise Malformed(f"{where}{key} holds something that is not a number")
    return [math.nan if v is None else float(v) for v in values]


def objects(record: dict[str, Any], key: str, where: str = "") -> list[dict[str, Any]]:
    """A list of objects."""
    values = get(record, key, list, where)
    if not all(isinstance(v, dict) for v in values):
        raise Malformed(f"{where}{key} holds something that is not an object")
    return values


def estimate(value: Any, where: str) -> Estimate | None:
    """An estimate, or None for null."""
    if value is None:
        return None
    parts = [value.get(part, "") if isinstance(value, dict) else "" for part in ("mean", "low", "high")]
    if not all(part is None or is_number(part) for part in parts):
        raise Malformed(f"{where} is not an estimate (mean, low and high) or null")
    if None in parts:  # what was measured is not a number, such as the error of a constant in units of its variance
        return None
    return Estimate(float(value["mean"]), float(value["low"]), float(value["high"]))


def read_rows(record: dict[str, Any], section: str, metrics: Sequence[Metric]) -> list[Row]:
    """The rows of a section: the model first, then references, then controls; each method's budgets ascending."""
    rows = []
    for number, raw in enumerate(objects(record, section)):
        where = f"{section}[{number}]"
        name, role, k = raw.get("name"), raw.get("role"), raw.get("k")
        if not isinstance(name, str) or role not in ROLES:
            raise Malformed(f"{where} needs a name, and one of the roles {', '.join(ROLES)}")
        if k is not None and not (isinstance(k, int) and not isinstance(k, bool)):
            raise Malformed(f"{where}.k is not a whole number or null")
        values = {m.key: estimate(raw.get(m.key), f"{where}.{m.key}") for m in metrics}
        rows.append(Row(name, role, k, values))
    first = {name: number for number, name in reversed(list(enumerate(row.name for row in rows)))}
    return sorted(rows, key=lambda row: (ROLES.index(row.role), first[row.name], -1 if row.k is None else row.k))
