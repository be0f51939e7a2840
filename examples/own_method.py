"""A method of one's own in one file: FlexLAM with a penalty on the length of its latents.

lamina train examples/own_method.py --data data/doom --out runs/own --penalty 0.01
"""

from dataclasses import dataclass

from lamina.methods import flexlam
from lamina.methods.base import LossOutput, pair_losses


@dataclass(frozen=True)
class Config(flexlam.Config):
    penalty: float = 0.01
    """weight of the squared length of a latent"""


build = flexlam.build


def weights(config):
    return {"reconstruction": 1.0, "length": config.penalty}


def losses(config):
    def compute(lam, view, rng):
        found = pair_losses(lam, view, rng)
        length = sum(z.pre.square().mean((1, 2)) for z in found.latents.own.values()) / len(found.latents.own)
        return LossOutput({**found.terms, "length": length}, found.latents)

    return compute
