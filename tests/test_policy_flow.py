"""The flow policy: data, mask, losses, sampling, files, and that it learns."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lamina import methods
from lamina.data.memory import InMemoryDataset
from lamina.errors import LaminaError
from lamina.models.hub import LatentActionModel, Provenance
from lamina.policies.base import Observations
from lamina.policies.flow.config import FlowConfig
from lamina.policies.flow.policy import FlowPolicy
from lamina.policies.flow.training import train_flow_policy
from lamina.training.settings import TrainConfig

SIDE, FPS, GAP = 16, 10.0, 0.2
TASKS = ("go to the light", "leave the light")


def light(place: float) -> np.ndarray:
    """A bright column at ``place`` (0 to 1) on grey, [16, 16, 3]."""
    picture = np.full((SIDE, SIDE, 3), 60, np.uint8)
    picture[:, round(place * (SIDE - 3)) : round(place * (SIDE - 3)) + 3] = 240
    return picture


def episodes(count: int, length: int = 20, seed: int = 0, discrete: bool = False) -> list[Any]:
    """Two cameras that show two lights, left and right ones; the action is a function of both and of the task."""
    rng = np.random.default_rng(seed)
    made = []
    for n in range(count):
        places = rng.uniform(0, 1, (length, 2))
        places = np.clip(places[:1] + np.cumsum(rng.normal(0, 0.08, places.shape), 0), 0, 1)
        sign = 1 - 2 * (n % 2)
        values = sign * (places[:, 0] - places[:, 1])
        action = (values > 0).astype(np.int64) if discrete else np.stack([values, 5 + 2 * values], 1).astype(np.float32)
        frames = {camera: np.stack([light(p) for p in places[:, i]]) for i, camera in enumerate(("left", "right"))}
        columns = {"observation.state": np.stack([values**2, np.arange(length)], 1).astype(np.float32)}
        made.append(SimpleNamespace(frames=frames, actions=action, columns=columns, task=TASKS[n % 2]))
    return made


def write_run(folder: Path, **options: Any) -> Path:
    """A run folder with an untrained LAM."""
    torch.manual_seed(0)
    method = methods.load("lapo")
    config = method.build(method.Config(size="debug", image=(SIDE, SIDE), slots=2, **options))
    LatentActionModel(config, Provenance("lapo", gap_seconds=(GAP, GAP))).eval().save_pretrained(folder / "model")
    return folder


def training(**options: Any) -> TrainConfig:
    return TrainConfig(
        **{"steps": 4, "batch": 8, "lr": 1e-3, "warmup": 1, "device": "cpu", "checkpoint_every": 2} | options
    )


def observations(item: Any, step: int) -> Observations:
    frames = {camera: views[step][None] for camera, views in item.frames.items()}
    return Observations(frames, item.columns["observation.state"][step][None], (item.task,))


VARIANTS: dict[str, dict[str, Any]] = {
    "alam": {},
    "none": {"latents": "none"},
    "two stage": {"generation": "two_stage"},
    "villa-X": {"form": "villa_x", "latent_steps": 3},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_learns_a_function_of_two_pictures_and_the_task(name, tmp_path):
    """The task decides the sign, so a policy that ignores one camera or the words fails."""
    run = write_run(tmp_path / "run")
    data = InMemoryDataset(episodes(120), fps=FPS)
    config = FlowConfig(size="debug", chunk=2, replan=1, proprio="none", shift=0.0, flow_steps=4, **VARIANTS[name])
    train_flow_policy(run, [data], config, training(steps=500, batch=32, lr=3e-3, ema=0.98, validate_every=500))
    policy, errors, spread = FlowPolicy.from_run(run), [], []
    for item in episodes(6, seed=1):
        policy.reset()
        for step in range(0, 20, 4):
            chosen = policy.act(observations(item, step))
            errors.append((chosen - item.actions[step]) ** 2)
            spread.append(item.actions[step])
    nmse = np.mean(errors, 0) / np.var(spread, 0)
    print(name, nmse)
    assert (nmse < 0.2).all(), nmse
