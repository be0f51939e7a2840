"""The policy of a token model: FlexLAM's Algorithm 1.

    policy = TokenPolicy.from_run("runs/doom", k=4)
    policy.reset()
    action = policy.act(frame)      # once a decision; k may be given anew each time

With ``k="auto"`` (the rule that ``lamina adaptive-k`` left in the run, :mod:`lamina.models.adaptive`) each row of the batch generates codes
until the rule says that those generated are enough; rows that have ended wait for the others.

Where the translator was aligned to chunks of actions (``policy.chunk`` of them), all actions of a chunk are returned, to be carried out in
turn before the next frame is given.

One decision encodes the latest transition, predicts the first k codes of the next one, fills the rest with the null latent and
translates. Frames are embedded once; their keys and values stay in a cache. Its positions count from the episode's start, so nothing is
encoded again when the context slides.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Complex, Float, Int, Shaped, UInt8
from torch import Tensor

from lamina.data.dataset import Data
from lamina.device import autocast, pick_device
from lamina.errors import LaminaError
from lamina.images import resize_frames
from lamina.models.adaptive import AdaptiveK, Length, check_length
from lamina.models.heads import Translator
from lamina.models.hub import LatentActionModel, translator_folder
from lamina.models.lam import FrameFeatures
from lamina.policies.base import Observations, Policy, PolicyKind, named, only_one
from lamina.policies.decoding import TokenDecoder
from lamina.policies.kv_cache import KeyValueCache
from lamina.policies.token_model import TokenConfig, TokenModel
from lamina.policies.token_training import check_lam, load_token_model, train_token_model
from lamina.training.alignment import load_translator
from lamina.training.settings import TrainConfig
from lamina.types import ImageSize


class TokenPolicy(Policy):
    """FlexLAM's Algorithm 1, for ``batch`` episodes at once; reads one camera.

    ``k``: codes that a decision predicts, a number or a rule (all by default); ``temperature``: 0 takes the likeliest code, else codes are
    drawn from softmax(logits / temperature) by a generator of its own. Raises LaminaError if token model and translator do not fit the LAM.
    """

    def __init__(
        self,
        model: LatentActionModel,
        tokens: TokenModel,
        translator: Translator,
        k: int | AdaptiveK | None = None,
        batch: int = 1,
        temperature: float = 0.0,
        seed: int = 0,
        precision: str = "fp32",
    ):
        check_lam(tokens, model.lam)
        autocast("cpu", precision)  # refuses an unknown one
        if batch < 1 or not temperature >= 0:
            raise LaminaError(
                f"a policy needs a batch of at least 1 and a temperature of at least 0, got {batch} and {temperature}"
            )
        self.model, self.tokens, self.translator = model.eval(), tokens.eval(), translator.eval()
        self.lam, self.precision = model.lam, precision
        self.spec, self.chunk, self.image = translator.spec, translator.steps, model.config.image
        self.batch, self.temperature = batch, temperature
        self.decision_seconds, self.cameras = tokens.decision_seconds, named(tokens.camera)
        self.device = tokens.place.device
        self._check_translator()
        self.k = self.check_k(k if k is not None else tokens.slots)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        core, spans = tokens.core, tokens.config.spans
        #: one cache for the layers that see the whole context, one for those that see less, if there are any
        self.caches = {
            span: KeyValueCache(
                spans.count(span), batch, core.config.kv_heads, core.config.head_dim,
                tokens.patches, tokens.slots, span, tokens.config.stride, tokens.place,
            )
            for span in sorted(set(spans))
        }  # fmt: skip
        self.layers = [(self.caches[span], spans[:layer].count(span)) for layer, span in enumerate(spans)]
        self.step = TokenDecoder(core)
        self.code, self.head = tokens.code.weight.detach(), tokens.head.weight.detach()
        # Turns of the tokens from a block before a frame to a block after it, relative to the frame's first token.
        offsets = torch.arange(-tokens.slots, tokens.each, dtype=torch.float64)
        angles = offsets[:, None] * core.frequency
        self.turns = torch.polar(torch.ones_like(angles), angles)
        self.t = np.zeros(batch, np.int64)
        with torch.inference_mode():
            self.previous = torch.zeros(batch, self.spec.dim, device=self.device)
        self.features: FrameFeatures | None = None  # of the frames before
        self.sizes: list[ImageSize | None] = [None] * batch  # of the frames of each row's episode

    @classmethod
    def from_run(
        cls,
        run: str | os.PathLike[str],
        *,
        k: Length = None,
        batch: int = 1,
        temperature: float = 0.0,
        seed: int = 0,
        device: str = "auto",
        precision: str = "fp32",
    ) -> TokenPolicy:
        """The policy of a run folder: RUN/model, RUN/policy and RUN/translator (or RUN/joint, which holds all three).

        Raises LaminaError for a translator of continuous latents: what a token model predicts are codes; and for ``k="auto"`` in a run
        that has no rule of its own.
        """
        run, device = Path(run), pick_device(device)
        model = LatentActionModel.from_pretrained(str(run), map_location=device)
        if k == "auto":
            k = check_length(k, model.config, model.lam.dim, run)
        tokens = load_token_model(run / "policy", model.lam).to(device)
        translator, note = load_translator(translator_folder(run))
        if note.side != "quantised":
            raise LaminaError(
                f"{run}: its translator reads latents from before the quantiser, and a token model predicts what comes after it; align "
                "again with --side quantised"
            )
        return cls(model, tokens, translator.to(device), k, batch, temperature, seed, precision)

    def _check_translator(self) -> None:
        slots, dim = self.tokens.slots, self.lam.dim
        expected = slots * dim + ("previous" in self.translator.condition) * self.translator.previous.width
        expected += ("observation" in self.translator.condition) * slots * dim
        if self.translator.mlp.inputs.in_features != expected:
            raise LaminaError(
                f"this translator reads {self.translator.mlp.inputs.in_features} numbers, the LAM's latents and the previous "
                f"action are {expected}; align this LAM again"
            )

    def check_k(self, k: int | AdaptiveK) -> int | AdaptiveK:
        """``k``, if that many codes can be predicted, or a rule for this LAM. Raises LaminaError otherwise."""
        slots = self.tokens.slots
        if isinstance(k, AdaptiveK):
            check_length(k, self.lam.config, self.lam.dim, None)
            return k.to(self.device)
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

    def act(
        self,
        observation: Observations | UInt8[np.ndarray, "h w 3"],
        k: int | AdaptiveK | None = None,
        previous: Shaped[np.ndarray, "a"] | None = None,
    ) -> Shaped[np.ndarray, "*n a"]:
        """The action for one frame [a], or a chunk of them [n a]; ``batch`` must be 1. See :meth:`act_batch`."""
        given = None if previous is None else np.asarray(previous)[None]
        return self.act_batch(self.batch_of_one(observation), k, given)[0]

    def act_batch(
        self,
        observations: Observations | UInt8[np.ndarray, "b h w 3"],
        k: int | AdaptiveK | None = None,
        previous: Shaped[np.ndarray, "b a"] | None = None,
    ) -> Shaped[np.ndarray, "b *n a"]:
        """The next action of every row [b a], int64 where all dimensions are discrete, else float32; [b n a] where the translator was
        aligned to chunks of n actions.

        ``k``: codes to predict this time, or a rule; ``kept`` says how many each row used. ``previous``: the actions that were carried out
        since the last call, where they are not the ones that the policy returned (ignored in rows that begin an episode).
        Frames of another size than the model's are resized; within an episode their size must not change.
        Raises LaminaError for frames or actions that do not fit; nothing has changed then.
        """
        k = self.k if k is None else self.check_k(k)
        with torch.inference_mode(), autocast(self.device, self.precision):
            given = None if previous is None else self._actions(np.asarray(previous))
            pictures = self._pictures(self.first_camera(observations))
            if given is not None:
                begun = torch.from_numpy(self.t > 0).to(self.device).unsqueeze(1)
                self.previous = torch.where(begun, given, self.previous)
            return self._decide(pictures, k)

    def _pictures(self, frames: UInt8[np.ndarray, "b h w 3"]) -> UInt8[Tensor, "b h2 w2 3"]:
        """The frames at the model's size. Raises LaminaError if their own size changes within an episode."""
        size = (frames.shape[1], frames.shape[2])
        for row, first in enumerate(self.sizes):
            if first is not None and first != size:
                raise LaminaError(
                    f"frames of row {row} were {first[0]}x{first[1]} pixels when its episode began and are "
                    f"{size[0]}x{size[1]} now; call reset() between episodes"
                )
        self.sizes = [size] * self.batch
        return torch.from_numpy(np.ascontiguousarray(resize_frames(frames, self.image[1:]))).to(self.device)

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

    def _decide(self, pictures: UInt8[Tensor, "b h w 3"], k: int | AdaptiveK) -> Shaped[np.ndarray, "b *n a"]:
        tokens, lam = self.tokens, self.lam
        features = lam.embed(self.model.read(pictures.permute(0, 3, 1, 2)))
        begun = bool(self.t.any())
        x = tokens.observe(pictures)
        if begun:
            assert self.features is not None
            realized = lam.action_index(lam.pair(self.features, features))
            assert realized is not None
            x = torch.cat([tokens.embed(realized), x], dim=1)
        codes, keep = self._generate(x, k, begun)
        z = lam.prefix(lam.index_to_codes(codes), keep)
        observation = None
        if "observation" in self.translator.condition:  # as lamina.training.observe: the frame against itself
            observation = lam.action(lam.pair(features, features), "quantised").flatten(1)
        output = self.translator(z, self.previous, observation)
        if not bool(output.isfinite().all()):
            raise LaminaError(
                "the policy's output is not finite: its LAM, token model or translator is damaged; train that again"
            )
        actions = self.translator.action.choose(output).cpu().numpy()
        every = self.spec.unpack(actions)
        self.features, self.previous = features, torch.from_numpy(every[:, -1]).to(self.device)
        self.kept = keep.cpu().numpy()
        self.t += 1
        every = every.astype(np.float32 if self.spec.continuous else np.int64)
        return every[:, 0] if self.chunk == 1 else every

    def _rotation(self) -> Complex[Tensor, "b n 1 e2"]:
        """RoPE of the block before, the latest frame, and the block to come."""
        core = self.tokens.core
        angles = torch.from_numpy(self.t * self.tokens.each)[:, None] * core.frequency
        first = torch.polar(torch.ones_like(angles), angles)[:, None]
        return (first * self.turns).to(self.device, torch.complex64).unsqueeze(2)

    def _generate(
        self, x: Float[Tensor, "b n d"], k: int | AdaptiveK, block: bool
    ) -> tuple[Int[Tensor, "b k"], Int[Tensor, "b"]]:
        """Take the newest tokens into the cache and predict ``k`` codes, or as many as the rule ``k`` asks for; and how many count in each
        row. The codes behind them are 0, or were generated while other rows had not ended."""
        tokens, slots = self.tokens, self.tokens.slots
        for cache in self.caches.values():
            cache.begin(self.t, block)
        rotation = self._rotation()
        first = 0 if block else slots
        hidden = tokens.core(x, rotation[:, first : slots + tokens.patches], self._newest, slice(-1, None))
        codes = torch.zeros(self.batch, slots, dtype=torch.long, device=self.device)
        code = codes[:, 0] = self._choose(hidden)
        first = slots + tokens.patches
        most, rule = (k.head.slots, k) if isinstance(k, AdaptiveK) else (k, None)
        keep = [most] * self.batch
        for j in range(most - 1):
            if rule is not None:
                enough = rule.enough(self.lam.index_to_codes(codes[:, : j + 1]), j + 1).tolist()
                keep = [min(length, j + 1) if ends else length for length, ends in zip(keep, enough, strict=True)]
                if max(keep) <= j + 1:
                    break
            x = F.embedding(code, self.code).add_(tokens.slot[j]).unsqueeze(1)
            hidden = self.step(x, rotation[:, first + j], partial(self._generated, j))
            code = codes[:, j + 1] = self._choose(hidden)
        return codes, torch.tensor(keep, device=self.device)

    def _newest(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        cache, number = self.layers[layer]
        return cache.newest(number, q, k, v)

    def _generated(self, j: int, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        cache, number = self.layers[layer]
        return cache.generated(number, q, k, v, j)

    def _choose(self, hidden: Float[Tensor, "b 1 d"]) -> Int[Tensor, "b"]:
        logits = F.linear(hidden[:, -1], self.head)
        if self.temperature == 0:
            return logits.argmax(-1)
        share = (logits.float() / self.temperature).softmax(-1)
        return torch.multinomial(share, 1, generator=self.generator).squeeze(1)


def train_on(
    run: Path, sources: Sequence[Data], config: TokenConfig, training: TrainConfig, cameras: tuple[str, ...]
) -> Path:
    """:func:`train_token_model`, which takes one dataset and one camera, as a kind of policy is trained."""
    return train_token_model(
        run, only_one(sources, "dataset"), config, training, only_one(cameras, "camera") if cameras else None
    )


KIND = PolicyKind(
    title="a sequence model predicts the codes of the next latent action (FlexLAM, App. B.2), the translator reads them",
    config=TokenConfig,
    training={"steps": 2000, "batch": 16, "lr": 1e-3},
    train=train_on,
    policy=TokenPolicy,
)
