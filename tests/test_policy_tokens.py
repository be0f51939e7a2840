"""The token model: its transformer equals Qwen3, its attention mask follows the rule, and its loss."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import lamina.policies.encoded
import lamina.training.loop
from lamina import methods
from lamina.data.sampling import open_source
from lamina.errors import LaminaError
from lamina.models.bottlenecks.fsq import FSQ
from lamina.models.hub import LatentActionModel, Provenance
from lamina.models.lam import LAM
from lamina.policies.decoding import TokenDecoder
from lamina.policies.qwen import ChunkedMask, Qwen, QwenConfig, causal
from lamina.policies.token_model import CodeTable, TokenConfig, TokenModel, patch_grid, visible
from lamina.policies.token_training import (
    FORMAT,
    check_lam,
    fingerprint,
    load_token_model,
    save_token_model,
    token_losses,
    train_token_model,
)
from lamina.policies.windows import (
    Steps,
    Window,
    WindowStream,
    encode_windows,
    fixed_windows,
    mean_valid_steps,
    open_steps,
    strided_sequences,
    windows_at,
)
from lamina.rng import Rng
from lamina.training.settings import TrainConfig
from parallel import options
from planted import FPS, write_planted
from processes import dies_before_step, dies_in, in_child
from qwen3 import qwen3

torch.set_num_threads(1)

SMALL = TokenConfig(size="debug", context=6, stride=3, grid=2)
IMAGE, SLOTS, CODES = (3, 16, 16), 3, 20


def small(config: TokenConfig = SMALL, slots: int = SLOTS, codes: int = CODES, std: float = 0.3) -> TokenModel:
    """An untrained model whose weights are large enough for every token to matter."""
    torch.manual_seed(0)
    model = TokenModel(config, IMAGE, slots, codes)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=std)
    return model.eval()


def window(batch: int, frames: int, seed: int = 0, slots: int = SLOTS, codes: int = CODES) -> Window:
    g = torch.Generator().manual_seed(seed)
    pictures = torch.randint(0, 256, (batch, frames, *IMAGE[1:], 3), dtype=torch.uint8, generator=g)
    block = torch.randint(0, codes, (batch, frames, slots), generator=g)
    return Window(pictures, block, torch.ones(batch, frames, dtype=torch.bool))


# ------------------------------------------------------------------------------------------------------- the transformer


@pytest.fixture(scope="module")
def pair():
    """Our transformer with every weight drawn at random, its code table and head, and transformers' Qwen3 with the same."""
    torch.manual_seed(1)
    core = Qwen(QwenConfig(width=48, layers=3, heads=6, kv_heads=2, hidden=80))
    for name, parameter in core.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.3)
    table, head = torch.randn(50, 48), torch.randn(50, 48) / 7
    return core.eval(), table, head, qwen3(core, table, head)


@torch.no_grad()
def test_logits_equal_transformers_qwen3_on_the_same_weights(pair):
    core, table, head, reference = pair
    ids = torch.randint(0, 50, (3, 40), generator=torch.Generator().manual_seed(0))
    ours = F.linear(core(table[ids], core.rotation(torch.arange(40)), causal), head)
    theirs = reference(ids).logits
    assert theirs.abs().mean() > 0.1
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_decoding_from_a_cache_equals_transformers_qwen3(pair):
    core, table, head, reference = pair
    ids = torch.randint(0, 50, (3, 24), generator=torch.Generator().manual_seed(1))
    keys, values = torch.zeros(2, 3, 3, 2, 24, 8)  # layers, b, kv heads, tokens, e

    def prefill(layer, q, k, v):
        keys[layer][:, :, :10], values[layer][:, :, :10] = k, v
        return causal(layer, q, k, v)

    outputs = [core(table[ids[:, :10]], core.rotation(torch.arange(10)), prefill)]
    step = TokenDecoder(core)
    for n in range(10, 24):

        def attend(layer, q, k, v, n=n):
            keys[layer][:, :, n], values[layer][:, :, n] = k, v
            seen = (x[layer][:, :, : n + 1] for x in (keys, values))
            return F.scaled_dot_product_attention(q.unsqueeze(2), *seen, enable_gqa=True).flatten(1)

        outputs.append(step(table[ids[:, n : n + 1]], core.rotation(torch.tensor([[n]])).squeeze(1), attend))
    ours = F.linear(torch.cat(outputs, 1), head)
    torch.testing.assert_close(ours, reference(ids).logits, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_rope_depends_on_distances_only(pair):
    core, table, _, _ = pair
    x = table[torch.arange(12)[None]]
    here = core(x, core.rotation(torch.arange(12)))
    far = core(x, core.rotation(torch.arange(12) + 300_000))
    torch.testing.assert_close(far, here, atol=1e-5, rtol=1e-5)
    moved = core(x, core.rotation(torch.arange(12) * 2))
    assert (moved - here).abs().max() > 1e-2


@torch.no_grad()
@pytest.mark.parametrize("chunk", [1, 5, 7, 20, 100])
def test_a_plan_reads_what_a_mask_allows(chunk):
    g = torch.Generator().manual_seed(0)
    mask = torch.rand(20, 30, generator=g) < 0.2
    mask[:, 3] = True
    mask[5:10] = torch.arange(30) < 8
    q, k, v = (torch.randn(2, h, n, 8, generator=g) for h, n in ((4, 20), (2, 30), (2, 30)))
    k2, v2 = (x.repeat_interleave(2, 1) for x in (k, v))
    score = (q @ k2.transpose(2, 3) / math.sqrt(8)).masked_fill(~mask, -math.inf)
    torch.testing.assert_close(ChunkedMask.of(mask, chunk)(q, k, v), score.softmax(-1) @ v2)


@pytest.mark.parametrize("changes", [{"heads": 5}, {"kv_heads": 3}, {"layers": 0}, {"width": 4}])
def test_a_transformer_that_cannot_be_built_is_refused(changes):
    with pytest.raises(LaminaError, match="heads"):
        QwenConfig(**{"width": 32, "heads": 4, "kv_heads": 2} | changes)


# ---------------------------------------------------------------------------------------------------------- the layout


def allowed(query: tuple[int, str, int], key: tuple[int, str, int], context: int, stride: int) -> bool:
    """The rule in plain words: tokens are (frame, "x" or "c", place)."""
    t, kind, j = query
    u, what, i = key
    if u > t or u <= t - context:
        return False
    if u < t:
        return what == "c" or u % stride == 0
    if what == "x":
        return True
    return kind == "c" and i <= j


@given(st.integers(1, 7), st.integers(1, 3), st.integers(1, 3), st.integers(1, 8), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_the_mask_is_the_rule(frames, patches, slots, context, stride):
    tokens = [(t, kind, j) for t in range(frames) for kind, n in (("x", patches), ("c", slots)) for j in range(n)]
    expected = [[allowed(q, k, context, stride) for k in tokens] for q in tokens]
    assert visible(frames, patches, slots, context, stride).tolist() == expected


@torch.no_grad()
@pytest.mark.parametrize(("layers", "local", "spans"), [(2, None, (6, 6)), (5, 2, (2, 6, 2, 2, 6)), (3, 9, (6, 6, 6))])
def test_the_hidden_states_are_those_of_one_long_masked_sequence(layers, local, spans):
    """The model against the plainest possible forward: dense masks, all rows, weights of the same blocks."""
    model, data = small(dataclasses.replace(SMALL, layers=layers, local=local)), window(2, 11)
    assert model.config.spans == spans
    x = torch.cat([torch.stack([model.observe(f) for f in data.frames]), model.embed(data.codes)], 2).flatten(1, 2)

    def attend(layer, q, k, v):
        mask = visible(11, model.patches, SLOTS, spans[layer], 3)
        return F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True)

    hidden = model.core(x, model.core.rotation(torch.arange(x.shape[1])), attend).unflatten(1, (11, -1))
    # the last observation token predicts the first code, code j the one after it
    torch.testing.assert_close(
        model(data.frames, data.codes), hidden[:, :, model.patches - 1 : -1], atol=1e-5, rtol=1e-4
    )


@torch.no_grad()
def test_nothing_later_and_nothing_of_the_own_code_is_seen():
    model, data = small(), window(1, 8)
    before = model(data.frames, data.codes)
    for t, j in ((4, 0), (4, 2), (7, 1)):
        other = data.codes.clone()
        other[0, t, j] = (other[0, t, j] + 1) % CODES
        after = model(data.frames, other)
        changed, own = (after != before).any(-1)[0].flatten(), t * SLOTS + j
        assert not changed[: own + 1].any() and changed[own + 1 :].all()
    frames = data.frames.clone()
    frames[0, 5] = 255 - frames[0, 5]
    changed = (model(frames, data.codes) != before).any(-1)[0]
    assert not changed[:5].any() and changed[5:].all()


@torch.no_grad()
def test_one_layer_sees_the_retained_observations_of_the_context_and_the_latest():
    model, data = small(dataclasses.replace(SMALL, layers=1)), window(1, 12)
    before = model(data.frames, data.codes)

    def reached(t: int) -> list[int]:
        frames = data.frames.clone()
        frames[0, t] = 255 - frames[0, t]
        return (model(frames, data.codes) - before).abs().amax((0, 2, 3)).gt(1e-6).nonzero().flatten().tolist()

    assert reached(4) == [4]  # not a multiple of the stride: seen by its own block only
    assert reached(3) == [3, 4, 5, 6, 7, 8]  # retained, for a context of six frames
    codes = data.codes.clone()
    codes[0, 4] = (codes[0, 4] + 1) % CODES
    changed = (model(data.frames, codes) - before).abs().amax((0, 2, 3)).gt(1e-6)
    assert changed.nonzero().flatten().tolist() == [4, 5, 6, 7, 8, 9]


@torch.no_grad()
def test_a_context_of_one_frame_forgets_everything():
    model, data = small(dataclasses.replace(SMALL, context=1)), window(1, 5)
    alone = model(data.frames[:, 3:4], data.codes[:, 3:4])
    torch.testing.assert_close(model(data.frames, data.codes)[:, 3:4], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("image", "wanted", "grid"),
    [((64, 64), 4, (4, 4)), ((32, 32), 4, (4, 4)), ((16, 16), 4, (4, 4)), ((48, 64), 4, (4, 4)), ((84, 84), 4, (3, 3)),
     ((16, 16), 3, (2, 2)), ((8, 40), 4, (2, 5)), ((128, 128), 4, (4, 4))],
)  # fmt: skip
def test_patches_are_cut_as_the_picture_allows(image, wanted, grid):
    assert patch_grid((3, *image), wanted) == grid
    model = TokenModel(dataclasses.replace(SMALL, grid=wanted), (3, *image), 2, 5)
    tokens = model.observe(torch.zeros(2, *image, 3, dtype=torch.uint8))
    assert tokens.shape == (2, grid[0] * grid[1], 32) and model.patches == grid[0] * grid[1]


def test_a_patch_is_where_it_is_in_the_picture():
    model = small()
    black = torch.zeros(1, 16, 16, 3, dtype=torch.uint8)
    light = black.clone()
    light[0, 12:, :4] = 255  # lower left
    with torch.no_grad():
        stem = model.stem[0]  # without the residual block, whose norm sees the whole picture
        model.stem = torch.nn.Sequential(stem)
        changed = (model.observe(light) - model.observe(black)).abs().amax(-1)[0]
    assert changed.argmax() == 2 and changed[1] == 0


def test_pictures_that_cannot_be_cut_are_refused():
    with pytest.raises(LaminaError, match="multiples of 4, got 30x32"):
        TokenModel(SMALL, (3, 30, 32), 2, 5)


# ------------------------------------------------------------------------------------------------------------ the loss


def test_a_model_that_knows_nothing_pays_the_log_of_the_codebook():
    model = small()
    torch.nn.init.zeros_(model.head.own)
    data = window(2, 5)
    torch.testing.assert_close(token_losses(model, data, Rng(0), 5)["codes"], torch.full((2,), math.log(CODES)))


def test_an_entry_is_its_own_vector_and_those_of_its_digits():
    levels = (3, 2, 5)
    table = CodeTable(30, 4, levels)
    torch.nn.init.normal_(table.own)
    values = FSQ(levels).index_to_codes(torch.arange(30)[:, None])[:, 0]  # [30 3]
    vectors = table.digits.split(levels)
    for entry in range(30):
        digits = [int((values[:, i].unique() == values[entry, i]).nonzero()) for i in range(3)]
        expected = table.own[entry] + sum(vectors[i][digit] for i, digit in enumerate(digits))
        torch.testing.assert_close(table.weight[entry], expected)
    plain = CodeTable(30, 4)
    torch.testing.assert_close(plain.weight, plain.own)
    with pytest.raises(LaminaError, match="30 codebook entries, not 31"):
        CodeTable(31, 4, levels)


@torch.no_grad()
def test_in_the_loss_every_code_has_the_same_weight_and_padding_is_nothing():
    model, data = small(), window(2, 6)
    logits = model.logits(model(data.frames, data.codes)).log_softmax(-1)
    nats = -logits.gather(-1, data.codes[..., None])[..., 0]  # [b t k]
    valid = torch.tensor([[True] * 6, [True] * 2 + [False] * 4])
    data = dataclasses.replace(data, valid=valid)
    expected = torch.cat([nats[0].flatten(), nats[1, :2].flatten()]).mean()
    loss = token_losses(model, data, Rng(0), valid_steps=4)["codes"]  # 8 valid steps in two windows
    torch.testing.assert_close(loss.mean(), expected)
    torch.testing.assert_close(loss[0] / loss[1], nats[0].sum() / nats[1, :2].sum())
    for row in (0, 1):  # in parts of a batch, one of them fuller than the other
        part = Window(data.frames[row : row + 1], data.codes[row : row + 1], valid[row : row + 1])
        torch.testing.assert_close(token_losses(model, part, Rng(0), valid_steps=4)["codes"], loss[row : row + 1])
    garbage = dataclasses.replace(data, codes=data.codes.clone(), frames=data.frames.clone())
    garbage.codes[1, 2:], garbage.frames[1, 2:] = 0, 255
    torch.testing.assert_close(token_losses(model, garbage, Rng(0), valid_steps=4)["codes"], loss)


def test_every_parameter_is_trained():
    model, data = small(), window(2, 6)
    token_losses(model.train(), data, Rng(0), 6)["codes"].mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters())


# --------------------------------------------------------------------------------------------------------- the windows


def steps(lengths: list[int], slots: int = 1) -> Steps:
    """Steps whose code and picture say which step of which episode they are."""
    total = sum(lengths)
    number = np.arange(total)
    frames = np.zeros((total, 4, 4, 3), np.uint8)
    frames[:] = (number % 256)[:, None, None, None]
    return Steps(frames, np.repeat(number[:, None], slots, 1).astype(np.int32), np.cumsum([0, *lengths]))


def test_a_window_is_what_is_left_of_its_episode():
    made = windows_at(steps([5, 3]), [(0, 3), (1, 0)], 4)
    assert made.codes[..., 0].tolist() == [[3, 4, 0, 0], [5, 6, 7, 0]]
    assert made.valid.tolist() == [[True, True, False, False], [True, True, True, False]]
    assert made.frames[1, 2].unique().tolist() == [7] and not made.frames[1, 3].any()


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(1, 12), st.integers(1, 5), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_windows_stay_in_their_episode_begin_at_the_stride_and_reach_every_step(lengths, context, stride, seed):
    data, length = steps(lengths), TokenConfig(context=context, stride=stride).length
    stream = WindowStream(data, length, stride, batch=16, seed=seed)
    rng = np.random.default_rng(seed)
    drawn = [start for _ in range(20) for start in stream.starts(rng)]
    for episode, start in drawn:
        assert start % stride == 0 and 0 <= start < lengths[episode]
        # full, but for what the stride costs at the end of an episode
        assert min(length, lengths[episode]) - (lengths[episode] - start) < stride
    if len(data) <= 20:
        many = {s for _ in range(60) for s in stream.starts(rng)} | set(drawn)
        held = {data.bounds[e] + i for e, s in many for i in range(s, min(s + length, lengths[e]))}
        assert held == set(range(len(data)))


@pytest.mark.parametrize(
    ("length", "window", "stride", "least"),
    [(9, 8, 8, 0.12), (47, 8, 8, 0.8), (100, 16, 8, 0.45), (100, 34, 8, 0.4), (30, 7, 3, 0.4)],
)
def test_last_steps_are_drawn_as_often_as_the_stride_allows(length, window, stride, least):
    """A step is drawn uniformly, and its window holds it; at an end there are fewer windows than in the middle."""
    stream = WindowStream(steps([length]), window, stride, batch=64, seed=0)
    seen = np.zeros(length)
    for _ in range(100):
        for _, start in stream.starts(np.random.default_rng(stream.drawn)):
            assert start % stride == 0
            seen[start : start + window] += 1
        stream.drawn += 1
    assert seen[-1] > least * seen.mean(), seen / seen.mean()


@pytest.mark.parametrize(("lengths", "window"), [([3, 40], 8), ([200], 8), ([2, 2], 16)])
def test_how_full_windows_usually_are(lengths, window):
    data = steps(lengths)
    stream = iter(WindowStream(data, window, 4, batch=64, seed=1))
    seen = np.mean([next(stream).valid.sum(1).float().mean().item() for _ in range(60)])
    assert mean_valid_steps(data, window, 4) == pytest.approx(seen, rel=0.03)


def test_first_steps_are_about_as_frequent_as_the_others():
    stream = WindowStream(steps([200]), 16, 8, batch=64, seed=0)
    rng, count = np.random.default_rng(0), np.zeros(200)
    for _ in range(200):
        for _, start in stream.starts(rng):
            count[start : start + 16] += 1
    share = count / count.mean()
    assert share[:8].min() > 0.4 and share[-8:].min() > 0.3 and share.max() < 2


def test_a_stream_is_a_function_of_seed_step_and_shard():
    data = steps([30, 7, 12])

    def batches(stream, n):
        return [b.codes for b, _ in zip(stream, range(n), strict=False)]

    first = batches(WindowStream(data, 8, 4, 6, seed=3), 5)
    stream = WindowStream(data, 8, 4, 6, seed=3)
    stream.load_state_dict({"drawn": 2})
    assert all(torch.equal(a, b) for a, b in zip(batches(stream, 3), first[2:], strict=True))
    assert not torch.equal(batches(WindowStream(data, 8, 4, 6, seed=4), 1)[0], first[0])
    whole = batches(WindowStream(data, 8, 4, 6, seed=3, shards=2), 3)
    parts = [batches(WindowStream(data, 8, 4, 6, seed=3, shards=2, own=[s]), 3) for s in (0, 1)]
    assert all(torch.equal(w, torch.cat(p)) for w, p in zip(whole, zip(*parts, strict=True), strict=True))


def test_fixed_windows_cover_a_split_once():
    data = steps([10, 3])
    made = fixed_windows(data, 4, 4)
    assert sorted(made.codes[made.valid].flatten().tolist()) == list(range(13))
    assert len(fixed_windows(data, 4, 4, limit=2)) == 2


def test_decisions_are_chains_of_partners():
    times = np.arange(7) / 10
    assert [c.tolist() for c in strided_sequences(times, 0.1)] == [[0, 1, 2, 3, 4, 5]]
    # a gap of three frames: three chains, and no transition begins at the last three frames
    assert [c.tolist() for c in strided_sequences(times, 0.3)] == [[0, 3], [1], [2]]
    assert strided_sequences(times[:1], 0.1) == []
    uneven = np.array([0.0, 0.1, 0.2, 0.5, 0.6, 0.7])
    found = [c.tolist() for c in strided_sequences(uneven, 0.2)]
    members = [frame for chain in found for frame in chain]
    assert len(members) == len(set(members)), "a frame belongs to two chains"


# ------------------------------------------------------------------------------------------------------- data and runs


def model_of(path: Path, method: str = "flexlam", gap: float = 1 / FPS, **changes) -> LatentActionModel:
    """A saved, untrained LAM."""
    torch.manual_seed(0)
    module = methods.load(method)
    config = dataclasses.replace(options(method), **changes)
    model = LatentActionModel(module.build(config), Provenance(method, ("planted",), (gap, gap))).eval()
    model.save_pretrained(path / "model")
    return model


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return write_planted(tmp_path_factory.mktemp("data") / "planted", episodes=10, length=12)


@pytest.fixture
def run(tmp_path) -> Path:
    model_of(tmp_path / "run")
    return tmp_path / "run"


def training(**changes) -> TrainConfig:
    settings = {"steps": 6, "batch": 4, "lr": 1e-3, "checkpoint_every": 2, "log_every": 1, "validate_every": 3}
    return TrainConfig(**settings | {"device": "cpu"} | changes)


def test_tokens_are_the_codes_of_neighbouring_frames(run, dataset):
    model = LatentActionModel.from_pretrained(run)
    index = encode_windows(model, open_source(str(dataset)), run / "tokens", "x")
    assert index["decision_seconds"] == pytest.approx(0.1)
    source = open_source(dataset)
    for split, names in (("train", 8), ("validation", 1)):
        data = open_steps(run / "tokens", split)
        chosen = [e for e in source.episodes if e.splits[0][0] == split]
        assert len(chosen) == names and np.diff(data.bounds).tolist() == [11] * names
        for n, episode in enumerate(chosen):
            pictures = source.frames(episode, source.cameras[0], 0, 12, (16, 16))
            rows = slice(data.bounds[n], data.bounds[n + 1])
            np.testing.assert_array_equal(data.frames[rows], pictures[:-1])
            frames = torch.from_numpy(pictures).permute(0, 3, 1, 2)
            np.testing.assert_array_equal(data.actions[rows], model.encode(frames[:-1], frames[1:]).index)


def test_a_longer_gap_makes_slower_decisions_of_all_frames(tmp_path, dataset):
    model = model_of(tmp_path, gap=0.3)
    index = encode_windows(model, open_source(str(dataset)), tmp_path / "tokens", "x")
    assert index["decision_seconds"] == pytest.approx(0.3)
    data = open_steps(tmp_path / "tokens", "train")
    assert np.diff(data.bounds).tolist() == [3, 3, 3] * 8
    source = open_source(dataset)
    episode = next(e for e in source.episodes if e.splits[0][0] == "train")
    pictures = source.frames(episode, source.cameras[0], 0, 12, (16, 16))
    np.testing.assert_array_equal(data.frames[3:6], pictures[[1, 4, 7]])
    frames = torch.from_numpy(pictures).permute(0, 3, 1, 2)
    np.testing.assert_array_equal(data.actions[3:6], model.encode(frames[[1, 4, 7]], frames[[4, 7, 10]]).index)


def test_data_is_encoded_once_and_again_when_model_or_data_change(run, dataset, tmp_path, monkeypatch):
    model, calls = LatentActionModel.from_pretrained(run), []
    encode = lamina.policies.encoded.encode_pairs
    monkeypatch.setattr(lamina.policies.encoded, "encode_pairs", lambda *a: calls.append(1) or encode(*a))
    encode_windows(model, open_source(str(dataset)), run / "tokens", "x")
    assert len(calls) == 9  # train and validation, never test
    encode_windows(model, open_source(str(dataset)), run / "tokens", "x")
    assert len(calls) == 9
    encode_windows(model, open_source(str(dataset)), run / "tokens", "y")
    assert len(calls) == 18
    other = write_planted(tmp_path / "other", episodes=10, length=13)
    encode_windows(model, open_source(str(other)), run / "tokens", "y")
    assert len(calls) == 27 and len(open_steps(run / "tokens", "train")) == 8 * 12


def test_a_process_waits_until_another_has_encoded_just_this(run, dataset, monkeypatch):
    model, calls = LatentActionModel.from_pretrained(run), []
    encode = lamina.policies.encoded.encode_pairs
    monkeypatch.setattr(lamina.policies.encoded, "encode_pairs", lambda *a: calls.append(1) or encode(*a))
    source, found = open_source(str(dataset)), []
    encode_windows(model, source, run / "tokens", "of an earlier LAM")
    waiting = threading.Thread(
        target=lambda: found.append(encode_windows(model, source, run / "tokens", "x", wait=True))
    )
    waiting.start()
    waiting.join(1)
    assert waiting.is_alive() and not found
    made = encode_windows(model, source, run / "tokens", "x")
    waiting.join(30)
    assert found == [json.loads(json.dumps(made))] and len(calls) == 2 * 9


def test_tokenizing_that_is_killed_leaves_nothing_that_is_believed(run, dataset):
    model = LatentActionModel.from_pretrained(run)

    def work():
        dies_in(lamina.policies.encoded, "encode_pairs", 4)
        encode_windows(model, open_source(str(dataset)), run / "tokens", "x")

    assert in_child(work) == signal.SIGKILL
    assert not (run / "tokens").exists()
    encode_windows(model, open_source(str(dataset)), run / "tokens", "x")
    assert len(open_steps(run / "tokens", "train")) == 8 * 11
    (run / "tokens" / "train.codes.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(LaminaError, match="damaged"):
        open_steps(run / "tokens", "train")


def test_data_without_a_transition_is_refused(tmp_path, dataset):
    model = model_of(tmp_path, gap=5.0)
    with pytest.raises(LaminaError, match="two frames 5 s apart"):
        encode_windows(model, open_source(str(dataset)), tmp_path / "tokens", "x")
    with pytest.raises(LaminaError, match="no camera 'top'"):
        encode_windows(model, open_source(str(dataset)), tmp_path / "tokens", "x", "top")
    assert not (tmp_path / "tokens").exists()


def test_training_leaves_a_model_a_log_and_figures(run, dataset):
    folder = train_token_model(run, str(dataset), SMALL, training())
    assert folder == run / "policy"
    note = json.loads((folder / "config.json").read_text())
    assert note["slots"] == 3 and note["codebook_size"] == 4375 and note["image"] == [3, 16, 16]
    assert note["decision_seconds"] == pytest.approx(0.1) and note["steps"] == 6
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[0]["codes"] == pytest.approx(math.log(4375), rel=0.05)
    assert rows[-1].keys() >= {"validation/codes", "validation/first_slot"}
    lam = LatentActionModel.from_pretrained(run).lam
    model = load_token_model(folder, lam)
    assert model.fingerprint == fingerprint(lam) and model.config == SMALL and not model.training
    held = fixed_windows(open_steps(folder / "tokens", "validation"), 6, 3)
    with torch.no_grad():
        nats = model.cross_entropy(held).sum((0, 1)) / held.valid.sum()
    assert note["validation"] == pytest.approx({"codes": float(nats.mean()), "first_slot": float(nats[0])})
    with pytest.raises(LaminaError, match="trained already; add --resume"):
        train_token_model(run, str(dataset), SMALL, training())


def test_killed_training_resumes_bit_for_bit(run, dataset, tmp_path):
    other = shutil.copytree(run, tmp_path / "other")
    train_token_model(other, str(dataset), SMALL, training())

    def work():
        dies_before_step(5)
        train_token_model(run, str(dataset), SMALL, training())

    assert in_child(work) == signal.SIGKILL
    assert not (run / "policy" / "config.json").exists()
    with pytest.raises(LaminaError, match=r"other settings \(token_model\.context\)"):
        train_token_model(run, str(dataset), dataclasses.replace(SMALL, context=5), training(resume=True))
    with pytest.raises(LaminaError, match=r"other settings \(train\.lr\)"):
        train_token_model(run, str(dataset), SMALL, training(resume=True, lr=1.0))
    train_token_model(run, str(dataset), SMALL, training(resume=True))
    ours, theirs = (load_file(r / "policy" / "model.safetensors") for r in (run, other))
    assert ours.keys() == theirs.keys() and all(torch.equal(v, theirs[k]) for k, v in ours.items())


def test_files_of_a_killed_run_do_not_affect_a_new_one(run, dataset, tmp_path):
    def work():
        dies_before_step(5)
        train_token_model(run, str(dataset), SMALL, training(lr=1.0))

    other = shutil.copytree(run, tmp_path / "other")
    assert in_child(work) == signal.SIGKILL
    for where in (run, other):
        train_token_model(where, str(dataset), SMALL, training(steps=2))
    assert (run / "policy/model.safetensors").read_bytes() == (other / "policy/model.safetensors").read_bytes()


def test_predictable_codes_are_learned():
    """The first code is what the picture shows, the second the one before it in the block, the third the last block's first."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    shade = rng.integers(0, 4, (24, 13))
    frames = np.broadcast_to((shade * 60).astype(np.uint8)[..., None, None, None], (24, 13, 16, 16, 3))
    codes = np.stack([shade, shade, np.roll(shade, 1, 1)], -1)
    data = Steps(frames[:, 1:].reshape(-1, 16, 16, 3), codes[:, 1:].reshape(-1, 3), np.arange(25) * 12)
    model = TokenModel(SMALL, IMAGE, 3, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    stream = iter(WindowStream(data, 6, 3, 8, seed=0))
    for _ in range(120):
        loss = token_losses(model, next(stream), Rng(0), 6)["codes"].mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    held = fixed_windows(data, 12, 3)
    with torch.no_grad():
        nats = model.eval().cross_entropy(held)[:, 1:].mean((0, 1))
    assert (nats < 0.1).all(), nats


# ------------------------------------------------------------------------------------------------------- whose codes


def test_the_fingerprint_is_of_what_decides_the_codes(tmp_path):
    lam = model_of(tmp_path).lam
    before = fingerprint(lam)
    assert before == fingerprint(LatentActionModel.from_pretrained(tmp_path).lam) and len(before) == 64
    with torch.no_grad():
        lam.prefix.null += 1
        next(lam.decoder.parameters()).add_(1)
    assert fingerprint(lam) == before
    with torch.no_grad():
        next(lam.encoder.parameters())[0] += 1e-3
    assert fingerprint(lam) != before
    assert (
        fingerprint(LAM(methods.load("flexlam").build(dataclasses.replace(options("flexlam"), levels=(5, 7, 5, 5, 5)))))
        != before
    )
    lapa = model_of(tmp_path / "lapa", "lapa").lam
    before = fingerprint(lapa)
    lapa.bottleneck.codebook += 1e-3
    assert fingerprint(lapa) != before


def test_tokens_of_another_lam_are_refused(run, tmp_path):
    lam = LatentActionModel.from_pretrained(run).lam
    model = TokenModel(SMALL, IMAGE, 3, 4375, fingerprint(lam), 0.1)
    save_token_model(run / "policy", model, {})
    load_token_model(run / "policy", lam)
    moved = model_of(tmp_path / "other").lam
    with torch.no_grad():
        next(moved.encoder.parameters())[0] += 1e-3
    with pytest.raises(LaminaError, match="another LAM"):
        load_token_model(run / "policy", moved)
    for changes in ({"slots": 4}, {"codebook_size": 10}, {"image": (3, 32, 32)}):
        unknown = TokenModel(SMALL, **{"image": IMAGE, "slots": 3, "codebook_size": 4375} | changes)
        with pytest.raises(LaminaError, match="the LAM has 3 of 4375"):
            check_lam(unknown, lam)


def test_a_lam_without_a_codebook_is_refused(tmp_path, dataset, monkeypatch):
    from lamina.models.bottlenecks.base import Identity

    model = model_of(tmp_path / "run")
    config = dataclasses.replace(model.config, bottleneck=Identity.Config(5))
    LatentActionModel(config).save_pretrained(tmp_path / "run" / "model")
    with pytest.raises(LaminaError, match="no codebook"):
        train_token_model(tmp_path / "run", str(dataset), SMALL, training())
    assert not (tmp_path / "run" / "policy").exists()


def test_a_damaged_token_model_is_refused(run):
    folder = run / "policy"
    with pytest.raises(LaminaError, match="no token model here"):
        load_token_model(folder)
    save_token_model(folder, TokenModel(SMALL, IMAGE, 3, 4375), {})
    config = (folder / "config.json").read_text()
    for text, word in (
        ("{", "cannot be read"),
        (config.replace(f'"format": {FORMAT}', '"format": 9'), "format 9"),
        ("{}", "damaged"),
    ):
        (folder / "config.json").write_text(text)
        with pytest.raises(LaminaError, match=word):
            load_token_model(folder)
    (folder / "config.json").write_text(config)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(LaminaError, match="damaged or cut short"):
        load_token_model(folder)


@pytest.mark.parametrize(
    "changes", [{"size": "huge"}, {"context": 0}, {"stride": 0}, {"grid": 0}, {"window": 0}, {"local": 0}]
)
def test_settings_that_make_no_sense_are_refused(changes):
    with pytest.raises(LaminaError):
        TokenConfig(**changes)
