"""Claims of Why Latent Actions Fail: decision rules, every experiment at smoke scale, and `lamina exogenous`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lamina.cli import main
from lamina.errors import LaminaError
from lamina.losses.reconstruction import squared_error
from lamina_research.claims import exo as paper
from lamina_research.claims.exo import grid_lam as practical
from lamina_research.claims.exo import gridworld, linear
from lamina_research.claims.exo.grid_lam import PracticalLAM
from lamina_research.experiment import Claim
from lamina_research.figures import LinePlot, draw
from lamina_research.linear.analysis import LinearSetting
from lamina_research.linear.analysis import draw as draw_figure
from lamina_research.reproduce import reproduce

torch.set_num_threads(1)

LINEAR = [claim for claim in paper.CLAIMS if claim.run is not None and claim.run.__module__ == linear.__name__]


@pytest.mark.parametrize("claim", LINEAR, ids=lambda claim: claim.id)
def test_a_linear_claim_runs_whole_at_smoke_scale(claim: Claim, workdir: Path, tmp_path: Path) -> None:
    path = reproduce(claim.id, "smoke", tmp_path / "record.json", (0, 1), workdir, lambda line: None)
    record = json.loads(path.read_text())
    assert record["holds"] is None and (tmp_path / "record.svg").exists()
    values = [v for method in record["metrics"].values() for metric in method.values() for v in metric["values"]]
    missing = [m for method in record["metrics"].values() for m, v in method.items() if None in v["values"]]
    assert values and all(m == "rank correlation with p" for m in missing)  # smoke has one p there
    # Left as it is, the data of exo/cca violates the assumption of its closed form; elsewhere that is the least loss, up to sampling.
    methods = [m for name, m in record["metrics"].items() if name not in ("as it is", "best xi'-independent")]
    above = [v for method in methods for m, x in method.items() if "above closed form" in m for v in x["values"]]
    assert all(abs(v) < 0.01 for v in above)


def test_the_papers_sizes_are_those_of_cpu() -> None:
    mdp = linear.SETUPS["cpu"].mdp
    assert (mdp.state, mdp.observation, mdp.trajectories) == (8, 128, 8_000)
    assert all(claim.default_seeds("cpu") == (0, 1, 2, 3) and claim.default_seeds("smoke") == (0,) for claim in LINEAR)


def test_a_curve_rises_by_its_ranks_beyond_the_interval() -> None:
    x = [0.0, 1.0, 2.0]
    each, up = linear.rises(x, torch.tensor([[1.0, 2, 9], [0.0, 5, 6], [2.0, 3, 4]]))
    assert each == [1.0, 1.0, 1.0] and up
    each, up = linear.rises(x, torch.tensor([[1.0, 2, 9], [3.0, 2, 1], [2.0, 2, 2]]))
    assert each == [1.0, -1.0, 0.0] and not up


def test_lower_means_at_every_point_beyond_the_interval() -> None:
    low, high = torch.zeros(3, 1, 2), torch.tensor([[[1.0, 1.0]], [[1.1, 1.2]], [[0.9, 1.1]]])
    assert linear.lower(low, high)
    high[0, 0, 1] = -1.0  # one seed at one point: its interval now includes 0
    assert not linear.lower(low, high)


def test_panels_are_drawn_side_by_side() -> None:
    one = LinePlot("t", "y", [0, 1], {"a": [[0.5, 1.5], [2.0]]})
    figure = draw([one, one])
    assert [axes.get_title() for axes in figure.axes] == ["t", "t"]
    assert figure.axes[0].lines[0].get_ydata().tolist() == [1.0, 2.0]  # means over seeds


# ------------------------------------------------------------------------------------------------- lamina exogenous

SMALL = ["--states", "3", "--state", "2", "--observation", "9", "--latent", "2", "--draws", "2"]


def test_the_leakage_table_has_every_objective_and_depends_on_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for p in ("0", "0.5"):
        assert main(["exogenous", "--p-switch", p, *SMALL]) == 0
        said.append(capsys.readouterr().out)
    rows = [{line.split("  ")[0]: line.split() for line in text.splitlines()} for text in said]
    assert {"reconstruction", "cross-exogenous", "action prediction", "q prediction"} <= rows[0].keys()
    still, moving = (float(row["reconstruction"][4]) for row in rows)  # share of z that xi' makes
    assert abs(still) < 1e-9 and moving > 0.05
    assert "% more" in said[1]


def test_a_weight_of_nothing_changes_little_and_a_large_one_much() -> None:
    error = {}
    for weight in (1e-6, 100.0):
        setting = LinearSetting(0.4, 1.0, 3, 2, 9, 2, weight=weight, draws=1)
        sweep = setting.sweep()
        models = setting.solved(sweep)
        error[weight] = {n: float(sweep.measure(m, sweep.exact, sweep.exact)["nmse"]) for n, m in models.items()}
    few, many = error.values()
    assert few["action prediction"] == pytest.approx(few["reconstruction"], rel=1e-3)
    assert many["action prediction"] < 0.1 * many["reconstruction"]


@pytest.mark.parametrize("name", ["leakage", "sensitivity", "remedies", "cca"])
def test_every_figure_is_drawn_from_closed_forms(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["exogenous", "--figure", name, *SMALL]) == 0
    assert (tmp_path / f"{name}.svg").read_text().lstrip().startswith("<?xml")


def test_a_figure_of_reconstruction_needs_no_other_objective(tmp_path: Path) -> None:
    """With d_z above d_a, some latents with an auxiliary loss do not have full rank, so they cannot be measured."""
    wide = LinearSetting(alpha=2.0, states=4, state=2, observation=12, latent=3, weight=3.0, draws=2)
    assert draw_figure(wide, "leakage", tmp_path / "x.svg").exists()
    with pytest.raises(LaminaError, match="rank-deficient"):
        draw_figure(wide, "remedies", tmp_path / "y.svg")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--p-switch", "1.5"], "--p-switch must be at most 1"),
        (["--p-switch", "nan"], "--p-switch must be a finite number"),
        (["--alpha", "0"], "above 0"),
        (["--alpha", "inf"], "finite"),
        (["--alpha", "1e-9"], "rank-deficient"),
        (["--alpha", "1e200"], "--alpha must be at most"),
        (["--latent", "9"], "d_z = 9"),
        (["--latent", "0"], "--latent must be at least 1"),
        (["--states", "1"], "at least 2"),
        (["--state", "9"], "below d_o"),
        (["--weight", "-1"], "--weight"),
        (["--draws", "0"], "--draws"),
        (["--out", "x.svg"], "--figure"),
        (["--figure", "cca", "--out", "x.png"], ".svg"),
    ],
)
def test_bad_options_are_refused_in_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["exogenous", *SMALL, *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and said in error


# --------------------------------------------------------------------------------------------------------- the grid


@pytest.fixture(scope="module")
def grid_lam() -> PracticalLAM:
    torch.manual_seed(0)
    return PracticalLAM(practical.Config()).eval()


def test_the_grid_claim_runs_whole_at_smoke_scale(tmp_path: Path) -> None:
    path = reproduce("exo/gridworld", "smoke", tmp_path / "record.json", None, tmp_path, lambda line: None)
    record = json.loads(path.read_text())
    assert record["holds"] is None and (tmp_path / "record.svg").exists()
    assert {f"{v}, sigma = {s}" for v in gridworld.VARIANTS for s in (0, 1)} == record["metrics"].keys()
    for variant in gridworld.VARIANTS:
        assert record["metrics"][f"{variant}, sigma = 0"]["consistency"]["mean"] == 0  # both views are one


def test_the_practical_lam_has_the_papers_sizes(grid_lam: PracticalLAM) -> None:
    convolutions = [m for m in grid_lam.encoder if isinstance(m, torch.nn.Conv2d)]
    assert [m.out_channels for m in convolutions] == [128, 128, 128]
    assert [m.out_features for m in grid_lam.encoder if isinstance(m, torch.nn.Linear)] == [64, 32]
    assert [m.out_channels for m in (grid_lam.fine, grid_lam.coarse, grid_lam.grow, grid_lam.merge)] == [32] * 4
    assert grid_lam.bottleneck.codebook.shape == (5, 32)
    for scale, updates in (("gpu", 16_000), ("cpu", 4_000)):
        train = gridworld.SETUPS[scale].train
        assert (train.steps, train.batch, train.lr, train.clip) == (updates, 128, 3e-4, 5.0)


def test_transitions_follow_the_path_and_the_twin_differs_in_the_bottom_row_alone() -> None:
    clip = practical.transitions(1.0, 300, 3)
    assert clip.frames.shape == (300, 2, 1, 4, 4) and clip.paired is not None and clip.action is not None
    assert torch.equal(clip.frames[..., :3, :], clip.paired[..., :3, :])
    assert 0.4 < (clip.frames[..., 3, :] != clip.paired[..., 3, :]).float().mean() < 0.6
    # the same episode goes on in the next row
    same = clip.episode[1:] == clip.episode[:-1]
    assert same.sum() > 280 and torch.equal(clip.frames[1:, 0][same], clip.frames[:-1, 1][same])
    # a frame says what is done: one action for each of the twelve cells
    cell = clip.frames[:, 0, 0, :3].flatten(1).argmax(1)
    assert all(clip.action[cell == c, 0, 0].unique().numel() == 1 for c in range(12))


def test_a_hundredth_is_labelled_and_a_quarter_of_each_batch() -> None:
    clip, rows = practical.label(practical.transitions(0.5, 400, 0), 0.01, 0)
    target = clip.targets["action"][:, 0]
    assert len(rows) == 4 and (~target.isnan().any(1)).nonzero().flatten().tolist() == sorted(rows.tolist())
    assert clip.action is not None and torch.equal(target[rows].argmax(1).float(), clip.action[rows, 0, 0])
    stream = practical.Batches(clip, rows, 32, 1)
    batches = iter(stream)
    first, second = next(batches), next(batches)
    assert (~first.targets["action"][:8].isnan()).all()
    resumed = practical.Batches(clip, rows, 32, 1)
    resumed.load_state_dict({"drawn": 1})
    assert torch.equal(next(iter(resumed)).frames, second.frames) and not torch.equal(first.frames, second.frames)


@pytest.mark.parametrize("variant", gridworld.VARIANTS)
def test_every_variant_weighs_what_it_loses_and_trains_what_it_has(variant: practical.Variant) -> None:
    clip, _ = practical.label(practical.transitions(1.0, 100, 0), 0.05, 0)
    torch.manual_seed(0)
    model = PracticalLAM(practical.Config()).train()
    terms = practical.losses(model, clip, variant)
    assert terms.keys() == practical.weights(practical.Config(), variant).keys()
    assert all(term.shape == (100,) and term.isfinite().all() for term in terms.values())
    sum(term.mean() for term in terms.values()).backward()  # type: ignore[union-attr]
    still = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert still == (set() if variant == "robust_target" else {"head.weight"})


@torch.no_grad()
def test_remedies_are_the_equations(grid_lam: PracticalLAM) -> None:
    clip, rows = practical.label(practical.transitions(1.0, 60, 0), 0.1, 0)
    (src, dst), (twin_src, twin_dst) = practical.pixels(clip.frames), practical.pixels(clip.paired)  # type: ignore[arg-type]
    cross = practical.losses(grid_lam, clip, "cross_exogenous")
    z = grid_lam.encode(twin_src, twin_dst).post
    torch.testing.assert_close(cross["cross_exogenous"], squared_error(grid_lam.predict(src, z), dst))
    plain = practical.losses(grid_lam, clip, "vanilla")["reconstruction"]
    torch.testing.assert_close(cross["reconstruction"], plain)
    robust = practical.losses(grid_lam, clip, "robust_target")["robust_target"]
    guess = grid_lam.head(grid_lam.encode(src, dst).post[rows, 0])
    expected = (clip.targets["action"][rows, 0] - guess).square().sum(1).mean()
    assert float(robust.mean()) == pytest.approx(float(expected), rel=1e-5)
    unlabelled = torch.tensor([i for i in range(60) if i not in rows.tolist()])
    assert not practical.losses(grid_lam, clip[unlabelled], "robust_target")["robust_target"].any()


def test_scores_of_models_whose_answer_is_known(grid_lam: PracticalLAM, monkeypatch: pytest.MonkeyPatch) -> None:
    test = practical.transitions(0.5, 2000, 7)
    monkeypatch.setattr(grid_lam, "predict", lambda src, z: torch.full_like(src, 0.25))
    found = practical.score(grid_lam, test)
    assert found["exogenous"] == pytest.approx(0.25**2, rel=0.02)  # noise of 0 or 0.5 against 0.25
    assert found["controllable"] == pytest.approx((11 * 0.25**2 + 0.75**2) / 12)
    mean = torch.zeros(5, 32)
    monkeypatch.setattr(grid_lam.bottleneck, "codebook", mean)
    still = practical.score(grid_lam, test)
    assert still["consistency"] == still["consistency by spread"] == 0 and still["perplexity"] == pytest.approx(1.0)
