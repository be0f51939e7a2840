"""Labels made by a Ray cluster: the unit of work is an episode (of plain video: a file), and each of its actors keeps one model."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lamina.data.episodes import Episode
from lamina.data.lerobot.staging import Columns
from lamina.errors import LaminaError
from lamina.files import Scratch
from lamina.inference.labeller import Labeller
from lamina.models.hub import LatentActionModel

ANSWER = 10.0  # seconds that a cluster has to accept a connection
JOIN = 60.0  # seconds in which it must let a process join
#: Nothing is sent to anybody: Ray would report its usage.
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}


@dataclass(frozen=True)
class Cluster:
    """Where and how Ray labels."""

    address: str | None = None
    """HOST:PORT of a running cluster; None: a local one is started"""
    workers: int = 2
    """actors, each with one model"""
    gpus: float = 0.0
    """share of a GPU for each actor"""

    def device(self, name: str) -> str:
        """The device of the actors for ``--device``: Ray hides the GPUs from actors that hold no share of one. Raises LaminaError."""
        if name == "auto":
            return "cuda" if self.gpus else "cpu"
        if name == "cuda" and not self.gpus:
            raise LaminaError("--device cuda: give each worker of --engine ray a share of a GPU, such as --gpus 1")
        return name


class _Worker:
    """An actor: opens the model once, then labels one episode after the other."""

    def __init__(self, model: dict[str, bytes], labeller: dict[str, Any], device: str, threads: int) -> None:
        torch.set_num_threads(threads)  # sums of other lengths are other sums, to the last bit
        with Scratch() as folder:
            for name, content in model.items():
                (Path(folder) / name).write_bytes(content)
            opened = LatentActionModel.from_pretrained(folder)
        self.labeller = Labeller(opened.to(device).eval(), **labeller)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        numbers = [int(number) for number in batch["episode"]]
        made = [self._label(self.labeller.source.episodes[number]) for number in numbers]
        return {"episode": numbers, "labels": [labels for labels, _ in made], "error": [error for _, error in made]}

    def _label(self, episode: Episode) -> tuple[bytes, str]:
        """The columns of an episode, packed, and the message if there is none."""
        try:
            ((_, columns),) = self.labeller.each([episode])
        except LaminaError as error:  # told in one line by the process that asked
            return b"", str(error)
        packed = io.BytesIO()
        np.savez(packed, **columns)  # type: ignore[arg-type]
        return packed.getvalue(), ""


class RayEngine:
    """Hands episodes to the actors of a cluster, and yields their labels as they arrive; a context manager, which leaves the cluster.

    The episodes of an actor that dies are labelled by another one. Every worker must see the data under the same path.
    Raises LaminaError where ray is not installed and for an address that does not answer within about a minute.
    """

    def __init__(self, labeller: Labeller, cluster: Cluster, device: str) -> None:
        os.environ.update(QUIET)
        try:
            import ray
            import ray.data
        except (ImportError, OSError, RuntimeError) as error:
            raise LaminaError("--engine ray needs a package: pip install 'ray[data]'") from error
        self.labeller, self.cluster, self.device, self.ray = labeller, cluster, device, ray
        self.started = not ray.is_initialized()

    def __enter__(self) -> RayEngine:
        address = self.cluster.address
        if self.started:
            options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
            if address is None:
                options |= {
                    "num_cpus": self.cluster.workers + 1,
                    "include_dashboard": False,
                }  # one for Ray Data's own tasks
            else:
                check_answers(address)
                options["address"] = address
            self.ray.init(**options)
        context = self.ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        return self

    def __exit__(self, *error: object) -> None:
        if self.started:
            self.ray.shutdown()

    def __call__(self, episodes: Sequence[Episode]) -> Iterator[tuple[Episode, Columns]]:
        if not episodes:
            return
        ray, labeller = self.ray, self.labeller
        by_number = {episode.number: episode for episode in episodes}
        with Scratch() as folder:
            labeller.model.save_pretrained(folder)
            model = {name: (Path(folder) / name).read_bytes() for name in ("config.json", "model.safetensors")}
        options = {"source": labeller.source, "camera": labeller.camera, "columns": labeller.columns}
        options |= {"precision": labeller.precision, "shots": labeller.shots, "k": labeller.k}
        work = ray.data.from_items([{"episode": n} for n in by_number], override_num_blocks=len(by_number))
        results = work.map_batches(
            _Worker,
            fn_constructor_args=(model, options, self.device, torch.get_num_threads()),
            batch_size=1,
            concurrency=self.cluster.workers,
            num_cpus=1,
            num_gpus=self.cluster.gpus or None,
        )
        for row in results.iter_rows():
            if row["error"]:
                raise LaminaError(row["error"])
            with np.load(io.BytesIO(row["labels"])) as packed:
                yield by_number[row["episode"]], {name: packed[name] for name in packed.files}


def check_answers(address: str) -> None:
    """Raises LaminaError unless a Ray cluster at HOST:PORT (or ray://HOST:PORT) lets a process join, within about a minute."""
    told = f"--address {address}: no Ray cluster answers there"
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not (colon and host and port.isdigit()):
        raise LaminaError(f"--address {address}: must be HOST:PORT, of the node where `ray start --head` runs")
    try:
        with socket.create_connection((host, int(port)), timeout=ANSWER):
            pass
    except (OSError, OverflowError) as error:
        raise LaminaError(f"{told} ({getattr(error, 'strerror', None) or error}); check it with: ray status") from error
    # What listens there may be no cluster, for which Ray's own library would wait for minutes or end the process.
    join = f"import ray; ray.init(address={address!r}, logging_level='ERROR', log_to_driver=False)"
    try:
        joined = (
            subprocess.run([sys.executable, "-c", join], capture_output=True, timeout=JOIN, check=False).returncode == 0
        )
    except subprocess.TimeoutExpired:
        joined = False
    if not joined:
        raise LaminaError(f"{told} that this version of Ray can join; check it with: ray status")
