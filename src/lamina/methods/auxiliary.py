"""Auxiliary losses against exogenous state, for every method (*Why Latent Actions Fail*, §4.4-4.5).

Cross-exogenous reconstruction (Eq. 16) predicts the next frame from the latent of the SAME transition under another exogenous state.
Only what both views share helps that prediction. It needs paired views. With ``shared_slots`` (ours) the paired view gives the first slots
alone and the view itself the others: the first slots are worth what the views share, and exogenous detail has a place in the suffix. A
robust target (Eq. 19) is a quantity that exogenous state does not change: the action, the change of a feature, or optical flow. A linear
head predicts it from the latent; it needs that target.

Both are options of every method (:class:`lamina.methods.base.MethodConfig`). Methods need no code for them: the auxiliary losses use the
latents that a method returns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lamina.errors import LaminaError
from lamina.losses.optical_flow import optical_flow
from lamina.losses.reconstruction import squared_error
from lamina.methods.base import LossOutput, MethodConfig, MethodLosses, mean_aux, neighbours
from lamina.models.features import ClipView
from lamina.models.lam import LAM, EncodedPairs, Pair
from lamina.rng import Rng
from lamina.types import ActionSpec, Clip, Latent

#: Weight of a robust target that the reports advise for a few labels: with one label in a hundred the latent stays in use (LOG.md).
ROBUST_WEIGHT = 0.01
#: The same where every transition has a target, as with optical flow: the weight of the record exo/cheetah.
FLOW_WEIGHT = 0.02


def with_auxiliary(
    options: MethodConfig, losses: MethodLosses, weights: Mapping[str, float]
) -> tuple[MethodLosses, dict[str, float]]:
    """A method's losses and weights, with the auxiliary losses that its options enable.

    With cross-exogenous reconstruction, the losses take views that have paired frames, and a commitment term becomes the mean of both
    views' own.
    """
    extra = {"cross_exogenous": options.cross_exogenous, "robust_target": options.robust_target}
    extra = {name: weight for name, weight in extra.items() if weight}
    if not extra:
        return losses, dict(weights)

    def terms(lam: LAM, view: ClipView, rng: Rng) -> LossOutput:
        found = losses(lam, view, rng)
        added = dict(found.terms)
        if "cross_exogenous" in extra:
            crossed = with_own_suffix(found.latents, options.shared_slots)
            added["cross_exogenous"] = cross_exogenous(lam, view, crossed, rng)
            paired = mean_aux(found.latents.paired)
            added |= {name: (added[name] + paired[name]) / 2 for name in paired.keys() & added.keys()}
        if "robust_target" in extra:
            added["robust_target"] = robust_target(lam, view.clip, found.latents.own, options)
        return LossOutput(added, found.latents)

    return terms, {**weights, **extra}


def cross_exogenous(lam: LAM, view: ClipView, paired: Mapping[Pair, Latent], rng: Rng) -> Float[Tensor, "b"]:
    """decoder.loss(o, z(o~, o~'), o'), mean over neighbouring pairs (Eq. 16). ``paired``: latents of the paired views."""
    return lam.reconstruction(view, paired, lam.prefix.draw(rng, len(view)), rng)


def with_own_suffix(latents: EncodedPairs, shared: int | None) -> dict[Pair, Latent]:
    """The quantised latents of the paired views, with the slots behind the first ``shared`` from the views themselves; None: none is."""
    if shared is None:
        return latents.paired

    def mixed(pair: Pair) -> Tensor:
        return torch.cat([latents.paired[pair].post[:, :shared], latents.own[pair].post[:, shared:]], dim=1)

    return {pair: replace(latent, post=mixed(pair)) for pair, latent in latents.paired.items()}


def robust_target(lam: LAM, clip: Clip, latents: Mapping[Pair, Latent], options: MethodConfig) -> Float[Tensor, "b"]:
    """|y - W z|^2 of the neighbouring pairs among ``latents``, W = ``lam.target`` (Eq. 19); 0 where the label mask hides the target.

    z holds all slots after the bottleneck; y is standardised, so that a constant prediction has an error of 1. Each labelled pair has the
    weight of one pair: averaging over the labelled pairs of a batch instead would scale their gradient by 1 / target_share. Raises
    LaminaError for data without the target.
    """
    assert lam.target is not None
    pairs = [pair for pair in neighbours(clip.frames.shape[1]) if pair in latents]
    errors = [
        squared_error(
            lam.target(latents[i, j].post.flatten(1)), standardised(target_of(clip, options, (i, j)), options)
        )
        * label_mask(clip.episode, clip.index[:, i], options)
        for i, j in pairs
    ]
    return torch.stack(errors).mean(0)


def target_of(clip: Clip, options: MethodConfig, pair: Pair) -> Float[Tensor, "b y"]:
    """The robust target of the transition between two frames of a clip, in its own units."""
    i, j = pair
    if options.target == "flow":
        return optical_flow(clip.frames[:, i], clip.frames[:, j])
    if options.target != "action":
        values = clip.targets[options.target]
        return values[:, j] - values[:, i]
    if clip.action is None:
        raise LaminaError("the robust target is the action, and this data has none")
    return target_actions(options).one_hot(clip.action[:, i])


def target_actions(options: MethodConfig) -> ActionSpec:
    """The specification of the actions that are the robust target."""
    return ActionSpec(options.target_classes, options.target_width - sum(options.target_classes))


def standardised(target: Float[Tensor, "b y"], options: MethodConfig) -> Float[Tensor, "b y"]:
    """A target minus its mean, divided by its deviation; both are those of the training split."""
    if not options.target_mean:
        return target
    mean, deviation = (target.new_tensor(v) for v in (options.target_mean, options.target_deviation))
    return (target - mean) / deviation


def mean_and_deviation(target: Float[Tensor, "n y"], classes: Sequence[int] = ()) -> tuple[tuple[float, ...], ...]:
    """Mean and deviation of a target, as :func:`standardised` takes them.

    The classes of one discrete dimension share one deviation (root mean square); otherwise rare classes would dominate the error.
    """
    mean, deviation = target.double().mean(0), target.double().std(0, correction=0)
    start = 0
    for n in classes:
        deviation[start : start + n] = deviation[start : start + n].square().mean().sqrt()
        start += n
    return tuple(mean.tolist()), tuple(deviation.clamp_min(1e-6).tolist())


def label_mask(
    episode: Int[Tensor, "b"] | Int[Tensor, ""], frame: Int[Tensor, "b"], options: MethodConfig
) -> Bool[Tensor, "b"]:
    """Label mask: selects a fixed share (``target_share``) of all transitions, the same in every run, as labelled."""
    # A stateless hash of (episode, frame) (Wang).
    x = (episode * 0x9E3779B1 + frame * 0x85EBCA77 + 0x165667B1) & 0xFFFFFFFF
    for _ in range(2):
        x = ((x >> 16) ^ x) * 0x45D9F3B & 0xFFFFFFFF
    return ((x >> 16) ^ x) < options.target_share * 2**32
