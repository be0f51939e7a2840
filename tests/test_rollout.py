"""Closed-loop evaluation: equal to a loop without processes, and robust to faulty simulators."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path

import av
import numpy as np
import pytest
import scipy.stats

import fake_worlds
from lamina import envs as worlds
from lamina.cli import Collect, Rollout
from lamina.envs.collect import collect
from lamina.envs.registry import SUITES, Suite, make
from lamina.errors import LaminaError, warn
from lamina.intervals import wilson
from lamina.policies import rollout as module
from lamina.policies.base import Observations, Policy
from lamina.policies.films import choose
from lamina.policies.rollout import (
    RolloutResult,
    WorldResult,
    check_action,
    mean_success,
    rollout,
    rollout_worlds,
    summarize,
    table,
)
from lamina.policies.workers import Outcome, Workers
from lamina.types import ActionSpec
from processes import in_child

psutil = pytest.importorskip("psutil")
SIZE = (8, 8)


class Adder:
    """Right on its first two decisions of an episode and every third: its actions depend on the frame and on what it remembers."""

    def __init__(self, parallel: int):
        self.decisions = np.full(parallel, -1000)
        self.seen: list[np.ndarray] = []
        self.begun: list[set[int]] = [set()]

    def reset(self, rows: Sequence[int]) -> None:
        self.decisions[list(rows)] = 0
        self.begun[-1] |= set(rows)

    def act_batch(self, frames: np.ndarray) -> np.ndarray:
        self.seen.append(frames)
        self.begun.append(set())
        actions = [self.act(frame, n) for frame, n in zip(frames, self.decisions, strict=True)]
        self.decisions += 1
        return np.array(actions)[:, None]

    @staticmethod
    def act(frame: np.ndarray, decisions: int) -> int:
        return (int(frame[0, 0, 0]) + int(frame[0, 0, 1]) + (decisions > 1 and decisions % 3 > 0)) % 3


def truth(world: str, episodes: int, seed: int = 0) -> list[float]:
    """What the Adder earns, by the plain loop."""
    found = []
    with fake_worlds.make(world, SIZE) as place:
        for episode in range(episodes):
            decisions = count()

            def policy(rng: np.random.Generator, decisions=decisions) -> np.ndarray:
                return np.array([Adder.act(place.observe().frames[place.cameras[0]], next(decisions))])

            found.append(sum(s.reward for s in worlds.play(place, policy, seed, episode)))
    return found


def start(episode: int, seed: int = 0) -> int:
    """The number that a world is reset with."""
    place = fake_worlds.Fake(SIZE)
    next(worlds.rollout(place, place.expert, seed, episode))
    return place.seed


@pytest.fixture(scope="module")
def crew() -> Iterator[Workers]:
    with Workers(3, SIZE, fake_worlds.make) as workers:
        yield workers


@pytest.fixture(scope="module")
def loner() -> Iterator[Workers]:
    with Workers(1, SIZE, fake_worlds.make, patience=10) as workers:
        yield workers


def play(agent, names: Sequence[str], episodes: int, workers: Workers, **options) -> RolloutResult:
    return rollout_worlds(agent, names, episodes, **{"workers": workers, "seed": 0, "progress": False} | options)


def test_the_record_is_what_plain_loops_say(crew, loner):
    names = ["Fake", "Slow", "grid/0.5"]
    record = play(Adder(3), names, 7, crew)
    for name in names[:2]:
        assert record.worlds[name].returns == truth(name, 7)
        assert record.worlds[name].lengths == [4 + start(n) % 6 for n in range(7)]
    alone = play(Adder(1), names, 7, loner)
    assert {n: w.returns for n, w in alone.worlds.items()} == {n: w.returns for n, w in record.worlds.items()}
    assert (record.episodes, record.seed, record.parallel, record.agent) == (7, 0, 3, "Adder")
    decisions = sum(sum(w.lengths) for w in record.worlds.values())
    assert record.decisions_per_second == pytest.approx(decisions / record.seconds)
    assert record.realtime == pytest.approx(decisions / 10 / record.seconds)
    mean = np.mean(record.worlds["Fake"].returns)
    assert record.worlds["Fake"].above_random == pytest.approx(100 * (mean - 2) / 6)
    assert record.worlds["Fake"].normalized == record.worlds["Slow"].normalized == record.normalized
    assert record.worlds["grid/0.5"].normalized is None  # it publishes no reference: no part of the mean
    assert json.loads(json.dumps(record.to_dict(), allow_nan=False)) == record.to_dict()


class Planner(Adder):
    """Right for two steps at a time: a chunk of two actions a decision, the second by what the first frame tells of the next one."""

    chunk, decision_seconds = 2, 0.2

    def act_batch(self, frames: np.ndarray) -> np.ndarray:
        self.seen.append(frames)
        self.begun.append(set())
        now = frames[:, 0, 0, 0].astype(int) + frames[:, 0, 0, 1]
        return np.stack([now % 3, (now + 1) % 3], 1)[..., None]


def test_an_agent_may_answer_with_several_actions_which_are_carried_out_in_turn(crew):
    planner = Planner(3)
    record = play(planner, ["Fake", "Slow"], 5, crew)
    for name in ("Fake", "Slow"):
        # Every action is right, though the agent saw every second frame only.
        assert record.worlds[name].returns == record.worlds[name].lengths == [4 + start(n) % 6 for n in range(5)]
    decisions = sum(-(-length // 2) for world in record.worlds.values() for length in world.lengths)
    assert record.decisions_per_second * record.seconds == pytest.approx(decisions)
    steps = {int(frame[0, 0, 1]) for frames in planner.seen for frame in frames}
    assert all(step % 2 == 0 for step in steps)  # a chunk that an episode's end cuts short is not carried over
    slow = Planner(3)
    slow.decision_seconds = 0.1
    with pytest.raises(LaminaError, match=r"learned 2 every 0\.1 s"):
        play(slow, ["Fake"], 1, crew)


@pytest.mark.parametrize("policy", ["expert", "random"])
def test_scripted_policies_are_those_of_the_world(crew, policy):
    record = play(policy, ["grid/0.5", "Fake"], 5, crew, seed=3)
    assert record.agent == policy
    for name in ("grid/0.5", "Fake"):
        with fake_worlds.make(name, SIZE) as place:
            expected = fake_worlds.returns(place, getattr(place, policy), 5, seed=3)
        assert record.worlds[name].returns == expected.tolist()


def test_rows_are_reset_where_their_episode_begins(crew):
    agent = Adder(3)
    record = play(agent, ["Fake"], 8, crew)
    assert agent.begun[0] == {0, 1, 2}
    left = sorted(record.worlds["Fake"].lengths)
    idle: set[int] = set()
    for call, frames in enumerate(agent.seen):
        steps = frames[:, 0, 0, 1]
        if call == 0:
            assert (steps == 0).all()
            continue
        before = agent.seen[call - 1]
        for row in range(3):
            if row in idle or np.array_equal(frames[row], before[row]):
                idle.add(row)  # nothing left to do: its last frame again, to the end
                assert np.array_equal(frames[row], before[row]) and row not in agent.begun[call]
            else:
                assert (row in agent.begun[call]) == (steps[row] == 0)
                assert steps[row] in (0, before[row, 0, 0, 1] + 1)
    assert idle and sum(len(b) for b in agent.begun) == len(left)


class Reader(Policy):
    """Reads what Seeing shows by two of its names for cameras, proprioception and task; its actions are right while the hand is low."""

    batch, spec, image, cameras, proprio = (
        3,
        fake_worlds.Fake.action,
        (3, *SIZE),
        ("observation.images.left", "fake"),
        2,
    )

    def __init__(self) -> None:
        self.seen: list[Observations] = []

    def reset(self, rows: Sequence[int] | None = None) -> None:
        pass

    def act_batch(self, observations):
        self.seen.append(observations)
        front = observations.frames["fake"][:, 0, 0].astype(int)
        high = observations.proprio[:, 1] > 3
        return ((front[:, 0] + front[:, 1] + high) % 3)[:, None]


def test_a_policy_is_sent_what_it_reads(crew):
    record = play(reader := Reader(), ["Seeing"], 4, crew).worlds["Seeing"]
    for observed in reader.seen:
        left, front = observed.frames.values()
        assert list(observed.frames) == list(Reader.cameras) and observed.proprio.shape == (3, 2)
        assert (left[..., 2] == 255).all() and (front[..., 2] == 0).all()
        np.testing.assert_array_equal(observed.proprio[:, 1], front[:, 0, 0, 1])  # the step
        assert set(observed.task) <= {"add", ""}
    assert record.returns == [4.0] * 4  # right in steps 0 to 3
    starts = [start(n) for n in range(4)]
    assert record.lengths == [4 + s % 6 for s in starts] and record.truncated == 0
    assert record.success == [s % 6 < 2 for s in starts]


@pytest.mark.parametrize(
    ("claims", "part"),
    [
        (
            {"cameras": ("fake", "wrist")},
            "world 'Seeing' has no camera 'wrist', which the agent reads; it has fake, left",
        ),
        ({"proprio": 3}, "world 'Seeing' has proprioception of 2 numbers, the agent reads 3"),
    ],
)
def test_a_policy_that_reads_what_is_not_there_is_refused(crew, claims, part):
    reader = Reader()
    for name, value in claims.items():
        setattr(reader, name, value)
    with pytest.raises(LaminaError, match=part):
        play(reader, ["Seeing"], 1, crew)
    assert not reader.seen


def test_success_is_counted_by_world_and_tier(crew):
    record = play("expert", ["Seeing", "Seeing:7", "Hard", "Fake"], 6, crew)
    expected = [start(n) % 6 < 2 for n in range(6)]
    assert 0 < sum(expected) < 6
    for name in ("Seeing", "Seeing:7"):
        world = record.worlds[name]
        assert world.success == expected and world.tier == "easy" and world.success_rate.mean == np.mean(expected)
        assert world.success_rate.low < np.mean(expected) < world.success_rate.high
    assert record.worlds["Hard"].success == [False] * 6 and record.worlds["Hard"].success_rate.low == pytest.approx(
        0, abs=1e-12
    )
    assert record.worlds["Fake"].success is record.worlds["Fake"].success_rate is None
    assert record.tiers["easy"].mean == pytest.approx(np.mean(expected)) and record.tiers["hard"].mean == 0
    assert record.success.mean == pytest.approx(np.mean(expected) * 2 / 3)
    shown = table(record)
    assert "mean of easy tasks" in shown and f"{record.success.mean:.3f}" in shown and "% expert" in shown
    assert play("expert", ["Fake"], 2, crew).success is None


def test_the_mean_over_worlds_counts_each_world_the_same():
    def world(*success: bool) -> WorldResult:
        nothing = dict.fromkeys(
            ("standard_error", "expert", "random", "normalized", "normalized_standard_error", "above_random")
        )
        return WorldResult(
            returns=[],
            lengths=[],
            mean=0.0,
            success=list(success),
            success_rate=None,
            tier="",
            lost=[],
            truncated=0,
            **nothing,
        )

    assert mean_success([world(True), world(*[False] * 9)]).mean == pytest.approx(0.5)
    sure, unsure = (mean_success([world(*[True, False] * n)] * 8) for n in (50, 2))
    assert sure.mean == unsure.mean == 0.5 and 0.4 < sure.low < 0.5 < sure.high < 0.6 and unsure.low < 0.35
    assert mean_success([]) is None


@pytest.mark.parametrize(("succeeded", "count"), [(8, 10), (0, 5), (3, 3), (17, 40)])
def test_wilsons_interval_is_scipys(succeeded, count):
    expected = scipy.stats.binomtest(succeeded, count).proportion_ci(method="wilson")
    rate = wilson(succeeded / count, count)
    assert (rate.low, rate.high) == pytest.approx((expected.low, expected.high), abs=1e-6)


def outcome(success: bool | None) -> Outcome:
    return Outcome(0.0, (), False, success)


def test_films_are_of_both_kinds_as_far_as_there_are_both():
    both = {n: outcome(n % 3 == 0) for n in range(9)}
    assert choose(both, 4) == [0, 1, 2, 3]  # two of each
    assert choose({n: outcome(n == 5) for n in range(8)}, 4) == [0, 1, 2, 5]
    assert choose({n: outcome(n != 5) for n in range(8)}, 4) == [0, 1, 2, 5]
    assert choose({n: outcome(None) for n in range(8)}, 4) == [0, 1, 2, 3]
    assert choose({2: outcome(True)}, 4) == [2]


def test_a_film_shows_the_episode_as_it_was(crew, tmp_path):
    videos = tmp_path / "films"
    record = play("expert", ["Seeing", f"Raises:{start(2)}", "Forgetful"], 4, crew, videos=videos)
    page = (videos / "index.html").read_text()
    for episode, (length, success) in enumerate(
        zip(record.worlds["Seeing"].lengths, record.worlds["Seeing"].success, strict=True)
    ):
        film = f"Seeing-{episode:03d}.mp4"
        with av.open(str(videos / film)) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
            assert container.streams.video[0].average_rate == 10
        assert len(frames) == length and frames[0].shape == (256, 256, 3)
        red = [frame[..., 0].mean() for frame in frames]
        assert np.abs(np.subtract(red, start(episode) % 256)).max() < 4
        verdict = "success" if success else "failure"
        assert f'src="{film}"' in page and f"Episode {episode}: {verdict}, return {length}, {length} steps." in page
    raises = page[page.index("Raises") : page.index("Forgetful")]
    assert "Episode 1: return" in raises and "Episode 2:" not in raises  # that one was lost
    assert "Not filmed: played again, its return is 0" in page and not list(videos.glob("Forgetful*"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["films"]
    with pytest.raises(LaminaError, match="films: exists already"):
        play(Reader(), ["Seeing"], 1, crew, videos=videos)
    assert videos.is_dir()


def test_one_row_more_than_episodes(crew):
    record = play(agent := Adder(3), ["Fake"], 2, crew)
    assert record.worlds["Fake"].returns == truth("Fake", 2)
    assert all((frames[2] == 0).all() for frames in agent.seen)


def test_a_crash_loses_its_episode_and_no_other(crew):
    names = [f"Raises:{start(1)}", f"Dies:{start(2)}", "Endless", f"Immeasurable:{start(0)}"]
    record = play(Adder(3), names, 5, crew).worlds
    assert record[names[0]].lost == ["episode 1: RuntimeError: the simulator"]
    assert record[names[1]].lost == ["episode 2: its process was killed by SIGKILL"]
    assert record[names[3]].lost == ["episode 0: its return is nan"]
    expected = truth("Fake", 5)
    for name, episode in zip(names[:2], (1, 2), strict=True):
        assert record[name].returns == expected[:episode] + expected[episode + 1 :]
    assert record["Endless"].lost == [] and record["Endless"].truncated == 5
    assert record["Endless"].lengths == [20] * 5 and record[names[0]].truncated == 0


def test_a_worker_that_does_not_answer_is_given_up(loner):
    world = f"Hangs:{start(0)}"
    loner.inspect([world])  # it takes a while to start
    loner[0]._patience = 0.5
    record = play("expert", [world], 4, loner)
    assert record.worlds[world].lost == ["episode 0: it said nothing for 0.5 s"]


def test_more_than_a_quarter_lost_is_an_error(crew):
    with pytest.raises(
        LaminaError, match=r"1 of 3 episodes were lost, more than a quarter; the last: RuntimeError: the"
    ):
        play("expert", [f"Raises:{start(0)}"], 3, crew)


def test_normalization():
    error = math.sqrt(4 / 3)
    assert summarize([1, 3, 5], (5.0, 1.0)) == {
        "mean": 3.0,
        "standard_error": pytest.approx(error),
        "expert": 5.0,
        "random": 1.0,
        "normalized": pytest.approx(60.0),
        "normalized_standard_error": pytest.approx(20 * error),
        "above_random": pytest.approx(50.0),
    }
    doom = summarize([-128.0], (76.0, -128.0))  # random actions in basic
    assert doom["normalized"] == pytest.approx(-168.42, abs=0.01) and doom["above_random"] == 0
    assert doom["standard_error"] is doom["normalized_standard_error"] is None
    below = summarize([-1.0, -1.0], (-1.0, -3.0))  # percent of an expert that earns less than nothing
    assert below["normalized"] is below["normalized_standard_error"] is None and below["above_random"] == 100
    assert summarize([1.0, 1.0], (2.0, 2.0))["above_random"] is None
    unknown = summarize([1.0, 3.0], None)
    assert (unknown["mean"], unknown["standard_error"]) == (2.0, 1.0)
    assert unknown["expert"] is unknown["normalized"] is unknown["above_random"] is None


MIXED = ActionSpec(discrete=(3, 2), continuous=1)


def test_actions_come_out_as_worlds_take_them():
    assert check_action(np.array([2.0]), ActionSpec((3,)), "w").dtype == np.int64
    mixed = check_action(np.array([2, 1, -7.5]), MIXED, "w")
    assert mixed.dtype == np.float32 and mixed.tolist() == [2, 1, -7.5]


@pytest.mark.parametrize(
    "action",
    [[3, 0, 0], [-1, 0, 0], [0.5, 0, 0], [0, 2, 0], [0, np.nan, 0], [0, 0, np.inf], [0, 0], [[0, 0, 0]]],
)
def test_an_action_outside_the_space_is_refused(action):
    with pytest.raises(LaminaError, match="world 'w'") as caught:
        check_action(np.array(action, dtype=float), MIXED, "w")
    assert "\n" not in str(caught.value)


def test_an_evaluation_goes_no_further_than_a_wrong_action(loner):
    agent = Adder(1)
    agent.act = lambda frame, decisions: 3  # type: ignore[method-assign, assignment]
    with pytest.raises(LaminaError, match=r"action \[3\] is outside the space"):
        play(agent, ["Fake"], 1, loner)
    agent.act_batch = lambda frames: np.zeros((2, 1), dtype=int)  # type: ignore[method-assign]
    with pytest.raises(LaminaError, match="2 actions for 1 frames"):
        play(agent, ["Fake"], 1, loner)


@pytest.mark.parametrize(
    ("claims", "part"),
    [
        ({"decision_seconds": 0.13}, "an action every 0.1 s, the agent learned 1 every 0.13 s"),
        ({"image": (3, 64, 64)}, "frames of 64x64, not 8x8"),
        ({"spec": ActionSpec((4,))}, "actions are not those"),
        ({"spec": ActionSpec((3,), names=("one", "two", "zero"))}, "actions are not those"),
    ],
)
def test_an_agent_that_does_not_fit_is_told_so_before_it_plays(crew, claims, part):
    agent = Adder(3)
    for name, value in claims.items():
        setattr(agent, name, value)
    with pytest.raises(LaminaError, match=part):
        play(agent, ["Fake"], 1, crew)
    assert not agent.seen


def test_an_agent_that_says_what_is_true_may_play(crew):
    agent = Adder(3)
    agent.decision_seconds, agent.image, agent.spec = 0.12, (3, 8, 8), fake_worlds.Fake.action  # type: ignore[attr-defined]
    assert play(agent, ["Fake"], 1, crew).worlds["Fake"].returns == truth("Fake", 1)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({"agent": "best"}, "'expert' or 'random', not 'best'"),
        ({"episodes": 0}, "number of episodes must be at least 1, got 0"),
        ({"max_steps": 0}, "number of steps must be at least 1"),
        ({"parallel": 0}, "parallel environments must be at least 1"),
        ({"seed": -1}, "must not be negative"),
        ({"worlds": []}, "got none"),
        ({"worlds": ["grid", "grid"]}, "each once"),
        ({"make": lambda world, size: None}, "top level of a module"),
    ],
)
def test_bad_arguments(arguments, part):
    with pytest.raises(LaminaError, match=part) as caught:
        rollout_worlds(**{"agent": "random", "worlds": ["grid"], "progress": False} | arguments)
    assert "\n" not in str(caught.value)


def test_worlds_that_cannot_be_opened_or_show_another_size(crew):
    with pytest.raises(LaminaError, match="there is no world 'nowhere'"):
        play("random", ["Fake", "nowhere", "Broken"], 1, crew)
    with pytest.raises(LaminaError, match="world 'Broken' cannot be opened: RuntimeError: no engine"):
        play("random", ["Broken"], 1, crew)
    with pytest.raises(LaminaError, match=r"uint8 frames of \[9, 9, 3\], uint8 of \[8, 8, 3\]"):
        play(Adder(3), ["Large"], 1, crew)


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != "zombie"
    except psutil.NoSuchProcess:
        return False


def gone(pids: Sequence[int], seconds: float = 8.0) -> bool:
    deadline = time.monotonic() + seconds
    while any(alive(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def wait_for(path: Path, seconds: float = 30.0) -> str:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} does not come"
        time.sleep(0.02)
    return path.read_text()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_nothing_outlives_the_evaluation(tmp_path, end):
    def evaluate() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        rollout_worlds(
            "random", [f"Engine:{tmp_path}"], episodes=1, parallel=1, size=SIZE, make=fake_worlds.make, progress=False
        )

    left: list[int] = []

    def interrupt(pid: int) -> None:
        left.append(int(wait_for(tmp_path / "engine")))
        left.extend(child.pid for child in psutil.Process(pid).children(recursive=True))
        os.kill(pid, end)

    status = in_child(evaluate, interrupt)
    assert status == (-1 if end == signal.SIGINT else end)  # KeyboardInterrupt, or killed
    assert len(set(left)) >= 3 and gone(left)  # fork server, worker, engine, and multiprocessing's tracker of resources
    assert (tmp_path / "closed").exists()  # the world was closed, and its engine not merely killed


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_takes_its_engine_with_it(tmp_path, end, crew):
    worker = crew[0]
    worker.open(f"Engine:{tmp_path}")
    engine = int(wait_for(tmp_path / "engine"))
    assert worker.receive()[0] == "open"
    os.kill(worker.pid, end)
    assert worker.receive() == (
        "lost",
        "its process was killed by SIGKILL" if end == signal.SIGKILL else "its process ended with status 143",
    )
    assert (tmp_path / "closed").exists() == (end == signal.SIGTERM)
    crew.end([0])
    assert gone([engine])


def test_a_script_without_a_guard_is_told_what_it_lacks(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from lamina.policies.rollout import rollout_worlds\n"
        "rollout_worlds('random', ['grid'], episodes=1, parallel=1, max_steps=3, progress=False)\n"
    )
    ended = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert "world 'grid' cannot be opened" in ended.stderr and 'under if __name__ == "__main__":' in ended.stderr


def test_a_killed_fork_server_is_replaced(crew):
    play("random", ["Fake"], 1, crew)
    os.kill(psutil.Process(crew[0].pid).ppid(), signal.SIGKILL)
    crew.end(range(3))
    assert play("random", ["Fake"], 3, crew).worlds["Fake"].lost == []


def test_the_command(tmp_path, monkeypatch, crew):
    played = []
    result = play("random", ["Fake"], 1, crew)

    def play_instead(agent, names, *arguments, videos):
        played.append((agent, names, arguments))
        return replace(result, episodes=arguments[0])

    monkeypatch.setattr(module, "rollout_worlds", play_instead)
    monkeypatch.setitem(SUITES, "two", Suite(("basic", "grid"), max_steps=7))
    out = tmp_path / "deep" / "record.json"
    record = rollout("expert", ["two", "cheetah"], episodes=4, parallel=2, seed=5, out=out, progress=False)
    limits = {"basic": 7, "grid": 7, "cheetah": None}
    assert played == [("expert", ["basic", "grid", "cheetah"], (4, 2, 5, limits, (64, 64), False))]
    assert json.loads(out.read_text()) == record.to_dict()
    assert (record.episodes, record.agent, record.k, record.temperature) == (4, "expert", None, 0.0)
    rollout("expert", ["grid"], progress=False)
    assert played.pop()[2][2] == Rollout("random", ("grid",)).seed == 1000 != Collect("grid", out).seed
    for option in ({"k": 3}, {"k": "auto"}, {"temperature": 0.7}):
        with pytest.raises(LaminaError, match="'random' has neither k nor a temperature; leave them out"):
            rollout("random", ["grid"], **option)
    with pytest.raises(LaminaError, match="'grid' is in two suites"):
        rollout("expert", ["two", "grid"], progress=False)
    assert rollout("expert", ["two", "grid"], max_steps=9, progress=False).episodes == 50
    assert played.pop()[2][3] == {"basic": 9, "grid": 9}
    with pytest.raises(LaminaError, match="is a folder"):
        rollout("expert", ["grid"], out=tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(LaminaError, match="cannot be written"):
        rollout("expert", ["grid"], out=tmp_path / "file" / "record.json")
    assert len(played) == 1


def test_a_policy_that_is_played_on_the_starts_of_its_training_is_noticed(tmp_path, monkeypatch, crew):
    monkeypatch.setitem(SUITES, "grids", Suite(("grid/0.5",)))
    data = collect("grid/0.5", tmp_path / "data", episodes=3, seed=4, size=(4, 4), progress=False)
    result = play("random", ["Fake"], 1, crew)
    monkeypatch.setattr(module, "rollout_worlds", lambda *arguments, **options: result)
    monkeypatch.setattr(Policy, "from_run", lambda run, **options: Reader())
    (tmp_path / "policy").mkdir()

    def warnings(world: str, seed: int, trained: object) -> list[str]:
        (tmp_path / "policy" / "config.json").write_text(json.dumps({"data": trained}))
        with pytest.warns() as caught:
            rollout(tmp_path, [world], seed=seed, progress=False)
            warn("the end")
        return [str(w.message) for w in caught][:-1]

    told = f"{data} was collected in 'grid/0.5' with seed 4 too, and the policy was trained on it"
    for world in ("grid/0.5", "grids"):
        for trained in (str(data), [str(tmp_path / "gone"), str(data)]):
            (found,) = warnings(world, 4, trained)
            assert found.startswith(told) and "\n" not in found and "--seed" in found
    assert warnings("grid/0.5", 5, str(data)) == warnings("grid", 4, str(data)) == warnings("grids", 4, "gone") == []
    assert warnings("grids", 4, None) == warnings("grids", 4, 7) == []
    (data / "meta" / "info.json").write_text("{")
    assert warnings("grids", 4, str(data)) == []


@pytest.mark.sim
def test_doom_plays_as_without_processes_and_leaves_none():
    try:
        place = make("basic")
    except LaminaError as error:
        pytest.skip(str(error))
    with place:
        expected = fake_worlds.returns(place, place.expert, 2).tolist()
    record = rollout_worlds(
        "expert", ["basic", "my_way_home"], episodes=2, parallel=2, seed=0, max_steps=60, progress=False
    )
    assert record.worlds["basic"].returns == expected
    assert not [p for p in psutil.Process().children(recursive=True) if "vizdoom" in p.name()]
