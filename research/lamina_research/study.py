"""What experiments on trained LAMs share: datasets and models, each made at most once and found again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Generic, TypeVar

from lamina.data.sampling import DataConfig
from lamina.envs import collect
from lamina.envs.registry import module_of
from lamina.files import write_text
from lamina.models.config import Side
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
    """The recipe of a dataset: arguments of :func:`lamina.envs.collect.collect`. Give either ``frames`` or ``episodes``."""

    world: str
    frames: int | None = None
    episodes: int | None = None
    noise: float = 0.15  # share of random actions
    hold: int = 1  # steps for which a random action is held
    size: ImageSize = (64, 64)
    seed: int = 7
    successes: bool = False  # keep successful episodes only


@dataclass(frozen=True)
class ModelSpec:
    """A LAM of a study: its method, seed, and the options that differ from the setup's."""

    method: ModuleType
    seed: int
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    label: str = ""  # its name in tables and figures
    side: Side = "quantised"  # the latent that probes read

    @property
    def name(self) -> str:
        return self.method.__name__.rpartition(".")[2]

    @property
    def title(self) -> str:
        """The method with the options that differ, and the seed: "fixed_k slots=4, seed 0"."""
        return f"{' '.join([self.name, *(f'{n}={v}' for n, v in self.options.items())])}, seed {self.seed}"


@dataclass(frozen=True)
class StudySetup:
    """What every study needs at a scale; studies add their own fields."""

    data: Collection
    options: dict[str, Any]  # of every LAM
    train: TrainConfig  # of every LAM


S = TypeVar("S", bound=StudySetup)


class Study(ABC, Generic[S]):
    """Datasets and models of an experiment at one scale."""

    setups: ClassVar[Mapping[str, Any]]  # by scale

    def __init__(self, experiment: Experiment, setup: S | None = None):
        self.experiment = experiment
        self.setup: S = setup or self.setups[experiment.scale]

    def dataset(self, recipe: Collection | None = None) -> Path:
        """The folder of a dataset (default: the setup's)."""
        recipe = recipe or self.setup.data

        def build(path: Path) -> None:
            collect.collect(out=path / "data", **asdict(recipe), progress=False)

        return self.experiment.cached({"collected": recipe}, self.code(recipe), build) / "data"

    def code(self, recipe: Collection) -> tuple[ModuleType | str, ...]:
        """The modules that a dataset depends on; the world's is imported by a computed name."""
        return collect, module_of(recipe.world)

    def model_code(self, *methods: ModuleType) -> tuple[ModuleType | str, ...]:
        """The modules that LAMs of these methods depend on, those of their data among them; so does whatever is computed from the LAMs."""
        return pretrain, *methods, *self.code(self.setup.data)

    @abstractmethod
    def data(self) -> DataConfig:
        """The clips that LAMs train on."""

    def options(self, model: ModelSpec) -> dict[str, Any]:
        """All options of a model."""
        return {**self.setup.options, **model.options}

    def key(self, model: ModelSpec) -> dict[str, Any]:
        """Everything that a model's weights depend on, beside the code."""
        s = self.setup
        return {
            "method": model.name, "options": self.options(model), "train": s.train, "seed": model.seed, "data": s.data
        }  # fmt: skip

    def run(self, model: ModelSpec) -> Path:
        """The run folder of a LAM. A method with two stages gets half of the steps for each."""
        stage = model.options.get("stage")
        if stage is None:
            return self.trained(model)
        first = self.run(replace(model, options={**model.options, "stage": 1})) if stage == 2 else None
        return self.trained(model, first, self.setup.train.steps // 2)

    def trained(self, model: ModelSpec, init: Path | None = None, steps: int | None = None) -> Path:
        """The run folder of a LAM, trained from the weights of ``init`` if given, for the setup's number of steps or ``steps``.

        Training that stops because the latents collapsed or exploded leaves no model, and stopped.txt with the reason.
        """
        data = self.data()
        training = replace(self.setup.train, seed=model.seed, resume=True, steps=steps or self.setup.train.steps)

        def build(path: Path) -> None:
            config, filled = filled_in(model.method.Config(**self.options(model)), data)
            try:
                pretrain.pretrain(path, recipe(model.name, model.method, config), filled, training, init)
            except DegenerateLatents as error:
                write_text(path / STOPPED, f"{error.kind}\n")

        return self.experiment.cached(self.key(model), self.model_code(model.method), build, model.title)

    def stopped(self, model: ModelSpec) -> str | None:
        """ "collapse" or "explosion" if that stopped the training, otherwise None."""
        path = self.run(model) / STOPPED
        return path.read_text().strip() if path.exists() else None

    def load(self, model: ModelSpec) -> LatentActionModel:
        return LatentActionModel.from_pretrained(str(self.run(model)))
