"""Policies: observations of a batch of episodes in, actions out."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped, UInt8

from lamina.errors import LaminaError
from lamina.files import json_of
from lamina.types import ActionSpec

#: Kinds of policies that a run folder may hold, by what RUN/policy/config.json calls them.
KINDS = {"tokens": "lamina.policies.token_policy:TokenPolicy"}


@dataclass(frozen=True)
class Observations:
    """One observation of each episode of a batch. ``frames`` by camera: a policy of one camera reads the first."""

    frames: Mapping[str, UInt8[np.ndarray, "b h w 3"]]
    proprio: Float[np.ndarray, "b p"] | None = None
    task: tuple[str, ...] = ()  # what is to be done in each episode, in words; empty = unknown


class Policy(ABC):
    """Chooses actions from observations, for ``batch`` episodes at once."""

    image: tuple[int, int, int]  # channels, height, width that frames are resized to
    spec: ActionSpec
    batch: int
    decision_seconds: float | None = None  # between two decisions in the data that it was trained on; None = unknown
    chunk: int = 1  # actions of a decision

    @abstractmethod
    def reset(self, rows: Sequence[int] | None = None) -> None:
        """These rows of the batch (all by default) begin a new episode with their next observation."""

    @abstractmethod
    def act_batch(self, observations: Observations | UInt8[np.ndarray, "b h w 3"]) -> Shaped[np.ndarray, "b *n a"]:
        """The next action of every episode [b a], int64 where all dimensions are discrete, else float32; [b n a] for chunks of n actions,
        which are carried out in turn before the next observation. Frames alone are those of the one camera.

        Raises LaminaError for observations of another shape or type.
        """

    def act(self, observation: Observations | UInt8[np.ndarray, "h w 3"]) -> Shaped[np.ndarray, "*n a"]:
        """The action for one episode [a], or a chunk of them [n a]; ``batch`` must be 1."""
        return self.act_batch(self.batch_of_one(observation))[0]

    def batch_of_one(
        self, observation: Observations | UInt8[np.ndarray, "h w 3"]
    ) -> Observations | UInt8[np.ndarray, "1 h w 3"]:
        """What :meth:`act_batch` takes. Raises LaminaError if this policy is for several episodes."""
        if self.batch != 1:
            raise LaminaError(f"act is for one episode, this policy was made for {self.batch} at once: call act_batch")
        return observation if isinstance(observation, Observations) else np.asarray(observation)[None]

    def first_camera(self, observations: Observations | UInt8[np.ndarray, "b h w 3"]) -> UInt8[np.ndarray, "b h w 3"]:
        """The frames of the first camera. Raises LaminaError unless they are uint8, RGB, and one for each episode."""
        if isinstance(observations, Observations):
            if not observations.frames:
                raise LaminaError("a policy needs frames, and these observations have no camera")
            observations = next(iter(observations.frames.values()))
        frames = np.asarray(observations)
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[0] != self.batch or frames.shape[3] != 3:
            raise LaminaError(
                f"a policy for {self.batch} episode(s) reads uint8 frames of shape ({self.batch}, height, width, 3), "
                f"got {frames.dtype} {frames.shape}"
            )
        if 0 in frames.shape:
            raise LaminaError(f"a frame of {frames.shape[1]}x{frames.shape[2]} pixels shows nothing")
        return frames

    @classmethod
    def from_run(
        cls,
        run: str | os.PathLike[str],
        *,
        k: int | None = None,
        batch: int = 1,
        temperature: float = 0.0,
        seed: int = 0,
        device: str = "auto",
        precision: str = "fp32",
    ) -> Policy:
        """The policy of a run folder (or of RUN/joint), of the kind that policy/config.json names; "tokens" where it names none.

        ``k``: latent tokens of a decision (all by default); ``temperature``: 0 takes the likeliest. Raises LaminaError for an unknown
        kind, one that is no ``cls``, and what the kind's own from_run raises.
        """
        path = Path(run) / "policy" / "config.json"
        kind: Any = "tokens"
        if path.exists():
            with suppress(OSError, ValueError):  # the kind's own loader says what is wrong with the file
                kind = json_of(path).get("kind", kind)
        if not isinstance(kind, str) or kind not in KINDS:
            raise LaminaError(f"{path}: a policy of kind {kind!r:.60}; this version of lamina knows {', '.join(KINDS)}")
        module, name = KINDS[kind].split(":")
        found: type[Policy] = getattr(import_module(module), name)
        if not issubclass(found, cls):
            raise LaminaError(f"{path}: is a {found.__name__} (kind {kind!r}), no {cls.__name__}")
        return found.from_run(
            run, k=k, batch=batch, temperature=temperature, seed=seed, device=device, precision=precision
        )
