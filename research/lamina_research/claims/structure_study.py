"""What the experiments on structured latents share: data, LAMs on one backbone, and the structural record of each; all made once.

Every LAM of a setup has the same encoder, decoder and number of slots, sees the same clips in the same order for as many steps, and is
measured on the same held-out windows. Methods of pairs train on the two neighbouring pairs of a triplet.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lamina.data.sampling import DataConfig
from lamina.evaluation.probes import structure as structural
from lamina.evaluation.probes.structure import StructureData
from lamina.files import write_text
from lamina.inference.subject import Subject, pixel_change, random_weights_subject, subject_of
from lamina.methods import ac_lam, alam, fixed_k, flexlam, lapa, lapo, univla, villa_x
from lamina.models.config import Side, SizeName
from lamina.models.hub import LatentActionModel, Provenance
from lamina.training.settings import TrainConfig
from lamina.types import Clip
from lamina_research.experiment import Experiment
from lamina_research.study import STOPPED, Collection, ModelSpec, Study


@dataclass(frozen=True)
class Setup:
    """One scale."""

    data: Collection
    environments: tuple[Collection, ...]  # of the leakage probe, beside the two cameras of ``data``
    options: dict[str, Any]  # of every LAM
    train: TrainConfig  # of every LAM; half of the steps each in the two stages of a LAM that has two
    shorter: int  # steps instead, where a claim compares many LAMs
    gap: tuple[float, float]  # seconds, of training triplets
    stride: float  # seconds, of the probes: k; training meets 2 k
    windows: int  # held-out windows and triplets
    leakage: int  # latents of each environment
    smaller: tuple[SizeName, ...]  # sizes below that of the options, to show a trend
    split: str = "test"


RANDOM, PIXELS = "random weights", "change of the pixels"
SIDES: dict[str, Side] = {"pre": "continuous", "post": "quantised"}
BACKBONE = {"encoder": "conv", "decoder": "unet", "frames": 3}
SETUPS = {
    "smoke": Setup(
        Collection("metaworld/reach-v3", 500, noise=0.4, hold=12, size=(32, 32)),
        (Collection("grid", 300, noise=0.4, size=(32, 32)),),
        {"size": "debug", "image": (32, 32), "slots": 4, **BACKBONE},
        TrainConfig(steps=6, batch=8, lr=1e-3, device="cpu", checkpoint_every=6, validate_every=6),
        shorter=6, gap=(0.03, 0.06), stride=0.06, windows=24, leakage=40, smaller=("debug",),
    ),
    "cpu": Setup(
        Collection("metaworld-suite", 14_000, noise=0.4, hold=12),
        (Collection("cheetah", 4000, noise=0.4), Collection("my_way_home", 4000, noise=0.4)),
        {"size": "tiny", "image": (32, 32), "slots": 8, **BACKBONE},
        TrainConfig(steps=5000, batch=32, lr=2e-3, ema=0.99, device="cpu", checkpoint_every=250, validate_every=250),
        shorter=2500, gap=(0.1, 0.2), stride=0.2, windows=384, leakage=1000, smaller=("debug",),
    ),
    "gpu": Setup(
        Collection("metaworld-suite", 200_000, noise=0.4, hold=12),
        (Collection("cheetah", 40_000, noise=0.4), Collection("my_way_home", 40_000, noise=0.4)),
        {"size": "small", "image": (64, 64), "slots": 16, **BACKBONE},
        TrainConfig(steps=40_000, batch=128, lr=5e-4, device="cuda", precision="bf16", checkpoint_every=2000),
        shorter=40_000, gap=(0.1, 0.2), stride=0.2, windows=2048, leakage=3200, smaller=("debug", "tiny"),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class ModelEntry(ModelSpec):
    """A LAM with its name in tables, and where its latents are read."""

    label: str = ""
    place: Literal["pre", "post"] = "post"


def alam_model(seed: int, structured: bool = True) -> ModelEntry:
    """ALAM, or the same encoder on the same clips without the two losses; read before the quantiser, as in the paper.

    Many narrow slots, as in the paper (256): a few wide ones of seven codes each can hardly add up.
    """
    weight = 0.01 if structured else 0.0
    options = {"composition": weight, "reversal": weight, "decoded": "one", "slots": 32, "code_dim": 4}
    return ModelEntry(alam, seed, tuple(sorted(options.items())), "ALAM" if structured else "without the losses", "pre")


def ac_lam_model(seed: int, form: str = "fdm") -> ModelEntry:
    """AC-LAM, or one of its ablations."""
    names = {
        "fdm": "AC-LAM", "fdm-pre": "pre-VQ", "idm": "IDM", "idm-stop-direct": "IDM, sg on z_ik", "idm-stop-sum": "IDM, sg on the sum"
    }  # fmt: skip
    return ModelEntry(ac_lam, seed, (("form", form),), names[form])


def rivals(seed: int) -> tuple[ModelEntry, ...]:
    """LAPA, UniVLA and villa-X in style: their objectives and codes on the common backbone."""
    return (
        ModelEntry(lapa, seed, (("whiten", "first"),), "LAPA"),
        ModelEntry(univla, seed, (("stage", 2),), "UniVLA"),
        ModelEntry(villa_x, seed, (), "villa-X"),
    )


def other_methods(seed: int) -> tuple[ModelEntry, ...]:
    """The methods that AC-LAM's paper does not compare, and AC-LAM without its term or its model of the robot's state: the first tells
    what composition does by itself, for AC-LAM also meets the long pair of each triplet, which methods of pairs never do.
    """
    whitened = (("whiten", "first"),)
    return (
        ModelEntry(lapo, seed, whitened, "LAPO"),
        ModelEntry(fixed_k, seed, whitened, "Fixed-K"),
        ModelEntry(flexlam, seed, whitened, "FlexLAM"),
        replace(alam_model(seed), label="ALAM, before VQ"),
        ModelEntry(ac_lam, seed, (("composition", 0.0),), "AC-LAM, no composition"),
        ModelEntry(ac_lam, seed, (("proprio", None),), "AC-LAM, no state"),
    )


class StructureStudy(Study[Setup]):
    """Data, models and records of one scale, each made at most once and found again; ``many``: of many LAMs, each trained for less."""

    def __init__(self, experiment: Experiment, setup: Setup | None = None, many: bool = False):
        setup = setup or SETUPS[experiment.scale]
        super().__init__(experiment, replace(setup, train=replace(setup.train, steps=setup.shorter)) if many else setup)

    def of_size(self, size: SizeName) -> StructureStudy:
        """The same laboratory with LAMs of another size."""
        return StructureStudy(self.experiment, replace(self.setup, options=self.setup.options | {"size": size}))

    # ---------------------------------------------------------------------------------------------------------- data

    def data(self, mixture: bool = False, **changes: Any) -> DataConfig:
        """The training clips: of the setup's data, or of every environment of the leakage probe in equal shares."""
        s = self.setup
        size = s.options["image"]
        if not mixture:
            return replace(DataConfig((str(self.dataset()),), size, 3, s.gap, workers=0), **changes)
        paths = [
            f"{self.dataset(recipe)}:{share}" for recipe, share in ((s.data, 2), *((e, 1) for e in s.environments))
        ]
        return replace(DataConfig(tuple(paths), size, 3, s.gap, camera="all", action=None, workers=0), **changes)

    def held(self) -> StructureData:
        """The held-out windows and triplets, the same for every model."""
        s = self.setup
        return _held(self.data(), s.gap, s.stride, s.windows, s.split)

    # -------------------------------------------------------------------------------------------------------- models

    def key(self, model: ModelSpec, mixture: bool = False) -> dict[str, Any]:
        s = self.setup
        return super().key(model) | {"gap": s.gap} | ({"environments": s.environments} if mixture else {})

    def run(self, model: ModelSpec, mixture: bool = False) -> Path:
        """The run folder of a LAM; ``mixture``: trained on every environment of the leakage probe."""
        options = model.within(self.setup.options)
        stage = options.get("stage")  # of a method that has two: each gets half of the steps
        before = self.run(replace(model, options=(("stage", 1),)), mixture) if stage == 2 else None
        steps = self.setup.train.steps // (2 if stage else 1)
        self.experiment.progress(
            f"{model.name} {dict(model.options)}{' on every environment' * mixture}, seed {model.seed}"
        )
        return self.trained(model, options, self.data(mixture), self.key(model, mixture), before, steps)

    def stopped(self, model: ModelSpec) -> str | None:
        """ "collapse" or "explosion" where the training was stopped for it; None where it came to its end."""
        path = self.run(model) / STOPPED
        return path.read_text().strip() if path.exists() else None

    def load(self, model: ModelSpec, mixture: bool = False) -> LatentActionModel:
        return LatentActionModel.from_pretrained(str(self.run(model, mixture)))

    def subject(self, model: ModelEntry, loaded: LatentActionModel) -> Subject:
        """A model as the probes see it."""
        return subject_of(loaded, SIDES[model.place], model.label)

    def unlabelled(self, mixture: bool = False) -> Clip:
        """Training transitions that fill the statistics of an untrained encoder."""
        return _unlabelled(self.data(mixture))

    # ------------------------------------------------------------------------------------------------------- records

    def record(self, model: ModelEntry) -> dict[str, Any]:
        """The structural record of a trained LAM (:func:`lamina.evaluation.probes.structure.measure`)."""
        s = self.setup
        run = self.run(model)
        key = {
            "structure of": self.key(model),
            "windows": s.windows,
            "stride": s.stride,
            "split": s.split,
            "place": model.place,
        }

        def build(path: Path) -> None:
            loaded = LatentActionModel.from_pretrained(str(run))
            found = structural.measure(self.subject(model, loaded), self.held())
            write_text(path / "record.json", json.dumps(found) + "\n")

        folder = self.experiment.cached(key, (structural, model.method), build)
        return json.loads((folder / "record.json").read_text())

    def controls(self, models: Sequence[ModelEntry]) -> dict[str, list[dict[str, Any]]]:
        """The structural records, a model each, of an untrained encoder of its shape, and of the change of the pixels."""
        held = self.held()
        assert held.unlabelled is not None
        bare = [
            structural.measure(
                random_weights_subject(self.load(m), held.unlabelled, SIDES[m.place], m.seed, RANDOM), held
            )
            for m in models
        ]
        return {RANDOM: bare, PIXELS: [structural.measure(pixel_change(PIXELS), self.held())] * len(models)}


@lru_cache(maxsize=2)
def _unlabelled(data: DataConfig) -> Clip:
    return structural.unlabelled(data)


@lru_cache(maxsize=2)
def _held(data: DataConfig, gap: tuple[float, float], stride: float, windows: int, split: str) -> StructureData:
    return structural.held_out(data, Provenance(gap_seconds=gap, frames=3), windows, split, stride)


# ------------------------------------------------------------------------------------------------------------ decisions


def invalid_entries(records: dict[str, list[dict[str, Any]]]) -> dict[str, str]:
    """The methods whose structure is void for at least one seed, and why (the first reason)."""
    found = {}
    for name, of_seeds in records.items():
        reasons = [record["void"] for record in of_seeds if record["void"]]
        if reasons:
            found[name] = f"{len(reasons)} of {len(of_seeds)} seeds: {reasons[0]}"
    return found


def void_text(found: dict[str, str]) -> str:
    """A sentence that names what is void; empty without any."""
    return "".join(f" Void: {name} ({why})." for name, why in found.items())


def gains(records: list[dict[str, Any]]) -> dict[str, list[float]]:
    """What the right latent is worth in dB, seed by seed; NaN where it can't be told."""
    names = {"gain over another latent, dB": "another", "gain over the mean latent, dB": "mean"}
    return {title: [r["use"][name]["mean"] if r["use"] else np.nan for r in records] for title, name in names.items()}
