"""The practical LAM of §5 and App. C on the 4x4 grid: convolutional inverse dynamics, vector quantisation, a small U-Net, and two remedies.

Table 2's sizes in the smallest network that has them. Pixels are in [0, 1], so that errors read in units of the noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
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
from lamina.rng import Rng
from lamina.types import Clip, Latent

Variant = Literal["vanilla", "cross_exogenous", "robust_target"]


@dataclass(frozen=True)
class Config:
    """Table 2. Strides, the kernel of 3 and GELU are ours, as is where z enters the U-Net: at its input, spread over all cells."""

    encoder: tuple[int, int, int] = (128, 128, 128)
    hidden: int = 64
    decoder: tuple[int, int, int, int] = (32, 32, 32, 32)
    dim: int = 32  # d_z
    codes: int = 5  # K
    commitment: float = 0.25


class PracticalLAM(nn.Module):
    """Frames are grey, [b 1 4 4] in [0, 1]; a latent is one slot."""

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
    """Per-sample terms of a variant: Eq. 5; with ``cross_exogenous`` Eq. 16 (predict o' from o and the twin's latent); with
    ``robust_target`` Eq. 19 on one-hot actions, a mean over the labelled rows of the batch (the others' targets are NaN)."""
    src, dst = pixels(batch.frames)
    if variant == "cross_exogenous":
        assert batch.paired is not None
        twin_src, twin_dst = pixels(batch.paired)
        both = model.encode(torch.cat([src, twin_src]), torch.cat([dst, twin_dst]))
        own, twin = both[: len(src)], both[len(src) :]
        cross = {"cross_exogenous": squared_error(model.predict(src, twin.post), dst)}
        commitment = (own.aux["commitment"] + twin.aux["commitment"]) / 2
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
    """lambda = 1 for either remedy (Table 2)."""
    remedy: dict[str, float] = {} if variant == "vanilla" else {variant: 1.0}
    return {"reconstruction": 1.0, "commitment": config.commitment, **remedy}


def transitions(sigma: float, count: int, seed: int) -> Clip:
    """Transitions of the expert on its snaking path, with the twin view; ``action`` as a class. Raises LaminaError for none."""
    if count < 1:
        raise LaminaError(f"{count} transitions: at least one is needed")
    world = Grid(sigma, size=None)
    frames: list[np.ndarray] = []
    paired: list[np.ndarray] = []
    action: list[np.ndarray] = []
    episode: list[int] = []
    row: list[int] = []
    number = 0
    while len(frames) < count:
        steps = list(rollout(world, world.expert, seed, number))
        own, twin = (np.stack([s.observation.frames[c][..., 0] for s in steps]) for c in world.cameras)
        for i in range(len(steps) - 1):
            frames.append(own[i : i + 2])
            paired.append(twin[i : i + 2])
            action.append(steps[i].action)
            episode.append(number)
            row.append(i)
        number += 1
    index = torch.tensor(row[:count])[:, None] + torch.arange(2)
    own_view, twin_view = (torch.from_numpy(np.stack(x[:count]))[:, :, None] for x in (frames, paired))
    taken = torch.from_numpy(np.stack(action[:count])).float()[:, None].expand(-1, 2, -1)
    return Clip(own_view, index / world.fps, index, torch.tensor(episode[:count]), taken, paired=twin_view)


def label(clip: Clip, share: float, seed: int) -> tuple[Clip, Int[Tensor, "n"]]:
    """The clip with one-hot action targets on a random share of its rows (NaN elsewhere), and those rows."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(clip), generator=generator)[: max(1, round(share * len(clip)))]
    assert clip.action is not None
    target = torch.full((len(clip), 2, len(NAMES)), torch.nan)
    target[rows] = F.one_hot(clip.action[rows, :, 0].long(), len(NAMES)).float()
    clip.targets["action"] = target
    return clip, rows


class Batches:
    """An endless stream of random rows; a quarter of each batch is labelled, for every variant alike."""

    def __init__(self, clip: Clip, labelled: Int[Tensor, "n"], batch: int, seed: int):
        self.clip, self.labelled, self.batch, self.seed, self.drawn = clip, labelled, batch, seed, 0

    def __iter__(self) -> Iterator[Clip]:
        while True:
            self.drawn += 1
            chance = Rng(self.seed, self.drawn).uniform(self.batch)
            rows = (chance * len(self.clip)).long()
            few = self.batch // 4
            rows[:few] = self.labelled[(chance[:few] * len(self.labelled)).long()]
            yield self.clip[rows]

    def state_dict(self) -> dict[str, int]:
        return {"drawn": self.drawn}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.drawn = state["drawn"]

    def close(self) -> None:
        pass


@torch.no_grad()
def score(model: PracticalLAM, test: Clip) -> dict[str, float]:
    """Held-out figures: the paper's two (Consistency loss, Exogenous region MSE), and what they hide.

    ``consistency``: |z - ~z|^2, mean over dimensions. ``consistency by spread``: the same over 2 Var(z), 0 consistent, 1 no better than
    chance; 0 where all latents are alike. ``perplexity`` of the codes. ``exogenous`` and ``controllable``: squared error of the bottom
    row and of the rest, pixels in [0, 1].
    """
    model.eval()
    src, dst = pixels(test.frames)
    assert test.paired is not None
    own, twin = model.encode(src, dst), model.encode(*pixels(test.paired))
    error = (model.predict(src, own.post) - dst).square()
    gap = float((own.post - twin.post).square().mean())
    spread = 2 * float(own.post.var(0, correction=0).mean())
    assert own.index is not None
    share = torch.bincount(own.index.flatten(), minlength=2).double() / own.index.numel()
    return {
        "consistency": gap,
        "consistency by spread": gap / spread if spread > 1e-12 else 0.0,
        "exogenous": float(error[:, :, ROWS:].mean()),
        "controllable": float(error[:, :, :ROWS].mean()),
        "perplexity": float(torch.exp(-(share * share.clamp(min=1e-12).log()).sum())),
    }
