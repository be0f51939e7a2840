"""The claims that combine the papers' methods: each rule can be met, and each of its clauses can fail it; and the runs at smoke scale."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lamina.envs.registry import make
from lamina.errors import LaminaError
from lamina.images import to_float
from lamina.methods import flexlam, structured_prefix
from lamina.models.adaptive import AdaptiveK, RemainingChange
from lamina.models.lam import LAM
from lamina.rng import Rng
from lamina_research.claims import adaptive
from lamina_research.claims import robust_prefix as robust
from lamina_research.claims import structured_prefix as structured
from lamina_research.experiment import Experiment
from lamina_research.record import read_record
from lamina_research.reproduce import reproduce
from lamina_research.seeds import Metrics
from lamina_research.study import ModelSpec

torch.set_num_threads(1)
KS = (1, 2, 4)


def seeds(value: float) -> list[float]:
    """Three seeds that differ a little."""
    return [value, value * 1.01, value * 0.99]


def change(metrics: Metrics, row: str, **values: float) -> Metrics:
    """The metrics with other values in a row; underscores stand for spaces, ``at_4`` for "at k = 4"."""
    found = copy.deepcopy(metrics)
    for name, value in values.items():
        words = name.replace("_at_", " at k = ").replace("_", " ")
        assert words in found[row], words
        found[row][words] = seeds(value)
    return found


# ---------------------------------------------------------------------------------------------------- structured prefixes


def prefix_scores() -> Metrics:
    def row(error: float, loss: float, ks: tuple[int, ...]) -> dict[str, list[float]]:
        found = {"used": [1.0] * 3, "variance that the decoder ignores": seeds(0.2)}
        for k in ks:
            found |= {f"{name} at k = {k}": seeds(error) for name in structured.ERRORS}
            found |= {f"loss at k = {k}": seeds(loss), f"psnr at k = {k}": seeds(28.0)}
        return found

    return {"structured prefix": row(0.1, 0.5, KS), "FlexLAM": row(0.6, 0.5, KS), "ALAM": row(0.1, 0.5, (32,))}


@pytest.mark.parametrize(
    "broken",
    [
        lambda m: change(m, "structured prefix", composition_at_2=0.7),
        lambda m: change(m, "structured prefix", reversal_at_4=0.7),
        lambda m: change(m, "structured prefix", composition_at_4=0.2),  # below FlexLAM's, but worse than ALAM's
        lambda m: change(m, "structured prefix", loss_at_1=0.6),
        lambda m: change(m, "ALAM", loss_at_32=0.4),
        lambda m: m | {"ALAM": m["ALAM"] | {"used": [1.0, 0.0, 1.0]}},
        lambda m: {name: row for name, row in m.items() if name != "FlexLAM"},  # collapsed in every seed
    ],
)
def test_every_clause_of_structured_prefixes_can_fail_them(broken: Callable[[Metrics], Metrics]) -> None:
    good = prefix_scores()
    assert structured.decided(good, KS, 3).holds
    assert not structured.decided(broken(good), KS, 3).holds


def test_no_worse_is_five_percent_and_no_certain_difference() -> None:
    assert structured.no_worse([1.0, 1.1, 0.9], [1.0, 1.0, 1.0]) and structured.no_worse([0.5] * 3, [1.0] * 3)
    assert not structured.no_worse([1.06] * 3, [1.0] * 3)
    assert not structured.no_worse([1.02, 1.021, 1.019], [1.0, 1.0, 1.0])  # little, but in every seed


def test_the_error_in_pictures_is_nothing_for_codes_that_add_up_and_one_for_unrelated_ones() -> None:
    config = flexlam.Config(size="debug", image=(16, 16), slots=4, decoder="unet")
    torch.manual_seed(0)
    lam = LAM(flexlam.build(config)).eval()
    for parameter in lam.decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    frames = torch.randint(0, 256, (12, 3, 3, 16, 16), dtype=torch.uint8)
    a, b, c = (to_float(frames[:, n]) for n in range(3))
    found = structured.picture_algebra(lam, frames, 2)
    with torch.no_grad():
        x = {n: lam.pair(lam.embed(p), lam.embed(q)).pre for n, p, q in (("ab", a, b), ("bc", b, c), ("ac", a, c))}

        def picture(z: torch.Tensor) -> torch.Tensor:
            return lam.decoder.sample(a, lam.prefix(lam.quantise(z).post, 2), Rng(0))

        own = picture(x["ac"])
        error = (own - picture(x["ab"] + x["bc"])).square().sum() / (own - picture(x["ac"].roll(6, 0))).square().sum()
    assert found["composition"] == pytest.approx(float(error), rel=1e-4) and found["composition"] > 0.01
    # An encoder whose code is a difference of two numbers of the frames adds up and reverses.
    lam.encoder.embed = lambda frames: 20 * frames.mean((2, 3))  # type: ignore[method-assign,assignment]
    lam.encoder.compare = lambda first, second: (second - first).repeat(1, 7)[:, :20].view(-1, 4, 5)  # type: ignore[method-assign,assignment]
    exact = structured.picture_algebra(lam, frames, 4)
    assert exact["composition"] < 0.05 and exact["reversal"] < 0.05
    lam.encoder.compare = lambda first, second: first.repeat(1, 7)[:, :20].view(-1, 4, 5) * 0  # type: ignore[method-assign,assignment]
    assert math.isnan(structured.picture_algebra(lam, frames, 4)["composition"])  # a constant code proves nothing


def test_ours_and_its_parents_differ_in_the_objective_alone() -> None:
    ours, flex, alam = structured.models(0)
    options = structured.StructureStudy.setups["cpu"].options
    configs = [m.method.build(m.method.Config(**{**options, **dict(m.options)})) for m in (ours, flex, alam)]
    assert configs[0] == configs[1] and configs[0].encoder == configs[2].encoder
    assert ours.method is structured_prefix and (ours.label, flex.label, alam.label) == tuple(prefix_scores())


# -------------------------------------------------------------------------------------------------------- robust prefixes


def robust_scores() -> Metrics:
    def row(prefix: float, suffix: float, nmse: float) -> dict[str, list[float]]:
        found = {"inconsistency, suffix": seeds(suffix), "future change, suffix": seeds(suffix)}
        for k in range(1, 5):
            found |= {
                f"inconsistency, k = {k}": seeds(prefix),
                f"nmse, k = {k}": seeds(nmse),
                f"psnr, k = {k}": seeds(28.0),
            }
        return found

    return {
        "FlexLAM": row(0.5, 0.5, 0.6),
        "cross-exogenous": row(0.3, 0.3, 0.55),
        "robust prefix": row(0.2, 0.6, 0.5),
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [("inconsistency, k = 2", 0.5), ("nmse, k = 2", 0.65), ("inconsistency, suffix", 0.2), ("psnr, k = 4", 27.7)],
)
def test_every_clause_of_robust_prefixes_can_fail_them(name: str, value: float) -> None:
    good = robust_scores()
    assert robust.decided(good, 2, 4, 3).holds
    broken = copy.deepcopy(good)
    broken["robust prefix"][name] = seeds(value)
    assert not robust.decided(broken, 2, 4, 3).holds
    assert not robust.decided({n: r for n, r in good.items() if n != "robust prefix"}, 2, 4, 3).holds


def test_the_three_differ_in_cross_exogenous_reconstruction_alone(tmp_path: Path) -> None:
    study = robust.RobustStudy(Experiment("cpu", (0,), tmp_path, lambda line: None))
    plain, crossed, ours = study.models(0)
    assert dict(crossed.options) == {"cross_exogenous": robust.WEIGHT} and not plain.options
    assert dict(ours.options) == {"cross_exogenous": robust.WEIGHT, "shared_slots": 4} and study.shared == 4


# --------------------------------------------------------------------------------------------------------------- adaptive k


def adaptive_scores() -> Metrics:
    row = {
        "tokens": 4.0,
        "loss": 1.4,
        "loss, lengths shuffled": 1.5,
        "best single k": 6.0,
        "loss at the best single k": 1.4,
    }
    row |= {f"loss at k = {k}": 2 - 0.1 * k for k in range(1, 5)}
    row |= {f"loss at {share:g} k*{which}": 1.4 for share in adaptive.SHARES for which in ("", ", one length")}
    picture = row | {"loss": 1.6}
    return {
        name: {metric: seeds(value) for metric, value in values.items()}
        for name, values in (("rule of the action", row), ("rule of the picture", picture))
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [("tokens", 6.5), ("loss", 1.42), ("loss, lengths shuffled", 1.38)],
)
def test_every_clause_of_adaptive_k_can_fail_it(name: str, value: float) -> None:
    good = adaptive_scores()
    assert adaptive.decided(good, 128).holds  # whatever the rule of the picture gives
    broken = copy.deepcopy(good)
    broken["rule of the action"][name] = seeds(value)
    assert not adaptive.decided(broken, 128).holds


def test_tasks_count_the_same_and_the_shortest_rule_that_is_good_enough_is_taken() -> None:
    loss = torch.tensor([[3.0, 1.0], [2.0, 2.0], [4.0, 0.0]], dtype=torch.float64)
    weight = torch.tensor([0.25, 0.25, 0.5], dtype=torch.float64)  # two transitions of one task, one of another
    z = torch.tensor([[[-1.0], [0.0]], [[0.0], [0.0]], [[1.0], [0.0]]])
    some = adaptive.Curve(loss, weight, z)
    assert some.at(torch.tensor([1, 2, 2])) == pytest.approx(3 / 4 + 2 / 4) and some.single() == [3.25, 0.75]
    assert some.tokens(torch.tensor([1, 2, 2])) == pytest.approx(1.75)
    torch.manual_seed(0)
    head = RemainingChange(2, 1).eval()
    head.relative = lambda z, k: z[:, 0, 0]  # type: ignore[method-assign,assignment]
    rule = AdaptiveK(head, 0.0, 2.0, "")
    found = adaptive.chosen(rule, z, some, most=1.3)
    # One slot for the first transition (a loss of 1.25) is good enough; one for two of them (also the second) is as good and shorter.
    assert found.lengths(z).tolist() == [1, 1, 2]
    assert adaptive.chosen(rule, z, some, most=0.8).lengths(z).tolist() == [2, 2, 2]
    assert adaptive.chosen(rule, z, some, most=0.5).lengths(z).tolist() == [2, 2, 2]  # none is good enough: the best


# ---------------------------------------------------------------------------------------------------------------- smoke scale


@pytest.mark.sim
@pytest.mark.parametrize(
    ("claim", "world"),
    [
        ("lamina/structured-prefix", "metaworld/reach-v3"),
        ("lamina/robust-prefix", "grid"),
        ("lamina/adaptive-k", "my_way_home"),
    ],
)
def test_each_claim_runs_whole_at_smoke_scale(claim: str, world: str, workdir: Path) -> None:
    try:
        make(world, (16, 16)).close()
    except LaminaError as error:
        pytest.skip(str(error))
    out = workdir / f"{claim.partition('/')[2]}.json"
    record = read_record(reproduce(claim, "smoke", out, workdir=workdir, progress=lambda line: None))
    assert record["holds"] is None and "decides nothing" in record["explanation"]
    values = [v for row in record["metrics"].values() for metric in row.values() for v in metric["values"]]
    assert len(values) > 20 and np.isfinite([v for v in values if v is not None]).all()
    assert out.with_suffix(".svg").exists()


def test_models_are_found_by_what_they_are_trained_on(tmp_path: Path) -> None:
    study = robust.RobustStudy(Experiment("smoke", (0,), tmp_path, lambda line: None))
    model = ModelSpec(flexlam, 0, {}, "FlexLAM")
    other = replace(study.setup, data=replace(study.setup.data, seed=8))
    assert study.key(model) != robust.RobustStudy(study.experiment, other).key(model)
    assert {study.key(m)["options"].get("shared_slots") for m in study.models(0)} == {None, 2}
