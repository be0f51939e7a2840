"""Probes of the exogenous state on models whose answer is known by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from lamina.data.paired import same_states
from lamina.errors import LaminaError
from lamina.evaluation.probes.exogenous import swap
from lamina.evaluation.probes.exogenous import views as latent_views
from lamina.evaluation.verdict import judge_exogenous
from lamina.images import to_float
from lamina.inference.subject import Subject
from lamina.types import Clip


def views(n: int = 200, seed: int = 0, drift: int = 255) -> Clip:
    """A bright bar that moves through the upper half; the lower half is noise, drawn anew in each view and frame."""
    rng = np.random.default_rng(seed)
    place, move = rng.integers(4, 12, n), rng.integers(-3, 4, n)

    def film() -> Tensor:
        frames = np.zeros((n, 2, 3, 16, 16), np.uint8)
        for t in range(2):
            for i in range(n):
                frames[i, t, :, :8, place[i] + t * move[i]] = 200
        frames[:, :, :, 8:] = rng.integers(0, drift + 1, (n, 2, 1, 8, 16))
        return torch.from_numpy(frames)

    time = torch.zeros(n, 2)
    return Clip(frames=film(), paired=film(), time=time, index=time.long(), episode=torch.arange(n) // 10)


def copier(rows: slice = slice(0, 16)) -> Subject:
    """z is what the next frame shows in ``rows``, and the decoder shows it again."""

    def encode(src: Tensor, dst: Tensor) -> Tensor:
        return to_float(dst[:, :, rows]).flatten(1)

    def decode(src: Tensor, z: Tensor) -> Tensor:
        out = to_float(src)
        out[:, :, rows] = z.view(len(src), 3, -1, 16)
        return out

    return Subject("copier", encode, decode)


#: z is the upper half alone, where the agent's doing is.
pytestmark = pytest.mark.typed
UPPER_HALF = copier(slice(0, 8))


def test_a_latent_that_copies_the_next_frame_is_found_out():
    clip = views()
    score = swap(copier(), clip)
    assert (score.reconstruction == 60).all() and (score.augmented == 60).all() and (score.swap_as_paired == 60).all()
    assert score.swap.mean() < 15
    change = score.future_change(clip.episode)
    # The bar is one part of the variance, the noise another; only the noise differs between the views.
    z = clip.frames[:, 1].flatten(1).double()
    noise = torch.zeros_like(clip.frames[:1, 1]).bool()
    noise[:, :, 8:] = True
    expected = z.var(0)[noise.flatten()].sum() / z.var(0).sum()
    assert change.mean == pytest.approx(float(expected), rel=0.05) and change.mean > 0.5
    levels = [level for level, _ in judge_exogenous(score, clip, same_states(clip), True)]
    assert levels == ["bad"]


def test_a_latent_of_the_agents_doing_alone_passes():
    clip = views()
    score = swap(UPPER_HALF, clip)
    assert score.future_change(clip.episode).mean == score.inconsistency(clip.episode).mean == 0
    np.testing.assert_array_equal(score.reconstruction, score.swap)
    ((level, text),) = judge_exogenous(score, clip, same_states(clip), False)
    assert level == "good" and "0.00 of the change between unrelated transitions" in text


def test_a_latent_that_knows_nothing_changes_as_between_unrelated_transitions():
    def noise(src: Tensor, dst: Tensor) -> Tensor:
        return torch.randn(len(src), 768, generator=torch.Generator().manual_seed(int(dst.sum()) % 2**31)).abs()

    clip = views(400)
    assert swap(replace(copier(), encode=noise), clip).future_change(clip.episode).mean == pytest.approx(1, abs=0.02)


def test_views_of_the_same_states_are_told_from_views_of_others():
    clip = views(drift=40)
    assert same_states(clip).low > 0.05
    assert clip.paired is not None
    shifted = replace(clip, paired=clip.paired.roll(37, 0))
    assert same_states(shifted).low < 0.01
    ((level, text),) = judge_exogenous(swap(UPPER_HALF, clip), clip, same_states(shifted), False)
    assert level == "bad" and "same states" in text and "--cross-exogenous" not in text


def test_a_constant_latent_is_not_praised_for_holding_nothing():
    clip = views(80)
    seen = swap(replace(copier(), encode=lambda src, dst: torch.full((len(src), 768), 0.3)), clip)
    assert math.isnan(seen.future_change(clip.episode).mean)
    ((level, text),) = judge_exogenous(seen, clip, same_states(clip), False)
    assert level == "bad" and "same for every transition" in text


@pytest.mark.parametrize(("actions", "remedy"), [(True, "action labels allow"), (False, "--target flow")])
def test_the_verdict_names_the_remedy_that_the_data_allows(actions: bool, remedy: str):
    clip = views()
    seen = swap(copier(), clip)
    ((_, blind),) = judge_exogenous(None, clip, None, actions)
    ((_, paired),) = judge_exogenous(seen, clip, None, actions)
    assert remedy in blind and remedy in paired
    assert "--cross-exogenous" in paired and "--cross-exogenous" not in blind and "can't be told" in blind
    # A model that predicts no pictures is judged by its latents.
    ((level, text),) = judge_exogenous(latent_views(copier(), clip), clip, None, actions)
    assert level == "bad" and "dB" not in text


def test_what_cannot_be_compared_is_refused():
    alone = replace(views(80), paired=None)
    for work in (lambda: swap(copier(), alone), lambda: same_states(alone)):
        with pytest.raises(LaminaError, match="paired"):
            work()
    with pytest.raises(LaminaError, match="too few"):
        same_states(views(20))
