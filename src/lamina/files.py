"""Files that are either whole or not there."""

from __future__ import annotations

import os
from pathlib import Path

from lamina.errors import LaminaError


def write_text(path: Path, text: str) -> Path:
    """Writes ``text`` to ``path`` (UTF-8) through a sibling partial file, so that a reader never sees half of it.

    Raises LaminaError when the folder can't be written or the disk is full; the old file is then still in place.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        reason = error.strerror or str(error)
        raise LaminaError(f"{path}: cannot be written ({reason}); free some space or choose another place") from error
    return path
