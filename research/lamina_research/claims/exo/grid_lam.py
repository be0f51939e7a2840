"""The practical LAM of §5 and App. C on the 4x4 grid: convolutional encoder, vector quantisation, small U-Net, two auxiliary losses.

The smallest network with the sizes of Table 2. Pixels are in [0, 1], so that errors are in units of the noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from lamina.envs.base import rollout
from lamina.envs.grid import NAMES, ROWS, Grid
from lamina.errors import LaminaError
from lamina.losses.reconstruction import squared_error
from lamina.models.bottlenecks.vq import VQ
from lamina.models.code_usage import slot_use
from lamina.rng import Rng
from lamina.training.labelled import Minibatches
from lamina.types import Clip, Latent

Variant = Literal["vanilla", "cross_exogenous", "robust_target"]


@dataclass(frozen=True)
class Config:
    """Table 2. The paper does not give strides, the kernel (3), the activation (GELU) and where z enters the U-Net (at its input, at
    all cells); these are our choice."""

    encoder: tuple[int, int, int] = (128, 128, 128)
    hidden: int = 64
    decoder: tuple[int, int, int, int] = (32, 32, 32, 32)
    dim: int = 32  # d_z
    codes: int = 5  # K
    commitment: float = 0.25


class PracticalLAM(nn.Module):
    """Frames are grey, in [0, 1]; the latent has one slot."""

    def __init__(self, config: Config):
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs, stride in zip((2, *config.encoder), config.encoder, (1, 2, 2), strict=False):
            layers += [nn.Conv2d(inputs, outputs, 3, stride, 1), nn.GELU()]  # 4x4, 2x2, one cell
        self.encoder = nn.Sequential(
            *layers, nn.Flatten(), nn.Linear(config.encoder[-1], config.hidden), nn.GELU(), nn.Linear(config.hidden, config.dim)
        )  # fmt: skip
        self.bottleneck = VQ(config.codes, config.dim)
        one, two, three, four = config.decoder
        self.fine = nn.Conv2d(1 + config.dim, one, 3, padding=1)
        self.coarse = nn.Conv2d(one, two, 3, 2, 1)
        self.grow = nn.ConvTranspose2d(two, three, 2, 2)
        self.merge = nn.Conv2d(one + three, four, 3, padding=1)
        self.output = nn.Conv2d(four, 1, 1)
        self.head = nn.Linear(config.dim, len(NAMES), bias=False)  # W of Eq. 19

    def encode(self, src: Float[Tensor, "b 1 h w"], dst: Float[Tensor, "b 1 h w"]) -> Latent:
        return self.bottleneck(self.encoder(torch.cat([src, dst], 1))[:, None])

    def predict(self, src: Float[Tensor, "b 1 h w"], z: Float[Tensor, "b 1 d"]) -> Float[Tensor, "b 1 h w"]:
        """The next frame."""
        everywhere = z.movedim(1, 2)[..., None].expand(-1, -1, *src.shape[-2:])
        fine = F.gelu(self.fine(torch.cat([src, everywhere], 1)))
        up = F.gelu(self.grow(F.gelu(self.coarse(fine))))
        return self.output(F.gelu(self.merge(torch.cat([fine, up], 1))))


def pixels(frames: Tensor) -> tuple[Float[Tensor, "b 1 h w"], Float[Tensor, "b 1 h w"]]:
    """Both frames of transitions, uint8 [b 2 1 h w], in [0, 1]."""
    src, dst = (frames.float() / 255).unbind(1)
    return src, dst


def losses(model: PracticalLAM, batch: Clip, variant: Variant) -> dict[str, Float[Tensor, "b"]]:
    """The terms of a variant: Eq. 5; with ``cross_exogenous`` Eq. 16 (predict o' from o and the paired view's latent); with
    ``robust_target`` Eq. 19 on one-hot actions, a mean over the labelled rows of the batch (the others' targets are NaN)."""
    src, dst = pixels(batch.frames)
    if variant == "cross_exogenous":
        assert batch.paired is not None
        paired_src, paired_dst = pixels(batch.paired)
        both = model.encode(torch.cat([src, paired_src]), torch.cat([dst, paired_dst]))
        own, paired = both[: len(src)], both[len(src) :]
        cross = {"cross_exogenous": squared_error(model.predict(src, paired.post), dst)}
        commitment = (own.aux["commitment"] + paired.aux["commitment"]) / 2
    else:
        own, cross = model.encode(src, dst), {}
        commitment = own.aux["commitment"]
    terms = {"reconstruction": squared_error(model.predict(src, own.post), dst), "commitment": commitment, **cross}
    if variant == "robust_target":
        target = batch.targets["action"][:, 0]
        labelled = ~target.isnan().any(1)
        error = (target.nan_to_num() - model.head(own.post[:, 0])).square().sum(1)
        terms["robust_target"] = error * labelled * len(labelled) / labelled.sum().clamp(min=1)
    return terms


def weights(config: Config, variant: Variant) -> dict[str, float]:
    """lambda = 1 for either auxiliary loss (Table 2)."""
    auxiliary: dict[str, float] = {} if variant == "vanilla" else {variant: 1.0}
    return {"reconstruction": 1.0, "commitment": config.commitment, **auxiliary}


def transitions(sigma: float, count: int, seed: int) -> Clip:
    """Transitions of the expert on its path through the grid, with the paired view. Raises LaminaError for a count below 1."""
    if count < 1:
        raise LaminaError(f"{count} transitions: at least one is needed")
    world = Grid(sigma, size=None)
    episodes: list[Clip] = []
    while sum(map(len, episodes)) < count:
        steps = list(rollout(world, world.expert, seed, len(episodes)))
        index = torch.arange(len(steps) - 1)[:, None] + torch.arange(2)
        own, paired = (
            torch.from_numpy(np.stack([step.observation.frames[camera][..., 0] for step in steps]))[index][:, :, None]
            for camera in world.cameras
        )
        action = torch.from_numpy(np.stack([step.action for step in steps[:-1]])).float()[:, None].expand(-1, 2, -1)
        episode = torch.full((len(index),), len(episodes))
        episodes.append(Clip(own, index / world.fps, index, episode, action, paired=paired))
    return Clip.cat(episodes)[:count]


def label(clip: Clip, share: float, seed: int) -> tuple[Clip, Int[Tensor, "n"]]:
    """The clip with one-hot action targets on a random share of its rows (NaN elsewhere), and those rows."""
    assert clip.action is not None
    order = torch.randperm(len(clip), generator=torch.Generator().manual_seed(seed))
    rows = order[: max(1, round(share * len(clip)))]
    target = torch.full((len(clip), 2, len(NAMES)), torch.nan)
    target[rows] = F.one_hot(clip.action[rows, :, 0].long(), len(NAMES)).float()
    return replace(clip, targets={"action": target}), rows


class Batches(Minibatches):
    """An endless stream of random rows; a quarter of each batch is labelled, for all variants alike."""

    def __init__(self, clip: Clip, labelled: Int[Tensor, "n"], batch: int, seed: int):
        super().__init__(clip, batch, seed)
        self.labelled = labelled

    def __iter__(self) -> Iterator[Clip]:
        while True:
            self.drawn += 1
            uniform = Rng(self.seed, self.drawn).uniform(self.batch)
            rows = (uniform * len(self.items)).long()
            quarter = self.batch // 4
            rows[:quarter] = self.labelled[(uniform[:quarter] * len(self.labelled)).long()]
            yield self.items[rows]


@torch.no_grad()
def score(model: PracticalLAM, test: Clip) -> dict[str, float]:
    """Held-out scores.

    ``consistency``: |z - ~z|^2, mean over dimensions (the paper's). ``consistency by spread``: the same divided by 2 Var(z); 0 is
    consistent, 1 is chance; 0 if all latents are equal. ``perplexity`` of the codes. ``exogenous`` (the paper's) and ``controllable``:
    squared error of the bottom row and of the other rows, pixels in [0, 1].
    """
    model.eval()
    src, dst = pixels(test.frames)
    assert test.paired is not None
    own, paired = model.encode(src, dst), model.encode(*pixels(test.paired))
    error = (model.predict(src, own.post) - dst).square()
    gap = float((own.post - paired.post).square().mean())
    spread = 2 * float(own.post.var(0, correction=0).mean())
    assert own.index is not None
    return {
        "consistency": gap,
        "consistency by spread": gap / spread if spread > 1e-12 else 0.0,
        "exogenous": float(error[:, :, ROWS:].mean()),
        "controllable": float(error[:, :, :ROWS].mean()),
        "perplexity": slot_use(own.index, len(model.bottleneck.codebook))[0].perplexity,
    }
