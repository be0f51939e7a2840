"""A LAM and its translator tuned together (FlexLAM §6.3)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
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
    losses: Losses,
    weights: dict[str, float],
    video: DataConfig,
    run: Path,
    steps: int = 1,
    side: Side | None = None,
) -> tuple[Translator, float]:
    """A translator and the LAM (changed in place) that was tuned with it, at their best validation loss, which is returned (§6.3).

    ``losses`` and ``weights`` are the method's own, on unlabelled pairs of ``video``. The labelled transitions need their frames.
    """
    train_small, held_small = dataclasses.replace(train, clip=None), dataclasses.replace(held, clip=None)
    start, _ = train_translator(
        lam,
        train_small,
        held_small,
        spec,
        config,
        head_training(400, training.seed, device=training.device),
        steps=steps,
    )
    joint = JointModel(lam.requires_grad_(True), start, side)
    lam.prefix.null.requires_grad_(lam.config.prefix != "full")

    def stream() -> JointStream:
        batch = training.batch // training.accumulate
        return JointStream(Minibatches(train, batch, training.seed), ClipStream(video, batch, training.seed))

    all_weights = {"action": 1.0, **weights}
    loss = fit_head(
        joint, joint_losses(losses), train, JointBatch(held), training, run, all_weights, stream, "align jointly"
    )
    joint.cpu()
    return joint.translator.eval(), loss
