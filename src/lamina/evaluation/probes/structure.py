"""All structural probes of one subject on held-out video, as one JSON-able record, for `lamina evaluate` and the claims."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from lamina import methods
from lamina.data.sampling import DataConfig, feature_width
from lamina.data.stream import sample_split
from lamina.evaluation.probes.algebra import Structure, horizons, structure
from lamina.evaluation.probes.horizon import Scores, other_episode, reconstruct_horizons, transfer
from lamina.evaluation.probes.usage import LatentUse, latent_use
from lamina.inference.subject import RANDOM, Subject, pixel_change
from lamina.intervals import bootstrap_mean
from lamina.models.config import Side
from lamina.models.hub import LatentActionModel, Provenance
from lamina.types import Clip

STRIDES = 5
STATE = "observation.state"
FILLING = 1024
ERRORS = ("composition", "identity", "inverse")  # Eq. 7, 9 and 10 of AC-LAM


def sum_side(model: LatentActionModel) -> Side:
    """The side of the quantiser on which sums of a model's latents are taken: where its method trains them to add up, else where its latent
    action is read. Sums before the quantiser are quantised."""
    return methods.sum_side(model.provenance.method) or model.config.action_side


@dataclass(frozen=True)
class StructureData:
    """Data of the structural probes: windows of STRIDES strides, and triplets with gaps as in training."""

    windows: Clip
    triplets: Clip
    stride: float  # seconds
    seen: int  # strides that training has met
    unlabelled: Clip | None = None  # transitions of the training split, for the statistics of a random-weights encoder


def held_out(
    data: DataConfig, trained: Provenance | Subject, limit: int = 256, split: str = "test", stride: float | None = None
) -> StructureData:
    """Windows and triplets of a split. ``stride``: seconds; default: the middle of the training gaps.

    Raises LaminaError where no episode is long enough for a window.
    """
    stride = stride or trained.label_gap
    proprio = STATE if feature_width(data, STATE) is not None else None
    plain = replace(data, action=None, actions="first", paired=None, targets=(), workers=0)
    windows = sample_split(replace(plain, frames=STRIDES + 1, gap=(stride, stride)), split, limit)
    of_training = replace(plain, frames=3, gap=trained.gap_seconds, span=trained.span, proprio=proprio)
    triplets = sample_split(of_training, split, limit)
    longest = min(trained.gap_seconds[1] * (trained.frames - 1), trained.span or math.inf)
    return StructureData(windows, triplets, stride, int(longest / stride + 1e-6), unlabelled(data))


def unlabelled(data: DataConfig) -> Clip:
    """Frames of transitions of the training split, which fill the statistics of a random-weights encoder."""
    plain = replace(data, action=None, actions="first", paired=None, targets=(), workers=0, frames=2, span=None)
    return sample_split(plain, "train", FILLING)


#: What a record calls each side of the quantiser ("place"), and its title.
SIDES: dict[Side, tuple[str, str]] = {
    "continuous": ("pre", "before the quantiser"),
    "quantised": ("post", "after the quantiser"),
}


def measure(subject: Subject, held: StructureData) -> dict[str, Any]:
    """The record of one subject. ``void``: why its structure scores are invalid; None if they are valid."""
    w, t = held.windows, held.triplets
    read = subject.read(w.frames[:, 0], w.frames[:, 1]) if subject.read else None
    found = structure(subject, t.frames, t.episode, t.proprio, read)
    use = latent_use(subject, w.frames[:, 0], w.frames[:, 1], w.episode) if subject.decode else None
    steps = {h.t: h for h in reconstruct_horizons(subject, w.frames, held.seen)} if subject.pictures else {}
    ways = ("direct", "cumulative", "copy")
    record: dict[str, Any] = {
        "name": subject.name,
        "void": invalid(found, use),
        "use": None if use is None else asdict(use),
        **asdict(found),
        "horizons": [
            asdict(h) | {way: _means(getattr(steps[h.t], way), w.episode) for way in ways if h.t in steps}
            for h in horizons(subject, w.frames, w.episode, held.seen, read)
        ],
    }
    if steps:
        moved = transfer(subject, t.frames, t.frames[other_episode(t.episode, t.episode), 0])
        names = ("agreement", "by_chance", "margin", "moved")
        record["transfer"] = {name: bootstrap_mean(getattr(moved, name), t.episode).to_dict() for name in names}
    return record


def invalid(found: Structure, use: LatentUse | None) -> str | None:
    """Why the structure scores are invalid; None if they are valid."""
    if found.collapsed:
        return "collapsed: every transition has the same latent"
    if use is not None and not use.used:
        return use.text()
    return None


def _means(scores: Scores, episode: torch.Tensor) -> Mapping[str, Any]:
    return {name: bootstrap_mean(values, episode).to_dict() for name, values in scores.items()}


def measure_sides(subject: Subject, held: StructureData) -> list[dict[str, Any]]:
    """The records of a subject before and after its quantiser, each followed by its random-weights control, and of the change of the
    pixels, a reference with exact algebra."""
    records = []
    assert held.unlabelled is not None
    sides: Mapping[Side, Subject] = subject.sides or {"quantised": subject}
    for side, read in sides.items():
        place, title = SIDES[side]
        title = title if subject.sides else "latent"
        records.append({"place": place, "role": "model", **measure(replace(read, name=title), held)})
        if read.control:
            control = replace(read.control(held.unlabelled, 1), name=f"{RANDOM}, {title}")
            records.append({"place": place, "role": "control", **measure(control, held)})
    records.append({"place": None, "role": "reference", **measure(pixel_change(), held)})
    return records


def both_forms(found: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The scale-free form of each error, and the raw one."""
    return {f"{name}{end}": found[name][form] for form, end in (("relative", ""), ("raw", "_raw")) for name in names}


def structure_rows(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows of a report's structure table, with the gain of the right latent and the margin of a composed transfer."""
    rows = []
    for r in records:
        row = {name: r[name] for name in ("name", "role")} | {"k": None, "displacement": r["displacement"]}
        row |= both_forms(r, ERRORS) | {"offset": r["offset"]}
        for reading in ("centred", "read"):
            if r[reading]:
                row |= {f"{name}_{reading}": r[reading][name]["relative"] for name in ERRORS}
        if r["use"]:
            row |= {"gain_another": r["use"]["another"], "gain_mean": r["use"]["mean"]}
            row |= {"margin": r["transfer"]["margin"]} if "transfer" in r else {}
        rows.append(row)
    return rows


def horizon_rows(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows of the table over horizons: ``k`` is the horizon in strides."""
    rows = []
    for r in records:
        for h in r["horizons"]:
            psnr = {way: h[way]["psnr"] for way in ("direct", "cumulative") if way in h}
            row = {"name": r["name"], "role": r["role"], "k": h["t"]}
            read = {name: h[name]["relative"] for name in ("addition_read", "reversal_read") if h[name]}
            rows.append(row | both_forms(h, ("addition", "reversal")) | read | psnr)
    return rows
