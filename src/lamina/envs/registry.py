"""The simulated environments by name, and what each needs to be installed."""

from __future__ import annotations

from importlib import import_module

from lamina.envs.base import World
from lamina.errors import LaminaError
from lamina.types import ImageSize

WORLDS = {
    "grid": "lamina.envs.grid",
    "my_way_home": "lamina.envs.doom",
    "health_gathering": "lamina.envs.doom",
    "health_gathering_supreme": "lamina.envs.doom",
    "basic": "lamina.envs.doom",
    "defend_the_center": "lamina.envs.doom",
    "defend_the_line": "lamina.envs.doom",
    "take_cover": "lamina.envs.doom",
    "deadly_corridor": "lamina.envs.doom",
    "predict_position": "lamina.envs.doom",
    "metaworld": "lamina.envs.metaworld",
    "gym": "lamina.envs.gym",
    "cheetah": "lamina.envs.cheetah",
}
# Worlds with the same actions, cameras and frame rate, collected into one dataset: each is a task of it.
SUITES = {
    "doom-suite": tuple(name for name, module in WORLDS.items() if module == "lamina.envs.doom"),
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


def make(world: str, size: ImageSize | None = (64, 64)) -> World:
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
