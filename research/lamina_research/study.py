"""What experiments on trained LAMs share: data and models that are made at most once, and found again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from lamina.data.sampling import DataConfig
from lamina.envs import collect
from lamina.envs.registry import module_of
from lamina.files import write_text
from lamina.models.hub import LatentActionModel
from lamina.training import pretraining as pretrain
from lamina.training.diagnostics import DegenerateLatents
from lamina.training.recipe import filled_in, recipe
from lamina.training.settings import TrainConfig
from lamina.types import ImageSize
from lamina_research.experiment import Experiment

STOPPED = "stopped.txt"


@dataclass(frozen=True)
class Collection:
    """Episodes of scripted experts to collect: so many frames, or so many episodes."""

    world: str
    frames: int | None = None
    episodes: int | None = None
    noise: float = 0.15  # share of random actions
    hold: int = 1  # steps a random action is held
    size: ImageSize = (64, 64)
    seed: int = 7


@dataclass(frozen=True)
class ModelSpec:
    """Which LAM: a method, the options that differ from the setup's, a seed."""

    method: ModuleType
    seed: int
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        return self.method.__name__.rpartition(".")[2]

    def within(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """All its options, given the setup's."""
        return {**options, **dict(self.options)}


@runtime_checkable
class StudySetup(Protocol):
    """What a setup must say."""

    @property
    def data(self) -> Collection: ...
    @property
    def options(self) -> dict[str, Any]: ...  # of every LAM
    @property
    def train(self) -> TrainConfig: ...  # of every LAM


S = TypeVar("S", bound=StudySetup)


class Study(ABC, Generic[S]):
    """An experiment with its setup."""

    def __init__(self, experiment: Experiment, setup: S):
        self.experiment = experiment
        self.setup = setup

    def dataset(self, recipe: Collection | None = None) -> Path:
        """Episodes (the setup's, if no recipe is given), collected once."""
        recipe = recipe or self.setup.data

        def build(path: Path) -> None:
            collect.collect(
                recipe.world, path / "data", frames=recipe.frames, episodes=recipe.episodes, noise=recipe.noise, size=recipe.size,
                seed=recipe.seed, hold=recipe.hold, progress=False,
            )  # fmt: skip

        return self.experiment.cached({"collected": recipe}, self.code(recipe), build) / "data"

    def code(self, recipe: Collection) -> tuple[ModuleType | str, ...]:
        """The modules that collected episodes depend on; worlds are imported by a computed name."""
        return collect, module_of(recipe.world)

    def key(self, model: ModelSpec) -> dict[str, Any]:
        """All that a model depends on."""
        s = self.setup
        return {
            "method": model.name, "options": model.within(s.options), "train": s.train, "seed": model.seed, "data": s.data
        }  # fmt: skip

    def trained(
        self,
        model: ModelSpec,
        options: dict[str, Any],
        data: DataConfig,
        key: dict[str, Any],
        init: Path | None = None,
        steps: int | None = None,
    ) -> Path:
        """The run folder of a LAM with these options (what data and method need is filled in), trained once for ``key``.

        One whose latents collapsed or exploded has no model: it says so in stopped.txt.
        """
        training = replace(self.setup.train, seed=model.seed, resume=True, steps=steps or self.setup.train.steps)

        def build(path: Path) -> None:
            known, asked = filled_in(model.method.Config(**options), data)
            try:
                pretrain.pretrain(path, recipe(model.name, model.method, known), asked, training, init)
            except DegenerateLatents as error:
                write_text(path / STOPPED, f"{error.kind}\n")

        return self.experiment.cached(key, (pretrain, model.method), build)

    @abstractmethod
    def data(self) -> DataConfig:
        """The clips that LAMs train on."""

    def run(self, model: ModelSpec) -> Path:
        """The run folder of a LAM."""
        self.experiment.progress(f"{model.name} {dict(model.options)}, seed {model.seed}")
        return self.trained(model, model.within(self.setup.options), self.data(), self.key(model))

    def load(self, model: ModelSpec) -> LatentActionModel:
        return LatentActionModel.from_pretrained(str(self.run(model)))
