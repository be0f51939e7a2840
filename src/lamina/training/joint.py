"""A LAM and its translator tuned together (FlexLAM §6.3)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lamina.data.sampling import DataConfig
from lamina.data.stream import ClipStream
from lamina.methods.base import Losses
from lamina.models.config import Side
from lamina.models.heads import Translator, TranslatorConfig
from lamina.models.lam import LAM
from lamina.records import Malformed
from lamina.rng import Rng
from lamina.training.heads import fit_head, head_training, train_translator
from lamina.training.labelled import LabelledTransitions, Minibatches
from lamina.training.settings import TrainConfig
from lamina.types import ActionSpec, Clip, TensorRecord

START = 400  # training steps of the translator alone, with which joint training begins


class JointModel(nn.Module):
    """A LAM and its translator, trained together: the action loss reaches encoder and bottleneck (§6.3)."""

    def __init__(self, lam: LAM, translator: Translator, side: Side | None = None):
        super().__init__()
        self.lam, self.translator, self.side = lam, translator, side


@dataclass(frozen=True)
class JointBatch(TensorRecord):
    """Labelled transitions for the action loss, unlabelled ones that keep the LAM a LAM."""

    labels: LabelledTransitions
    video: Clip | None = None


class JointStream:
    """Pairs of labelled minibatch and unlabelled batch."""

    def __init__(self, labels: Minibatches, video: ClipStream):
        self.labels, self.video = labels, video

    def __iter__(self) -> Iterator[JointBatch]:
        for labels, video in zip(self.labels, self.video, strict=False):
            yield JointBatch(labels, video)

    def state_dict(self) -> dict[str, Any]:
        return {"labels": self.labels.state_dict(), "video": self.video.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if not isinstance(state, dict) or state.keys() != {"labels", "video"}:
            raise Malformed("not the state of labels and video")
        self.labels.load_state_dict(state["labels"])
        self.video.load_state_dict(state["video"])

    def close(self) -> None:
        """Stop the processes that decode."""
        self.video.close()


@dataclass(frozen=True)
class JointObjective:
    """A method's own losses on unlabelled video, the weight of each, and the fields of DataConfig that they read (``needs``)."""

    losses: Losses
    weights: Mapping[str, float]
    needs: Mapping[str, Any] = field(default_factory=dict)


def joint_losses(objective: Losses) -> Losses:
    """The action loss through encoder, bottleneck and drawn prefix, plus the LAM's objective on unlabelled video."""

    def losses(module: JointModel, batch: JointBatch, rng: Rng) -> dict[str, Tensor]:
        lam, labels = module.lam, batch.labels
        assert labels.clip is not None
        observed = "observation" in module.translator.condition
        latents = lam.encode(lam.view(labels.clip), [(0, 1), *[(0, 0)] * observed]).own
        z = lam.action(latents[0, 1], module.side)
        observation = lam.action(latents[0, 0], module.side).flatten(1) if observed else None
        output = module.translator(lam.prefix(z, lam.prefix.draw(rng, len(z))), labels.previous, observation)
        terms = {"action": module.translator.action.loss(output, labels.action)}
        return terms | (objective(lam, batch.video, rng) if batch.video else {})

    return losses


def train_joint(
    lam: LAM,
    train: LabelledTransitions,
    held: LabelledTransitions,
    spec: ActionSpec,
    config: TranslatorConfig,
    training: TrainConfig,
    objective: JointObjective,
    video: DataConfig,
    run: Path,
    steps: int = 1,
    side: Side | None = None,
) -> tuple[Translator, float]:
    """A translator and the LAM (changed in place) that was tuned with it, at their best validation loss, which is returned (§6.3).

    ``video``: unlabelled, for the ``objective``. The labelled transitions need their frames.
    """
    small = [dataclasses.replace(part, clip=None) for part in (train, held)]
    heads = head_training(START, training.seed, device=training.device)
    start, _ = train_translator(lam.prefix, small[0], small[1], spec, config, heads, steps=steps)
    joint = JointModel(lam, start, side)  # what is frozen in the LAM's own training stays so

    def stream() -> JointStream:
        batch, data = training.batch // training.accumulate, dataclasses.replace(video, **objective.needs)
        return JointStream(Minibatches(train, batch, training.seed), ClipStream(data, batch, training.seed))

    losses, weights = joint_losses(objective.losses), {"action": 1.0, **objective.weights}
    loss = fit_head(joint, losses, train, JointBatch(held), training, run, weights, stream, "align jointly")
    joint.cpu()
    return joint.translator.eval(), loss
