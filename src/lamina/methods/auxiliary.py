"""Remedies against the exogenous state that any method can have beside its own losses (*Why Latent Actions Fail*, §4.4-4.5).

Cross-exogenous reconstruction (Eq. 16) predicts the next frame from the latent of the SAME transition seen under another exogenous state:
what the two views do not share can't help. It needs paired views. An exogenous-robust target (Eq. 19) is something that no exogenous
state changes and that a linear head must read off the latent: the action, a feature's change, or optical flow. It needs that target.

The latter's weight (:data:`ROBUST_WEIGHT` is what the reports advise) is of one labelled transition, in units of the target's variance.

Both are fields of every method's config (:class:`lamina.methods.base.MethodConfig`); a method's file does not know of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lamina.errors import LaminaError
from lamina.images import to_float
from lamina.losses.optical_flow import optical_flow
from lamina.losses.reconstruction import squared_error
from lamina.methods.base import Losses, MethodConfig, mean_aux, neighbours
from lamina.models.lam import LAM, Pair, Recording
from lamina.rng import Rng
from lamina.types import ActionSpec, Clip, Latent

#: The weight of a robust target that a report advises for a few labels: with one in a hundred it leaves the latent in use (LOG.md).
ROBUST_WEIGHT = 0.01
#: ... and where every transition has a target, as with optical flow: what exo/cheetah was recorded with.
FLOW_WEIGHT = 0.02


def with_auxiliary(
    options: MethodConfig, losses: Losses, weights: Mapping[str, float]
) -> tuple[Losses, dict[str, float]]:
    """A method's losses and weights with the terms of the remedies that its options switch on."""
    own = {"cross_exogenous": options.cross_exogenous, "robust_target": options.robust_target}
    own = {name: weight for name, weight in own.items() if weight}
    if not own:
        return losses, dict(weights)

    def terms(lam: LAM, clip: Clip, draws: Rng) -> dict[str, Float[Tensor, "b"]]:
        with lam.recording(paired_views(clip) if "cross_exogenous" in own else None) as record:
            found = losses(lam, clip, draws)
        if "cross_exogenous" in own:
            found["cross_exogenous"] = cross_exogenous(lam, record, draws)
            # The twins are quantised too, so the encoder commits to their codes as to its own.
            twins = mean_aux(record.twins)
            found |= {name: (found[name] + twins[name]) / 2 for name in twins.keys() & found.keys()}
        if "robust_target" in own:
            found["robust_target"] = robust_target(lam, clip, record.latents, options)
        return found

    return terms, {**weights, **own}


def paired_views(clip: Clip) -> Float[Tensor, "b t c h w"]:
    """The same states under another exogenous state. Raises LaminaError without paired views."""
    if clip.paired is None:
        raise LaminaError(
            "cross-exogenous reconstruction needs paired views of the same states: name their camera by --paired"
        )
    return to_float(clip.paired)


def cross_exogenous(lam: LAM, record: Recording, draws: Rng) -> Float[Tensor, "b"]:
    """decoder.loss(o, z(o~, o~'), o'), mean over neighbouring pairs (Eq. 16). ``record``: what a method has encoded, and the twins."""
    assert record.view is not None
    keep = lam.prefix.draw(draws, len(record.view))
    return lam.reconstruction(record.view, record.twins, keep, draws)


def robust_target(lam: LAM, clip: Clip, latents: Mapping[Pair, Latent], options: MethodConfig) -> Float[Tensor, "b"]:
    """|y - W z|^2 of the neighbouring pairs whose target is known, W = ``lam.target`` (Eq. 19); 0 where it is not known.

    ``latents``: what the method has encoded; z is after the bottleneck, all slots; y is standardised, so that 1 is the error of a z that
    tells nothing. A labelled pair counts once, as any pair counts in the reconstruction: were the few of a batch to stand for all of it,
    one label in a hundred would shake the encoder every other step with a hundred times the force. Raises LaminaError where the target is
    not in the data.
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
    """What no exogenous state changes, of the transition between two frames of a clip, in its own units."""
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
    """What the actions are that a target predicts."""
    return ActionSpec(options.target_classes, options.target_width - sum(options.target_classes))


def standardised(target: Float[Tensor, "b y"], options: MethodConfig) -> Float[Tensor, "b y"]:
    """A target minus its mean, over its deviation, both of the training split (filled in from the data)."""
    if not options.target_mean:
        return target
    mean, deviation = (target.new_tensor(v) for v in (options.target_mean, options.target_deviation))
    return (target - mean) / deviation


def mean_and_deviation(target: Float[Tensor, "n y"], classes: Sequence[int] = ()) -> tuple[tuple[float, ...], ...]:
    """What :func:`standardised` takes. A discrete dimension's ``classes`` have one deviation in common, or rare ones would count most."""
    mean, deviation = target.double().mean(0), target.double().std(0, correction=0)
    at = 0
    for n in classes:
        deviation[at : at + n] = deviation[at : at + n].square().mean().sqrt()
        at += n
    return tuple(mean.tolist()), tuple(deviation.clamp_min(1e-6).tolist())


def label_mask(episode: Int[Tensor, "b"], frame: Int[Tensor, "b"], options: MethodConfig) -> Bool[Tensor, "b"]:
    """Whether the target at a frame of an episode is known: the same transitions every time, ``target_share`` of all."""
    # A hash of episode and frame (Wang's), as good as a draw and free of state.
    x = (episode * 0x9E3779B1 + frame * 0x85EBCA77 + 0x165667B1) & 0xFFFFFFFF
    for _ in range(2):
        x = ((x >> 16) ^ x) * 0x45D9F3B & 0xFFFFFFFF
    return ((x >> 16) ^ x) < options.target_share * 2**32
