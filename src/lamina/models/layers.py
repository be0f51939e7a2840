"""Transformer and convolution blocks shared by encoder, decoders, translator and policies."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from lamina import collective
from lamina.device import full_precision
from lamina.errors import LaminaError

MOST_PATCHES = 16_384  # of a picture: each attends to all


class MLP(nn.Sequential):
    """Linear, GELU, Linear. [... d] -> [... out]."""

    def __init__(self, width: int, hidden: int, out: int | None = None):
        super().__init__(nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, out or width))


class BatchNorm(_BatchNorm):
    """Batch normalisation [b c ...] without affine part, over the batch of all processes: torch.nn.SyncBatchNorm, which needs an
    accelerator, also on a CPU."""

    def __init__(self, width: int, momentum: float = 0.1):
        super().__init__(width, momentum=momentum, affine=False)

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of axes: torch's own classes for one, two and three of space differ in this check alone."""

    def forward(self, input: Float[Tensor, "b c *s"]) -> Float[Tensor, "b c *s"]:
        # In a calibration (momentum None) every process sees the same batches.
        if not (self.training and collective.several() and self.momentum is not None):
            return super().forward(input)
        x, others = input.float(), [0, *range(2, input.ndim)]
        n = collective.total(torch.tensor(float(x.numel() // x.shape[1]), device=x.device))
        mean = collective.total(x.sum(others, keepdim=True)) / n
        variance = collective.total((x - mean).square().sum(others, keepdim=True)) / n
        with torch.no_grad():
            assert self.running_mean is not None and self.running_var is not None
            assert self.num_batches_tracked is not None
            self.running_mean.lerp_(mean.flatten(), self.momentum)
            self.running_var.lerp_(variance.flatten() * n / (n - 1), self.momentum)
            self.num_batches_tracked += 1
        return ((x - mean) / (variance + self.eps).sqrt()).to(input.dtype)


def attend(
    q: Float[Tensor, "b n d"],
    k: Float[Tensor, "b m d"],
    v: Float[Tensor, "b m d"],
    heads: int,
    mask: Bool[Tensor, "#b n m"] | None = None,
) -> Float[Tensor, "b n d"]:
    """Multi-head scaled dot-product attention on projected queries, keys and values. ``mask``: which keys a query sees (None: all)."""
    q, k, v = (rearrange(x, "b n (h e) -> b h n e", h=heads) for x in (q, k, v))
    seen = None if mask is None else mask.unsqueeze(1)
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        # torch's backward pass in bf16 takes three times as long as in fp32 on a CPU (bench/model.py).
        with full_precision(q.device):
            out = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), seen).to(q.dtype)
    else:
        out = F.scaled_dot_product_attention(q, k, v, seen)
    return rearrange(out, "b h n e -> b n (h e)")


class SelfAttention(nn.Module):
    """Self-attention over all tokens; the first ``skip`` tokens are keys and values only, without outputs. [b n d] -> [b n-skip d]."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "b n d"], skip: int = 0) -> Float[Tensor, "b m d"]:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.out(attend(q[:, skip:], k, v, self.heads))


class TransformerBlock(nn.Module):
    """Pre-norm transformer block: self-attention, then MLP. ``skip``: see :class:`SelfAttention`."""

    def __init__(self, width: int, heads: int, expansion: int = 4):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads)
        self.mlp = MLP(width, expansion * width)

    def forward(self, x: Float[Tensor, "b n d"], skip: int = 0) -> Float[Tensor, "b m d"]:
        x = x[:, skip:] + self.attention(self.norm1(x), skip)
        return x + self.mlp(self.norm2(x))


class CrossAttentionBlock(nn.Module):
    """Pre-norm block of query slots: self-attention, cross-attention to a context, MLP.

    Queries that do not depend on the context have batch size 1, so their self-attention is computed once.
    """

    def __init__(self, width: int, heads: int, expansion: int = 4):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads)
        self.q, self.kv, self.out = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.mlp = MLP(width, expansion * width)

    def forward(self, x: Float[Tensor, "#b k d"], context: Float[Tensor, "b p d"]) -> Float[Tensor, "b k d"]:
        x = x + self.attention(self.norm1(x))
        q = self.q(self.norm2(x)).expand(len(context), -1, -1)
        k, v = self.kv(context).chunk(2, dim=-1)
        x = x + self.out(attend(q, k, v, self.heads))
        return x + self.mlp(self.norm3(x))


class AdaLNBlock(nn.Module):
    """DiT block with AdaLN-zero: shift, scale and gate of both halves come from a condition vector (DiT, Peebles & Xie).

    ``skip``: see :class:`SelfAttention`.
    """

    def __init__(self, width: int, heads: int, expansion: int = 4):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False)
        self.attention = SelfAttention(width, heads)
        self.mlp = MLP(width, expansion * width)
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(
        self, x: Float[Tensor, "b n d"], condition: Float[Tensor, "b d"], skip: int = 0
    ) -> Float[Tensor, "b m d"]:
        parts = self.modulate(condition)
        return self.after(x[:, skip:], self.attention(self.before(x, parts), skip), parts)

    def modulate(self, condition: Float[Tensor, "b d"]) -> tuple[Float[Tensor, "b 1 d"], ...]:
        """Shift, scale and gate of the attention and of the MLP."""
        return self.modulation(F.silu(condition)).unsqueeze(1).chunk(6, dim=-1)

    def before(self, x: Float[Tensor, "b n d"], parts: tuple[Float[Tensor, "#b 1 d"], ...]) -> Float[Tensor, "b n d"]:
        """What the attention reads."""
        shift, scale, *_ = parts
        return self.norm1(x) * (1 + scale) + shift

    def after(
        self,
        x: Float[Tensor, "b n d"],
        attended: Float[Tensor, "b n d"],
        parts: tuple[Float[Tensor, "#b 1 d"], ...],
    ) -> Float[Tensor, "b n d"]:
        """The residual stream with the attention's output and the MLP's."""
        _, _, gate1, shift, scale, gate2 = parts
        x = x + gate1 * attended
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale) + shift)


GROUPS = 8  # of a group norm


def group_norm(channels: int, affine: bool = True) -> nn.GroupNorm:
    """Raises LaminaError for channels that do not divide into groups."""
    if channels % GROUPS:
        raise LaminaError(f"--channels must be a multiple of {GROUPS}, got {channels}")
    return nn.GroupNorm(GROUPS, channels, affine=affine)


class ConvBlock(nn.Module):
    """Pre-activation residual block of two 3x3 convolutions. [b c h w] -> [b c h w]."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm1, self.norm2 = group_norm(channels), group_norm(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        y = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(y)))


BLOCKS = (TransformerBlock, CrossAttentionBlock, AdaLNBlock, ConvBlock)


def repeated(module: nn.Module) -> list[nn.Module]:
    """The repeated units in ``module``, each once: what torch.compile compiles, FSDP2 shards and activation checkpointing computes again.

    They are our blocks, and the layers of other libraries that a part names in its property ``units``.
    """
    found = {id(part): part for part in module.modules() if isinstance(part, BLOCKS)}
    for part in module.modules():
        found |= {id(unit): unit for unit in getattr(part, "units", ())}
    return list(found.values())


def recompute(unit: nn.Module) -> None:
    """From now on, the activations of ``unit`` are computed again in the backward pass instead of kept (Chen et al. 2016).

    Names of parameters stay what they are.
    """
    unit.forward = partial(checkpoint, unit.forward, use_reentrant=False)  # type: ignore[method-assign]


def patch_count(image: tuple[int, int, int], patch: int, width: int, heads: int) -> int:
    """Patches of a picture (channels, height, width). Raises LaminaError if patches or heads do not divide evenly, or are too many."""
    _, high, wide = image
    if high % patch or wide % patch:
        raise LaminaError(
            f"image {high}x{wide} is not a multiple of the transformer's patch {patch}; set --image or --patch"
        )
    if width % heads:
        raise LaminaError(f"width {width} is not a multiple of {heads} heads; set --width or --heads")
    patches = (high // patch) * (wide // patch)
    if patches > MOST_PATCHES:
        raise LaminaError(
            f"image {high}x{wide} has {patches} patches of {patch} pixels, at most {MOST_PATCHES} can be; set --patch"
        )
    return patches


def patchify(images: Float[Tensor, "b c h w"], patch: int) -> Float[Tensor, "b p d"]:
    """Non-overlapping patches as vectors, row by row."""
    return rearrange(images, "b c (h x) (w y) -> b (h w) (c x y)", x=patch, y=patch)


def unpatchify(tokens: Float[Tensor, "b p d"], patch: int, height: int) -> Float[Tensor, "b c h w"]:
    """The inverse of :func:`patchify`; ``height`` of the picture in pixels."""
    return rearrange(tokens, "b (h w) (c x y) -> b c (h x) (w y)", x=patch, y=patch, h=height // patch)


def position_embedding(tokens: int, width: int) -> nn.Parameter:
    """A learned absolute position embedding, [tokens width]."""
    return nn.Parameter(torch.randn(tokens, width) * 0.02)
