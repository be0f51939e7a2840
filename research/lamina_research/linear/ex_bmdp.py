"""The linear Ex-BMDP of *Why Latent Actions Fail* (§3.3, §4, App. B), and its second moments, sampled and exact.

    s' = s + a,  a ~ N(0, I)        o = H_xi s,  H_xi = H_0 + alpha R_xi        xi' != xi with probability p_switch

A switch goes to one of the other exogenous states, uniformly. Every transition is seen twice: the twin (~o, ~o') shows the same s and s'
under another exogenous state ~xi != xi, which switches by its own coin.

Losses of linear models, their minimisers and the scores all depend on second moments alone. Those are taken in *lifted* coordinates,
e_xi (x) s (one block of d_s numbers for each exogenous state, all but one zero), in which an observation is o = [H_1 ... H_n] (e_xi (x) s).
So the moments of a data set are computed once and serve every alpha, and exact moments are Kronecker products.

Axes: ``*g`` worlds (seeds and grid points, any number of axes), ``n`` exogenous states, ``l`` = n d_s lifted coordinates,
``m`` transitions, ``v`` all variables side by side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lamina.errors import LaminaError


class Variable(NamedTuple):
    """An observed variable e_xi (x) (on_state s + on_action a): ``place`` of its exogenous state in the chain xi' - xi - ~xi - ~xi'."""

    place: int
    on_state: int
    on_action: int


#: What is seen of a transition. q is the controllable change H_xi a (Eq. 10); the action itself is the variable "a".
OBSERVED = {
    "o": Variable(1, 1, 0),
    "o'": Variable(0, 1, 1),
    "~o": Variable(2, 1, 0),
    "~o'": Variable(3, 1, 1),
    "q": Variable(1, 0, 1),
    "~q": Variable(2, 0, 1),
}
ACTION = "a"
CHUNK = 4096  # transitions whose lifted coordinates are held at once


@dataclass(frozen=True)
class LinearExBMDP:
    """Sizes of the world and of a data set. The paper gives d_s = d_a = 8, d_o = 128 and 8,000 trajectories (Table 1). Ours are the number
    of exogenous states, the length of a trajectory, s_0 ~ N(0, I), and the scale of H_0 and R_xi: columns of unit length on average."""

    states: int = 8  # n_xi
    state: int = 8  # d_s = d_a
    observation: int = 128  # d_o
    trajectories: int = 8_000
    steps: int = 4  # transitions of a trajectory

    def __post_init__(self) -> None:
        if self.states < 2:
            raise LaminaError(f"{self.states} exogenous states: a switch needs at least 2")
        for name in ("state", "observation", "trajectories", "steps"):
            if getattr(self, name) < 1:
                raise LaminaError(f"the linear world's {name} must be at least 1, got {getattr(self, name)}")
        if self.state >= self.observation:
            raise LaminaError(
                f"a state of {self.state} dimensions in an observation of {self.observation}: d_s must be below d_o"
            )

    @property
    def rank(self) -> int:
        """Dimensions that observations span, and coordinates that they are given in (:func:`emissions`)."""
        return min(self.observation, self.states * self.state)

    @property
    def spread(self) -> float:
        """Variance of a state's coordinate at the first frame of a transition: mean over the trajectory of 1 + t."""
        return (self.steps + 1) / 2


@dataclass(frozen=True)
class Moments:
    """Second moments E[x y^T] of named variables side by side; everything here has mean zero."""

    matrix: Float[Tensor, "*g v v"]
    sizes: Mapping[str, int]
    _blocks: dict[tuple[object, object], Tensor] = field(default_factory=dict, repr=False, compare=False)

    def _columns(self, names: Sequence[str]) -> Int[Tensor, "c"]:
        starts, at = {}, 0
        for name, size in self.sizes.items():
            starts[name], at = at, at + size
        return torch.cat([torch.arange(starts[n], starts[n] + self.sizes[n]) for n in names])

    def __call__(self, rows: str | tuple[str, ...], columns: str | tuple[str, ...]) -> Float[Tensor, "*g i j"]:
        """The block E[x y^T] of one or several variables each."""
        key = (rows, columns)
        if key not in self._blocks:  # training asks for the same few at every step
            i, j = (self._columns([names] if isinstance(names, str) else names) for names in (rows, columns))
            self._blocks[key] = self.matrix[..., i[:, None], j]
        return self._blocks[key]

    def combine(self, new: Mapping[str, Mapping[str, Tensor | float]]) -> Moments:
        """Moments of linear combinations, {new: {old: matrix [*g i j] or a number}}: ``{"u": {"o'": 1, "o": -1}}`` is u = o' - o."""
        rows = []
        for parts in new.values():
            blocks = {
                old: part if isinstance(part, Tensor) else part * torch.eye(self.sizes[old], dtype=self.matrix.dtype)
                for old, part in parts.items()
            }
            shape = torch.broadcast_shapes(*(b.shape[:-2] for b in blocks.values()))
            height = next(iter(blocks.values())).shape[-2]
            empty = {old: self.matrix.new_zeros(height, size) for old, size in self.sizes.items()}
            rows.append(torch.cat([(empty | blocks)[old].expand(*shape, -1, -1) for old in self.sizes], -1))
        shape = torch.broadcast_shapes(*(row.shape[:-2] for row in rows))
        whole = torch.cat([row.expand(*shape, -1, -1) for row in rows], -2)
        sizes = {name: row.shape[-2] for name, row in zip(new, rows, strict=True)}
        return Moments(whole @ self.matrix @ whole.mT, sizes)


# ------------------------------------------------------------------------------------------------------- the world


def probabilities(p_switch: Sequence[float]) -> Float[Tensor, "p"]:
    """Switching probabilities as float64. Raises LaminaError for one outside [0, 1]."""
    for p in p_switch:
        if not 0 <= p <= 1:  # also what is not a number
            raise LaminaError(f"p_switch {p}: a probability is a number of 0 to 1")
    return torch.tensor(p_switch, dtype=torch.float64)


def sensitivities(alpha: Sequence[float]) -> Float[Tensor, "x"]:
    """Sensitivities alpha as float64. Raises LaminaError for one that is not a positive finite number."""
    for x in alpha:
        if not 0 < x < float("inf"):
            raise LaminaError(
                f"alpha {x}: the sensitivity is a finite number above 0 (at 0 observations span d_s dimensions only)"
            )
    return torch.tensor(alpha, dtype=torch.float64)


def emissions(world: LinearExBMDP, alpha: Float[Tensor, "x"], seeds: Sequence[int]) -> Float[Tensor, "k x r l"]:
    """[H_1 ... H_n] for each seed and alpha: lifted coordinates (l = n d_s) to observations.

    Where n d_s < d_o observations fill only a part of the space. They are then given in an orthonormal basis of that part,
    r = n d_s coordinates: norms, angles and losses stay as they are, and no moment is singular for that reason.
    """

    def draw(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        shape = (world.states + 1, world.observation, world.state)
        return torch.randn(shape, generator=generator, dtype=torch.float64) / world.observation**0.5

    base, exogenous = torch.stack([draw(seed) for seed in seeds])[:, None].split([1, world.states], dim=2)
    maps = base + alpha[:, None, None, None] * exogenous  # k x n o s
    whole = maps.movedim(-3, -2).flatten(-2)
    return torch.linalg.qr(whole).R if world.rank < world.observation else whole


def switching(p: Float[Tensor, "*g"], states: int) -> Float[Tensor, "*g n n"]:
    """Transition matrix of the exogenous state: it stays with 1 - p, else goes to one of the others, uniformly."""
    stay = torch.eye(states, dtype=p.dtype)
    return (1 - p)[..., None, None] * stay + p[..., None, None] * (1 - stay) / (states - 1)


# ----------------------------------------------------------------------------------------------------- exact moments


def _lift(law: Float[Tensor, "*g n n"], one: Variable, other: Variable, world: LinearExBMDP) -> Float[Tensor, "*g l l"]:
    """E[(e_i (x) x)(e_j (x) y)^T] for x, y linear in (s, a), given the joint law of their exogenous states."""
    covariance = one.on_state * other.on_state * world.spread + one.on_action * other.on_action
    return torch.kron(law, covariance * torch.eye(world.state, dtype=law.dtype))


def exact(world: LinearExBMDP, p: Float[Tensor, "*g"]) -> Moments:
    """The lifted moments that infinitely many trajectories would have."""
    n = world.states
    switch, distinct = switching(p, n), switching(torch.ones_like(p), n)
    edges = (switch, distinct, switch)  # of the chain xi' - xi - ~xi - ~xi'

    def law(i: int, j: int) -> Tensor:
        start = torch.eye(n, dtype=p.dtype).expand_as(switch) / n  # xi is uniform, and stays so
        return reduce(torch.matmul, edges[min(i, j) : max(i, j)], start)  # symmetric matrices that commute

    rows = []
    for one in OBSERVED.values():
        row = [_lift(law(one.place, other.place), one, other, world) for other in OBSERVED.values()]
        with_action = torch.eye(world.state, dtype=p.dtype).repeat(n, 1) * one.on_action / n
        rows.append(torch.cat([*row, with_action.expand(*p.shape, -1, -1)], -1))
    upper = torch.cat(rows, -2)
    width = world.state
    action = torch.cat([upper[..., -width:].mT, torch.eye(width, dtype=p.dtype).expand(*p.shape, -1, -1)], -1)
    return Moments(torch.cat([upper, action], -2), lifted_sizes(world))


def lifted_sizes(world: LinearExBMDP) -> dict[str, int]:
    return {**dict.fromkeys(OBSERVED, world.states * world.state), ACTION: world.state}


def leaking(world: LinearExBMDP, p: Float[Tensor, "*g"]) -> Moments:
    """E[Cov(o' | s, xi, a)], lifted: what of the next frame is up to xi' alone (Prop. 4.2)."""
    switch, next_ = switching(p, world.states), OBSERVED["o'"]
    law = torch.eye(world.states, dtype=p.dtype) - switch @ switch
    size = world.states * world.state
    return Moments(_lift(law / world.states, next_, next_, world), {"o'": size})


def context(world: LinearExBMDP, p: Float[Tensor, "*g"]) -> Moments:
    """E[Cov((o, o') | s, a)], lifted: what of both frames is up to the exogenous states (Fig. 4b)."""
    n = world.states
    switch, stay = switching(p, n), torch.eye(n, dtype=p.dtype).expand(*p.shape, -1, -1)
    laws = {("o", "o"): stay, ("o", "o'"): switch, ("o'", "o"): switch, ("o'", "o'"): stay}
    blocks = {(i, j): _lift(law / n - 1 / n**2, OBSERVED[i], OBSERVED[j], world) for (i, j), law in laws.items()}
    rows = [torch.cat([blocks[i, "o"], blocks[i, "o'"]], -1) for i in ("o", "o'")]
    return Moments(torch.cat(rows, -2), dict.fromkeys(("o", "o'"), n * world.state))


def observe(lifted: Moments, emission: Float[Tensor, "*g r l"]) -> Moments:
    """Moments of observations from those of lifted coordinates; the action stays as it is."""
    return lifted.combine({name: {name: 1.0 if name == ACTION else emission} for name in lifted.sizes})


# ---------------------------------------------------------------------------------------------------- sampled moments


@dataclass(frozen=True)
class Transitions:
    """The transitions of a data set, for several seeds and switching probabilities. All probabilities share their random numbers."""

    state: Float[Tensor, "k m s"]
    action: Float[Tensor, "k m s"]
    exogenous: Int[Tensor, "k p m 4"]  # along the chain xi' - xi - ~xi - ~xi'

    def lifted(self, states: int, rows: slice) -> Float[Tensor, "k p m v"]:
        """e_xi (x) (.) of every observed variable and the action, side by side."""
        state, action = self.state[:, None, rows].double(), self.action[:, None, rows].double()
        parts = []
        for variable in OBSERVED.values():
            value = variable.on_state * state + variable.on_action * action
            which = torch.nn.functional.one_hot(self.exogenous[:, :, rows, variable.place], states)
            parts.append((which[..., :, None] * value[..., None, :]).flatten(-2))
        return torch.cat([*parts, action.expand(*parts[0].shape[:-1], -1)], -1)


def simulate(world: LinearExBMDP, p: Float[Tensor, "p"], seeds: Sequence[int]) -> Transitions:
    """Trajectories of each seed, cut into transitions. A seed's data does not depend on which other seeds are drawn."""
    shape, n = (world.trajectories, world.steps), world.states

    def draw(seed: int) -> tuple[Tensor, ...]:
        # Far from the seeds of the emissions, which every split shares.
        generator = torch.Generator().manual_seed(1_000_003 * (seed + 1))
        start, action = (torch.randn(world.trajectories, k, world.state, generator=generator) for k in (1, world.steps))
        coins = torch.rand(2, *shape, generator=generator)
        jumps = torch.randint(1, n, (3, *shape), generator=generator)  # of xi, of ~xi, and from xi to ~xi
        return start, action, coins, jumps, torch.randint(n, (world.trajectories, 1), generator=generator)

    start, action, coins, jumps, first = map(torch.stack, zip(*(draw(seed) for seed in seeds), strict=True))
    state = torch.cat([start, start + action.cumsum(2)], 2)[:, :, :-1]
    threshold = p.float()[:, None, None]
    moved, twin_moved = (jumps[:, i, None] * (coins[:, i, None] < threshold) for i in (0, 1))
    after = first[:, None] + moved.cumsum(-1)
    before = after - moved
    twin = before + jumps[:, 2, None]
    exogenous = torch.stack([after, before, twin, twin + twin_moved], -1) % n
    return Transitions(state.flatten(1, 2), action.flatten(1, 2), exogenous.flatten(2, 3))


def sampled(world: LinearExBMDP, p: Float[Tensor, "p"], seeds: Sequence[int]) -> Moments:
    """The lifted moments of simulated data, [k p v v]. Raises LaminaError where there are fewer transitions than variables."""
    data = simulate(world, p, seeds)
    count, sizes = data.state.shape[1], lifted_sizes(world)
    if count <= 2 * world.rank:
        raise LaminaError(
            f"{count} transitions for two frames of {world.rank} dimensions each: their moments are rank-deficient; draw more trajectories"
        )
    total = torch.zeros(len(seeds), len(p), sum(sizes.values()), sum(sizes.values()), dtype=torch.float64)
    for at in range(0, count, CHUNK):
        features = data.lifted(world.states, slice(at, at + CHUNK))
        total += features.mT @ features
    return Moments(total / count, sizes)
