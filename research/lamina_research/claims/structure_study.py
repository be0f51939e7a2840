"""What the experiments on structured latents share: data, LAMs on one backbone, and the structural record of each.

All LAMs of a setup have the same encoder and decoder, are trained on the same clips in the same order for the same number of steps, and
are measured on the same held-out windows. Methods that train on frame pairs get the two neighbouring pairs of each triplet.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from lamina.data.sampling import DataConfig
from lamina.evaluation.pictures import composed_picture
from lamina.evaluation.probes import structure as structural
from lamina.evaluation.probes.structure import StructureData
from lamina.inference.subject import RANDOM, Subject, pixel_change, random_weights_subject, subject_of
from lamina.methods import ac_lam, alam, fixed_k, flexlam, lapa, lapo, univla, villa_x
from lamina.models.config import SizeName
from lamina.models.hub import Provenance
from lamina.training.settings import TrainConfig
from lamina.types import Clip
from lamina_research.seeds import Metrics, over_seeds
from lamina_research.study import Collection, ModelSpec, Study, StudySetup

Record = dict[str, Any]  # of one LAM, by lamina.evaluation.probes.structure.measure
Records = dict[str, list[Record]]  # by the LAM's label, one for each seed


@dataclass(frozen=True)
class StructureSetup(StudySetup):
    """The settings of one scale. A method with two training stages gets half of the steps for each."""

    environments: tuple[Collection, ...]  # of the leakage probe, beside the two cameras of ``data``
    shorter: int  # steps, for claims that compare many LAMs
    gap: tuple[float, float]  # seconds between the frames of training triplets
    stride: float  # seconds, of the probes: k; training sees up to 2 k
    windows: int  # number of held-out windows, and of held-out triplets
    leakage: int  # latents from each environment
    smaller: tuple[SizeName, ...]  # sizes below that of the options, to show a trend
    span: float | None = None  # seconds from the first frame of a training triplet to its last, at most
    split: str = "test"
    mixed: bool = False  # train on ``data`` and all environments, in equal shares for each camera


BACKBONE = {"encoder": "conv", "decoder": "unet", "frames": 3}
SETUPS = {
    "smoke": StructureSetup(
        Collection("metaworld/reach-v3", 500, noise=0.4, hold=12, size=(32, 32)),
        {"size": "debug", "image": (32, 32), "slots": 4, **BACKBONE},
        TrainConfig(steps=6, batch=8, lr=1e-3, ema=0.0, device="cpu", checkpoint_every=6, validate_every=6),
        (Collection("grid", 300, noise=0.4, size=(32, 32)),),
        shorter=6, gap=(0.03, 0.06), stride=0.06, windows=12, leakage=40, smaller=("debug",),
    ),
    "cpu": StructureSetup(
        Collection("metaworld-suite", 14_000, noise=0.4, hold=12),
        {"size": "tiny", "image": (32, 32), "slots": 8, **BACKBONE},
        TrainConfig(
            steps=3000, batch=32, lr=2e-3, optimizer="muon", ema=0.99, device="cpu", checkpoint_every=250, validate_every=250,
        ),
        (Collection("cheetah", 4000, noise=0.4), Collection("my_way_home", 4000, noise=0.4)),
        shorter=2000, gap=(0.1, 1.5), span=1.5, stride=0.2, windows=384, leakage=1000, smaller=("debug",),
    ),
    "gpu": StructureSetup(
        Collection("metaworld-suite", 200_000, noise=0.4, hold=12),
        {"size": "small", "image": (64, 64), "slots": 16, **BACKBONE},
        TrainConfig(steps=40_000, batch=128, lr=5e-4, device="cuda", precision="bf16", checkpoint_every=2000),
        (Collection("cheetah", 40_000, noise=0.4), Collection("my_way_home", 40_000, noise=0.4)),
        shorter=40_000, gap=(0.1, 0.2), stride=0.2, windows=2048, leakage=3200, smaller=("debug", "tiny"),
    ),
}  # fmt: skip


def alam_model(seed: int, structured: bool = True) -> ModelSpec:
    """ALAM, or the same encoder trained on the same clips without its two losses. Its latent is read before the quantiser, as in the paper.

    It has many narrow slots, as in the paper (256): latents of a few wide slots, each with seven codes, hardly add up.
    """
    weight = 0.01 if structured else 0.0
    options = {"composition": weight, "reversal": weight, "decoded": "one", "slots": 32, "code_dim": 4}
    return ModelSpec(alam, seed, options, "ALAM" if structured else "without the losses", "continuous")


#: The forms of AC-LAM's composition loss, and their names in Table 5.
FORMS = {
    "fdm": "AC-LAM", "fdm-pre": "pre-VQ", "idm": "IDM", "idm-stop-direct": "IDM, sg on z_ik", "idm-stop-sum": "IDM, sg on the sum"
}  # fmt: skip


#: Settings in which AC-LAM's composition term acts (docs/methods/ac_lam.md): narrow slots, whose quantiser loses less, and weights under
#: which the term's gradient is not a hundredth of the state's.
ACTING = {
    "whiten": "batch", "slots": 32, "code_dim": 4, "codebook_size": 64, "commitment": 0.02, "state": 0.1, "composition": 3.0
}  # fmt: skip


def ac_lam_model(seed: int, form: str = "fdm") -> ModelSpec:
    """AC-LAM, or one of its ablations."""
    return ModelSpec(ac_lam, seed, {**ACTING, "form": form}, FORMS[form])


def rivals(seed: int) -> tuple[ModelSpec, ...]:
    """The methods that AC-LAM's paper compares, with their own objectives and codes on the common backbone.

    On validation, AC-LAM's codes, whitening and state weight made LAPA and villa-X worse, so they do not have them.
    """
    return (
        ModelSpec(lapa, seed, {"whiten": "first"}, "LAPA"),
        ModelSpec(univla, seed, {"stage": 2}, "UniVLA"),
        ModelSpec(villa_x, seed, {"whiten": "first"}, "villa-X"),
    )


def other_methods(seed: int) -> tuple[ModelSpec, ...]:
    """Methods that AC-LAM's paper does not compare, and AC-LAM without its composition loss, without the robot's state, with the codes and
    weights of the papers, and with a pairing of ours.

    AC-LAM also trains on the long pair of each triplet, which methods of pairs never see. AC-LAM without composition shows the effect of
    that alone.
    """
    whitened = {"whiten": "first"}
    return (
        ModelSpec(lapo, seed, whitened, "LAPO"),
        ModelSpec(fixed_k, seed, whitened, "Fixed-K"),
        ModelSpec(flexlam, seed, whitened, "FlexLAM"),
        replace(alam_model(seed), label="ALAM, before VQ"),
        ModelSpec(ac_lam, seed, ACTING | {"composition": 0.0}, "AC-LAM, no composition"),
        ModelSpec(ac_lam, seed, ACTING | {"proprio": None}, "AC-LAM, no state"),
        ModelSpec(ac_lam, seed, ACTING | {"proprio": None, "composition": 0.0}, "AC-LAM, no state, no composition"),
        ModelSpec(ac_lam, seed, whitened, "AC-LAM, villa-X's codes and weights"),
        ModelSpec(ac_lam, seed, ACTING | {"pairing": "antisymmetric"}, "AC-LAM, antisymmetric"),
        ModelSpec(
            ac_lam,
            seed,
            ACTING | {"pairing": "antisymmetric", "composition": 0.0},
            "AC-LAM, antisymmetric, no composition",
        ),
    )


class StructureStudy(Study[StructureSetup]):
    """Data, models and structural records of one scale."""

    setups = SETUPS

    def changed(self, **changes: Any) -> StructureStudy:
        """The same study with a changed setup."""
        return StructureStudy(self.experiment, replace(self.setup, **changes))

    def shorter(self) -> StructureStudy:
        """The same study with fewer training steps, for claims that compare many LAMs."""
        return self.changed(train=replace(self.setup.train, steps=self.setup.shorter))

    def of_size(self, size: SizeName) -> StructureStudy:
        """The same study with LAMs of another size."""
        return self.changed(options=self.setup.options | {"size": size})

    def data(self) -> DataConfig:
        s = self.setup
        plain = DataConfig((str(self.dataset()),), s.options["image"], 3, s.gap, span=s.span, workers=0)
        if not s.mixed:
            return plain
        shares = {s.data: 2, **dict.fromkeys(s.environments, 1)}
        paths = tuple(f"{self.dataset(recipe)}:{share}" for recipe, share in shares.items())
        return replace(plain, data=paths, camera="all", action=None)

    def held(self) -> StructureData:
        """The held-out windows and triplets, the same for all models."""
        s = self.setup
        return _held(self.data(), s.stride, s.windows, s.split)

    def key(self, model: ModelSpec) -> dict[str, Any]:
        s = self.setup
        span = {} if s.span is None else {"span": s.span}
        return super().key(model) | {"gap": s.gap, "environments": s.environments if s.mixed else None} | span

    def subject(self, model: ModelSpec) -> Subject:
        """A trained LAM as the probes read it."""
        return subject_of(self.load(model), model.side, model.label)

    def random_weights(self, model: ModelSpec) -> Subject:
        """The random-weights encoder of a LAM, with its statistics taken from training transitions."""
        return random_weights_subject(self.load(model), _unlabelled(self.data()), model.side, model.seed)

    def record(self, model: ModelSpec) -> Record:
        """The structural record of a trained LAM."""
        return self._record(model, lambda: self.subject(model))

    def _record(self, model: ModelSpec, subject: Callable[[], Subject], name: str = "") -> Record:
        """The record of a subject that comes from a trained LAM; ``name``: of one that is not the LAM itself."""
        s = self.setup
        key = {
            "structure of": self.key(model),
            "windows": s.windows,
            "stride": s.stride,
            "split": s.split,
            "side": model.side,
            "readings": ("centred", "read"),  # of the errors, beside the papers'
            **({"subject": name} if name else {}),
        }
        return self.experiment.cached_value(
            key, (__name__, structural, *self.model_code(model.method)), lambda: structural.measure(subject(), self.held()),
            needs=lambda: self.run(model),
        )  # fmt: skip

    def records(self, models: Callable[[int], Iterable[ModelSpec]], only: Container[str] = ()) -> Records:
        """The records of ``models(seed)`` for all seeds; ``only``: of the LAMs with these labels."""
        every = [model for seed in self.experiment.seeds for model in models(seed)]
        chosen = [model for model in every if not only or model.label in only]
        found: Records = {}
        for model, record in zip(chosen, self.experiment.each(self.record, chosen), strict=True):
            found.setdefault(model.label, []).append(record)
        return found

    def controls(self, model: Callable[[int], ModelSpec]) -> Records:
        """The records of the random-weights encoder of ``model(seed)``, and of the pixel difference."""
        seeds, pixels = self.experiment.seeds, pixel_change()

        def untrained(lam: ModelSpec) -> Record:
            return self._record(lam, lambda: self.random_weights(lam), RANDOM)

        return {
            RANDOM: self.experiment.each(untrained, map(model, seeds)),
            pixels.name: [structural.measure(pixels, self.held())] * len(seeds),
        }

    def composed_picture(self, model: ModelSpec, name: str) -> Path:
        """A picture of held-out triplets with their predictions from direct and composed latents, in the work folder."""
        path = self.experiment.workdir / name
        composed_picture(self.subject(model), self.held().triplets, path, rows=6)
        return path


@lru_cache(maxsize=2)
def _unlabelled(data: DataConfig) -> Clip:
    return structural.unlabelled(data)


@lru_cache(maxsize=2)
def _held(data: DataConfig, stride: float, windows: int, split: str) -> StructureData:
    trained = Provenance(gap_seconds=data.gap, frames=3, span=data.span)
    return structural.held_out(data, trained, windows, split, stride)


def invalid(records: Records) -> dict[str, str]:
    """The LAMs whose scores are invalid for at least one seed, each with the first reason."""
    reasons = {name: [record["void"] for record in of_seeds if record["void"]] for name, of_seeds in records.items()}
    return {name: f"{len(why)} of {len(records[name])} seeds: {why[0]}" for name, why in reasons.items() if why}


def invalid_text(found: Mapping[str, str]) -> str:
    """A sentence for each invalid LAM; empty if there is none."""
    return "".join(f" Invalid: {name} ({why})." for name, why in found.items())


def usage(record: Record) -> dict[str, float]:
    """The PSNR that the right latent gains, in dB; NaN without a decoder of pictures."""
    names = {"gain over another latent, dB": "another", "gain over the mean latent, dB": "mean"}
    return {title: record["use"][name]["mean"] if record["use"] else np.nan for title, name in names.items()}


#: The readings of an error beside the papers' own, and what a record calls them.
READINGS = {"offset removed": "centred", "as the decoder reads it": "read"}


def readings(record: Record, names: Iterable[str]) -> dict[str, float]:
    """The relative errors ``names`` in both readings; NaN where it is not known what the decoder reads."""
    return {
        f"{name}, {title}": record[reading][name]["relative"]["mean"] if record[reading] else np.nan
        for title, reading in READINGS.items()
        for name in names
    }


def tabulate(records: Records, row: Callable[[Record], Mapping[str, float]]) -> Metrics:
    """The metrics that ``row`` reads from each record, with one value per seed."""
    return over_seeds({name: row(record)} for name, of_seeds in records.items() for record in of_seeds)
