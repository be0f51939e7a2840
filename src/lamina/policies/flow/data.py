"""The flow policy's data: the frames of every camera, latents, actions and proprioception of every step, encoded once, and batches of them.

RUN/policy/frames/index.json                  what they were made from (see lamina.policies.encoded)
RUN/policy/frames/SPLIT.frames_N.npy          uint8 [n h w 3], of camera N
RUN/policy/frames/SPLIT.latents.npy           float32 [n v l], of the frame and the one a gap later in each view; .valid.npy: there is one
RUN/policy/frames/directions.json             with --latent-numbers: for each view, what lamina.inference.directions found
RUN/policy/frames/SPLIT.actions.npy           float32 [n a]; .proprio.npy [n p]

A row of a batch begins at step t of an episode. It holds the frames t, t - r, t - 2r, ... (r actions are carried out between two decisions;
before the episode's start its first frame stands in), the actions of t, ..., t + H - 1 and the latents of N pairs that begin at t, t + s,
t + 2s, ... Behind the episode's end, actions repeat the last one and latents are those of no change, and neither is valid: no loss is
taken there, and nothing sees them. A cut of edited video ends what precedes it and begins what follows, as an episode's end and start do.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from lamina.data.dataset import Dataset
from lamina.data.sampling import source_camera
from lamina.data.shots import Detector, detector_name
from lamina.data.stream import evenly_spaced
from lamina.device import autocast
from lamina.errors import LaminaError
from lamina.files import whole_folder
from lamina.inference.directions import decoder_directions
from lamina.models.hub import LatentActionModel
from lamina.policies.encoded import (
    ENCODED_SPLITS,
    encode_stretch,
    index_of,
    open_arrays,
    read_index,
    read_stretch,
    reserve,
)
from lamina.policies.flow.config import FlowConfig
from lamina.policies.flow.context import Context
from lamina.policies.flow.model import FlowBatch, Statistics
from lamina.progress import progress_bar
from lamina.records import non_negative
from lamina.rng import Rng
from lamina.types import ActionSpec

FORMAT = 1
STATE, EXPERT = "observation.state", "expert_action"  # features that "auto" looks for
DIRECTION_PAIRS = 512  # at most, whose gradients tell which directions of a latent the decoder uses


@dataclass(frozen=True)
class Columns:
    """The features that a policy is trained on: actions ("" = a source has none), and proprioception ("" = none)."""

    action: str
    spec: ActionSpec
    proprio: str
    width: int


def choose_cameras(sources: Sequence[Dataset], wanted: Sequence[str]) -> tuple[str, ...]:
    """The cameras that a policy sees: ``wanted``, or those that every source has. Raises LaminaError for one that is missing."""
    for source, camera in itertools.product(sources, wanted):
        source_camera(source, camera)
    if len(set(wanted)) < len(wanted):
        raise LaminaError(f"a camera is named twice: {', '.join(wanted)}")
    cameras = wanted or [c for c in sources[0].cameras if all(c in source.cameras for source in sources)]
    if not cameras:
        raise LaminaError(f"{', '.join(source.name for source in sources)}: no camera is in all of them; name others")
    return tuple(cameras)


def choose_columns(sources: Sequence[Dataset], config: FlowConfig) -> Columns:
    """The features that hold actions and proprioception.

    A source without the actions is one of unlabelled episodes. Raises LaminaError where no source has actions, their actions differ, or
    their proprioception does.
    """
    names = ", ".join(source.name for source in sources)
    acting = [source for source in sources if source.action_spec("action") is not None]
    action = config.action
    if action == "auto":
        clean = bool(acting) and all(source.action_spec(EXPERT) is not None for source in acting)
        action = EXPERT if clean else "action"
    specs = [(source.name, source.action_spec(action)) for source in sources]
    found = [(name, spec) for name, spec in specs if spec is not None]
    if not found:
        raise LaminaError(f"{names}: has no actions in '{action}', and a policy needs some labelled episodes")
    (first, spec), *others = found
    for name, other in others:
        if (other.discrete, other.continuous) != (spec.discrete, spec.continuous):
            raise LaminaError(
                f"{first} and {name} have different actions in '{action}': {_told(spec)}, and {_told(other)}"
            )
    proprio = config.proprio
    widths = [source.width(STATE if proprio == "auto" else proprio) for source in sources]
    if proprio == "auto":
        proprio = STATE if all(widths) else "none"
    elif proprio != "none" and not all(widths):
        raise LaminaError(f"{sources[widths.index(None)].name}: has no feature '{proprio}'; choose another --proprio")
    if proprio == "none":
        return Columns(action, spec, "", 0)
    if len(set(widths)) > 1:
        raise LaminaError(
            f"{names}: '{proprio}' is {' and '.join(map(str, widths))} numbers wide; --proprio none leaves it out"
        )
    return Columns(action, spec, proprio, widths[0] or 0)


def _told(spec: ActionSpec) -> str:
    classes = f"classes {', '.join(map(str, spec.discrete))}" if spec.discrete else ""
    return " and ".join(filter(None, [classes, f"{spec.continuous} numbers" if spec.continuous else ""]))


@dataclass(frozen=True)
class _Stretch:
    """Frames first .. stop-1 of an episode of a source."""

    source: int
    episode: int
    first: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.first


def _stretches(sources: Sequence[Dataset], cameras: Sequence[str], split: str) -> list[_Stretch]:
    """What a split holds; episodes that some camera does not show are left out."""
    found = []
    for number, source in enumerate(sources):
        missing = set().union(*(source.missing_episodes(camera) for camera in cameras))
        for n, episode in enumerate(source.episodes):
            if episode.number not in missing:
                found += [_Stretch(number, n, first, stop) for name, first, stop in episode.splits if name == split]
    return found


def encode_steps(
    model: LatentActionModel,
    sources: Sequence[Dataset],
    folder: Path,
    fingerprint: str,
    cameras: Sequence[str],
    columns: Columns,
    gap: float | None,
    precision: str = "fp32",
    numbers: int | None = None,
    find: Sequence[Detector | None] = (),
    wait: bool = False,
) -> dict[str, Any]:
    """Encode the training and the validation split of all ``sources`` once into ``folder``; returns its index.

    ``gap``: seconds between the frames of a latent; None: no latents. ``numbers``: of each latent, that many coordinates along the
    directions that the decoder uses most (:func:`lamina.inference.directions.decoder_directions`); None: the latents themselves.
    ``find``: for each source, what finds the cuts in it, if anything does. ``wait``: another process encodes; until it has.
    What is there already is used again if it was made by the same encoder, from the same data. Raises LaminaError for a training split
    without an episode, frames that cannot be decoded, values that are not finite, a disk that refuses.
    """
    find = find or (None,) * len(sources)
    made_from = {
        "format": FORMAT,
        "fingerprint": fingerprint,
        "data": [source.fingerprint() for source in sources],
        "cameras": list(cameras),
        "columns": [columns.action, columns.proprio],
        "gap_seconds": gap,
        "latent_numbers": numbers,
        "image": list(model.config.image),
        "precision": precision,
        "shots": [detector_name(each) for each in find] if any(find) else None,
    }
    if (before := index_of(folder, made_from, wait)) is not None:
        return before
    plans = {split: _stretches(sources, cameras, split) for split in ENCODED_SPLITS}
    if not plans["train"]:
        raise LaminaError(f"{', '.join(s.name for s in sources)}: no training episode is shown by {', '.join(cameras)}")
    index: dict[str, Any] = made_from | {
        "episodes": {
            split: [
                {
                    "length": len(stretch),
                    "name": sources[stretch.source].episodes[stretch.episode].name,
                    "task": sources[stretch.source].episodes[stretch.episode].task,
                    "acts": sources[stretch.source].action_spec(columns.action) is not None,
                }
                for stretch in stretches
            ]
            for split, stretches in plans.items()
        },
        "cuts": {},
    }
    width = model.config.action_length * model.lam.dim
    total = len(cameras) * sum(map(len, itertools.chain(*plans.values())))
    with (
        whole_folder(folder) as partial,
        progress_bar(total, "encode", "frame") as bar,
        autocast(model.device, precision),
    ):
        encoded: dict[str, dict[str, np.ndarray]] = {}
        for split, stretches in plans.items():
            n = sum(map(len, stretches))
            frames = [
                reserve(partial / f"{split}.frames_{i}.npy", (n, *model.config.image[1:], 3), np.uint8)
                for i in range(len(cameras))
            ]
            arrays: dict[str, np.ndarray] = {
                "actions": np.zeros((n, columns.spec.dim), np.float32),
                "proprio": np.zeros((n, columns.width), np.float32),
                "latents": np.zeros((n, len(cameras), width if gap else 0), np.float32),
                "valid": np.zeros(n, bool),
                "second": np.arange(n),
                "cut": np.zeros(n, bool),
            }
            first = 0
            for stretch in stretches:
                one = sources[stretch.source], find[stretch.source]
                _encode(model, *one, cameras, stretch, columns, gap, first, frames, arrays)
                first += len(stretch)
                bar.update(len(cameras) * len(stretch))
            for pictures in frames:
                pictures.flush()
            encoded[split] = arrays
            index["cuts"][split] = np.flatnonzero(arrays["cut"]).tolist()
        if gap and numbers:
            found = [
                _reduce(model, partial / f"train.frames_{i}.npy", i, encoded, numbers) for i in range(len(cameras))
            ]
            for arrays in encoded.values():
                arrays["latents"] = np.ascontiguousarray(arrays["latents"][:, :, :numbers])
            (partial / "directions.json").write_text(json.dumps(dict(zip(cameras, found, strict=True))))
        for split, arrays in encoded.items():
            for name in ("latents", "valid", "actions", "proprio"):
                np.save(partial / f"{split}.{name}.npy", arrays[name])
        (partial / "index.json").write_text(json.dumps(index))
    return index


def _encode(
    model: LatentActionModel,
    source: Dataset,
    find: Detector | None,
    cameras: Sequence[str],
    stretch: _Stretch,
    columns: Columns,
    gap: float | None,
    at: int,
    frames: list[np.memmap],
    arrays: dict[str, np.ndarray],
) -> None:
    """Fill the rows from ``at`` on with one stretch."""
    episode, n = source.episodes[stretch.episode], len(stretch)
    for i, camera in enumerate(cameras):

        def keep(start: int, chunk: UInt8[np.ndarray, "n h w 3"], i: int = i) -> None:
            frames[i][at + start : at + start + len(chunk)] = chunk

        where = source, camera, episode, stretch.first, stretch.stop
        if gap is None:
            shot = read_stretch(model, *where, keep, find)
        else:
            found = encode_stretch(model, *where, gap, keep, find)
            arrays["latents"][at : at + n, i] = model.lam.action(found.latent, "continuous").flatten(1).float().numpy()
            arrays["second"][at : at + n] = at + found.partner
            # Valid in no view where a cut is in one of them.
            arrays["valid"][at : at + n] = found.valid & (arrays["valid"][at : at + n] if i else True)
            shot = found.shot
        if shot is not None:
            arrays["cut"][at + 1 : at + n] |= np.diff(shot) > 0
    if source.action_spec(columns.action) is not None:
        arrays["actions"][at : at + n] = source.column(episode, columns.action)[stretch.first : stretch.stop]
    if columns.proprio:
        arrays["proprio"][at : at + n] = source.column(episode, columns.proprio)[stretch.first : stretch.stop]


def _reduce(
    model: LatentActionModel, pictures: Path, view: int, encoded: dict[str, dict[str, np.ndarray]], numbers: int
) -> dict[str, Any]:
    """Put the coordinates that the decoder uses most in place of the first numbers of a view's latents; returns what was found."""
    train, frames = encoded["train"], np.load(pictures, mmap_mode="r")
    valid = np.flatnonzero(train["valid"])
    if not len(valid):
        raise LaminaError(f"no training episode is as long as a latent; --latent-numbers {numbers} needs some")
    rows = valid[evenly_spaced(len(valid), DIRECTION_PAIRS)]

    def read(steps: Int[np.ndarray, "b"]) -> Tensor:
        return model.read(torch.from_numpy(frames[steps]).permute(0, 3, 1, 2))

    src, dst = read(rows), read(train["second"][rows])
    with torch.no_grad():
        pre = torch.cat(
            [
                model.lam.pair(model.lam.embed(a), model.lam.embed(b)).pre
                for a, b in zip(src.split(64), dst.split(64), strict=True)
            ]
        )
    shape = (-1, model.config.action_length, model.lam.dim)
    latents = torch.from_numpy(train["latents"][valid, view]).view(shape)
    found = decoder_directions(model.lam, src, dst, pre, latents, Rng(0, device=model.device))
    for arrays in encoded.values():
        arrays["latents"][:, view, :numbers] = found.project(
            torch.from_numpy(arrays["latents"][:, view]), numbers
        ).numpy()
    return {
        "effect": found.effect[:numbers].tolist(),
        "variance": found.variance[:numbers].tolist(),
        "ignored": found.ignored(),
    }


@dataclass(frozen=True)
class FlowData:
    """The steps of a split. Episode e is steps bounds[e] .. bounds[e+1]-1; the actions of those that are not ``labelled`` are unknown."""

    frames: tuple[UInt8[np.ndarray, "n h w 3"], ...]  # of each camera
    latents: Float[np.ndarray, "n v l"]
    valid: Bool[np.ndarray, "n"]  # of the latents
    actions: Float[np.ndarray, "n a"]
    proprio: Float[np.ndarray, "n p"]
    bounds: Int[np.ndarray, "m"]
    shots: Int[np.ndarray, "s"]  # the first step of every shot, in order; an episode begins one
    tasks: tuple[str, ...]  # of the episodes, in words
    names: tuple[str, ...]  # of the episodes, for messages
    labelled: Bool[np.ndarray, "e"]

    def __len__(self) -> int:
        return len(self.actions)

    @property
    def lengths(self) -> Int[np.ndarray, "e"]:
        return np.diff(self.bounds)

    def steps(self, labelled: bool) -> Int[np.ndarray, "k"]:
        """The steps of the labelled episodes, or those of the others."""
        return np.flatnonzero(np.repeat(self.labelled == labelled, self.lengths))


def open_data(folder: Path, split: str) -> FlowData:
    """The steps of an encoded split, as memory maps. Raises LaminaError if they are damaged."""
    names = ("latents", "valid", "actions", "proprio")
    cameras = len((read_index(folder) or {}).get("cameras", ()))
    files = (*names, *(f"frames_{i}" for i in range(cameras)))
    index, *arrays = open_arrays(folder, split, files, lambda index: sum(e["length"] for e in index["episodes"][split]))
    episodes = index["episodes"][split]
    bounds = np.cumsum([0, *(e["length"] for e in episodes)])
    latents, valid, actions, proprio = (np.array(array) for array in arrays[: len(names)])
    return FlowData(
        tuple(arrays[len(names) :]),
        latents,
        valid,
        actions,
        proprio,
        bounds,
        np.union1d(bounds, index.get("cuts", {}).get(split, [])).astype(int),
        tuple(e["task"] for e in episodes),
        tuple(e["name"] for e in episodes),
        np.array([e["acts"] for e in episodes], bool),
    )


def label_some(data: FlowData, labels: int | None, seed: int) -> FlowData:
    """The same steps with ``labels`` labelled episodes of each task (all where it has no more), drawn by ``seed``.

    The episodes of a larger number contain those of a smaller one. Raises LaminaError where none is labelled.
    """
    if not data.labelled.any():
        raise LaminaError("no training episode has actions, and a policy needs some")
    if labels is None:
        return data
    chosen = np.zeros_like(data.labelled)
    for task in dict.fromkeys(data.tasks):
        of_task = np.array([e for e, name in enumerate(data.tasks) if name == task and data.labelled[e]], int)
        order = np.random.default_rng([seed, *task.encode()]).permutation(of_task)
        chosen[order[:labels]] = True
    return dataclasses.replace(data, labelled=chosen)


def statistics_of(data: FlowData) -> Statistics:
    """Units of everything that the policy reads and generates: of the labelled actions, and of all latents and proprioception."""

    def spread(values: Float[np.ndarray, "n *d"]) -> tuple[Tensor, Tensor]:
        values = np.asarray(values, np.float64)
        mean, std = (values.mean(0), values.std(0)) if len(values) else (np.zeros(values.shape[1:]),) * 2
        return torch.from_numpy(mean).float(), torch.from_numpy(std).float()

    actions = torch.from_numpy(np.array(data.actions[data.steps(labelled=True)]))
    return Statistics(actions, *spread(data.latents[data.valid]), *spread(data.proprio))


def rows_at(data: FlowData, rows: Int[np.ndarray, "b"], config: FlowConfig, stride: int) -> FlowBatch:
    """The batch whose rows begin at these steps. ``stride``: frames from one latent to the next."""
    episode = np.searchsorted(data.bounds, rows, side="right") - 1
    shot = np.searchsorted(data.shots, rows, side="right") - 1
    begin, last = data.shots[shot][:, None], data.shots[shot + 1][:, None] - 1
    back = np.arange(config.context)[::-1] * config.executed
    seen = np.maximum(rows[:, None] - back, begin)  # [b t]
    frames = np.stack([pictures[seen] for pictures in data.frames], axis=1)  # [b v t h w c]
    ahead = rows[:, None] + np.arange(config.actions)
    latent = latent_valid = None
    if data.latents.shape[2]:
        pairs = rows[:, None] + stride * np.arange(config.steps_of_latents)
        inside = np.minimum(pairs, last)
        latent = torch.from_numpy(data.latents[inside])
        latent_valid = torch.from_numpy((pairs <= last) & data.valid[inside])
    return FlowBatch(
        Context(
            torch.from_numpy(np.ascontiguousarray(frames.transpose(0, 1, 2, 5, 3, 4))),
            torch.from_numpy(data.proprio[seen]) if data.proprio.shape[1] else None,
            tuple(data.tasks[e] for e in episode),
        ),
        torch.from_numpy(data.actions[np.minimum(ahead, last)]),
        torch.from_numpy((ahead <= last) & data.labelled[episode][:, None]),
        latent,
        latent_valid,
    )


class FlowStream:
    """Endless batches; each row is a function of (seed, batch number, shard).

    Rows are drawn uniformly from the steps of labelled episodes. Where there are latents and unlabelled episodes, only ``share`` of the
    rows are, and the others are drawn from the steps of those. Where that is no whole number of a shard's rows, shards and batches that
    follow one another differ by one.
    """

    def __init__(
        self,
        data: FlowData,
        config: FlowConfig,
        stride: int,
        batch: int,
        seed: int,
        shards: int = 1,
        own: Sequence[int] | None = None,
    ):
        self.data, self.config, self.stride, self.seed = data, config, stride, seed
        self.each, self.shards, self.mine = batch // shards, shards, range(shards) if own is None else own
        self.share = Fraction(str(config.share))
        self.labelled, self.others = data.steps(labelled=True), data.steps(labelled=False)
        if not (len(self.others) and data.latents.shape[2]):
            self.share = Fraction(1)
        self.drawn = 0

    def rows(self, batch: int, shard: int) -> Int[np.ndarray, "b"]:
        """The steps at which the rows of one shard begin, labelled ones first."""
        rng, labelled = np.random.default_rng([self.seed, batch, shard]), self.count(batch, shard)
        return np.concatenate([rng.choice(self.labelled, labelled), rng.choice(self.others, self.each - labelled)])

    def count(self, batch: int, shard: int) -> int:
        """How many rows of one shard are labelled."""
        number = batch * self.shards + shard  # of all parts of batches, one after the other
        before, after = (math.floor(self.share * self.each * n) for n in (number, number + 1))
        return after - before

    def __iter__(self) -> Iterator[FlowBatch]:
        usual = float(len(self.mine) * self.each * self.share)
        while True:
            labelled = sum(self.count(self.drawn, shard) for shard in self.mine)
            rows = np.concatenate([self.rows(self.drawn, shard) for shard in self.mine])
            self.drawn += 1
            weight = torch.full((len(rows),), labelled / usual if usual else 0.0)
            yield replace(rows_at(self.data, rows, self.config, self.stride), action_weight=weight)

    def state_dict(self) -> dict[str, int]:
        return {"drawn": self.drawn}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.drawn = non_negative(state, "drawn")

    def close(self) -> None:
        """Nothing is open but memory maps."""


def fixed_batch(data: FlowData, config: FlowConfig, stride: int, limit: int = 256) -> FlowBatch:
    """At most ``limit`` rows, evenly spread over a split."""
    return rows_at(data, evenly_spaced(len(data), limit), config, stride)
