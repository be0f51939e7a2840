"""Alignment: action losses, the split of labels, resuming, and what a run keeps."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from lamina import methods
from lamina.data.sampling import open_source
from lamina.data.stream import sample_split
from lamina.errors import LaminaError
from lamina.evaluation.probes import translation
from lamina.evaluation.probes.translation import controls, kept_references
from lamina.inference.subject import subject_of
from lamina.models.bottlenecks.prefix import RetainedPrefix
from lamina.models.heads import ActionHead, HourglassMLP, InverseDynamics, Translator, TranslatorConfig
from lamina.models.hub import LatentActionModel, Provenance
from lamina.models.lam import LAM
from lamina.rng import Rng
from lamina.training.alignment import AlignConfig, TranslatorNote, align, load_translator, save_translator
from lamina.training.checkpoints import BestCheckpoint
from lamina.training.heads import (
    clearly_lower,
    fit_head,
    head_training,
    idm_losses,
    train_idm,
    train_translator,
    translator_losses,
)
from lamina.training.joint import JointObjective
from lamina.training.labelled import (
    LabelledTransitions,
    Minibatches,
    actions_of,
    encode_labels,
    parse_labels,
    probe_data,
    split_labels,
)
from lamina.training.recipe import recipe
from lamina.training.settings import TrainConfig
from lamina.types import ActionSpec
from parallel import options
from planted import write_planted
from processes import dies_before_step, dies_in, in_child

torch.set_num_threads(1)

MIXED = ActionSpec(discrete=(3, 2), continuous=2)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_loss_of_an_action_is_the_mean_over_its_dimensions_worked_out_by_hand():
    head = ActionHead(MIXED)
    head.calibrate(torch.tensor([[0, 0, 1.5, 10.0], [0, 0, 2.5, 30.0]]))  # mean (2, 20), std (0.5, 10)
    action = torch.tensor([[2.0, 1.0, 4.0, 10.0]])
    output = torch.tensor([[0.0, math.log(2.0), math.log(5.0), 0.0, math.log(3.0), 1.5, 0.0]])
    # classes: 5 of 1 + 2 + 5, 3 of 1 + 3; targets (4 - 2) / 0.5 = 4 and (10 - 20) / 10 = -1
    terms = [math.log(8 / 5), math.log(4 / 3), (1.5 - 4) ** 2, (0 - -1) ** 2]
    torch.testing.assert_close(head.loss(output, action), torch.tensor([sum(terms) / 4]))


def test_an_action_is_fed_back_as_one_hot_and_standardised_dimensions():
    head = ActionHead(MIXED)
    head.calibrate(torch.tensor([[0, 0, 1.0, 10.0], [0, 0, 3.0, 30.0]]))
    embedded = head.embed(torch.tensor([[1.0, 0.0, 5.0, 15.0]]))
    assert embedded.tolist() == [[0, 1, 0, 1, 0, 3.0, -0.5]]
    assert embedded.shape[1] == head.width


def test_the_likeliest_action_is_read_off():
    head = ActionHead(MIXED)
    head.calibrate(torch.tensor([[0, 0, 1.0, 10.0], [0, 0, 3.0, 30.0]]))
    output = torch.tensor([[0.0, 5.0, 1.0, 2.0, 1.0, 0.5, -1.0]])
    assert head.read(output).tolist() == [[1.0, 0.0, 2.5, 10.0]]


@given(st.lists(st.integers(2, 5), max_size=3), st.integers(0, 3), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_reading_a_perfect_output_gives_the_action_back(discrete, continuous, seed):
    if not discrete and not continuous:
        return
    head = ActionHead(ActionSpec(tuple(discrete), continuous))
    generator = torch.Generator().manual_seed(seed)
    columns = [torch.randint(n, (16, 1), generator=generator).float() for n in discrete]
    action = torch.cat([*columns, 3 * normal(16, continuous, seed=seed) + 7], 1)
    head.calibrate(action)
    perfect = head.embed(action)
    torch.testing.assert_close(head.read(perfect), action)
    assert (head.loss(100 * perfect, action) < 1e-5).all() or continuous
    assert head.loss(perfect, action).shape == (16,)


def test_a_dimension_that_never_changes_does_not_divide_by_zero():
    head = ActionHead(ActionSpec(continuous=1))
    head.calibrate(torch.full((5, 1), 3.0))
    assert head.loss(torch.zeros(1, 1), torch.full((1, 1), 3.0)).tolist() == [0.0]


@pytest.mark.parametrize(
    ("text", "transitions", "number"),
    [("120", 500, 120), ("5%", 1000, 50), ("100%", 9, 9), ("8", 8, 8), ("2.5%", 400, 10)],
)
def test_labels_are_a_number_or_a_share(text, transitions, number):
    assert parse_labels(text, transitions) == number


@pytest.mark.parametrize(
    "text", ["", "%", "many", "5 percent", "7", "501", "101%", "1%", "-5%", "-50", "nan%", "inf%", "1e3"]
)
def test_labels_that_there_are_not_are_refused(text):
    with pytest.raises(LaminaError, match="--labels"):
        parse_labels(text, 500)


def items(episodes: list[int], slots: int = 2, dim: int = 3, seed: int = 0) -> LabelledTransitions:
    n = len(episodes)
    return LabelledTransitions(
        normal(n, slots, dim, seed=seed), torch.zeros(n, 1), torch.arange(n).float()[:, None], torch.tensor(episodes)
    )


@given(st.lists(st.integers(1, 12), min_size=2, max_size=8), st.integers(0, 50))
@settings(max_examples=40, deadline=None)
def test_labels_are_split_by_episode_and_none_is_lost(lengths, seed):
    every = items([e for e, length in enumerate(lengths) for _ in range(length)])
    train, held = split_labels(every, seed)
    assert len(train) > 0 and len(held) > 0
    assert not set(train.episode.tolist()) & set(held.episode.tolist())
    assert sorted(train.action[:, 0].tolist() + held.action[:, 0].tolist()) == list(range(len(every)))
    # no episode could be left out and a quarter still be held
    sizes = [int((held.episode == e).sum()) for e in held.episode.unique()]
    assert len(held) - max(sizes) < 0.25 * len(every)
    again = split_labels(every, seed)
    assert torch.equal(again[0].z, train.z)


def test_the_labels_of_one_episode_are_split_in_time():
    train, held = split_labels(items([4] * 12))
    assert train.action[:, 0].tolist() == list(range(9)) and held.action[:, 0].tolist() == [9, 10, 11]


def test_minibatches_visit_everything_once_an_epoch_and_resume():
    stream = Minibatches(items([0] * 12), 4, seed=3)
    batches = iter(stream)
    drawn = [next(batches).action[:, 0].tolist() for _ in range(6)]
    for epoch in (drawn[:3], drawn[3:]):
        assert sorted(itertools.chain(*epoch)) == list(range(12))
    assert drawn[:3] != drawn[3:]
    again = Minibatches(items([0] * 12), 4, seed=3)
    again.load_state_dict({"drawn": 4})
    assert next(iter(again)).action[:, 0].tolist() == drawn[4]
    assert len(next(iter(Minibatches(items([0] * 3), 64, seed=0)))) == 3


# ------------------------------------------------------------------------------------------------- the best checkpoint


def weights_of(value: float) -> torch.nn.Module:
    module = torch.nn.Linear(2, 1)
    torch.nn.init.constant_(module.weight, value)
    return module


def test_a_checkpoint_is_better_beyond_the_standard_error_of_the_paired_difference():
    """On one label of eight a later checkpoint is much better, on the others a little worse: by its mean it would be taken."""
    before, later = torch.ones(8), torch.full((8,), 1.1)
    later[0] = 0.1
    assert later.mean() < before.mean() and not clearly_lower(later, before)
    assert clearly_lower(torch.full((8,), 0.99), before) and not clearly_lower(before, before)
    assert clearly_lower(torch.tensor([0.9]), torch.tensor([1.0])) and not clearly_lower(
        torch.tensor([float("nan"), 0.0]), torch.ones(2)
    )
    # The gain is 0.9 once and -0.1 seven times: mean 0.025 with a standard error of 0.125.
    noisy = before - later
    assert float(noisy.mean()) == pytest.approx(0.025) and float(noisy.std() / 8**0.5) == pytest.approx(0.125)


@pytest.mark.parametrize("killed", [False, True])
def test_a_head_is_left_at_the_last_checkpoint_that_was_clearly_better(tmp_path, killed):
    """Held-out losses are planted: 1, then clearly lower, then lower by one label alone; also where a run is killed before the third."""
    planted = [torch.full((8,), 1.0), torch.full((8,), 0.5), torch.tensor([-0.4, *[0.6] * 7])]
    assert planted[2].mean() < planted[1].mean()
    seen: list[float] = []  # the weight at each checkpoint

    class Stream(list):
        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            pass

        def close(self):
            pass

    def losses(module, batch, rng):
        if len(batch) != 8:
            return {"action": module.weight.flatten().expand(len(batch))}  # falls in every step
        if (weight := float(module.weight.detach())) not in seen:
            if killed and len(seen) == 2 and not (tmp_path / "again").exists():
                raise KeyboardInterrupt
            seen.append(weight)
        return {"action": planted[seen.index(weight)]}

    def fitted(resume):
        module = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.zeros_(module.weight)
        config = TrainConfig(
            steps=3, batch=4, lr=0.1, warmup=0, weight_decay=0.0, ema=0.0, device="cpu", checkpoint_every=1, validate_every=1,
            resume=resume,
        )  # fmt: skip
        stream = Stream([torch.zeros(4)] * 3)
        return fit_head(module, losses, None, torch.zeros(8), config, tmp_path / "run", stream=lambda: stream), module

    if killed:
        with pytest.raises(KeyboardInterrupt):
            fitted(False)
        (tmp_path / "again").mkdir()
    loss, module = fitted(killed)
    assert len(seen) == 3 and loss == pytest.approx(0.5) and float(module.weight) == seen[1]


def test_the_best_weights_are_kept_and_survive_a_resume(tmp_path):
    best = BestCheckpoint(tmp_path / "best.safetensors")
    for loss in (3.0, 1.0, 2.0):
        best.update(weights_of(loss), loss)
    resumed = BestCheckpoint(tmp_path / "best.safetensors")
    assert resumed.loss == 1.0
    resumed.update(weights_of(1.5), 1.5)
    resumed.update(weights_of(math.nan), math.nan)
    module = weights_of(0.0)
    resumed.restore(module)
    assert (module.weight == 1.0).all()
    resumed.update(weights_of(0.5), 0.5)
    BestCheckpoint(tmp_path / "best.safetensors").restore(module)
    assert (module.weight == 0.5).all()


@pytest.mark.parametrize(("name", "call"), [("fsync", 0), ("fsync", 1), ("replace", 0), ("replace", 1)])
def test_a_kill_while_the_best_is_replaced_leaves_the_old_or_the_new(tmp_path, name, call):
    BestCheckpoint(tmp_path / "best.safetensors").update(weights_of(2.0), 2.0)

    def work():
        dies_in(os, name, call)
        BestCheckpoint(tmp_path / "best.safetensors").update(weights_of(1.0), 1.0)

    in_child(work)
    best, module = BestCheckpoint(tmp_path / "best.safetensors"), weights_of(0.0)
    assert best.loss in (1.0, 2.0)
    best.restore(module)
    assert (module.weight == best.loss).all()


# ------------------------------------------------------------------------------------------------------------ translators


def planted_labels(n: int, seed: int, slots: int = 4) -> LabelledTransitions:
    """Slot 1 says the class (its largest channel), slot 2 the continuous dimension."""
    z = normal(n, slots, 3, seed=seed)
    action = torch.stack([z[:, 0].argmax(-1).float(), 5 + 2 * z[:, 1, 0]], 1)
    return LabelledTransitions(z, torch.roll(action, 1, 0), action, torch.arange(n) // 10)


SPEC = ActionSpec((3,), 1)


@pytest.fixture(scope="module")
def learned() -> tuple[Translator, float, LabelledTransitions]:
    train, held = planted_labels(600, 0), planted_labels(200, 1)
    config = TranslatorConfig(width=64, narrow=32, layers=2, dropout=0.0)
    translator, loss = train_translator(
        RetainedPrefix(4, 3, "uniform"), train, held, SPEC, config, head_training(250, 0, lr=5e-3)
    )
    return translator, loss, held


def test_a_translator_learns_a_planted_map_as_far_as_the_prefix_shows_it(learned):
    translator, loss, held = learned
    prefix = RetainedPrefix(4, 3)
    losses = []
    for k in range(5):
        read = translator.action.read(translator(prefix(held.z, k), held.previous))
        accuracy = float((read[:, 0] == held.action[:, 0]).float().mean())
        error = float((read[:, 1] - held.action[:, 1]).square().mean().detach() / held.action[:, 1].var())
        assert accuracy > 0.9 if k >= 1 else accuracy < 0.5
        assert error < 0.1 if k >= 2 else error > 0.7
        losses.append(
            float(translator.action.loss(translator(prefix(held.z, k), held.previous), held.action).mean().detach())
        )
    assert losses[0] > losses[1] > losses[2]
    assert loss < 0.6 * losses[0]


def test_damaged_best_weights_are_one_clear_line(tmp_path):
    path = tmp_path / "best.safetensors"
    BestCheckpoint(path).update(weights_of(2.0), 2.0)
    for damaged in (path.read_bytes()[:-1], b"", b"junk" * 10):
        path.write_bytes(damaged)
        with pytest.raises(LaminaError, match=f"{path}: damaged.*align again"):
            BestCheckpoint(path)


def test_the_validation_loss_is_that_of_the_translator_returned(learned):
    translator, loss, held = learned
    again = translator_losses(RetainedPrefix(4, 3))(translator, held, Rng(0))["action"].mean()
    assert float(again.detach()) == pytest.approx(loss)


def test_a_saved_translator_comes_back_the_same(learned, tmp_path):
    translator, _, held = learned
    write(tmp_path / "translator", translator)
    again, note = load_translator(tmp_path / "translator")
    assert not again.training and note.config.width == 64 and note.spec == SPEC
    assert torch.equal(again(held.z, held.previous), translator(held.z, held.previous))
    output = translator(held.z, held.previous)
    assert torch.equal(again.action.read(output), translator.action.read(output))  # mean and std too
    assert torch.equal(again.action.choose(100 * output), translator.action.choose(100 * output))  # and the range
    assert torch.equal(again.action.high, translator.action.high) and bool(again.action.high.isfinite().all())


def write(folder: Path, translator: Translator, **changes) -> None:
    config = TranslatorConfig(width=64, narrow=32, layers=2, dropout=0.0)
    note = TranslatorNote(spec=SPEC, config=config, slots=4, side="quantised", latent=12, observation=0, steps=1)
    save_translator(folder, translator, note)
    path = folder / "translator.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": 1}, "format 1"),
        ({"latent": 13}, "do not fit"),
        ({"spec": {"discrete": [1], "continuous": 0, "names": []}}, "damaged"),
        ({"spec": None}, "damaged"),
        ({"config": {"depth": 3}}, "damaged"),
        ({"latent": "many"}, "damaged"),
    ],
)
def test_a_translator_of_another_kind_is_refused(learned, tmp_path, changes, words):
    write(tmp_path / "translator", learned[0], **changes)
    with pytest.raises(LaminaError, match=words) as caught:
        load_translator(tmp_path / "translator")
    assert "\n" not in str(caught.value) and str(tmp_path / "translator") in str(caught.value)


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff\xfe"])
@pytest.mark.parametrize("file", ["translator.json", "translator.safetensors"])
def test_a_damaged_translator_is_refused(learned, tmp_path, file, damage):
    folder = tmp_path / "translator"
    write(folder, learned[0])
    (folder / file).write_bytes(damage)
    with pytest.raises(LaminaError, match=f"{folder / file}: (damaged|cannot be read)"):
        load_translator(folder)


def test_a_translator_cut_short_is_refused(learned, tmp_path):
    folder = tmp_path / "translator"
    write(folder, learned[0])
    file = folder / "translator.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(LaminaError, match="damaged or cut short"):
        load_translator(folder)


def test_a_run_without_a_translator_says_how_to_make_one(tmp_path):
    with pytest.raises(LaminaError, match=f"lamina align {tmp_path} --data"):
        load_translator(tmp_path / "translator")


@pytest.mark.parametrize(
    ("condition", "reads"),
    [
        ("latent", (True, False, False)),
        ("latent+previous", (True, True, False)),
        ("latent+previous+observation", (True, True, True)),
    ],
)
def test_a_translator_reads_what_its_condition_names(condition, reads):
    torch.manual_seed(0)
    translator = Translator(12, SPEC, TranslatorConfig(condition, 16, 8, 1), observation=5).eval()
    z, previous, observation = normal(4, 4, 3), torch.ones(4, 2), normal(4, 5)
    before = translator(z, previous, observation)
    changed = [
        translator(z + 1, previous, observation),
        translator(z, previous + 1, observation),
        translator(z, previous, observation + 1),
    ]
    assert tuple(not torch.allclose(before, after) for after in changed) == reads


def test_the_hourglass_is_narrow_in_the_middle_and_starts_from_its_input():
    torch.manual_seed(0)
    mlp = HourglassMLP(3, 2, width=16, narrow=4, layers=2, dropout=0.0)
    for block in mlp.blocks:
        assert (block[1].out_features, block[-1].in_features) == (4, 4)
        torch.nn.init.zeros_(block[-1].weight)
        torch.nn.init.zeros_(block[-1].bias)
    x = normal(5, 3)
    torch.testing.assert_close(mlp(x), mlp.head(mlp.inputs(x)))  # every block adds to the stream


# -------------------------------------------------------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return write_planted(tmp_path_factory.mktemp("planted") / "dataset")


@pytest.fixture(scope="module")
def pretrained(dataset, tmp_path_factory) -> Path:
    """A run folder whose model has not learned anything, which alignment does not mind."""
    run = tmp_path_factory.mktemp("pretrained") / "run"
    torch.manual_seed(0)
    module = methods.load("flexlam")
    provenance = Provenance("flexlam", (str(dataset),), (0.1, 0.1))
    LatentActionModel(module.build(options("flexlam")), provenance).save_pretrained(run / "model")
    return run


@pytest.fixture
def run(pretrained, tmp_path) -> Path:
    shutil.copytree(pretrained, tmp_path / "run")
    return tmp_path / "run"


SMALL = AlignConfig(labels="60", translator=TranslatorConfig(width=32, narrow=16, layers=2))


def training(**changes) -> TrainConfig:
    defaults = {"steps": 20, "batch": 16, "ema": 0.0, "device": "cpu", "checkpoint_every": 6, "validate_every": 5}
    return TrainConfig(**{**defaults, "log_every": 1, **changes})


def parts(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.glob("translator.*")}


def test_alignment_leaves_a_translator_and_the_model_as_it_was(run, dataset):
    before = (run / "model/model.safetensors").read_bytes()
    folder = align(run, str(dataset), SMALL, training())
    assert folder == run / "translator"
    assert (run / "model/model.safetensors").read_bytes() == before
    translator, note = load_translator(folder)
    assert note.labels == 60 and note.spec.discrete == (3,) and note.spec.continuous == 1
    rows = [json.loads(line) for line in (folder / "training/log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 21))
    held = [row["validation/action"] for row in rows if "validation/action" in row]
    assert any(note.validation_loss == pytest.approx(loss) for loss in held) and note.validation_loss <= held[0]
    # the standardisation is that of the labels which train, not of the dataset
    model = LatentActionModel.from_pretrained(run)
    clip = sample_split(probe_data(model, str(dataset)), "train", 60, require_action=True)
    train, _ = split_labels(encode_labels(model.lam, clip))
    torch.testing.assert_close(translator.action.mean, train.action[:, 1:].mean(0))


def test_alignment_can_read_the_observation_too(run, dataset):
    config = AlignConfig(
        "60", translator=TranslatorConfig("latent+previous+observation", width=32, narrow=16, layers=1)
    )
    translator, note = load_translator(align(run, str(dataset), config, training(steps=2)))
    assert note.observation == note.latent == 15
    assert translator.mlp.inputs.in_features == 15 + 4 + 15


def test_labels_can_come_from_one_task_and_evaluation_reports_it(run, dataset):
    (task,) = {episode.task for episode in open_source(dataset).episodes}
    folder = align(run, str(dataset), dataclasses.replace(SMALL, tasks=(task,)), training(steps=2))
    assert load_translator(folder)[1].tasks == (task,)
    shutil.rmtree(folder)
    with pytest.raises(LaminaError, match=task):  # those there are
        align(run, str(dataset), dataclasses.replace(SMALL, tasks=("juggle",)), training(steps=2))


def test_an_alignment_that_is_there_is_not_overwritten(run, dataset):
    align(run, str(dataset), SMALL, training(steps=2))
    with pytest.raises(LaminaError, match=r"aligned already; add --resume"):
        align(run, str(dataset), SMALL, training(steps=2))


@pytest.mark.parametrize(("step", "joint"), [(3, False), (10, False), (19, False), (10, True)])
def test_a_killed_alignment_resumes_bit_for_bit(step, joint, run, dataset, tmp_path):
    other = shutil.copytree(run, tmp_path / "other")
    name = "joint" if joint else "translator"

    work = aligning(joint, dataset)
    work(other, resume=False)

    def dying() -> None:
        # the translator that joint training starts from takes five steps of its own
        dies_before_step(1 + step + 5 * joint)
        work(run, resume=False)

    assert in_child(dying) == signal.SIGKILL
    assert not (run / name / "translator.json").exists()
    work(run, resume=True)
    assert parts(run / name) == parts(other / name)


def aligning(joint: bool, dataset: Path) -> Callable[..., Path]:
    """``align`` with the settings of these tests."""
    plan = recipe("flexlam", methods.load("flexlam"), options("flexlam"))
    objective = JointObjective(plan.losses, plan.weights) if joint else None
    config = AlignConfig("60", joint, SMALL.translator)

    def work(run: Path, **changes) -> Path:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                "lamina.training.joint.head_training", lambda steps, seed, **more: head_training(5, seed, **more)
            )
            return align(run, str(dataset), config, training(**changes), objective)

    return work


def test_files_of_an_unfinished_alignment_do_not_affect_a_new_one(run, dataset, tmp_path):
    other = shutil.copytree(run, tmp_path / "other")
    wide = AlignConfig("60", translator=TranslatorConfig(width=48, narrow=16, layers=1))

    def dying() -> None:
        dies_before_step(16)
        align(run, str(dataset), wide, training())

    assert in_child(dying) == signal.SIGKILL
    for where in (run, other):
        align(where, str(dataset), SMALL, training())
    assert parts(run / "translator") == parts(other / "translator")


def test_joint_alignment_moves_a_copy_of_the_encoder(run, dataset):
    untuned = LatentActionModel.from_pretrained(run)
    untuned.provenance = dataclasses.replace(untuned.provenance, metrics={"psnr": 30.0})
    untuned.save_pretrained(run / "model")
    before = load_file(run / "model/model.safetensors")
    folder = aligning(True, dataset)(run)
    assert folder == run / "joint"
    assert LatentActionModel.from_pretrained(folder / "model").provenance.metrics == {}  # they were not measured on it
    assert all(torch.equal(v, before[k]) for k, v in load_file(run / "model/model.safetensors").items())
    moved = LatentActionModel.from_pretrained(folder / "model").lam.state_dict()
    for part in ("encoder.", "decoder.", "prefix.null"):
        assert any(not torch.equal(moved[name], before[name]) for name in before if name.startswith(part)), part
    translator, _ = load_translator(folder)
    assert translator.mlp.inputs.in_features == 15 + 4
    row = json.loads((folder / "training/log.jsonl").read_text().splitlines()[0])
    assert row["loss"] == pytest.approx(row["action"] + row["reconstruction"], rel=1e-5)


def test_joint_alignment_lets_the_action_loss_reach_the_encoder_and_frozen_does_not(run, dataset):
    from lamina.training.joint import JointBatch, JointModel, joint_losses

    model = LatentActionModel.from_pretrained(run)
    clip = sample_split(probe_data(model, str(dataset)), "train", 16, require_action=True)
    batch = encode_labels(model.lam, clip)
    translator = Translator(15, SPEC)
    loss = joint_losses(lambda *args: {})(JointModel(model.lam, translator), JointBatch(batch), Rng(0))
    assert loss.keys() == {"action"} and loss["action"].shape == (16,)
    loss["action"].sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in model.lam.encoder.parameters())
    model.lam.zero_grad()
    translator_losses(model.lam.prefix)(translator, batch, Rng(0))["action"].sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in model.lam.encoder.parameters())


def test_micro_batches_of_labels_are_parts_of_the_batch(run, dataset, monkeypatch):
    seen = []
    loss = ActionHead.loss
    monkeypatch.setattr(
        ActionHead, "loss", lambda self, output, action: seen.append(len(action)) or loss(self, output, action)
    )
    align(run, str(dataset), SMALL, training(steps=1, accumulate=2))
    assert seen[:2] == [8, 8]


def test_alignment_without_actions_or_model_or_labels_is_refused(run, dataset, tmp_path):
    with pytest.raises(LaminaError, match="--labels 3"):
        align(run, str(dataset), AlignConfig(labels="3"), training())
    with pytest.raises(LaminaError, match="movement"):
        align(run, str(dataset), AlignConfig(labels="60", action="movement"), training())
    with pytest.raises(LaminaError, match="nothing"):
        align(tmp_path / "nothing/at/all", str(dataset), SMALL, training())
    videos = tmp_path / "videos"
    shutil.copytree(dataset / "videos", videos)
    with pytest.raises(LaminaError, match="action"):
        align(run, str(videos), AlignConfig(labels="20"), training())
    with pytest.raises(LaminaError, match="joint alignment needs"):
        align(run, str(dataset), AlignConfig(labels="60", joint=True), training())
    assert not (run / "translator").exists() and not (run / "joint/translator.json").exists()


def test_the_inverse_dynamics_baseline_reads_both_frames_and_its_control_only_the_first(run, dataset):
    lam: LAM = LatentActionModel.from_pretrained(run).lam
    clip = sample_split(
        probe_data(LatentActionModel.from_pretrained(run), str(dataset)), "train", 40, require_action=True
    )
    train, held = split_labels(encode_labels(lam, clip))
    config = TrainConfig(**{**vars(head_training(4, 0)), "batch": 16})
    for pairs in (True, False):
        module, loss = train_idm(lam.config, train, held, SPEC, config, pairs)
        assert isinstance(module, InverseDynamics) and math.isfinite(loss)
        again = float(idm_losses(module, held, Rng(0))["action"].mean().detach())
        assert again == pytest.approx(loss)
        frames = torch.rand(3, 2, 3, 16, 16) * 2 - 1
        other = frames.clone()
        other[:, 1] = -other[:, 1]
        previous = torch.zeros(3, 2)
        assert torch.equal(module(frames, previous), module(other, previous)) == (not pairs)


# ------------------------------------------------------------------------------------------------------------ controls


def scored(
    run: Path, dataset: Path, config: TranslatorConfig, training: TrainConfig, **changes
) -> dict[str, np.ndarray]:
    """The losses of every control on ten test transitions; ``changes`` of the labels' clips."""
    model = LatentActionModel.from_pretrained(run)
    data = probe_data(model, str(dataset))
    labels, test = sample_split(data, "train", 40, require_action=True), sample_split(data, "test", 10)
    if changes:
        labels, test = (
            dataclasses.replace(c, **{k: f(getattr(c, k)) for k, f in changes.items()}) for c in (labels, test)
        )
    unlabelled = sample_split(data, "train", 64)
    scores = controls(subject_of(model), labels, test, actions_of(data), config, training, unlabelled)
    return {s.name: s.loss for s in scores}


NAMES = {
    "shuffled latents", "copy-frame", "random-weights encoder", "observation-only", "inverse dynamics model",
    "plain pixels of the pair",
}  # fmt: skip


def test_controls_read_what_the_translator_reads(run, dataset):
    """Without the previous action among its inputs no control may depend on it; with it all do."""
    other = {"previous_action": lambda x: torch.zeros_like(x) + torch.tensor([2.0, 1.0])}
    for condition, depends in (("latent", False), ("latent+previous", True)):
        config = TranslatorConfig(condition, width=32, narrow=16, layers=1, dropout=0.0)  # type: ignore[arg-type]
        one, two = (scored(run, dataset, config, training(steps=3), **more) for more in ({}, other))
        assert one.keys() == NAMES
        assert {name for name in NAMES if not np.array_equal(one[name], two[name])} == (NAMES if depends else set())


def test_controls_are_trained_with_the_learning_rate_the_steps_and_the_batch_of_the_translator(run, dataset):
    config = TranslatorConfig(width=32, narrow=16, layers=1)
    usual = scored(run, dataset, config, training(steps=6, lr=1e-3))
    for change in ({"lr": 1e-2}, {"steps": 12}, {"batch": 4}):
        other = scored(run, dataset, config, training(**{"steps": 6, "lr": 1e-3, **change}))
        assert all(not np.array_equal(usual[name], other[name]) for name in NAMES), change


def test_an_encoder_from_scratch_is_trained_once_for_the_same_labels_and_never_shared_with_others(
    run, dataset, tmp_path, monkeypatch
):
    """What the methods of a comparison share: equal to what is trained, for these labels, steps and seed alone; mended where damaged."""
    config, trained = TranslatorConfig(width=32, narrow=16, layers=1), []
    plain = translation.train_idm

    def counted(*given, **options):
        trained.append(given)
        return plain(*given, **options)

    def compared(*given, **changes):
        trained.clear()
        with kept_references(tmp_path / "references"):
            scores = scored(run, dataset, *given, **changes)
        assert scores.keys() == NAMES
        return scores, len(trained)

    monkeypatch.setattr(translation, "train_idm", counted)
    alone = scored(run, dataset, config, training(steps=3))
    assert len(trained) == 2
    for fresh in (2, 0):
        scores, count = compared(config, training(steps=3))
        assert count == fresh and all(np.array_equal(scores[name], alone[name]) for name in NAMES)
    for asked, changes in (
        ((config, training(steps=4)), {}),
        ((config, training(steps=3, lr=1e-2)), {}),
        ((config, training(steps=3, seed=1)), {}),
        ((dataclasses.replace(config, width=16), training(steps=3)), {}),
        ((config, training(steps=3)), {"action": lambda x: x.flip(0)}),
        ((config, training(steps=3)), {"frames": lambda x: x + 1}),
    ):
        scores, count = compared(*asked, **changes)
        assert count == 2, (asked, changes)
        expected = scored(run, dataset, *asked, **changes)
        assert all(np.array_equal(scores[name], expected[name]) for name in NAMES)
    for path in (tmp_path / "references").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    scores, count = compared(config, training(steps=3))
    assert count == 2 and all(np.array_equal(scores[name], alone[name]) for name in NAMES)


def test_the_note_says_how_the_translator_was_trained(run, dataset):
    config = dataclasses.replace(SMALL, translator=TranslatorConfig("latent", width=32, narrow=16, layers=2))
    _, note = load_translator(align(run, str(dataset), config, training(lr=2e-3, batch=8)))
    again = note.train_config()
    assert (again.lr, again.batch, again.steps, again.seed, again.validate_every) == (2e-3, 8, 20, 0, 5)
    assert note.config == config.translator
    assert (note.slots, note.side, note.actions, note.steps) == (3, "quantised", "first", 1)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"labels": "40"}, "labels"),
        ({"translator": TranslatorConfig(width=32, narrow=16, layers=1)}, "align.translator.layers"),
        ({"seed": 1}, "train.seed"),
        ({"lr": 1e-5}, "train.lr"),
        ({"model": 1}, "model"),
    ],
)
def test_an_alignment_is_not_resumed_with_other_settings(change, named, run, dataset):
    before = parts(align(run, str(dataset), SMALL, training()))
    settings = {k: v for k, v in change.items() if k in ("labels", "translator")}
    options = {k: v for k, v in change.items() if k in ("seed", "lr")}
    if "model" in change:  # the LAM was trained again
        torch.manual_seed(1)
        model = LatentActionModel.from_pretrained(run)
        LatentActionModel(model.config, model.provenance).save_pretrained(run / "model")
    with pytest.raises(LaminaError, match=rf"other settings \(.*{named}"):
        align(run, str(dataset), dataclasses.replace(SMALL, **settings), training(resume=True, **options))
    assert parts(run / "translator") == before
    if "model" not in change:  # what may change: where it runs, and how often it looks
        align(run, str(dataset), SMALL, training(resume=True, checkpoint_every=3))
        assert parts(run / "translator")["translator.safetensors"] == before["translator.safetensors"]


def test_the_translator_of_a_continuous_latent_action_reads_it(dataset, tmp_path):
    torch.manual_seed(0)
    module = methods.load("alam")
    provenance = Provenance("alam", (str(dataset),), (0.1, 0.1))
    model = LatentActionModel(module.build(options("alam")), provenance).eval()
    model.save_pretrained(tmp_path / "model")
    clip = sample_split(probe_data(model, str(dataset)), "train", 60, require_action=True)
    latent = model.encode(clip.frames[:, 0], clip.frames[:, 1])
    torch.testing.assert_close(encode_labels(model.lam, clip).z, latent.pre)
    torch.testing.assert_close(encode_labels(model.lam, clip, "quantised").z, latent.post)
    for side in ("model", "quantised"):
        folder = align(tmp_path, str(dataset), dataclasses.replace(SMALL, side=side), training(steps=2))
        assert load_translator(folder)[1].side == {"model": "continuous"}.get(side, side)
        shutil.rmtree(folder)
