"""The flow policy: data, mask, losses, sampling, files, and that it learns."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import lamina.policies.encoded
from lamina import methods
from lamina.data.memory import InMemoryDataset
from lamina.errors import LaminaError, LaminaWarning
from lamina.models.hub import LatentActionModel, Provenance
from lamina.policies.base import Observations
from lamina.policies.encoded import fingerprint
from lamina.policies.flow.config import FlowConfig, FlowShapes
from lamina.policies.flow.context import Context
from lamina.policies.flow.data import (
    FlowData,
    FlowStream,
    choose_cameras,
    choose_columns,
    encode_steps,
    label_some,
    open_data,
    rows_at,
    statistics_of,
)
from lamina.policies.flow.framework import FlowMatching
from lamina.policies.flow.model import FlowBatch, FlowModel
from lamina.policies.flow.network import structure
from lamina.policies.flow.policy import FlowPolicy
from lamina.policies.flow.training import load_flow_policy, train_flow_policy
from lamina.rng import Rng
from lamina.training.settings import TrainConfig
from processes import dies_in, in_child

torch.set_num_threads(1)
pytestmark = pytest.mark.typed

SIDE, FPS, GAP = 16, 10.0, 0.2
TASKS = ("go to the light", "leave the light")


def light(place: float) -> np.ndarray:
    """A bright column at ``place`` (0 to 1) on grey, [16, 16, 3]."""
    picture = np.full((SIDE, SIDE, 3), 60, np.uint8)
    picture[:, round(place * (SIDE - 3)) : round(place * (SIDE - 3)) + 3] = 240
    return picture


def episodes(count: int, length: int = 20, seed: int = 0, discrete: bool = False) -> list[Any]:
    """Two cameras that show two lights, left and right ones; the action is a function of both and of the task."""
    rng = np.random.default_rng(seed)
    made = []
    for n in range(count):
        places = rng.uniform(0, 1, (length, 2))
        places = np.clip(places[:1] + np.cumsum(rng.normal(0, 0.08, places.shape), 0), 0, 1)
        sign = 1 - 2 * (n % 2)
        values = sign * (places[:, 0] - places[:, 1])
        action = (values > 0).astype(np.int64) if discrete else np.stack([values, 5 + 2 * values], 1).astype(np.float32)
        frames = {camera: np.stack([light(p) for p in places[:, i]]) for i, camera in enumerate(("left", "right"))}
        columns = {"observation.state": np.stack([values**2, np.arange(length)], 1).astype(np.float32)}
        made.append(SimpleNamespace(frames=frames, actions=action, columns=columns, task=TASKS[n % 2]))
    return made


def write_run(folder: Path, **options: Any) -> Path:
    """A run folder with an untrained LAM."""
    torch.manual_seed(0)
    method = methods.load("lapo")
    config = method.build(method.Config(size="debug", image=(SIDE, SIDE), slots=2, **options))
    LatentActionModel(config, Provenance("lapo", gap_seconds=(GAP, GAP))).eval().save_pretrained(folder / "model")
    return folder


def training(**options: Any) -> TrainConfig:
    chosen = {"steps": 4, "batch": 8, "lr": 1e-3, "warmup": 1, "device": "cpu"} | options
    return TrainConfig(**{"checkpoint_every": max(2, chosen["steps"] // 2)} | chosen)


def observations(item: Any, step: int) -> Observations:
    frames = {camera: views[step][None] for camera, views in item.frames.items()}
    return Observations(frames, item.columns["observation.state"][step][None], (item.task,))


VARIANTS: dict[str, dict[str, Any]] = {
    "alam": {},
    "none": {"latents": "none"},
    "two stage": {"generation": "two_stage"},
    "villa-X": {"form": "villa_x", "latent_steps": 3},
    "diffusion": {"framework": "diffusion"},
}


def variant(name: str, **options: Any) -> FlowConfig:
    if VARIANTS[name].get("framework") == "diffusion":
        pytest.importorskip("diffusers")
    return FlowConfig(**{"size": "debug", "chunk": 2, "replan": 1, "flow_steps": 4} | VARIANTS[name] | options)


def shapes(config: FlowConfig, views: int = 2, latent: int = 3, discrete: tuple[int, ...] = ()) -> FlowShapes:
    return FlowShapes(
        (3, SIDE, SIDE), ("left", "right")[:views], discrete, 0 if discrete else 2, (), 2,
        latent if config.latents == "lam" else 0, 2, 1, FPS, TASKS, ("action", "observation.state"), "",
    )  # fmt: skip


def random_model(config: FlowConfig, **options: Any) -> FlowModel:
    """A model whose parameters are all random: the zeros of a new one would hide what depends on what."""
    torch.manual_seed(0)
    model = FlowModel(config, shapes(config, **options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.low.fill_(-1e3), model.high.fill_(1e3)
    return model


def random_batch(model: FlowModel, rows: int, seed: int = 0) -> FlowBatch:
    """Every row labelled and every step valid."""
    g = torch.Generator().manual_seed(seed)
    config, made, views = model.config, model.shapes, len(model.shapes.cameras)
    frames = torch.randint(0, 256, (rows, views, config.context, *made.image), generator=g, dtype=torch.uint8)
    proprio = torch.randn(rows, config.context, made.proprio, generator=g)
    h, n = config.actions, config.steps_of_latents
    action = torch.randn(rows, h, made.continuous, generator=g)
    latent = torch.randn(rows, n, views, made.latent, generator=g) if made.latent else None
    valid = torch.ones(rows, n, dtype=torch.bool) if made.latent else None
    context = Context(frames, proprio, tuple(TASKS[i % 2] for i in range(rows)))
    return FlowBatch(context, action, torch.ones(rows, h, dtype=torch.bool), latent, valid)


# ------------------------------------------------------------------------------------------------------------- who sees whom


def test_structure_of_two_views_and_two_steps():
    """Tokens: z_1 left, z_1 right, z_2 left, z_2 right, u_1, u_2."""
    alam = [
        [1, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [1, 1, 1, 1, 1, 1],
    ]
    assert structure("alam", 2, 2, 2).int().tolist() == alam
    assert structure("villa_x", 1, 1, 2).int().tolist() == [[1, 0, 0], [1, 1, 1], [1, 1, 1]]


@pytest.mark.parametrize("name", ["alam", "villa-X"])
def test_a_token_depends_on_what_it_sees_and_on_nothing_else(name):
    """Every input token is changed in turn: an output changes where the mask lets it, over all layers, and is the same elsewhere."""
    config = variant(name, chunk=3)
    model = random_model(config)
    network, (n, h) = model.network, (config.steps_of_latents, config.actions)
    memory = model.observe(random_batch(model, 1).context)
    g = torch.Generator().manual_seed(1)
    z, u = torch.randn(1, n, 2, 3, generator=g), torch.randn(1, h, 2, generator=g)

    def outputs(z: torch.Tensor, u: torch.Tensor) -> list[torch.Tensor]:
        with torch.no_grad():
            vz, vu = network(memory, torch.tensor([0.3]), z, u, network.mask(memory))
        return [*vz[0].flatten(0, 1), *vu[0]]

    before, seen = outputs(z, u), structure(config.form, n, 2, h)
    for token in range(2 * n + h):
        z2, u2 = z.clone(), u.clone()
        (z2[0].flatten(0, 1) if token < 2 * n else u2[0])[token if token < 2 * n else token - 2 * n] += 1.0
        after = outputs(z2, u2)
        changed = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
        assert changed == seen[:, token].tolist(), token  # the relation is transitive, so layers add nothing


@pytest.mark.parametrize("name", ["alam", "two stage", "villa-X"])
def test_what_is_not_valid_changes_nothing(name):
    """Latents and actions behind an episode's end may be anything: losses and gradients are the same, and finite."""
    model = random_model(variant(name, chunk=3))
    batch = random_batch(model, 2)
    valid = {"action_valid": batch.action_valid.clone(), "latent_valid": batch.latent_valid.clone()}
    valid["action_valid"][0, 2:], valid["latent_valid"][1, 1:] = False, False
    batch = dataclasses.replace(batch, **valid)

    def gradients(batch: FlowBatch) -> list[torch.Tensor]:
        model.zero_grad()
        sum(x.mean() for x in model.losses(batch, Rng(0)).values()).backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    other = dataclasses.replace(batch, action=batch.action.clone(), latent=batch.latent.clone())
    other.action[0, 2:], other.latent[1, 1:] = 50.0, -50.0
    for a, b in zip(gradients(batch), gradients(other), strict=True):
        torch.testing.assert_close(a, b)


def test_unlabelled_rows_give_no_action_loss_and_do_not_dilute_it():
    """Gradients of the action loss are those of the labelled rows alone, and those of the latents' loss are not touched by the labels."""
    model = random_model(variant("alam"))
    batch = random_batch(model, 4)
    masked = dataclasses.replace(batch, action_valid=torch.tensor([[True], [True], [False], [False]]).expand(4, 2))
    context = Context(batch.context.frames[:2], batch.context.proprio[:2], batch.context.words[:2])
    alone = FlowBatch(context, batch.action[:2], batch.action_valid[:2], batch.latent[:2], batch.latent_valid[:2])

    def gradient(batch: FlowBatch, draws: Any, term: str) -> list[torch.Tensor]:
        model.zero_grad()
        terms = model.losses(batch, draws)
        terms[term].mean().backward()
        return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]

    class First(Rng):
        """The draws of a batch of four, for its first two rows."""

        def uniform(self, batch: int, *shape: int) -> torch.Tensor:
            return super().uniform(4, *shape)[:batch]

        def normal(self, batch: int, *shape: int) -> torch.Tensor:
            return super().normal(4, *shape)[:batch]

    assert model.losses(masked, Rng(0))["action"][2:].tolist() == [0.0, 0.0]
    for a, b in zip(gradient(masked, Rng(0), "action"), gradient(alone, First(0), "action"), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    for a, b in zip(gradient(masked, Rng(0), "latent_0"), gradient(batch, Rng(0), "latent_0"), strict=True):
        torch.testing.assert_close(a, b)
    weighed = model.losses(dataclasses.replace(masked, action_weight=torch.full((4,), 1.5)), Rng(0))
    plain = model.losses(masked, Rng(0))
    torch.testing.assert_close(weighed["action"], 1.5 * plain["action"])
    assert all(torch.equal(weighed[term], plain[term]) for term in plain if term != "action")


def test_villa_x_hides_the_plan_from_the_actions_half_of_the_time_and_half_of_its_latents_otherwise():
    model = random_model(variant("villa-X"))
    seen = model._visible(Rng(0), 4000).flatten(1).float()
    assert abs((seen.sum(1) == 0).float().mean() - (0.5 + 0.5**7)) < 0.03
    assert abs(seen.mean() - 0.25) < 0.02
    assert random_model(variant("alam"))._visible(Rng(0), 4) is None


def test_hide_hides_all_latents_of_its_share_of_the_rows_from_their_actions_in_training():
    model = random_model(dataclasses.replace(variant("alam"), hide=0.3))
    seen = model._visible(Rng(0), 4000).flatten(1)
    assert torch.equal(seen.any(1), seen.all(1))
    assert abs((~seen.any(1)).float().mean() - 0.3) < 0.03
    batch = random_batch(model, 3)
    hidden = random_model(dataclasses.replace(variant("alam"), hide=1.0))
    other = dataclasses.replace(batch, latent=batch.latent + 1)
    assert torch.equal(hidden.losses(batch, Rng(0))["action"], hidden.losses(other, Rng(0))["action"])
    assert not torch.equal(model.losses(batch, Rng(0))["action"], model.losses(other, Rng(0))["action"])


# ------------------------------------------------------------------------------------------------------------- from noise to data


def test_euler_steps_follow_the_exact_velocity_of_gaussian_data():
    """Data N(m, s^2): x_t is N((1-t) m, (1-t)^2 s^2 + t^2), and the flow maps noise e to m + s e."""
    m, s = 3.0, 0.5
    e = torch.linspace(-2, 2, 9)[:, None]

    def field(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        t = t[:, None]
        variance = (1 - t) ** 2 * s**2 + t**2
        return -m + (t - (1 - t) * s**2) / variance * (x - (1 - t) * m)

    flow = FlowMatching(squared=False)
    errors = [(flow.sample(field, e, steps) - (m + s * e)).abs().max().item() for steps in (100, 200)]
    assert errors[1] < 0.01 and 0.4 < errors[1] / errors[0] < 0.6  # of first order


def test_times_are_beta_distributed_towards_the_noise():
    t = FlowMatching(squared=False).time(Rng(0), 50_000)
    assert t.min() >= 0.001 and t.max() <= 1
    assert abs(t.mean() - (0.001 + 0.999 * 0.6)) < 0.005  # Beta(1.5, 1): mean 0.6, variance 0.0686
    assert abs(t.var() - 0.0686 * 0.999**2) < 0.002


@pytest.mark.parametrize("name", ["alam", "none"])
def test_the_loss_is_the_mean_distance_to_noise_minus_data(name):
    """A new network predicts zero, so its loss is the mean of |noise - data| in standardised units (ALAM Eq. 12, 13)."""
    config = variant(name)
    torch.manual_seed(0)
    model = FlowModel(config, shapes(config)).eval()
    batch = random_batch(model, 400)
    model.action.mean.fill_(1.0), model.action.std.fill_(2.0)
    terms = {name: x.mean().item() for name, x in model.losses(batch, Rng(0)).items()}
    data = (batch.action - 1) / 2
    expected = float((torch.randn(40, *data.shape) - data).abs().mean())
    assert abs(terms["action"] - expected) < 0.03
    if name == "alam":
        assert abs(terms["latent_1"] - 2 / np.pi**0.5) < 0.05  # E|x - y| of standard normals
    assert terms.keys() == model.weights().keys()


def test_interventions_change_what_the_actions_see_and_not_the_latents():
    """ALAM App. F. With block or freeze the actions do not depend on the latents that are generated; with shuffle on their order."""
    for name in ("alam", "two stage"):
        model = random_model(variant(name, chunk=4))
        context = random_batch(model, 2).context
        z, u = model.noise(Rng(0), 2)
        order = torch.tensor([[3.0, 1, 2, 0]]).expand(2, 4)
        latents, actions = zip(
            *(model.sample(context, z, u, kind, order) for kind in ("none", "freeze", "block", "shuffle")), strict=True
        )
        for other in latents[1:]:
            torch.testing.assert_close(other, latents[0])
        for i in range(4):
            for j in range(i):
                assert (actions[i] - actions[j]).abs().max() > 1e-4, (name, i, j)
        kept = model.sample(context, z, u, "shuffle", torch.arange(4.0).expand(2, 4))[1]
        torch.testing.assert_close(kept, actions[0])
        assert torch.equal(model.sample(context, z + 1, u, "block")[1], actions[2])


# ------------------------------------------------------------------------------------------------------------- data


def encoded(
    folder: Path, items: list[Any], **options: Any
) -> tuple[LatentActionModel, InMemoryDataset, FlowData, FlowConfig]:
    run = write_run(folder / "run")
    model, source = LatentActionModel.from_pretrained(run), InMemoryDataset(items, fps=FPS)
    config = FlowConfig(size="debug", chunk=4, replan=2, **options)
    columns, cameras = choose_columns([source], config), choose_cameras([source], ())
    encode_steps(model, [source], folder / "frames", fingerprint(model.lam), cameras, columns, GAP)
    return model, source, open_data(folder / "frames", "train"), config


def test_a_row_holds_the_frames_latents_and_actions_of_its_step(tmp_path):
    """Checked against the episode itself, in its middle and at both ends, for a policy of three frames of history."""
    model, source, data, config = encoded(tmp_path, episodes(10, length=9), context=3)
    first = int(data.bounds[1])
    episode = next(e for e in source.episodes if e.name == data.names[1])
    steps = (0, 3, 7)
    batch = rows_at(data, first + np.array(steps), config, stride=1)
    for row, step in enumerate(steps):
        seen = [max(0, step - 4), max(0, step - 2), step]  # r = 2 actions are carried out between two decisions
        for v, camera in enumerate(("left", "right")):
            frames = source.frames(episode, camera, 0, 9)
            assert torch.equal(batch.context.frames[row, v].permute(0, 2, 3, 1), torch.from_numpy(frames[seen]))
            for n in range(4):
                pair = step + n
                valid = pair + 2 < 9  # the gap is two frames
                assert bool(batch.latent_valid[row, n]) == valid
                if valid:
                    pictures = torch.from_numpy(frames[[pair, pair + 2]]).permute(0, 3, 1, 2)
                    latent = model.encode(pictures[:1], pictures[1:]).pre.flatten()
                    torch.testing.assert_close(batch.latent[row, n, v], latent, rtol=1e-4, atol=1e-5)
        column, state = source.column(episode, "action"), source.column(episode, "observation.state")
        inside = np.minimum(step + np.arange(4), 8)
        assert np.array_equal(batch.action[row], column[inside])
        assert batch.action_valid[row].tolist() == [step + h < 9 for h in range(4)]
        assert np.array_equal(batch.context.proprio[row], state[seen])
        assert batch.context.words[row] == episode.task
    plan = rows_at(data, first + np.array(steps), variant("villa-X"), stride=2)
    assert torch.equal(plan.latent[0, :2], batch.latent[0, [0, 2]])


def test_some_episodes_of_each_task_are_labelled_and_a_batch_has_its_share(tmp_path):
    _, _, data, config = encoded(tmp_path, episodes(20))
    few, more = label_some(data, 2, seed=3), label_some(data, 4, seed=3)
    for task in TASKS:
        of_task = np.array([name == task for name in data.tasks])
        assert few.labelled[of_task].sum() == 2 and more.labelled[of_task].sum() == 4
    assert (more.labelled >= few.labelled).all() and (label_some(data, 2, 4).labelled != few.labelled).any()
    batch = next(iter(FlowStream(few, dataclasses.replace(config, share=0.25), 1, 16, seed=0)))
    assert batch.action_valid[:4, 0].all() and not batch.action_valid[4:].any()
    statistics = statistics_of(few)
    labelled = np.concatenate([data.actions[data.bounds[e] : data.bounds[e + 1]] for e in np.flatnonzero(few.labelled)])
    assert np.array_equal(statistics.action, labelled)
    torch.testing.assert_close(statistics.latent_mean, torch.from_numpy(data.latents[data.valid].mean(0)))
    only = next(iter(FlowStream(data, config, 1, 16, seed=0)))
    assert only.action_valid[:, 0].all()


def test_batches_are_a_function_of_seed_number_and_shard(tmp_path):
    _, _, data, config = encoded(tmp_path, episodes(10))
    whole = FlowStream(data, config, 1, 8, seed=5, shards=2)
    parts = [iter(FlowStream(data, config, 1, 8, seed=5, shards=2, own=[n])) for n in (0, 1)]
    for _, batch in zip(range(3), whole, strict=False):
        assert torch.equal(batch.action, torch.cat([next(part).action for part in parts]))
    again = FlowStream(data, config, 1, 8, seed=5, shards=2)
    again.load_state_dict({"drawn": 3})
    assert torch.equal(next(iter(again)).action, next(iter(whole)).action)


@pytest.mark.parametrize(
    ("batch", "shards", "share", "expected"),
    [
        (1, 1, 0.5, [0, 1, 0, 1, 0, 1]),  # --batch 8 --accumulate 8
        (4, 1, 0.1, [0, 0, 1, 0, 1, 0]),
        (8, 8, 0.5, [4, 4, 4, 4, 4, 4]),  # one row in each of eight shards
        (6, 2, 0.9, [5, 5, 6, 5, 6, 5]),
        (64, 1, 0.5, [32, 32, 32, 32, 32, 32]),
    ],
)
def test_small_batches_have_their_share_of_labels_in_turn(batch, shards, share, expected):
    n = 40
    data = FlowData(
        (np.zeros((n, 8, 8, 3), np.uint8),), np.zeros((n, 1, 2), np.float32), np.ones(n, bool), np.ones((n, 2), np.float32),
        np.zeros((n, 0), np.float32), np.array([0, 20, 40]), np.array([0, 20, 40]), ("a", "a"), ("e0", "e1"), np.array([True, False]),
    )  # fmt: skip

    def labelled(first: int = 0, own: list[int] | None = None) -> list[int]:
        stream = FlowStream(data, FlowConfig(share=share), 1, batch, 0, shards, own)
        stream.load_state_dict({"drawn": first})
        return [int(found.action_valid[:, 0].sum()) for found, _ in zip(stream, range(6 - first), strict=False)]

    stream = FlowStream(data, FlowConfig(share=share), 1, batch, 0, shards)
    weights = [found.action_weight.tolist() for found, _ in zip(stream, range(6), strict=False)]
    usual = share * batch  # with this weight the mean over parts is that over all labelled rows, as in one large batch
    np.testing.assert_allclose(weights, np.repeat(np.array(expected)[:, None] / usual, batch, axis=1), rtol=1e-6)
    assert labelled() == expected and labelled(2) == expected[2:]
    none = next(iter(FlowStream(data, FlowConfig(share=0.0), 1, batch, 0, shards)))
    assert not none.action_valid.any() and not none.action_weight.any()
    assert np.array_equal(np.sum([labelled(own=[n]) for n in range(shards)], 0), expected)


def test_data_are_encoded_once_and_again_for_another_lam(tmp_path):
    model, source, _, config = encoded(tmp_path, episodes(6))
    path = tmp_path / "frames" / "train.latents.npy"
    before = path.stat().st_mtime_ns
    columns, cameras = choose_columns([source], config), choose_cameras([source], ())

    def encode() -> int:
        encode_steps(model, [source], tmp_path / "frames", fingerprint(model.lam), cameras, columns, GAP)
        return path.stat().st_mtime_ns

    assert encode() == before
    latents = np.load(path)
    with torch.no_grad():
        next(model.lam.encoder.parameters()).add_(0.1)
    assert encode() > before
    assert not np.allclose(np.load(path), latents)


def test_latent_numbers_are_coordinates_of_the_latents_that_the_decoder_uses(tmp_path):
    model, source, whole, config = encoded(tmp_path, episodes(8))
    columns, cameras = choose_columns([source], config), choose_cameras([source], ())
    with pytest.raises(LaminaError, match="the decoder ignores"):  # as it does before training
        encode_steps(model, [source], tmp_path / "few", fingerprint(model.lam), cameras, columns, GAP, numbers=2)
    assert not (tmp_path / "few").exists()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.lam.decoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    for name in ("few", "again"):
        encode_steps(model, [source], tmp_path / name, fingerprint(model.lam), cameras, columns, GAP, numbers=2)
    few = open_data(tmp_path / "few", "train")
    assert few.latents.shape == (len(whole), 2, 2)
    assert np.array_equal(few.latents, open_data(tmp_path / "again", "train").latents)
    held = open_data(tmp_path / "few", "validation"), open_data(tmp_path / "frames", "validation")
    for v in range(2):
        with_one = [np.c_[data.latents[:, v], np.ones(len(data))].astype(np.float64) for data in (whole, held[1])]
        affine = np.linalg.lstsq(with_one[0], few.latents[:, v], rcond=None)[0]
        for given, part in zip(
            with_one, (few, held[0]), strict=True
        ):  # one map for both splits, and for pairs that are not valid
            np.testing.assert_allclose(given @ affine, part.latents[:, v], atol=1e-3)
        np.testing.assert_allclose(np.cov(few.latents[few.valid, v].T), np.eye(2), atol=0.02)
    told = json.loads((tmp_path / "few" / "directions.json").read_text())
    assert list(told) == list(cameras) and told[cameras[0]]["effect"][0] >= told[cameras[0]]["effect"][1] > 0


def test_encoding_that_is_killed_leaves_nothing_that_is_believed(tmp_path):
    def work() -> None:
        dies_in(lamina.policies.encoded, "encode_pairs", 4)
        encoded(tmp_path, episodes(6))

    assert in_child(work) == signal.SIGKILL
    assert not (tmp_path / "frames").exists()
    _, source, data, _ = encoded(tmp_path, episodes(6))
    assert len(data) == 20 * sum(e.splits[0][0] == "train" for e in source.episodes)
    (tmp_path / "frames" / "train.latents.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(LaminaError, match="damaged"):
        open_data(tmp_path / "frames", "train")


def test_the_experts_clean_actions_come_first(tmp_path):
    items = episodes(6)
    for item in items:
        item.columns["expert_action"] = item.actions + 1
    source = InMemoryDataset(items, fps=FPS)
    assert choose_columns([source], FlowConfig()).action == "expert_action"
    assert choose_columns([source], FlowConfig(action="action")).action == "action"
    bare = InMemoryDataset([SimpleNamespace(frames=item.frames) for item in items], fps=FPS)
    mixed = choose_columns([source, bare], FlowConfig())
    assert (mixed.action, mixed.proprio) == ("expert_action", "")  # the proprioception is not in all


# ------------------------------------------------------------------------------------------------------------- training and acting


@pytest.mark.parametrize("name", VARIANTS)
def test_learns_a_function_of_two_pictures_and_the_task(name, tmp_path):
    """The task decides the sign: a policy that ignores the words has an error of 1 or more, and one that sees one camera 0.5 or more."""
    config = variant(name, proprio="none", shift=0.0)
    run = write_run(tmp_path / "run")
    data = InMemoryDataset(episodes(120), fps=FPS)
    train_flow_policy(run, [data], config, training(steps=250, batch=32, lr=3e-3, ema=0.98, validate_every=250))
    policy, errors, truth = FlowPolicy.from_run(run), [], []
    for item in episodes(6, seed=1):
        policy.reset()
        for step in range(0, 20, 4):
            errors.append((policy.act(observations(item, step)) - item.actions[step]) ** 2)
            truth.append(item.actions[step])
    share = np.mean(errors, 0) / np.var(truth, 0)
    assert (share < 0.4).all(), share


def test_discrete_actions_are_chosen_by_the_largest_class(tmp_path):
    config = variant("alam", proprio="none", shift=0.0)
    run = write_run(tmp_path / "run")
    train_flow_policy(
        run,
        [InMemoryDataset(episodes(120, discrete=True), fps=FPS)],
        config,
        training(steps=200, batch=32, lr=3e-3, ema=0.98, validate_every=200),
    )
    policy, right = FlowPolicy.from_run(run), []
    for item in episodes(6, seed=1, discrete=True):
        policy.reset()
        for step in range(0, 20, 4):
            chosen = policy.act(observations(item, step))
            assert chosen.dtype == np.int64 and chosen.shape == (1,) and chosen[0] in (0, 1)
            right.append(chosen[0] == item.actions[step])
    assert np.mean(right) > 0.8


class Cart:
    """A bright cart on a line, in the upper half of the picture, that is to be driven to a lamp in the lower half, at most 0.08 a step."""

    def __init__(self, seed: int):
        self.place, self.goal = np.random.default_rng(seed).uniform(0, 1, 2)

    def frames(self) -> dict[str, np.ndarray]:
        return {"top": np.concatenate([light(self.place)[: SIDE // 2], light(self.goal)[SIDE // 2 :]])}

    def expert(self) -> np.ndarray:
        return np.array([np.clip((self.goal - self.place) / 0.08, -1, 1)], np.float32)

    def step(self, action: np.ndarray) -> None:
        self.place = np.clip(self.place + 0.08 * action[0], 0, 1)

    def demonstration(self, length: int = 20) -> Any:
        frames, actions = [], []
        for _ in range(length):
            frames.append(self.frames())
            actions.append(self.expert())
            self.step(actions[-1])
        return SimpleNamespace(frames={"top": np.stack([f["top"] for f in frames])}, actions=np.stack(actions))


def test_a_trained_policy_drives_to_the_lamp_in_closed_loop(tmp_path):
    """Chunks of four actions, two of which are carried out: actions of another step, or of another frame, would miss the lamp."""
    run = write_run(tmp_path / "run")
    data = InMemoryDataset([Cart(seed).demonstration() for seed in range(100, 200)], fps=FPS)
    config = FlowConfig(size="debug", chunk=4, replan=2, shift=0.0, flow_steps=4)
    train_flow_policy(run, [data], config, training(steps=700, batch=32, lr=3e-3, ema=0.98, validate_every=700))
    policy, misses = FlowPolicy.from_run(run), []
    for seed in range(20):
        world = Cart(seed)
        policy.reset()
        for _ in range(10):
            frames = {camera: picture[None] for camera, picture in world.frames().items()}
            for action in policy.act(Observations(frames)):
                world.step(action)
        misses.append(abs(world.place - world.goal))
    # A pixel is 0.08 wide. A cart that stays where it is ends 0.33 from the lamp on the average.
    assert np.median(misses) < 0.1 and np.mean(np.array(misses) < 0.2) >= 0.8, misses


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run with a policy of two actions a decision and two frames of history, after a few steps."""
    run = write_run(tmp_path_factory.mktemp("flow") / "run")
    config = FlowConfig(size="debug", chunk=4, replan=2, context=2, flow_steps=2, labels=2)
    train_flow_policy(run, [InMemoryDataset(episodes(12), fps=FPS)], config, training())
    return run


def test_a_policy_says_what_it_reads_and_stays_within_the_data(trained):
    policy = FlowPolicy.from_run(trained)
    assert (policy.cameras, policy.proprio, policy.chunk) == (("left", "right"), 2, 2)
    assert policy.decision_seconds == pytest.approx(0.2) and policy.spec.continuous == 2
    model = policy.model
    far = torch.full((1, 4, 2), 1e6)
    assert torch.equal(model.read_action(far)[0, 0], model.high) and torch.equal(
        model.read_action(-far)[0, 0], model.low
    )
    assert len(model.action.mean) == 2 and (model.action.std > 0).all()


def test_loading_gives_the_same_actions_and_seeds_differ(trained):
    item = episodes(1, seed=7)[0]
    first, again, other = (FlowPolicy.from_run(trained, seed=seed) for seed in (0, 0, 1))
    for step in (0, 2, 4):
        chosen = first.act(observations(item, step))
        assert chosen.shape == (2, 2) and chosen.dtype == np.float32
        assert np.array_equal(chosen, again.act(observations(item, step)))
        assert not np.array_equal(chosen, other.act(observations(item, step)))


def test_rows_do_not_depend_on_one_another(trained):
    """The first row of a batch of two acts as a policy of one does, also after the second has begun anew."""
    items = episodes(2, seed=8)
    one, two = FlowPolicy.from_run(trained), FlowPolicy.from_run(trained, batch=2)
    for step in (0, 2, 4, 6):
        both = [observations(item, step) for item in items]
        frames = {camera: np.concatenate([o.frames[camera] for o in both]) for camera in ("left", "right")}
        seen = Observations(frames, np.concatenate([o.proprio for o in both]), tuple(o.task[0] for o in both))
        if step == 4:
            two.reset([1])
        np.testing.assert_allclose(two.act_batch(seen)[0], one.act_batch(both[0])[0], rtol=1e-4, atol=1e-5)


def test_history_is_that_of_the_decisions_and_a_reset_forgets_it(trained):
    policy, item = FlowPolicy.from_run(trained), episodes(1, seed=9)[0]
    policy.act(observations(item, 0))
    assert np.array_equal(policy.frames[0, 0, 0], policy.frames[0, 0, 1])
    policy.act(observations(item, 2))
    assert np.array_equal(policy.frames[0, 1], item.frames["right"][[0, 2]])
    assert np.array_equal(policy.states[0], item.columns["observation.state"][[0, 2]])
    policy.reset()
    policy.act(observations(item, 4))
    assert np.array_equal(policy.frames[0, 1], item.frames["right"][[4, 4]])


def test_a_resumed_run_writes_the_same_weights(tmp_path):
    data = InMemoryDataset(episodes(12), fps=FPS)
    config = FlowConfig(size="debug", chunk=4, replan=2, labels=2)
    whole, cut = write_run(tmp_path / "whole"), write_run(tmp_path / "cut")
    train_flow_policy(whole, [data], config, training())
    train_flow_policy(cut, [data], config, training())
    (cut / "policy" / "config.json").unlink()
    for file in (cut / "policy" / "checkpoints").glob("*4*"):
        shutil.rmtree(file)
    train_flow_policy(cut, [data], config, training(resume=True))
    a, b = (load_flow_policy(run / "policy").state_dict() for run in (whole, cut))
    assert all(torch.equal(a[name], b[name]) for name in a)


# ------------------------------------------------------------------------------------------------------------- bad input


def refusal(run: Path, items: list[Any], cameras: tuple[str, ...] = (), **options: Any) -> str:
    """The one line that refuses to train, before anything is encoded."""
    sources = [items] if not isinstance(items[0], list) else items
    with pytest.raises(LaminaError) as error:
        config = FlowConfig(**{"size": "debug", "chunk": 4} | options)
        train_flow_policy(
            run,
            [InMemoryDataset(s, fps=FPS, name=f"data{n}") for n, s in enumerate(sources)],
            config,
            training(),
            cameras,
        )
    assert not (run / "policy" / "frames").exists() and "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.typed(False)
def test_bad_input_is_refused_before_any_training(tmp_path):
    run, good = write_run(tmp_path / "run"), episodes(6)
    assert "no camera 'front'" in refusal(run, good, ("front",))
    assert "longest training episode has 20 steps, and a chunk is 21" in refusal(run, good, chunk=21)
    assert "no feature 'joints'" in refusal(run, good, proprio="joints")
    assert "has no actions" in refusal(run, [SimpleNamespace(frames=item.frames) for item in good])
    assert "different actions" in refusal(run, [good, episodes(6, discrete=True)])
    wide = episodes(6)
    for item in wide:
        item.columns["observation.state"] = np.zeros((20, 3), np.float32)
    assert "'observation.state' is 2 and 3 numbers wide" in refusal(run, [good, wide])
    other = [SimpleNamespace(frames={"top": item.frames["left"]}, actions=item.actions) for item in good]
    assert "no camera is in all of them" in refusal(run, [good, other])
    assert "--replan 5 is more than the 4 actions" in refusal(run, good, replan=5)
    assert "a latent beside every action" in refusal(run, good, latent_steps=3)
    assert "--backbone" in refusal(run, good, backbone="nothing")
    odd = write_run(tmp_path / "odd")
    config = dataclasses.replace(LatentActionModel.from_pretrained(odd).config, image=(3, 24, 36))
    assert "--flow-steps must be at least 1" in refusal(run, good, flow_steps=0)
    assert config.image[1] == 24


@pytest.mark.typed(False)
def test_a_policy_refuses_what_it_cannot_read(trained, tmp_path):
    policy, seen = FlowPolicy.from_run(trained), observations(episodes(1)[0], 0)
    for wrong, told in (
        (
            dataclasses.replace(seen, frames={"left": seen.frames["left"], "front": seen.frames["right"]}),
            "no right among",
        ),
        (dataclasses.replace(seen, proprio=None), r"proprioception of shape \(1, 2\), got None"),
        (dataclasses.replace(seen, proprio=np.zeros((1, 3))), r"got \(1, 3\)"),
        (dataclasses.replace(seen, proprio=np.full((1, 2), np.nan)), "NaN"),
        (dataclasses.replace(seen, task=()), "trained on 2 tasks"),
        (dataclasses.replace(seen, frames={c: f.astype(np.float32) for c, f in seen.frames.items()}), "uint8"),
    ):
        with pytest.raises(LaminaError, match=told):
            policy.act(wrong)
    assert policy.decisions.tolist() == [0] and policy.fresh.all()
    with pytest.warns(LaminaWarning, match="not trained on the task 'dance'"):
        policy.act(dataclasses.replace(seen, task=("dance",)))
    with pytest.raises(LaminaError, match="unknown intervention"):
        FlowPolicy(policy.model, intervention="wait")  # type: ignore[arg-type]
    with pytest.raises(LaminaError, match="neither k nor a temperature"):
        FlowPolicy.from_run(trained, k=3)
    other = write_run(tmp_path / "other", augment=0.1)
    shutil.copytree(trained / "policy", other / "policy")
    FlowPolicy.from_run(other)  # the same encoder
    lam = LatentActionModel.from_pretrained(other)
    with torch.no_grad():
        next(lam.lam.encoder.parameters()).add_(1.0)
    lam.save_pretrained(other / "model")
    with pytest.raises(LaminaError, match="another LAM"):
        FlowPolicy.from_run(other)
    note = trained / "policy" / "config.json"
    for old, new in (('"chunk": 4', '"chunk": 5'), ('"latent": ', '"latent": 1')):
        broken = tmp_path / new.replace('"', "").replace(": ", "_")
        shutil.copytree(trained / "policy", broken)
        (broken / "config.json").write_text(note.read_text().replace(old, new, 1))
        with pytest.raises(LaminaError):
            load_flow_policy(broken)
