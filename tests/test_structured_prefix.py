"""Structured prefixes and shared slots: equal to their parents where they should be, and to their equations everywhere."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from lamina.envs.collect import collect
from lamina.errors import LaminaError
from lamina.evaluation import evaluate as evaluation
from lamina.evaluation.pictures import grid
from lamina.evaluation.settings import EvaluateConfig
from lamina.losses.algebra import composition, prefixes, reversal
from lamina.losses.reconstruction import squared_error
from lamina.methods import flexlam, structured_prefix
from lamina.methods.auxiliary import with_auxiliary, with_own_suffix
from lamina.methods.base import pair_losses
from lamina.models.hub import LatentActionModel, Provenance
from lamina.models.lam import LAM
from lamina.rng import Rng
from test_methods import clip
from test_remedies import full

torch.set_num_threads(1)
pytestmark = pytest.mark.typed
SMALL = {"size": "debug", "image": (16, 16), "slots": 4, "decoder": "unet"}
NONE = {"direct": 0.0, "composition": 0.0, "reversal": 0.0}


def lam_of(config, module=structured_prefix) -> LAM:
    """An untrained LAM whose decoder reads its latent, in evaluation mode."""
    torch.manual_seed(0)
    lam = LAM(module.build(config)).eval()
    for parameter in [*lam.decoder.parameters(), lam.prefix.null]:
        torch.nn.init.normal_(parameter, std=0.2)
    return lam


def terms(lam: LAM, config, seen, rng_seed: int = 0) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return structured_prefix.losses(config)(lam, lam.view(seen), Rng(rng_seed)).terms


def test_without_its_three_terms_it_is_flexlam_to_the_last_bit():
    ours = structured_prefix.Config(**SMALL, **NONE)
    theirs = flexlam.Config(**SMALL, whiten="first", frames=3)
    assert structured_prefix.build(ours) == flexlam.build(theirs)
    assert structured_prefix.losses(ours) is pair_losses is flexlam.losses(theirs)
    assert structured_prefix.weights(ours) == flexlam.weights(theirs)
    lam, seen = lam_of(ours), clip((16, 16), batch=6, frames=3)
    # Its terms come beside FlexLAM's own one and do not change it: the same prefixes, the same codes.
    every = terms(lam, structured_prefix.Config(**SMALL), seen)
    with torch.no_grad():
        plain = pair_losses(lam, lam.view(seen), Rng(0)).terms
    assert every.keys() == {"reconstruction", "direct", "composition", "reversal"} and plain.keys() == {
        "reconstruction"
    }
    torch.testing.assert_close(every["reconstruction"], plain["reconstruction"], rtol=1e-5, atol=1e-7)


def test_every_term_is_its_equation_at_every_prefix_length():
    """Predictions through the first k slots: of o_c from x_ab + x_bc, of o_a from -x_ab, and of both from their own codes."""
    config = structured_prefix.Config(**SMALL)
    lam, seen = lam_of(config), clip((16, 16), batch=5, frames=3)
    view = lam.view(seen)
    a, b, c = (view.frames[:, n] for n in range(3))
    with torch.no_grad():
        x = {"ab": (a, b), "bc": (b, c), "ac": (a, c), "ba": (b, a), "cb": (c, b)}
        x = {name: lam.pair(lam.embed(first), lam.embed(second)).pre for name, (first, second) in x.items()}
        for k in range(5):
            lam.prefix.draw = lambda rng, n, k=k: torch.full((n,), k)

            def error(src, code, dst, k=k):
                return squared_error(lam.decoder(src, lam.prefix(lam.quantise(code).post, k)), dst)

            expected = {
                "reconstruction": (error(a, x["ab"], b) + error(b, x["bc"], c)) / 2,
                "direct": (error(a, x["ac"], c) + error(b, x["ba"], a) + error(c, x["cb"], b)) / 3,
                "composition": error(a, x["ab"] + x["bc"], c),
                "reversal": (error(b, -x["ab"], a) + error(c, -x["bc"], b)) / 2,
            }
            found = terms(lam, config, seen)
            for name, value in expected.items():
                torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(expected["direct"], expected["reversal"], rtol=1e-3)


def test_the_latent_form_at_all_slots_is_alams():
    config = structured_prefix.Config(**SMALL, form="latent", direct=0.0)
    lam, seen = lam_of(config), clip((16, 16), batch=5, frames=3)
    with torch.no_grad():
        own = lam.encode(lam.view(seen), [(0, 1), (1, 2), (0, 2), (1, 0), (2, 1)]).own
        z = {pair: code.pre for pair, code in own.items()}
        lam.prefix.draw = lambda rng, n: torch.full((n,), 4)
        whole = terms(lam, config, seen)
        torch.testing.assert_close(whole["composition"], composition(z[0, 1], z[1, 2], z[0, 2]))
        both = (reversal(z[0, 1], z[1, 0]) + reversal(z[1, 2], z[2, 1])) / 2
        torch.testing.assert_close(whole["reversal"], both)
        keep = torch.tensor([0, 1, 2, 3, 4])
        lam.prefix.draw = lambda rng, n: keep
        found = terms(lam, config, seen)["composition"]
        for row, k in enumerate(keep.tolist()):
            difference = z[0, 2][row, :k] - z[0, 1][row, :k] - z[1, 2][row, :k]
            expected = difference.square().mean() if k else torch.zeros(())
            torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-7)


def test_a_prefix_of_a_sum_is_the_sum_of_the_prefixes_and_its_mean_is_over_what_is_kept():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 6, 4, 3, generator=g)
    keep = torch.tensor([0, 1, 2, 3, 4, 4])
    torch.testing.assert_close(prefixes(x, keep) + prefixes(y, keep), prefixes(x + y, keep))
    means = prefixes(x, keep).square().mean((1, 2))
    for row, k in enumerate(keep.tolist()):
        torch.testing.assert_close(means[row], x[row, :k].square().mean() if k else torch.zeros(()))


def test_a_sum_beyond_the_code_is_cut_off_and_not_wrapped_around():
    lam = lam_of(structured_prefix.Config(**SMALL))
    large = torch.full((1, 4, 5), 3.0)
    assert (lam.quantise(large).post == 1).all() and (lam.quantise(large + large).post == 1).all()
    assert (lam.quantise(-(large + large)).post == -1).all()


def test_the_reports_picture_of_a_sum_is_of_codes_that_add_up_before_the_quantiser(tmp_path, monkeypatch):
    config = structured_prefix.Config(**SMALL)
    lam = lam_of(config)
    model = LatentActionModel(structured_prefix.build(config), Provenance("structured_prefix"), lam)
    model.save_pretrained(tmp_path / "run/model")
    data = collect("grid", tmp_path / "data", episodes=6, size=(32, 32), progress=False)
    shown = []
    monkeypatch.setattr(
        evaluation,
        "composed_picture",
        lambda subject, clip, path: shown.append((subject, clip)) or grid(path, [""], [clip.frames[:1, 0]]),
    )
    options = EvaluateConfig(
        transitions=32, structure=8, translator_steps=2, scratch_steps=2, labels="16", device="cpu"
    )
    evaluation.evaluate(tmp_path / "run", str(data), options)
    ((subject, seen),) = shown
    i, j = seen.frames[:, 0], seen.frames[:, 1]
    assert torch.equal(subject.latents(i, j), model.encode(i, j).pre.flatten(1))
    total = 2 * subject.latents(i, j)
    expected = model.decode(i, lam.quantise(total.unflatten(1, (4, -1))))
    assert torch.equal(subject.draw(i, total), expected)


def test_terms_of_weight_zero_cost_nothing(monkeypatch):
    config = structured_prefix.Config(**SMALL, **NONE | {"reversal": 1.0})
    lam, seen = lam_of(config), clip((16, 16), frames=3)
    asked = []
    encode = lam.encode
    monkeypatch.setattr(lam, "encode", lambda view, pairs: asked.append(list(pairs)) or encode(view, pairs))
    found = terms(lam, config, seen)
    assert found.keys() == {"reconstruction", "reversal"} == structured_prefix.weights(config).keys()
    assert asked == [[(0, 1), (1, 2)]]  # a reversed code needs no pair of its own


# --------------------------------------------------------------------------------------------- shared slots, robust prefixes


@pytest.fixture
def both():
    """A FlexLAM, clips with paired views, and the latents of both."""
    config = flexlam.Config(**SMALL, cross_exogenous=1.0)
    lam, seen = lam_of(config, flexlam), full(2, batch=6)
    with torch.no_grad():
        latents = lam.encode(lam.view(seen, True), [(0, 1)])
    assert (latents.own[0, 1].post - latents.paired[0, 1].post).abs().mean() > 0.1
    return lam, seen, latents


@pytest.mark.parametrize("shared", [1, 2, 3])
def test_the_paired_view_gives_the_first_slots_and_the_view_itself_the_others(both, shared):
    _, _, latents = both
    mixed = with_own_suffix(latents, shared)[0, 1].post
    assert torch.equal(mixed[:, :shared], latents.paired[0, 1].post[:, :shared])
    assert torch.equal(mixed[:, shared:], latents.own[0, 1].post[:, shared:])
    assert with_own_suffix(latents, None) is latents.paired


def crossed_term(lam: LAM, seen, shared: int | None, k: int) -> torch.Tensor:
    config = flexlam.Config(**SMALL, cross_exogenous=1.0, shared_slots=shared)
    losses, weights = with_auxiliary(config, flexlam.losses(config), flexlam.weights(config))
    assert weights == {"reconstruction": 1.0, "cross_exogenous": 1.0}
    lam.prefix.draw = lambda rng, n: torch.full((n,), k)
    with torch.no_grad():
        return losses(lam, lam.view(seen, True), Rng(0)).terms["cross_exogenous"]


def test_the_loss_is_the_prediction_from_that_mixture(both):
    lam, seen, latents = both
    view = lam.view(seen)
    src, dst = view.frames[:, 0], view.frames[:, 1]

    def predicted(z: torch.Tensor, k: int) -> torch.Tensor:
        with torch.no_grad():
            return squared_error(lam.decoder(src, lam.prefix(z, k)), dst)

    for k in range(5):
        expected = predicted(with_own_suffix(latents, 2)[0, 1].post, k)
        torch.testing.assert_close(crossed_term(lam, seen, 2, k), expected, rtol=1e-4, atol=1e-6)
        # Up to the shared slots nothing of the view itself is read: cross-exogenous reconstruction as it was.
        same = torch.allclose(crossed_term(lam, seen, 2, k), crossed_term(lam, seen, None, k), rtol=1e-5)
        assert same == (k <= 2)
        torch.testing.assert_close(crossed_term(lam, seen, 4, k), crossed_term(lam, seen, None, k))


def test_gradients_of_the_suffix_reach_the_view_itself_and_those_of_the_prefix_the_paired_one(both):
    lam, seen, _ = both
    latents = lam.encode(lam.view(seen, True), [(0, 1)])
    own, paired = (x[0, 1].post for x in (latents.own, latents.paired))
    own.retain_grad(), paired.retain_grad()
    lam.reconstruction(lam.view(seen), with_own_suffix(latents, 2), torch.full((6,), 4), Rng(0)).sum().backward()
    assert not own.grad[:, :2].any() and own.grad[:, 2:].any()
    assert paired.grad[:, :2].any() and not paired.grad[:, 2:].any()


def test_more_shared_slots_than_there_are_is_refused():
    with pytest.raises(LaminaError, match="--shared-slots must be at most --slots 4, got 5"):
        flexlam.Config(**SMALL, shared_slots=5)
    assert dataclasses.replace(flexlam.Config(**SMALL), shared_slots=4).shared_slots == 4
