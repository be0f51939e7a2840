"""What the experiments on FlexLAM share: a suite of tasks, LAMs, translators trained on few labels, and policies.

Fixed-K differs from FlexLAM only in the number of slots that it keeps: encoder, decoder, FSQ levels, steps, order of the data, labels
and translator are the same.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lamina.data.sampling import DataConfig, open_source
from lamina.data.stream import sample_split
from lamina.envs.registry import SUITES
from lamina.evaluation.probes import structure as structural
from lamina.evaluation.probes import translation
from lamina.files import write_text
from lamina.inference.encode import observe
from lamina.inference.subject import subject_of
from lamina.methods import fixed_k, flexlam
from lamina.models.heads import Condition, TranslatorConfig
from lamina.models.hub import LatentActionModel
from lamina.policies import rollout, token_training
from lamina.policies import token_model as tokens
from lamina.policies import token_policy as latent
from lamina.policies.token_model import TokenConfig
from lamina.policies.token_policy import TokenPolicy
from lamina.training import alignment as align
from lamina.training.heads import head_training, train_idm, train_translator
from lamina.training.joint import JointObjective, train_joint
from lamina.training.labelled import LabelledTransitions, actions_of, encode_labels, probe_data, split_labels
from lamina.training.recipe import recipe
from lamina.training.settings import TrainConfig
from lamina.types import Clip
from lamina_research.experiment import Experiment
from lamina_research.study import Collection, ModelSpec, Study, StudySetup


@dataclass(frozen=True)
class FlexLAMSetup(StudySetup):
    """The settings of one scale."""

    budgets: tuple[int, ...]  # k of the matched-budget comparison; the last one is K
    labels: int  # scarce: half a percent of the training transitions
    rollout_labels: int  # of the policies that are rolled out; with the scarce ones none is better than random actions
    label_counts: tuple[int, ...]  # of label scaling
    draws: int  # of labels; the score of a seed is their mean
    translator_steps: int
    joint_labels: int  # of joint alignment
    joint: TrainConfig  # of joint alignment
    supervised_steps: int  # of the inverse dynamics model with every label, the upper bound
    decoded: int  # transitions whose reconstruction is scored
    narrow_world: str  # the only source of labels in the narrow-source claim
    tokens: TokenConfig
    policy: TrainConfig  # of the token model
    worlds: tuple[str, ...]  # of the rollouts
    episodes: int  # per world and seed; every seed has others
    parallel: int
    timed: int  # decisions whose latency is measured
    temperature: float = 0.0  # of the generated codes
    split: str = "test"


#: The worlds of the normalised return: the suite without the world of the narrow-source claim, as in the paper (App. A.2).
NORMALIZED = tuple(world for world in SUITES["doom-suite"].worlds if world != "deadly_corridor")

#: At cpu scale the decoder is a U-Net: a rectified flow needs more steps than two cores give. The policies see the present frame alone and
#: draw their codes: with more history, or with the likeliest codes, they play no better than chance (docs/policies.md).
SETUPS = {
    "smoke": FlexLAMSetup(
        Collection("doom-suite", 900, size=(32, 32)), {"size": "debug", "image": (32, 32), "slots": 4, "decoder": "unet"},
        TrainConfig(steps=12, batch=16, lr=1e-3, ema=0.0, device="cpu", checkpoint_every=12, validate_every=12),
        budgets=(1, 4), labels=48, rollout_labels=48, label_counts=(24, 48), draws=1, translator_steps=20,
        joint_labels=48, joint=TrainConfig(steps=4, batch=16, lr=3e-4, ema=0.0, device="cpu", checkpoint_every=4, validate_every=2),
        supervised_steps=10, decoded=32, narrow_world="deadly_corridor",
        tokens=TokenConfig(size="debug", context=6, stride=4),
        policy=TrainConfig(steps=6, batch=4, lr=1e-3, ema=0.0, device="cpu", checkpoint_every=6, validate_every=6),
        worlds=("predict_position",), episodes=2, parallel=2, timed=3,
    ),
    "cpu": FlexLAMSetup(
        Collection("doom-suite", 60_000, size=(32, 32)),
        {"size": "tiny", "image": (32, 32), "slots": 16, "levels": (5, 5, 3), "decoder": "unet"},
        TrainConfig(steps=8000, batch=64, lr=2e-3, optimizer="muon", device="cpu", checkpoint_every=500, validate_every=500),
        budgets=(1, 4, 16), labels=128, rollout_labels=2048, label_counts=(32, 128, 512, 2048), draws=3, translator_steps=600,
        joint_labels=1024,
        joint=TrainConfig(steps=400, batch=64, lr=3e-4, warmup=50, ema=0.0, device="cpu", checkpoint_every=100, validate_every=20),
        supervised_steps=1500, decoded=512, narrow_world="deadly_corridor",
        tokens=TokenConfig(size="tiny", context=1, stride=1, window=8, shift=1 / 16),
        policy=TrainConfig(
            steps=1200, batch=32, lr=2e-3, optimizer="muon", device="cpu", checkpoint_every=200, validate_every=200,
        ),
        worlds=NORMALIZED, episodes=17, parallel=16, timed=100, temperature=0.7,
    ),
    "gpu": FlexLAMSetup(
        Collection("doom-suite", 800_000), {"size": "small", "image": (64, 64), "slots": 64, "decoder": "flow"},
        TrainConfig(steps=60_000, batch=256, lr=3e-4, device="cuda", precision="bf16", compile=True, checkpoint_every=2000),
        budgets=(4, 16, 64), labels=3200, rollout_labels=3200, label_counts=(128, 512, 1024, 3200, 12_800, 51_200), draws=3,
        translator_steps=2000, joint_labels=3200,
        joint=TrainConfig(steps=4000, batch=256, lr=1e-4, ema=0.0, device="cuda", precision="bf16", checkpoint_every=1000),
        supervised_steps=20_000, decoded=2048, narrow_world="deadly_corridor",
        tokens=TokenConfig(size="small"),
        policy=TrainConfig(steps=30_000, batch=64, lr=3e-4, device="cuda", precision="bf16", checkpoint_every=2000),
        worlds=NORMALIZED, episodes=50, parallel=16, timed=100,
    ),
}  # fmt: skip


def flexlam_spec(seed: int, **options: Any) -> ModelSpec:
    """FlexLAM with K slots."""
    return ModelSpec(flexlam, seed, options)


def fixed_k_spec(k: int, seed: int) -> ModelSpec:
    """A Fixed-K that is trained for the budget k alone."""
    return ModelSpec(fixed_k, seed, {"slots": k})


def contenders(k: int, seed: int) -> dict[str, ModelSpec]:
    """The models that are compared at the budget k, by their names there."""
    return {f"FlexLAM@{k}": flexlam_spec(seed), f"Fixed-K{k}": fixed_k_spec(k, seed)}


@dataclass(frozen=True)
class Labels:
    """The labels of a translator, and how it is trained on them."""

    number: int
    draw: int = 0
    tasks: tuple[str, ...] = ()  # take labels only from these; empty: evenly from all
    condition: Condition = "latent+previous"
    joint: bool = False


Losses = dict[int, dict[str, float]]  # held-out loss of a translator in nats, losses[k][task]


class FlexLAMStudy(Study[FlexLAMSetup]):
    """Data, models, translators and policies of one scale."""

    setups = SETUPS

    def __init__(self, experiment: Experiment, setup: FlexLAMSetup | None = None):
        super().__init__(experiment, setup)
        self._latents: dict[tuple[Path, str], LabelledTransitions] = {}

    # ---------------------------------------------------------------------------------------------------------- data

    def narrow_task(self) -> str:
        """The only task with labels in the narrow-source claim."""
        from lamina.envs.doom import SCENARIOS  # here: the list of claims must be readable without the simulator

        return SCENARIOS[self.setup.narrow_world].task

    def data(self) -> DataConfig:
        return DataConfig((str(self.dataset()),), self.setup.options["image"])

    def options(self, model: ModelSpec) -> dict[str, Any]:
        # The levels are those of FlexLAM's and Fixed-K's codes. A reference with another bottleneck has codes of its own.
        known = {f.name for f in fields(model.method.Config)}
        return {name: value for name, value in super().options(model).items() if name != "levels" or name in known}

    def label_data(self, model: LatentActionModel) -> DataConfig:
        """The labelled transitions of a model: the dataset at the model's label gap, which is the same for all models of a setup."""
        return probe_data(model, str(self.dataset()))

    def transitions(self, model: LatentActionModel, split: str) -> Clip:
        """All transitions of a split."""
        return _transitions(self.label_data(model), split)

    def task_of(self, items: LabelledTransitions | Clip) -> list[str]:
        """The task of each transition."""
        episodes = open_source(self.dataset()).episodes
        return [episodes[int(e)].task for e in items.episode]

    def latents(self, model: ModelSpec, split: str) -> LabelledTransitions:
        """All transitions of a split, encoded by a model; kept in memory."""
        key = (self.run(model), split)
        if key not in self._latents:
            loaded = self.load(model)
            self._latents[key] = encode_labels(loaded.lam, self.transitions(loaded, split))
        return self._latents[key]

    def labelled(self, model: ModelSpec, labels: Labels) -> LabelledTransitions:
        """The labelled subset of the training transitions; all models of a seed get the same."""
        items = self.latents(model, "train")
        return items[draw_labels(self.task_of(items), labels, model.seed)]

    def loss_by_task(self, losses: Float[np.ndarray, "n"], test: LabelledTransitions) -> dict[str, float]:
        """Mean loss of the transitions of each task."""
        tasks = np.array(self.task_of(test))
        return {task: float(losses[tasks == task].mean()) for task in dict.fromkeys(tasks.tolist())}

    # --------------------------------------------------------------------------------------------------- translators

    def translator_key(self, model: ModelSpec, labels: Labels) -> dict[str, Any]:
        """Everything that a translator and its losses depend on, beside the code."""
        s = self.setup
        key = {"lam": self.key(model), "labels": labels, "steps": s.translator_steps, "split": s.split}
        return key | ({"joint": s.joint} if labels.joint else {})

    def translator(self, model: ModelSpec, labels: Labels) -> Path:
        """The folder of a translator that is trained on labels, with its held-out losses."""
        s = self.setup
        self.run(model)

        def build(path: Path) -> None:
            loaded = self.load(model)
            few, test = self.labelled(model, labels), self.latents(model, s.split)
            actions, config = actions_of(self.label_data(loaded)), TranslatorConfig(condition=labels.condition)
            if "observation" in labels.condition:
                few, test = (replace(x, observation=observe(loaded.lam, x.clip)) for x in (few, test))  # type: ignore[arg-type]
            train, held = split_labels(few, labels.draw)
            if labels.joint:
                plan = recipe(model.name, model.method, model.method.Config(**self.options(model)))
                training = replace(s.joint, seed=labels.draw, resume=True)
                video = replace(self.label_data(loaded), gap=loaded.provenance.gap_seconds, action=None)
                objective = JointObjective(plan.losses, plan.weights)
                translator, validation = train_joint(
                    loaded.lam, train, held, actions.spec, config, training, objective, video, path / "joint"
                )  # fmt: skip
                loaded.lam.eval()
                assert test.clip is not None
                test = encode_labels(loaded.lam, test.clip)  # the encoder has changed
            else:
                train, held = (replace(part, clip=None) for part in (train, held))
                training = head_training(s.translator_steps, labels.draw)
                translator, validation = train_translator(
                    loaded.lam.prefix, train, held, actions.spec, config, training
                )
            slots = loaded.config.slots
            ks = (slots,) if loaded.config.prefix == "full" else tuple(range(1, slots + 1))
            scores = translation.score_translator(translator, loaded.lam.prefix, test, ks, "", "model")
            asked = align.AlignConfig(str(labels.number), labels.joint, config, tasks=labels.tasks)
            side = loaded.config.action_side
            note = align.note_of(few, actions, asked, side, str(self.dataset()), training, validation)
            align.save_translator(path, translator, note)
            losses = {str(score.k): self.loss_by_task(score.loss, test) for score in scores}
            write_text(path / "losses.json", json.dumps(losses) + "\n")

        return self.experiment.cached(self.translator_key(model, labels), self.translator_code(model), build)

    def translator_code(self, model: ModelSpec) -> tuple[ModuleType | str, ...]:
        """The modules that translators of a LAM, and their losses, depend on."""
        return __name__, align, translation, *self.model_code(model.method)

    def translator_losses(self, model: ModelSpec, labels: Labels) -> Losses:
        """The held-out losses of a translator at every k that the model is made for."""

        def compute() -> dict[str, dict[str, float]]:
            return json.loads((self.translator(model, labels) / "losses.json").read_text())

        found = self.experiment.cached_value(
            {"losses of": self.translator_key(model, labels)}, self.translator_code(model), compute,
            needs=lambda: self.translator(model, labels),
        )  # fmt: skip
        return {int(k): losses for k, losses in found.items()}

    def losses(
        self,
        model: ModelSpec,
        labels: Labels,
        ks: Sequence[int],
        without: Sequence[str] = (),
        draws: int | None = None,
    ) -> dict[int, float]:
        """The held-out loss at each k, mean over tasks and then over the first ``draws`` of labels (all by default).

        ``without``: tasks that are left out.
        """
        drawn = range(self.setup.draws if draws is None else draws)
        found = [self.translator_losses(model, replace(labels, draw=draw)) for draw in drawn]
        return {k: float(np.mean([mean_loss(losses[k], without) for losses in found])) for k in ks}

    def budget_losses(self, labels: Labels, seed: int, without: Sequence[str] = ()) -> dict[str, float]:
        """The held-out loss of FlexLAM and of a separately trained Fixed-K at each budget."""
        budgets = self.setup.budgets
        models = [(flexlam_spec(seed), budgets), *((fixed_k_spec(k, seed), (k,)) for k in budgets)]
        ours, *fixed = self.experiment.each(lambda one: self.losses(one[0], labels, one[1], without), models)
        alone = {f"Fixed-K{k}": losses[k] for k, losses in zip(budgets, fixed, strict=True)}
        return {f"FlexLAM@{k}": loss for k, loss in ours.items()} | alone

    def controls(self, model: ModelSpec, labels: Labels) -> dict[str, float]:
        """Held-out loss of every control and reference of a model, on the first draw of labels."""
        s = self.setup
        key = {"controls of": self.key(model), "labels": labels, "steps": s.translator_steps, "split": s.split}

        def compute() -> dict[str, float]:
            loaded = self.load(model)
            few, test = self.labelled(model, labels), self.latents(model, s.split)
            assert few.clip is not None and test.clip is not None
            training = head_training(s.translator_steps, labels.draw)
            scores = translation.controls(
                subject_of(loaded), few.clip, test.clip, actions_of(self.label_data(loaded)), TranslatorConfig(), training,
                structural.unlabelled(self.data()),
            )  # fmt: skip
            return {score.name: mean_loss(self.loss_by_task(score.loss, test)) for score in scores}

        return self.experiment.cached_value(key, self.translator_code(model), compute, needs=lambda: self.run(model))

    def shuffled_loss(self, model: ModelSpec, labels: Labels, k: int) -> float:
        """The held-out loss at k of a translator of other transitions' latents, mean over tasks and then over the draws of labels."""
        s = self.setup

        def of_draw(labels: Labels) -> float:
            key = {
                "shuffled latents of": self.key(model), "labels": labels, "k": k, "steps": s.translator_steps, "split": s.split,
            }  # fmt: skip

            def compute() -> float:
                loaded, generator = self.load(model), torch.Generator().manual_seed(labels.draw)
                few, test = (
                    translation.shuffled(items, generator)
                    for items in (self.labelled(model, labels), self.latents(model, s.split))
                )
                translator = translation.fit_translator(
                    loaded.lam.prefix, few, actions_of(self.label_data(loaded)), TranslatorConfig(),
                    head_training(s.translator_steps, labels.draw),
                )  # fmt: skip
                (score,) = translation.score_translator(translator, loaded.lam.prefix, test, (k,), "", "control")
                return mean_loss(self.loss_by_task(score.loss, test))

            return self.experiment.cached_value(
                key, self.translator_code(model), compute, needs=lambda: self.run(model)
            )

        return float(np.mean([of_draw(replace(labels, draw=draw)) for draw in range(s.draws)]))

    def supervised(self, seed: int) -> float:
        """Held-out loss of an inverse dynamics model that is trained on every label: a lower bound of a translator's loss."""
        s = self.setup
        key = {"supervised": s.supervised_steps, "data": s.data, "options": s.options, "seed": seed, "split": s.split}
        reference = flexlam_spec(0)  # gives the sizes of the network and the label gap

        def compute() -> float:
            loaded = self.load(reference)
            train, held = split_labels(self.latents(reference, "train"), seed, held=0.05)
            training = head_training(s.supervised_steps, seed, lr=1e-3)
            training = replace(training, validate_every=max(1, s.supervised_steps // 8))
            spec = actions_of(self.label_data(loaded)).spec
            module, _ = train_idm(loaded.lam.config, train, held, spec, training)
            test = self.latents(reference, s.split)
            return mean_loss(self.loss_by_task(translation.score_idm(module, test, "", "reference").loss, test))

        return self.experiment.cached_value(
            key, self.translator_code(reference), compute, needs=lambda: self.run(reference)
        )

    # ------------------------------------------------------------------------------------------------------ policies

    def policy(self, model: ModelSpec) -> Path:
        """A folder with a LAM and the token model of its codes."""
        s = self.setup
        key = {"lam": self.key(model), "tokens": s.tokens, "policy": s.policy}

        def build(path: Path) -> None:
            shutil.copytree(self.run(model) / "model", path / "model", dirs_exist_ok=True)
            training = replace(s.policy, seed=model.seed, resume=True)
            token_training.train_token_model(path, str(self.dataset()), s.tokens, training)

        return self.experiment.cached(key, self.policy_code(model), build, f"token model of {model.title}")

    def policy_code(self, model: ModelSpec) -> tuple[ModuleType | str, ...]:
        """The modules that token models of a LAM depend on."""
        return tokens, token_training, *self.model_code(model.method)

    def returns(self, model: ModelSpec, labels: Labels, k: int) -> dict[str, float]:
        """Returns of a token policy with k generated tokens per decision: normalised, and in percent of the expert."""
        s = self.setup
        key = {
            "lam": self.key(model), "tokens": s.tokens, "policy": s.policy, "labels": labels, "steps": s.translator_steps,
            "worlds": s.worlds, "episodes": s.episodes, "k": k, "temperature": s.temperature,
            "parallel": s.parallel,  # one generator draws the codes of all rows
        }  # fmt: skip

        def compute() -> dict[str, Any]:
            folder, translator = self.policy(model), self.translator(model, labels)
            self.experiment.progress(f"rollouts, {model.name} {dict(model.options)}, k = {k}, seed {model.seed}")
            loaded = LatentActionModel.from_pretrained(str(folder))
            agent = TokenPolicy(
                loaded, token_training.load_token_model(folder / "policy", loaded.lam), align.load_translator(translator)[0],
                k=k, batch=s.parallel, temperature=s.temperature, seed=model.seed,
            )  # fmt: skip
            result = rollout.rollout_worlds(
                agent, s.worlds, s.episodes, s.parallel, seed=1000 + model.seed, size=loaded.config.image[1:], progress=False
            )  # fmt: skip
            return result.to_dict()

        record = self.experiment.cached_value(
            key,
            (rollout, latent, *self.policy_code(model), *self.translator_code(model)),
            compute,
            needs=lambda: (self.policy(model), self.translator(model, labels)),
        )
        return {"above_random": float(record["above_random"]), "percent_of_expert": float(record["normalized"])}


def mean_loss(losses: Mapping[str, float], without: Sequence[str] = ()) -> float:
    """Mean over tasks, each counting the same."""
    return float(np.mean([loss for task, loss in losses.items() if task not in without]))


def draw_labels(tasks: Sequence[str], labels: Labels, seed: int) -> Int[Tensor, "n"]:
    """Rows of the labelled transitions, given the task of every transition: as many from each task, where there are enough.

    Of two draws with the same seed and ``labels.draw``, the smaller is a subset of the larger.
    """
    generator = torch.Generator().manual_seed(1000 * seed + labels.draw)
    order = torch.randperm(len(tasks), generator=generator).tolist()
    count: Counter[str] = Counter()
    place = {}  # of each row among those of its task
    for row in order:
        place[row] = count[tasks[row]]
        count[tasks[row]] += 1
    allowed = [row for row in order if not labels.tasks or tasks[row] in labels.tasks]
    # The sort is stable: within a round, which takes one row of each task, the random order decides.
    return torch.tensor(sorted(sorted(allowed, key=place.__getitem__)[: labels.number]))


@lru_cache(maxsize=4)
def _transitions(config: DataConfig, split: str) -> Clip:
    return sample_split(config, split, None, require_action=True)
