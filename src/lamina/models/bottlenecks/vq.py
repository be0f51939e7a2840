"""Vector quantisation: one codebook, or one for each part of the code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from lamina import collective
from lamina.device import full_precision
from lamina.errors import LaminaError
from lamina.models.bottlenecks.base import Bottleneck
from lamina.records import CodebookSize, Count, CountOrZero, Layers, Share
from lamina.types import Latent


class VQ(Bottleneck):
    """Vector quantisation with an EMA codebook and dead-code reset (van den Oord et al. 2017; Razavi et al. 2019, App. A.1).

    A code whose moving count falls below ``dead_below`` is replaced, inside the step, by an encoder output of the batch; the
    first training batch fills the whole codebook this way. ``gradient="noise"`` is NSVQ (Vali & Backstrom 2022): the error is
    replaced by noise of the same length, so the encoder sees how far it is from a code. ``aux["commitment"]`` is
    |x - sg(e)|^2, mean over k and d.
    """

    codebook: Tensor
    count: Tensor
    total: Tensor
    updates: Tensor
    calibration: int | None = None  # batches of a calibration so far (:mod:`lamina.models.calibration`); None: training

    @dataclass(frozen=True)
    class Config:
        codebook_size: CodebookSize = 256
        dim: Count = 32
        decay: Share = 0.99
        dead_below: Share = 0.05
        gradient: Literal["straight-through", "noise"] = "straight-through"

    def __init__(
        self,
        codebook_size: int,
        dim: int,
        decay: float = 0.99,
        dead_below: float = 0.05,
        gradient: str = "straight-through",
    ):
        super().__init__()
        if codebook_size < 2 or dim < 1:
            raise LaminaError(f"VQ needs at least 2 codes of at least 1 channel, got {codebook_size} of {dim}")
        self.dim, self.codebook_size, self.decay, self.dead_below = dim, codebook_size, decay, dead_below
        self.gradient = gradient
        self.register_buffer("codebook", torch.randn(codebook_size, dim))
        self.register_buffer("count", torch.zeros(codebook_size))
        self.register_buffer("total", torch.zeros(codebook_size, dim))
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    def forward(self, x: Float[Tensor, "b k d"]) -> Latent:
        z = x.float()
        flat = z.detach().flatten(0, 1)
        if self.training and (self.calibration is None or not int(self.updates)):
            self._reset_dead(flat)
        # |x|^2 is the same for every code, so the nearest code needs only the other two terms. In float32 always: bf16 would pick others.
        with full_precision(flat.device):
            distance = self.codebook.square().sum(-1) - 2 * flat @ self.codebook.T
        index = distance.argmin(-1)
        code = F.embedding(index, self.codebook).view_as(z)
        if self.training:
            self._update(flat, index)
        commitment = (z - code).square().mean(dim=(1, 2))
        if self.gradient == "noise" and self.training:
            error = (z - code).norm(dim=-1, keepdim=True)
            # The direction is a fixed function of the update number: a resumed run meets the same noise.
            noise = collective.normal(z.shape, int(self.updates), z.device)
            post = z + error * noise / noise.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        else:
            post = code + (z - z.detach())  # in this order post is the code to the last bit
        return Latent(pre=x, post=post, index=index.view(z.shape[:2]), aux={"commitment": commitment})

    def index_to_codes(self, index: Int[Tensor, "b k"]) -> Float[Tensor, "b k d"]:
        """The vectors of codebook entries."""
        return F.embedding(index, self.codebook)

    @torch.no_grad()
    def _reset_dead(self, flat: Float[Tensor, "n d"]) -> None:
        dead = self.count < self.dead_below
        if not bool(dead.any()):
            return
        if self.calibration is None:
            flat = collective.whole(flat)
        generator = torch.Generator().manual_seed(int(self.updates))
        wanted = int(dead.sum())
        rows = torch.randint(len(flat), (wanted,), generator=generator).to(flat.device)
        # Jitter keeps codes apart that drew the same donor.
        spread = flat.std(0, correction=0) * 0.01
        donors = flat[rows] + spread * torch.randn(wanted, self.dim, generator=generator).to(flat.device)
        self.codebook[dead] = donors
        self.count[dead] = 1.0
        self.total[dead] = donors

    @torch.no_grad()
    def _update(self, flat: Float[Tensor, "n d"], index: Int[Tensor, "n"]) -> None:
        count = torch.zeros_like(self.count).index_add_(0, index, torch.ones_like(index, dtype=torch.float))
        total = torch.zeros_like(self.total).index_add_(0, index, flat)
        decay = self.decay
        if self.calibration is not None:  # every process sees the same batches then
            decay, self.calibration = self.calibration / (self.calibration + 1), self.calibration + 1
        else:
            count, total = collective.total(count), collective.total(total)
        self.count.lerp_(count, 1 - decay)
        self.total.lerp_(total, 1 - decay)
        used = self.count > 1e-6
        self.codebook[used] = self.total[used] / self.count[used].unsqueeze(-1)
        self.updates += 1


class SplitVQ(Bottleneck):
    """Groups of slots, each with a VQ codebook of its own: the slots are shared out evenly, in their order (UniVLA).

    Entries of group g have the numbers g n to g n + n - 1 in ``index``; ``aux["commitment_g"]`` is that of the group. The codebooks
    of the groups ``frozen`` stay as they are in training.
    """

    @dataclass(frozen=True)
    class Config:
        groups: Layers = 2
        codebook_size: CodebookSize = 16
        dim: Count = 32
        decay: Share = 0.99
        dead_below: Share = 0.05
        frozen: Annotated[tuple[CountOrZero, ...], Field(max_length=256)] = ()

    def __init__(self, groups: int, frozen: Sequence[int] = (), **vq: Any):
        super().__init__()
        if not set(frozen) <= set(range(groups)):
            raise LaminaError(f"of {groups} groups of slots, the codebooks {tuple(frozen)} cannot be frozen")
        self.parts = nn.ModuleList([VQ(**vq) for _ in range(groups)])
        self.frozen = tuple(frozen)
        self.dim, self.codebook_size, self.group_size = vq["dim"], groups * vq["codebook_size"], vq["codebook_size"]

    @property
    def slot_codes(self) -> int:
        return self.group_size

    @property
    def frozen_parts(self) -> list[nn.Module]:
        """The codebooks that stay as they are."""
        return [self.parts[group] for group in self.frozen]

    def train(self, mode: bool = True) -> SplitVQ:
        super().train(mode)
        for part in self.frozen_parts:
            part.eval()
        return self

    def forward(self, x: Float[Tensor, "b k d"]) -> Latent:
        if self.training and any(int(part.updates) == 0 for part in self.frozen_parts):  # type: ignore[arg-type]
            raise LaminaError(
                "a codebook that is frozen was never trained: start from a run that has trained it (--init RUN)"
            )
        latents = [vq(part) for vq, part in zip(self.parts, x.chunk(len(self.parts), dim=1), strict=True)]
        return Latent(
            pre=x,
            post=torch.cat([latent.post for latent in latents], dim=1),
            index=torch.cat([latent.index + g * self.group_size for g, latent in enumerate(latents)], dim=1),
            aux={f"commitment_{g}": latent.aux["commitment"] for g, latent in enumerate(latents)},
        )

    def index_to_codes(self, index: Int[Tensor, "b k"]) -> Float[Tensor, "b k d"]:
        """The vectors of codebook entries."""
        return F.embedding(index, torch.cat([vq.get_buffer("codebook") for vq in self.parts]))
