"""ViZDoom (Kempka et al. 2016): first-person scenarios, one discrete action space for all of them, scripted experts.

A decision lasts five tics of Doom's 35 a second, so that the frame rate, 7, is a whole number. Experts read positions and
walls from the engine. Adding a scenario is one line in SCENARIOS (and its name in ``registry.WORLDS``).

Mean returns and standard errors of 50 episodes of seed 0. The random policy draws from the actions that the scenario's own
configuration has (``Scenario.actions``), uniformly; every scenario understands all nine. None had to be left out of the suite
because its expert is not clearly better than random.

| scenario | expert | random |
|---|---|---|
| my_way_home | 0.979 ± 0.001 | -0.100 ± 0.047 |
| health_gathering | 2100 ± 0 | 429 ± 20 |
| health_gathering_supreme | 1987 ± 45 | 319 ± 11 |
| basic | 76.7 ± 1.9 | -112 ± 27 |
| defend_the_center | 23.6 ± 0.5 | 0.40 ± 0.14 |
| defend_the_line | 18.9 ± 0.6 | 7.0 ± 0.6 |
| take_cover | 1847 ± 64 | 318 ± 14 |
| deadly_corridor | 1656 ± 126 | -31 ± 13 |
| predict_position | 0.640 ± 0.071 | -0.033 ± 0.029 |

defend_the_line and take_cover have no time limit of their own: an episode is over after 2,100 tics, as in the others.
"""

from __future__ import annotations

import atexit
import os
import subprocess
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from shlex import quote

import numpy as np
import vizdoom
from jaxtyping import Float
from vizdoom import Button, GameVariable

from lamina.envs.base import Action, Observation, World, resize
from lamina.envs.doom_experts import (
    FRAME_SKIP,
    Expert,
    Thing,
    dodge,
    fight_to,
    go_to,
    lead_and_shoot,
    strafe_and_shoot,
    turn_and_shoot,
)
from lamina.envs.maze import Maze, free
from lamina.errors import LaminaError
from lamina.files import Scratch
from lamina.types import ActionSpec, ImageSize

BUTTONS = (
    Button.MOVE_FORWARD,
    Button.TURN_LEFT,
    Button.TURN_RIGHT,
    Button.MOVE_LEFT,
    Button.MOVE_RIGHT,
    Button.ATTACK,
)
ACTIONS = {  # every scenario understands every action: a policy can be shared by all
    "noop": (),
    "forward": (Button.MOVE_FORWARD,),
    "turn_left": (Button.TURN_LEFT,),
    "turn_right": (Button.TURN_RIGHT,),
    "forward_left": (Button.MOVE_FORWARD, Button.TURN_LEFT),
    "forward_right": (Button.MOVE_FORWARD, Button.TURN_RIGHT),
    "strafe_left": (Button.MOVE_LEFT,),
    "strafe_right": (Button.MOVE_RIGHT,),
    "attack": (Button.ATTACK,),
}
NAMES = tuple(ACTIONS)
PRESSED = tuple([float(button in ACTIONS[name]) for button in BUTTONS] for name in NAMES)
PLAYER = 16.0  # map units: its radius


@dataclass(frozen=True)
class Scenario:
    """``actions`` are those that the scenario's own configuration allows: the random policy draws from them."""

    task: str
    actions: tuple[str, ...]
    expert: Expert
    reference: tuple[float, float]  # mean return of expert and random policy, 50 episodes of seed 0


WALK = ("forward", "turn_left", "turn_right", "forward_left", "forward_right")
TURN_AND_SHOOT = ("turn_left", "turn_right", "attack")
STRAFE_AND_SHOOT = ("strafe_left", "strafe_right", "attack")
SCENARIOS = {
    "my_way_home": Scenario("walk through the rooms to the green armor", WALK, go_to("GreenArmor"), (0.9785, -0.1000)),
    "health_gathering": Scenario("collect medikits", WALK, go_to("Medikit"), (2100.0, 428.64)),
    "health_gathering_supreme": Scenario(
        "collect medikits, avoid poison", WALK, go_to("CustomMedikit", avoid=("Poison",)), (1987.34, 318.92)
    ),
    "basic": Scenario("shoot the monster", STRAFE_AND_SHOOT, strafe_and_shoot, (76.70, -112.40)),
    "defend_the_center": Scenario("shoot the monsters all around", TURN_AND_SHOOT, turn_and_shoot, (23.60, 0.40)),
    "defend_the_line": Scenario("shoot the monsters along the wall", TURN_AND_SHOOT, turn_and_shoot, (18.88, 7.00)),
    "take_cover": Scenario("dodge the fireballs", ("strafe_left", "strafe_right"), dodge, (1846.86, 317.64)),
    "deadly_corridor": Scenario(
        "fight through the corridor to the green armor",
        ("forward", "turn_left", "turn_right", *STRAFE_AND_SHOOT),
        fight_to("GreenArmor"),
        (1656.19, -30.84),
    ),
    "predict_position": Scenario(
        "hit the moving monster with one rocket", TURN_AND_SHOOT, lead_and_shoot, (0.6395, -0.0333)
    ),
}


class Doom(World):
    """One scenario, rendered at 160x120 and squashed to ``size``."""

    fps = 35 // FRAME_SKIP
    cameras = ("screen",)
    action = ActionSpec(discrete=(len(NAMES),), names=NAMES)

    def __init__(self, name: str, size: ImageSize | None = (64, 64)):
        self.name, self._size, self._scenario = name, size, SCENARIOS[name]
        self.task, self.reference = self._scenario.task, self._scenario.reference
        self._choices = np.array([NAMES.index(action) for action in self._scenario.actions])
        self._game = game = vizdoom.DoomGame()
        # Ending Python leaves the engine's process behind, holding our pipes: close it on every way out that we have.
        atexit.register(self.close)
        game.load_config(str(Path(vizdoom.scenarios_path) / f"{name}.cfg"))
        # The engine obeys a settings file that it finds in the working folder and leaves one behind, and makes a folder
        # there for every game that its settings do not name.
        self._scratch = Scratch()
        settings = Path(self._scratch.name) / "settings.ini"
        settings.write_text(
            "".join(f"[{title}.AutoExec]\n" for title in ("Doom", "Heretic", "Hexen", "Strife", "Chex"))
        )
        game.set_doom_config_path(str(settings))
        if engine := _mortal_engine(Path(self._scratch.name)):
            game.set_vizdoom_path(str(engine))
        game.set_available_buttons(list(BUTTONS))
        game.set_screen_resolution(vizdoom.ScreenResolution.RES_160X120)
        game.set_screen_format(vizdoom.ScreenFormat.RGB24)
        game.set_window_visible(False)
        game.set_objects_info_enabled(True)
        game.set_sectors_info_enabled(True)
        if not game.get_episode_timeout():
            game.set_episode_timeout(2100)
        self.max_steps = -(-game.get_episode_timeout() // FRAME_SKIP)
        game.init()

    def reset(self, seed: int) -> None:
        self._game.set_seed(seed)
        self._game.new_episode()
        self.turning = False  # whether the last action turned the player
        self._path: tuple[object, np.ndarray] = (None, np.empty(0))
        self._state = self._before = self._game.get_state()

    def step(self, action: Action) -> tuple[float, bool]:
        self._before = self._state
        self.turning = not {Button.TURN_LEFT, Button.TURN_RIGHT}.isdisjoint(ACTIONS[NAMES[int(action[0])]])
        reward = self._game.make_action(PRESSED[int(action[0])], FRAME_SKIP)
        done = self._game.is_episode_finished()
        self.truncated = done and self._game.is_episode_timeout_reached()
        if not done:  # a finished game has no state any more
            self._state = self._game.get_state()
        return reward, done

    def observe(self) -> Observation:
        return Observation({"screen": resize(self._state.screen_buffer, self._size)})

    def expert(self, rng: np.random.Generator) -> Action:
        return np.array([NAMES.index(self._scenario.expert(self))])

    def random(self, rng: np.random.Generator) -> Action:
        return rng.choice(self._choices, 1)

    def close(self) -> None:
        atexit.unregister(self.close)
        self._game.close()
        self._scratch.cleanup()

    def things(self) -> list[Thing]:
        """Every object of the map, the player (DoomPlayer) included."""
        x, y, angle = self.pose()
        before = {thing.id: (thing.position_x, thing.position_y) for thing in self._before.objects}
        found = []
        for thing in self._state.objects:
            position = np.array([thing.position_x, thing.position_y])
            velocity = (position - before.get(thing.id, position)) / FRAME_SKIP
            aside, along = position[1] - y, position[0] - x
            bearing = (np.degrees(np.arctan2(aside, along)) - angle + 180) % 360 - 180
            hostile = thing.category == "Monster" and not thing.name.startswith("Dead")
            distance = float(np.hypot(aside, along))
            found.append(Thing(thing.name, position, velocity, distance, float(bearing), hostile))
        return found

    def enemies(self) -> list[Thing]:
        """The living monsters that no wall hides."""
        here = np.array(self.pose()[:2])
        gaps = {thing: thing.position - here for thing in self.things() if thing.hostile}
        return [thing for thing, gap in gaps.items() if free(self._opaque, here, gap) >= 1]

    def room(self, direction: np.ndarray) -> tuple[float, float]:
        """How far the player can move against and along ``direction`` before a wall is in the way, as [low, high]."""
        here = np.array(self.pose()[:2])
        return PLAYER - free(self._walls, here, -direction), free(self._walls, here, direction) - PLAYER

    def time(self) -> int:
        """Tics of the episode so far."""
        return self._game.get_episode_time()

    def armed(self) -> bool:
        """Whether the weapon can shoot now."""
        return bool(self._game.get_game_variable(GameVariable.ATTACK_READY))

    def velocity(self) -> np.ndarray:
        """Of the player, map units a tic [2]."""
        read = self._game.get_game_variable
        return np.array([read(GameVariable.VELOCITY_X), read(GameVariable.VELOCITY_Y)])

    def bearing_of_path(self, goals: tuple[str, ...], avoid: tuple[str, ...]) -> float:
        """Degrees to turn (positive to the left) to follow the shortest path to the nearest goal; 0 where there is no goal."""
        x, y, angle = self.pose()
        objects = [thing for thing in self._state.objects if thing.name in goals + avoid]
        # Paths cost milliseconds, and change only when something appears or is taken.
        key = tuple(sorted((thing.name, thing.position_x, thing.position_y) for thing in objects))
        if self._path[0] != key:
            places = [np.array([[x, y] for name, x, y in key if name in names]) for names in (goals, avoid)]
            self._path = (key, self._maze.distances(*places))
        if not np.isfinite(self._path[1]).any():
            return 0.0
        along, aside = self._maze.ahead(self._path[1], np.array([x, y])) - (x, y)
        return float((np.degrees(np.arctan2(aside, along)) - angle + 180) % 360 - 180)

    @cached_property
    def _maze(self) -> Maze:
        return Maze(self._walls)

    @cached_property
    def _walls(self) -> Float[np.ndarray, "n 4"]:
        """What nobody can walk through: x1, y1, x2, y2."""
        lines = [line for sector in self._state.sectors for line in sector.lines if line.is_blocking]
        return np.array([(line.x1, line.y1, line.x2, line.y2) for line in lines])

    @cached_property
    def _opaque(self) -> Float[np.ndarray, "n 4"]:
        """What nobody can see through: the walls that are not between two sectors (some of those are railings)."""
        walls, sectors = np.unique(self._walls, axis=0, return_counts=True)
        return walls[sectors == 1]

    def pose(self) -> tuple[float, float, float]:
        """Where the player is (map units) and which way it looks (degrees, 0 = along x, positive to the left)."""
        # Not as game variables of the configuration: one more there misaligns those that the scenario declares.
        read = self._game.get_game_variable
        return read(GameVariable.POSITION_X), read(GameVariable.POSITION_Y), read(GameVariable.ANGLE)


def _mortal_engine(folder: Path) -> Path | None:
    """A script in ``folder`` that starts the engine so that it ends when this process does, even by ``kill -9``.

    Linux alone can do that. None where it cannot be done: then a killed Python leaves its engine behind.
    """
    engine, script = Path(vizdoom.__file__).parent / "vizdoom", folder / "vizdoom"
    if not (engine.exists() and _can_tie()):
        return None
    script.write_text(f'#!/bin/sh\nexec setpriv --pdeathsig KILL {quote(str(engine))} "$@"\n')
    script.chmod(0o700)
    return script if os.access(script, os.X_OK) else None  # not where temporary files may not be run


@cache
def _can_tie() -> bool:
    """Whether there is a ``setpriv`` that knows the option (util-linux 2.33 of 2018)."""
    try:
        return (
            subprocess.run(["setpriv", "--pdeathsig", "KILL", "true"], capture_output=True, check=False).returncode == 0
        )
    except OSError:
        return False


def make(name: str, variant: str, size: ImageSize | None) -> Doom:
    """The scenario ``name``. Raises LaminaError for a variant: there are none."""
    if variant:
        raise LaminaError(f"world '{name}' has no variants: ask for '{name}', not '{name}/{variant}'")
    return Doom(name, size)
