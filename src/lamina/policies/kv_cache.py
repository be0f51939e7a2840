"""Keys and values of all tokens that a decision may attend to, for rows (episodes) that may be at different frames."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


class KeyValueCache:
    """The last ``context`` frames, each token in a slot that follows from its frame and is overwritten when that has left the context:

        [ codes being generated, backwards | two latest observations | ring of retained observations | ring of code blocks ]

    The attention mask (:func:`lamina.policies.token_model.visible`) is then a function of the rows' frame numbers, and a row that is set
    back to frame 0 attends to nothing of before. Keys are stored with RoPE at their position in the episode: the relative rotation of two
    tokens depends on their distance only, so nothing changes when the context slides.
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
        self.blocks = context  # the block of t - 1 still sees that of t - context
        self.retained = context // stride + 1
        self.scratch = slots
        self.ring = self.scratch + 2 * patches
        self.codes = self.ring + self.retained * patches
        self.used = self.size = self.codes + self.blocks * slots
        shape = (layers, batch, kv_heads, self.size, head_dim)
        self.keys, self.values = like.new_zeros(shape), like.new_zeros(shape)
        self.bias = like.new_zeros(batch, 1, slots + patches, self.size)
        later = torch.ones(slots, slots, dtype=torch.bool, device=like.device).triu(1)
        self.within = like.new_zeros(slots, slots).masked_fill_(later, -torch.inf)  # of a block's own codes

    def held(self, t: Int[np.ndarray, "b"]) -> Int[np.ndarray, "b n"]:
        """The frame whose tokens lie in each scratch, ring and code block of a row at frame t; below 0: none."""
        t = t[:, None]
        scratch = t - (t - np.arange(2)) % 2
        scratch = np.where(scratch % self.stride == 0, -1, scratch)  # those are in the ring
        latest = t // self.stride
        ring = (latest - (latest - np.arange(self.retained)) % self.retained) * self.stride
        codes = t - 1 - (t - 1 - np.arange(self.blocks)) % self.blocks
        return np.concatenate([scratch, ring, codes], axis=1)

    def visible(self, held: Int[np.ndarray, "b n"], now: Int[np.ndarray, "b 1"]) -> Bool[np.ndarray, "b s"]:
        """Which slots from the scratch on the tokens of frame ``now`` see; of their own code block, all."""
        kinds = [2, self.retained, self.blocks]
        kept, code = np.repeat([False, True, True], kinds), np.repeat([False, False, True], kinds)
        seen = (held >= 0) & (held > now - self.context) & ((held < now) & kept | (held == now))
        return np.repeat(seen, np.where(code, self.slots, self.patches), axis=1)[:, : self.used - self.slots]

    def begin(self, t: Int[np.ndarray, "b"], block: bool) -> None:
        """Make room for the newest tokens: the code block of t - 1 (if ``block``) and the observation of t."""
        slots, patches, device = self.slots, self.patches, self.keys.device
        self.used = self.codes + min(int(t.max()), self.blocks) * slots  # what lies beyond was never used
        held, now = self.held(t), t[:, None]
        before = self.codes + np.maximum(t - 1, 0) % self.blocks * slots
        ring = self.ring + t // self.stride % self.retained * patches
        latest = np.where(t % self.stride == 0, ring, self.scratch + t % 2 * patches)
        seen = np.stack([self.visible(held, now - 1), self.visible(held, now)], axis=1)
        rows = torch.from_numpy(np.where(seen, np.float32(0), np.float32(-np.inf))).to(device)[:, None]
        bias = self.bias[..., slots : self.used]
        bias[:, :, slots:] = rows[:, :, 1:]
        where = latest[:, None] + np.arange(patches)
        if block:
            bias[:, :, :slots] = rows[:, :, :1]
            for row, start in enumerate((before - slots).tolist()):
                bias[row, 0, :slots, start : start + slots] = self.within
            where = np.concatenate([before[:, None] + np.arange(slots), where], axis=1)
        self.where = torch.from_numpy(where).to(device)[:, None, :, None]
        self.seen = F.pad(rows[:, :, 1:], (slots, 0))  # what the codes of t see: each other too

    def newest(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Float[Tensor, "b h m e"]:
        """Take in keys and values [b g n e] of the newest tokens; what their last m queries read."""
        keys, values = self.keys[layer], self.values[layer]
        index = self.where.expand_as(k)
        keys.scatter_(2, index, k.to(keys.dtype))  # which is float32: what is kept must not lose by being kept
        values.scatter_(2, index, v.to(values.dtype))
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
