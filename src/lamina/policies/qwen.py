"""A decoder-only transformer in the style of Qwen3 (arXiv 2505.09388); it is agnostic to what its tokens represent.

RMSNorm before each half, rotary positions (RoPE), grouped-query attention whose queries and keys are RMS-normalised per head (QK-norm),
SwiGLU, no biases. The caller supplies the attention function: ``attend`` maps the queries, keys and values of a layer to its output, so
that one definition serves training (:func:`planned`), plain causal text (:func:`causal`) and decoding from a cache.

RoPE turns neighbouring channels (2i, 2i + 1) as one complex number; Qwen3's own code turns (i, i + e/2). The two differ by a fixed order
of the rows of the q and k projections, which no product of a query with a key sees (tests/test_policy_tokens.py undoes it).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Complex, Float, Int, Shaped
from torch import Tensor, nn

from lamina.errors import LaminaError

#: (layer, q [b h n e], k [b g n e], v [b g n e]) -> what the queries read, [b h m e] (m < n where only some rows are wanted)
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class QwenConfig:
    width: int = 128
    layers: int = 3
    heads: int = 4
    kv_heads: int = 2
    hidden: int = 384  # of the SwiGLU
    theta: float = 10_000.0  # base of RoPE: windows have some thousand tokens
    eps: float = 1e-6

    def __post_init__(self) -> None:
        if min(self.width, self.layers, self.heads, self.kv_heads, self.hidden) < 1:
            raise LaminaError("width, layers, heads, kv-heads and hidden of the token model must be at least 1")
        if self.width % (2 * self.heads) or self.heads % self.kv_heads:
            raise LaminaError(
                f"width {self.width} must be an even multiple of {self.heads} heads, and {self.heads} heads a multiple "
                f"of {self.kv_heads} kv-heads"
            )

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


def causal(layer: int, q: Float[Tensor, "b h n e"], k: Float[Tensor, "b g n e"], v: Float[Tensor, "b g n e"]) -> Tensor:
    """Every token attends to itself and to all before it."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


@dataclass(frozen=True)
class MaskChunk:
    """Some neighbouring queries and the only keys that any of them attends to."""

    rows: slice
    columns: slice | Int[Tensor, "m"]
    bias: Float[Tensor, "n m"]  # 0 where a query may attend, else -inf


@dataclass(frozen=True)
class ChunkedMask:
    """A fixed attention mask, cut into chunks of queries so that keys which none of them may see cost nothing."""

    chunks: tuple[MaskChunk, ...]

    @classmethod
    def of(cls, mask: Bool[Tensor, "n m"], chunk: int) -> ChunkedMask:
        """The plan of ``mask`` (True: may attend) in chunks of ``chunk`` queries."""
        chunks = []
        for start in range(0, len(mask), chunk):
            part = mask[start : start + chunk]
            used = part.any(0).nonzero().squeeze(1)
            together = int(used[-1]) - int(used[0]) + 1 == len(used)
            columns = slice(int(used[0]), int(used[-1]) + 1) if together else used
            bias = torch.zeros(part[:, columns].shape, device=mask.device).masked_fill_(~part[:, columns], -math.inf)
            chunks.append(MaskChunk(slice(start, start + len(part)), columns, bias))
        return cls(tuple(chunks))

    def __call__(
        self, q: Float[Tensor, "b h n e"], k: Float[Tensor, "b g m e"], v: Float[Tensor, "b g m e"]
    ) -> Float[Tensor, "b h n e"]:
        parts = []
        for c in self.chunks:
            keys, values = (x[:, :, c.columns] for x in (k, v))
            read = F.scaled_dot_product_attention(q[:, :, c.rows], keys, values, c.bias.to(q.dtype), enable_gqa=True)
            parts.append(read)
        return torch.cat(parts, dim=2)


def rotate(x: Float[Tensor, "b n h e"], rotation: Complex[Tensor, "*b n 1 e2"]) -> Float[Tensor, "b n h e"]:
    """RoPE: each pair of channels, a complex number, turned by its angle."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotation).flatten(-2)


class QwenBlock(nn.Module):
    """Pre-norm attention and SwiGLU."""

    def __init__(self, config: QwenConfig):
        super().__init__()
        c = self.config = config
        self.norm1, self.norm2 = nn.RMSNorm(c.width, c.eps), nn.RMSNorm(c.width, c.eps)
        self.qkv = nn.Linear(c.width, (c.heads + 2 * c.kv_heads) * c.head_dim, bias=False)
        self.q_norm, self.k_norm = nn.RMSNorm(c.head_dim, c.eps), nn.RMSNorm(c.head_dim, c.eps)
        self.out = nn.Linear(c.width, c.width, bias=False)
        self.gate_up = nn.Linear(c.width, 2 * c.hidden, bias=False)
        self.down = nn.Linear(c.hidden, c.width, bias=False)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        rotation: Complex[Tensor, "*b n 1 e2"],
        attend: Callable[[Tensor, Tensor, Tensor], Tensor],
        rows: slice | Int[Tensor, "m"] | None = None,
    ) -> Float[Tensor, "b m d"]:
        """``rows``: the only tokens whose output is wanted; all give keys and values."""
        c = self.config
        qkv = self.qkv(self.norm1(x)).unflatten(-1, (-1, c.head_dim))
        q, k, v = qkv.split([c.heads, c.kv_heads, c.kv_heads], dim=2)
        turned = rotation
        if rows is not None:
            x, q, turned = x[:, rows], q[:, rows], rotation[..., rows, :, :]
        q, k = rotate(self.q_norm(q), turned), rotate(self.k_norm(k), rotation)
        read = attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        x = x + self.out(read.transpose(1, 2).flatten(2))
        gate, up = self.gate_up(self.norm2(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


class Qwen(nn.Module):
    """The stack of blocks and the last norm: embeddings in, hidden states out."""

    def __init__(self, config: QwenConfig):
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(QwenBlock(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width, config.eps)
        exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
        self.frequency = config.theta**-exponent  # no buffer: float64 stays on the CPU
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                # Projections into the residual stream start smaller, so that its size does not grow with depth (GPT-2).
                scale = (2 * config.layers) ** -0.5 if name.endswith(("out.weight", "down.weight")) else 1.0
                nn.init.normal_(parameter, std=0.02 * scale)

    def rotation(self, positions: Shaped[Tensor, "*b n"]) -> Complex[Tensor, "*b n 1 e2"]:
        """The turn of each token's channel pairs. Angles in float64: an episode may have hundreds of thousands of tokens."""
        angles = positions.to("cpu", torch.float64).unsqueeze(-1) * self.frequency
        return torch.polar(torch.ones_like(angles), angles).to(self.norm.weight.device, torch.complex64).unsqueeze(-2)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        rotation: Complex[Tensor, "*b n 1 e2"],
        attend: Attend = causal,
        rows: slice | Int[Tensor, "m"] | None = None,
    ) -> Float[Tensor, "b m d"]:
        """``rows``: the only tokens whose hidden state is wanted (all by default); the last block then skips the rest."""
        last = len(self.blocks) - 1
        for layer, block in enumerate(self.blocks):

            def read(q: Tensor, k: Tensor, v: Tensor, layer: int = layer) -> Tensor:
                return attend(layer, q, k, v)

            x = block(x, rotation, read, rows if layer == last else None)
        return self.norm(x)
