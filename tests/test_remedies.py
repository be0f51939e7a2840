"""Auxiliary losses: every method accepts them, they equal their equations, and weight 0 turns them off."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from clips import clip_of
from lamina import methods
from lamina.cli import main
from lamina.data.paired import are_related
from lamina.data.sampling import DataConfig, open_source
from lamina.envs.base import Observation
from lamina.envs.grid import CELLS as GRID_CELLS
from lamina.envs.grid import ROWS, Grid
from lamina.errors import LaminaError
from lamina.images import to_float
from lamina.intervals import Estimate
from lamina.losses.optical_flow import CELLS, FLOW_WIDTH, optical_flow
from lamina.losses.reconstruction import total
from lamina.methods.auxiliary import label_mask, target_of, with_auxiliary
from lamina.models.lam import LAM
from lamina.rng import Rng
from lamina.training.recipe import filled_in, recipe
from lamina.types import Clip
from test_methods import clip, every_method

torch.set_num_threads(1)
pytestmark = pytest.mark.typed
SMALL = {"size": "debug", "image": (16, 16), "slots": 4}
REMEDIES = {
    "cross_exogenous": {"cross_exogenous": 1.0},
    "action": {"robust_target": 1.0, "target_width": 6, "target_classes": (4,)},
    "flow": {"robust_target": 0.5, "target": "flow", "target_width": FLOW_WIDTH},
    "feature": {"robust_target": 1.0, "target": "q", "target_width": 3, "target_share": 0.5},
    "both": {"cross_exogenous": 0.3, "robust_target": 1.0, "target_width": 6, "target_classes": (4,)},
}


def full(frames: int = 2, batch: int = 6, seed: int = 0) -> Clip:
    """A clip with everything that a remedy can ask for: an action of one choice of four and two numbers, a feature, paired views."""
    base = clip((16, 16), batch, frames, seed)
    generator = torch.Generator().manual_seed(seed + 100)
    choice = torch.randint(0, 4, (batch, frames, 1), generator=generator).float()
    action = torch.cat([choice, torch.randn(batch, frames, 2, generator=generator)], -1)
    paired = torch.randint(0, 256, base.frames.shape, dtype=torch.uint8, generator=generator)
    targets = {"q": torch.randn(batch, frames, 3, generator=generator)}
    return dataclasses.replace(base, action=action, paired=paired, targets=targets, episode=torch.arange(batch))


@every_method
@pytest.mark.parametrize("remedy", REMEDIES)
def test_every_method_takes_every_remedy(name, remedy):
    module = methods.load(name)
    options = module.Config(size="debug", image=(16, 16), slots=4, **REMEDIES[remedy])
    plan = recipe(name, module, options)
    torch.manual_seed(0)
    lam = LAM(plan.lam).train()
    optimizer = torch.optim.AdamW([p for p in lam.parameters() if p.requires_grad], lr=1e-3)
    for step in range(2):
        losses = plan.losses(lam, full(options.frames, seed=step), Rng(0, step))
        assert losses.keys() == plan.weights.keys() > module.weights(options).keys()
        assert all(v.shape == (6,) and v.isfinite().all() for v in losses.values())
        total(losses, plan.weights).backward()
        optimizer.step()
        if lam.target is not None:
            assert lam.target.weight.grad is not None and lam.target.weight.grad.any()
        optimizer.zero_grad()


@every_method
def test_without_a_remedy_a_method_is_what_it_was(name):
    module = methods.load(name)
    options = module.Config(size="debug", image=(16, 16), slots=4)
    losses = module.losses(options)
    plan = recipe(name, module, options)
    assert with_auxiliary(options, losses, module.weights(options))[0] is losses
    assert LAM(plan.lam).target is None
    with_term = dataclasses.replace(options, cross_exogenous=1.0)
    torch.manual_seed(0)
    lam = LAM(module.build(options)).eval()
    alone = plan.losses(lam, full(options.frames), Rng(0))
    beside = recipe(name, module, with_term).losses(lam, full(options.frames), Rng(0))
    own = [term for term in alone if not term.startswith("commitment")]  # which is of both views
    # The method's own terms draw the same numbers; a pair that is encoded in a larger batch differs by rounding.
    assert all(torch.allclose(alone[term], beside[term], atol=1e-6, rtol=1e-4) for term in own)


def test_alam_decodes_one_drawn_pair_beside_paired_views():
    """`--decoded one --cross-exogenous 1`: the drawn pair has no paired view, the cross-exogenous term reads the view that was encoded."""
    module = methods.load("alam")
    torch.manual_seed(0)
    plan = {
        decoded: recipe("alam", module, module.Config(**SMALL, decoded=decoded, cross_exogenous=1.0))
        for decoded in ("all", "one")
    }
    lam = LAM(plan["one"].lam).eval()
    with torch.no_grad():
        for parameter in lam.decoder.parameters():  # an untrained decoder reads nothing
            parameter.add_(0.1 * torch.randn_like(parameter))
        batch = full(3, batch=2000)
        one, every = (plan[name].losses(lam, batch, Rng(0)) for name in ("one", "all"))
        view = lam.view(batch)
        latents = lam.encode(lam.view(clip_of(batch.paired)), [(0, 1), (1, 2)]).own
        keep = torch.full((len(batch),), lam.config.slots)
        expected = lam.reconstruction(view, latents, keep, Rng(0))
    torch.testing.assert_close(one["cross_exogenous"], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(every["cross_exogenous"], expected, rtol=1e-4, atol=1e-5)
    for term in ("composition", "reversal", "commitment"):
        torch.testing.assert_close(one[term], every[term])
    # Eq. 8 in expectation: one pair in the place of three.
    for term in ("reconstruction", "perception"):
        torch.testing.assert_close(one[term].mean(), every[term].mean(), rtol=0.02, atol=0)


@pytest.mark.typed(False)
def test_a_method_that_returns_no_loss_output_is_one_line():
    module = methods.load("lapo")
    options = module.Config(**SMALL)

    class Mine:
        build, weights = module.build, module.weights

        @staticmethod
        def losses(options):
            return lambda lam, view, rng: module.losses(options)(lam, view, rng).terms

    plan = recipe("my_method", Mine, options)
    said = r"^my_method.losses must return LossOutput\(terms, latents\), it returned dict$"
    with pytest.raises(LaminaError, match=said):
        plan.losses(LAM(plan.lam), full(), Rng(0))


def fixed(**options) -> tuple[object, LAM]:
    """A Fixed-K with a one-pass decoder, whose loss can be written down."""
    module = methods.load("fixed_k")
    config = module.Config(size="debug", image=(16, 16), slots=2, decoder="pixel", **options)
    torch.manual_seed(0)
    return recipe("fixed_k", module, config), LAM(recipe("fixed_k", module, config).lam).eval()


@torch.no_grad()
def test_cross_exogenous_is_equation_16():
    plan, lam = fixed(cross_exogenous=1.0)
    batch = full()
    o = to_float(batch.frames)
    z = lam.encode(lam.view(clip_of(batch.paired)), [(0, 1)]).own[0, 1].post
    expected = (lam.decoder.sample(o[:, 0], z, Rng(0)) - o[:, 1]).square().flatten(1).mean(1)
    torch.testing.assert_close(plan.losses(lam, batch, Rng(0))["cross_exogenous"], expected)


@torch.no_grad()
def test_a_robust_target_is_equation_19_on_the_transitions_whose_target_is_known():
    mean, deviation = (0.1, 0.2, 0.3, 0.4, 1.0, -2.0), (0.5, 0.5, 0.5, 0.5, 2.0, 4.0)
    given = {"target_mean": mean, "target_deviation": deviation}
    plan, lam = fixed(robust_target=1.0, target_width=6, target_classes=(4,), target_share=0.4, **given)
    batch = full(batch=64)
    y = torch.cat([torch.nn.functional.one_hot(batch.action[:, 0, 0].long(), 4), batch.action[:, 0, 1:]], -1)
    options = methods.load("fixed_k").Config(**plan.options)
    assert torch.equal(target_of(batch, options, (0, 1)), y)
    told = label_mask(batch.episode, batch.index[:, 0], options)
    assert 10 < int(told.sum()) < 45
    z = lam.encode(lam.view(batch), [(0, 1)]).own[0, 1].post.flatten(1)
    error = (lam.target(z) - (y - torch.tensor(mean)) / torch.tensor(deviation)).square().mean(1)
    loss = plan.losses(lam, batch, Rng(0))["robust_target"]
    torch.testing.assert_close(loss[told], error[told])  # each counts once, however few there are
    assert not loss[~told].any()


def test_which_targets_are_known_is_a_matter_of_the_transition_alone():
    options = methods.load("fixed_k").Config(target_share=0.1)
    many = full(batch=4000)
    many = dataclasses.replace(many, index=torch.arange(8000).view(4000, 2), episode=torch.arange(4000) // 50)
    told = label_mask(many.episode, many.index[:, 0], options)
    assert told.float().mean() == pytest.approx(0.1, abs=0.02)
    order = torch.randperm(4000)
    assert torch.equal(label_mask(many.episode[order], many.index[order, 0], options), told[order])
    more = label_mask(many.episode, many.index[:, 0], dataclasses.replace(options, target_share=0.3))
    assert bool((more | ~told).all())  # who asks for more labels keeps those that were there


def test_no_frame_is_encoded_twice_for_a_target():
    plan, lam = fixed(robust_target=1.0, target="flow", target_width=FLOW_WIDTH)
    calls: list[int] = []
    embed = lam.encoder.embed
    lam.encoder.embed = lambda frames: calls.append(len(frames)) or embed(frames)
    plan.losses(lam, full(), Rng(0))
    assert calls == [12]


def test_optical_flow_is_how_far_the_picture_moved():
    rng = np.random.default_rng(0)
    noise = torch.from_numpy(rng.integers(0, 256, (1, 1, 20, 20)).astype(np.uint8))
    smooth = torch.nn.functional.interpolate(noise.float(), (96, 96), mode="bicubic").clamp(0, 255).to(torch.uint8)
    first, second = (smooth[:, :, 10:74, x : x + 64].expand(1, 3, 64, 64) for x in (10, 8))  # two pixels to the right
    flow = optical_flow(first, second).view(2, CELLS, CELLS)[:, 1:-1, 1:-1]
    assert float(flow[0].mean()) == pytest.approx(2 * 16 / 64, rel=0.15) and abs(float(flow[1].mean())) < 0.05
    assert optical_flow(first, first).abs().max() < 0.02  # of a 64-pixel picture, a twentieth of a pixel


@pytest.fixture(scope="module")
def grid(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("grid") / "data"
    assert main(["collect", "grid", "--out", str(path), "--episodes", "10", "--size", "16", "16"]) == 0
    return path


def test_the_data_fills_in_what_a_remedy_needs(grid):
    module = methods.load("flexlam")
    data = DataConfig((str(grid),), (16, 16))
    options, asked = filled_in(module.Config(cross_exogenous=1.0, robust_target=1.0), data)
    assert asked.paired == "observation.images.paired" and (options.target_width, options.target_classes) == (4, (4,))
    source = open_source(grid)
    action = np.concatenate([source.column(e, "action") for e in source.episodes if e.splits[0][0] == "train"])
    share = np.bincount(action[:, 0].astype(int), minlength=4) / len(action)
    # Each episode's last transitions have no frame a gap later, so the shares differ by a few of them.
    np.testing.assert_allclose(options.target_mean, share, atol=0.02)
    np.testing.assert_allclose(options.target_deviation, np.sqrt((share * (1 - share)).mean()), atol=0.02)
    assert filled_in(module.Config(), data) == (module.Config(), dataclasses.replace(data, action=None))
    options, asked = filled_in(module.Config(robust_target=1.0, target="next.reward"), data)
    assert options.target_width == 1 and asked.targets == ("next.reward",)


TINY = [
    "--image",
    "16",
    "16",
    "--size",
    "debug",
    "--slots",
    "2",
    "--decoder",
    "unet",
    "--steps",
    "4",
    "--batch",
    "8",
    "--device",
    "cpu",
]


@pytest.mark.parametrize("method", [["flexlam"], ["alam", "--decoded", "one"]])
def test_a_run_with_remedies_trains_aligns_jointly_and_is_evaluated(method, grid, tmp_path, monkeypatch):
    monkeypatch.setattr("lamina.training.joint.START", 4)
    run = str(tmp_path / "run")
    command = [
        "train",
        *method,
        "--data",
        str(grid),
        "--out",
        run,
        "--cross-exogenous",
        "1",
        "--robust-target",
        "1",
        *TINY,
    ]
    assert main(command) == 0
    settings = json.loads((tmp_path / "run" / "config.json").read_text())
    assert settings["data"]["paired"] == "observation.images.paired"
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert {"cross_exogenous", "robust_target"} <= {key.rpartition("/")[2] for key in rows[0]}
    quick = ["--steps", "2", "--batch", "8", "--device", "cpu"]
    assert main(["align", run, "--data", str(grid), "--labels", "20", "--joint", *quick]) == 0
    assert (
        main(
            [
                "evaluate",
                run,
                "--data",
                str(grid),
                "--transitions",
                "64",
                "--reconstructions",
                "16",
                "--structure",
                "16",
            ]
        )
        == 0
    )
    record = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert {row["name"].partition(",")[0] for row in record["exogenous"]} >= {"reconstruction", "swap"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--cross-exogenous", "1", "--paired", "mirror"], "has no camera 'mirror'"),
        (["--cross-exogenous", "1", "--camera", "observation.images.paired"], "paired with itself"),
        (
            ["--cross-exogenous", "1", "--camera", "observation.images.grid", "--paired", "observation.images.grid"],
            "paired with itself",
        ),
        (["--cross-exogenous", "-1"], "--cross-exogenous must be at least 0"),
        (["--robust-target", "1", "--target", "mood"], "no feature 'mood'"),
        (["--robust-target", "1", "--target-share", "0"], "target-share"),
    ],
)
def test_a_remedy_that_cannot_be_had_is_one_line(options, said, grid, tmp_path, capsys):
    assert main(["train", "lapo", "--data", str(grid), "--out", str(tmp_path / "run"), *TINY, *options]) == 2
    mistakes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lamina: ")]
    assert len(mistakes) == 1 and said in mistakes[0] and not list(tmp_path.iterdir())


def test_without_paired_views_the_data_is_refused(tmp_path):
    from planted import write_planted

    data = DataConfig((str(write_planted(tmp_path / "data")),), (16, 16))
    with pytest.raises(LaminaError, match="needs paired views"):
        filled_in(methods.load("lapo").Config(cross_exogenous=1.0), data)


STEPS_OF_ONE = [
    "--size",
    "debug",
    "--image",
    "16",
    "16",
    "--slots",
    "2",
    "--steps",
    "1",
    "--batch",
    "8",
    "--device",
    "cpu",
]


def test_a_small_relation_of_few_episodes_is_none():
    """What 94 transitions of two episodes gave for views that have nothing to do with one another, and for those of the same states."""
    assert not are_related(Estimate(0.084, 0.03, 0.15)) and not are_related(Estimate(0.2, -0.1, 0.5))
    assert are_related(Estimate(0.33, 0.24, 0.41))


@pytest.mark.parametrize("same", [True, False])
def test_training_on_views_of_other_states_warns(same, tmp_path, monkeypatch, capsys):
    if not same:
        elsewhere = Grid(size=(16, 16))
        rng = np.random.default_rng(0)

        def observe(world: Grid) -> Observation:
            elsewhere._noise, elsewhere.position = rng, tuple(rng.integers((ROWS, GRID_CELLS)))
            elsewhere._draw()
            return Observation(
                {"grid": world._picture(world._rows["grid"]), "paired": elsewhere._picture(elsewhere._rows["paired"])}
            )

        monkeypatch.setattr(Grid, "observe", observe)
    data = str(tmp_path / "data")
    assert main(["collect", "grid", "--out", data, "--episodes", "20", "--size", "16", "16"]) == 0
    run = str(tmp_path / "run")
    assert main(["train", "lapo", "--data", data, "--out", run, "--cross-exogenous", "1", *STEPS_OF_ONE]) == 0
    assert ("does not seem to show the same states" in capsys.readouterr().err) is not same


@pytest.mark.parametrize("change", [1.0, -0.5])
def test_a_paired_view_of_another_length_is_one_line(change, grid, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(grid, data)
    (episodes,) = data.glob("meta/episodes/**/*.parquet")
    table = pq.read_table(episodes)
    name = "videos/observation.images.paired/to_timestamp"
    ends = table[name].to_numpy().copy()
    ends[3] += change
    pq.write_table(table.set_column(table.column_names.index(name), name, pa.array(ends)), episodes)
    run = tmp_path / "run"
    assert main(["train", "lapo", "--data", str(data), "--out", str(run), "--cross-exogenous", "1", *STEPS_OF_ONE]) == 2
    (mistake,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("lamina: "))
    assert "episode 3: paired views must be of one length" in mistake and not run.exists()
    # Who pairs nothing doesn't care.
    assert main(["train", "lapo", "--data", str(data), "--out", str(run), *STEPS_OF_ONE]) == 0


def test_a_paired_view_that_ends_earlier_is_one_line(grid, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(grid, data)
    for video in data.glob("videos/*.paired/**/*.mp4"):
        with av.open(str(video)) as source:
            frames = [frame.to_ndarray(format="rgb24") for frame in source.decode(video=0)]
            rate = source.streams.video[0].average_rate
        with av.open(str(video), "w") as sink:
            stream = sink.add_stream("libx264", rate=rate)
            stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv420p"
            for pixels in frames[: len(frames) // 3]:
                sink.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            sink.mux(stream.encode())
    run = tmp_path / "run"
    assert main(["train", "lapo", "--data", str(data), "--out", str(run), "--cross-exogenous", "1", *STEPS_OF_ONE]) == 2
    mistakes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lamina: ")]
    assert len(mistakes) == 1 and "paired" in mistakes[0] and not run.exists()
