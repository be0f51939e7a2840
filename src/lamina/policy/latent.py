"""FlexLAM's Algorithm 1 as one object that a control loop calls.

    policy = LatentPolicy.from_run("runs/doom", k=4)
    policy.reset()
    action = policy.act(frame)      # again and again; k may be given anew each time

One decision encodes the transition that was just seen, predicts the first k codes of the next one, fills the rest with the null latent and
translates. Frames are embedded once; keys and values of what was seen stay in a cache, whose positions count from the episode's start and
are therefore never encoded again when the context slides.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Complex, Float, Int, Shaped, UInt8
from torch import Tensor

from lamina.align import Translator, load_translator
from lamina.errors import LaminaError
from lamina.lam import LatentActionModel
from lamina.policy.tokens import TokenModel, check_lam, load_tokens
from lamina.shapes import to_float
from lamina.worlds.base import Size

EMPTY = -1  # the tag of a slot that holds nothing


class Cache:
    """Keys and values of the tokens that may still be seen, in slots of fixed place:

        [generated codes, backwards | two latest observations | ring of retained observations | ring of code blocks]

    ``tag`` [b s] is the frame that a slot's token belongs to, and says all about who may see it; rows may be at different frames.
    """

    def __init__(self, model: TokenModel, batch: int):
        core, config = model.core.config, model.config
        self.context, self.stride = config.context, config.stride
        self.patches, self.slots = model.patches, model.slots
        self.blocks = config.context  # the block of t - 1 still sees the one of t - context
        self.retained = config.context // config.stride + 1
        self.scratch = self.slots
        self.ring = self.scratch + 2 * self.patches
        self.codes = self.ring + self.retained * self.patches
        self.size = self.codes + self.blocks * self.slots
        weight = model.head.weight
        shape = (core.layers, batch, core.kv_heads, self.size, core.head_dim)
        self.keys, self.values = weight.new_zeros(shape), weight.new_zeros(shape)
        self.tag = torch.full((batch, self.size), EMPTY, device=weight.device)
        slot = torch.arange(self.size, device=weight.device)
        self.keeps = slot >= self.ring
        #: place of a code in its block; -1 for observations, which are seen whole
        self.place = torch.where(slot >= self.codes, (slot - self.codes) % self.slots, -1)

    def clear(self, rows: Sequence[int]) -> None:
        self.tag[list(rows)] = EMPTY

    def used(self, latest: int) -> int:
        """The first slots, which are all that is in use if the row that is furthest is at frame ``latest``."""
        return self.codes + min(latest, self.blocks) * self.slots

    def take(self, t: Int[Tensor, "b"], block: bool) -> Int[Tensor, "b n"]:
        """The slots of the code block of t - 1 (if ``block``) and of the observation of t, tagged."""
        t = t.unsqueeze(1)
        p = torch.arange(self.patches, device=t.device)
        ring = self.ring + t // self.stride % self.retained * self.patches
        where = torch.where(t % self.stride == 0, ring, self.scratch + t % 2 * self.patches) + p
        self.tag.scatter_(1, where, t.expand_as(where))
        if not block:
            return where
        j = torch.arange(self.slots, device=t.device)
        before = self.codes + (t - 1).clamp_min(0) % self.blocks * self.slots + j
        self.tag.scatter_(1, before, (t - 1).expand_as(before))
        return torch.cat([before, where], dim=1)

    def visible(self, t: Int[Tensor, "b"], used: int, block: bool) -> Bool[Tensor, "b n s"]:
        """What the tokens of :meth:`take` may see of the slots between the generated codes and ``used``."""
        here = slice(self.slots, used)
        tag, keeps, place = self.tag[:, None, here], self.keeps[here], self.place[here]
        t = t[:, None, None]

        def past(now: Tensor) -> Tensor:
            return (tag >= 0) & (tag < now) & (tag > now - self.context) & keeps

        latest = (past(t) | (tag == t)).expand(-1, self.patches, -1)
        if not block:
            return latest
        j = torch.arange(self.slots, device=t.device)[:, None]
        return torch.cat([past(t - 1) | ((tag == t - 1) & (place <= j)), latest], dim=1)


class LatentPolicy:
    """Frames in, actions out (FlexLAM, Algorithm 1), for ``batch`` episodes at once.

    ``k``: codes that a decision predicts (all by default); ``temperature``: 0 takes the likeliest code, else codes are drawn from
    softmax(logits / temperature) by a generator of its own. Raises LaminaError if token model and translator do not fit the LAM.
    """

    def __init__(
        self,
        model: LatentActionModel,
        tokens: TokenModel,
        translator: Translator,
        k: int | None = None,
        batch: int = 1,
        temperature: float = 0.0,
        seed: int = 0,
    ):
        check_lam(tokens, model.lam)
        if batch < 1 or not temperature >= 0:
            raise LaminaError(
                f"a policy needs a batch of at least 1 and a temperature of at least 0, got {batch} and {temperature}"
            )
        self.lam, self.tokens, self.translator = model.lam.eval(), tokens.eval(), translator.eval()
        self.spec, self.image, self.batch, self.temperature = (
            translator.action.spec,
            model.config.image,
            batch,
            temperature,
        )
        self.decision_seconds = tokens.decision_seconds
        self.device = tokens.head.weight.device
        self._check_translator()
        self.k = self.check_k(k if k is not None else tokens.slots)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.cache = Cache(tokens, batch)
        core = tokens.core
        # Turns of the tokens from a block before a frame to a block after it, relative to the frame's first token.
        offsets = (
            torch.arange(-tokens.slots, tokens.patches + tokens.slots, dtype=torch.float64)[:, None] * core.frequency
        )
        self.turns = torch.polar(torch.ones_like(offsets), offsets)
        self.t = np.zeros(batch, np.int64)
        with torch.inference_mode():
            self.previous = torch.zeros(batch, self.spec.dim, device=self.device)
        self.features: Tensor | None = None  # the encoder's, of the frames before
        self.sizes: list[Size | None] = [None] * batch  # of the frames of each row's episode

    @classmethod
    def from_run(
        cls,
        run: Path | str,
        k: int | None = None,
        batch: int = 1,
        temperature: float = 0.0,
        seed: int = 0,
        device: str = "cpu",
    ) -> LatentPolicy:
        """The policy of a run folder: RUN/model, RUN/policy and RUN/translator (or RUN/joint, which holds all three)."""
        run = Path(run)
        model = LatentActionModel.from_pretrained(str(run), map_location=device)
        tokens = load_tokens(run / "policy", model.lam).to(device)
        inside = (run / "translator.json").is_file()
        translator, _ = load_translator(run if inside else run / "translator")
        return cls(model, tokens, translator.to(device), k, batch, temperature, seed)

    def _check_translator(self) -> None:
        slots, dim = self.tokens.slots, self.lam.dim
        expected = slots * dim + ("previous" in self.translator.condition) * self.translator.action.width
        expected += ("observation" in self.translator.condition) * slots * dim
        if self.translator.mlp.inputs.in_features != expected:
            raise LaminaError(
                f"this translator reads {self.translator.mlp.inputs.in_features} numbers, the LAM's latents and the previous "
                f"action are {expected}; align this LAM again"
            )

    def check_k(self, k: int) -> int:
        """``k``, if that many codes can be predicted. Raises LaminaError otherwise."""
        slots = self.tokens.slots
        if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 1 <= k <= slots:
            raise LaminaError(f"k must be a whole number from 1 to the model's {slots} slots, got {k!r}")
        if self.lam.config.prefix == "full" and k < slots:
            raise LaminaError(
                f"this LAM was trained with all of its {slots} slots (Fixed-K), so k must be {slots}, got {k}"
            )
        return int(k)

    def reset(self, rows: Sequence[int] | None = None) -> None:
        """These rows (all by default) begin a new episode with their next frame."""
        rows = range(self.batch) if rows is None else rows
        for row in rows:
            if not 0 <= row < self.batch:
                raise LaminaError(f"no row {row} in a batch of {self.batch}")
            self.t[row], self.sizes[row] = 0, None
        with torch.inference_mode():
            self.previous[list(rows)] = 0
            self.cache.clear(rows)

    def act(
        self, frame: UInt8[np.ndarray, "h w 3"], k: int | None = None, previous: Shaped[np.ndarray, "a"] | None = None
    ) -> Shaped[np.ndarray, "a"]:
        """The action for one frame; ``batch`` must be 1. See :meth:`act_batch`."""
        if self.batch != 1:
            raise LaminaError(f"act is for one episode, this policy was made for {self.batch} at once: call act_batch")
        return self.act_batch(np.asarray(frame)[None], k, None if previous is None else np.asarray(previous)[None])[0]

    def act_batch(
        self,
        frames: UInt8[np.ndarray, "b h w 3"],
        k: int | None = None,
        previous: Shaped[np.ndarray, "b a"] | None = None,
    ) -> Shaped[np.ndarray, "b a"]:
        """The next action of every row, int64 where all dimensions are discrete, else float32.

        ``k``: codes to predict this time. ``previous``: the actions that were really carried out since the last call, where
        they are not the ones that the policy gave (a row that begins an episode has none, whatever is said here).
        Frames of another size than the model's are resized; within an episode their size must not change.
        Raises LaminaError for frames or actions that do not fit; nothing has changed then.
        """
        k = self.k if k is None else self.check_k(k)
        with torch.inference_mode():
            given = None if previous is None else self._actions(np.asarray(previous))
            pictures = self._pictures(np.asarray(frames))
            if given is not None:
                begun = torch.from_numpy(self.t > 0).to(self.device).unsqueeze(1)
                self.previous = torch.where(begun, given, self.previous)
            return self._decide(pictures, k)

    def _pictures(self, frames: np.ndarray) -> UInt8[Tensor, "b h w 3"]:
        """The frames at the model's size. Raises LaminaError for another shape or dtype."""
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[0] != self.batch or frames.shape[3] != 3:
            raise LaminaError(
                f"a policy for {self.batch} episode(s) reads uint8 frames of shape ({self.batch}, height, width, 3), got {frames.dtype} "
                f"{frames.shape}"
            )
        size = (frames.shape[1], frames.shape[2])
        for row, first in enumerate(self.sizes):
            if first is not None and first != size:
                raise LaminaError(
                    f"frames of row {row} were {first[0]}x{first[1]} pixels when its episode began and are "
                    f"{size[0]}x{size[1]} now; call reset() between episodes"
                )
        if min(size) < 1:
            raise LaminaError(f"a frame of {size[0]}x{size[1]} pixels shows nothing")
        self.sizes = [size] * self.batch
        pictures = torch.from_numpy(np.ascontiguousarray(frames)).to(self.device)
        if size != self.image[1:]:
            channels_first = pictures.permute(0, 3, 1, 2)
            pictures = F.interpolate(channels_first, self.image[1:], mode="bilinear", antialias=True).permute(
                0, 2, 3, 1
            )
        return pictures

    def _actions(self, actions: np.ndarray) -> Float[Tensor, "b a"]:
        """Actions from outside. Raises LaminaError for one that is not in the action space."""
        spec = self.spec
        try:
            values = actions.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise LaminaError(f"an action must be numbers, got {actions.dtype}") from error
        if values.shape != (self.batch, spec.dim):
            raise LaminaError(
                f"actions must be {self.batch} times {spec.dim} numbers, got an array of shape {values.shape}"
            )
        if not np.isfinite(values).all():
            raise LaminaError(f"an action must be finite, got {values.tolist()}")
        for i, n in enumerate(spec.discrete):
            wrong = values[(values[:, i] % 1 != 0) | (values[:, i] < 0) | (values[:, i] >= n), i]
            if len(wrong):
                raise LaminaError(f"discrete action dimension {i} has the classes 0 to {n - 1}, got {wrong[0]:g}")
        return torch.from_numpy(values).to(self.device, torch.float32)

    def _decide(self, pictures: UInt8[Tensor, "b h w 3"], k: int) -> Shaped[np.ndarray, "b a"]:
        tokens, lam = self.tokens, self.lam
        features: Tensor = lam.encoder.embed(to_float(pictures.permute(0, 3, 1, 2)))  # type: ignore[operator]
        begun = bool(self.t.any())
        x = tokens.observe(pictures)
        if begun:
            assert self.features is not None
            realized = lam.bottleneck(lam.encoder.compare(self.features, features)).index  # type: ignore[operator]
            x = torch.cat([tokens.embed(realized), x], dim=1)
        codes = self._generate(x, k, begun)
        z = lam.prefix(lam.bottleneck.index_to_codes(codes).float(), k)  # type: ignore[operator]
        observation = None
        if "observation" in self.translator.condition:  # as lamina.align.observe: the frame against itself
            observation = lam.bottleneck(lam.encoder.compare(features, features)).post.flatten(1)  # type: ignore[operator]
        action = self.translator.action.read(self.translator(z, self.previous, observation))
        self.features, self.previous = features, action
        self.t += 1
        values = action.cpu().numpy()
        return values.astype(np.float32 if self.spec.continuous else np.int64)

    def _rotation(self, t: Int[Tensor, "b"]) -> Complex[Tensor, "b n 1 e2"]:
        """RoPE of the block before, the latest frame, and the block to come."""
        core = self.tokens.core
        angles = torch.from_numpy(self.t * self.tokens.each)[:, None] * core.frequency
        first = torch.polar(torch.ones_like(angles), angles)[:, None]
        return (first * self.turns).to(self.device, torch.complex64).unsqueeze(2)

    def _generate(self, x: Float[Tensor, "b n d"], k: int, block: bool) -> Int[Tensor, "b k"]:
        """Take the newest tokens into the cache and predict ``k`` codes; the other slots of the block are 0."""
        tokens, cache, core = self.tokens, self.cache, self.tokens.core
        t = torch.from_numpy(self.t).to(self.device)
        used = cache.used(int(self.t.max()))
        slots = tokens.slots
        where = cache.take(t, block)[:, None, :, None]
        visible = cache.visible(t, used, block)[:, None]
        bias = torch.zeros(visible.shape, device=self.device).masked_fill_(~visible, -torch.inf)
        rotation = self._rotation(t)
        old = slice(slots, used)

        def prefill(layer: int, q: Tensor, key: Tensor, value: Tensor) -> Tensor:
            keys, values = cache.keys[layer], cache.values[layer]
            index = where.expand(-1, key.shape[1], -1, key.shape[3])
            keys.scatter_(2, index, key)
            values.scatter_(2, index, value)
            mask = bias[:, :, -q.shape[2] :]
            return F.scaled_dot_product_attention(q, keys[:, :, old], values[:, :, old], mask, enable_gqa=True)

        begin = 0 if block else slots
        hidden = core(x, rotation[:, begin : begin + x.shape[1]], prefill, slice(-1, None))
        codes = torch.zeros(self.batch, slots, dtype=torch.long, device=self.device)
        codes[:, 0] = self._choose(hidden)
        own = F.pad(bias[:, :, -1:], (slots, 0))
        begin = slots + tokens.patches
        for j in range(k - 1):
            place = slots - 1 - j  # backwards, so that the slots in use stay side by side
            seen, mask = slice(place, used), own[..., place:]

            def decode(layer: int, q: Tensor, key: Tensor, value: Tensor, place=place, seen=seen, mask=mask) -> Tensor:
                keys, values = cache.keys[layer], cache.values[layer]
                keys[:, :, place], values[:, :, place] = key[:, :, 0], value[:, :, 0]
                b, h, _, e = q.shape
                grouped = q.reshape(b, keys.shape[1], h // keys.shape[1], e)
                read = F.scaled_dot_product_attention(grouped, keys[:, :, seen], values[:, :, seen], mask)
                return read.reshape(b, h, 1, e)

            x = (tokens.code(codes[:, j]) + tokens.slot[j]).unsqueeze(1)
            hidden = core(x, rotation[:, begin + j : begin + j + 1], decode)
            codes[:, j + 1] = self._choose(hidden)
        return codes

    def _choose(self, hidden: Float[Tensor, "b 1 d"]) -> Int[Tensor, "b"]:
        logits = self.tokens.head(hidden[:, -1])
        if self.temperature == 0:
            return logits.argmax(-1)
        return torch.multinomial((logits.float() / self.temperature).softmax(-1), 1, generator=self.generator).squeeze(
            1
        )
