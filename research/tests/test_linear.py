"""The linear model: exact moments against simulation, closed forms against references and gradient descent, the bound."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import repeat

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cross_decomposition import CCA
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression

from lamina.errors import LaminaError
from lamina_research.linear import closed_form, scores
from lamina_research.linear import ex_bmdp as worlds
from lamina_research.linear.ex_bmdp import LinearExBMDP, Moments
from lamina_research.linear.lam import OBJECTIVES, LinearLAM, Objective, descend, initial, loss, set_gradient, train
from lamina_research.linear.sweep import Sweep

torch.set_num_threads(1)
pytestmark = pytest.mark.typed

SMALL = LinearExBMDP(states=4, state=3, observation=20, trajectories=2000)
WIDTH = 3
P = worlds.probabilities([0.0, 0.3, 0.75, 1.0])


def observed(world: LinearExBMDP = SMALL, p: torch.Tensor = P, alpha: float = 1.0, seed: int = 0) -> Moments:
    emission = worlds.emissions(world, worlds.sensitivities([alpha]), [seed])[0]
    return worlds.observe(worlds.exact(world, p), emission)


def recode(lam: LinearLAM, matrix: torch.Tensor) -> LinearLAM:
    """The same LAM with latents that are multiplied by an invertible matrix."""
    back = torch.linalg.inv(matrix)
    head = None if lam.W is None else lam.W @ back
    return LinearLAM(lam.A, lam.B @ back, matrix @ lam.C, matrix @ lam.D, head)


# -------------------------------------------------------------------------------------------------------- the world


def test_simulated_moments_approach_the_exact_ones():
    world = replace(SMALL, trajectories=20_000)
    sampled, exact = worlds.sampled(world, P, [3]), worlds.exact(world, P)
    assert sampled.sizes == exact.sizes
    # An entry is a mean of at most (s + a)^2-like terms whose deviation is below 12; trajectories are independent.
    assert (sampled.matrix[0] - exact.matrix).abs().max() < 5 * 12 / 20_000**0.5
    assert (exact.matrix - exact.matrix.mT).abs().max() < 1e-15


def test_lifted_moments_are_those_of_the_frames_themselves():
    world = replace(SMALL, trajectories=200)
    data = worlds.simulate(world, P, [5])
    emission = worlds.emissions(world, worlds.sensitivities([0.7]), [5])[0, 0]
    maps = emission.unflatten(-1, (world.states, world.state)).movedim(1, 0)  # n r s
    state, action = data.state[0].double(), data.action[0].double()
    now, after = data.exogenous[0, 1, :, 1], data.exogenous[0, 1, :, 0]
    o = torch.einsum("mrs,ms->mr", maps[now], state)
    following = torch.einsum("mrs,ms->mr", maps[after], state + action)
    moments = worlds.observe(worlds.sampled(world, P, [5]), emission)
    for pair, (x, y) in {("o", "o'"): (o, following), ("o'", "a"): (following, action)}.items():
        torch.testing.assert_close(moments(*pair)[0, 1], x.T @ y / len(x), rtol=0, atol=1e-9)


def test_the_exogenous_state_switches_as_often_as_asked_and_the_twin_is_another():
    data = worlds.simulate(SMALL, P, [0])
    after, now, twin, twin_after = data.exogenous[0].unbind(-1)
    assert ((after != now).double().mean(1) - P).abs().max() < 0.03
    assert ((twin_after != twin).double().mean(1) - P).abs().max() < 0.03
    assert (twin != now).all()
    for p in range(len(P)):
        assert torch.bincount(now[p], minlength=4).double().div(now.shape[1]).sub(0.25).abs().max() < 0.03
    # consecutive transitions of a trajectory share a frame
    path = data.state[0].view(SMALL.trajectories, SMALL.steps, -1)
    step = data.action[0].view_as(path)
    torch.testing.assert_close(path[:, 1:], (path + step)[:, :-1])
    chain = data.exogenous[0, 1].view(SMALL.trajectories, SMALL.steps, 4)
    assert torch.equal(chain[:, 1:, 1], chain[:, :-1, 0])


def test_coordinates_of_the_span_keep_every_norm_and_angle():
    world, generator = SMALL, torch.Generator().manual_seed(2)
    raw = torch.randn(world.states + 1, world.observation, world.state, generator=generator, dtype=torch.float64)
    maps = (raw[:1] + 0.5 * raw[1:]) / world.observation**0.5
    whole = torch.cat(list(maps), -1)
    emission = worlds.emissions(world, worlds.sensitivities([0.5]), [2])[0, 0]
    assert emission.shape == (12, 12) and whole.shape == (20, 12)
    torch.testing.assert_close(emission.T @ emission, whole.T @ whole)
    full = replace(world, observation=10)  # nothing to leave out
    assert worlds.emissions(full, worlds.sensitivities([0.5]), [2]).shape == (1, 1, 10, 12)


def test_exogenous_covariances_by_enumeration():
    emission = worlds.emissions(SMALL, worlds.sensitivities([1.0]), [1])[0, 0]
    maps = emission.unflatten(-1, (4, 3)).movedim(1, 0)
    p, spread = 0.3, SMALL.state_variance
    law = worlds.switching(torch.tensor(p, dtype=torch.float64), 4)
    assert law[0].tolist() == pytest.approx([0.7, 0.1, 0.1, 0.1])
    leak = torch.zeros(12, 12, dtype=torch.float64)
    for now in range(4):
        mean = sum(law[now, x] * maps[x] for x in range(4))
        for after in range(4):
            gap = maps[after] - mean
            leak += law[now, after] / 4 * (spread + 1) * gap @ gap.T
    asked = torch.tensor(p, dtype=torch.float64)
    torch.testing.assert_close(worlds.observe(worlds.leaking(SMALL, asked), emission)("o'", "o'"), leak)
    mean = maps.mean(0)
    context = worlds.observe(worlds.context(SMALL, asked), emission)
    whole = sum(law[x, y] / 4 * maps[x] @ maps[y].T for x in range(4) for y in range(4)) - mean @ mean.T
    torch.testing.assert_close(context("o", "o'"), spread * whole)


def test_combinations_of_variables_by_hand():
    moments = Moments(torch.tensor([[2.0, 1.0], [1.0, 3.0]], dtype=torch.float64), {"x": 1, "y": 1})
    both = moments.combine({"d": {"y": 1.0, "x": -1.0}, "t": {"x": torch.tensor([[2.0], [0.0]]).double()}})
    assert both.matrix.tolist() == [[3.0, -2.0, 0.0], [-2.0, 8.0, 0.0], [0.0, 0.0, 0.0]]
    assert both(("d", "t"), "d").tolist() == [[3.0], [-2.0], [0.0]]


# ---------------------------------------------------------------------------------------------------- closed forms


def test_reconstruction_is_principal_components_of_what_o_does_not_tell():
    rng = np.random.default_rng(0)
    o = rng.normal(size=(4000, 6))
    following = o @ rng.normal(size=(6, 6)) + rng.normal(size=(4000, 6)) * [3, 2, 1.5, 1, 0.5, 0.2]
    both = np.concatenate([o, following], 1)
    moments = Moments(torch.from_numpy(both.T @ both / 4000), {"o": 6, "o'": 6})
    lam = closed_form.solve(moments, Objective(), 2)
    fitted = LinearRegression(fit_intercept=False).fit(o, following)
    rest = following - fitted.predict(o)
    pca = PCA(2).fit(np.concatenate([rest, -rest]))  # the second moments about 0
    angles = closed_form.principal_angles(lam.B, torch.from_numpy(pca.components_.T))
    assert angles.max() < 1e-6
    least = (rest**2).sum(1).mean() - 2 * 4000 / (2 * 4000) * pca.explained_variance_.sum() * (8000 - 1) / 8000
    assert float(loss(lam, moments, Objective())) == pytest.approx(least, rel=1e-9)


def test_canonical_correlations_equal_those_of_scikit_learn():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(5000, 4))
    y = 0.6 * x @ rng.normal(size=(4, 3)) + rng.normal(size=(5000, 3))
    x, y = x - x.mean(0), y - y.mean(0)
    ours = closed_form.canonical(*(torch.from_numpy(a.T @ b / 5000) for a, b in ((x, x), (x, y), (y, y))))
    u, v = CCA(n_components=3, max_iter=5000, tol=1e-12).fit_transform(x, y)
    theirs = [np.corrcoef(u[:, i], v[:, i])[0, 1] for i in range(3)]
    np.testing.assert_allclose(ours.correlations, theirs, atol=1e-6)
    seen = ours.first @ torch.from_numpy(x.T @ x / 5000) @ ours.first.T
    torch.testing.assert_close(seen[:3, :3], torch.eye(3, dtype=torch.float64))
    # the same directions, up to sign
    agree = np.abs(np.corrcoef((x @ ours.first[:3].numpy().T).T, u.T)[:3, 3:])
    np.testing.assert_allclose(agree, np.eye(3), atol=1e-4)


def test_without_switching_the_views_share_the_action_and_little_else():
    # u = H_xi a, ~u = H_~xi a, ~xi uniform over the others: lifted and whitened, their moment is (J - I) / (n - 1) (x) I for any alpha.
    for alpha in (0.3, 2.0):
        pairs = closed_form.transitions(observed(alpha=alpha, p=P[:1]))
        found = closed_form.canonical(pairs("u", "u"), pairs("u", "~u"), pairs("~u", "~u")).correlations[0]
        assert found.tolist() == pytest.approx([1.0] * 3 + [1 / 3] * 9)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradient_descent_meets_the_closed_form(name):
    moments = observed(p=P[:3])
    objective = OBJECTIVES[name]
    best = closed_form.solve(moments, objective, WIDTH)
    raw = descend(moments, objective, WIDTH, steps=1200, lr=2e-2)
    above = loss(raw, moments, objective) / loss(best, moments, objective) - 1
    assert above.min() > -1e-6 and above.max() < 0.01
    assert closed_form.principal_angles(raw.B, best.B).max() < 0.02
    trained = closed_form.minimum_norm(raw, moments, objective)
    ours, theirs = trained.latents(moments), best.latents(moments)
    torch.testing.assert_close(scores.nmse(ours, ours), scores.nmse(theirs, theirs), rtol=0, atol=5e-3)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), size=st.floats(1e-3, 1.0), name=st.sampled_from(list(OBJECTIVES)))
def test_no_other_model_is_better_than_the_closed_form(seed, size, name):
    moments, generator = observed(), torch.Generator().manual_seed(seed)
    best = closed_form.solve(moments, OBJECTIVES[name], WIDTH)
    other = LinearLAM(
        **{n: x + size * torch.randn(x.shape, generator=generator, dtype=x.dtype) for n, x in best.parts().items()}
    )
    least = loss(best, moments, OBJECTIVES[name])
    assert (loss(other, moments, OBJECTIVES[name]) > least).all()


@pytest.mark.parametrize("objective", [Objective(), Objective(cross=0.5), Objective(own=0.0, cross=1.0)])
def test_the_smallest_latents_predict_the_same(objective):
    moments, generator = observed(), torch.Generator().manual_seed(0)
    best = closed_form.solve(moments, objective, WIDTH)
    # o tells s wherever n d_s <= d_o, in both views alike: what z holds of s can be moved into A without a change of any prediction.
    emission = worlds.emissions(SMALL, worlds.sensitivities([1.0]), [0])[0]
    reads_state = torch.eye(3, dtype=torch.float64).repeat(1, 4) @ torch.linalg.inv(emission)
    spare = torch.randn(WIDTH, 3, generator=generator, dtype=torch.float64) @ reads_state
    worse = replace(best, A=best.A - best.B @ spare, C=best.C + spare)
    torch.testing.assert_close(loss(worse, moments, objective), loss(best, moments, objective))
    fixed = closed_form.minimum_norm(worse, moments, objective)
    energy = [lam.latents(moments)("z", "z").diagonal(dim1=-2, dim2=-1).sum(-1) for lam in (best, fixed, worse)]
    torch.testing.assert_close(energy[1], energy[0])
    assert (energy[2] > energy[0] + 0.1).all()
    torch.testing.assert_close(loss(fixed, moments, objective), loss(best, moments, objective))
    if objective == Objective():
        torch.testing.assert_close(best.latents(moments)("z", "o"), torch.zeros(4, WIDTH, 12).double())


def test_latents_that_ignore_the_next_exogenous_state_cost_more_once_it_switches():
    """Prop. 4.2, and the price of Eq. 24: without switching they cost no leakage, so the order alone is asked for there."""
    emission = worlds.emissions(SMALL, worlds.sensitivities([1.0]), [0])[0]
    moments = observed()
    blind = closed_form.blind_loss(moments, emission, SMALL.states, WIDTH)
    best = closed_form.solve(moments, Objective(), WIDTH)
    least = loss(best, moments, Objective())
    assert (blind[1:] > least[1:] * 1.01).all() and blind[0] >= least[0]
    leak = worlds.observe(worlds.leaking(SMALL, P), emission)
    assert (scores.normalized_variance(best, moments, leak)[1:] > 0.05).all()
    crowded = replace(
        SMALL, states=8, observation=20
    )  # differences of the H_xi span everything: such a z holds nothing
    emission = worlds.emissions(crowded, worlds.sensitivities([1.0]), [0])[0]
    moments = observed(crowded)
    r = moments.combine({"r": {"o'": 1.0, "o": -closed_form.prediction(moments)}})("r", "r")
    blind = closed_form.blind_loss(moments, emission, 8, WIDTH)
    torch.testing.assert_close(blind, r.diagonal(dim1=-2, dim2=-1).sum(-1))


# ------------------------------------------------------------------------------------------------------ minibatches

SWEEP = Sweep(SMALL, (0.0, 0.75), (0.5, 2.0), (0, 1))


def test_minibatches_are_the_data_of_the_moments():
    names = ("o", "o'", "~o", "~o'", "q", "~q", "a")
    batch = next(SWEEP.minibatches(names, 40_000, 1, 500, 0))
    assert batch["o"].shape == (2, 2, 2, 40_000, 20) and batch["a"].shape == (2, 2, 2, 40_000, 3)
    torch.testing.assert_close(batch["o'"][:, :, 0], (batch["o"] + batch["q"])[:, :, 0])  # nothing switches
    assert 0.7 < (batch["o'"] - batch["o"] - batch["q"])[:, :, 1].norm(dim=-1).gt(1e-3).float().mean() < 0.8
    inside = [(batch[n].double() @ SWEEP.basis if n != "a" else batch[n].double()) for n in names]
    rows = torch.cat(inside, -1)
    seen, wanted = rows.mT @ rows / 40_000, SWEEP.sampled(500, 0)(names, names)
    # 40,000 draws of 2,000 transitions; an entry's deviation is at most a few times the energy of its variables.
    scale = wanted.diagonal(dim1=-2, dim2=-1).sqrt()
    assert ((seen - wanted).abs() / (scale[..., :, None] * scale[..., None, :])).max() < 0.05


@pytest.mark.parametrize(
    "objective",
    [*OBJECTIVES.values(), Objective(own=0.0, cross=1.0), Objective(own=0.5, cross=2.0, target="q", weight=0.7)],
)
def test_the_gradient_of_a_batch_is_that_of_the_loss(objective):
    batch = {name: x.flatten(0, 2) for name, x in next(SWEEP.minibatches(objective.reads, 30, 1, 500, 0)).items()}
    start = initial(objective, {name: x.shape[-1] for name, x in batch.items()}, WIDTH, (0, 1)).parts()
    lam = LinearLAM(**{n: x.expand(2, 2, 2, -1, -1).flatten(0, 2).clone().requires_grad_() for n, x in start.items()})
    set_gradient(lam, batch, objective)
    ours = {name: x.grad.clone() for name, x in lam.parts().items()}
    rows = torch.cat(list(batch.values()), -1)
    moments = Moments(rows.mT @ rows / 30, {name: x.shape[-1] for name, x in batch.items()})
    theirs = torch.autograd.grad(loss(lam, moments, objective).sum(), list(lam.parts().values()))
    for (name, one), other in zip(ours.items(), theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4, msg=name)


def test_a_lam_in_a_basis_has_the_same_latents():
    objective = OBJECTIVES["q prediction"]
    batch = next(SWEEP.minibatches(objective.reads, 50, 1, 500, 0))
    own = initial(objective, {name: x.shape[-1] for name, x in batch.items()}, WIDTH, SWEEP.seeds)
    inside = own.inside(SWEEP.basis.float())
    o, following = (batch[name] @ SWEEP.basis.float() for name in ("o", "o'"))
    z = batch["o"] @ own.C.mT + batch["o'"] @ own.D.mT
    torch.testing.assert_close(o @ inside.C.mT + following @ inside.D.mT, z, rtol=1e-4, atol=1e-5)
    head = own.W
    assert head is not None and inside.W is not None
    torch.testing.assert_close(z @ inside.W.mT, z @ head.mT @ SWEEP.basis.float(), rtol=1e-4, atol=1e-5)


def test_the_noise_of_minibatches_removes_the_state_from_the_latent():
    """All minimisers predict alike; without noise the part of z that o tells stays as the start made it, with noise it shrinks."""
    sweep, objective, steps = Sweep(SMALL, (0.0, 0.75), (1.0,), (0, 1)), Objective(), 1500
    fit = sweep.sampled(SMALL.trajectories, 0)
    root = closed_form.cholesky(fit(objective.reads, objective.reads), "o, o'").mT * 24**0.5
    exact = {name: (x @ sweep.basis.mT).float() for name, x in zip(objective.reads, root.split(12, -1), strict=True)}
    data = [
        repeat(exact, steps),
        *(sweep.minibatches(objective.reads, n, steps, SMALL.trajectories, 0) for n in (64, 16)),
    ]
    best = closed_form.solve(fit, objective, WIDTH)
    share, error, noise = [], [], []
    for batches in data:
        lam = train(batches, objective, WIDTH, sweep.seeds, 1e-2).inside(sweep.basis)
        found = sweep.measure(lam, fit, fit)
        share.append(found["state"])
        error.append(found["nmse"])
        noise.append(loss(lam, fit, objective) / loss(best, fit, objective) - 1)
    assert noise[0].abs().max() < 1e-4 and (noise[1] > noise[0]).all() and (noise[2] > noise[1]).all()
    assert (share[0] > share[1] + 0.05).all() and (share[1] > share[2] + 0.01).all() and (share[0] > 0.1).all()
    assert (error[0] > error[1]).all() and (error[1] > error[2]).all()


def test_no_latent_wider_than_the_frame_is_trained():
    with pytest.raises(LaminaError, match="d_z = 20"):
        train(SWEEP.minibatches(("o", "o'"), 8, 1, 500, 0), Objective(), 20, SWEEP.seeds)


# ---------------------------------------------------------------------------------------------------------- scores


def test_what_a_latent_holds_adds_up_and_its_error_is_what_is_not_the_action():
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((WIDTH, 12), (WIDTH, 12))]
    nothing = torch.zeros(12, 12, dtype=torch.float64)
    lam, exact = LinearLAM(nothing, nothing[:, :WIDTH], *parts), SWEEP.exact
    found = SWEEP.measure(lam, exact, exact)
    action = scores.told(lam.latents(exact), "a")
    torch.testing.assert_close(found["state"] + action + found["context"], torch.ones(2, 2, 2).double())
    torch.testing.assert_close(found["nmse"], found["state"] + found["context"])
    assert (found["state"] > 0.1).all()


def test_cross_exogenous_latents_hold_the_state_where_o_does_not_determine_it_and_something_switches():
    for states, determined in ((6, True), (8, False)):  # 18 and 24 lifted dimensions in a frame of 20
        sweep = Sweep(replace(SMALL, states=states), (0.0, 0.8), (1.0,), (0, 1))
        exact = sweep.exact
        plain, cross = (
            sweep.measure(closed_form.solve(exact, OBJECTIVES[name], WIDTH), exact, exact)
            for name in ("reconstruction", "cross-exogenous")
        )
        correlation = closed_form.transition_cca(exact).correlations[..., WIDTH - 1]
        assert (cross["state"][..., 0] < 1e-9).all() and (cross["nmse"] < plain["nmse"])[..., 0].all()
        if determined:
            assert (correlation > 1 - 1e-9).all() and (cross["nmse"] < 0.5 * plain["nmse"]).all()
        else:
            assert (correlation < 0.99).all() and (cross["state"][..., 1] > 0.3).all()
            assert (cross["nmse"] > plain["nmse"] + 0.05)[..., 1].all()
            assert (cross["context"] < plain["context"]).all()  # consistent, but not about the action
            # The loss hardly asks for it: a latent without s costs little more, and tells the action.
            objective = OBJECTIVES["cross-exogenous"]
            other = closed_form.solve_without(exact, objective, WIDTH, "s")
            dearer = (
                loss(other, exact, objective) / loss(closed_form.solve(exact, objective, WIDTH), exact, objective) - 1
            )
            found = sweep.measure(other, exact, exact)
            assert (found["state"] < 1e-9).all() and (dearer > -1e-9).all() and (dearer < 0.02).all()
            assert (found["nmse"] < 0.6 * plain["nmse"]).all()


def test_leakage_is_nothing_without_switching_and_most_where_the_next_state_is_least_predictable():
    p = worlds.probabilities([0.0, 0.25, 0.5, 0.75, 0.9, 1.0])
    emission = worlds.emissions(SMALL, worlds.sensitivities([1.0]), [0])[0]
    moments = observed(p=p)
    lam = closed_form.solve(moments, Objective(), WIDTH)
    share = scores.normalized_variance(lam, moments, worlds.observe(worlds.leaking(SMALL, p), emission))
    assert share[0].abs() < 1e-12 and share.argmax() == 3  # 1 - 1/n


def test_where_z_has_the_width_of_the_action_its_error_is_its_exogenous_share():
    """z is uncorrelated with o, which tells s; so E[z | s, a] is linear in a, and the rest of z is exogenous."""
    emission = worlds.emissions(SMALL, worlds.sensitivities([1.5]), [0])[0]
    moments = observed(alpha=1.5)
    lam = closed_form.solve(moments, Objective(), SMALL.state)
    latents = lam.latents(moments)
    share = scores.normalized_variance(lam, moments, worlds.observe(worlds.context(SMALL, P), emission))
    torch.testing.assert_close(scores.nmse(latents, latents), share)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), p=st.floats(0, 1), alpha=st.floats(0.05, 5), target=st.sampled_from(["a", "q"]))
def test_the_bound_holds_for_any_encoder_and_scores_do_not_depend_on_how_z_is_coded(seed, p, alpha, target):
    chance, generator = worlds.probabilities([p]), torch.Generator().manual_seed(seed)
    moments = observed(p=chance, alpha=alpha, seed=seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    lam = LinearLAM(draw(1, 12, 12), draw(1, 12, WIDTH), draw(1, WIDTH, 12), draw(1, WIDTH, 12))
    left, right = scores.bound(lam, moments, moments, target)
    assert (left <= right).all()
    other = recode(lam, draw(WIDTH, WIDTH) + 3 * torch.eye(WIDTH))
    emission = worlds.emissions(SMALL, worlds.sensitivities([alpha]), [seed])[0]
    exogenous = worlds.observe(worlds.context(SMALL, chance), emission)
    for score in (
        lambda m: scores.nmse(m.latents(moments), m.latents(moments)),
        lambda m: scores.normalized_variance(m, moments, exogenous),
        lambda m: scores.bound(m, moments, moments, target)[0],
    ):
        torch.testing.assert_close(score(other), score(lam), rtol=1e-6, atol=1e-8)
    assert 0 <= scores.normalized_variance(lam, moments, exogenous).item() <= 1


def test_perfect_latents_leave_no_error_and_no_gap():
    emission = worlds.emissions(SMALL, worlds.sensitivities([1.0]), [0])[0]
    reads_state = torch.eye(3, dtype=torch.float64).repeat(1, 4) @ torch.linalg.inv(emission)
    nothing = torch.zeros(1, 12, 12, dtype=torch.float64)
    lam = LinearLAM(nothing, nothing[..., :3], -reads_state, reads_state)  # z = a
    moments = observed()
    latents = lam.latents(moments)
    assert scores.nmse(latents, latents).abs().max() < 1e-9
    left, right = scores.bound(lam, moments, moments, "a")
    assert left.abs().max() < 1e-9 and right.abs().max() < 1e-8


# ------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: worlds.probabilities([0.2, 1.2]), "0 to 1"),
        (lambda: worlds.probabilities([float("nan")]), "0 to 1"),
        (lambda: worlds.sensitivities([0.0]), "above 0"),
        (lambda: worlds.sensitivities([float("inf")]), "finite"),
        (lambda: LinearExBMDP(states=1), "at least 2"),
        (lambda: LinearExBMDP(state=128), "below d_o"),
        (lambda: LinearExBMDP(steps=0), "at least 1"),
        (lambda: worlds.sampled(replace(SMALL, trajectories=5), P, [0]), "rank-deficient"),
        (lambda: closed_form.solve(observed(), Objective(), 12), "d_z = 12"),
        (lambda: closed_form.solve(observed(), Objective(), 0), "d_z = 0"),
        (lambda: descend(observed(), Objective(), 13), "d_z = 13"),
        (lambda: closed_form.solve(observed(), Objective(cross=1.0, target="a", weight=1.0), 3), "no closed form"),
        (lambda: Objective(cross=-1.0), "at least 0"),
        (lambda: Objective(own=0.0), "reconstruction among them"),
        (lambda: Objective(weight=1.0), "together"),
    ],
)
def test_invalid_settings_are_refused_in_one_line(call, said):
    with pytest.raises(LaminaError, match=said) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_moments_that_cannot_be_solved_are_named():
    singular = torch.diag(torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64))
    with pytest.raises(LaminaError, match=r"of the two views are rank-deficient: 2 of 3"):
        closed_form.canonical(singular, singular, singular)
    with pytest.raises(LaminaError, match="not finite"):
        closed_form.cholesky(singular * float("nan"), "o")
    still = Moments(torch.zeros(4, 4, dtype=torch.float64), {"o": 2, "o'": 2})
    with pytest.raises(LaminaError, match="rank-deficient: 0 of 2"):
        closed_form.solve(still, Objective(), 1)


def test_every_matrix_of_a_lam_is_a_part():
    lam = closed_form.solve(observed(), OBJECTIVES["q prediction"], WIDTH)
    assert list(lam.parts()) == [f.name for f in fields(LinearLAM)]
