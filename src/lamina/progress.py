"""Progress bars."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm


def progress_bar(total: int | None, desc: str | None, unit: str, **options: Any) -> tqdm:
    """A bar on stderr that moves twice a second on a terminal, and twice a minute where a file keeps every state of it (nohup, Slurm)."""
    interval = 0.5 if sys.stderr.isatty() else 30.0
    options = {"dynamic_ncols": True, "mininterval": interval, "maxinterval": max(10.0, interval)} | options
    return tqdm(total=total, desc=desc, unit=unit, **options)
