"""The log of a run: RUN/log.jsonl always, TensorBoard and wandb by flag."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lamina.errors import LaminaError
from lamina.files import disk_errors, to_json, write_text
from lamina.training.distributed import Processes
from lamina.training.settings import TrainConfig


class Log:
    """RUN/log.jsonl always, TensorBoard and wandb by flag. Only rank 0 writes. At the end of its context the trackers have all rows."""

    def __init__(self, run: Path, config: TrainConfig, world: Processes, after: int):
        self.path = run / "log.jsonl"
        self.trackers: list[Callable[[dict[str, Any]], Any]] = []
        self.ends = ExitStack()
        self.writes = world.rank == 0
        if not self.writes:
            return
        # Lines that a killed run wrote after its last checkpoint will be written again.
        kept = [row for row in read_log(self.path) if row["step"] <= after] if after else []
        write_text(self.path, "".join(to_json(row) + "\n" for row in kept))
        try:
            if config.tensorboard:
                from torch.utils.tensorboard import SummaryWriter

                board = SummaryWriter(str(run / "tensorboard"))
                self.ends.callback(board.close)

                def to_board(row: dict[str, Any]) -> None:
                    for name, value in row.items():
                        board.add_scalar(name, value, row["step"])

                self.trackers.append(to_board)
            if config.wandb:
                import wandb

                # A run that goes on is the same one there; another of this name elsewhere is not.
                own = f"{run.name}-{hashlib.sha256(str(run.resolve()).encode()).hexdigest()[:8]}"
                try:
                    tracked = wandb.init(project="lamina", name=run.name, dir=str(run), id=own, resume="allow")
                except wandb.errors.Error as error:  # no key, no network, no permission
                    raise LaminaError(f"--wandb: {error} Or set WANDB_MODE=offline and sync the run later.") from error
                # Otherwise the next training of this process would be logged to the same run.
                self.ends.callback(tracked.finish)
                self.trackers.append(lambda row: tracked.log(row, step=row["step"]))
        except (ImportError, RuntimeError, OSError) as error:
            raise LaminaError(f"--tensorboard/--wandb: {error}; pip install 'lamina[log]'") from error

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self.ends.close()

    def write(self, row: dict[str, Any]) -> None:
        if not self.writes:
            return
        with disk_errors(self.path), self.path.open("a") as file:
            file.write(to_json(row) + "\n")
        for tracker in self.trackers:
            tracker(row)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The rows of a log.jsonl, each with a whole "step" and a "loss"; lines that are something else, such as the last one of a killed
    process, are left out, and a file that is not there has none."""
    rows = []
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and type(row.get("step")) is int and isinstance(row.get("loss"), int | float):
            rows.append(row)
    return rows
