"""The 4x4 grid of *Why Latent Actions Fail* (§5): a square that is moved, over a row of noise that is not.

The square moves left, right, up or down through the upper three rows and stays where a wall is in the way. Each pixel of the
bottom row is drawn anew at every transition, Bernoulli(1/2) times sigma: the exogenous state. The camera ``paired`` shows the
same square over another draw of it. The expert follows a path that snakes through all twelve cells, so the frame says what it
will do. Where the paper's path ends, it does not say; here it is closed, down one column and up the next and home along the top
row, so that every action occurs. Pixels are grey, sigma 1 is white.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float, UInt8

from lamina.envs.base import Action, Observation, World
from lamina.errors import LaminaError
from lamina.types import ActionSpec, ImageSize

CELLS = 4
ROWS = CELLS - 1  # that the square moves in
NAMES = ("left", "right", "up", "down")
MOVES = ((0, -1), (0, 1), (-1, 0), (1, 0))  # row, column
LEFT, RIGHT, UP, DOWN = range(4)
SNAKE = np.array(  # what the expert does in each cell
    [
        [DOWN, LEFT, LEFT, LEFT],
        [DOWN, RIGHT, DOWN, UP],
        [RIGHT, UP, RIGHT, UP],
    ]
)


class Grid(World):
    """The grid with noise of strength ``sigma`` in [0, 1]. The reward is 1 for each action on the expert's path."""

    name = "grid"
    task = "follow the snaking path"
    fps = 10
    cameras = ("grid", "paired")
    action = ActionSpec(discrete=(len(NAMES),), names=NAMES)
    max_steps = 48

    def __init__(self, sigma: float = 1.0, size: ImageSize | None = (64, 64)):
        self.sigma = sigma
        height, width = size or (CELLS, CELLS)
        if height % CELLS or width % CELLS:
            raise LaminaError(f"the grid's picture is {CELLS}x{CELLS} cells: its sides cannot be {height}x{width}")
        self._cell = np.ones((height // CELLS, width // CELLS), dtype=np.uint8)

    def reset(self, seed: int) -> None:
        self._noise = np.random.default_rng(seed)
        self.position = (int(self._noise.integers(ROWS)), int(self._noise.integers(CELLS)))
        self._draw()

    def step(self, action: Action) -> tuple[float, bool]:
        choice = int(action[0])
        reward = float(choice == SNAKE[self.position])
        row, column = (here + move for here, move in zip(self.position, MOVES[choice], strict=True))
        self.position = (min(max(row, 0), ROWS - 1), min(max(column, 0), CELLS - 1))
        self._draw()
        return reward, False

    def observe(self) -> Observation:
        return Observation({camera: self._picture(row) for camera, row in self._rows.items()})

    def expert(self, rng: np.random.Generator) -> Action:
        return np.array([SNAKE[self.position]])

    def random(self, rng: np.random.Generator) -> Action:
        return rng.integers(len(NAMES), size=1)

    def _draw(self) -> None:
        """The exogenous row that each camera shows now."""
        self._rows = {c: np.round(255 * self.sigma * self._noise.integers(2, size=CELLS)) for c in self.cameras}

    def _picture(self, row: Float[np.ndarray, "4"]) -> UInt8[np.ndarray, "h w 3"]:
        cells = np.zeros((CELLS, CELLS), dtype=np.uint8)
        cells[self.position] = 255
        cells[ROWS] = row
        return np.repeat(np.kron(cells, self._cell)[..., None], 3, axis=2)


def make(name: str, variant: str, size: ImageSize | None) -> Grid:
    """``grid`` or ``grid/SIGMA``. Raises LaminaError for a sigma that is no number of [0, 1]."""
    try:
        sigma = float(variant or 1.0)
    except ValueError:
        sigma = math.nan
    if not 0 <= sigma <= 1:
        raise LaminaError(f"world '{name}/{variant}': the strength of the noise is a number of 0 to 1, as in grid/0.5")
    return Grid(sigma, size)
