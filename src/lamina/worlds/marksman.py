"""Scripted experts of the Doom scenarios: functions from the engine's state to the name of an action.

They may read what no picture shows. They keep no plan of their own between decisions, so an action that is replaced by
another one (as collecting does) never puts them out of step.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from lamina.worlds.doom import Doom, Thing

Expert = Callable[["Doom"], str]

TURN = 1600 * 360 / 65536  # degrees that a decision turns after one that did not; twice as much after one that did
TICS = 5
RADIUS = {"Demon": 30.0, "Cacodemon": 31.0, "MarineChainsawVzd": 16.0}  # map units; 20 for the others
FRICTION, THRUST = 0.90625, 0.75  # of a walking player: speed kept and speed gained sideways, each tic


def go_to(*goals: str, avoid: tuple[str, ...] = ()) -> Expert:
    """Walks the shortest path to the nearest of the objects named ``goals``."""

    def expert(doom: Doom) -> str:
        return walk(doom, goals, avoid)

    return expert


def walk(doom: Doom, goals: tuple[str, ...], avoid: tuple[str, ...] = ()) -> str:
    bearing = doom.bearing_of_path(goals, avoid)
    if abs(bearing) < 9:  # half of what one decision turns
        return "forward"
    side = "left" if bearing > 0 else "right"
    return f"forward_{side}" if abs(bearing) < 36 else f"turn_{side}"


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
    """Turns to the enemy that is soonest in the line of fire, near ones first, and shoots."""
    enemies = doom.enemies()
    return aim(doom, min(enemies, key=lambda thing: _urgency(doom, thing))) if enemies else "noop"


def _width(thing: Thing) -> float:
    """Degrees to either side of the middle of a thing at which a shot still hits."""
    return float(np.degrees(np.arctan2(0.8 * RADIUS.get(thing.name, 20.0), thing.distance)))


def _urgency(doom: Doom, thing: Thing) -> float:
    turns = abs(thing.bearing) / (2 * TURN)
    off = abs((thing.bearing + TURN / 2) % TURN - TURN / 2)
    return turns + thing.distance / 100 + 3 * (off > _width(thing))


def aim(doom: Doom, target: Thing) -> str:
    bearing = target.bearing
    if abs(bearing) <= _width(target):
        return "attack" if doom.armed() else "noop"
    step = 2 * TURN if doom.turning else TURN
    if abs(abs(bearing) - step) < abs(bearing):
        return "turn_left" if bearing > 0 else "turn_right"
    return "noop"


def lead_and_shoot(doom: Doom) -> str:
    """Turns to where a rocket and the enemy would meet, and shoots when that is straight ahead."""
    enemies = doom.enemies()
    if not enemies:
        return "noop"
    target = enemies[0]
    best = None
    for units, wait in product(range(-5, 6), range(4)):
        turns = abs(units)
        decisions = (turns + 1) // 2 + (turns % 2 == 1 and turns > 1) * 0
        delay = (decisions + wait) * TICS + LAUNCH
        miss = _miss(doom, target, units * TURN, delay)
        score = miss + 4 * (decisions + wait)
        if best is None or score < best[0]:
            best = (score, miss, units, wait)
    _, miss, units, wait = best
    if units == 0:
        return "attack" if wait == 0 and doom.armed() and miss < 40 else "noop"
    if doom.turning and abs(units) == 1:
        return "noop"
    return "turn_left" if units > 0 else "turn_right"


LAUNCH = 8.0
ROCKET = 20.0


def _miss(doom: Doom, target: Thing, turn: float, delay: float) -> float:
    x, y, angle = doom.pose()
    heading = np.radians(angle + turn)
    direction = np.array([np.cos(heading), np.sin(heading)])
    t = np.arange(0, 80)
    rocket = np.array([x, y]) + 20 * direction + ROCKET * t[:, None] * direction
    prey = target.position + target.velocity * (t[:, None] + delay)
    gaps = np.hypot(*(rocket - prey).T)
    return float(gaps.min())


def dodge(doom: Doom) -> str:
    """Steps aside from what flies towards the player."""
    x, y, angle = doom.pose()
    ahead = np.array([np.cos(np.radians(angle)), np.sin(np.radians(angle))])
    left = np.array([-ahead[1], ahead[0]])
    here = np.array([x, y])
    low, high = doom.room(left)
    balls = [thing for thing in doom.things() if thing.name.endswith("Ball")]
    speed = doom.velocity() @ left
    place = np.stack([b.position - here for b in balls]) if balls else np.empty((0, 2))
    rate = np.stack([b.velocity for b in balls]) if balls else np.empty((0, 2))
    plans = np.array(list(product((0, 1, -1), repeat=3)))
    v = np.full(len(plans), speed)
    p = np.zeros(len(plans))
    cost = np.zeros(len(plans))
    for tic in range(1, 45):
        push = plans[:, min((tic - 1) // 15, 2)]
        if tic <= 5:
            push = plans[:, 0]
        v = v + THRUST * push
        p = p + v
        hit = (p > high) | (p < low)
        p = np.clip(p, low, high)
        v = np.where(hit, 0, v * FRICTION)
        if len(place):
            at = place + rate * tic  # n 2
            gap = np.maximum(np.abs(at @ left - p[:, None]), np.abs(at @ ahead)[None])
            cost += (np.clip(40 - gap, 0, None) ** 2).sum(1) * 0.97**tic
    cost += 0.02 * np.abs(p - (low + high) / 2)
    return ("noop", "strafe_left", "strafe_right")[int(plans[cost.argmin(), 0])]


def fight_to(*goals: str) -> Expert:
    """Shoots every enemy in sight, then walks on to the nearest of the objects named ``goals``."""

    def expert(doom: Doom) -> str:
        enemies = [e for e in doom.enemies() if e.distance < 500]
        if enemies:
            return aim(doom, min(enemies, key=lambda thing: _urgency(doom, thing)))
        return walk(doom, goals)

    return expert
