"""Collecting: the dataset on disk equals what the environment rendered, and an interrupted run leaves nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from lamina.data.sampling import open_source
from lamina.envs import collect as collecting
from lamina.envs.base import rollout
from lamina.envs.collect import collect
from lamina.envs.grid import Grid
from lamina.envs.registry import SUITES, Suite, make
from lamina.errors import LaminaError


def read_back_equals_replay(path: Path, name: str, seed: int, worst: float) -> None:
    """Replays the recorded actions in the world and compares every frame (up to the codec's error) and every number.

    With three episodes, the order of the splits is the order of the episodes.
    """
    source = open_source(path)
    info = json.loads((path / "meta/info.json").read_text())
    assert info["splits"] == {"train": "0:1", "validation": "1:2", "test": "2:3"}
    with make(name) as world:
        assert source.fps == world.fps and source.action_spec("action") == world.action
        assert source.cameras == tuple(f"observation.images.{camera}" for camera in world.cameras)
        for episode in source.episodes:
            actions = source.column(episode, "action")
            recorded = iter(actions.astype(np.int64 if world.action.discrete else np.float32))
            steps = list(rollout(world, lambda rng, recorded=recorded: next(recorded), seed, episode.number))
            assert len(steps) == episode.length == len(actions)
            rewards = [step.reward for step in steps]
            np.testing.assert_allclose(source.column(episode, "next.reward")[:, 0], rewards, atol=1e-5)
            np.testing.assert_array_equal(source.column(episode, "next.done")[:, 0], [s.done for s in steps])
            for camera in world.cameras:
                frames = source.frames(episode, f"observation.images.{camera}", 0, episode.length)
                shown = np.stack([step.observation.frames[camera] for step in steps])
                error = np.abs(frames.astype(float) - shown).mean()
                assert error < worst
                assert error < np.abs(frames[1:].astype(float) - shown[:-1]).mean()  # no frame is early
                assert error < np.abs(frames[:-1].astype(float) - shown[1:]).mean()  # or late
            if world.proprio:
                states = source.column(episode, "observation.state")
                np.testing.assert_allclose(states, [s.observation.proprio for s in steps], atol=1e-6)


def test_grid_reads_back_as_it_was(tmp_path):
    path = collect("grid/0.5", tmp_path / "set", episodes=3, seed=7, progress=False)
    assert path == tmp_path / "set"
    read_back_equals_replay(path, "grid/0.5", 7, worst=0.5)


@pytest.mark.sim
@pytest.mark.parametrize("name", ["basic", "metaworld/window-close-v3"])
def test_simulators_read_back_as_they_were(name, tmp_path, monkeypatch):
    try:
        with make(name) as world:
            monkeypatch.setattr(type(world), "max_steps", 30, raising=False)
    except LaminaError as error:
        pytest.skip(str(error))
    path = collect(name, tmp_path / "set", episodes=3, seed=1, noise=0.05, progress=False)
    read_back_equals_replay(path, name, 1, worst=3.0)


def test_frames_are_a_lower_bound_and_the_splits_are_eight_one_one(tmp_path):
    path = collect("grid", tmp_path / "set", frames=9 * 48 + 1, size=(16, 16), progress=False)
    info = json.loads((path / "meta/info.json").read_text())
    assert info["total_frames"] == 480  # whole episodes of 48
    assert info["splits"] == {"train": "0:8", "validation": "8:9", "test": "9:10"}
    assert info["lamina"]["world"] == "grid" and info["lamina"]["noise"] == 0.15 and info["lamina"]["seed"] == 0
    assert info["features"]["action"]["num_classes"] == 4


@pytest.mark.parametrize("noise", [0.0, 0.4, 1.0])
def test_noise_is_the_share_of_random_actions(noise, tmp_path, monkeypatch):
    path = collect("grid/0", tmp_path / "set", episodes=20, noise=noise, size=(16, 16), progress=False)
    source = open_source(path)
    # The grid's reward says whether the action was the expert's; a random one is by chance in a quarter of the cases.
    followed = np.concatenate([source.column(e, "next.reward") for e in source.episodes])
    assert abs(followed.mean() - (1 - 0.75 * noise)) < 4 * np.sqrt(noise / len(followed)) + 1e-9


@pytest.mark.parametrize("noise", [0.0, 0.3, 1.0])
def test_the_experts_action_is_written_beside_what_was_done(noise, tmp_path):
    path = collect("grid/0", tmp_path / "set", episodes=6, noise=noise, hold=3, size=(16, 16), progress=False)
    source = open_source(path)
    if noise in (0.0, 1.0):  # nothing that "action" does not say, or nothing that an expert did
        assert "expert_action" not in json.loads((path / "meta/info.json").read_text())["features"]
        return
    assert source.action_spec("expert_action") == source.action_spec("action")
    done, wanted, reward = (
        np.concatenate([source.column(e, name)[:, 0] for e in source.episodes])
        for name in ("action", "expert_action", "next.reward")
    )
    np.testing.assert_array_equal(done == wanted, reward == 1)  # the grid rewards what its expert would do
    assert 0.1 < (done != wanted).mean() < 0.35


class Judged(Grid):
    """Reaches its goal in two of three episodes; its expert draws random numbers, as one may."""

    def reset(self, seed):
        super().reset(seed)
        self.success = None if self.sigma == 0 else seed % 3 > 0

    def expert(self, rng):
        rng.random(3)
        return super().expert(rng)


def open_judged(name, size):
    return Judged(float(name.partition("/")[2] or 1), size)


def test_only_successes_if_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(collecting, "make", open_judged)

    def episodes(name: str, world: str = "grid", **options) -> tuple[list[list], dict]:
        path = collect(world, tmp_path / name, size=(16, 16), noise=0.3, progress=False, **options)
        source = open_source(path)
        return [
            source.column(e, "action")[:, 0].tolist() for e in sorted(source.episodes, key=lambda e: e.number)
        ], json.loads((path / "meta/info.json").read_text())["lamina"]

    everything, _ = episodes("all", episodes=9)
    chosen, info = episodes("chosen", episodes=6, successes=True)
    assert len(chosen) == 6 and info["failed"]["follow the snaking path"] > 0
    assert 3 <= sum(actions in everything for actions in chosen) <= 6  # those that it would have had, fewer
    cut, info = episodes("cut", episodes=3, max_steps=7)
    assert [len(actions) for actions in cut] == [7, 7, 7] and info["max_steps"] == 7
    done = [e for e in open_source(tmp_path / "cut").episodes]
    assert all(
        open_source(tmp_path / "cut").column(e, "next.done")[:, 0].tolist() == [False] * 6 + [True] for e in done
    )
    with pytest.raises(LaminaError, match="does not judge success"):
        episodes("none", "grid/0", episodes=1, successes=True)
    monkeypatch.setattr(Judged, "reset", lambda self, seed: (Grid.reset(self, seed), setattr(self, "success", False)))
    with pytest.raises(LaminaError, match="the expert failed 50 times in a row"):
        episodes("never", episodes=1, successes=True)
    assert sorted(os.listdir(tmp_path)) == ["all", "chosen", "cut"]


def test_the_noise_does_not_depend_on_what_the_expert_draws(tmp_path, monkeypatch):
    plain = open_source(collect("grid/1", tmp_path / "plain", episodes=3, noise=0.4, size=(16, 16), progress=False))
    monkeypatch.setattr(collecting, "make", open_judged)
    drawing = open_source(collect("grid/1", tmp_path / "drawing", episodes=3, noise=0.4, size=(16, 16), progress=False))
    for one, other in zip(plain.episodes, drawing.episodes, strict=True):
        np.testing.assert_array_equal(plain.column(one, "action"), drawing.column(other, "action"))


def test_processes_give_the_same_data(tmp_path):
    def content(parallel: int, **options) -> tuple[list[tuple], list[np.ndarray]]:
        path = tmp_path / f"{parallel}{len(options)}{list(options)}"
        source = open_source(
            collect("grid/0.5", path, noise=0.3, size=(16, 16), parallel=parallel, progress=False, **options)
        )
        frames = [source.frames(e, "observation.images.grid", 0, e.length).astype(int) for e in source.episodes]
        return [(e.splits, source.column(e, "action").tolist()) for e in source.episodes], frames

    (one, alone), (several, together) = content(1, episodes=5), content(3, episodes=5)
    assert one == several
    # Not equal: the encoder may round a block otherwise in another process state.
    assert max(np.abs(a - b).max() for a, b in zip(alone, together, strict=True)) <= 2  # of 255
    assert len(content(2, frames=100)[0]) == 3


def test_same_arguments_same_data(tmp_path):
    def content(name: str, seed: int) -> tuple[dict[str, bytes], np.ndarray]:
        root = collect("grid", tmp_path / name, episodes=3, seed=seed, size=(16, 16), progress=False)
        source = open_source(root)
        frames = [source.frames(e, source.cameras[0], 0, e.length, None) for e in source.episodes]
        # Not the video's bytes: the encoder may round a block otherwise in another process state.
        files = (p for p in sorted(root.rglob("*")) if p.is_file() and p.suffix != ".mp4")
        return {str(p.relative_to(root)): p.read_bytes() for p in files}, np.concatenate(frames).astype(int)

    (one, frames), (same, again), (other, _) = content("one", 3), content("same", 3), content("other", 4)
    assert one == same and one.keys() == other.keys() and one != other
    assert np.abs(frames - again).max() <= 2  # of 255


@pytest.fixture
def suite(monkeypatch) -> list[Grid]:
    """A suite of three grids, of episodes of 48, 12 and 30 frames; the list of those that are open."""
    lengths = {"grid/0": 48, "grid/0.5": 12, "grid/1": 30}
    opened: list[Grid] = []

    class Task(Grid):
        def close(self):
            opened.remove(self)

    def make_task(name, size):
        world = Task(float(name.partition("/")[2]), size)
        world.task, world.max_steps = f"snake through {name}", lengths[name]
        opened.append(world)
        return world

    monkeypatch.setitem(SUITES, "grids", Suite(tuple(lengths)))
    monkeypatch.setattr(collecting, "make", make_task)
    return opened


def by_task(path: Path) -> dict[str, list]:
    source = open_source(path)
    return {t: [e for e in source.episodes if e.task == t] for t in sorted({e.task for e in source.episodes})}


def test_a_suite_is_shared_evenly_and_every_task_has_every_split(suite, tmp_path):
    path = collect("grids", tmp_path / "set", frames=1440, size=(16, 16), progress=False)
    tasks = by_task(path)
    assert list(tasks) == ["snake through grid/0", "snake through grid/0.5", "snake through grid/1"]
    assert [len(episodes) for episodes in tasks.values()] == [10, 40, 16]  # 480 frames each
    for episodes in tasks.values():
        splits = Counter(e.splits[0][0] for e in episodes)
        assert all(splits[held] >= 1 and abs(splits[held] - len(episodes) / 10) < 1 for held in ("validation", "test"))
    info = json.loads((path / "meta/info.json").read_text())
    assert info["total_frames"] == 1440 and info["total_tasks"] == 3 and info["lamina"]["world"] == "grids"
    assert info["lamina"]["tasks"] == {f"snake through {name}": name for name in SUITES["grids"].worlds}
    order = [e.task for e in open_source(path).episodes if e.splits[0][0] == "train"]
    assert len(set(order[:6])) == 3  # they take turns: what is cut off, is so from all of them
    assert suite == []


def test_a_world_of_a_suite_has_the_episodes_that_it_has_alone(suite, tmp_path):
    together = open_source(collect("grids", tmp_path / "all", episodes=4, seed=3, size=(16, 16), progress=False))
    assert len(together.episodes) == 12
    for name in SUITES["grids"].worlds:
        alone = open_source(
            collect(name, tmp_path / name.replace("/", " "), episodes=4, seed=3, size=(16, 16), progress=False)
        )
        here = [e for e in together.episodes if e.task == f"snake through {name}"]
        assert [e.splits for e in here] == [e.splits for e in alone.episodes]
        for one, other in zip(here, alone.episodes, strict=True):
            np.testing.assert_array_equal(together.column(one, "action"), alone.column(other, "action"))
            frames = [s.frames(e, "observation.images.grid", 0, e.length) for s, e in ((together, one), (alone, other))]
            assert np.abs(np.subtract(*frames, dtype=int)).max() <= 2


def test_few_frames_of_a_suite_are_three_episodes_of_each(suite, tmp_path):
    path = collect("grids", tmp_path / "set", frames=1, size=(16, 16), progress=False)
    for episodes in by_task(path).values():
        assert sorted(e.splits[0][0] for e in episodes) == ["test", "train", "validation"]


def test_a_suite_refuses_one_task_for_all_and_worlds_that_differ(suite, tmp_path, monkeypatch):
    with pytest.raises(LaminaError, match="leave out the task"):
        collect("grids", tmp_path / "set", frames=9, task="walk", progress=False)
    monkeypatch.setitem(SUITES, "grids", Suite(("grid/0", "grid/0")))
    with pytest.raises(LaminaError, match="a task each"):
        collect("grids", tmp_path / "set", frames=9, progress=False)
    assert os.listdir(tmp_path) == [] and suite == []


def test_ctrl_c_closes_every_world_of_a_suite(suite, tmp_path, monkeypatch):
    calls, step = count(), Grid.step

    def interrupted(self, action):
        if next(calls) == 100:
            assert len(suite) == 3
            raise KeyboardInterrupt
        return step(self, action)

    monkeypatch.setattr(Grid, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        collect("grids", tmp_path / "set", frames=999, progress=False)
    assert os.listdir(tmp_path) == [] and suite == []


@pytest.mark.sim
def test_doom_suite_reads_back_task_by_task(tmp_path, monkeypatch):
    pytest.importorskip("vizdoom")
    names = ("basic", "deadly_corridor", "predict_position")
    monkeypatch.setitem(SUITES, "doom-suite", Suite(names))
    path = collect("doom-suite", tmp_path / "set", frames=180, size=(48, 48), progress=False)
    source, tasks = open_source(path), by_task(path)
    assert source.action_spec("action").discrete == (9,) and source.fps == 7
    for name in names:
        with make(name, (48, 48)) as world:
            episodes = tasks[world.task]
            frames = sum(e.length for e in episodes)
            assert len(episodes) >= 3 and frames >= 60
            shown = next(iter(rollout(world, world.expert, 0, 1))).observation.frames["screen"]
            second = next(e for e in episodes if e.splits[0][0] == "validation")  # the second of every world
            recorded = source.frames(second, source.cameras[0], 0, 1)[0]
            assert np.abs(recorded.astype(int) - shown).mean() < 3


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({"frames": 10, "episodes": 1}, "not both"),
        ({"frames": 0}, "frames must be at least 1"),
        ({"size": (64, 0)}, "width must be at least 1"),
        ({"noise": 1.5}, "between 0 and 1"),
    ],
)
def test_impossible_requests_are_refused(arguments, part, tmp_path):
    with pytest.raises(LaminaError, match=part):
        collect("grid", tmp_path / "set", progress=False, **arguments)
    assert os.listdir(tmp_path) == []


def test_an_existing_dataset_is_kept(tmp_path):
    (tmp_path / "set").mkdir()
    with pytest.raises(LaminaError, match="exists already"):
        collect("grid", tmp_path / "set", episodes=1, progress=False)


def test_ctrl_c_leaves_nothing(tmp_path, monkeypatch):
    calls, step = count(), Grid.step

    def interrupted(self, action):
        if next(calls) == 100:
            raise KeyboardInterrupt
        return step(self, action)

    monkeypatch.setattr(Grid, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        collect("grid", tmp_path / "set", episodes=9, progress=False)
    assert os.listdir(tmp_path) == []


def test_an_episode_whose_process_is_killed_is_played_again(tmp_path):
    pytest.importorskip("gymnasium")
    start = np.random.SeedSequence([0, 2]).spawn(2)[0]
    victim = int(start.generate_state(1)[0] >> 1)  # what episode 2 begins with

    def rewards(name: str, lives: int, parallel: int) -> list[list[float]]:
        deaths = tmp_path / f"{name}-deaths"
        deaths.mkdir()
        world = f"gym/mortal_env:Mortal-v0?folder={deaths}&victim={victim}&lives={lives}"
        source = open_source(
            collect(world, tmp_path / name, episodes=7, noise=1, size=(8, 8), parallel=parallel, progress=False)
        )
        assert len(list(deaths.iterdir())) == lives
        return [source.column(episode, "next.reward").ravel().tolist() for episode in source.episodes]

    expected = rewards("alone", 0, 1)
    assert len(expected) == 7 and len({tuple(each) for each in expected}) == 7
    assert rewards("killed", 2, 2) == expected
    with pytest.raises(LaminaError, match="killed 3 times before episode 2 was finished, perhaps") as caught:
        rewards("given up", 9, 2)
    assert "\n" not in str(caught.value) and not (tmp_path / "given up").exists()


def test_kill_leaves_nothing(tmp_path):
    code = "import sys; from lamina.envs.collect import collect; collect('grid', sys.argv[1], frames=10**7)"
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "set")], stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while not list(tmp_path.rglob("*.mp4")) and time.monotonic() < deadline:
            time.sleep(0.05)
        there = sorted(os.listdir(tmp_path))
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 128 + signal.SIGTERM
    assert there == [".set.lock", ".set.partial"]
    assert os.listdir(tmp_path) == []
