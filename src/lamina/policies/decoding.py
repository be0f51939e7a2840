"""The fast path of the token model: one code at a time, without the generic attention layer around it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Complex, Float
from torch import Tensor

from lamina.policies.qwen import Attend, Qwen, QwenBlock, QwenConfig


class TokenDecoder:
    """One token a row through a :class:`Qwen` that no longer changes, for decoding: the same arithmetic in half the operations.

    With one token an operation costs more than its arithmetic. Gains of the norms are multiplied into the weights that follow,
    queries and keys are normalised and turned together, and a mean square is a product of matrices. Weights are copied: make
    a new one when they change.
    """

    def __init__(self, core: Qwen):
        self.config = c = core.config
        self.eps = core.norm.weight.new_tensor(c.eps)
        self.gain = core.norm.weight.detach()
        self.layers = [self._layer(block, c) for block in core.blocks]  # type: ignore[arg-type]

    @staticmethod
    @torch.no_grad()
    def _layer(block: QwenBlock, c: QwenConfig) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        gain = torch.cat([block.q_norm.weight.expand(c.heads, -1), block.k_norm.weight.expand(c.kv_heads, -1)])
        qkv, gate_up = block.qkv.weight * block.norm1.weight, block.gate_up.weight * block.norm2.weight
        return qkv, gain, block.out.weight.detach(), gate_up, block.down.weight.detach()

    def normalised(self, x: Float[Tensor, "n 1 d"]) -> Float[Tensor, "n 1 d"]:
        """x / sqrt(mean(x^2) + eps)."""
        return x * torch.baddbmm(self.eps, x, x.transpose(1, 2), alpha=1 / x.shape[2]).rsqrt_()

    def __call__(
        self, x: Float[Tensor, "b 1 d"], rotation: Complex[Tensor, "b 1 e2"], attend: Attend
    ) -> Float[Tensor, "b 1 d"]:
        """The hidden states. ``attend(layer, q [b h e], k [b g e], v [b g e])`` returns what was read, [b (h e)]."""
        c, b = self.config, len(x)
        both = c.heads + c.kv_heads
        for layer, (qkv, gain, out, gate_up, down) in enumerate(self.layers):
            heads = F.linear(self.normalised(x), qkv).view(b, both + c.kv_heads, c.head_dim)
            qk = self.normalised(heads[:, :both].reshape(b * both, 1, c.head_dim)).view(b, both, c.head_dim) * gain
            qk = torch.view_as_real(torch.view_as_complex(qk.view(b, both, -1, 2)) * rotation).view(b, both, c.head_dim)
            read = attend(layer, qk[:, : c.heads], qk[:, c.heads :], heads[:, both:])
            x = x + F.linear(read.view(b, 1, -1), out)
            gate, up = F.linear(self.normalised(x), gate_up).chunk(2, dim=-1)
            x = x + F.linear(F.silu(gate).mul_(up), down)
        return self.normalised(x) * self.gain
