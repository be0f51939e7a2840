"""Scripted experts of the Doom scenarios: functions from the engine's state to the name of an action.

They may read state that the frames do not show. They are stateless, so that the random actions of collecting do not disturb them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True, eq=False)
class Thing:
    """An object of the game, and where the player sees it."""

    name: str
    position: np.ndarray  # map units [2]
    velocity: np.ndarray  # map units a tic [2], mean of the last decision
    distance: float  # map units
    bearing: float  # degrees of [-180, 180), positive to the left
    hostile: bool  # a living monster


@runtime_checkable
class Doom(Protocol):
    """What an expert may ask the engine (:class:`lamina.envs.doom.Doom` answers)."""

    turning: bool

    def things(self) -> list[Thing]: ...
    def enemies(self) -> list[Thing]: ...
    def room(self, direction: np.ndarray) -> tuple[float, float]: ...
    def time(self) -> int: ...
    def armed(self) -> bool: ...
    def velocity(self) -> np.ndarray: ...
    def pose(self) -> tuple[float, float, float]: ...
    def bearing_of_path(self, goals: tuple[str, ...], avoid: tuple[str, ...]) -> float: ...


Expert = Callable[[Doom], str]

FRAME_SKIP = 5  # tics that an action is held; Doom has 35 a second
TURN = 8.79  # degrees turned by the first of several decisions to turn; those that follow it at once turn twice as much
RADIUS = {"Demon": 30.0, "Cacodemon": 31.0, "MarineChainsawVzd": 16.0}  # of monsters, map units; 20 for the others
NEAR = 500.0  # map units: whom to shoot before walking on
LAUNCH = 2 * FRAME_SKIP, 50.0  # after so many tics a rocket is so many map units away,
ROCKET, CACODEMON = 20.0, 20 / 3  # and goes on at so many a tic; the monster that it is meant for
PATIENCE = 200  # tics of 300 in which the one rocket is kept for a monster that walks straight on
FRICTION, THRUST = 0.90625, 0.75  # of a player that walks sideways: speed kept and gained in each tic
BALL = 40.0  # map units from a fireball at which it does no harm: both radii, and some more
PLANS = np.array(list(product((0, 1, -1), repeat=3)))  # what to do in the next decision, in two more and from then on
FORESIGHT = 9  # decisions


def go_to(*goals: str, avoid: tuple[str, ...] = ()) -> Expert:
    """Walks the shortest path to the nearest of the objects named ``goals``."""

    def expert(doom: Doom) -> str:
        bearing = doom.bearing_of_path(goals, avoid)
        if abs(bearing) < 9:  # half of what one decision turns
            return "forward"
        side = "left" if bearing > 0 else "right"
        return f"forward_{side}" if abs(bearing) < 36 else f"turn_{side}"

    return expert


def fight_to(*goals: str) -> Expert:
    """Shoots every enemy that is in sight and near, then walks on to the nearest of the objects named ``goals``."""
    walk = go_to(*goals)

    def expert(doom: Doom) -> str:
        enemies = [enemy for enemy in doom.enemies() if enemy.distance < NEAR]
        return _aim(doom, enemies) if enemies else walk(doom)

    return expert


def strafe_and_shoot(doom: Doom) -> str:
    """Moves sideways until an enemy is straight ahead, then shoots."""
    enemies = doom.enemies()
    if not enemies:
        return "noop"
    target = min(enemies, key=lambda thing: thing.distance)
    aside = target.distance * np.sin(np.radians(target.bearing))
    if abs(aside) < 20:  # map units; monsters are about 60 wide
        return "attack"
    return "strafe_left" if aside > 0 else "strafe_right"


def turn_and_shoot(doom: Doom) -> str:
    """Turns to the enemy that can be shot soonest, near ones first, and shoots."""
    enemies = doom.enemies()
    return _aim(doom, enemies) if enemies else "noop"


def _aim(doom: Doom, enemies: list[Thing]) -> str:
    """Turns to the most urgent of the enemies; shoots when it would hit."""

    def width(thing: Thing) -> float:  # degrees to either side of its middle at which a shot surely hits
        return float(np.degrees(np.arctan2(0.8 * RADIUS.get(thing.name, 20.0), thing.distance)))

    def urgency(thing: Thing) -> float:  # in decisions
        missed_by = abs((thing.bearing + TURN / 2) % TURN - TURN / 2)  # at best: one can turn by multiples of TURN only
        return abs(thing.bearing) / (2 * TURN) + thing.distance / 200 + 3 * (missed_by > width(thing))

    target = min(enemies, key=urgency)
    if abs(target.bearing) <= width(target):
        return "attack" if doom.armed() else "noop"
    turned = abs(target.bearing) - (2 * TURN if doom.turning else TURN)
    if abs(turned) < abs(target.bearing):
        return "turn_left" if target.bearing > 0 else "turn_right"
    return "noop"


def lead_and_shoot(doom: Doom) -> str:
    """Turns to where a rocket and the one enemy would meet, and shoots when they would."""
    targets = [enemy for enemy in doom.enemies() if enemy.velocity.any()]
    # A rocket leaves in the decision after "attack": no turning meanwhile.
    if not targets or not doom.armed():
        return "noop"
    if targets[0].velocity.all() and doom.time() < PATIENCE:  # aslant it is on a detour, and will soon go elsewhere
        return "noop"

    def cost(plan: tuple[int, int]) -> float:
        decisions = _decisions(plan[0], doom.turning) + plan[1]
        return max(_miss(doom, targets[0], plan[0] * TURN, decisions), 15.0) + 8 * decisions

    turns, wait = min(product(range(-5, 6), range(6)), key=cost)
    if turns == 0:
        return "attack" if wait == 0 and _miss(doom, targets[0], 0.0, 0) < 45 else "noop"
    if doom.turning and turns % 2:
        return "noop"
    return "turn_left" if turns > 0 else "turn_right"


def _decisions(turns: int, turning: bool) -> int:
    """How many decisions it takes to turn by a multiple of TURN: one gives one, those that follow it at once two."""
    turns = abs(turns)
    if turning:
        return turns // 2 + 2 * (turns % 2)
    return (turns + 1) // 2 + 2 * (turns % 2 == 0 and turns > 0)


def _miss(doom: Doom, target: Thing, turn: float, decisions: int) -> float:
    """How near (map units) a rocket that is shot after turning by so many degrees comes to a target that walks on."""
    x, y, angle = doom.pose()
    heading = np.radians(angle + turn)
    times = np.arange(60)[:, None]
    delay, distance = LAUNCH
    rocket = np.array([x, y]) + (distance + ROCKET * times) * np.array([np.cos(heading), np.sin(heading)])
    # Monsters move by leaps of a few tics: only the direction of the last ones can be relied on.
    pace = CACODEMON * target.velocity / np.hypot(*target.velocity)
    prey = target.position + pace * (times + FRAME_SKIP * decisions + delay)
    beyond = np.clip(np.abs(prey[:, 1]) - 560, 0, None)  # it turns round before the walls, at 600
    return float((np.hypot(*(rocket - prey).T) + beyond).min())


def dodge(doom: Doom) -> str:
    """Steps aside from fireballs: tries every plan of a few steps, each against all that fly."""
    x, y, angle = doom.pose()
    ahead = np.array([np.cos(np.radians(angle)), np.sin(np.radians(angle))])
    left = np.array([-ahead[1], ahead[0]])
    balls = [thing for thing in doom.things() if thing.name.endswith("Ball")]
    places = np.array([ball.position - (x, y) for ball in balls]).reshape(-1, 2)
    rates = np.array([ball.velocity for ball in balls]).reshape(-1, 2)
    low, high = doom.room(left)
    aside, speed, cost = np.zeros(len(PLANS)), np.full(len(PLANS), doom.velocity() @ left), np.zeros(len(PLANS))
    for tic in range(FORESIGHT * FRAME_SKIP):
        speed += THRUST * PLANS[:, 0 if tic < FRAME_SKIP else 1 if tic < 3 * FRAME_SKIP else 2]
        aside += speed
        speed *= FRICTION * ((aside > low) & (aside < high))
        aside = aside.clip(low, high)
        cost += 0.97**tic * _danger(places + rates * (tic + 1), ahead, left, aside)
    cost += 0.02 * np.abs(aside - (low + high) / 2)
    return ("noop", "strafe_left", "strafe_right")[PLANS[cost.argmin(), 0]]


def _danger(
    balls: Float[np.ndarray, "n 2"],
    ahead: Float[np.ndarray, "2"],
    left: Float[np.ndarray, "2"],
    aside: Float[np.ndarray, "m"],
) -> Float[np.ndarray, "m"]:
    """How near the fireballs are to a player that has moved by each of ``aside`` to the left, 0 = far from all."""
    gaps = np.maximum(np.abs(balls @ left - aside[:, None]), np.abs(balls @ ahead))
    return (np.clip(BALL - gaps, 0, None) ** 2).sum(1)
