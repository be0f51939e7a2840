"""A prefix length for each latent action: the rule, its calibration, and that labels and policies follow it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import lamina
from lamina.cli import main
from lamina.data.sampling import DataConfig, open_source
from lamina.data.stream import sample_split
from lamina.errors import LaminaError
from lamina.inference.encode import frame_pairs
from lamina.models.adaptive import AdaptiveK, RemainingChange, check_length, open_rule, save_rule
from lamina.models.hub import LatentActionModel
from lamina.models.lam import LAM
from lamina.policies.latent import LatentReader
from lamina.policies.rollout import rollout_worlds, table
from lamina.policies.token_policy import TokenPolicy
from lamina.rng import Rng
from lamina.training.adaptive import (
    AdaptiveConfig,
    PrefixChanges,
    action_changes,
    adaptive_k,
    calibrated,
    fit_rule,
    picture_changes,
)
from lamina.training.labelled import LabelledTransitions
from planted import SIZE, write_planted
from test_methods import clip
from test_policy_latent import MIXED, SLOTS, Recorder, film, parts

torch.set_num_threads(1)
pytestmark = pytest.mark.typed
ALL, ONE = 0.0, float("inf")


def rule_for(slots: int, dim: int, threshold: float, seed: int = 0) -> AdaptiveK:
    """A rule with random weights, large enough that codes differ in length."""
    torch.manual_seed(seed)
    head = RemainingChange(slots, dim).eval()
    for parameter in head.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return AdaptiveK(head, threshold, float(slots), "none")


def codes(n: int = 40, slots: int = SLOTS, dim: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randint(-1, 2, (n, slots, dim), generator=torch.Generator().manual_seed(seed)).float()


# ------------------------------------------------------------------------------------------------------------- the rule


def test_a_threshold_of_zero_keeps_all_slots_and_infinity_keeps_one():
    z = codes()
    assert (rule_for(SLOTS, 3, ALL).lengths(z) == SLOTS).all()
    assert (rule_for(SLOTS, 3, ONE).lengths(z) == 1).all()
    dead = rule_for(SLOTS, 3, ALL)
    dead.head.scale.zero_()  # even a change of exactly nothing is not below nothing
    assert (dead.lengths(z) == SLOTS).all()


def test_a_length_is_where_the_expected_change_first_falls_below_the_threshold():
    rule, z = rule_for(SLOTS, 3, 1.0), codes()
    expected = []
    for code in z:
        left = [float(rule.remaining(code[None], k)) for k in range(1, SLOTS)]
        expected.append(next((k for k, value in enumerate(left, 1) if value < 1.0), SLOTS))
    assert rule.lengths(z).tolist() == expected and len(set(expected)) > 2


def test_whether_a_code_ends_depends_on_its_first_slots_alone():
    rule, z, other = rule_for(SLOTS, 3, 1.0), codes(), codes(seed=1)
    for k in range(1, SLOTS + 1):
        swapped = torch.cat([z[:, :k], other[:, k:]], dim=1)
        assert torch.equal(rule.enough(z, k), rule.enough(swapped, k))
        assert torch.equal(rule.enough(z, k), rule.enough(z[:, :k], k))  # a code that is still being generated
    changed = rule.enough(torch.cat([other[:, :1], z[:, 1:]], dim=1), 2)
    assert not torch.equal(rule.enough(z, 2), changed)


@pytest.mark.parametrize("tokens", [1.0, 1.5, 2.0, 3.3, 4.0])
def test_the_threshold_gives_the_mean_length_that_was_asked_for(tokens):
    z = codes(400)
    found = calibrated(rule_for(SLOTS, 3, ALL), z, tokens)
    mean = float(found.lengths(z).float().mean())
    assert mean == found.tokens <= tokens and mean > tokens - 0.1
    assert 0 <= found.threshold < ONE
    if 1 < tokens < SLOTS:
        left = torch.cat([found.remaining(z, k) for k in range(1, SLOTS)])
        lower = dataclasses.replace(found, threshold=float(left[left < found.threshold].max()))
        assert float(lower.lengths(z).float().mean()) > tokens  # a lower threshold would be too many


def test_the_network_learns_what_a_prefix_leaves_out():
    """Slot 0 says whether the other slots change anything: codes that begin with 1 need all of them, the others one."""
    z = codes(600)
    busy = z[:, 0, 0] == 1
    noise = torch.rand(600, SLOTS - 1, generator=torch.Generator().manual_seed(2)) + 0.5
    change = torch.where(busy[:, None], 0.1, 0.001) * noise
    items = PrefixChanges(z, change, torch.arange(600) // 20)
    rule = fit_rule(items, AdaptiveConfig(tokens=float(1 + (SLOTS - 1) * busy.float().mean()), steps=400), "none")
    keep = rule.lengths(z)
    assert (keep[busy] == SLOTS).float().mean() > 0.9 and (keep[~busy] == 1).float().mean() > 0.9
    left = torch.stack([rule.remaining(z, k) for k in range(1, SLOTS)], 1)
    assert 0.05 < left[busy].mean() < 0.2 and 0.0005 < left[~busy].mean() < 0.002  # in the unit of the changes


def test_the_changes_are_those_of_the_decoders_predictions():
    model, _, _ = parts()
    lam = model.lam
    for parameter in lam.decoder.parameters():  # whose last layer begins with zeros
        torch.nn.init.normal_(parameter, std=0.1)
    seen = clip((16, 16), batch=6)
    found = picture_changes(lam, seen, SLOTS)
    view = lam.view(seen)
    z = lam.encode(view, [(0, 1)]).own[0, 1].post
    with torch.no_grad():
        predicted = [lam.decoder.sample(view.inputs([0]), lam.prefix(z, k), Rng(0)) for k in range(SLOTS + 1)]
    torch.testing.assert_close(found.z, z.detach())
    for k in range(1, SLOTS):
        by_hand = ((predicted[k] - predicted[SLOTS]) ** 2).mean((1, 2, 3))
        torch.testing.assert_close(found.change[:, k - 1], by_hand, rtol=1e-3, atol=1e-9)
    assert found.change.min() >= 0 and found.change.mean() > 0


def test_the_changes_are_those_of_the_translators_reading():
    """Three classes and two numbers: the divergence of the classes, and the squared difference of the numbers."""
    model, _, translator = parts(spec=MIXED)
    z = codes(30)
    previous = torch.stack([torch.arange(30) % 3, torch.ones(30), torch.zeros(30)], 1).float()
    items = LabelledTransitions(z, previous, torch.full((30, 3), torch.nan), torch.arange(30) // 5)
    found = action_changes(translator, model.lam, items, SLOTS)
    with torch.no_grad():
        outputs = [translator(model.lam.prefix(z, k), previous) for k in range(SLOTS + 1)]
    whole = outputs[SLOTS]
    for k in range(1, SLOTS):
        p, q = whole[:, :3].double().softmax(1), outputs[k][:, :3].double().softmax(1)
        by_hand = ((p * (p / q).log()).sum(1) + (whole[:, 3:] - outputs[k][:, 3:]).square().sum(1)) / 3
        torch.testing.assert_close(found.change[:, k - 1].double(), by_hand, rtol=1e-4, atol=1e-6)
    assert found.change.mean() > 0.01 and torch.equal(found.z, z)
    short = action_changes(translator, model.lam, items, 2)  # against the first two slots
    two, one = (torch.cat([outputs[k][:, :3].log_softmax(1).double(), outputs[k][:, 3:].double()], 1) for k in (2, 1))
    by_hand = ((two[:, :3].exp() * (two - one)[:, :3]).sum(1) + (two - one)[:, 3:].square().sum(1)) / 3
    torch.testing.assert_close(short.change[:, 0].double(), by_hand, rtol=1e-4, atol=1e-6)
    assert short.change.shape == (30, 1) and torch.equal(short.z, z[:, :2])


# ------------------------------------------------------------------------------------------------------------- policies


@pytest.mark.parametrize(("threshold", "k"), [(ALL, SLOTS), (ONE, 1)])
def test_a_policy_at_the_ends_of_the_rule_is_the_policy_of_one_length(threshold, k):
    model, tokens, translator = parts()
    auto = TokenPolicy(model, tokens, translator, rule_for(SLOTS, 3, threshold), batch=2)
    fixed = TokenPolicy(model, tokens, translator, k, batch=2)
    for frames in film(9, 2):
        np.testing.assert_array_equal(auto.act_batch(frames), fixed.act_batch(frames))
        assert auto.kept.tolist() == fixed.kept.tolist() == [k, k]


def test_a_policy_generates_each_code_until_the_rule_ends_it():
    model, tokens, translator = parts()
    rule, frames = rule_for(SLOTS, 3, 1.0), film(24, 3)
    auto, whole = (Recorder(model, tokens, translator, k, batch=3) for k in (rule, SLOTS))
    kept = []
    for t in range(24):
        previous = None if t == 0 else actions  # both act on the same past
        actions = auto.act_batch(frames[t], previous=previous)
        whole.act_batch(frames[t], previous=previous)
        generated = torch.stack([x.argmax(-1) for x in whole.seen[-1]], 1)
        z = model.lam.index_to_codes(generated)
        expected = rule.lengths(z)
        assert auto.kept.tolist() == expected.tolist()
        assert len(auto.seen[-1]) == expected.max()  # no code more than the longest row needs
        with torch.no_grad():
            before = torch.zeros(3, 1) if previous is None else torch.from_numpy(previous).float()
            by_hand = translator.action.read(translator(model.lam.prefix(z, expected), before))
        np.testing.assert_array_equal(actions, by_hand.numpy().astype(np.int64))
        kept += expected.tolist()
    assert len(set(kept)) > 2


def test_a_rule_of_short_prefixes_keeps_no_more_than_it_knows():
    model, tokens, translator = parts()
    rule, frames = rule_for(2, 3, ALL), film(6, 2)
    assert (rule.lengths(codes()) == 2).all()
    auto, fixed = (TokenPolicy(model, tokens, translator, k, batch=2) for k in (rule, 2))
    for shown in frames:
        np.testing.assert_array_equal(auto.act_batch(shown), fixed.act_batch(shown))
    assert auto.kept.tolist() == [2, 2]


def test_rows_do_not_depend_on_one_another():
    model, tokens, translator = parts()
    rule, frames = rule_for(SLOTS, 3, 1.0), film(10, 3)
    together = TokenPolicy(model, tokens, translator, rule, batch=3)
    alone = [TokenPolicy(model, tokens, translator, rule) for _ in range(3)]
    for t in range(10):
        actions = together.act_batch(frames[t])
        for row, policy in enumerate(alone):
            np.testing.assert_array_equal(policy.act(frames[t, row]), actions[row])
            assert policy.kept[0] == together.kept[row]


class Counting:
    """A plain policy whose n-th decision used n slots."""

    kept: np.ndarray | None = None
    decisions = 0

    def reset(self, rows):
        pass

    def act_batch(self, frames):
        self.decisions += 1
        self.kept = np.array([self.decisions])
        return np.zeros((1, 1), np.int64)


def test_a_rollout_says_the_mean_length():
    agent = Counting()
    record = rollout_worlds(agent, ["grid"], episodes=2, parallel=1, size=(16, 16), max_steps=3, progress=False)
    decisions = sum(record.worlds["grid"].lengths)
    assert agent.decisions == decisions == 6 and record.tokens == (6 + 1) / 2
    assert "3.50 latent tokens a decision." in table(record)
    scripted = rollout_worlds("random", ["grid"], episodes=1, parallel=1, size=(16, 16), max_steps=2, progress=False)
    assert scripted.tokens is None and "latent tokens" not in table(scripted)


def test_a_latent_policy_reads_as_many_slots_as_its_prediction_asks_for():
    model, _, translator = parts()
    rule, z = rule_for(SLOTS, 3, 1.0), codes(20)
    reader = LatentReader(model, translator, "quantised", rule)
    previous, frames = torch.zeros(20, 1), torch.zeros(20, 3, 16, 16, dtype=torch.uint8)
    with torch.no_grad():
        found = reader(z.flatten(1), previous, frames)
        expected = torch.cat(
            [
                LatentReader(model, translator, "quantised", int(k))(z[n : n + 1].flatten(1), previous[:1], frames[:1])
                for n, k in enumerate(rule.lengths(z))
            ]
        )
    assert torch.equal(found, expected) and reader.kept.tolist() == rule.lengths(z).tolist()
    with pytest.raises(LaminaError, match="before the quantiser"):
        LatentReader(model, translator, "continuous", rule)


# ---------------------------------------------------------------------------------------------- runs, labels, command line


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset and a trained run with a rule, by the command line."""
    home = tmp_path_factory.mktemp("adaptive")
    write_planted(home / "data", episodes=8, length=24)
    train = ["train", "flexlam", "--data", str(home / "data"), "--out", str(home / "run"), "--image", "16", "16", "--size", "debug",
             "--slots", "4", "--decoder", "unet", "--steps", "12", "--batch", "8", "--gap", "0.1", "0.1", "--device", "cpu",
             "--workers", "0"]  # fmt: skip
    assert main(train) == 0
    assert (
        main(["adaptive-k", str(home / "run"), "--data", str(home / "data"), "--tokens", "2.5", "--steps", "40"]) == 0
    )
    return home


def test_a_rule_is_read_as_it_was_written(home, tmp_path):
    rule, model = open_rule(home / "run"), LatentActionModel.from_pretrained(home / "run")
    assert rule.head.slots == 4 and rule.tokens <= 2.5 and rule.threshold > 0
    shutil.copytree(home / "run" / "model", tmp_path / "model")
    save_rule(tmp_path / "adaptive_k", rule)
    again, z = open_rule(tmp_path), codes(50, 4, model.lam.dim)
    assert again.record() == rule.record() and torch.equal(again.lengths(z), rule.lengths(z))
    seen = sample_split(DataConfig((str(home / "data"),), (16, 16), gap=(0.1, 0.1), workers=0), "train", 200)
    latent = model.encode(seen.frames[:, 0], seen.frames[:, 1])
    assert abs(float(rule.lengths(latent.post).float().mean()) - 2.5) < 0.7  # calibrated on some of these


@pytest.mark.parametrize("k", [3, "auto"])
def test_labels_keep_and_say_the_length_of_each_row(home, tmp_path, k):
    out = tmp_path / "labelled"
    arguments = [
        "label",
        str(home / "run"),
        str(home / "data"),
        "--out",
        str(out),
        "--continuous",
        "True",
        "--k",
        str(k),
    ]
    assert main(arguments) == 0
    model = LatentActionModel.from_pretrained(home / "run")
    source = open_source(out)
    episode = source.episodes[1]
    frames = torch.from_numpy(source.frames(episode, source.cameras[0], 0, episode.length)).permute(0, 3, 1, 2)
    partner, _ = frame_pairs(episode.times, model.provenance.label_gap)
    latent = model.encode(frames, frames[partner])
    keep = torch.full((episode.length,), 3) if k == 3 else open_rule(home / "run").lengths(latent.post)
    assert source.column(episode, "latent_action.k").flatten().tolist() == keep.tolist()
    assert k == 3 or len(keep.unique()) > 1
    columns = {"latent_action": latent.post, "latent_action.continuous": latent.pre}
    for name, z in columns.items():
        expected = model.lam.prefix(z, keep).detach().flatten(1)
        torch.testing.assert_close(torch.from_numpy(source.column(episode, name)), expected, rtol=1e-4, atol=1e-5)
    unused = torch.arange(4) >= keep[:, None]
    index = torch.from_numpy(source.column(episode, "latent_action.index")).long()
    assert torch.equal(index, latent.index.masked_fill(unused, -1))
    noted = json.loads((out / "meta" / "lamina.json").read_text())["k"]
    assert noted == 3 if k == 3 else noted["threshold"] == open_rule(home / "run").threshold


def test_labels_in_memory_have_the_same_lengths_and_none_without_k(home, tmp_path):
    table = lamina.label(home / "run", home / "data", k="auto")
    written = lamina.label(home / "run", home / "data", out=tmp_path / "labelled", k="auto")
    np.testing.assert_array_equal(table.k, written.k)
    np.testing.assert_array_equal(table.index == -1, np.arange(4) >= table.k[:, None])
    rule = open_rule(home / "run")
    given = lamina.label(LatentActionModel.from_pretrained(home / "run"), home / "data", k=rule)
    np.testing.assert_array_equal(given.k, table.k)
    every = lamina.label(home / "run", home / "data", k=dataclasses.replace(rule, threshold=ALL))
    plain = lamina.label(home / "run", home / "data")
    assert (every.k == 4).all() and plain.k is None
    np.testing.assert_array_equal(every.latents, plain.latents)
    np.testing.assert_array_equal(every.index, plain.index)


def test_labels_of_another_rule_do_not_mix_with_those_of_this_one(home, tmp_path):
    first, rule = tmp_path / "first", open_rule(home / "run")
    lamina.label(home / "run", home / "data", out=first, k=2)
    with pytest.raises(LaminaError):
        lamina.label(home / "run", home / "data", out=first, k=rule)


def test_an_aligned_run_has_a_rule_of_its_action(home, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(home / "run" / "model", run / "model")
    with pytest.raises(LaminaError, match="no translator here"):
        adaptive_k(run, str(home / "data"), AdaptiveConfig(of="action", steps=20), "cpu")
    lamina.align(run, home / "data", labels=40, steps=30, device="cpu", size="debug")
    rule = lamina.adaptive_k(run, home / "data", tokens=2.0, steps=40, device="cpu")
    assert rule.of == "action" == open_rule(run).of and rule.tokens <= 2.0
    assert open_rule(home / "run").of == "picture"
    assert rule.record()["network"] != open_rule(home / "run").record()["network"]
    table = lamina.label(run, home / "data", k="auto")
    assert len(np.unique(table.k)) > 1
    shutil.rmtree(run / "translator")
    lamina.align(run, home / "data", labels=30, steps=30, device="cpu", size="debug")
    with pytest.raises(LaminaError, match="was made for another translator") as caught:
        lamina.label(run, home / "data", k="auto")
    assert "\n" not in str(caught.value)


def test_a_rule_of_other_weights_is_refused(home, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(home / "run", run)
    torch.manual_seed(9)
    model = LatentActionModel.from_pretrained(run)
    LatentActionModel(model.config, model.provenance, LAM(model.config)).save_pretrained(run / "model")
    with pytest.raises(LaminaError, match="was made for other weights") as caught:
        lamina.label(run, home / "data", k="auto")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("k", "told"),
    [(0, "from 1 to the model's 4"), (5, "from 1 to the model's 4"), (True, "whole number")],
)
def test_a_length_that_is_none_is_refused(home, k, told):
    with pytest.raises(LaminaError, match=told):
        lamina.label(home / "run", home / "data", k=k)


def test_what_has_no_prefixes_has_no_rule(home, tmp_path, capsys):
    with pytest.raises(LaminaError, match="reads the rule of a run"):
        lamina.label(LatentActionModel.from_pretrained(home / "run"), home / "data", k="auto")
    run = lamina.train(
        "fixed_k", home / "data", out=tmp_path / "fixed", steps=1, batch=4, image=(SIZE, SIZE), size="debug", slots=4, gap=(0.1, 0.1)
    )  # fmt: skip
    assert main(["adaptive-k", str(run.path), "--data", str(home / "data")]) == 2
    assert "shorter prefix is no latent action" in capsys.readouterr().err
    assert not (run.path / "adaptive_k" / "rule.json").exists()
    with pytest.raises(LaminaError, match="shorter prefix is no latent action"):
        lamina.label(run, home / "data", k=2)
    assert (lamina.label(run, home / "data", k=4).k == 4).all()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--tokens", "9"], "--tokens must be from 1 to the longest prefix, 4 slots, got 9"),
        (["--most", "5"], "--most must be from 2 to the model's 4 slots, got 5"),
        (["--tokens", "0"], "--tokens must be at least 1, got 0"),
        ([], "there is a rule already; delete that folder"),
    ],
)
def test_the_command_says_what_is_wrong(home, arguments, told, tmp_path, capsys):
    run = home / "run"
    if arguments:
        run = tmp_path / "run"
        shutil.copytree(home / "run" / "model", run / "model")
    assert main(["adaptive-k", str(run), "--data", str(home / "data"), *arguments]) == 2
    assert told in capsys.readouterr().err
    assert not arguments or not (run / "adaptive_k" / "rule.json").exists()


def test_a_decoder_that_reads_one_slot_leaves_nothing_to_choose():
    items = PrefixChanges(codes(40), torch.zeros(40, SLOTS - 1), torch.arange(40) // 10)
    with pytest.raises(LaminaError, match="change nothing"):
        fit_rule(items, AdaptiveConfig(), "none")


def test_a_rule_of_another_shape_is_refused():
    model, tokens, translator = parts()
    with pytest.raises(LaminaError, match="reads codes of 5 slots of 3 numbers, this LAM has 4 of 3"):
        TokenPolicy(model, tokens, translator, rule_for(5, 3, 1.0))
    with pytest.raises(LaminaError, match="reads codes of 4 slots of 2 numbers"):
        check_length(rule_for(4, 2, 1.0), model.config, 3, None)
