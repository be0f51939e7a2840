"""What the claims about policies share: demonstrations, LAMs, flow policies trained on few labels, and their success in closed loop.

All policies of a setup have the same network, steps, labelled episodes and labelled rows in a batch; they differ in the latents that they
generate beside the actions, and in further rows without actions. Demonstrations have seed 1; starts that choices were made on have seed
1000, and those that decide 2000 and more.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from lamina.data.sampling import DataConfig
from lamina.envs.registry import METAWORLD_TIERS, SUITES
from lamina.policies import rollout
from lamina.policies.flow import policy as flow
from lamina.policies.flow import training as flow_training
from lamina.policies.flow.config import FlowConfig, Intervention
from lamina.policies.flow.policy import FlowPolicy
from lamina.training.settings import TrainConfig
from lamina_research.claims.structure_study import BACKBONE
from lamina_research.seeds import Metrics, over_seeds
from lamina_research.study import Collection, ModelSpec, Study, StudySetup

#: A share of 4% of the free steps begins a random action of five steps, so 17% of all actions are random; labels are the expert's.
NOISE: dict[str, Any] = {"noise": 0.1724, "hold": 5, "successes": True}


@dataclass(frozen=True)
class PolicySetup(StudySetup):
    """The settings of one scale."""

    gap: tuple[float, float]  # seconds between the frames of training pairs
    flow: dict[str, Any]  # options of every policy
    policy: TrainConfig  # of every policy
    labels: int  # episodes of each task with actions; the others are without
    counts: tuple[int, ...]  # of labelled episodes, for the curve
    episodes: int  # rollouts of each task
    parallel: int
    steps: int | None = None  # of a rollout at most; None: as many as the suite allows, or the world


SETUPS = {
    "smoke": PolicySetup(
        Collection("metaworld/reach-v3", episodes=5, size=(32, 32), seed=1, **NOISE),
        {"size": "debug", "image": (32, 32), "slots": 4, **BACKBONE},
        TrainConfig(steps=4, batch=8, lr=1e-3, ema=0.0, device="cpu", checkpoint_every=4, validate_every=4),
        gap=(0.05, 0.1), flow={"size": "debug"}, policy=TrainConfig(steps=3, batch=8, lr=1e-3, ema=0.0, device="cpu"),
        labels=1, counts=(1, 2), episodes=1, parallel=1, steps=12,
    ),
    "cpu": PolicySetup(
        Collection("metaworld-mt15", episodes=38, seed=1, **NOISE),
        {"size": "tiny", "image": (64, 64), "slots": 8, **BACKBONE},
        TrainConfig(steps=1500, batch=64, lr=1e-3, optimizer="muon", ema=0.999, device="cpu", checkpoint_every=500, validate_every=500),
        gap=(0.1, 0.2), flow={"size": "tiny", "latent_gap": 0.2, "latent_numbers": 16},
        policy=TrainConfig(
            steps=2000, batch=64, lr=1e-3, optimizer="muon", ema=0.999, device="cpu", checkpoint_every=500, validate_every=1000,
        ),
        labels=5, counts=(1, 2, 5, 10, 25), episodes=10, parallel=2,
    ),
    "gpu": PolicySetup(
        Collection("metaworld-mt50", episodes=62, seed=1, **NOISE),
        {"size": "small", "image": (128, 128), "slots": 16, **BACKBONE},
        TrainConfig(steps=40_000, batch=128, lr=5e-4, device="cuda", precision="bf16"),
        gap=(0.05, 0.1), flow={"size": "small"},
        policy=TrainConfig(steps=40_000, batch=256, lr=5e-4, ema=0.999, device="cuda", precision="bf16"),
        labels=50, counts=(1, 2, 5, 10, 25, 50), episodes=10, parallel=16,
    ),
}  # fmt: skip


#: Episodes played at a time for the values of results/values, whose keys do not say it.
KEPT_PARALLEL = 2


@dataclass(frozen=True)
class PolicySpec:
    """A policy of a study: the LAM whose latents it generates (None: actions alone), its seed, and options that differ from the setup's.

    ``all_episodes``: episodes without actions train the latents, too; otherwise labelled ones alone. ``as_many_rows``: without latents, but
    with as large a batch as with them.
    """

    label: str
    seed: int
    lam: ModelSpec | None = None
    labels: int | None = None  # default: the setup's
    all_episodes: bool = True
    as_many_rows: bool = False
    flow: Mapping[str, Any] = field(default_factory=dict, hash=False)


class PolicyStudy(Study[PolicySetup]):
    """Demonstrations, LAMs, policies and their success at one scale."""

    setups = SETUPS

    def data(self) -> DataConfig:
        """The triplets, of every camera, that LAMs train on. Methods of pairs get the two neighbouring pairs of each."""
        s = self.setup
        return DataConfig(
            (str(self.dataset()),), s.options["image"], s.options["frames"], s.gap, camera="all", action=None
        )

    def key(self, model: ModelSpec) -> dict[str, Any]:
        return super().key(model) | {"gap": self.setup.gap, "camera": "all"}

    def config(self, policy: PolicySpec) -> FlowConfig:
        """All options of a policy."""
        options = {**self.setup.flow, "labels": policy.labels or self.setup.labels, **policy.flow}
        if policy.lam is None:
            options["latents"] = "none"
        if not policy.all_episodes:
            options["share"] = 1.0
        return FlowConfig(**options)

    def training(self, policy: PolicySpec) -> TrainConfig:
        """How a policy is trained. Rows without actions come on top: every policy but the control that has as many rows in all has the same
        number of labelled rows in a batch."""
        training = replace(self.setup.policy, seed=policy.seed)
        on_top = policy.as_many_rows or (policy.lam is not None and policy.all_episodes)
        return replace(training, batch=round(training.batch / self.config(policy).share)) if on_top else training

    def policy_key(self, policy: PolicySpec) -> dict[str, Any]:
        """Everything that a policy's weights depend on, beside the code."""
        # A policy of actions alone reads nothing of a LAM but the size of its pictures.
        lam = {"image": self.setup.options["image"]} if policy.lam is None else self.key(policy.lam)
        return {
            "lam": lam,
            "flow": asdict(self.config(policy)),
            "policy": self.training(policy),
            "demonstrations": self.setup.data,
        }

    def policy(self, policy: PolicySpec, any_lam: ModelSpec) -> Path:
        """The run folder of a policy. ``any_lam``: what gives its model folder to a policy without latents."""

        def build(path: Path) -> None:
            run = self.run(policy.lam or any_lam)
            shutil.copytree(run / "model", path / "model", dirs_exist_ok=True)
            begun = (path / "policy" / "training.json").exists()
            training = replace(self.training(policy), resume=begun)
            # Encoded once for all policies of a LAM: a gigabyte, and minutes.
            shared, own = run / ("actions" if policy.lam is None else "latents"), path / "policy" / "frames"
            if shared.is_dir() and not own.exists():
                own.parent.mkdir(exist_ok=True)
                own.symlink_to(shared.resolve())
            flow_training.train_flow_policy(path, [str(self.dataset())], self.config(policy), training)
            if not own.is_symlink() and not shared.exists():
                with suppress(OSError):  # another policy of this LAM, in another process, was faster
                    own.rename(shared)
            shutil.rmtree(path / "policy" / "checkpoints")

        title = f"policy: {policy.label}, {self.config(policy).labels} labels, seed {policy.seed}"
        return self.experiment.cached(self.policy_key(policy), self.policy_code(policy, any_lam), build, title)

    def policy_code(self, policy: PolicySpec, any_lam: ModelSpec) -> tuple[ModuleType | str, ...]:
        """The modules that a policy's weights depend on."""
        return flow_training, *self.model_code((policy.lam or any_lam).method)

    def success(
        self,
        policy: PolicySpec,
        any_lam: ModelSpec,
        worlds: str | None = None,
        intervention: Intervention = "none",
    ) -> dict[str, float]:
        """Success in percent: the mean over the tasks, and over those of each tier. ``worlds``: default, those of the demonstrations."""
        s = self.setup
        name = worlds or s.data.world
        key = {
            "success of": self.policy_key(policy),
            "worlds": name,
            "episodes": s.episodes,
            "intervention": intervention,
        }
        # A row's noise is a function of its number, and episodes are shared out among the rows.
        if s.parallel != KEPT_PARALLEL:
            key["parallel"] = s.parallel
        if s.steps is not None:
            key["steps"] = s.steps

        def compute() -> dict[str, Any]:
            run = self.policy(policy, any_lam)
            self.experiment.progress(
                f"rollouts: {policy.label}, {self.config(policy).labels} labels, seed {policy.seed}, {name}, {intervention}"
            )
            suite = SUITES.get(name)
            agent = FlowPolicy.from_run(
                run, batch=s.parallel, seed=policy.seed, device=s.policy.device, intervention=intervention
            )
            result = rollout.rollout_worlds(
                agent, suite.worlds if suite else (name,), s.episodes, s.parallel, seed=2000 + policy.seed,
                max_steps=s.steps or (suite.max_steps if suite else None), size=agent.image[1:], progress=False,
            )  # fmt: skip
            return {
                "tasks": {world: [w.tier, w.success] for world, w in result.worlds.items()},
                "decisions_per_second": result.decisions_per_second,
            }

        found = self.experiment.cached_value(
            key, (__name__, rollout, flow, *self.policy_code(policy, any_lam)), compute
        )
        rates = {world: (tier, 100 * float(np.mean(success))) for world, (tier, success) in found["tasks"].items()}
        row = {"success": float(np.mean([rate for _, rate in rates.values()]))}
        for tier in METAWORLD_TIERS:
            if of_tier := [rate for its, rate in rates.values() if its == tier]:
                row[f"success, {tier}"] = float(np.mean(of_tier))
        return row | {f"success, {world}": rate for world, (_, rate) in rates.items()}

    def table(
        self, policies: Callable[[int], Iterable[PolicySpec]], any_lam: Callable[[int], ModelSpec], **options: Any
    ) -> Metrics:
        """The success of each policy, one value a seed."""
        every = [policy for seed in self.experiment.seeds for policy in policies(seed)]
        return over_seeds(
            self.experiment.each(lambda one: {one.label: self.success(one, any_lam(one.seed), **options)}, every)
        )
