"""The token policy (Algorithm 1): a sliding cache gives the logits of a forward pass over the whole episode."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from fake_worlds import Seeing, make
from lamina import methods
from lamina.envs.base import resize
from lamina.errors import LaminaError
from lamina.inference.encode import observe
from lamina.models.heads import ActionHead, Translator, TranslatorConfig
from lamina.models.hub import LatentActionModel
from lamina.policies.latency import decision_times
from lamina.policies.rollout import rollout_worlds
from lamina.policies.token_model import TokenConfig, TokenModel
from lamina.policies.token_policy import TokenPolicy
from lamina.policies.token_training import fingerprint, save_token_model
from lamina.training.alignment import TranslatorNote, save_translator
from lamina.types import ActionSpec, Clip
from parallel import options

torch.set_num_threads(1)

SMALL = TokenConfig(size="debug", context=6, stride=3, grid=2)
IMAGE, SLOTS, CODES = (3, 16, 16), 4, 27
SPEC, MIXED = ActionSpec(discrete=(5,)), ActionSpec(discrete=(3,), continuous=2)


def parts(
    config: TokenConfig = SMALL,
    slots: int = SLOTS,
    spec: ActionSpec = SPEC,
    method: str = "flexlam",
    condition: str = "latent+previous",
    seed: int = 0,
    **changes,
) -> tuple[LatentActionModel, TokenModel, Translator]:
    """An untrained LAM, token model and translator, with weights large enough for everything to matter."""
    torch.manual_seed(seed)
    module = methods.load(method)
    settings = dataclasses.replace(options(method), slots=slots, **({"levels": (3, 3, 3)} | changes))
    model = LatentActionModel(module.build(settings)).eval()
    tokens = TokenModel(config, IMAGE, slots, CODES).eval()
    dim = model.lam.dim
    translator = Translator(slots * dim, spec, TranslatorConfig(condition, "debug"), slots * dim).eval()  # type: ignore[arg-type]
    for name, parameter in [
        *tokens.named_parameters(),
        *translator.named_parameters(),
        *model.lam.encoder.named_parameters(),
    ]:
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3 if name.startswith(("core", "code", "slot", "head")) else 0.5)
    torch.nn.init.normal_(model.lam.prefix.null)
    return model, tokens, translator


def film(steps: int, batch: int = 1, size: tuple[int, int] = (16, 16), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (steps, batch, *size, 3), dtype=np.uint8)


class Recorder(TokenPolicy):
    """Keeps the logits of every code that was predicted: ``seen[decision][code]`` [b codes]."""

    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        self.seen: list[list[torch.Tensor]] = []

    def act_batch(self, *args, **settings):
        self.seen.append([])
        return super().act_batch(*args, **settings)

    def _choose(self, hidden):
        self.seen[-1].append(self.tokens.logits(hidden[:, -1]))
        return super()._choose(hidden)

    def logits(self, decision: int, row: int) -> torch.Tensor:
        return torch.stack([x[row] for x in self.seen[decision]])


def realized(model: LatentActionModel, frames: np.ndarray) -> torch.Tensor:
    """The codes [t-1 k] of the transitions of frames [t h w 3]."""
    pictures = torch.from_numpy(frames).permute(0, 3, 1, 2)
    index = model.encode(pictures[:-1], pictures[1:]).index
    assert index is not None
    return index


@torch.no_grad()
def from_scratch(
    model: LatentActionModel, tokens: TokenModel, frames: np.ndarray, chosen: torch.Tensor
) -> torch.Tensor:
    """Logits [k codes] of the codes of the last frame, by one forward over the whole episode; ``chosen`` [k] is teacher-forced."""
    block = torch.zeros(tokens.slots, dtype=torch.long)
    block[: len(chosen)] = chosen
    codes = torch.cat([realized(model, frames), block[None]]) if len(frames) > 1 else block[None]
    return tokens.logits(tokens(torch.from_numpy(frames)[None], codes[None])[0, -1])


SHAPES = [
    (SMALL, SLOTS),
    (dataclasses.replace(SMALL, context=1, stride=1), SLOTS),
    (dataclasses.replace(SMALL, context=2, stride=8), SLOTS),
    (dataclasses.replace(SMALL, context=7, stride=1), 1),
    (dataclasses.replace(SMALL, context=8, stride=4, grid=1, kv_heads=2, layers=3), 2),
    (dataclasses.replace(SMALL, context=9, stride=4, layers=1), 3),
    (dataclasses.replace(SMALL, context=8, stride=3, layers=4, local=2), 2),
    (dataclasses.replace(SMALL, context=7, stride=2, layers=3, local=4), 2),
]


@pytest.mark.parametrize(("config", "slots"), SHAPES)
def test_a_sliding_cache_equals_a_forward_over_the_whole_episode(config, slots):
    """Three contexts long, three rows; the middle one begins a new episode twice, so that rows are at different times."""
    model, tokens, translator = parts(config, slots)
    steps = 3 * config.context + 5
    policy, frames = Recorder(model, tokens, translator, batch=3), film(steps, 3)
    begun, first = np.zeros((steps, 3), int), [0, 0, 0]
    for t in range(steps):
        if t in (4, config.context + 6):
            policy.reset([1])
            first[1] = t
        policy.act_batch(frames[t])
        begun[t] = first
    for row in range(3):
        for t in range(steps):
            ours = policy.logits(t, row)
            theirs = from_scratch(model, tokens, frames[begun[t, row] : t + 1, row], ours.argmax(-1))
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    assert theirs.abs().mean() > 0.3


@torch.no_grad()
def test_the_first_context_is_what_was_trained():
    """One teacher-forced forward over a window, as in training, against the decisions of the policy."""
    model, tokens, translator = parts()
    policy, frames = Recorder(model, tokens, translator), film(SMALL.context)
    for frame in frames[:, 0]:
        policy.act(frame)
    first = torch.stack([policy.logits(t, 0)[0] for t in range(SMALL.context)])
    codes = torch.cat([realized(model, frames[:, 0]), torch.zeros(1, SLOTS, dtype=torch.long)])
    trained = tokens.logits(tokens(torch.from_numpy(frames[:, 0])[None], codes[None])[0, :, 0])
    torch.testing.assert_close(first, trained, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("k", [1, 3, 4])
@pytest.mark.parametrize("condition", ["latent", "latent+previous", "latent+previous+observation"])
def test_actions_are_those_of_the_algorithm_step_by_step(k, condition):
    """Algorithm 1 written out with public functions and no cache."""
    model, tokens, translator = parts(spec=MIXED, condition=condition)
    policy, frames, previous = TokenPolicy(model, tokens, translator, k), film(9)[:, 0], torch.zeros(1, 3)
    for t in range(len(frames)):
        chosen = torch.zeros(0, dtype=torch.long)
        for j in range(k):
            logits = from_scratch(model, tokens, frames[: t + 1], chosen)
            chosen = torch.cat([chosen, logits[j : j + 1].argmax(-1)])
        filled = torch.zeros(1, SLOTS, dtype=torch.long)
        filled[0, :k] = chosen
        z = model.lam.bottleneck.index_to_codes(filled)
        z[0, k:] = model.lam.prefix.null
        picture = torch.from_numpy(frames[t]).permute(2, 0, 1)[None, None]
        clip = Clip(picture, torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, dtype=torch.long))
        previous = translator.action.read(translator(z, previous, observe(model.lam, clip)))
        action = policy.act(frames[t])
        assert action.dtype == np.float32 and action.shape == (3,)
        np.testing.assert_allclose(action, previous[0].numpy(), atol=1e-4)


def test_rows_do_not_know_of_each_other():
    model, tokens, translator = parts(spec=MIXED)
    frames = film(15, 3)
    together = TokenPolicy(model, tokens, translator, batch=3)
    alone = [TokenPolicy(model, tokens, translator) for _ in range(3)]
    for t in range(15):
        if t == 5:
            together.reset([2])
            alone[2].reset()
        actions = together.act_batch(frames[t], k=1 + t % SLOTS)
        singly = [policy.act(frames[t, row], k=1 + t % SLOTS) for row, policy in enumerate(alone)]
        np.testing.assert_allclose(actions, singly, atol=1e-4)


def test_fewer_codes_are_a_prefix_of_more_and_leave_the_history_alone():
    model, tokens, translator = parts()
    frames = film(14)
    short, full = Recorder(model, tokens, translator, k=2), Recorder(model, tokens, translator)
    for t in range(14):
        short.act(frames[t, 0], k=None if t % 3 else 1)
        full.act(frames[t, 0])
        ours, theirs = short.logits(t, 0), full.logits(t, 0)
        assert len(ours) == (2 if t % 3 else 1) and len(theirs) == SLOTS
        torch.testing.assert_close(ours, theirs[: len(ours)], atol=1e-4, rtol=0)


def test_a_reset_forgets_everything():
    model, tokens, translator = parts(spec=MIXED)
    policy, frames = TokenPolicy(model, tokens, translator), film(20)[:, 0]
    first = [policy.act(f) for f in frames]
    policy.reset()
    again = [policy.act(f) for f in frames]
    np.testing.assert_array_equal(first, again)


def test_frames_are_embedded_once():
    model, tokens, translator = parts()
    policy, seen = TokenPolicy(model, tokens, translator), []
    for module in (model.lam.encoder.stem, tokens.stem):
        module.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    lengths = []
    tokens.core.blocks[0].register_forward_hook(lambda _, inputs, __: lengths.append(inputs[0].shape[1]))
    for frame in film(10)[:, 0]:
        policy.act(frame)
    assert seen == [1] * 20
    assert (
        lengths == [4] + [4 + SLOTS] * 9
    )  # the observation, and from then on the last block: nothing is encoded again


# ------------------------------------------------------------------------------------------------------ actions and k


def test_discrete_actions_are_whole_numbers():
    model, tokens, translator = parts()
    policy = TokenPolicy(model, tokens, translator, batch=2)
    actions = policy.act_batch(film(1, 2)[0])
    assert actions.dtype == np.int64 and actions.shape == (2, 1) and ((actions >= 0) & (actions < 5)).all()


def test_continuous_actions_stay_in_the_range_of_the_labels():
    model, tokens, translator = parts(spec=MIXED)
    frames = film(12)[:, 0]
    free = np.stack([TokenPolicy(model, tokens, translator).act(frame) for frame in frames])[:, 1:]
    low, high = np.quantile(free, 0.25, axis=0), np.quantile(free, 0.75, axis=0)
    translator.action.low.copy_(torch.from_numpy(low))
    translator.action.high.copy_(torch.from_numpy(high))
    kept = np.stack([TokenPolicy(model, tokens, translator).act(frame) for frame in frames])[:, 1:]
    np.testing.assert_allclose(kept, np.clip(free, low, high), atol=1e-5)
    assert not np.allclose(kept, free)


def test_the_executed_action_replaces_the_proposed_one():
    model, tokens, translator = parts(spec=MIXED)
    frames, done = film(3)[:, 0], np.array([2.0, -0.5, 1.5])
    read: list[torch.Tensor] = []
    embed = ActionHead.embed
    translator.action.embed = lambda action: read.append(action.clone()) or embed(translator.action, action)  # type: ignore
    policy = TokenPolicy(model, tokens, translator)
    policy.act(frames[0], previous=done)  # no action came before the first frame
    said = policy.act(frames[1], previous=done)
    policy.act(frames[2])
    assert [x[0].tolist() for x in read] == [[0, 0, 0], done.tolist(), pytest.approx(said.tolist())]


@pytest.mark.parametrize(
    ("previous", "words"),
    [
        ([3, 0.0, 0.0], "classes 0 to 2, got 3"),
        ([-1, 0.0, 0.0], "classes 0 to 2, got -1"),
        ([0.5, 0.0, 0.0], "got 0.5"),
        ([0, np.nan, 0.0], "finite"),
        ([0, np.inf, 0.0], "finite"),
        ([0, 0.0], r"shape \(1, 2\)"),
        (["left", "a", "b"], "numbers"),
    ],
)
def test_an_action_outside_the_space_is_refused(previous, words):
    policy = TokenPolicy(*parts(spec=MIXED))
    frames = film(2)[:, 0]
    policy.act(frames[0])
    with pytest.raises(LaminaError, match=words):
        policy.act(frames[1], previous=np.array(previous))


@pytest.mark.parametrize("k", [0, -1, SLOTS + 1, 1.0, "2", True])
def test_a_k_that_there_is_not_is_refused(k):
    model, tokens, translator = parts()
    with pytest.raises(LaminaError, match=f"1 to the model's {SLOTS} slots"):
        TokenPolicy(model, tokens, translator, k)
    with pytest.raises(LaminaError, match=f"1 to the model's {SLOTS} slots"):
        TokenPolicy(model, tokens, translator).act(film(1)[0, 0], k)


def test_a_fixed_k_model_predicts_all_of_its_codes():
    model, tokens, translator = parts(method="fixed_k")
    with pytest.raises(LaminaError, match=r"Fixed-K.*k must be 4, got 2"):
        TokenPolicy(model, tokens, translator, 2)
    policy = Recorder(model, tokens, translator)
    policy.act(film(1)[0, 0])
    assert len(policy.seen[0]) == SLOTS


@torch.no_grad()
def test_a_temperature_draws_from_the_softmax_by_its_own_seed():
    model, tokens, translator = parts()
    frames = np.repeat(film(1), 3000, axis=1)[0]

    class Choices(Recorder):
        def _choose(self, hidden):
            self.chosen = super()._choose(hidden)
            return self.chosen

    torch.manual_seed(1)
    state = torch.get_rng_state()
    policy = Choices(model, tokens, translator, 1, batch=3000, temperature=1.5, seed=7)
    policy.act_batch(frames)
    assert torch.equal(torch.get_rng_state(), state)  # torch's own generator was left alone
    share = torch.bincount(policy.chosen, minlength=CODES) / 3000
    expected = (policy.logits(0, 0) / 1.5).softmax(-1)[0]
    assert (share - expected).abs().max() < 4 * (0.25 / 3000) ** 0.5
    again = Choices(model, tokens, translator, 1, batch=3000, temperature=1.5, seed=7)
    again.act_batch(frames)
    other = Choices(model, tokens, translator, 1, batch=3000, temperature=1.5, seed=8)
    other.act_batch(frames)
    assert torch.equal(again.chosen, policy.chosen) and not torch.equal(other.chosen, policy.chosen)


# -------------------------------------------------------------------------------------------------------------- frames


def test_frames_of_another_size_are_resized_as_worlds_do_it():
    model, tokens, translator = parts(spec=MIXED)
    large, small = TokenPolicy(model, tokens, translator), TokenPolicy(model, tokens, translator)
    for frame in film(4, size=(40, 60))[:, 0]:
        np.testing.assert_array_equal(large.act(frame), small.act(resize(frame, (16, 16))))


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (np.zeros((24, 24, 3), np.uint8), "row 0 were 16x16 pixels .* 24x24 now"),
        (np.zeros((16, 16, 3), np.float32), "uint8 .* got float32"),
        (np.zeros((16, 16, 3), np.int64), "got int64"),
        (np.zeros((3, 16, 16), np.uint8), r"got uint8 \(1, 3, 16, 16\)"),
        (np.zeros((16, 16), np.uint8), "height, width, 3"),
        (np.zeros((16, 16, 4), np.uint8), "height, width, 3"),
    ],
)
def test_a_frame_that_does_not_fit_is_refused_and_changes_nothing(frame, words):
    model, tokens, translator = parts(spec=MIXED)
    policy, other = TokenPolicy(model, tokens, translator), TokenPolicy(model, tokens, translator)
    frames = film(4)[:, 0]
    for t in range(4):
        if t == 2:
            with pytest.raises(LaminaError, match=words):
                policy.act(frame, previous=np.array([2, 0.0, 0.0]))
            with pytest.raises(LaminaError, match="classes"):
                policy.act(frames[t], previous=np.array([9, 0.0, 0.0]))
        np.testing.assert_array_equal(policy.act(frames[t]), other.act(frames[t]))
    policy.reset()
    if frame.dtype == np.uint8 and frame.shape == (24, 24, 3):
        policy.act(frame)  # a new episode may have another size


def test_batches_that_do_not_fit_are_refused():
    model, tokens, translator = parts()
    policy = TokenPolicy(model, tokens, translator, batch=2)
    with pytest.raises(LaminaError, match="2 at once: call act_batch"):
        policy.act(film(1)[0, 0])
    with pytest.raises(LaminaError, match=r"\(2, height, width, 3\), got uint8 \(3,"):
        policy.act_batch(film(1, 3)[0])
    for row in (2, -1):
        with pytest.raises(LaminaError, match="no row"):
            policy.reset([row])
    for settings in ({"batch": 0}, {"temperature": -1.0}, {"temperature": float("nan")}):
        with pytest.raises(LaminaError, match="at least"):
            TokenPolicy(model, tokens, translator, **settings)


def test_a_damaged_model_gives_no_action():
    model, tokens, translator = parts(spec=MIXED)
    with torch.no_grad():
        model.lam.prefix.null[0] = torch.nan
    with pytest.raises(LaminaError, match="not finite"):
        TokenPolicy(model, tokens, translator, k=2).act(film(1)[0, 0])


# ---------------------------------------------------------------------------------------------------------- run folders


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A run folder with model, token model and translator."""
    run = tmp_path_factory.mktemp("home") / "run"
    model, tokens, translator = parts()
    model.save_pretrained(run / "model")
    tokens.fingerprint, tokens.decision_seconds = fingerprint(model.lam), 0.1
    save_token_model(run / "policy", tokens, {})
    save_translator(run / "translator", translator, translator_note(SLOTS * 3))
    return run


def translator_note(latent: int) -> TranslatorNote:
    config = TranslatorConfig(size="debug")
    return TranslatorNote(
        spec=SPEC, config=config, latent=latent, slots=SLOTS, observation=0, steps=1, side="quantised"
    )


def test_a_policy_of_a_run_folder(home, tmp_path):
    policy = TokenPolicy.from_run(home, k=2, batch=2)
    assert policy.image == IMAGE and policy.spec == SPEC and policy.decision_seconds == 0.1 and policy.k == 2
    ours = TokenPolicy(*parts(), k=2, batch=2)  # type: ignore[misc]
    for frames in film(5, 2):
        np.testing.assert_array_equal(policy.act_batch(frames), ours.act_batch(frames))
    # a joint alignment keeps model and translator in one folder
    joint = tmp_path / "joint"
    shutil.copytree(home, joint)
    for path in (joint / "translator").iterdir():
        path.rename(joint / path.name)
    (joint / "translator").rmdir()
    np.testing.assert_array_equal(
        TokenPolicy.from_run(joint).act(film(1)[0, 0]), TokenPolicy.from_run(home).act(film(1)[0, 0])
    )


def test_a_policy_is_played_on_the_camera_that_it_was_trained_on(tmp_path, monkeypatch):
    model, tokens, translator = parts(spec=Seeing.action)
    model.save_pretrained(tmp_path / "model")
    tokens.camera = "observation.images.left"
    save_token_model(tmp_path / "policy", tokens, {})
    note = dataclasses.replace(translator_note(SLOTS * 3), spec=Seeing.action)
    save_translator(tmp_path / "translator", translator, note)
    policy, seen = TokenPolicy.from_run(tmp_path), []
    assert policy.cameras == ("left",)
    monkeypatch.setattr(policy.tokens, "observe", lambda frames: (seen.append(frames), tokens.observe(frames))[1])
    options = {"episodes": 1, "parallel": 1, "size": IMAGE[1:], "make": make, "progress": False}
    rollout_worlds(policy, ["Seeing"], **options)
    assert seen and all((frames == torch.tensor([0, 0, 255])).all() for frames in seen)  # what the left camera shows
    with pytest.raises(LaminaError, match="world 'Fake' has no camera 'left', which the agent reads; it has fake"):
        rollout_worlds(policy, ["Fake"], **options)
    config = tmp_path / "policy" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"camera": None}))
    assert TokenPolicy.from_run(tmp_path).cameras == ()


def test_parts_of_different_runs_are_refused(home, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(home, run)
    parts(seed=1)[0].save_pretrained(run / "model")
    with pytest.raises(LaminaError, match="another LAM"):
        TokenPolicy.from_run(run)
    shutil.rmtree(run / "policy")
    with pytest.raises(LaminaError, match="no token model here"):
        TokenPolicy.from_run(run)
    shutil.copytree(home, run, dirs_exist_ok=True)
    _, _, wide = parts(slots=SLOTS + 1)
    save_translator(run / "translator", wide, translator_note((SLOTS + 1) * 3))
    with pytest.raises(LaminaError, match="translator reads"):
        TokenPolicy.from_run(run)
    shutil.rmtree(run / "translator")
    with pytest.raises(LaminaError, match="no translator here"):
        TokenPolicy.from_run(run)


# ------------------------------------------------------------------------------------------------------------- latency


def test_latency_times_every_k_with_a_full_context():
    model, tokens, translator = parts()
    policy = Recorder(model, tokens, translator)
    times = decision_times(policy, [4, 1], warmup=2, timed=12)
    assert list(times) == [1, 4] and all(len(v) == 12 and min(v) > 0 for v in times.values())
    counts = [len(x) for x in policy.seen]
    filling, warming, rounds = [1] * (6 + 3), [1, 1, 4, 4], [1] * 11 + [4] * 11 + [1] * 3 + [4] * 3
    assert counts == filling + warming + rounds  # a round has ten timed decisions and one before them
    with pytest.raises(LaminaError, match="got 5"):
        decision_times(policy, [5])
