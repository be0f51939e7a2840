"""The linear Ex-BMDP of *Why Latent Actions Fail* (§3.3, §4, App. B), and its second moments, sampled and exact.

    s' = s + a,  a ~ N(0, I)        o = H_xi s,  H_xi = H_0 + alpha R_xi        xi' != xi with probability p_switch

A switch goes to one of the other exogenous states, uniformly. Every transition is observed in two views: the paired view (~o, ~o') shows
the same s and s' under another exogenous state ~xi != xi, which switches independently.

The losses of linear models, their minimisers and the scores depend on second moments only. These are computed in *lifted* coordinates,
e_xi (x) s (a block of d_s numbers for each exogenous state, all but one zero), in which an observation is o = [H_1 ... H_n] (e_xi (x) s).
The lifted moments of a dataset serve every alpha, and exact moments are Kronecker products.

Axes: ``*g`` the Ex-BMDPs of a sweep (seeds, alpha, p_switch; any number of axes), ``n`` exogenous states, ``l`` = n d_s lifted
coordinates, ``m`` transitions, ``v`` all variables side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lamina.errors import LaminaError


class Variable(NamedTuple):
    """An observed variable e_xi (x) (on_state s + on_action a); ``position``: of its exogenous state in xi', xi, ~xi, ~xi'."""

    position: int
    on_state: int
    on_action: int


#: The variables of a transition. q is the controllable change H_xi a (Eq. 10); the action itself is the variable "a".
OBSERVED = {
    "o": Variable(1, 1, 0),
    "o'": Variable(0, 1, 1),
    "~o": Variable(2, 1, 0),
    "~o'": Variable(3, 1, 1),
    "q": Variable(1, 0, 1),
    "~q": Variable(2, 0, 1),
}
ACTION, STATE = "a", "s"
CHUNK = 4096  # transitions whose lifted coordinates are in memory at once


@dataclass(frozen=True)
class LinearExBMDP:
    """Sizes of the Ex-BMDP and of a dataset.

    The paper gives d_s = d_a = 8, d_o = 128 and 8,000 trajectories (Table 1). The number of exogenous states, the length of a trajectory,
    s_0 ~ N(0, I), and the scale of H_0 and R_xi (columns have unit length on average) are our choice.
    """

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
        """Dimensions of the space that observations span; also the number of their coordinates (:func:`emissions`)."""
        return min(self.observation, self.states * self.state)

    @property
    def state_variance(self) -> float:
        """Variance of a coordinate of s in a random transition: mean over the trajectory of 1 + t."""
        return (self.steps + 1) / 2


@dataclass(frozen=True)
class Moments:
    """Second moments E[x y^T] of named variables of mean zero, side by side."""

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

    def energy(self, name: str) -> Float[Tensor, "*g"]:
        """E|x|^2 of a variable."""
        return self(name, name).diagonal(dim1=-2, dim2=-1).sum(-1)

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


# ------------------------------------------------------------------------------------------------------- parameters


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


def maps(mdp: LinearExBMDP, alpha: Float[Tensor, "x"], seeds: Sequence[int]) -> Float[Tensor, "k x n o s"]:
    """H_xi of every exogenous state for each seed and alpha, in the observation's own coordinates."""

    def draw(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        shape = (mdp.states + 1, mdp.observation, mdp.state)
        return torch.randn(shape, generator=generator, dtype=torch.float64) / mdp.observation**0.5

    base, exogenous = torch.stack([draw(seed) for seed in seeds])[:, None].split([1, mdp.states], dim=2)
    return base + alpha[:, None, None, None] * exogenous


def span(
    mdp: LinearExBMDP, alpha: Float[Tensor, "x"], seeds: Sequence[int]
) -> tuple[Float[Tensor, "k x o r"], Float[Tensor, "k x r l"]]:
    """An orthonormal basis of the space that observations span, and [H_1 ... H_n] in it, which maps lifted coordinates (l = n d_s).

    If n d_s < d_o, the moments of observations would be singular in their own coordinates; in the basis they have r = n d_s coordinates,
    which changes no norm, angle or loss. Otherwise the basis is the identity.
    """
    whole = maps(mdp, alpha, seeds).movedim(-3, -2).flatten(-2)
    if mdp.rank < mdp.observation:
        basis, inside = torch.linalg.qr(whole)
        return basis, inside
    return torch.eye(mdp.observation, dtype=whole.dtype).expand(*whole.shape[:2], -1, -1), whole


def emissions(mdp: LinearExBMDP, alpha: Float[Tensor, "x"], seeds: Sequence[int]) -> Float[Tensor, "k x r l"]:
    """[H_1 ... H_n] for each seed and alpha, in the coordinates of :func:`span`."""
    return span(mdp, alpha, seeds)[1]


def switching(p: Float[Tensor, "*g"], states: int) -> Float[Tensor, "*g n n"]:
    """Transition matrix of the exogenous state, which switches with probability p to one of the others, uniformly."""
    stay = torch.eye(states, dtype=p.dtype)
    return (1 - p)[..., None, None] * stay + p[..., None, None] * (1 - stay) / (states - 1)


# ----------------------------------------------------------------------------------------------------- exact moments


def _blocks(mdp: LinearExBMDP, names: Sequence[str], law: Callable[[str, str], Float[Tensor, "*g n n"]]) -> Moments:
    """Lifted moments of observed variables; ``law(i, j)``: the joint law of the exogenous states of two of them."""
    unit = torch.eye(mdp.state, dtype=torch.float64)

    def block(i: str, j: str) -> Float[Tensor, "*g l l"]:
        one, other = OBSERVED[i], OBSERVED[j]
        covariance = one.on_state * other.on_state * mdp.state_variance + one.on_action * other.on_action
        return torch.kron(law(i, j), covariance * unit)

    rows = [torch.cat([block(i, j) for j in names], -1) for i in names]
    return Moments(torch.cat(rows, -2), dict.fromkeys(names, mdp.states * mdp.state))


def exact(mdp: LinearExBMDP, p: Float[Tensor, "*g"]) -> Moments:
    """The lifted moments of infinitely many trajectories."""
    n = mdp.states
    switch, distinct = switching(p, n), switching(torch.ones_like(p), n)
    edges = (switch, distinct, switch)  # of the chain xi' - xi - ~xi - ~xi'

    def law(i: int, j: int) -> Tensor:
        start = torch.eye(n, dtype=p.dtype).expand_as(switch) / n  # xi is uniform, and stays so
        return reduce(torch.matmul, edges[min(i, j) : max(i, j)], start)  # symmetric matrices that commute

    lifted = _blocks(mdp, tuple(OBSERVED), lambda i, j: law(OBSERVED[i].position, OBSERVED[j].position))
    unit = torch.eye(mdp.state, dtype=p.dtype)
    on_action = torch.tensor([[variable.on_action] for variable in OBSERVED.values()], dtype=p.dtype)
    action = torch.kron(on_action, unit.repeat(n, 1)) / n  # E[x a^T]
    upper = torch.cat([lifted.matrix, action.expand(*p.shape, -1, -1)], -1)
    lower = torch.cat([action.mT, unit], -1).expand(*p.shape, -1, -1)
    return Moments(torch.cat([upper, lower], -2), lifted_sizes(mdp))


def lifted_sizes(mdp: LinearExBMDP) -> dict[str, int]:
    return {**dict.fromkeys(OBSERVED, mdp.states * mdp.state), ACTION: mdp.state}


def leaking(mdp: LinearExBMDP, p: Float[Tensor, "*g"]) -> Moments:
    """E[Cov(o' | s, xi, a)], lifted: the variation of the next frame that comes from xi' alone (Prop. 4.2)."""
    switch = switching(p, mdp.states)
    return _blocks(mdp, ("o'",), lambda i, j: (torch.eye(mdp.states, dtype=p.dtype) - switch @ switch) / mdp.states)


def context(mdp: LinearExBMDP, p: Float[Tensor, "*g"]) -> Moments:
    """E[Cov((o, o') | s, a)], lifted: the variation of both frames that comes from their exogenous states (Fig. 4b)."""
    n = mdp.states
    switch, stay = switching(p, n), torch.eye(n, dtype=p.dtype).expand(*p.shape, -1, -1)
    return _blocks(mdp, ("o", "o'"), lambda i, j: (stay if i == j else switch) / n - 1 / n**2)


def observe(lifted: Moments, emission: Float[Tensor, "*g r l"]) -> Moments:
    """Moments of observations, and of the state "s", from those of lifted coordinates; the action is unchanged."""
    seen: dict[str, dict[str, Tensor | float]] = {
        name: {name: 1.0 if name == ACTION else emission} for name in lifted.sizes
    }
    if ACTION in lifted.sizes:  # all variables of a transition: a block of e_xi (x) s is s, and the others are zero
        size = lifted.sizes[ACTION]
        seen[STATE] = {"o": torch.eye(size, dtype=emission.dtype).repeat(1, emission.shape[-1] // size)}
    return lifted.combine(seen)


# ---------------------------------------------------------------------------------------------------- sampled moments


@dataclass(frozen=True)
class Transitions:
    """The transitions of a dataset, for several seeds and switching probabilities; all probabilities share their random numbers."""

    state: Float[Tensor, "k m s"]
    action: Float[Tensor, "k m s"]
    exogenous: Int[Tensor, "k p m 4"]  # along the chain xi' - xi - ~xi - ~xi'

    def lifted(self, states: int, rows: slice) -> Float[Tensor, "k p m v"]:
        """e_xi (x) (.) of every observed variable and the action, side by side."""
        state, action = self.state[:, None, rows].double(), self.action[:, None, rows].double()
        parts = []
        for variable in OBSERVED.values():
            value = variable.on_state * state + variable.on_action * action
            which = torch.nn.functional.one_hot(self.exogenous[:, :, rows, variable.position], states)
            parts.append((which[..., :, None] * value[..., None, :]).flatten(-2))
        return torch.cat([*parts, action.expand(*parts[0].shape[:-1], -1)], -1)


def simulate(mdp: LinearExBMDP, p: Float[Tensor, "p"], seeds: Sequence[int]) -> Transitions:
    """Trajectories of each seed, cut into transitions. A seed's data does not depend on which other seeds are drawn."""
    shape, n = (mdp.trajectories, mdp.steps), mdp.states

    def draw(seed: int) -> tuple[Tensor, ...]:
        # Other than the seeds of the emissions, which all splits share.
        generator = torch.Generator().manual_seed(1_000_003 * (seed + 1))
        start, action = (torch.randn(mdp.trajectories, k, mdp.state, generator=generator) for k in (1, mdp.steps))
        coins = torch.rand(2, *shape, generator=generator)
        jumps = torch.randint(1, n, (3, *shape), generator=generator)  # of xi, of ~xi, and from xi to ~xi
        return start, action, coins, jumps, torch.randint(n, (mdp.trajectories, 1), generator=generator)

    start, action, coins, jumps, first = map(torch.stack, zip(*(draw(seed) for seed in seeds), strict=True))
    state = torch.cat([start, start + action.cumsum(2)], 2)[:, :, :-1]
    threshold = p.float()[:, None, None]
    moved, paired_moved = (jumps[:, i, None] * (coins[:, i, None] < threshold) for i in (0, 1))
    after = first[:, None] + moved.cumsum(-1)
    before = after - moved
    paired = before + jumps[:, 2, None]
    exogenous = torch.stack([after, before, paired, paired + paired_moved], -1) % n
    return Transitions(state.flatten(1, 2), action.flatten(1, 2), exogenous.flatten(2, 3))


def sampled(mdp: LinearExBMDP, p: Float[Tensor, "p"], seeds: Sequence[int]) -> Moments:
    """The lifted moments of simulated data, [k p v v]. Raises LaminaError where there are fewer transitions than variables."""
    data = simulate(mdp, p, seeds)
    count, sizes = data.state.shape[1], lifted_sizes(mdp)
    if count <= 2 * mdp.rank:
        raise LaminaError(
            f"{count} transitions for two frames of {mdp.rank} dimensions each: their moments are rank-deficient; draw more trajectories"
        )
    total = torch.zeros(len(seeds), len(p), sum(sizes.values()), sum(sizes.values()), dtype=torch.float64)
    for at in range(0, count, CHUNK):
        features = data.lifted(mdp.states, slice(at, at + CHUNK))
        total += features.mT @ features
    return Moments(total / count, sizes)


def minibatches(
    data: Transitions, emission: Float[Tensor, "k x n o s"], names: Sequence[str], size: int, steps: int, seed: int = 0
) -> Iterator[dict[str, Float[Tensor, "k x p b i"]]]:
    """``steps`` batches of ``size`` transitions, drawn with replacement, as observations in their own coordinates and single precision.

    ``names``: of the variables. All Ex-BMDPs of the sweep get the same rows of their own data.
    """
    k, x, n, o, s = emission.shape
    p, count = data.exogenous.shape[1:3]
    every = emission.float().permute(0, 1, 4, 2, 3).reshape(k, x, s, n * o)  # s -> H_1 s, ..., H_n s
    generator = torch.Generator().manual_seed(seed)
    row = torch.arange(k * x * size).view(k, x, 1, size) * n
    for _ in range(steps):
        chosen = torch.randint(count, (size,), generator=generator)
        state, action, exogenous = data.state[:, chosen], data.action[:, chosen], data.exogenous[:, :, chosen]
        tables: dict[tuple[int, int], Tensor] = {}  # what each exogenous state would show, [(k x b n) o]
        batch = {}
        for name in names:
            if name == ACTION:
                batch[name] = action[:, None, None].expand(k, x, p, size, s)
                continue
            position, *parts = OBSERVED[name]
            if (on := (parts[0], parts[1])) not in tables:
                tables[on] = ((on[0] * state + on[1] * action)[:, None] @ every).view(-1, o)
            shown = row + exogenous[:, None, ..., position]
            batch[name] = tables[on].index_select(0, shown.flatten()).view(k, x, p, size, o)
        yield batch
