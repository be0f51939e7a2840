"""Heads trained on cached latents with the shared loop, and left at their best validation loss."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from safetensors import SafetensorError
from torch import Tensor, nn

from lamina.align.heads import InverseDynamics, Translator, TranslatorConfig
from lamina.align.labels import Labelled, Minibatches
from lamina.draws import Draws
from lamina.errors import LaminaError
from lamina.files import Scratch, reason
from lamina.lam import LAM, LAMConfig
from lamina.shapes import ActionSpec, to_float
from lamina.strict import checked
from lamina.train import Losses, TrainConfig, fit
from lamina.weights import load_weights, record_of, save_weights


@dataclass(frozen=True)
class _Loss:
    loss: Annotated[float, Field(allow_inf_nan=False)]


class Best:
    """Keeps the weights of the lowest validation loss in one file, so that a resumed run still knows them, and the loss."""

    def __init__(self, path: Path):
        self.path, self.loss = path, float("inf")
        if path.exists():
            try:
                note = record_of(path) or {}
                self.loss = checked(_Loss, note).loss
            except (SafetensorError, OSError, ValueError) as error:
                raise LaminaError(f"{path}: damaged ({reason(error)}); delete {path.parent} and align again") from error

    def offer(self, module: nn.Module, loss: float) -> None:
        if loss < self.loss:
            self.loss = loss
            save_weights(self.path, module.state_dict(), {"loss": loss})

    def restore(self, module: nn.Module) -> None:
        load_weights(module, self.path, {"loss": self.loss})


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
    """Train ``module`` with the shared loop and leave it at its best validation loss, which is returned.

    ``losses(module, batch, draws)["action"]`` is what validation averages, with the same draws every time.
    """
    best = Best(run / "best.safetensors")

    @torch.no_grad()
    def validate(current: nn.Module) -> tuple[dict[str, float], list[str]]:
        device = next(current.parameters()).device
        loss = float(losses(current, held.to(device), Draws(0, device=device))["action"].mean())
        best.offer(current, loss)
        return {"action": loss}, []

    def open_stream(shards: int, shard: int | None) -> Any:
        return stream() if stream else Minibatches(train, config.batch // config.accumulate, config.seed)

    fit(run, module, losses, weights or {"action": 1.0}, open_stream, config, validate, title)
    best.restore(module)
    return best.loss


def quick(steps: int, seed: int, lr: float = 3e-4, batch: int = 64, **more: Any) -> TrainConfig:
    """Training options of a small head on cached latents: no averaging (the best checkpoint is chosen), rare checkpoints."""
    return TrainConfig(
        steps=steps, batch=batch, lr=lr, warmup=50, weight_decay=0.05, ema=0.0, seed=seed,
        checkpoint_every=steps, validate_every=10, log_every=10, **{"device": "cpu"} | more,
    )  # fmt: skip


def translator_losses(prefix: nn.Module) -> Losses:
    """The loss of a translator on latents whose prefix is drawn from the LAM's own p(k), k >= 0 (§4.2)."""

    def losses(module: Translator, batch: Labelled, draws: Draws) -> dict[str, Tensor]:
        law = prefix.to(batch.z.device)  # where the loop put the batch
        z = law(batch.z, law.draw(draws, len(batch)))  # type: ignore[operator]
        return {"action": module.action.loss(module(z, batch.previous, batch.observation), batch.action)}

    return losses


def idm_losses(module: InverseDynamics, batch: Labelled, draws: Draws) -> dict[str, Tensor]:
    """The action loss of an inverse dynamics model."""
    assert batch.clip is not None
    return {"action": module.action.loss(module(to_float(batch.clip.frames), batch.previous), batch.action)}


def train_translator(
    lam: LAM,
    train: Labelled,
    held: Labelled,
    spec: ActionSpec,
    config: TranslatorConfig,
    training: TrainConfig,
    run: Path | None = None,
    steps: int = 1,
) -> tuple[Translator, float]:
    """A translator for a frozen LAM, and its validation loss. ``run`` keeps log and checkpoints (a temporary folder by default).

    ``spec``: of one action; ``steps``: actions of one label.
    """
    torch.manual_seed(training.seed)
    observation = 0 if train.observation is None else train.observation.shape[-1]
    translator = Translator(train.z.shape[1] * train.z.shape[2], spec, config, observation, steps)
    translator.calibrate(train.action)
    prefix = copy.deepcopy(lam.prefix).requires_grad_(False)
    with Scratch() as scratch:
        title = "align" if run else None
        folder = run or Path(scratch)
        loss = fit_head(translator, translator_losses(prefix), train, held, training, folder, title=title)
    return translator.to(train.z.device).eval(), loss


def train_idm(
    config: LAMConfig,
    train: Labelled,
    held: Labelled,
    spec: ActionSpec,
    training: TrainConfig,
    pairs: bool = True,
    head: TranslatorConfig | None = None,
    steps: int = 1,
) -> tuple[InverseDynamics, float]:
    """An inverse dynamics model from scratch on the labels alone, and its validation loss. ``head``: the translator's shape, ``spec`` and
    ``steps`` as for that."""
    torch.manual_seed(training.seed)
    module = InverseDynamics(config, spec, pairs, head or TranslatorConfig(), steps)
    module.translator.calibrate(train.action)
    with Scratch() as scratch:
        loss = fit_head(module, idm_losses, train, held, training, Path(scratch))
    return module.cpu().eval(), loss
