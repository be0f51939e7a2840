"""Worlds that we can ask the truth of. Each is a module with ``make(name, variant, size) -> World``, imported when asked for."""

from __future__ import annotations

from importlib import import_module

from lamina.errors import LaminaError
from lamina.worlds.base import Observation, Size, Step, World, returns, rollout

__all__ = ["SUITES", "WORLDS", "Observation", "Step", "World", "make", "returns", "rollout"]

WORLDS = {
    "grid": "lamina.worlds.grid",
    "my_way_home": "lamina.worlds.doom",
    "health_gathering": "lamina.worlds.doom",
    "health_gathering_supreme": "lamina.worlds.doom",
    "basic": "lamina.worlds.doom",
    "defend_the_center": "lamina.worlds.doom",
    "defend_the_line": "lamina.worlds.doom",
    "take_cover": "lamina.worlds.doom",
    "deadly_corridor": "lamina.worlds.doom",
    "predict_position": "lamina.worlds.doom",
    "metaworld": "lamina.worlds.metaworld",
    "gym": "lamina.worlds.gym",
    "cheetah": "lamina.worlds.cheetah",
}
# Worlds with the same actions, cameras and frame rate, collected into one dataset: each is a task of it.
SUITES = {
    "doom-suite": tuple(name for name, module in WORLDS.items() if module == "lamina.worlds.doom"),
    "metaworld-suite": tuple(
        f"metaworld/{task}-v3"
        for task in (
            "button-press-topdown",
            "door-close",
            "door-open",
            "drawer-close",
            "drawer-open",
            "faucet-close",
            "faucet-open",
            "pick-place",
            "plate-slide",
            "push",
            "reach",
            "window-open",
        )
    ),
}
EXTRAS = {"vizdoom": "doom", "metaworld": "sim", "mujoco": "sim", "dm_control": "sim"}


def module_of(world: str) -> str:
    """The name of the module that makes a world, or the worlds of a suite. Imports nothing."""
    return WORLDS[SUITES.get(world, (world,))[0].partition("/")[0]]


def make(world: str, size: Size | None = (64, 64)) -> World:
    """The world called NAME or NAME/VARIANT (``metaworld/reach-v3``, ``grid/0.5``), pictures of ``size`` (height, width).

    ``size`` None leaves pictures as the world renders them. Raises LaminaError for an unknown name, and where the
    simulator is not installed.
    """
    name, _, variant = world.partition("/")
    if name not in WORLDS:
        raise LaminaError(
            f"there is no world '{world}': choose one of {', '.join(WORLDS)} (metaworld/TASK for one task)"
        )
    try:
        module = import_module(WORLDS[name])
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        raise LaminaError(f"world '{world}' needs {package}: pip install 'lamina[{EXTRAS[package]}]'") from error
    return module.make(name, variant, size)
