"""A tiny dataset with known actions: a square moves sideways by a discrete action and upwards by a continuous one."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lamina.data.lerobot.writer import LeRobotWriter

SIZE, SIDE, STEP, FPS = 16, 6, 2, 10


def picture(row: float, column: float) -> np.ndarray:
    """[16, 16, 3]: a square on grey, its upper left corner at (row, column)."""
    image = np.full((SIZE, SIZE, 3), 60, np.uint8)
    image[round(row) : round(row) + SIDE, round(column) : round(column) + SIDE] = (230, 180, 120)
    return image


def episode(rng: np.random.Generator, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Actions [t, 2] (0 left, 1 stay, 2 right; rows upwards in [-2, 2]) and the frames [t, 16, 16, 3] they lead to."""
    room = SIZE - SIDE
    place = rng.integers(0, room // STEP + 1, 2) * STEP
    actions, frames = [], []
    for _ in range(length):
        frames.append(picture(*place))
        sideways, up = rng.integers(0, 3), rng.integers(-1, 2) * STEP
        after = np.clip(place + np.array([-up, (sideways - 1) * STEP]), 0, room)
        actions.append([(after[1] - place[1]) / STEP + 1, place[0] - after[0]])  # what the border left of it
        place = after
    return np.array(actions, np.float32), np.stack(frames)


def write_planted(
    root: Path, episodes: int = 10, length: int = 30, seed: int = 0, task: str = "move the square"
) -> Path:
    """A LeRobot dataset with 80/10/10 splits. ``action``: dimension 0 has three classes, dimension 1 is continuous."""
    features = {
        "action": {"dtype": "float32", "shape": [2], "names": ["sideways", "up"], "num_classes": [3]},
        "observation.images.camera": {
            "dtype": "video", "shape": [SIZE, SIZE, 3], "names": ["height", "width", "channels"],
        },
    }  # fmt: skip
    rng = np.random.default_rng(seed)
    with LeRobotWriter(root, FPS, features) as writer:
        for _ in range(episodes):
            actions, frames = episode(rng, length)
            writer.add_episode({"action": actions}, {"observation.images.camera": frames}, task=task)
    return root


def write_complete(root: Path, episodes: int = 10, length: int = 24, seed: int = 0) -> Path:
    """The same with all that a method can ask for: ``observation.state``, where the square is, in pixels from its start (right, up); and a
    second camera, the paired view, in the negative colours."""
    picture = {"dtype": "video", "shape": [SIZE, SIZE, 3], "names": ["height", "width", "channels"]}
    features = {
        "action": {"dtype": "float32", "shape": [2], "names": ["sideways", "up"], "num_classes": [3]},
        "observation.state": {"dtype": "float32", "shape": [2], "names": None},
        "observation.images.camera": picture,
        "observation.images.camera.paired": picture,
    }
    rng = np.random.default_rng(seed)
    with LeRobotWriter(root, FPS, features) as writer:
        for _ in range(episodes):
            actions, frames = episode(rng, length)
            moves = (actions - [1, 0]) * [STEP, 1]
            place = (np.cumsum(moves, axis=0) - moves).astype(np.float32)
            videos = {"observation.images.camera": frames, "observation.images.camera.paired": 255 - frames}
            writer.add_episode({"action": actions, "observation.state": place}, videos, task="move the square")
    return root
