"""Every structural probe of one subject on held-out video, as one JSON-able record: what `lamina evaluate` and the claims report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from lamina.data.sampling import DataConfig, feature_width
from lamina.data.stream import sample_split
from lamina.evaluation.probes.algebra import Structure, horizons, structure
from lamina.evaluation.probes.horizon import Scores, elsewhere, reconstruct_horizons, transfer
from lamina.evaluation.probes.usage import LatentUse, latent_use
from lamina.inference.subject import Place, Subject, pixel_change, random_weights_subject, subject_of
from lamina.intervals import bootstrap_mean
from lamina.models.hub import LatentActionModel, Provenance
from lamina.types import Clip

STRIDES = 5
STATE = "observation.state"
FILLING = 1024


@dataclass(frozen=True)
class StructureData:
    """What the structural probes look at: windows of STRIDES strides, and triplets with gaps as in training."""

    windows: Clip
    triplets: Clip
    stride: float  # seconds
    seen: int  # strides that training has met
    unlabelled: Clip | None = None  # transitions of the training split, for the statistics of an untrained encoder


def held_out(
    data: DataConfig, trained: Provenance, limit: int = 256, split: str = "test", stride: float | None = None
) -> StructureData:
    """Windows and triplets of a split. ``stride``: seconds; default: the middle of the training gaps.

    Raises LaminaError where no episode is long enough for a window.
    """
    stride = stride or trained.label_gap
    proprio = STATE if feature_width(data, STATE) is not None else None
    plain = replace(data, action=None, actions="first", paired=None, targets=(), workers=0)
    windows = sample_split(replace(plain, frames=STRIDES + 1, gap=(stride, stride)), split, limit)
    triplets = sample_split(replace(plain, frames=3, gap=trained.gap_seconds, proprio=proprio), split, limit)
    longest = trained.gap_seconds[1] * (trained.frames - 1)
    return StructureData(windows, triplets, stride, int(longest / stride + 1e-6), unlabelled(data))


def unlabelled(data: DataConfig) -> Clip:
    """Transitions of the training split without anything but their frames: what fills the statistics of an untrained encoder."""
    plain = replace(data, action=None, actions="first", paired=None, targets=(), workers=0, frames=2, span=None)
    return sample_split(plain, "train", FILLING)


def places(model: LatentActionModel) -> tuple[Place, ...]:
    """Where a model's latents can be read: a model without a quantiser has one place."""
    return ("post",) if model.lam.bottleneck.codebook_size is None else ("pre", "post")


def measure(subject: Subject, held: StructureData) -> dict[str, Any]:
    """The record of one subject. ``void``: why its structure is worth nothing; null where it is worth something."""
    w, t = held.windows, held.triplets
    found = structure(subject, t.frames, t.episode, t.proprio)
    use = latent_use(subject, w.frames[:, 0], w.frames[:, 1], w.episode) if subject.predict else None
    steps = (
        {h.t: h for h in reconstruct_horizons(subject, w.frames, held.seen)}
        if subject.predict and subject.pictures
        else {}
    )
    record: dict[str, Any] = {
        "name": subject.name,
        "void": void(found, use),
        "use": None if use is None else {name: getattr(use, name).to_dict() for name in ("another", "mean", "copy")},
        "spread": found.spread,
        **{name: getattr(found, name).to_dict() for name in ("composition", "identity", "inverse")},
        "displacement": None if found.displacement is None else found.displacement.to_dict(),
        "horizons": [
            {
                "t": h.t,
                "seen": h.seen,
                "addition": h.addition.to_dict(),
                "reversal": h.reversal.to_dict(),
                "length": h.length.to_dict(),
                **{
                    way: _means(getattr(steps[h.t], way), w.episode)
                    for way in ("direct", "cumulative", "copy")
                    if h.t in steps
                },
            }
            for h in horizons(subject, w.frames, w.episode, held.seen)
        ],
    }
    if steps:
        moved = transfer(subject, t.frames, t.frames[elsewhere(t.episode, t.episode), 0])
        names = ("agreement", "by_chance", "margin", "moved")
        record["transfer"] = {name: bootstrap_mean(getattr(moved, name), t.episode).to_dict() for name in names}
    return record


def void(found: Structure, use: LatentUse | None) -> str | None:
    """Why there is no structure to score; None where there is."""
    if found.collapsed:
        return "collapsed: every transition has the same latent"
    if use is not None and not use.used:
        return use.told()
    return None


def _means(scores: Scores, episode: torch.Tensor) -> Mapping[str, Any]:
    return {name: bootstrap_mean(values, episode).to_dict() for name, values in scores.items()}


def measure_model(model: LatentActionModel, held: StructureData) -> list[dict[str, Any]]:
    """A checkpoint before and after its quantiser, and beside each, as a control, an untrained encoder of the same shape; as a reference
    the change of the pixels, whose algebra is perfect."""
    records = []
    assert held.unlabelled is not None
    words = {"pre": "before the quantiser", "post": "after the quantiser"}
    for place in places(model):
        told = words[place] if len(places(model)) > 1 else "latent"
        bare = random_weights_subject(model, held.unlabelled, place, name=f"random-weights encoder, {told}")
        records.append({"place": place, "role": "model", **measure(subject_of(model, place, told), held)})
        records.append({"place": place, "role": "control", **measure(bare, held)})
    records.append({"place": None, "role": "reference", **measure(pixel_change(), held)})
    return records


def both_forms(found: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The scale-free form of each error, and the raw one."""
    return {f"{name}{end}": found[name][form] for form, end in (("relative", ""), ("raw", "_raw")) for name in names}


def structure_rows(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows of the structure table of a report, with what the latent is worth to its decoder and to a composed transfer."""
    rows = []
    for r in records:
        errors = both_forms(r, ("composition", "identity", "inverse"))
        use = {"gain_another": r["use"]["another"], "gain_mean": r["use"]["mean"]} if r["use"] else {}
        margin = {"margin": r["transfer"]["margin"]} if r["use"] and "transfer" in r else {}
        rows.append(
            {
                "name": r["name"],
                "role": r["role"],
                "k": None,
                "displacement": r["displacement"],
                **errors,
                **use,
                **margin,
            }
        )
    return rows


def horizon_rows(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows of the table over horizons: ``k`` is the horizon in strides."""
    rows = []
    for r in records:
        for h in r["horizons"]:
            psnr = {way: h[way]["psnr"] for way in ("direct", "cumulative") if way in h}
            rows.append(
                {"name": r["name"], "role": r["role"], "k": h["t"], **both_forms(h, ("addition", "reversal")), **psnr}
            )
    return rows
