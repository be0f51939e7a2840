"""The simulated environments by name, and what each needs to be installed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
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
# fmt: off
#: MetaWorld's fifty tasks by difficulty (Seo et al. 2022, "Masked World Models"; ALAM, Table 10).
METAWORLD_TIERS = {
    "easy": (
        "button-press", "button-press-topdown", "button-press-topdown-wall", "button-press-wall", "coffee-button", "dial-turn",
        "door-close", "door-lock", "door-open", "door-unlock", "drawer-close", "drawer-open", "faucet-close", "faucet-open",
        "handle-press", "handle-press-side", "handle-pull", "handle-pull-side", "lever-pull", "peg-unplug-side", "plate-slide",
        "plate-slide-back", "plate-slide-back-side", "plate-slide-side", "reach", "reach-wall", "window-close", "window-open",
    ),
    "medium": (
        "basketball", "bin-picking", "box-close", "coffee-pull", "coffee-push", "hammer", "peg-insert-side", "push-wall", "soccer",
        "sweep", "sweep-into",
    ),
    "hard": (
        "assembly", "hand-insert", "pick-out-of-hole", "pick-place", "push", "push-back",
    ),
    "very hard": (
        "disassemble", "pick-place-wall", "shelf-place", "stick-pull", "stick-push",
    ),
}
METAWORLD_12 = (
    "button-press-topdown", "door-close", "door-open", "drawer-close", "drawer-open", "faucet-close", "faucet-open", "pick-place",
    "plate-slide", "push", "reach", "window-open",
)
METAWORLD_10 = (
    "reach", "push", "pick-place", "door-open", "drawer-open", "drawer-close", "button-press-topdown", "peg-insert-side", "window-open",
    "window-close",
)
#: Fifteen for small computers, four, four, four and three of the tiers, whose experts succeed within 200 steps in 95% of episodes or more.
METAWORLD_15 = (
    "button-press-topdown", "door-open", "drawer-open", "window-close", "coffee-pull", "coffee-push", "sweep", "sweep-into",
    "hand-insert", "pick-out-of-hole", "pick-place", "push", "pick-place-wall", "shelf-place", "stick-push",
)
# fmt: on


@dataclass(frozen=True)
class Suite:
    """Worlds with the same actions, cameras and frame rate, collected into one dataset: each is a task of it."""

    worlds: tuple[str, ...]
    max_steps: int | None = None  # of an episode; None = the worlds' own


def _metaworld(tasks: Iterable[str], variant: str = "", max_steps: int | None = 200) -> Suite:
    """These tasks, by default with episodes as long as those of ALAM (App. B)."""
    return Suite(tuple(f"metaworld/{task}-v3{variant}" for task in tasks), max_steps)


SUITES = {
    "doom-suite": Suite(tuple(name for name, module in WORLDS.items() if module == "lamina.envs.doom")),
    "metaworld-suite": _metaworld(METAWORLD_12, max_steps=None),
    "metaworld-mt10": _metaworld(METAWORLD_10),
    "metaworld-mt15": _metaworld(METAWORLD_15),
    "metaworld-mt15-ood-b": _metaworld(METAWORLD_15, ",surroundings"),
    "metaworld-mt15-ood-d": _metaworld(METAWORLD_15, ",objects"),
    "metaworld-mt50": _metaworld(task for tasks in METAWORLD_TIERS.values() for task in tasks),
}
EXTRAS = {"vizdoom": "doom", "metaworld": "sim", "mujoco": "sim", "dm_control": "sim"}


def members(name: str) -> Suite:
    """The suite called ``name``, or the world of that name as a suite of one."""
    return SUITES.get(name) or Suite((name,))


def module_of(world: str) -> str:
    """The name of the module that makes a world, or the worlds of a suite. Imports nothing."""
    return WORLDS[members(world).worlds[0].partition("/")[0]]


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
