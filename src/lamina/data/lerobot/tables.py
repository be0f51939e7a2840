"""Reading the tables of an untrusted dataset: JSON objects and parquet files."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lamina.data.paths import check_regular, open_arrow
from lamina.errors import LaminaError
from lamina.files import read_json, reason

CACHE_BYTES = 128 * 2**20  # columns of row groups kept in memory, per process
ROWS_PER_BYTE = 16  # maximum of a parquet file; usual ones have at most one, and more could fill the memory
FAILURES = (pa.ArrowException, OSError, ValueError, KeyError)


def read_metadata(path: Path) -> dict[str, Any]:
    """A JSON object of a dataset. Raises LaminaError if it is missing or damaged."""
    return read_json(path, "the dataset is incomplete or damaged")


@contextmanager
def open_table(path: Path) -> Iterator[pq.ParquetFile]:
    """A parquet file, open for reading. Raises LaminaError if it is missing or damaged, and for what fails while it is read."""
    size = check_regular(path).st_size
    try:
        with open_arrow(path) as raw, pq.ParquetFile(raw, page_checksum_verification=True) as file:
            # A few bytes can stand for any number of equal rows, which would fill the memory; those of a dataset count up.
            if file.metadata.num_rows > ROWS_PER_BYTE * size:
                raise ValueError(f"{file.metadata.num_rows} rows in {size} bytes")
            yield file
    except FAILURES as error:
        if isinstance(error, LaminaError):
            raise
        raise LaminaError(f"{path}: cannot be read ({reason(error)}); the dataset is incomplete or damaged") from error


def read_table(path: Path, columns: Sequence[str] | None = None, optional: Sequence[str] = ()) -> pa.Table:
    """A parquet file as a table: ``columns`` and those of ``optional`` that it has, or everything.

    Raises LaminaError if it is missing, damaged or lacks one of ``columns``.
    """
    with open_table(path) as file:
        there = set(file.schema_arrow.names)
        missing = set(columns or ()) - there
        if missing:
            raise LaminaError(f"{path}: has no column {', '.join(sorted(missing))}; the dataset is incomplete")
        wanted = None if columns is None else [*columns, *(name for name in optional if name in there)]
        table = file.read(columns=wanted)
        if len(table) != file.metadata.num_rows:
            raise ValueError("rows are missing")
        return table


def to_numpy(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """A scalar or (nested) list column of numbers as an array [rows, d]; nulls become NaN. Raises ValueError for anything else."""
    values = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    rows = len(values)
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    while any(is_list(values.type) for is_list in lists):
        if values.null_count or len(pc.unique(pc.list_value_length(values))) > 1:
            raise ValueError("rows differ in length")
        values = values.flatten()
    if pa.types.is_boolean(values.type) and values.null_count:
        values = values.cast(pa.uint8())
    flat = values.to_numpy(zero_copy_only=False)
    if flat.dtype.kind not in "biuf":
        raise ValueError(f"holds {values.type}, not numbers")
    if rows and len(flat) % rows:
        raise ValueError("rows differ in length")
    return flat.reshape(rows, -1 if rows else 1)


class Columns:
    """Columns of parquet row groups, the most recently used of them in memory."""

    def __init__(self) -> None:
        self.held: OrderedDict[tuple[Path, str, int], Any] = OrderedDict()
        self.bounds: dict[Path, np.ndarray] = {}

    def rows(self, path: Path, name: str, start: int, stop: int, width: int) -> np.ndarray:
        """Rows start..stop-1 of one column of numbers of a file, [rows, width]."""
        parts = [part for part in self.parts(path, name, start, stop, width)]
        return np.concatenate(parts) if parts else np.empty((0, width), np.float32)

    def parts(self, path: Path, name: str, start: int, stop: int, width: int | None = None) -> Iterator[Any]:
        """Rows start..stop-1 of one column of a file, by row group: arrays of numbers [rows, width], or arrow arrays without ``width``."""
        if path not in self.bounds:
            with open_table(path) as file:
                counts = [file.metadata.row_group(g).num_rows for g in range(file.metadata.num_row_groups)]
                self.bounds[path] = np.concatenate([[0], np.cumsum(counts)])
        bounds = self.bounds[path]
        first = int(np.searchsorted(bounds, start, side="right")) - 1
        last = int(np.searchsorted(bounds, stop, side="left"))
        for g in range(first, last):
            begin, end = max(start - bounds[g], 0), min(stop, bounds[g + 1]) - bounds[g]
            yield self._group(path, name, g, width)[begin:end]

    def _group(self, path: Path, name: str, group: int, width: int | None) -> Any:
        key = (path, name, group)
        values = self.held.pop(key, None)
        if values is None:
            with open_table(path) as file:
                if name not in file.schema_arrow.names:
                    raise LaminaError(f"{path}: has no column {name}; the dataset is incomplete")
                rows = file.metadata.row_group(group).num_rows
                if width is not None:
                    _check_width(file.metadata.row_group(group), path, name, width)
                column = file.read_row_group(group, columns=[name], use_threads=False).column(name)
                values = column.combine_chunks() if width is None else to_numpy(column)
                if len(values) != rows:
                    raise ValueError("rows are missing")
                if width is not None and rows and values.shape[1] != width:
                    raise LaminaError(
                        f"{path}: '{name}' has {values.shape[1]} values a row, not {width} as meta/info.json says"
                    )
        self.held[key] = values
        while len(self.held) > 1 and sum(v.nbytes for v in self.held.values()) > CACHE_BYTES:
            self.held.popitem(last=False)
        return values


def _check_width(group: pq.RowGroupMetaData, path: Path, name: str, width: int) -> None:
    """Raises LaminaError if a column holds more values than its feature has: a few bytes can stand for any number of them."""
    list_of = re.compile(re.escape(name) + r"(\.(list|bag|array)(\.\w+)?)*")
    for i in range(group.num_columns):
        column = group.column(i)
        if list_of.fullmatch(column.path_in_schema) and column.num_values > group.num_rows * width:
            raise LaminaError(
                f"{path}: '{name}' has {column.num_values} values in {group.num_rows} rows, not {width} a row as meta/info.json says"
            )
