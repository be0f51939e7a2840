"""Does a LAM's latent say more about the action than the frozen features that it is built on? lamina/feature-control.

In each domain FlexLAM is trained on pixels and on a pretrained encoder's features. A ridge regression then reads the action off its latent,
off the plain features of the two frames, and off their plain pixels: from the same labelled transitions, and from as many numbers
(principal components of the first frame and of the change). Labels are of seen tasks. It is scored on test episodes of these tasks, and of
tasks (on the cheetah: of a background that moves) that neither LAM nor probe has seen.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

from torch import Tensor

from lamina.data.sampling import ActionsOf, DataConfig, open_source
from lamina.data.stream import sample_split
from lamina.evaluation.probes import linear_probe as probes
from lamina.inference.subject import subject_of
from lamina.methods import flexlam
from lamina.models.feature_cache import VARIABLE, kept_features
from lamina.models.features import PretrainedFeatures
from lamina.models.heads import ActionHead
from lamina.models.pretrained import EFFICIENTNET, open_encoder
from lamina.training.labelled import actions_of
from lamina.training.settings import TrainConfig
from lamina.types import Clip
from lamina_research.experiment import Experiment, Outcome
from lamina_research.figures import BarPlot
from lamina_research.seeds import Metrics, below, over_seeds, paired_difference
from lamina_research.study import Collection, ModelSpec, Study, StudySetup

OURS, FEATURES, PIXELS = "LAM on features", "plain features of the pair", "plain pixels of the pair"
#: FlexLAM by what it observes. The second has the networks of the first, the third those that are the default for pixels.
LAMS: dict[str, dict[str, Any]] = {
    OURS: {"space": EFFICIENTNET, "encoder": "transformer", "decoder": "pixel", "patch": 2},
    "LAM on pixels, same networks": {"encoder": "transformer", "decoder": "pixel", "patch": 8},
    "LAM on pixels, U-Net": {"encoder": "conv", "decoder": "unet"},
}
ON_PIXELS = tuple(name for name in LAMS if name != OURS)
TASKS = ("seen", "unseen")


@dataclass(frozen=True)
class ControlSetup(StudySetup):
    """One domain at one scale. ``unseen``: data of other tasks; None: every fourth task of ``data``, which LAMs and probes do not see."""

    gap: tuple[float, float]  # seconds between the frames of training pairs; probes are at the middle
    labels: int  # transitions of seen tasks whose actions the probes are fitted to
    tested: int  # transitions that they are scored on, of each kind of tasks
    unseen: Collection | None = None
    actions: ActionsOf = "first"


_SMOKE = TrainConfig(steps=4, batch=8, lr=1e-3, ema=0.0, device="cpu", checkpoint_every=4, validate_every=4)
_CPU = TrainConfig(
    steps=2000, batch=32, lr=1e-3, optimizer="muon", device="cpu", checkpoint_every=250, validate_every=250
)
_GPU = TrainConfig(steps=40_000, batch=256, lr=3e-4, device="cuda", precision="bf16", checkpoint_every=2000)


def _domains(
    train: TrainConfig, options: dict[str, Any], frames: int, labels: int, tested: int
) -> dict[str, ControlSetup]:
    """Doom, MetaWorld and the cheetah with ``frames`` frames each, and a quarter of that of what is unseen on the cheetah."""

    def setup(data: Collection, gap: tuple[float, float], **more: Any) -> ControlSetup:
        return ControlSetup(data, options, train, gap, labels, tested, **more)

    return {
        "Doom": setup(Collection("doom-suite", frames), (0.1, 0.2)),
        "MetaWorld": setup(Collection("metaworld-suite", frames, noise=0.4, hold=12), (0.05, 0.1), actions="mean"),
        "cheetah": setup(
            Collection("cheetah", frames, noise=0.4), (0.04, 0.04), unseen=Collection("cheetah/0.5,0.05", frames // 4, noise=0.4)
        ),
    }  # fmt: skip


SETUPS: dict[str, dict[str, ControlSetup]] = {
    "smoke": {
        "grid": ControlSetup(
            Collection("grid", 120, noise=0.4, size=(32, 32)), {"size": "debug", "image": (32, 32), "slots": 4}, _SMOKE,
            gap=(0.1, 0.2), labels=32, tested=24, unseen=Collection("grid/0.5", 120, noise=0.4, size=(32, 32)),
        ),
    },
    "cpu": _domains(_CPU, {"size": "tiny", "image": (64, 64), "slots": 16}, frames=14_000, labels=1024, tested=2048),
    "gpu": _domains(_GPU, {"size": "small", "image": (64, 64), "slots": 16}, frames=200_000, labels=4096, tested=4096),
}  # fmt: skip


class ControlStudy(Study[ControlSetup]):
    """Data, LAMs and probes of one domain."""

    setups: ClassVar[Mapping[str, Any]] = {}  # one for each domain, in SETUPS

    @cached_property
    def tasks(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The seen tasks of the data, and the unseen ones; empty: all, and none."""
        return divided(
            {episode.task for episode in open_source(self.dataset()).episodes}, self.setup.unseen is not None
        )

    def data(self) -> DataConfig:
        s = self.setup
        return DataConfig((str(self.dataset()),), s.options["image"], gap=s.gap, tasks=self.tasks[0], workers=0)

    def options(self, model: ModelSpec) -> dict[str, Any]:
        # The smallest LAMs see pictures that are too small for patches of 8.
        given = super().options(model)
        return given | {"patch": min(given["patch"], given["image"][0] // 8)} if "patch" in given else given

    def key(self, model: ModelSpec) -> dict[str, Any]:
        space = model.options.get("space")
        made_of = open_encoder(space).fingerprint if space else None
        return super().key(model) | {"gap": self.setup.gap, "tasks": self.tasks[0], "encoder": made_of}

    def clips(self, seed: int) -> dict[str, Clip]:
        """The labelled transitions of a seed, under "labels", and test transitions of seen and of unseen tasks."""
        s, middle = self.setup, sum(self.setup.gap) / 2
        seen = replace(self.data(), gap=(middle, middle), actions=s.actions)
        unseen = replace(seen, tasks=self.tasks[1])
        if s.unseen is not None:
            unseen = replace(seen, data=(str(self.dataset(s.unseen)),), tasks=())
        return {
            "labels": sample_split(seen, "train", s.labels, seed=seed, require_action=True),
            "seen": sample_split(seen, "test", s.tested, require_action=True),
            "unseen": sample_split(unseen, "test", s.tested, require_action=True),
        }

    def scores(self, seed: int) -> dict[str, dict[str, float]]:
        """NMSE of the action by what is read and kind of tasks."""
        models = {name: ModelSpec(flexlam, seed, options, name) for name, options in LAMS.items()}
        keys = {name: self.key(model) for name, model in models.items()}
        s = self.setup
        key = {
            "feature control": keys, "labels": s.labels, "tested": s.tested, "unseen": s.unseen, "actions": s.actions,
            "tasks": self.tasks,
        }  # fmt: skip
        return self.experiment.cached_value(
            key, (__name__, *self.model_code(flexlam)), lambda: self._measured(seed, models),
            needs=lambda: [self.run(model) for model in models.values()],
        )  # fmt: skip

    def _measured(self, seed: int, models: Mapping[str, ModelSpec]) -> dict[str, dict[str, float]]:
        clips, space = self.clips(seed), PretrainedFeatures(EFFICIENTNET)
        labels = clips["labels"]
        read: dict[str, Callable[[Clip], tuple[Tensor, Tensor]]] = {}
        width = 0
        for name, model in models.items():
            subject = subject_of(self.load(model))
            latents = {kind: subject.actions(clip.frames[:, 0], clip.frames[:, 1]) for kind, clip in clips.items()}
            width = latents["labels"].shape[1]
            read[name] = lambda clip, latents=latents: (  # type: ignore[misc]
                latents["labels"], next(z for kind, z in latents.items() if clips[kind] is clip)
            )  # fmt: skip
        read[FEATURES] = lambda clip: probes.plain_features(space, labels.frames, clip.frames, width)
        read[PIXELS] = lambda clip: probes.pixel_features(labels.frames, clip.frames, width)
        spec = actions_of(replace(self.data(), gap=(sum(self.setup.gap) / 2,) * 2, actions=self.setup.actions)).label
        head = ActionHead(spec)
        assert labels.action is not None
        head.calibrate(labels.action[:, 0])

        def nmse(name: str, kind: str) -> float:
            clip = clips[kind]
            assert labels.action is not None and clip.action is not None
            x, test_x = read[name](clip)
            y, test_y = head.embed(labels.action[:, 0]), head.embed(clip.action[:, 0])
            return probes.linear_probe(x, y, test_x, test_y, clip.episode, spec).nmse.mean

        return {name: {kind: nmse(name, kind) for kind in TASKS} for name in read}


def divided(tasks: set[str], apart: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Seen and unseen tasks: every fourth of them, in the order of their words, is unseen; with data of its own (``apart``) none is."""
    ordered = sorted(tasks)
    unseen = () if apart else tuple(ordered[::4])
    return (() if apart else tuple(task for task in ordered if task not in unseen)), unseen


def feature_control(experiment: Experiment) -> Outcome:
    """The error of the action, of latents and of their controls, by domain and kind of tasks."""
    os.environ.setdefault(VARIABLE, str(experiment.workdir))  # features of the frames, shared by all LAMs and seeds
    studies = {name: ControlStudy(experiment, setup) for name, setup in SETUPS[experiment.scale].items()}

    def of_seed(seed: int) -> dict[str, dict[str, float]]:
        found: dict[str, dict[str, float]] = {}
        every = experiment.each(lambda study: study.scores(seed), studies.values())
        for domain, scores in zip(studies, every, strict=True):
            for name, row in scores.items():
                found.setdefault(name, {}).update({f"{domain}, {kind} tasks": value for kind, value in row.items()})
        return found

    with kept_features():
        metrics = over_seeds(of_seed(seed) for seed in experiment.seeds)
    return decided(metrics)


def decided(metrics: Metrics) -> Outcome:
    """The rule, applied to the errors of all domains."""
    places = list(metrics[OURS])
    above = [place for place in places if not below(metrics[OURS][place], metrics[FEATURES][place])]
    told = [
        f"{place} {paired_difference(metrics[OURS][place], metrics[FEATURES][place]).mean:+.3f}" for place in places
    ]
    won = {
        place: all(below(metrics[OURS][place], metrics[rival][place]) for rival in ON_PIXELS) for place in places
    }  # fmt: skip
    text = f"NMSE of the latent on features minus that of the plain features: {', '.join(told)}. "
    text += f"Not significantly lower: {', '.join(above) or 'nowhere'}. "
    text += f"The LAM on features beats both LAMs on pixels: {', '.join(p for p in places if won[p]) or 'nowhere'}."
    series = {name: [row[place] for place in places] for name, row in metrics.items()}
    plot = BarPlot("What a linear probe reads of the action", "NMSE (mean action 1, perfect 0)", places, series)
    return Outcome(metrics, not above, text, (plot,))
