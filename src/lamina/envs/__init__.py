"""Simulated environments with scripted experts. Each module defines ``make(name, variant, size) -> World`` and is imported on demand."""

from __future__ import annotations

from lamina.envs.base import Observation, Step, Transition, World, play, rollout
from lamina.envs.registry import SUITES, WORLDS, make

__all__ = ["SUITES", "WORLDS", "Observation", "Step", "Transition", "World", "make", "play", "rollout"]
