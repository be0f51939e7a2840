"""Remedies against the exogenous state that any method can have beside its own losses (*Why Latent Actions Fail*, §4.4-4.5).

Cross-exogenous reconstruction (Eq. 16) predicts the next frame from the latent of the SAME transition seen under another exogenous state:
what the two views do not share can't help. It needs paired views. An exogenous-robust target (Eq. 19) is something that no exogenous
state changes and that a linear head must read off the latent: the action, a feature's change, or optical flow. It needs that target.

Both are fields of every method's config (:class:`lamina.sizes.Backbone`); a method's file does not know of them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lamina.draws import Draws
from lamina.errors import LaminaError
from lamina.lam import LAM, Pair, neighbours
from lamina.motion import optical_flow
from lamina.objectives import squared_error
from lamina.shapes import ActionSpec, Clip, Latent, to_float
from lamina.sizes import Backbone
from lamina.train import Losses


def added(options: Backbone, losses: Losses, weights: Mapping[str, float]) -> tuple[Losses, dict[str, float]]:
    """A method's losses and weights with the terms of the remedies that its options switch on."""
    own = {"cross_exogenous": options.cross_exogenous, "robust_target": options.robust_target}
    own = {name: weight for name, weight in own.items() if weight}
    if not own:
        return losses, dict(weights)

    def terms(lam: LAM, clip: Clip, draws: Draws) -> dict[str, Float[Tensor, "b"]]:
        with lam.recording() as latents:
            found = losses(lam, clip, draws)
        if "cross_exogenous" in own:
            found["cross_exogenous"] = cross_exogenous(lam, clip, draws)
        if "robust_target" in own:
            found["robust_target"] = robust_target(lam, clip, latents, options)
        return found

    return terms, {**weights, **own}


def cross_exogenous(lam: LAM, clip: Clip, draws: Draws) -> Float[Tensor, "b"]:
    """decoder.loss(o, z(o~, o~'), o'), mean over neighbouring pairs (Eq. 16). Raises LaminaError without paired views."""
    if clip.paired is None:
        raise LaminaError(
            "cross-exogenous reconstruction needs paired views of the same states: name their camera by --paired"
        )
    frames = to_float(clip.frames)
    latents = lam.encode(to_float(clip.paired), neighbours(frames.shape[1]))
    return lam.reconstruction(frames, latents, lam.prefix.draw(draws, len(frames)), draws)


def robust_target(lam: LAM, clip: Clip, latents: Mapping[Pair, Latent], options: Backbone) -> Float[Tensor, "b"]:
    """|y - W z|^2 of the neighbouring pairs whose target is known, W = ``lam.target`` (Eq. 19); its mean over the batch is their mean.

    ``latents``: what the method has encoded; z is after the bottleneck, all slots. Raises LaminaError where the target is not in the data.
    """
    assert lam.target is not None
    pairs = [pair for pair in neighbours(clip.frames.shape[1]) if pair in latents]
    errors = [
        squared_error(lam.target(latents[i, j].post.flatten(1)), target_of(clip, options, (i, j)))
        * known(clip, i, options)
        for i, j in pairs
    ]
    share = torch.stack([known(clip, i, options) for i, _ in pairs]).float().mean()
    return torch.stack(errors).mean(0) / share.clamp_min(1 / (len(clip) * len(pairs)))


def target_of(clip: Clip, options: Backbone, pair: Pair) -> Float[Tensor, "b y"]:
    """What no exogenous state changes, of the transition between two frames of a clip."""
    i, j = pair
    if options.target == "flow":
        return optical_flow(clip.frames[:, i], clip.frames[:, j])
    if options.target != "action":
        values = clip.targets[options.target]
        return values[:, j] - values[:, i]
    if clip.action is None:
        raise LaminaError("the robust target is the action, and this data has none")
    continuous = options.target_width - sum(options.target_classes)
    return ActionSpec(options.target_classes, continuous).one_hot(clip.action[:, i])


def known(clip: Clip, i: int, options: Backbone) -> Bool[Tensor, "b"]:
    """Whether the target at frame i of each sample is known: the same transitions every time, ``target_share`` of all."""
    # A hash of episode and frame (Wang's), as good as a draw and free of state.
    x = (clip.episode * 0x9E3779B1 + clip.index[:, i] * 0x85EBCA77 + 0x165667B1) & 0xFFFFFFFF
    for _ in range(2):
        x = ((x >> 16) ^ x) * 0x45D9F3B & 0xFFFFFFFF
    return ((x >> 16) ^ x) < options.target_share * 2**32
