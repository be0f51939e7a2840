"""Training on triplets: the losses of ALAM and AC-LAM, parts of their baselines, and runs that collapse or explode."""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from clips import clip_of
from data_files import write_dataset
from lamina.api import data_config
from lamina.data.episodes import task_vector
from lamina.data.sampling import DataConfig, draw_samples
from lamina.data.stream import sample_split
from lamina.envs.collect import collect, noisy
from lamina.envs.grid import Grid
from lamina.envs.registry import SUITES, Suite, make
from lamina.errors import LaminaError, LaminaWarning
from lamina.evaluation.doctor import judge_codes
from lamina.evaluation.evaluate import code_statistics
from lamina.inference.subject import subject_of
from lamina.losses import perceptual
from lamina.losses.algebra import composition, read_error, reversal
from lamina.methods import ac_lam, alam, lapo, univla, villa_x
from lamina.methods.ac_lam import rotation
from lamina.methods.base import triplets
from lamina.models.bottlenecks.base import Identity
from lamina.models.bottlenecks.vq import VQ, SplitVQ
from lamina.models.bottlenecks.whitening import FirstBatchNorm
from lamina.models.config import LAMConfig
from lamina.models.decoders.base import DirectDecoder
from lamina.models.heads import ProprioDynamics
from lamina.models.hub import LatentActionModel, Provenance
from lamina.models.lam import LAM
from lamina.play import health
from lamina.rng import Rng
from lamina.training import pretraining as pretrain
from lamina.training.diagnostics import latent_diagnostics
from lamina.training.recipe import recipe, with_proprio
from lamina.training.settings import TrainConfig
from lamina.types import TASK_WIDTH, Latent
from test_methods import check, clip

torch.set_num_threads(1)
SMALL = {"size": "debug", "image": (16, 16), "slots": 4, "code_dim": 4}


def lam_of(module, **options) -> LAM:
    torch.manual_seed(0)
    return LAM(module.build(module.Config(**SMALL, **options)))


def terms_of(module, options, lam: LAM, batch) -> dict[str, torch.Tensor]:
    """A method's own loss terms of a batch."""
    return module.losses(options)(lam, lam.view(batch), Rng(0)).terms


class Additive(nn.Module):
    """An encoder of differences: z_ij = g(o_j) - g(o_i), plus an offset that spoils it."""

    def __init__(self, offset: float | Tensor = 0.0):
        super().__init__()
        self.offset, self.calls = offset, []

    def embed(self, frames: Tensor) -> Tensor:
        return torch.einsum("nchw,kd->nkd", frames, torch.linspace(0.1, 1, 16).view(4, 4))

    def compare(self, first: Tensor, second: Tensor) -> Tensor:
        self.calls.append(len(first))
        return second - first + self.offset


# Objectives


def test_composition_and_reversal_by_hand() -> None:
    ab, bc, ac = (torch.tensor(v).view(1, 1, 2) for v in ([1.0, 2.0], [3.0, -1.0], [5.0, 1.0]))
    assert composition(ab, bc, ac).tolist() == [(5 - 4) ** 2 / 2]  # (1, 0): mean over two channels
    assert reversal(ab, bc).tolist() == [(4**2 + 1**2) / 2]
    assert reversal(ab, -ab).tolist() == [0]


def test_the_gradient_distance_by_hand() -> None:
    """A step edge of height 2 in a picture of 8 columns that the other lacks: 2/7, 2/3 and 2 along x at scales 1, 1/2, 1/4; 0 along y."""
    flat = torch.zeros(1, 3, 8, 8)
    edge = flat.clone()
    edge[..., 4:] = 2
    assert float(perceptual.gradient(edge, flat)) == pytest.approx((2 / 7 + 2 / 3 + 2 / 1) / 6)
    assert float(perceptual.gradient(flat + 0.7, flat)) == pytest.approx(0, abs=1e-6)  # brightness is the pixel term's
    small, none = edge[..., :7, :7], flat[..., :7, :7]  # features of a pretrained encoder: scales of 7 and 3 places
    assert float(perceptual.gradient(small, none)) == pytest.approx((2 / 6 + 2 / 2) / 4)
    with pytest.raises(LaminaError, match="maps of 8x1 have no neighbouring places"):
        perceptual.gradient(edge[..., :1], flat[..., :1])


def test_lpips_is_never_another_thing_under_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    perceptual._lpips.cache_clear()
    with pytest.raises(LaminaError, match="weights are not on this machine"):
        perceptual.lpips(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8))


# Methods


def test_alam_encodes_its_four_pairs_in_one_call_and_an_additive_encoder_owes_nothing() -> None:
    options = alam.Config(**SMALL, whiten="none")
    lam = lam_of(alam, whiten="none")
    lam.encoder = Additive()
    batch = clip((16, 16), frames=3)
    terms = terms_of(alam, options, lam, batch)
    assert lam.encoder.calls == [4 * len(batch)]
    assert terms["composition"].max() < 1e-8 and terms["reversal"].max() < 1e-8
    lam.encoder = Additive(offset=0.5)
    terms = terms_of(alam, options, lam, batch)  # z_ac - z_ab - z_bc = -0.5; z_ab + z_ba = 1
    assert terms["composition"].numpy() == pytest.approx(0.25, rel=1e-4) and terms["reversal"].numpy() == pytest.approx(
        1, rel=1e-4
    )


def test_alam_asks_for_structure_before_the_quantiser_and_ac_lam_after_it() -> None:
    """With a codebook of two codes that are not additive ALAM's terms do not see it, and AC-LAM's do."""
    batch = clip((16, 16), frames=3)
    for module, options in ((alam, {}), (ac_lam, {"form": "idm"})):
        lam = lam_of(module, whiten="none", codebook_size=2, **options).eval()
        lam.encoder = Additive()
        terms = terms_of(module, module.Config(**SMALL, whiten="none", codebook_size=2, **options), lam, batch)
        assert (terms["composition"].max() < 1e-8) == (module is alam)


def test_alam_decodes_one_drawn_pair_of_each_sample_and_its_own_latent() -> None:
    clip = clip_of(torch.arange(3, dtype=torch.uint8).view(1, 3, 1, 1, 1).expand(600, 3, 1, 1, 1))
    pairs = [(0, 1), (1, 2), (0, 2)]
    latents = {pair: Latent(z, z) for pair in pairs for z in [torch.full((600, 1, 1), 10.0 * pair[0] + pair[1])]}
    taken, one = alam.drawn_pair(clip, latents, Rng(0))
    src, dst = taken.frames.flatten(1).unbind(1)
    assert torch.equal(one[0, 1].post.flatten(), 10 * src + dst)
    count = [int(((src == i) & (dst == j)).sum()) for i, j in pairs]
    assert sum(count) == 600 and min(count) > 150


@pytest.mark.parametrize("form", ["fdm", "fdm-pre", "idm", "idm-stop-direct", "idm-stop-sum"])
def test_ac_lam_composes_in_five_ways(form: str) -> None:
    check(ac_lam, ac_lam.Config(size="debug", image=(16, 16), slots=3, form=form))


def test_where_the_gradient_of_the_composition_stops() -> None:
    def gradients(form: str) -> list[bool]:
        steps = tuple(Latent(z, z) for z in (torch.randn(2, 1, 3, requires_grad=True) for _ in range(3)))
        ac_lam.composition_loss(form, None, None, steps, (0, 2), torch.zeros(2), Rng(0)).sum().backward()  # type: ignore[arg-type]
        return [latent.post.grad is not None for latent in steps]

    assert gradients("idm") == [True, True, True]
    assert gradients("idm-stop-direct") == [True, True, False]
    assert gradients("idm-stop-sum") == [False, False, True]


def test_the_sum_of_latents_is_what_ac_lam_decodes() -> None:
    lam = lam_of(ac_lam).eval()
    view = lam.view(clip((16, 16), frames=3))
    frames, latents = view.frames, lam.encode(view, [(0, 1), (1, 2), (0, 2)]).own
    keep = torch.full((len(view),), 4)
    got = ac_lam.composition_loss("fdm", lam, view, tuple(latents.values()), (0, 2), keep, Rng(0))
    summed = latents[0, 1].post + latents[1, 2].post
    assert torch.equal(got, lam.decoder.loss(frames[:, 0], summed, frames[:, 2], Rng(0)))


class Recorder(DirectDecoder):
    """Keeps the latents that it was given, and reads the first channel of each slot alone."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.given: list[Tensor] = []

    def forward(self, src: Tensor, z: Tensor) -> Tensor:
        self.given.append(z.detach())
        return src + z[:, :, 0].mean(1)[:, None, None, None]


@pytest.mark.parametrize("form", ["fdm", "fdm-pre"])
def test_a_mixture_lies_between_the_sum_and_the_long_latent_at_a_place_of_its_own_for_each_sample(form: str) -> None:
    lam = lam_of(ac_lam).eval()
    lam.decoder = Recorder()
    view = lam.view(clip((16, 16), frames=3, batch=64))
    ij, jk, ik = (Latent(pre=torch.randn(64, 4, 4), post=torch.randn(64, 4, 4)) for _ in range(3))
    for mixture in (True, False):
        ac_lam.composition_loss(form, lam, view, (ij, jk, ik), (0, 2), torch.full((64,), 4), Rng(0), mixture)  # type: ignore[arg-type]
    mixed, summed = lam.decoder.given
    total, direct = (ij.post + jk.post, ik.post) if form == "fdm" else (ij.pre + jk.pre, ik.pre)
    assert torch.equal(summed, total)
    share = (mixed - total) / (direct - total)
    assert (share.amax((1, 2)) - share.amin((1, 2))).max() < 1e-3  # one of a sample, for all of its numbers
    of_sample = share.mean((1, 2))
    assert of_sample.min() > -1e-3 and of_sample.max() < 1 + 1e-3 and abs(float(of_sample.mean()) - 0.5) < 0.15
    assert of_sample.std() > 0.2
    with pytest.raises(LaminaError, match="--mixture"):
        ac_lam.Config(mixture=True, form="idm")


def test_a_span_makes_the_lengths_of_legs_and_of_sums_overlap(dataset: Path) -> None:
    """With gaps of 0.1 to 0.2 s a length tells a sum from a leg; with gaps of 0.1 to 1.5 s within 1.5 s it mostly does not."""

    def lengths(gap: tuple[float, float], span: float | None) -> tuple[np.ndarray, np.ndarray]:
        times = np.arange(400) / 80
        frames = draw_samples(times, 80, np.tile(np.arange(200), 10), 3, gap, np.random.default_rng(0), span)
        i, j, k = times[frames].T
        return np.concatenate([j - i, k - j]), k - i

    def mistaken(legs: np.ndarray, sums: np.ndarray) -> float:
        """The share that the best threshold on the length confuses, legs and sums counting the same."""
        return min(float((legs > length).mean() + (sums <= length).mean()) / 2 for length in np.linspace(0, 1.6, 321))

    legs, sums = lengths((0.1, 1.5), 1.5)
    assert legs.min() < 0.12 and legs.max() > 1.3 and sums.min() < 0.35 and sums.max() < 1.5 + 1 / 80
    assert mistaken(legs, sums) > 0.18
    legs, sums = lengths((0.1, 0.2), None)
    assert legs.max() < sums.min() + 1 / 80 and mistaken(legs, sums) < 0.03
    options = ac_lam.Config(**SMALL, span=1.5)
    assert data_config(options, [str(dataset)], (0.1, 1.5)).span == 1.5  # as `lamina train` reads it


def test_a_linear_condition_of_a_sum_is_the_sum_of_conditions() -> None:
    lam = lam_of(ac_lam, decoder="unet", linear_condition=True)
    one, two = torch.randn(2, 5, 4, 4)
    read = lam.decoder.condition
    torch.testing.assert_close(read(one + two), read(one) + read(two))
    assert not read(torch.zeros(1, 4, 4)).any()
    plain = lam_of(ac_lam, decoder="unet").decoder.condition
    assert not torch.allclose(plain(one + two), plain(one) + plain(two), atol=1e-2)
    assert LAMConfig.from_dict(lam.config.to_dict()) == lam.config
    with pytest.raises(LaminaError, match="--decoder unet"):
        lam_of(ac_lam, decoder="pixel", linear_condition=True)


@pytest.mark.parametrize("whiten", ["none", "first", "batch"])
@pytest.mark.parametrize("pairing", ["antisymmetric", "difference"])
def test_paired_latents_reverse_and_hold_no_offset_whatever_whitens_them(pairing: str, whiten: str) -> None:
    lam = lam_of(ac_lam, pairing=pairing, whiten=whiten).train()
    frames = torch.rand(2, 64, 3, 16, 16) * 2 - 1
    first, second = (lam.embed(f) for f in frames)
    with torch.no_grad():
        there, back, still = (lam.pair(a, b).pre for a, b in ((first, second), (second, first), (first, first)))
    torch.testing.assert_close(there, -back, rtol=1e-2, atol=1e-5)  # batch: two batches, so nearly the same statistics
    assert still.abs().max() < 1e-5
    if whiten != "none":
        assert float(there.flatten(1).square().mean()) == pytest.approx(1, abs=1e-2)
    lam.eval()
    with torch.no_grad():
        assert (lam.pair(first, second).pre + lam.pair(second, first).pre).abs().max() < 1e-5
    assert LAMConfig.from_dict(lam.config.to_dict()) == lam.config


def test_a_space_with_two_encoders_cannot_swap_the_frames_of_a_pair() -> None:
    with pytest.raises(LaminaError, match="two encoders"):
        lam_of(alam, pairing="antisymmetric", space="ema")


def test_a_difference_is_of_encodings_of_single_frames_beside_a_term_of_the_pair() -> None:
    class Squares(Additive):
        def compare(self, first: Tensor, second: Tensor) -> Tensor:
            return second.square() + 0.5 * first * second.pow(2)

    def pre(pairing: str) -> Tensor:
        lam = lam_of(alam, whiten="none", pairing=pairing)
        lam.encoder = Squares()
        view = lam.view(clip((16, 16), frames=3))
        return lam.encode(view, [(0, 1)]).own[0, 1].pre, *(lam.encoder.embed(view.frames[:, n]) for n in (0, 1))

    z, a, b = pre("antisymmetric")
    term = (b**2 - a**2 + 0.5 * (a * b**2 - b * a**2)) / 2
    torch.testing.assert_close(z, term)
    z, a, b = pre("difference")
    torch.testing.assert_close(z, term + (b**2 + 0.5 * b**3) - (a**2 + 0.5 * a**3))


def test_alam_asks_for_the_algebra_of_what_the_decoder_reads() -> None:
    """An offset in a channel that the decoder ignores costs nothing as it reads latents, and one in the channel that it reads does."""

    def terms(algebra: str, channel: int) -> dict[str, Tensor]:
        lam = lam_of(alam, whiten="none").eval()
        lam.encoder, lam.decoder = Additive(torch.nn.functional.one_hot(torch.tensor(channel), 4).float()), Recorder()
        lam.bottleneck = Identity(4)
        options = alam.Config(**SMALL, whiten="none", algebra=algebra)  # type: ignore[arg-type]
        return terms_of(alam, options, lam, clip((16, 16), frames=3))

    assert terms("latent", 3)["composition"].numpy() == pytest.approx(0.25, rel=1e-4)  # one of four channels
    ignored, read = terms("read", 3), terms("read", 0)
    assert ignored["composition"].max() < 1e-8 and ignored["reversal"].max() < 1e-8
    assert read["composition"].min() > 1e-4
    torch.testing.assert_close(read["reversal"], 4 * read["composition"], rtol=1e-3, atol=1e-6)  # 2 c and -c, squared
    both, whole = terms("both", 0), terms("latent", 0)
    for name in ("composition", "reversal"):
        torch.testing.assert_close(both[name], whole[name] + read[name])


def test_an_error_as_the_decoder_reads_it_by_hand() -> None:
    gradients = torch.tensor([[[1.0, 0.0]], [[0.0, 0.0]]])  # of two pictures; the mean of (g v)^2 is v_0^2 / 2
    wrong, scale = torch.tensor([[[3.0, 9.0]], [[1.0, 9.0]]]), torch.tensor([[[2.0, 7.0]], [[4.0, -7.0]]])
    assert read_error(wrong, scale, gradients).tolist() == pytest.approx([9 / 10, 1 / 10])  # mean of 4 and 16 is 10
    assert read_error(5 * wrong, 5 * scale, 3 * gradients).tolist() == pytest.approx([9 / 10, 1 / 10])


def test_the_weights_of_the_algebra_rise_with_the_batches_of_training() -> None:
    options = alam.Config(**SMALL, algebra_warmup=10)
    lam, batch = lam_of(alam).eval(), clip((16, 16), frames=3)
    full = terms_of(alam, dataclasses.replace(options, algebra_warmup=0), lam, batch)
    for updates, share in ((0, 0.0), (5, 0.5), (10, 1.0), (99, 1.0)):
        lam.bottleneck.updates.fill_(updates)
        terms = terms_of(alam, options, lam, batch)
        for name in ("composition", "reversal"):
            torch.testing.assert_close(terms[name], share * full[name])
        assert torch.equal(terms["reconstruction"], full["reconstruction"])
    lam.train()
    lam.bottleneck.updates.fill_(4)
    lam.encode(lam.view(batch), [(0, 1)])
    assert alam.warmup(lam, 10) == 0.5  # each batch of training counts


@pytest.mark.parametrize("module", [alam, ac_lam])
def test_options_of_ours_train_every_parameter(module) -> None:
    ours = {"algebra": "read", "algebra_warmup": 1} if module is alam else {"mixture": True}
    check(module, module.Config(size="debug", image=(16, 16), slots=3, decoder="unet", linear_condition=True, **ours))


def test_large_rotations_do_not_compose() -> None:
    options = ac_lam.Config(**SMALL, rotation=(1, 2, 3), max_rotation=0.5)
    batch = clip((16, 16), frames=3)
    turn = torch.tensor([0.0, 0.4, 0.6, math.pi])  # about one axis: the angle itself
    proprio = torch.zeros(4, 3, 4)
    proprio[:, 2, 3] = turn
    proprio[:, :, 0] = 9.0  # no angle
    terms = terms_of(ac_lam, options, lam_of(ac_lam), dataclasses.replace(batch, proprio=proprio))
    assert (terms["composition"] > 0).tolist() == [True, True, False, False]
    with pytest.raises(LaminaError, match="proprioception has 0 columns"):
        terms_of(ac_lam, options, lam_of(ac_lam), dataclasses.replace(batch, proprio=None))
    with pytest.raises(LaminaError, match="three columns"):
        ac_lam.Config(rotation=(0, 1))


def test_an_angle_between_orientations_is_scipys() -> None:
    from scipy.spatial.transform import Rotation

    angles = torch.rand(50, 2, 3, generator=torch.Generator().manual_seed(0)) * 6 - 3
    first, second = (Rotation.from_euler("xyz", angles[:, n].numpy()) for n in (0, 1))
    assert rotation(angles[:, 0], angles[:, 1]).numpy() == pytest.approx((first.inv() * second).magnitude(), abs=1e-6)


def test_clips_of_two_frames_are_refused_by_methods_of_triplets() -> None:
    assert triplets(4) == [(0, 1, 2), (1, 2, 3)]
    for module in (alam, ac_lam):
        with pytest.raises(LaminaError, match="--frames 3"):
            terms_of(module, module.Config(**SMALL), lam_of(module), clip((16, 16), frames=2))


@pytest.mark.parametrize("module", [ac_lam, villa_x])
def test_a_proprioceptive_forward_model_is_trained(module) -> None:
    check(module, module.Config(size="debug", image=(16, 16), slots=3, proprio_width=4))


def test_the_state_is_predicted_in_units_of_its_spread() -> None:
    torch.manual_seed(0)
    model = ProprioDynamics(2, 2)
    change = torch.randn(256, 1, 2)
    start = torch.randn(256, 2)
    scale = torch.tensor([1e-3, 1e3])
    before = float(model.loss(start * scale, change, (start + change[:, 0]) * scale).mean().detach())
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        loss = model.loss(start * scale, change, (start + change[:, 0]) * scale).mean()
        loss.backward()
        optimizer.step()
    assert before > 0.3 and float(loss.detach()) < 0.02  # both channels, though a million times apart


# UniVLA


def test_slots_in_groups_have_codebooks_of_their_own() -> None:
    torch.manual_seed(0)
    split = SplitVQ(2, codebook_size=5, dim=3)
    x = torch.randn(64, 4, 3)
    latent = split(x)
    assert (
        latent.index is not None
        and latent.index[:, :2].max() < 5 <= latent.index[:, 2:].min()
        and latent.index.max() < 10
    )
    assert latent.aux.keys() == {"commitment_0", "commitment_1"}
    latent = split.eval()(x)
    assert torch.equal(split.index_to_codes(latent.index), latent.post)
    alone = VQ(5, 3).eval()
    alone.load_state_dict(split.parts[1].state_dict())
    assert torch.equal(alone(x[:, 2:]).post, latent.post[:, 2:])


def test_dead_codes_are_counted_among_those_that_a_slot_can_say(tmp_path: Path) -> None:
    """UniVLA: 16 codes for each half of the slots. A slot that says six of its 16 has ten dead ones, not 26 of 32."""
    torch.manual_seed(0)
    config = univla.build(univla.Config(size="debug", image=(16, 16), slots=4, stage=2))
    model = LatentActionModel(config, Provenance("univla"), LAM(config).eval())
    frames = torch.randint(0, 256, (64, 2, 3, 16, 16), dtype=torch.uint8)
    held = clip_of(frames)
    for said in (6, 16):
        index = torch.arange(64).remainder(said)[:, None] + torch.tensor([0, 0, 16, 16])
        subject = dataclasses.replace(subject_of(model), index=lambda a, b, index=index: index)
        found = code_statistics(subject, held)
        assert found["codebook"] == 16 and [slot["usage"] for slot in found["slots"]] == [said / 16] * 4
        diagnosis = judge_codes(dataclasses.replace(subject, control=None), held, held)
        assert diagnosis.value.mean == 1 - said / 16 and diagnosis.level == "good"
    # In training and on the page the codes are the model's own.
    own = model.encode(frames[:, 0], frames[:, 1]).index
    shares = [len(column.unique()) / 16 for column in own.unbind(1)]
    figures, _ = latent_diagnostics(model.lam, held, 0)(model.lam)
    assert [figures[f"usage/slot_{slot}"] for slot in range(1, 5)] == shares
    stage = SimpleNamespace(model=model, latents=SimpleNamespace(index=own), clip=held)
    assert [use["usage"] for use in health.codes(stage)] == shares


def test_a_frozen_codebook_stays_and_must_have_been_trained() -> None:
    torch.manual_seed(0)
    split = SplitVQ(2, frozen=(1,), codebook_size=5, dim=3).train()
    with pytest.raises(LaminaError, match="--init"):
        split(torch.randn(8, 2, 3))
    split.parts[1].updates += 1
    before = [part.codebook.clone() for part in split.parts]
    split(torch.randn(8, 2, 3))
    moved = [not torch.equal(part.codebook, old) for part, old in zip(split.parts, before, strict=True)]
    assert moved == [True, False]


def test_the_words_of_the_task_fill_the_first_half_in_stage_1_and_stage_2_goes_on_from_there(tmp_path: Path) -> None:
    options = univla.Config(size="debug", image=(16, 16), slots=4)
    lam, batch = LAM(univla.build(options)).eval(), clip((16, 16))
    with torch.no_grad():
        for parameter in lam.decoder.parameters():  # its last layer is zero: it would not read anything
            parameter.add_(0.1 * torch.randn_like(parameter))
    other = dataclasses.replace(batch, task=batch.task.roll(1, 0))
    one, two = (terms_of(univla, options, lam, b)["reconstruction"] for b in (batch, other))
    assert not torch.allclose(one, two)
    with pytest.raises(LaminaError, match="words"):
        terms_of(univla, options, lam, dataclasses.replace(batch, task=None))
    second = univla.Config(size="debug", image=(16, 16), slots=4, stage=2)
    assert univla.build(second).bottleneck.frozen == (1,) and LAM(univla.build(second)).task is None


def test_words_are_told_apart_and_the_same_everywhere() -> None:
    door, window = task_vector("open the door"), task_vector("open the window")
    assert door.shape == (TASK_WIDTH,) and np.array_equal(door, task_vector("Open the door"))
    assert 0.4 < np.corrcoef(door, window)[0, 1] < 0.95  # two of three words
    assert not task_vector("").any()
    assert door[0] == pytest.approx(float(task_vector("open the door")[0])) and np.isfinite(door).all()


# Whitening, and runs that are told or stopped


def test_whitened_latents_neither_begin_constant_nor_shrink() -> None:
    lam = lam_of(alam, whiten="batch").train()
    view = lam.view(clip((16, 16), batch=64))
    with torch.no_grad():
        before = lam.encode(view, [(0, 1)]).own[0, 1].pre.flatten(1)
        lam.encoder.head[-1].weight.mul_(0.1)
        after = lam.encode(view, [(0, 1)]).own[0, 1].pre.flatten(1)
    assert before.std(0, correction=0).numpy() == pytest.approx(1, abs=1e-2) and before.mean(0).abs().max() < 1e-5
    assert after.numpy() == pytest.approx(before.numpy(), abs=0.05)


def test_whitening_by_the_first_batch_is_fixed_from_then_on() -> None:
    torch.manual_seed(0)
    white, x = FirstBatchNorm(3).train(), torch.randn(50, 3) * torch.tensor([1e-3, 1.0, 1e3]) + 5
    first = white(x)
    assert first.mean(0).abs().max() < 1e-2 and first.std(0, correction=0).numpy() == pytest.approx(1, rel=1e-2)
    assert torch.equal(white(0 * x), -(white.mean / white.deviation).expand_as(x))
    again = FirstBatchNorm(3).eval()
    again.load_state_dict(white.state_dict())
    assert torch.equal(again(x), first)


def test_training_warns_in_decibels_if_the_latent_is_ignored() -> None:
    lam = lam_of(alam)
    validate = latent_diagnostics(lam, clip((16, 16)), 0)
    figures, told = validate(lam.eval())  # the decoder begins as a copy of the source: it reads nothing
    assert figures["gain_over_another_latent_db"] == figures["gain_over_the_mean_latent_db"] == 0
    assert any("ignores the latent" in text and "+0.00 dB" in text for text in told)


@pytest.mark.parametrize(("factor", "named"), [(1e-4, "collapse"), (1e4, "explosion")])
def test_a_collapse_and_an_explosion_are_named_and_stop_the_run(factor: float, named: str) -> None:
    lam = lam_of(ac_lam, whiten="none")
    validate = latent_diagnostics(lam, clip((16, 16)), 0)
    with torch.no_grad():
        lam.encoder.head[-1].weight.mul_(factor)
        lam.encoder.head[-1].bias.mul_(factor)
        lam.bottleneck.codebook.mul_(factor)
    with pytest.raises(LaminaError, match=named):
        validate(lam.eval())


def test_latents_that_come_to_one_point_are_a_collapse_however_long_they_are() -> None:
    lam = lam_of(ac_lam, whiten="none")
    validate = latent_diagnostics(lam, clip((16, 16)), 0)
    with torch.no_grad():
        lam.encoder.head[-1].weight.mul_(1e-4)
        lam.encoder.head[-1].bias.fill_(1.0)
    with pytest.raises(LaminaError, match="collapse"):
        validate(lam.eval())


def test_a_lam_that_reads_words_is_validated_with_them() -> None:
    lam, batch = lam_of(univla), clip((16, 16))
    with torch.no_grad():
        for parameter in lam.decoder.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))  # an untrained decoder reads nothing
    told = [latent_diagnostics(lam, batch, 0)(lam.eval())[0]]
    told.append(
        latent_diagnostics(lam, dataclasses.replace(batch, task=torch.randn_like(batch.task)), 0)(lam.eval())[0]
    )
    assert (
        told[0]["latent_length"] == told[1]["latent_length"] and told[0]["reconstruction"] != told[1]["reconstruction"]
    )


# Data


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Episodes whose state is (episode, frame)."""
    root = tmp_path_factory.mktemp("triplets") / "set"
    write_dataset(root, [20] * 6)
    return root


def test_proprioception_comes_where_a_method_asks_and_the_data_has_it(dataset: Path) -> None:
    data = DataConfig((str(dataset),), (16, 16), frames=3, workers=0)
    options, asked = with_proprio(ac_lam.Config(**SMALL), data)
    assert options.proprio_width == 2 and asked.proprio == "observation.state"
    batch = sample_split(asked, "train", 8)
    assert batch.proprio is not None and batch.proprio.shape[1:] == (3, 2)
    assert with_proprio(alam.Config(**SMALL), data)[1] == data
    with pytest.warns(LaminaWarning, match="no feature 'nothing'"):
        options, asked = with_proprio(ac_lam.Config(**SMALL, proprio="nothing"), data)
    assert options.proprio_width == 0 and asked == data


def test_a_run_starts_from_the_weights_of_another_as_far_as_they_fit(dataset: Path, tmp_path: Path) -> None:
    data = DataConfig((str(dataset),), (16, 16), gap=(0.1, 0.3), workers=0, shuffle=8)
    training = TrainConfig(steps=2, batch=4, device="cpu", checkpoint_every=2)
    first = recipe("univla", univla, univla.Config(size="debug", image=(16, 16), slots=4))
    pretrain.pretrain(tmp_path / "one", first, data, training)
    second = recipe("univla", univla, univla.Config(size="debug", image=(16, 16), slots=4, stage=2))
    with pytest.raises(LaminaError, match="--init"):
        pretrain.pretrain(tmp_path / "none", second, data, training)
    pretrain.pretrain(tmp_path / "two", second, data, training, tmp_path / "one")
    one, two = (LAM(p.lam) for p in (first, second))
    pretrain.load_matching_weights(one, tmp_path / "one")
    pretrain.load_matching_weights(two, tmp_path / "two")
    assert torch.equal(one.bottleneck.parts[1].codebook, two.bottleneck.parts[1].codebook)
    assert not torch.equal(one.bottleneck.parts[0].codebook, two.bottleneck.parts[0].codebook)
    other = LAM(alam.build(alam.Config(size="tiny", image=(32, 32), decoder="unet")))
    with pytest.raises(LaminaError, match="of another kind"):
        pretrain.load_matching_weights(other, tmp_path / "one")
    # What says that a module's statistics are there is not taken without them.
    wide = recipe("univla", univla, univla.Config(size="debug", image=(16, 16), slots=4, stage=2, codebook_size=32))
    with pytest.raises(LaminaError, match="a codebook that is frozen was never trained"):
        pretrain.pretrain(tmp_path / "wide", wide, data, training, tmp_path / "one")
    more = LAM(univla.build(univla.Config(size="debug", image=(16, 16), slots=8)))
    assert bool(one.whiten.ready)
    pretrain.load_matching_weights(more, tmp_path / "one")
    assert not bool(more.whiten.ready) and torch.equal(
        more.bottleneck.parts[0].codebook, one.bottleneck.parts[0].codebook
    )


def test_a_codebook_that_goes_on_learning_counts_anew(tmp_path: Path) -> None:
    """ALAM's warm-up of its losses counts with it: after --init it begins again."""
    config = alam.build(alam.Config(size="debug", image=(16, 16), slots=2, decoder="unet"))
    model = LatentActionModel(config, Provenance("alam"))
    model.lam.bottleneck.updates.fill_(50)
    model.save_pretrained(tmp_path)
    own = LAM(config)
    pretrain.load_matching_weights(own, tmp_path)
    assert torch.equal(own.bottleneck.codebook, model.lam.bottleneck.codebook)
    assert alam.warmup(model.lam, 100) == 0.5 and alam.warmup(own, 100) == 0


def test_a_run_that_is_resumed_before_its_first_checkpoint_keeps_its_start(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = DataConfig((str(dataset),), (16, 16), workers=0, shuffle=8)
    training = TrainConfig(steps=2, batch=4, device="cpu", checkpoint_every=2)
    plan = recipe("lapo", lapo, lapo.Config(size="debug", image=(16, 16), slots=2))
    pretrain.pretrain(tmp_path / "start", plan, data, replace(training, seed=1))
    pretrain.pretrain(tmp_path / "straight", plan, data, training, tmp_path / "start")

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("lamina.training.loop.accumulate_gradients", killed)
        with pytest.raises(KeyboardInterrupt):
            pretrain.pretrain(tmp_path / "run", plan, data, training, tmp_path / "start")
    again = replace(training, resume=True)
    with pytest.raises(LaminaError, match="was started with --init"):
        pretrain.pretrain(tmp_path / "run", plan, data, again, tmp_path / "straight")
    pretrain.pretrain(tmp_path / "run", plan, data, again)  # without naming it again
    weights = [load_file(tmp_path / name / "model/model.safetensors") for name in ("run", "straight")]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    LatentActionModel.from_pretrained(tmp_path / "run").write_metrics(tmp_path / "run/model", {"psnr": 20.0})
    pretrain.pretrain(tmp_path / "run", plan, data, again)  # it has ended
    assert LatentActionModel.from_pretrained(tmp_path / "run").provenance.metrics == {"psnr": 20.0}


@pytest.mark.parametrize(("noise", "hold"), [(0.15, 1), (0.4, 5), (1.0, 4), (0.0, 3)])
def test_held_noise_keeps_its_share_and_comes_in_stretches(noise: float, hold: int) -> None:
    world = Grid(sigma=0.0)
    world.expert = lambda rng: "expert"  # type: ignore[method-assign,assignment]
    world.random = lambda rng: f"random {rng.integers(2**40)}"  # type: ignore[method-assign,assignment]
    rng, act = np.random.default_rng(0), noisy(world, noise, hold)
    said = [str(act(rng)) for _ in range(20_000)]
    assert abs(np.mean([word != "expert" for word in said]) - noise) < 0.02
    lengths = [len(list(group)) for word, group in itertools.groupby(said) if word != "expert"]
    assert set(lengths[:-1]) <= {hold}


def test_the_suite_has_twelve_tasks_with_the_same_actions_and_two_cameras() -> None:
    metaworld = pytest.importorskip("lamina.envs.metaworld", reason="no metaworld or no OpenGL", exc_type=ImportError)
    tasks = [name.partition("/")[2] for name in SUITES["metaworld-suite"].worlds]
    assert len(set(tasks)) >= 10 and set(tasks) <= set(metaworld.TASKS)
    assert metaworld.MetaWorld.cameras == ("corner2", "gripperPOV") and metaworld.MetaWorld.proprio == 4


@pytest.mark.sim
def test_a_suite_of_arms_is_collected_with_both_cameras_and_the_hand(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    try:
        make("metaworld/reach-v3", (16, 16)).close()
    except LaminaError as error:
        pytest.skip(str(error))
    monkeypatch.setattr("lamina.envs.metaworld.MetaWorld.max_steps", 12)
    monkeypatch.setitem(SUITES, "metaworld-suite", Suite(("metaworld/reach-v3", "metaworld/handle-press-v3")))
    path = collect("metaworld-suite", tmp_path / "set", episodes=3, noise=0.4, hold=8, size=(32, 32), progress=False)
    views = [
        sample_split(
            DataConfig(
                (str(path),),
                (32, 32),
                frames=3,
                gap=(0.02, 0.05),
                camera=f"observation.images.{camera}",
                proprio="observation.state",
            ),
            "train",
            8,
        )
        for camera in ("corner2", "gripperPOV")
    ]
    assert all(view.proprio is not None and view.proprio.shape == (8, 3, 4) for view in views)
    assert torch.equal(views[0].index, views[1].index) and not torch.equal(views[0].frames, views[1].frames)
    assert len(views[0].task.unique(dim=0)) == 2  # type: ignore[union-attr]
