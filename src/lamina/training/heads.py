"""Heads trained on cached latents with the shared loop, and left at their best checkpoint on held-out labels."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lamina.files import Scratch
from lamina.images import to_float
from lamina.methods.base import Losses
from lamina.models.bottlenecks.prefix import RetainedPrefix
from lamina.models.config import LAMConfig
from lamina.models.features import fit_space
from lamina.models.heads import InverseDynamics, Translator, TranslatorConfig
from lamina.rng import Rng
from lamina.training.checkpoints import BestCheckpoint
from lamina.training.labelled import LabelledTransitions, Minibatches
from lamina.training.loop import fit
from lamina.training.settings import TrainConfig
from lamina.types import ActionSpec


def fit_head(
    module: nn.Module,
    losses: Losses,
    train: Any,
    held: Any,
    config: TrainConfig,
    run: Path,
    weights: dict[str, float] | None = None,
    stream: Callable[[], Any] | None = None,
    title: str | None = None,
) -> float:
    """Train ``module`` with the shared loop and leave it at its best checkpoint, whose validation loss is returned.

    A checkpoint replaces an earlier one if it is :func:`clearly_lower` on the held-out labels. Of a few dozen of them the lowest mean is
    often that of a later checkpoint by chance, and later ones are overconfident. ``losses(module, batch, rng)["action"]`` is what
    validation averages, with the same draws every time.
    """
    best = BestCheckpoint(run / "best.safetensors")
    kept: Tensor | None = None  # losses of that checkpoint

    def on_held(current: nn.Module) -> Float[Tensor, "n"]:
        device = next(current.parameters()).device
        return losses(current, held.to(device), Rng(0, device=device))["action"].double().cpu()

    @torch.no_grad()
    def validate(current: nn.Module) -> tuple[dict[str, float], list[str]]:
        nonlocal kept
        own = on_held(current)
        if kept is None and best.loss < float("inf"):  # of the run that this one goes on from
            before = copy.deepcopy(current)
            best.restore(before)
            kept = on_held(before)
        if bool(own.isfinite().all()) and (kept is None or clearly_lower(own, kept)):
            best.update(current, float(own.mean()))
            kept = own
        return {"action": float(own.mean())}, []

    def open_stream(shards: int, own: Sequence[int]) -> Any:
        return stream() if stream else Minibatches(train, config.batch // config.accumulate, config.seed)

    fit(run, module, losses, weights or {"action": 1.0}, open_stream, config, validate, title)
    best.restore(module)
    return best.loss


def clearly_lower(losses: Float[Tensor, "n"], others: Float[Tensor, "n"]) -> bool:
    """Whether losses on the same labels are lower than others by more than the standard error of their mean difference; of a single label,
    whether its loss is lower."""
    difference = others - losses
    error = difference.std() / len(difference) ** 0.5 if len(difference) > 1 else torch.zeros(())
    return bool(difference.mean() > error)


def head_training(steps: int, seed: int, lr: float = 3e-4, batch: int = 64, **more: Any) -> TrainConfig:
    """Training options for small heads on cached latents: no EMA (the best checkpoint is kept), few checkpoints."""
    return TrainConfig(
        steps=steps, batch=batch, lr=lr, warmup=50, weight_decay=0.05, ema=0.0, seed=seed,
        checkpoint_every=steps, validate_every=10, log_every=10, **{"device": "cpu"} | more,
    )  # fmt: skip


def translator_losses(prefix: RetainedPrefix) -> Losses:
    """The loss of a translator on latents whose prefix is drawn from the LAM's own p(k), k >= 0 (§4.2)."""

    def losses(module: Translator, batch: LabelledTransitions, rng: Rng) -> dict[str, Tensor]:
        on_device = prefix.to(batch.z.device)
        z = on_device(batch.z, on_device.draw(rng, len(batch)))
        return {"action": module.action.loss(module(z, batch.previous, batch.observation), batch.action)}

    return losses


def idm_losses(module: InverseDynamics, batch: LabelledTransitions, rng: Rng) -> dict[str, Tensor]:
    """The action loss of an inverse dynamics model."""
    assert batch.clip is not None
    return {"action": module.action.loss(module(to_float(batch.clip.frames), batch.previous), batch.action)}


def train_translator(
    prefix: RetainedPrefix,
    train: LabelledTransitions,
    held: LabelledTransitions,
    spec: ActionSpec,
    config: TranslatorConfig,
    training: TrainConfig,
    run: Path | None = None,
    steps: int = 1,
) -> tuple[Translator, float]:
    """A translator of a frozen LAM with this ``prefix``, and its validation loss.

    ``spec``: of one action; ``steps``: actions of one label. ``run`` keeps log and checkpoints (a temporary folder by default).
    """
    torch.manual_seed(training.seed)
    observation = 0 if train.observation is None else train.observation.shape[-1]
    latent = train.z.shape[1] * train.z.shape[2]
    translator = Translator(latent, spec, config, observation, steps)
    translator.calibrate(train.action)
    losses = translator_losses(copy.deepcopy(prefix).requires_grad_(False))
    with Scratch() as scratch:
        folder = run or Path(scratch)
        loss = fit_head(translator, losses, train, held, training, folder, title="align" if run else None)
    return translator.to(train.z.device).eval(), loss


def train_idm(
    config: LAMConfig,
    train: LabelledTransitions,
    held: LabelledTransitions,
    spec: ActionSpec,
    training: TrainConfig,
    pairs: bool = True,
    head: TranslatorConfig | None = None,
    steps: int = 1,
) -> tuple[InverseDynamics, float]:
    """An inverse dynamics model from scratch on the labels alone, and its validation loss. ``head``: the translator's shape;
    ``spec``, ``steps``: as for that."""
    torch.manual_seed(training.seed)
    module = InverseDynamics(config, spec, pairs, head or TranslatorConfig(), steps)
    module.translator.calibrate(train.action)
    assert train.clip is not None
    fit_space(module.space, train.clip.frames.flatten(0, 1))
    with Scratch() as scratch:
        loss = fit_head(module, idm_losses, train, held, training, Path(scratch))
    return module.cpu().eval(), loss
