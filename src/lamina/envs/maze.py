"""Shortest paths over a floor plan: a grid of cells that prefers to keep away from walls and from dangerous things."""

from __future__ import annotations

from itertools import product

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra
from scipy.spatial import KDTree

CELL = 16.0  # map units; the Doom player is 32 wide
SOLID = 12.0  # a cell nearer than this to a wall cannot be entered; above CELL / sqrt(2), so no step leaps over a wall
COMFORT = 40.0  # nearer than this to a wall costs more
DANGER = 48.0  # nearer than this to a thing to avoid costs much more


class Maze:
    """The walls (x1, y1, x2, y2), in map units, as a graph of cells with eight neighbours each."""

    def __init__(self, walls: Float[np.ndarray, "n 4"]):
        corners = walls.reshape(-1, 2)
        self._origin = corners.min(0)
        self._shape = tuple(np.ceil((corners.max(0) - self._origin) / CELL).astype(int) + 1)
        numbers = np.indices(self._shape).reshape(2, -1).T
        self._centres = self._origin + (numbers + 0.5) * CELL
        clearance = np.full(len(numbers), np.inf)
        for wall in walls:
            clearance = np.minimum(clearance, _distance(self._centres, wall))
        self._tree = KDTree(self._centres)
        self._cost = 1.0 + 4.0 * np.clip(1 - clearance / COMFORT, 0, 1)

        steps = [(dx, dy) for dx, dy in product((-1, 0, 1), repeat=2) if (dx, dy) != (0, 0)]
        sources, targets, lengths = [], [], []
        for step in steps:
            beside = numbers + step
            inside = ((beside >= 0) & (beside < self._shape)).all(1)
            source = np.flatnonzero(inside)
            target = np.ravel_multi_index(tuple(beside[inside].T), self._shape)
            kept = (clearance[source] >= SOLID) & (clearance[target] >= SOLID)
            sources.append(source[kept])
            targets.append(target[kept])
            lengths.append(np.full(kept.sum(), CELL * np.hypot(*step)))
        # Edges sorted as a sparse matrix wants them: row = target, because distances are TO the goals.
        order = np.lexsort((source := np.concatenate(sources), target := np.concatenate(targets)))
        self._source, self._target = source[order].astype(np.int32), target[order].astype(np.int32)
        self._length = np.concatenate(lengths)[order]
        self._rows = np.searchsorted(self._target, np.arange(len(numbers) + 1)).astype(np.int32)

    def distances(
        self, goals: Float[np.ndarray, "n 2"], avoid: Float[np.ndarray, "m 2"]
    ) -> Float[np.ndarray, "columns rows"]:
        """From every cell, the cost of the cheapest path to the nearest goal (inf where there is none)."""
        cost = self._cost.copy()
        cost[self._near(avoid, DANGER)] += 20.0
        weights = self._length * (cost[self._source] + cost[self._target]) / 2
        graph = csr_array((weights, self._source, self._rows), shape=(len(cost), len(cost)))
        if not len(goals):
            return np.full(self._shape, np.inf)
        found = dijkstra(graph, indices=self._near(goals, 1.5 * CELL), min_only=True)
        return found.reshape(self._shape)

    def ahead(
        self, distances: Float[np.ndarray, "columns rows"], position: Float[np.ndarray, "2"], cells: int = 5
    ) -> Float[np.ndarray, "2"]:
        """The point that the cheapest path reaches some cells after ``position``."""
        x, y = np.clip(((position - self._origin) / CELL).astype(int), 0, np.array(self._shape) - 1)
        for _ in range(cells):
            left, low = max(x - 1, 0), max(y - 1, 0)
            window = distances[left : x + 2, low : y + 2]
            dx, dy = np.unravel_index(window.argmin(), window.shape)
            x, y = left + dx, low + dy
        return self._origin + (np.array([x, y]) + 0.5) * CELL

    def _near(self, points: Float[np.ndarray, "n 2"], radius: float) -> Int[np.ndarray, "m"]:
        """The cells nearer than ``radius`` to one of ``points``."""
        near = self._tree.query_ball_point(points.reshape(-1, 2), radius)
        return np.array(sorted({cell for cells in near for cell in cells}), dtype=int)


def free(walls: Float[np.ndarray, "n 4"], position: Float[np.ndarray, "2"], gap: Float[np.ndarray, "2"]) -> float:
    """How often ``gap`` can be walked from ``position`` before a wall is in the way (inf: always)."""
    start, along = walls[:, :2] - position, walls[:, 2:] - walls[:, :2]
    cross = gap[0] * along[:, 1] - gap[1] * along[:, 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        reach = (start[:, 0] * along[:, 1] - start[:, 1] * along[:, 0]) / cross
        share = (start[:, 0] * gap[1] - start[:, 1] * gap[0]) / cross
    return float(reach[(reach > 0) & (share >= 0) & (share <= 1)].min(initial=np.inf))


def _distance(points: Float[np.ndarray, "n 2"], wall: Float[np.ndarray, "4"]) -> Float[np.ndarray, "n"]:
    """From each point to the segment ``wall``."""
    start, along = wall[:2], wall[2:] - wall[:2]
    share = np.clip((points - start) @ along / max(along @ along, 1e-9), 0, 1)
    return np.hypot(*(points - start - share[:, None] * along).T)
