"""Policies: observations of a batch of episodes in, actions out."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8
from torch import Tensor

from lamina.data.dataset import Data
from lamina.data.lerobot.writer import CAMERA_PREFIX
from lamina.errors import LaminaError
from lamina.files import disk_errors, json_of, write_text
from lamina.models.adaptive import Length
from lamina.training.settings import TrainConfig
from lamina.types import ActionSpec
from lamina.weights import save_weights

T = TypeVar("T")

#: The kinds of policies: ``--kind``, and what RUN/policy/config.json calls them. Each module defines ``KIND``, a :class:`PolicyKind`.
KINDS = {
    "tokens": "lamina.policies.token_policy",
    "latent": "lamina.policies.latent",
    "flow": "lamina.policies.flow.policy",
}


@dataclass(frozen=True)
class Observations:
    """One observation of each episode of a batch. ``frames`` by camera: a policy that names none reads the first."""

    frames: Mapping[str, UInt8[np.ndarray, "b h w 3"]]
    proprio: Float[np.ndarray, "b p"] | None = None
    task: tuple[str, ...] = ()  # what is to be done in each episode, in words; empty = unknown


@dataclass(frozen=True)
class PolicyKind:
    """One kind of policy: the options of its training, what trains it into RUN/policy, and the class that plays it."""

    title: str  # one line for --help
    config: type  # dataclass of its options
    training: Mapping[str, Any]  # fields of TrainConfig whose defaults differ for it
    #: (run, sources, config, training, cameras) -> RUN/policy, where no cameras leave the choice to the kind
    train: Callable[[Path, Sequence[Data], Any, TrainConfig, tuple[str, ...]], Path]
    policy: type[Policy]
    #: The same arguments -> what the training would cost, as text; None: the kind makes no plan
    plan: Callable[[Path, Sequence[Data], Any, TrainConfig, tuple[str, ...]], str] | None = None


def save_parts(
    folder: Path, state: Mapping[str, Tensor], meaning: Mapping[str, Any], config: Mapping[str, Any]
) -> None:
    """FOLDER/model.safetensors, then config.json, whose presence says that both are whole.

    ``meaning``: what the weights' numbers depend on, stored with them too. Raises LaminaError where the disk refuses.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").unlink(missing_ok=True)
    save_weights(folder / "model.safetensors", dict(state), dict(meaning))
    write_text(folder / "config.json", json.dumps(dict(config), indent=2) + "\n")


def named(camera: str | None) -> tuple[str, ...]:
    """What a policy says of the camera of a dataset that it was trained on: its name in a world. None, the first: nothing."""
    return () if camera is None else (camera.removeprefix(CAMERA_PREFIX),)


def only_one(values: Sequence[T], what: str) -> T:
    """The one of ``values``, for a kind of policy that takes no more. Raises LaminaError for several."""
    if len(values) == 0:
        raise LaminaError(f"a policy is trained on data: give a {what}")
    if len(values) > 1:
        raise LaminaError(f"this kind of policy is trained on one {what}, got {len(values)}")
    return values[0]


def policy_kind(name: str) -> PolicyKind:
    """The kind called ``name``. Raises LaminaError if there is none."""
    if name not in KINDS:
        raise LaminaError(f"there is no policy of kind {name!r:.60}; this version of lamina knows {', '.join(KINDS)}")
    found: PolicyKind = import_module(KINDS[name]).KIND
    return found


class Policy(ABC):
    """Chooses actions from observations, for ``batch`` episodes at once."""

    image: tuple[int, int, int]  # channels, height, width that frames are resized to
    spec: ActionSpec
    batch: int
    decision_seconds: float | None = None  # between two decisions in the data that it was trained on; None = unknown
    chunk: int = 1  # actions of a decision
    cameras: tuple[str, ...] = ()  # that it reads; none = the first camera, whatever its name
    proprio: int = 0  # width of the proprioception that it reads, 0 = none
    kept: Int[np.ndarray, "b"] | None = (
        None  # slots of the latent that each row's last decision used; None = has none, or none yet
    )

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
        """The frames of the first of the policy's cameras, or of the observations where it names none. See :meth:`view`."""
        return self.view(observations, self.cameras[0] if self.cameras else None)

    def view(
        self, observations: Observations | UInt8[np.ndarray, "b h w 3"], camera: str | None
    ) -> UInt8[np.ndarray, "b h w 3"]:
        """The frames of ``camera``, under its name in a world or in a dataset; None: of the first. Where policy and observations have one
        camera each, it may have any name.

        Raises LaminaError for a camera that is not there, and for frames that are not uint8, RGB, and one for each episode.
        """
        if isinstance(observations, Observations):
            views = observations.frames
            if not views:
                raise LaminaError("a policy needs frames, and these observations have no camera")
            names: tuple[str, ...] = tuple(views)[:1]
            if camera is not None and not len(views) == len(self.cameras) == 1:
                plain = camera.removeprefix(CAMERA_PREFIX)
                names = (plain, CAMERA_PREFIX + plain)
            name = next((name for name in names if name in views), None)
            if name is None:
                raise LaminaError(
                    f"this policy sees {', '.join(self.cameras)}; there is no {camera} among {', '.join(views)}"
                )
            observations = views[name]
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
        k: Length = None,
        batch: int = 1,
        temperature: float = 0.0,
        seed: int = 0,
        device: str = "auto",
        precision: str = "fp32",
    ) -> Policy:
        """The policy of a run folder (or of RUN/joint), of the kind that policy/config.json names; "tokens" where it names none.

        ``k``: latent tokens of a decision (all by default): a number, "auto" for the rule of ``lamina adaptive-k`` in the run, or such a
        rule; ``temperature``: 0 takes the likeliest. Raises LaminaError for a folder that is not there, an unknown kind, one that is no
        ``cls``, and what the kind's own from_run raises.
        """
        if not Path(run).is_dir():
            raise LaminaError(f"{os.fspath(run)}: there is no such run folder")
        path = Path(run) / "policy" / "config.json"
        kind: Any = "tokens"
        if path.exists():
            with suppress(OSError, ValueError):  # the kind's own loader says what is wrong with the file
                kind = json_of(path).get("kind", kind)
        try:
            found = policy_kind(str(kind)).policy
        except LaminaError as error:
            raise LaminaError(f"{path}: {error}") from error
        if not issubclass(found, cls):
            raise LaminaError(f"{path}: is a {found.__name__} (kind {kind!r}), no {cls.__name__}")
        return found.from_run(
            run, k=k, batch=batch, temperature=temperature, seed=seed, device=device, precision=precision
        )
