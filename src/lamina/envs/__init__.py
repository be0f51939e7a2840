"""Worlds that we can ask the truth of. Each is a module with ``make(name, variant, size) -> World``, imported when asked for."""

from __future__ import annotations

from lamina.envs.base import Observation, Step, World, returns, rollout
from lamina.envs.registry import SUITES, WORLDS, make

__all__ = ["SUITES", "WORLDS", "Observation", "Step", "World", "make", "returns", "rollout"]
