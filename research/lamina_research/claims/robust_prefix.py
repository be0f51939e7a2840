"""Does exogenous detail move to the suffix? lamina/robust-prefix.

Cheetah-run whose colours, background and camera are drawn anew at half of the steps (the data of ``exo/swap``), each state rendered under
two exogenous states. FlexLAM, FlexLAM with cross-exogenous reconstruction of whole prefixes, and with ``shared_slots``: the paired view
gives the first half of the slots, the view itself the other half.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lamina.data.sampling import DataConfig
from lamina.data.stream import sample_split
from lamina.evaluation.probes import exogenous
from lamina.evaluation.probes import linear_probe as probe
from lamina.evaluation.probes.exogenous import PairedLatents
from lamina.inference.subject import subject_of
from lamina.methods import flexlam
from lamina.models.heads import ActionHead
from lamina.training.labelled import actions_of
from lamina.training.settings import TrainConfig
from lamina.types import Clip
from lamina_research.claims.exo.cheetah import GAP
from lamina_research.experiment import Experiment, Outcome
from lamina_research.figures import LinePlot
from lamina_research.seeds import Metrics, below, interval, over_seeds, paired_difference
from lamina_research.study import Collection, ModelSpec, Study, StudySetup
from lamina_research.text import signed, yes_no

PLAIN, CROSSED, OURS = "FlexLAM", "cross-exogenous", "robust prefix"
WEIGHT = 4.0  # of cross-exogenous reconstruction; what the view tells of its exogenous state costs nothing where it has slots of its own
LOSS = 0.2  # how many dB of PSNR the whole code may lose


@dataclass(frozen=True)
class RobustSetup(StudySetup):
    """The settings of one scale."""

    tested: int  # transitions that are scored


SETUPS = {
    "smoke": RobustSetup(
        Collection("grid/0.5", 300, noise=0.4, size=(32, 32)),
        {"size": "debug", "image": (32, 32), "slots": 4, "encoder": "conv", "decoder": "unet"},
        TrainConfig(steps=6, batch=8, lr=1e-3, ema=0.0, device="cpu", checkpoint_every=6, validate_every=6), tested=24,
    ),
    "cpu": RobustSetup(
        Collection("cheetah/0.5,0.05,0.5", episodes=60, seed=11),
        {"size": "tiny", "image": (64, 64), "slots": 8, "encoder": "conv", "decoder": "unet"},
        TrainConfig(
            steps=1500, batch=64, lr=1e-3, optimizer="muon", device="cpu", checkpoint_every=250, validate_every=250,
        ),
        tested=2048,
    ),
    "gpu": RobustSetup(
        Collection("cheetah/0.5,0.05,0.5", episodes=500, seed=11),
        {"size": "small", "image": (64, 64), "slots": 16, "decoder": "unet"},
        TrainConfig(steps=20_000, batch=256, lr=5e-4, device="cuda", precision="bf16", checkpoint_every=2000), tested=4096,
    ),
}  # fmt: skip


class RobustStudy(Study[RobustSetup]):
    """Data, LAMs and scores of one scale."""

    setups = SETUPS

    @property
    def shared(self) -> int:
        """m: the slots that both views share in ours."""
        return int(self.setup.options["slots"]) // 2

    def models(self, seed: int) -> tuple[ModelSpec, ...]:
        crossed = {"cross_exogenous": WEIGHT}
        return (
            ModelSpec(flexlam, seed, {}, PLAIN),
            ModelSpec(flexlam, seed, crossed, CROSSED),
            ModelSpec(flexlam, seed, crossed | {"shared_slots": self.shared}, OURS),
        )

    @property
    def gap(self) -> tuple[float, float]:
        """Seconds between the frames of a pair: of the cheetah one decision."""
        return (GAP, GAP) if self.setup.data.world.startswith("cheetah") else (0.1, 0.1)

    def key(self, model: ModelSpec) -> dict[str, Any]:
        return super().key(model) | {"gap": self.gap}

    def data(self) -> DataConfig:
        return DataConfig((str(self.dataset()),), self.setup.options["image"], gap=self.gap, workers=0)

    def clip(self, split: str, limit: int | None) -> Clip:
        data = replace(self.data(), paired="observation.images.paired")
        return sample_split(data, split, limit, require_action=True)

    @cached_property
    def train_clip(self) -> Clip:
        return self.clip("train", None)

    @cached_property
    def test_clip(self) -> Clip:
        return self.clip("test", self.setup.tested)

    def scores(self, model: ModelSpec) -> dict[str, float]:
        """Scores of every prefix, and of the slots behind the first half."""
        key = {"robust prefixes of": self.key(model), "tested": self.setup.tested}
        return self.experiment.cached_value(
            key, (__name__, *self.model_code(flexlam)), lambda: {} if self.stopped(model) else self._measured(model),
            needs=lambda: self.run(model),
        )  # fmt: skip

    def _measured(self, model: ModelSpec) -> dict[str, float]:
        loaded = self.load(model)
        subject, test, train = subject_of(loaded), self.test_clip, self.train_clip
        spec = actions_of(self.data()).spec
        head = ActionHead(spec)
        assert test.action is not None and train.action is not None
        head.calibrate(train.action[:, 0])
        latents = exogenous.views(subject, test)
        fitted = subject.latents(train.frames[:, 0], train.frames[:, 1])
        d = loaded.lam.dim
        found: dict[str, float] = {}

        def changes(name: str, slots: slice) -> None:
            part = slice(slots.start * d, slots.stop * d)
            some = PairedLatents(latents.own[:, part], latents.paired[:, part], latents.crossed[:, part])
            found[f"inconsistency, {name}"] = some.inconsistency(test.episode).mean
            found[f"future change, {name}"] = some.future_change(test.episode).mean

        for k in range(1, loaded.config.slots + 1):
            changes(f"k = {k}", slice(0, k))
            x, y = fitted[:, : k * d], latents.own[:, : k * d]
            score = probe.linear_probe(
                x, head.embed(train.action[:, 0]), y, head.embed(test.action[:, 0]), test.episode, spec
            )
            found[f"nmse, k = {k}"] = score.nmse.mean
            error = subject.error(test.frames[:, 0], subject.truncated(latents.own, k), test.frames[:, 1])
            found[f"psnr, k = {k}"] = decibels(error)
        changes("suffix", slice(self.shared, loaded.config.slots))
        return found


def decibels(error: Tensor) -> float:
    """Mean PSNR of squared errors of pictures in [-1, 1]."""
    return float((10 * torch.log10(4 / error.clamp_min(1e-12))).mean())


def robust(experiment: Experiment) -> Outcome:
    """Inconsistency, probe error and PSNR over k, of FlexLAM with and without both forms of cross-exogenous reconstruction."""
    study = RobustStudy(experiment)
    metrics: Metrics = over_seeds(
        {model.label: study.scores(model)} for seed in experiment.seeds for model in study.models(seed)
    )
    slots = study.setup.options["slots"]
    return decided({n: row for n, row in metrics.items() if row}, study.shared, slots, len(experiment.seeds))


def decided(metrics: Metrics, shared: int, slots: int, seeds: int) -> Outcome:
    """The rule, applied to the scores."""
    stopped = [n for n in (PLAIN, CROSSED, OURS) if len(metrics.get(n, {}).get(f"nmse, k = {slots}", ())) < seeds]
    if PLAIN in stopped or OURS in stopped:
        return Outcome(metrics, False, f"Stopped because its latents collapsed or exploded: {', '.join(stopped)}.")
    ours, plain = metrics[OURS], metrics[PLAIN]
    prefix, whole = f"k = {shared}", f"k = {slots}"

    def moved(row: dict[str, list[float]]) -> list[float]:
        """How much more inconsistent the suffix is than the prefix."""
        pairs = zip(row["inconsistency, suffix"], row[f"inconsistency, {prefix}"], strict=True)
        return [suffix - first for suffix, first in pairs]

    consistent = below(ours[f"inconsistency, {prefix}"], plain[f"inconsistency, {prefix}"])
    read = below(ours[f"nmse, {prefix}"], plain[f"nmse, {prefix}"])
    further = below(moved(plain), moved(ours))
    lost = paired_difference(ours[f"psnr, {whole}"], plain[f"psnr, {whole}"])

    def row(metric: str) -> str:
        return ", ".join(f"{name} {interval(values[metric]).mean:.3f}" for name, values in metrics.items())

    text = (
        f"Consistency loss over chance at {prefix}: {row(f'inconsistency, {prefix}')}; of the slots behind it: "
        f"{row('inconsistency, suffix')}. Probe NMSE at {prefix}: {row(f'nmse, {prefix}')}; at {whole}: {row(f'nmse, {whole}')}. "
        f"PSNR at {whole} changes by {signed(lost)} dB. Prefix more consistent than FlexLAM's: {yes_no(consistent)}; lower probe error: "
        f"{yes_no(read)}; suffix further from the prefix than in FlexLAM: {yes_no(further)}; PSNR kept: {yes_no(lost.mean > -LOSS)}."
    )
    ks = range(1, slots + 1)
    plots = [
        LinePlot(title, label, ks, {n: [v[f"{metric}, k = {k}"] for k in ks] for n, v in metrics.items()}, xlabel="k, slots kept")
        for metric, title, label in (
            ("inconsistency", "Consistency of prefixes", "consistency loss (1 = chance)"),
            ("nmse", "Error of a linear probe", "NMSE of the action"),
        )
    ]  # fmt: skip
    return Outcome(metrics, consistent and read and further and lost.mean > -LOSS, text, plots)
