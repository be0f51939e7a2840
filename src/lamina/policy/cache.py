"""Keys and values of all tokens that a decision may see, for rows (episodes) that may be at different frames."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

EMPTY = -1  # the tag of a slot that holds nothing; also the "frame" of the block before an episode, which is nothing


class Cache:
    """The last ``context`` frames in slots of fixed place, which are overwritten when they have left the context:

        [ codes being generated, backwards | two latest observations | ring of retained observations | ring of code blocks ]

    ``tag`` [b s] is the frame that a slot's token belongs to. Together with the kind of the slot it says who may see the token
    (:func:`lamina.policy.tokens.visible`). Keys are kept as they were turned by RoPE, at their place in the episode: the turn
    between two tokens depends on their distance alone, so nothing has to change when the context slides.
    """

    def __init__(
        self,
        layers: int,
        batch: int,
        kv_heads: int,
        head_dim: int,
        patches: int,
        slots: int,
        context: int,
        stride: int,
        like: Tensor,
    ):
        self.patches, self.slots, self.context, self.stride = patches, slots, context, stride
        self.retained = context // stride + 1
        self.scratch = slots
        self.ring = self.scratch + 2 * patches
        self.codes = self.ring + self.retained * patches
        self.size = self.codes + context * slots  # the block of t - 1 still sees that of t - context
        shape = (layers, batch, kv_heads, self.size, head_dim)
        self.keys, self.values = like.new_zeros(shape), like.new_zeros(shape)
        self.tag = torch.full((batch, self.size), EMPTY, device=like.device)
        self.bias = like.new_zeros(batch, 1, slots + patches, self.size)
        self.keeps = torch.arange(self.size, device=like.device) >= self.ring
        later = torch.ones(slots, slots, dtype=torch.bool, device=like.device).triu(1)
        self.within = like.new_zeros(slots, slots).masked_fill_(later, -torch.inf)  # a block's own codes
        self.used = self.codes

    def clear(self, rows: Sequence[int]) -> None:
        """Forget these rows."""
        self.tag[list(rows)] = EMPTY

    def begin(self, t: Int[Tensor, "b"], latest: int, block: bool) -> None:
        """Make room for the newest tokens: the code block of t - 1 (if ``block``) and the observation of t. ``latest``: max(t)."""
        context, slots = self.context, self.slots
        self.used = self.codes + min(latest, context) * slots  # slots beyond were never used
        here = slice(slots, self.used)
        t = t.unsqueeze(1)

        def past(now: Tensor) -> Float[Tensor, "b 1 1 s"]:
            tag = self.tag[:, here]
            seen = (tag >= 0) & (tag < now) & (tag > now - context) & self.keeps[here]
            return torch.where(seen, 0.0, -torch.inf)[:, None, None]

        p = torch.arange(self.patches, device=t.device)
        ring = self.ring + t // self.stride % self.retained * self.patches
        where = torch.where(t % self.stride == 0, ring, self.scratch + t % 2 * self.patches) + p
        if block:
            j = torch.arange(slots, device=t.device)
            before = self.codes + (t - 1).clamp_min(0) % context * slots + j
            rows = self.bias[:, :, :slots, here]
            rows.copy_(past(t - 1).masked_fill_((self.tag[:, here] == t - 1)[:, None, None], 0.0))  # and all of x_{t-1}
            own = (before - slots)[:, None, None].expand(-1, 1, slots, -1)
            rows.scatter_(3, own, self.within.expand(len(t), 1, -1, -1))
            self.tag.scatter_(1, before, (t - 1).expand_as(before))
        self.tag.scatter_(1, where, t.expand_as(where))
        rows = self.bias[:, :, slots:, here]
        rows.copy_(past(t).masked_fill_((self.tag[:, here] == t)[:, None, None], 0.0))
        self.where = (torch.cat([before, where], dim=1) if block else where)[:, None, :, None]
        self.seen = F.pad(rows[:, :, :1], (slots, 0))  # what the codes of t see, each other included

    def newest(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Float[Tensor, "b h m e"]:
        """Take in keys and values [b g n e] of the newest tokens; what their last m queries read."""
        keys, values = self.keys[layer], self.values[layer]
        index = self.where.expand_as(k)
        keys.scatter_(2, index, k)
        values.scatter_(2, index, v)
        here = slice(self.slots, self.used)
        bias = self.bias[:, :, self.slots + self.patches - q.shape[2] :, here]
        return F.scaled_dot_product_attention(q, keys[:, :, here], values[:, :, here], bias, enable_gqa=True)

    def generated(
        self, layer: int, q: Float[Tensor, "b h e"], k: Float[Tensor, "b g e"], v: Float[Tensor, "b g e"], j: int
    ) -> Float[Tensor, "b h e"]:
        """The same for the j-th code that is being generated, one query a row."""
        place = self.slots - 1 - j  # backwards, so that all slots in use stay side by side
        keys, values = self.keys[layer], self.values[layer]
        keys[:, :, place], values[:, :, place] = k, v
        keys, values = keys[:, :, place : self.used], values[:, :, place : self.used]
        grouped = q.view(len(q), k.shape[1], -1, q.shape[2])  # queries that share a key-value head
        return F.scaled_dot_product_attention(grouped, keys, values, self.seen[..., place:]).flatten(1, 2)
