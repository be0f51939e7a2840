"""The latent action model: encoder -> bottleneck -> retained prefix -> decoder, put together, saved and loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lamina.errors import LaminaError
from lamina.models.bottlenecks import BOTTLENECKS
from lamina.models.bottlenecks.prefix import RetainedPrefix
from lamina.models.bottlenecks.whitening import whitener
from lamina.models.config import LAMConfig, Side, part_name
from lamina.models.decoders import DECODERS
from lamina.models.encoders import ENCODERS
from lamina.models.features import SPACES, ClipView, FeatureSpace
from lamina.models.heads import ProprioDynamics
from lamina.rng import Rng
from lamina.types import TASK_WIDTH, Latent

Pair = tuple[int, int]
Clips = Float[Tensor, "b t c h w"] | ClipView


@dataclass(frozen=True)
class FrameFeatures:
    """Single frames as the encoder knows them: as the ``first`` and as the ``second`` of a pair; n frames along the leading axis.

    The two hold the same features unless the space moves (:mod:`lamina.models.features`) and each is meant for its own side.
    """

    first: Float[Tensor, "n ..."]
    second: Float[Tensor, "n ..."]

    def __len__(self) -> int:
        return len(self.first)

    def __getitem__(self, rows: slice | Tensor) -> FrameFeatures:
        """The frames that ``rows`` selects."""
        return FrameFeatures(self.first[rows], self.second[rows])

    @staticmethod
    def cat(parts: Sequence[FrameFeatures]) -> FrameFeatures:
        """The frames of several, one after the other."""
        return FrameFeatures(torch.cat([p.first for p in parts]), torch.cat([p.second for p in parts]))

    def halves(self) -> tuple[FrameFeatures, FrameFeatures]:
        """The first half of the frames, and the second."""
        n = len(self) // 2
        return self[:n], self[n:]


@dataclass
class Recording:
    """What was encoded while :meth:`LAM.recording` was on: the clips, their latents, and those of the ``paired`` views beside them."""

    paired: Float[Tensor, "b t c h w"] | None
    view: ClipView | None = None
    latents: dict[Pair, Latent] = field(default_factory=dict)
    twins: dict[Pair, Latent] = field(default_factory=dict)


class LAM(nn.Module):
    """A latent action model. Frames are float [-1, 1] inside; see :class:`LatentActionModel` for uint8 in and out.

    There is one way from frames to latents: :meth:`embed` for each frame, :meth:`pair` for each pair. Whoever needs a latent calls
    these two, or :meth:`encode`, which calls them for many pairs at once; nobody calls encoder, whitening or bottleneck beside them.
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
            raise LaminaError(f"a task's words cannot fill {config.task} of {config.slots} slots")
        groups = getattr(config.bottleneck, "groups", 1)
        if -(-config.slots // -(-config.slots // groups)) != groups:
            raise LaminaError(f"{config.slots} slots cannot be shared out to {groups} groups")
        self.bottleneck = BOTTLENECKS[part_name(config.bottleneck)](**dataclasses.asdict(config.bottleneck))
        dim: int = self.bottleneck.dim  # type: ignore[assignment]
        self.space: FeatureSpace = SPACES[config.space](config.image[0])
        observed = (self.space.channels, *config.image[1:])
        self.encoder = ENCODERS[part_name(config.encoder)](config.encoder, observed, config.slots, dim)
        self.decoder = DECODERS[part_name(config.decoder)](config.decoder, observed, config.slots, dim)
        self._recorded: Recording | None = None
        self.prefix = RetainedPrefix(config.slots, dim, config.prefix)
        self.whiten = whitener(config.whiten, config.slots * dim)
        self.state = ProprioDynamics(config.state, config.slots * dim) if config.state else None
        self.target = nn.Linear(config.slots * dim, config.target) if config.target else None
        self.task = nn.Linear(TASK_WIDTH, config.task * dim) if config.task else None

    @property
    def dim(self) -> int:
        """Channels of one slot."""
        return self.bottleneck.dim  # type: ignore[return-value]

    def observed(self, frames: Clips) -> ClipView:
        """Clips as this LAM observes them; give the same to :meth:`encode` and :meth:`predict_pairs`, and features are computed once."""
        if isinstance(frames, ClipView):
            return frames
        return ClipView(self.space, frames, self._recorded.paired if self._recorded else None)

    # ------------------------------------------------------------------------------------------- from frames to latents

    def embed(self, frames: Float[Tensor, "n c h w"]) -> FrameFeatures:
        """Features of single frames, whatever pairs they will belong to."""
        first = self.encoder.embed(self.space(frames))  # type: ignore[operator]
        second = self.encoder.embed(self.space.target(frames)) if self.space.moving else first  # type: ignore[operator]
        return FrameFeatures(first, second)

    def pair(self, first: FrameFeatures, second: FrameFeatures, words: Float[Tensor, "b w"] | None = None) -> Latent:
        """The latent that leads from each of ``first`` to its ``second``: comparison, whitening, quantiser.

        ``words``: the task's. A LAM that reads them (config.task) has them in the first slots of ``post``, where its decoder looks for
        them; without words these slots hold the code that the encoder gives them. Others leave them aside.
        """
        # float32 from here on, whatever the networks compute in: a code must not depend on how its statistics were rounded.
        slots = self.encoder.compare(first.first, second.second).float()  # type: ignore[operator]
        latent = self.quantise(self.whiten(slots.flatten(1)).view_as(slots))
        if self.task is None or words is None:
            return latent
        told = self.task(words).unflatten(1, (-1, self.dim))
        return dataclasses.replace(latent, post=torch.cat([told, latent.post[:, told.shape[1] :]], dim=1))

    def quantise(self, pre: Float[Tensor, "b k d"]) -> Latent:
        """The latent of a continuous code (whitened already, as ``Latent.pre`` is)."""
        return self.bottleneck(pre)

    def index_to_codes(self, index: Int[Tensor, "b k"]) -> Float[Tensor, "b k d"]:
        """The quantised vectors of codebook entries. Raises LaminaError for a LAM without a codebook."""
        if self.bottleneck.codebook_size is None:
            raise LaminaError("this LAM has no codebook: its latents are continuous")
        return self.bottleneck.index_to_codes(index).float()  # type: ignore[operator]

    def action(self, latent: Latent, side: Side | None = None) -> Float[Tensor, "b k d"]:
        """The latent action: the slots, and the side of the quantiser, that the config names (``side``: the other one, if asked for)."""
        whole = latent.pre if (side or self.config.action_side) == "continuous" else latent.post
        return whole[:, self.config.latent_action]

    def action_index(self, latent: Latent) -> Int[Tensor, "b k"] | None:
        """The codebook entries of the latent action's slots; None for a LAM without a codebook."""
        return None if latent.index is None else latent.index[:, self.config.latent_action]

    def encode(
        self, frames: Clips, pairs: Sequence[Pair], words: Float[Tensor, "b w"] | None = None
    ) -> dict[Pair, Latent]:
        """The latent of every pair (i, j) of positions on the time axis, in one batched call; each frame is embedded once."""
        b, view, record = len(frames), self.observed(frames), self._recorded
        beside = view.paired is not None and record is not None
        twins = [(i, j) for i, j in pairs if j == i + 1] if beside else []

        def embedded(look: Callable[[Sequence[int]], list[Tensor]], positions: list[int]) -> dict[int, Tensor]:
            features: Tensor = self.encoder.embed(torch.cat(look(positions)))  # type: ignore[operator]
            return dict(zip(positions, features.chunk(len(positions)), strict=True))

        starts, ends = (sorted({pair[side] for pair in pairs}) for side in (0, 1))
        # The twins' frames are embedded and compared in the same calls, so that statistics and codebook see both views at once.
        if self.space.moving:
            firsts, seconds = embedded(view.inputs_with_paired, starts), embedded(view.targets_with_paired, ends)
        else:
            firsts = seconds = embedded(view.inputs_with_paired, sorted({*starts, *ends}))
        rows = [(firsts[i][:b], seconds[j][:b]) for i, j in pairs] + [(firsts[i][b:], seconds[j][b:]) for i, j in twins]
        first, second = (torch.cat(side) for side in zip(*rows, strict=True))
        told = None if words is None else words.repeat(len(rows), 1)
        latent = self.pair(FrameFeatures(first, first), FrameFeatures(second, second), told)
        parts = [latent[n * b : (n + 1) * b] for n in range(len(rows))]
        latents = dict(zip(pairs, parts[: len(pairs)], strict=True))
        if record is not None:
            record.view = view
            record.latents.update(latents)
            record.twins.update(zip(twins, parts[len(pairs) :], strict=True))
        return latents

    @contextmanager
    def recording(self, paired: Float[Tensor, "b t c h w"] | None = None) -> Iterator[Recording]:
        """Within, what is encoded is kept: who adds a term to a method's need not encode again.

        ``paired``: the same clips under another exogenous state; their neighbouring pairs are encoded beside those of the clips, in the
        same calls, so that a codebook and the statistics of whitening move once.
        """
        before, self._recorded = self._recorded, Recording(paired)
        try:
            yield self._recorded
        finally:
            self._recorded = before

    def predict_pairs(
        self, frames: Clips, latents: Mapping[Pair, Latent], keep: Int[Tensor, "b"], draws: Rng
    ) -> tuple[Float[Tensor, "b p"], Float[Tensor, "n c h w"], Float[Tensor, "n c h w"]]:
        """decoder.loss(o_i, prefix of z_ij, o_j) of each sample and pair; the guesses and the truth, n = b p pictures.

        ``keep``: one k for each sample.
        """
        pairs, view = list(latents), self.observed(frames)
        src, dst = view.seen([i for i, _ in pairs]), view.ahead([j for _, j in pairs])
        z = self.prefix(torch.cat([latents[pair].post for pair in pairs]), keep.repeat(len(pairs)))
        # Draws split the batch by shard, so the pairs of one shard must stay together: [pairs, b] -> [b, pairs].
        order = torch.arange(len(src), device=src.device).view(len(pairs), -1).T.flatten()
        loss, guess = self.decoder.attempt(src[order], z[order], dst[order], draws)  # type: ignore[operator]
        return loss.view(-1, len(pairs)), guess, dst[order]

    def reconstruction(
        self, frames: Clips, latents: Mapping[Pair, Latent], keep: Int[Tensor, "b"], draws: Rng
    ) -> Float[Tensor, "b"]:
        """decoder.loss(o_i, prefix of z_ij, o_j) of each sample, averaged over the pairs. ``keep``: one k for each sample."""
        return self.predict_pairs(frames, latents, keep, draws)[0].mean(1)
