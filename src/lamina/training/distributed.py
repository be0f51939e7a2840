"""This process among the processes of a torchrun job."""

from __future__ import annotations

import os
from dataclasses import dataclass

from lamina.errors import LaminaError
from lamina.training.settings import TrainConfig


@dataclass(frozen=True)
class Processes:
    """This process among the processes of the job (torchrun's RANK and WORLD_SIZE)."""

    rank: int
    size: int

    @staticmethod
    def here() -> Processes:
        return Processes(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))

    def shards(self, config: TrainConfig) -> tuple[int, int | None]:
        """The number of data shards, and the one that this process draws (None: it draws them all)."""
        n = config.shards or self.size
        if self.size not in (1, n) or config.batch % (n * config.accumulate):
            raise LaminaError(f"{n} shards, {self.size} processes and --batch {config.batch} do not divide evenly")
        return n, self.rank if self.size > 1 else None
