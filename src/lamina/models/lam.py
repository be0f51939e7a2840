"""The latent action model: encoder -> bottleneck -> retained prefix -> decoder, put together, saved and loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lamina.errors import LaminaError
from lamina.models.bottlenecks import BOTTLENECKS, Bottleneck
from lamina.models.bottlenecks.prefix import RetainedPrefix
from lamina.models.bottlenecks.whitening import whitening
from lamina.models.config import LAMConfig, Side
from lamina.models.decoders import DECODERS
from lamina.models.encoders import ENCODERS
from lamina.models.features import ClipView, FeatureSpace, open_space
from lamina.models.heads import ProprioDynamics
from lamina.rng import Rng
from lamina.types import TASK_WIDTH, Clip, Latent, TensorRecord

Pair = tuple[int, int]


@dataclass(frozen=True)
class FrameFeatures(TensorRecord):
    """The encoder's features of n single frames: as the ``first`` and as the ``second`` frame of a pair.

    The two are equal unless the observation space has a target encoder (:mod:`lamina.models.features`).
    """

    first: Float[Tensor, "n ..."]
    second: Float[Tensor, "n ..."]

    def __len__(self) -> int:
        return len(self.first)

    def halves(self) -> tuple[FrameFeatures, FrameFeatures]:
        """The first half of the frames, and the second."""
        n = len(self) // 2
        return self[:n], self[n:]


@dataclass(frozen=True)
class EncodedPairs:
    """Latents of clips, by pair of positions on the time axis.

    ``own``: of the clips. ``paired``: of their paired views, for neighbouring pairs; empty where the view has none.
    """

    own: dict[Pair, Latent]
    paired: dict[Pair, Latent]


@dataclass(frozen=True)
class PairPredictions:
    """The decoder's predictions of the second frames. n = b p pictures: the p pairs of a sample stand side by side."""

    loss: Float[Tensor, "b p"]
    prediction: Float[Tensor, "n d h w"]
    target: Float[Tensor, "n d h w"]


class LAM(nn.Module):
    """A latent action model. Frames are float [-1, 1] inside; :class:`LatentActionModel` takes and returns uint8.

    All latents come from :meth:`embed` (per frame) and :meth:`pair` (per frame pair); :meth:`encode` does both for many pairs of a batch
    of clips. Encoder, whitening and bottleneck are called nowhere else.
    """

    def __init__(self, config: LAMConfig):
        super().__init__()
        if config.slots < 1:
            raise LaminaError(f"a LAM needs at least one slot, got {config.slots}")
        first, stop = config.action_slots or (0, config.slots)
        if not 0 <= first < stop <= config.slots or config.action_side not in ("quantised", "continuous"):
            raise LaminaError(f"no latent action: {config.action_side} slots {config.action_slots} of {config.slots}")
        self.config = config
        if config.task > config.slots:
            raise LaminaError(f"a task's instruction cannot fill {config.task} of {config.slots} slots")
        groups = getattr(config.bottleneck, "groups", 1)
        if -(-config.slots // -(-config.slots // groups)) != groups:
            raise LaminaError(f"{config.slots} slots cannot be divided into {groups} groups")
        make_bottleneck: Callable[..., Bottleneck] = BOTTLENECKS[BOTTLENECKS.name_of(config.bottleneck)]
        self.bottleneck = make_bottleneck(**dataclasses.asdict(config.bottleneck))
        dim = self.bottleneck.dim
        self.space: FeatureSpace = open_space(config.space, config.image[0])
        if config.pairing != "free" and self.space.has_target_encoder:
            raise LaminaError(
                f"--pairing {config.pairing} swaps the frames of a pair, which --space {config.space} sees through two encoders: use "
                "--pairing free"
            )
        observation = self.space.observation(config.image)
        self.encoder = ENCODERS[ENCODERS.name_of(config.encoder)](config.encoder, observation, config.slots, dim)
        self.decoder = DECODERS[DECODERS.name_of(config.decoder)](config.decoder, observation, config.slots, dim)
        self.prefix = RetainedPrefix(config.slots, dim, config.prefix)
        self.whiten = whitening(config.whiten, config.slots * dim)
        self.state = ProprioDynamics(config.state, config.slots * dim) if config.state else None
        self.target = nn.Linear(config.slots * dim, config.target) if config.target else None
        self.task = nn.Linear(TASK_WIDTH, config.task * dim) if config.task else None

    @property
    def dim(self) -> int:
        """Channels of one slot."""
        return self.bottleneck.dim

    def view(self, clip: Clip, paired: bool = False) -> ClipView:
        """A batch of clips in this LAM's observation space: what :meth:`encode` and :meth:`predict_pairs` take.

        ``paired``: encode the clips' paired views beside them. Raises LaminaError for clips without paired views.
        """
        if paired and clip.paired is None:
            raise LaminaError(
                "cross-exogenous reconstruction needs paired views of the same states: name their camera by --paired"
            )
        return ClipView(self.space, clip, paired)

    # ------------------------------------------------------------------------------------------- from frames to latents

    def embed(self, frames: Float[Tensor, "n c h w"]) -> FrameFeatures:
        """Features of single frames, for both sides of any pair."""
        first = self.encoder.embed(self.space(frames))
        if not self.space.has_target_encoder:
            return FrameFeatures(first, first)
        return FrameFeatures(first, self.encoder.embed(self.space.target(frames)))

    def pair(self, first: FrameFeatures, second: FrameFeatures, language: Float[Tensor, "b e"] | None = None) -> Latent:
        """The latent of each pair of ``first`` and ``second``: comparison, whitening, quantiser.

        ``language``: the instruction vector of each pair's task. A LAM that is conditioned on language (``config.task``) replaces the first
        slots of ``post`` by it, for its decoder; without a vector these slots hold the encoder's code. Other LAMs ignore it.
        """
        # float32 from here on, whatever the networks compute in: a code must not depend on how its statistics were rounded.
        latent = self.quantise(self._compared(first.first, second.second))
        if self.task is None or language is None:
            return latent
        instruction = self.task(language).unflatten(1, (-1, self.dim))
        return dataclasses.replace(latent, post=torch.cat([instruction, latent.post[:, instruction.shape[1] :]], dim=1))

    def _compared(self, first: Float[Tensor, "b ..."], second: Float[Tensor, "b ..."]) -> Float[Tensor, "b k d"]:
        """The whitened code of each pair of features, by the config's pairing, where f is the encoder's comparison:

        ``free``: f(a, b). ``antisymmetric``: (f(a, b) - f(b, a)) / 2, which reverses exactly and is 0 for two equal frames.
        ``difference``: that plus phi(b) - phi(a), where phi(a) = f(a, a); this part adds up exactly, too.
        """
        compare, pairing = self.encoder.compare, self.config.pairing
        if pairing == "free":
            slots = compare(first, second).float()
            return self.whiten(slots.flatten(1)).view_as(slots)
        there, back = compare(first, second).float(), compare(second, first).float()
        slots = (there - back) / 2
        if pairing == "difference":
            slots = slots + compare(second, second).float() - compare(first, first).float()
        # The code of the reversed pair is whitened beside it: their mean is 0, so that whitening scales and does not shift.
        flat = slots.flatten(1)
        return self.whiten(torch.cat([flat, -flat]))[: len(flat)].view_as(slots)

    def quantise(self, pre: Float[Tensor, "b k d"]) -> Latent:
        """The latent of a continuous, whitened code (``Latent.pre``)."""
        return self.bottleneck(pre)

    def index_to_codes(self, index: Int[Tensor, "b k"]) -> Float[Tensor, "b k d"]:
        """The quantised vectors of codebook entries. Raises LaminaError for a LAM without a codebook."""
        if self.bottleneck.codebook_size is None:
            raise LaminaError("this LAM has no codebook: its latents are continuous")
        return self.bottleneck.index_to_codes(index).float()

    def action(self, latent: Latent, side: Side | None = None) -> Float[Tensor, "b k d"]:
        """The latent action: the slots that the config names, on its side of the quantiser or on ``side``."""
        whole = latent.pre if (side or self.config.action_side) == "continuous" else latent.post
        return whole[:, self.config.latent_action]

    def action_index(self, latent: Latent) -> Int[Tensor, "b k"] | None:
        """The codebook entries of the latent action's slots; None for a LAM without a codebook."""
        return None if latent.index is None else latent.index[:, self.config.latent_action]

    def encode(
        self, view: ClipView, pairs: Sequence[Pair], language: Float[Tensor, "b e"] | None = None
    ) -> EncodedPairs:
        """The latents of pairs (i, j) of positions on the time axis, in one batched call; each frame is embedded once.

        Where the view has paired frames, their neighbouring pairs are encoded in the same call: whitening and codebook update their
        statistics once, from both views. ``language``: an instruction vector for each clip, as :meth:`pair` takes it.
        """
        b = len(view)
        paired = [(i, j) for i, j in pairs if j == i + 1] if view.paired is not None else []

        def embedded(look: Callable[[Sequence[int]], list[Tensor]], positions: list[int]) -> dict[int, Tensor]:
            features: Tensor = self.encoder.embed(torch.cat(look(positions)))
            return dict(zip(positions, features.chunk(len(positions)), strict=True))

        starts, ends = (sorted({pair[side] for pair in pairs}) for side in (0, 1))
        if self.space.has_target_encoder:
            firsts, seconds = embedded(view.inputs_with_paired, starts), embedded(view.targets_with_paired, ends)
        else:
            firsts = seconds = embedded(view.inputs_with_paired, sorted({*starts, *ends}))
        rows = [(firsts[i][:b], seconds[j][:b]) for i, j in pairs] + [
            (firsts[i][b:], seconds[j][b:]) for i, j in paired
        ]
        # The rows of a sample stand side by side, so that those of all processes are the rows of the whole batch, in its order.
        first, second = (torch.stack(side, dim=1).flatten(0, 1) for side in zip(*rows, strict=True))
        instruction = None if language is None else language.repeat_interleave(len(rows), dim=0)
        latent = self.pair(FrameFeatures(first, first), FrameFeatures(second, second), instruction)
        parts = [latent[n :: len(rows)] for n in range(len(rows))]
        own, others = parts[: len(pairs)], parts[len(pairs) :]
        return EncodedPairs(dict(zip(pairs, own, strict=True)), dict(zip(paired, others, strict=True)))

    def predict_pairs(
        self, view: ClipView, latents: Mapping[Pair, Latent], keep: Int[Tensor, "b"], rng: Rng
    ) -> PairPredictions:
        """The second frame of every pair, predicted from the first and the pair's latent; ``keep``: each sample's prefix length k."""
        src, z, dst = self._decoder_inputs(view, latents, keep)
        loss, prediction = self.decoder.predict_and_loss(src, z, dst, rng)
        return PairPredictions(loss.view(-1, len(latents)), prediction, dst)

    def _decoder_inputs(
        self, view: ClipView, latents: Mapping[Pair, Latent], keep: Int[Tensor, "b"]
    ) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, "n k d"], Float[Tensor, "n c h w"]]:
        """First frames, null-filled prefixes and second frames of every pair; the p pairs of a sample stand side by side."""
        pairs = list(latents)
        src, dst = view.inputs([i for i, _ in pairs]), view.targets([j for _, j in pairs])
        z = self.prefix(torch.cat([latents[pair].post for pair in pairs]), keep.repeat(len(pairs)))
        # Rng splits the batch by shard, so the pairs of one shard must stay together: [pairs, b] -> [b, pairs].
        order = torch.arange(len(src), device=src.device).view(len(pairs), -1).T.flatten()
        return src[order], z[order], dst[order]

    def reconstruction(
        self, view: ClipView, latents: Mapping[Pair, Latent], keep: Int[Tensor, "b"], rng: Rng
    ) -> Float[Tensor, "b"]:
        """The decoder's loss of each sample, mean over the pairs; ``keep``: each sample's prefix length k."""
        loss = self.decoder.loss(*self._decoder_inputs(view, latents, keep), rng)
        return loss.view(-1, len(latents)).mean(1)
