"""Environments: the grid's exact state, paths around walls, determinism, and the quality of experts."""

import os
import sys
import time
from itertools import islice, pairwise
from types import SimpleNamespace

import numpy as np
import pytest

from fake_worlds import returns
from lamina.envs import doom_experts as experts
from lamina.envs.base import Step, World, play, rollout
from lamina.envs.grid import MOVES, SNAKE, Grid
from lamina.envs.maze import Maze, free
from lamina.envs.registry import METAWORLD_TIERS, SUITES, WORLDS, make
from lamina.errors import LaminaError
from processes import die, in_child


def open_world(name: str) -> World:
    """The world, or a skip that says what this machine lacks for it."""
    try:
        return make(name)
    except LaminaError as error:
        if "pip install" in str(error) or "OpenGL" in str(error):
            pytest.skip(str(error))
        raise


def cells(picture: np.ndarray) -> np.ndarray:
    """The grid's 4x4 values; every pixel of a cell has the cell's."""
    blocks = picture.reshape(4, picture.shape[0] // 4, 4, picture.shape[1] // 4, 3)
    values = blocks[:, 0, :, 0, 0]
    assert (blocks == values[:, None, :, None, None]).all()
    return values


def square(picture: np.ndarray) -> tuple[int, int]:
    """Where the square is; there must be exactly one."""
    ((row, column),) = np.argwhere(cells(picture)[:3] == 255)
    return int(row), int(column)


def test_grid_moves_exactly_and_walls_hold():
    world = Grid(sigma=0.5)
    world.reset(0)
    for row in range(3):
        for column in range(4):
            for action, (down, right) in enumerate(MOVES):
                world.position = (row, column)
                reward, _ = world.step(np.array([action]))
                expected = (min(max(row + down, 0), 2), min(max(column + right, 0), 3))
                assert square(world.observe().frames["grid"]) == expected
                assert reward == (action == SNAKE[row, column])


def test_grid_expert_walks_every_cell_and_comes_back():
    world = Grid(sigma=0.0)
    steps = list(rollout(world, world.expert, seed=4))
    path = [square(step.observation.frames["grid"]) for step in steps]
    assert len(steps) == world.max_steps and steps[-1].done
    assert len(set(path[:12])) == 12 and path[:12] == path[12:24]
    assert {int(step.action[0]) for step in steps} == {0, 1, 2, 3}


def test_grid_pair_shares_the_state_and_not_the_noise():
    world = Grid(sigma=0.4, size=(8, 16))
    pictures = [
        (cells(step.observation.frames["grid"]), cells(step.observation.frames["paired"]))
        for episode in range(10)
        for step in rollout(world, world.random, seed=1, episode=episode)
    ]
    one, other = (np.stack(each).astype(int) for each in zip(*pictures, strict=True))
    np.testing.assert_array_equal(one[:, :3], other[:, :3])
    noise = np.stack([one[:, 3], other[:, 3]]) / 102  # 0.4 x 255
    assert set(np.unique(noise)) == {0, 1}
    n = noise[0].size
    tolerance = 4 / np.sqrt(n)
    assert abs(noise.mean() - 0.5) < tolerance
    centred = 2 * noise - 1
    assert abs((centred[0] * centred[1]).mean()) < tolerance  # independent of the paired view,
    assert abs((centred[0, 1:] * centred[0, :-1]).mean()) < tolerance  # of the frame before,
    assert abs((centred[0][:, 1:] * centred[0][:, :-1]).mean()) < tolerance  # and of the neighbour


def test_grid_without_noise_has_equal_views():
    world = make("grid/0")
    for step in rollout(world, world.random, seed=2):
        np.testing.assert_array_equal(step.observation.frames["grid"], step.observation.frames["paired"])


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("nowhere", "choose one of grid, my_way_home"),
        ("grid/2", "0 to 1"),
        ("grid/much", "0 to 1"),
    ],
)
def test_unknown_worlds_are_refused_in_one_line(name, part):
    with pytest.raises(LaminaError, match=part) as caught:
        make(name)
    assert "\n" not in str(caught.value)


def test_grid_refuses_a_picture_that_cells_do_not_fill():
    with pytest.raises(LaminaError, match="4x4 cells"):
        make("grid", (64, 62))


def test_missing_simulator_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "vizdoom", None)
    monkeypatch.delitem(sys.modules, "lamina.envs.doom", raising=False)
    with pytest.raises(LaminaError, match=r"pip install 'lamina\[doom\]'"):
        make("my_way_home")


def room(*inner: tuple[float, float, float, float]) -> Maze:
    box = [(0, 0, 400, 0), (400, 0, 400, 400), (400, 400, 0, 400), (0, 400, 0, 0)]
    return Maze(np.array([*box, *inner], dtype=float))


def walk(maze: Maze, distances: np.ndarray, position: np.ndarray) -> np.ndarray:
    path = [position]
    for _ in range(200):
        path.append(maze.ahead(distances, path[-1], cells=1))
        if np.array_equal(path[-1], path[-2]):
            break
    return np.stack(path)


NOWHERE = np.empty((0, 2))


def test_maze_goes_around_a_wall():
    start, goal = np.array([100.0, 60.0]), np.array([300.0, 60.0])
    maze = room((200, 0, 200, 300))
    path = walk(maze, maze.distances(goal[None], NOWHERE), start)
    assert np.hypot(*(path[-1] - goal)) < 32
    crossing = path[np.argmax(path[:, 0] > 200)]
    assert crossing[1] > 300  # through the gap, never through the wall
    free = room()
    direct = walk(free, free.distances(goal[None], NOWHERE), start)
    assert len(direct) < 15 < 30 < len(path)


def test_maze_keeps_away_from_danger():
    start, goal, danger = np.array([60.0, 200.0]), np.array([340.0, 200.0]), np.array([[200.0, 200.0]])
    maze = room()
    nearest = {}
    for name, avoid in (("heedless", NOWHERE), ("careful", danger)):
        path = walk(maze, maze.distances(goal[None], avoid), start)
        assert np.hypot(*(path[-1] - goal)) < 32
        nearest[name] = np.hypot(*(path - danger).T).min()
    assert nearest["heedless"] < 24 and nearest["careful"] > 36  # the player and an item touch within 36


def test_maze_knows_what_cannot_be_reached():
    closed = room((200, 0, 200, 400))
    distances = closed.distances(np.array([[300.0, 200.0]]), NOWHERE)
    assert np.isinf(distances[2:10, 2:-2]).all() and np.isfinite(distances[15:23, 4:-4]).all()
    assert np.isinf(closed.distances(NOWHERE, NOWHERE)).all()


def test_the_first_wall_in_the_way_is_the_nearest():
    walls = np.array([(4, -1, 4, 1), (8, -9, 8, 9), (-9, 5, 9, 5), (2, 1, 2, 3)], dtype=float)
    here = np.zeros(2)
    for gap, expected in (
        ((2, 0), 2),
        ((-1, 0), np.inf),
        ((0, 1), 5),
        ((0, 10), 0.5),
        ((16, 2), 0.25),
        ((0, -3), np.inf),
    ):
        assert free(walls, here, np.array(gap, dtype=float)) == expected
    assert free(walls, np.array([5.0, 0]), np.array([1.0, 0])) == 3  # not what lies behind


class Turret:
    """What the experts ask of the engine, of a player that turns as Doom's does and enemies that walk straight on."""

    def __init__(self, *enemies: tuple[float, ...], bearing: float = 0.0):
        self.angle, self.turning, self.tics, self.shots = bearing, False, 0, 0
        self._enemies = [np.array(enemy, dtype=float) for enemy in enemies]  # x, y, and what it walks in a tic

    def pose(self):
        return 0.0, 0.0, self.angle

    def time(self):
        return self.tics

    def armed(self):
        return True

    def velocity(self):
        return np.zeros(2)

    def room(self, direction):
        return -300.0, 300.0

    def enemies(self, name="Zombieman"):
        found = []
        for x, y, *pace in self._enemies:
            velocity = np.array(pace or (0.0, 0.0))
            x, y = np.array([x, y]) + self.tics * velocity
            bearing = (np.degrees(np.arctan2(y, x)) - self.angle + 180) % 360 - 180
            place = {"position": np.array([x, y]), "distance": float(np.hypot(x, y)), "bearing": float(bearing)}
            found.append(SimpleNamespace(name=name, velocity=velocity, hostile=True, **place))
        return found

    def things(self):
        return self.enemies("DoomImpBall")

    def step(self, action: str) -> None:
        sign = {"turn_left": 1, "turn_right": -1}.get(action, 0)
        self.angle += sign * experts.TURN * (2 if self.turning else 1)
        self.turning, self.tics = sign != 0, self.tics + experts.FRAME_SKIP


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_turn_and_shoot_hits_its_target(noise):
    rng = np.random.default_rng(0)
    for _ in range(50):
        around, distance = rng.uniform(-180, 180), rng.uniform(60, 200)  # so near that one of its turns will hit
        turret = Turret((distance * np.cos(np.radians(around)), distance * np.sin(np.radians(around))))
        decisions = 0
        while (action := experts.turn_and_shoot(turret)) != "attack":
            turret.step(str(rng.choice(["turn_left", "turn_right"])) if rng.random() < noise else action)
            decisions += 1
            assert decisions <= (13 if noise == 0 else 59)
        (enemy,) = turret.enemies()
        assert abs(enemy.distance * np.sin(np.radians(enemy.bearing))) < 20 and abs(enemy.bearing) < 90


def test_the_number_of_decisions_to_turn_is_the_least():
    """Breadth first over (turns done, turning), by Doom's rule; turning to and fro may overshoot."""
    for turning in (False, True):
        least = {(0, turning): 0}
        for decision in range(1, 12):
            for turns, was in [state for state, n in least.items() if n == decision - 1]:
                for sign in (-1, 0, 1):
                    least.setdefault((turns + sign * (1 + was), sign != 0), decision)
        for turns in range(-5, 6):
            assert experts._decisions(turns, turning) == min(n for (t, _), n in least.items() if t == turns)


def test_a_rocket_meets_what_it_was_aimed_at():
    for start in np.linspace(-400, 400, 17):
        for pace in (-20 / 3, 20 / 3):
            turret = Turret((700, start, 0, pace))
            for _ in range(12):
                if (action := experts.lead_and_shoot(turret)) == "attack":
                    break
                turret.step(action)
            if action != "attack":
                assert start * pace >= 0  # on its way out of the room
                continue
            tics = np.arange(60)[:, None]
            direction = np.array([np.cos(np.radians(turret.angle)), np.sin(np.radians(turret.angle))])
            rocket = (50 + 20 * tics) * direction  # 10 tics after the decision, as measured in the engine
            prey = np.array([700, start]) + np.array([0, pace]) * (turret.tics + 10 + tics)
            assert np.abs(rocket - prey).max(1).min() < 42  # a box of both radii


@pytest.mark.parametrize("aside", [-30, 0, 30])
def test_a_fireball_is_dodged_and_nothing_is_not(aside):
    coming = Turret((150, aside, -10, 0))
    action = experts.dodge(coming)
    assert action in ("strafe_left", "strafe_right")
    if aside:
        assert action == ("strafe_right" if aside > 0 else "strafe_left")  # away from it
    assert experts.dodge(Turret((150, aside + 200, -10, 0))) == "noop"
    assert experts.dodge(Turret()) == "noop"


# The steps are enough to tell the expert from chance.
SIMULATORS = [
    ("grid", 2, 48),
    ("my_way_home", 2, 150),
    ("basic", 3, 60),
    ("health_gathering", 1, 250),
    ("health_gathering_supreme", 1, 250),
    ("defend_the_center", 1, 60),
    ("defend_the_line", 1, 60),
    ("take_cover", 2, 200),
    ("deadly_corridor", 3, 60),
    ("predict_position", 6, 60),
    ("metaworld/window-close-v3", 1, 90),
    ("cheetah", 1, 30),
    ("cheetah/0.5,0.05", 1, 30),
]


@pytest.mark.sim
@pytest.mark.parametrize(("name", "episodes", "steps"), SIMULATORS)
def test_expert_beats_chance_and_the_seed_decides(name, episodes, steps, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open_world(name) as world:
        expert, random = (
            np.mean([sum(s.reward for s in islice(rollout(world, policy, 0, n), steps)) for n in range(episodes)])
            for policy in (world.expert, world.random)
        )
        scale = {
            "my_way_home": 0.5,
            "basic": 100,
            "grid": 20,
            "metaworld/window-close-v3": 1,
            "cheetah": 10,
            "cheetah/0.5,0.05": 10,
        }
        scale |= {"defend_the_center": 3, "defend_the_line": 3, "predict_position": 0.3}
        assert expert >= random + scale.get(name, 500)

        first, again, other = (list(islice(rollout(world, world.random, seed, 0), 6)) for seed in (5, 5, 6))
        assert [s.action.tolist() for s in first] == [s.action.tolist() for s in again]
        for one, two in zip(first, again, strict=True):
            for camera in world.cameras:
                np.testing.assert_array_equal(one.observation.frames[camera], two.observation.frames[camera])
        assert any(
            not np.array_equal(one.observation.frames[world.cameras[0]], two.observation.frames[world.cameras[0]])
            for one, two in zip(first, other, strict=True)
        )
        for step in first:
            assert set(step.observation.frames) == set(world.cameras)
            assert all(f.shape == (64, 64, 3) and f.dtype == np.uint8 for f in step.observation.frames.values())
            assert step.action.shape == (world.action.dim,)
            assert step.action.dtype == (np.int64 if world.action.discrete else np.float32)
            if world.proprio:
                assert step.observation.proprio is not None and step.observation.proprio.shape == (world.proprio,)
    assert os.listdir(tmp_path) == []  # simulators leave nothing behind


SUITE = SUITES["doom-suite"].worlds


@pytest.mark.sim
@pytest.mark.parametrize("name", SUITE)
def test_reference_returns_can_be_measured_again(name):
    with open_world(name) as world:
        assert world.reference is not None
        expert, random = world.reference
        episodes = 8 if name in ("basic", "predict_position", "deadly_corridor") else 2
        measured = returns(world, world.expert, episodes, seed=0).mean()
        assert 0.65 < (measured - random) / (expert - random) < 1.5
        by_chance = returns(world, world.random, 20 if name in ("basic", "predict_position") else 2, seed=0).mean()
        assert -0.4 < (by_chance - random) / (expert - random) < 0.4


@pytest.mark.sim
def test_a_suite_shares_everything_but_the_task():
    assert len(SUITE) >= 8 and set(SUITE) <= set(WORLDS)
    worlds = [open_world(name) for name in SUITE]
    try:
        assert len({(w.action, w.cameras, w.fps, w.proprio) for w in worlds}) == 1
        assert len({w.task for w in worlds}) == len(worlds)
        assert [w.name for w in worlds] == list(SUITE)
        for world in worlds:
            drawn = {int(world.random(np.random.default_rng(n))[0]) for n in range(60)}
            assert 2 <= len(drawn) < len(world.action.names)
    finally:
        for world in worlds:
            world.close()


@pytest.mark.sim
def test_doom_turns_the_way_it_says():
    with open_world("my_way_home") as world:
        names = world.action.names
        for action, sign in (("turn_left", 1), ("turn_right", -1)):
            world.reset(3)
            before = world.pose()[2]
            world.step(np.array([names.index(action)]))
            turned = (world.pose()[2] - before + 180) % 360 - 180
            assert 5 < sign * turned < 20


@pytest.mark.sim
def test_doom_ends_its_process():
    psutil = pytest.importorskip("psutil")
    world = open_world("basic")
    engines = [child for child in psutil.Process().children() if "vizdoom" in child.name()]
    assert len(engines) == 1
    world.close()
    world.close()
    _, alive = psutil.wait_procs(engines, timeout=5)
    assert not alive


@pytest.mark.sim
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_kill_9_takes_the_engine_along(tmp_path):
    psutil = pytest.importorskip("psutil")
    open_world("basic").close()
    if not sys.modules["lamina.envs.doom"]._can_tie():
        pytest.skip("no setpriv")

    def work():
        world = make("basic")
        engines = [child.pid for child in psutil.Process().children() if "vizdoom" in child.name()]
        (tmp_path / "engines").write_text(" ".join(map(str, engines)))
        world.reset(0)
        die()

    assert in_child(work) == 9
    (engine,) = (tmp_path / "engines").read_text().split()
    deadline = time.monotonic() + 5
    while psutil.pid_exists(int(engine)) and psutil.Process(int(engine)).status() != "zombie":
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.sim
def test_metaworld_refuses_an_unknown_task():
    open_world("metaworld/reach-v3").close()
    with pytest.raises(LaminaError, match="drawer-open-v3"):
        make("metaworld/drawer-open")


@pytest.mark.sim
def test_metaworlds_tiers_name_every_task_once():
    open_world("metaworld/reach-v3").close()
    from lamina.envs.metaworld import TASKS

    named = [f"{task}-v3" for tasks in METAWORLD_TIERS.values() for task in tasks]
    assert sorted(named) == sorted(TASKS) and len(named) == 50
    assert [len(tasks) for tasks in METAWORLD_TIERS.values()] == [28, 11, 6, 5]
    fifteen = [name.partition("/")[2].removesuffix("-v3") for name in SUITES["metaworld-mt15"].worlds]
    assert [len(set(fifteen) & set(tasks)) for tasks in METAWORLD_TIERS.values()] == [4, 4, 4, 3]
    for name in ("metaworld-mt10", "metaworld-mt15", "metaworld-mt50", "metaworld-mt15-ood-b", "metaworld-mt15-ood-d"):
        assert SUITES[name].max_steps == 200
    assert SUITES["metaworld-suite"].max_steps is None  # its datasets were collected with the world's own 300


@pytest.mark.sim
@pytest.mark.parametrize("task", ["window-open-v3", "drawer-open-v3", "lever-pull-v3", "push-v3"])
def test_metaworlds_first_state_is_that_of_the_first_picture(task):
    """Objects that it has just placed: the expert aims at them, and distractors keep away from them."""
    for seed in range(3):
        world = open_world(f"metaworld/{task},objects")
        world.reset(seed)
        shown = world._state.copy()
        np.testing.assert_allclose(world._env._get_obs(), shown, atol=1e-6)
        for thing in world._objects:
            assert np.linalg.norm(thing.position[:2] - shown[4:6]) > 0.1
        world.close()


@pytest.mark.sim
def test_metaworld_judges_success_and_an_episode_may_last_500_steps():
    with open_world("metaworld/drawer-open-v3") as world:
        assert world.tier == "easy" and world.max_steps == 300
        (*_, last) = play(world, world.expert, 0)
        assert world.success is True and last.reward == 1 and last.done and not last.truncated

        def still(rng):
            return np.zeros(4, np.float32)

        for steps, bound in ((300, None), (40, 40), (500, 500), (500, 700)):
            (*_, last) = played = list(play(world, still, 0, max_steps=bound))
            assert world.success is False and len(played) == steps
            assert last.done and last.truncated  # at 500 by the simulator itself


@pytest.mark.sim
def test_other_surroundings_and_objects_change_pictures_and_nothing_else():
    task = "metaworld/coffee-pull-v3"
    open_world(task).close()

    def film(name: str, episode: int) -> list[Step]:
        with make(name) as world:
            return list(islice(rollout(world, world.expert, 3, episode), 12))

    plain, again = film(task, 0), film(f"{task},objects,surroundings", 0)
    looks = {}
    for change, least in (("surroundings", 20.0), ("objects", 0.2)):
        changed, other = film(f"{task},{change}", 0), film(f"{task},{change}", 1)
        for a, b in zip(plain, changed, strict=True):
            np.testing.assert_array_equal(a.action, b.action)
            np.testing.assert_array_equal(a.observation.proprio, b.observation.proprio)
            for camera, picture in a.observation.frames.items():
                assert np.abs(picture.astype(int) - b.observation.frames[camera]).mean() > (
                    least if camera == "corner2" else 0
                )
        looks[change] = changed[0].observation.frames["corner2"].astype(int)
        difference = np.abs(looks[change] - other[0].observation.frames["corner2"]).mean()
        assert difference > least / 2  # drawn anew for each episode
        same = film(f"{task},{change}", 0)
        np.testing.assert_array_equal(same[5].observation.frames["corner2"], changed[5].observation.frames["corner2"])
    assert np.abs(again[0].observation.frames["corner2"] - looks["surroundings"]).mean() > 0.2  # both together
    with pytest.raises(LaminaError, match="'light' cannot be changed, only surroundings and objects"):
        make(f"{task},light")


@pytest.mark.sim
def test_geoms_out_of_view_are_left_out_of_no_picture(monkeypatch):
    """The same pictures without culling, from where cameras see little and much of the model."""
    with open_world("metaworld/hammer-v3") as world:
        camera, checked = world._camera, 0
        for _ in rollout(world, world.random, 2, max_steps=25):
            for name in world.cameras:
                hidden = camera._out_of_view(world._env.data, name)
                checked += int(hidden.sum())
                fast = camera.picture(world._env.data, name).copy()
                nothing = np.zeros_like(hidden)
                with monkeypatch.context() as patch:
                    patch.setattr(camera, "_out_of_view", lambda data, name, nothing=nothing: nothing)
                    np.testing.assert_array_equal(fast, camera.picture(world._env.data, name))
        assert checked > 25 * 10


# ------------------------------------------------------------------------------------------------ the exogenous state


def film(name: str, steps: int, seed: int = 3) -> list:
    """Observations under the same random actions, whatever the world draws."""
    with open_world(name) as world:
        rng = np.random.default_rng(0)
        world.reset(seed)
        seen = [world.observe()]
        for _ in range(steps):
            world.step(world.random(rng))
            seen.append(world.observe())
        return seen


@pytest.mark.sim
def test_an_exogenous_state_changes_the_picture_and_never_the_truth():
    plain, distracted = film("cheetah", 12), film("cheetah/0.5,0.05", 12)
    for a, b in zip(plain, distracted, strict=True):
        np.testing.assert_array_equal(a.proprio, b.proprio)
        side, paired = b.frames["side"].astype(int), b.frames["paired"].astype(int)
        assert np.abs(side - a.frames["side"]).mean() > 10 and np.abs(side - paired).mean() > 10
    still = [np.abs(b.frames["side"].astype(int) - a.frames["side"]).mean() for a, b in pairwise(distracted)]
    assert 0.5 < np.mean(still) < 15  # it drifts, and does not jump


@pytest.mark.sim
def test_an_exogenous_state_that_switches_is_drawn_anew_at_that_share_of_steps():
    steps = 200
    drifting, switching = (film(name, steps) for name in ("cheetah/0.5,0.05", "cheetah/0.5,0.05,0.25"))
    jumps = {}
    for camera in ("side", "paired"):
        moved = [np.abs(b.frames[camera].astype(int) - a.frames[camera]).mean() for a, b in pairwise(switching)]
        usual = [np.abs(b.frames[camera].astype(int) - a.frames[camera]).mean() for a, b in pairwise(drifting)]
        jumps[camera] = np.array(moved) > 1.5 * max(usual)
        assert 0.12 < jumps[camera].mean() < 0.35
    assert (jumps["side"] != jumps["paired"]).any()  # each view by itself
    for a, b in zip(drifting, switching, strict=True):
        np.testing.assert_array_equal(a.proprio, b.proprio)


@pytest.mark.sim
def test_a_simulators_own_time_limit_counts_as_truncated():
    for name, action, expected in (
        ("cheetah", np.zeros(6, np.float32), (250, True)),
        ("basic", np.array([0]), (60, True)),
    ):
        with open_world(name) as world:
            (*_, last) = played = list(play(world, lambda rng, action=action: action, 0))
        assert (len(played), last.truncated) == expected and last.done
    with open_world("basic") as world:
        (*_, last) = played = list(play(world, world.random, 0, episode=1))  # it shoots the monster in time
    assert len(played) < 60 and last.done and not last.truncated


@pytest.mark.sim
def test_the_cheetahs_expert_is_a_function_of_its_state_and_its_search_is_repeatable():
    open_world("cheetah").close()
    from lamina.envs.cheetah import GAIT
    from lamina_research.gait import Runs, search

    with open_world("cheetah") as world:
        world.reset(5)
        seen = world.observe()
        torques = [world.expert(np.random.default_rng(seed)) for seed in (0, 1)]
    np.testing.assert_array_equal(*torques)
    np.testing.assert_allclose(torques[0], np.clip(GAIT @ np.append(seen.proprio, 1), -1, 1), atol=1e-4)
    good, none = Runs()(np.stack([GAIT, 0 * GAIT]), [0, 0])[0]
    assert good > 300 > 10 > none
    np.testing.assert_array_equal(search(0), search(0))


@pytest.mark.sim
def test_an_exogenous_state_of_no_strength_is_the_plain_picture():
    for a, b in zip(film("cheetah", 4), film("cheetah/0,0", 4), strict=True):
        for picture in b.frames.values():
            np.testing.assert_array_equal(picture, a.frames["side"])


@pytest.mark.sim
def test_a_camera_alone_moves_and_colours_alone_do_not_move_it():
    plain, moved = film("cheetah", 1)[0].frames["side"], film("cheetah/0,0.3", 1)[0].frames["side"]
    assert (plain != moved).any()
    assert abs(plain.mean() - moved.mean()) < 30  # the same colours


@pytest.mark.sim
@pytest.mark.parametrize("variant", ["0.5", "a,b", "0.5,0.05,1,1", "2,0", "0,-0.1", "nan,0", "0,0,2"])
def test_a_distraction_that_makes_no_sense_is_refused(variant):
    open_world("cheetah").close()
    with pytest.raises(LaminaError, match=r"COLOUR,CAMERA|between 0 and 1"):
        make(f"cheetah/{variant}")
