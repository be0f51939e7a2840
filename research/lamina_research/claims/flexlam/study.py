"""What the experiments on FlexLAM share: one suite of tasks, LAMs trained on it, translators on few labels, and their held-out losses.

Everything is trained once: a LAM per method, options and seed, a translator per LAM and draw of labels. Fixed-K differs from FlexLAM in
its bottleneck rule alone: encoder, decoder, FSQ levels, steps, order of the data, labels and translator are the same.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
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
from lamina.models.heads import Condition, Translator, TranslatorConfig
from lamina.models.hub import LatentActionModel
from lamina.policies import rollout
from lamina.policies import token_model as tokens
from lamina.policies import token_policy as latent
from lamina.policies.token_model import TokenConfig
from lamina.policies.token_policy import TokenPolicy
from lamina.policies.token_training import load_token_model, train_token_model
from lamina.training import alignment as align
from lamina.training.heads import head_training, train_idm, train_translator
from lamina.training.joint import JointObjective, train_joint
from lamina.training.labelled import LabelledTransitions, actions_of, encode_labels, probe_data, split_labels
from lamina.training.recipe import recipe
from lamina.training.settings import TrainConfig
from lamina.types import Clip
from lamina_research.experiment import Experiment
from lamina_research.study import Collection, ModelSpec, Study


@dataclass(frozen=True)
class FlexLAMSetup:
    """One scale: its data, models, labels and budgets."""

    data: Collection
    options: dict[str, Any]  # of every LAM
    train: TrainConfig  # of every LAM
    budgets: tuple[int, ...]  # k of the matched-budget comparison; the last one is K
    labels: int  # scarce: half a percent of the training transitions
    played: int  # labels of translators that play: with the scarce ones all policies are at the level of random actions
    curve: tuple[int, ...]  # numbers of labels
    draws: int  # of labels; what is reported for a seed is their mean
    heads: int  # steps of a translator
    joint_labels: int  # of joint alignment
    joint: TrainConfig  # of joint alignment
    supervised: int  # steps of the inverse dynamics model on every label, the upper bound
    decoded: int  # transitions whose reconstruction is scored
    source: str  # the world that gives the labels of the narrow source
    tokens: TokenConfig
    policy: TrainConfig  # of the token model
    worlds: tuple[str, ...]  # of the closed loop
    episodes: int  # of each, for every seed; every seed has others
    parallel: int
    timed: int  # decisions whose latency is measured
    temperature: float = 0.0  # of the generated codes
    split: str = "test"


#: The worlds of the normalized score: the suite without the source of narrow labels, as in the paper (App. A.2).
NORMALIZED = tuple(world for world in SUITES["doom-suite"] if world != "deadly_corridor")

#: At cpu scale the decoder is a U-Net: a rectified flow needs more steps than two cores give.
SETUPS = {
    "smoke": FlexLAMSetup(
        Collection("doom-suite", 1500, size=(32, 32)), {"size": "debug", "image": (32, 32), "slots": 4, "decoder": "unet"},
        TrainConfig(steps=12, batch=16, lr=1e-3, device="cpu", checkpoint_every=12, validate_every=12),
        budgets=(1, 4), labels=48, played=48, curve=(24, 48), draws=1, heads=20,
        joint_labels=48, joint=TrainConfig(steps=4, batch=16, lr=3e-4, ema=0.0, device="cpu", checkpoint_every=4, validate_every=2),
        supervised=10, decoded=32, source="deadly_corridor",
        tokens=TokenConfig(size="debug", context=6, stride=4),
        policy=TrainConfig(steps=6, batch=4, lr=1e-3, device="cpu", checkpoint_every=6, validate_every=6),
        worlds=("predict_position",), episodes=2, parallel=2, timed=3,
    ),
    "cpu": FlexLAMSetup(
        Collection("doom-suite", 32_000, size=(32, 32)), {"size": "tiny", "image": (32, 32), "slots": 16, "decoder": "unet"},
        TrainConfig(steps=4000, batch=64, lr=2e-3, device="cpu", checkpoint_every=400, validate_every=400),
        budgets=(1, 4, 16), labels=128, played=2048, curve=(32, 128, 512, 2048), draws=3, heads=600,
        joint_labels=1024,
        joint=TrainConfig(steps=400, batch=64, lr=3e-4, warmup=50, ema=0.0, device="cpu", checkpoint_every=100, validate_every=20),
        supervised=1500, decoded=512, source="deadly_corridor",
        tokens=TokenConfig(size="tiny", width=96, layers=2, context=16, stride=8),
        policy=TrainConfig(steps=1000, batch=16, lr=3e-3, warmup=50, ema=0.99, device="cpu", checkpoint_every=100, validate_every=100),
        worlds=NORMALIZED, episodes=17, parallel=16, timed=100,
    ),
    "gpu": FlexLAMSetup(
        Collection("doom-suite", 800_000), {"size": "small", "image": (64, 64), "slots": 64, "decoder": "flow"},
        TrainConfig(steps=60_000, batch=256, lr=3e-4, device="cuda", precision="bf16", compile=True, checkpoint_every=2000),
        budgets=(4, 16, 64), labels=3200, played=3200, curve=(128, 512, 1024, 3200, 12_800, 51_200), draws=3, heads=2000,
        joint_labels=3200,
        joint=TrainConfig(steps=4000, batch=256, lr=1e-4, ema=0.0, device="cuda", precision="bf16", checkpoint_every=1000),
        supervised=20_000, decoded=2048, source="deadly_corridor",
        tokens=TokenConfig(size="small"),
        policy=TrainConfig(steps=30_000, batch=64, lr=3e-4, device="cuda", precision="bf16", checkpoint_every=2000),
        worlds=NORMALIZED, episodes=50, parallel=16, timed=100,
    ),
}  # fmt: skip


def flexlam_spec(seed: int, **options: Any) -> ModelSpec:
    """FlexLAM at the setup's K."""
    return ModelSpec(flexlam, seed, tuple(sorted(options.items())))


def fixed_k_spec(k: int, seed: int) -> ModelSpec:
    """A Fixed-K of its own for the budget k."""
    return ModelSpec(fixed_k, seed, (("slots", k),))


@dataclass(frozen=True)
class Labels:
    """Which labels a translator gets, and how it reads them."""

    number: int
    draw: int = 0
    tasks: tuple[str, ...] = ()  # only from these; empty: evenly from all
    condition: Condition = "latent+previous"
    joint: bool = False


@dataclass(frozen=True)
class Scores:
    """Held-out scores of a translator: ``loss[k][task]`` in nats, ``accuracy[k][task]``."""

    loss: dict[int, dict[str, float]]
    accuracy: dict[int, dict[str, float]]
    validation: float

    def mean(self, k: int, without: Sequence[str] = ()) -> float:
        """Mean over tasks of the loss at k, each task counting the same."""
        return float(np.mean([v for task, v in self.loss[k].items() if task not in without]))


class FlexLAMStudy(Study[FlexLAMSetup]):
    """Data, models, translators and policies of one scale; each made at most once, and found again."""

    def __init__(self, experiment: Experiment, setup: FlexLAMSetup | None = None):
        super().__init__(experiment, setup or SETUPS[experiment.scale])
        self._latents: dict[tuple[str, str], LabelledTransitions] = {}

    # ---------------------------------------------------------------------------------------------------------- data

    def source(self) -> str:
        """The task that gives the labels of the narrow source."""
        from lamina.envs.doom import SCENARIOS  # here: the list of claims must be readable without the simulator

        return SCENARIOS[self.setup.source].task

    def data(self) -> DataConfig:
        return DataConfig((str(self.dataset()),), self.setup.options["image"])

    def config(self, model: LatentActionModel) -> DataConfig:
        return probe_data(model, str(self.dataset()))

    def transitions(self, model: LatentActionModel, split: str) -> Clip:
        """Every transition of a split, at the model's label gap (the same for all models of a setup)."""
        return _transitions(self.config(model), split)

    def task_of(self, items: LabelledTransitions | Clip) -> list[str]:
        """The task of each transition."""
        episodes = open_source(self.dataset()).episodes
        return [episodes[int(e)].task for e in items.episode]

    # -------------------------------------------------------------------------------------------------------- models

    def latents(self, model: ModelSpec, split: str) -> LabelledTransitions:
        """Every transition of a split, encoded by a model; kept in memory."""
        run = self.run(model)
        if (str(run), split) not in self._latents:
            loaded = LatentActionModel.from_pretrained(str(run))
            self._latents[str(run), split] = encode_labels(loaded.lam, self.transitions(loaded, split))
        return self._latents[str(run), split]

    # --------------------------------------------------------------------------------------------------- translators

    def draw(self, items: LabelledTransitions, labels: Labels, seed: int) -> LabelledTransitions:
        """The labelled subset: ``number`` transitions, as many from each task, the first of one random order.

        A smaller number is a subset of a larger one, and every model of a seed gets the same.
        """
        return items[draw_labels(self.task_of(items), labels, seed)]

    def aligned(self, model: ModelSpec, labels: Labels) -> tuple[Path, Scores]:
        """A translator on those labels (folder), and its losses on the held-out split."""
        s = self.setup
        key = {"lam": self.key(model), "labels": asdict(labels), "heads": s.heads, "split": s.split}
        key |= {"joint": vars(s.joint)} if labels.joint else {}
        run = self.run(model)

        def build(path: Path) -> None:
            loaded = LatentActionModel.from_pretrained(str(run))
            few, test = self.draw(self.latents(model, "train"), labels, model.seed), self.latents(model, s.split)
            data = self.config(loaded)
            actions, config = actions_of(data), TranslatorConfig(condition=labels.condition)
            spec = actions.spec
            if "observation" in labels.condition:
                few, test = (replace(x, observation=observe(loaded.lam, x.clip)) for x in (few, test))  # type: ignore[arg-type]
            train, held = split_labels(few, labels.draw)
            if labels.joint:
                plan = recipe(model.name, model.method, model.method.Config(**model.within(s.options)))
                training = replace(s.joint, seed=labels.draw, resume=True)
                video = replace(data, gap=loaded.provenance.gap_seconds, action=None)
                translator, validation = train_joint(
                    loaded.lam,
                    train,
                    held,
                    spec,
                    config,
                    training,
                    JointObjective(plan.losses, plan.weights),
                    video,
                    path / "joint",
                )
                loaded.lam.eval()
                assert test.clip is not None
                test = encode_labels(loaded.lam, test.clip)  # the encoder has changed
            else:
                train, held = (replace(part, clip=None) for part in (train, held))
                training = head_training(s.heads, labels.draw)
                translator, validation = train_translator(loaded.lam.prefix, train, held, spec, config, training)
            scores = self.score(translator, loaded, test, validation)
            asked = align.AlignConfig(str(labels.number), labels.joint, config, tasks=labels.tasks)
            side = loaded.config.action_side
            note = align.note_of(few, actions, asked, side, str(self.dataset()), training, validation)
            align.save_translator(path, translator, note)
            write_text(path / "scores.json", json.dumps(asdict(scores)) + "\n")

        folder = self.experiment.cached(key, (align, translation, model.method), build)
        return folder, read_scores(folder / "scores.json")

    def score(
        self, translator: Translator, model: LatentActionModel, test: LabelledTransitions, validation: float
    ) -> Scores:
        """Losses and accuracies per task, at every k that the model is made for."""
        slots, law = model.config.slots, model.config.prefix
        ks = (slots,) if law == "full" else tuple(range(1, slots + 1))
        tasks = np.array(self.task_of(test))
        loss: dict[int, dict[str, float]] = {}
        accuracy: dict[int, dict[str, float]] = {}
        for got in translation.score_translator(translator, model.lam.prefix, test, ks, "", "model"):
            assert got.k is not None and got.right is not None
            loss[got.k] = {t: float(got.loss[tasks == t].mean()) for t in dict.fromkeys(tasks)}
            accuracy[got.k] = {t: float(got.right[tasks == t].mean()) for t in dict.fromkeys(tasks)}
        return Scores(loss, accuracy, validation)

    def rivals(self, model: ModelSpec, labels: Labels) -> dict[str, float]:
        """Held-out loss of every control and reference on the first draw of labels: copy-frame, shuffled latents, ..., IDM."""
        key = {
            "rivals of": self.key(model),
            "labels": asdict(labels),
            "heads": self.setup.heads,
            "split": self.setup.split,
        }
        run = self.run(model)

        def build(path: Path) -> None:
            loaded = LatentActionModel.from_pretrained(str(run))
            few, test = (
                self.draw(self.latents(model, "train"), labels, model.seed),
                self.latents(model, self.setup.split),
            )
            actions = actions_of(self.config(loaded))
            tasks = np.array(self.task_of(test))
            assert few.clip is not None and test.clip is not None
            scores = translation.controls(
                subject_of(loaded), few.clip, test.clip, actions, TranslatorConfig(), head_training(self.setup.heads, labels.draw),
                structural.unlabelled(self.data()),
            )  # fmt: skip
            losses = {s.name: float(np.mean([s.loss[tasks == t].mean() for t in dict.fromkeys(tasks)])) for s in scores}
            write_text(path / "rivals.json", json.dumps(losses) + "\n")

        return json.loads((self.experiment.cached(key, (translation, model.method), build) / "rivals.json").read_text())

    def supervised(self, seed: int) -> float:
        """Held-out loss of inverse dynamics trained on every label: what the pictures tell of the action at most."""
        s = self.setup
        key = {"supervised": s.supervised, "data": s.data, "options": s.options, "seed": seed, "split": s.split}
        run = self.run(flexlam_spec(0))  # for its sizes and label gap alone

        def build(path: Path) -> None:
            loaded = LatentActionModel.from_pretrained(str(run))
            pool, test = self.latents(flexlam_spec(0), "train"), self.latents(flexlam_spec(0), s.split)
            every, held = split_labels(pool, seed, held=0.05)
            training = replace(head_training(s.supervised, seed, lr=1e-3), validate_every=max(1, s.supervised // 8))
            spec = actions_of(self.config(loaded)).spec
            module, _ = train_idm(loaded.lam.config, every, held, spec, training)
            score = translation.score_idm(module, test, "", "reference")
            tasks = np.array(self.task_of(test))
            loss = float(np.mean([score.loss[tasks == t].mean() for t in dict.fromkeys(tasks)]))
            write_text(path / "supervised.json", json.dumps(loss) + "\n")

        return json.loads((self.experiment.cached(key, (translation, flexlam), build) / "supervised.json").read_text())

    # --------------------------------------------------------------------------------------------------- closed loop

    def policy(self, model: ModelSpec) -> Path:
        """A folder with a LAM and the token model of its codes."""
        s = self.setup
        key = {"lam": self.key(model), "tokens": asdict(s.tokens), "policy": vars(s.policy)}
        run = self.run(model)

        def build(path: Path) -> None:
            shutil.copytree(run / "model", path / "model", dirs_exist_ok=True)
            training = replace(s.policy, seed=model.seed, resume=True)
            train_token_model(path, str(self.dataset()), s.tokens, training)

        self.experiment.progress(f"token model of {model.name} {dict(model.options)}, seed {model.seed}")
        return self.experiment.cached(key, (tokens, model.method), build)

    def returns(self, model: ModelSpec, labels: Labels, k: int) -> dict[str, Any]:
        """The record of a closed-loop evaluation with k generated tokens a decision, its worlds named by their tasks."""
        s = self.setup
        key = {
            "lam": self.key(model), "tokens": asdict(s.tokens), "policy": vars(s.policy), "labels": asdict(labels), "heads": s.heads,
            "worlds": s.worlds, "episodes": s.episodes, "k": k, "temperature": s.temperature,
        }  # fmt: skip
        folder, (head, _) = self.policy(model), self.aligned(model, labels)

        def build(path: Path) -> None:
            loaded = LatentActionModel.from_pretrained(str(folder))
            agent = TokenPolicy(
                loaded, load_token_model(folder / "policy", loaded.lam), align.load_translator(head)[0],
                k=k, batch=s.parallel, temperature=s.temperature, seed=model.seed,
            )  # fmt: skip
            size = loaded.config.image[1:]
            record = rollout.rollout_worlds(
                agent, s.worlds, s.episodes, s.parallel, seed=1000 + model.seed, size=size, progress=False
            )  # fmt: skip
            write_text(path / "returns.json", json.dumps(record) + "\n")

        self.experiment.progress(f"closed loop, {model.name} {dict(model.options)}, k = {k}, seed {model.seed}")
        return json.loads(
            (self.experiment.cached(key, (rollout, latent, model.method), build) / "returns.json").read_text()
        )

    def losses(
        self, model: ModelSpec, labels: Labels, ks: Sequence[int], without: Sequence[str] = ()
    ) -> dict[int, float]:
        """The held-out loss at each k: mean over tasks, then over the setup's draws of labels (one, if joint: each tunes a LAM)."""
        draws = 1 if labels.joint else self.setup.draws
        every = [self.aligned(model, replace(labels, draw=d))[1] for d in range(draws)]
        return {k: float(np.mean([scores.mean(k, without) for scores in every])) for k in ks}


def draw_labels(tasks: Sequence[str], labels: Labels, seed: int) -> Int[Tensor, "n"]:
    """Rows of the labelled transitions, given the task of every transition."""
    generator = torch.Generator().manual_seed(1000 * seed + labels.draw)
    order = torch.randperm(len(tasks), generator=generator).tolist()
    seen: dict[str, int] = {}
    rank = {}
    for row in order:
        seen[tasks[row]] = seen.get(tasks[row], -1) + 1
        rank[row] = seen[tasks[row]]
    allowed = [row for row in order if not labels.tasks or tasks[row] in labels.tasks]
    # One of each task, then the second of each, and so on: stable, so the random order decides within a round.
    chosen = sorted(allowed, key=lambda row: rank[row])[: labels.number]
    return torch.tensor(sorted(chosen))


def read_scores(path: Path) -> Scores:
    """Scores as :meth:`Study.aligned` wrote them; JSON knows no whole-number keys."""
    values = json.loads(path.read_text())
    return Scores(
        {int(k): v for k, v in values["loss"].items()},
        {int(k): v for k, v in values["accuracy"].items()},
        values["validation"],
    )


@lru_cache(maxsize=4)
def _transitions(config: DataConfig, split: str) -> Clip:
    return sample_split(config, split, None, require_action=True)
