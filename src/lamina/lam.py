"""The latent action model: encoder -> bottleneck -> retained prefix -> decoder, put together, saved and loaded."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import ModelCard, ModelCardData, PyTorchModelHubMixin, hf_hub_download
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from lamina import __version__
from lamina.bottleneck import BOTTLENECKS, Whitening, whitener
from lamina.data.episodes import TASK_WIDTH
from lamina.data.resize import resize
from lamina.decoders import DECODERS
from lamina.draws import Draws
from lamina.encoder import ENCODERS
from lamina.errors import LaminaError
from lamina.files import read_json, write_text
from lamina.prefix import PrefixLaw, RetainedPrefix
from lamina.shapes import Clip, Latent, to_float, to_uint8
from lamina.space import SPACES, Observed, Space, SpaceName
from lamina.state import StateDynamics
from lamina.strict import Count, Image, Seconds, Short, Some, Whole, checked
from lamina.weights import loaded, save_weights

FORMAT = 1  # of config.json and model.safetensors; raised when an old file can no longer be read
Pair = tuple[int, int]
Clips = Float[Tensor, "b t c h w"] | Observed
Side = Literal["quantised", "continuous"]


@dataclass(frozen=True)
class LAMConfig:
    """Everything that decides the shape of a LAM. Each part's config says which part it is by its type."""

    image: Image  # channels, height, width
    slots: Short
    encoder: Any
    bottleneck: Any
    decoder: Any
    prefix: PrefixLaw = "full"
    whiten: Whitening = "none"
    space: SpaceName = "pixels"
    state: Some = (
        0  # size of the proprioception that follows from the latent; 0: there is no proprioceptive forward model
    )
    target: Some = 0  # numbers that a linear head reads off the latent in training; 0: no head
    task: Some = 0  # slots that a task's words can fill in the place of latents; 0: none
    action_slots: tuple[Some, Count] | None = (
        None  # first slot of the latent action, and the one after its last; None: all
    )
    action_side: Side = "quantised"  # the latent action is what comes out of the quantiser, or what goes into it

    @property
    def latent_action(self) -> slice:
        """The slots that are the latent action. What else the code holds (UniVLA's other half) is for the decoder alone."""
        return slice(*(self.action_slots or (0, self.slots)))

    @property
    def action_length(self) -> int:
        """Slots of the latent action."""
        return len(range(self.slots)[self.latent_action])

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values; parts carry their name under "kind"."""
        values: dict[str, Any] = {"image": list(self.image), "slots": self.slots, "prefix": self.prefix}
        values |= {
            name: v
            for name in ("whiten", "space", "state", "target", "task", "action_slots", "action_side")
            if (v := getattr(self, name)) != getattr(LAMConfig, name)
        }
        for part in _PARTS:
            config = getattr(self, part)
            values[part] = {"kind": part_kind(config), **dataclasses.asdict(config)}
        return json.loads(json.dumps(values))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LAMConfig:
        """The inverse of :meth:`to_dict`.

        Raises LaminaError for a field or a part that this version does not know, and for a value of another type or out of all bounds.
        """
        parts: dict[str, Any] = {}
        for part, kinds in _PARTS.items():
            settings = dict(values[part]) if isinstance(values.get(part), Mapping) else {}
            kind = settings.pop("kind", None)
            if not isinstance(kind, str) or kind not in kinds:
                raise LaminaError(f"model.{part}: no kind that lamina {__version__} knows, got {kind!r:.60}")
            parts[part] = checked(kinds[kind].Config, settings, f"model.{part}")
        return dataclasses.replace(checked(cls, {**values, **dict.fromkeys(parts)}, "model"), **parts)


_PARTS: dict[str, dict[str, Any]] = {"encoder": ENCODERS, "bottleneck": BOTTLENECKS, "decoder": DECODERS}


def part_kind(config: Any) -> str:
    """The name of the part that a part's config belongs to: "conv", "fsq", "flow", ..."""
    return next(name for kinds in _PARTS.values() for name, cls in kinds.items() if isinstance(config, cls.Config))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Embedded:
    """Single frames as the encoder knows them: as the ``first`` and as the ``second`` of a pair; n frames along the leading axis.

    The two hold the same features unless the space moves (:mod:`lamina.space`) and each is meant for its own side.
    """

    first: Float[Tensor, "n ..."]
    second: Float[Tensor, "n ..."]

    def __len__(self) -> int:
        return len(self.first)

    def __getitem__(self, rows: slice | Tensor) -> Embedded:
        """The frames that ``rows`` selects."""
        return Embedded(self.first[rows], self.second[rows])

    @staticmethod
    def cat(parts: Sequence[Embedded]) -> Embedded:
        """The frames of several, one after the other."""
        return Embedded(torch.cat([p.first for p in parts]), torch.cat([p.second for p in parts]))

    def halves(self) -> tuple[Embedded, Embedded]:
        """The first half of the frames, and the second."""
        n = len(self) // 2
        return self[:n], self[n:]


@dataclass
class Recording:
    """What was encoded while :meth:`LAM.recording` was on: the clips, their latents, and those of the ``paired`` views beside them."""

    paired: Float[Tensor, "b t c h w"] | None
    view: Observed | None = None
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
        self.bottleneck = BOTTLENECKS[part_kind(config.bottleneck)](**dataclasses.asdict(config.bottleneck))
        dim: int = self.bottleneck.dim  # type: ignore[assignment]
        self.space: Space = SPACES[config.space](config.image[0])
        observed = (self.space.channels, *config.image[1:])
        self.encoder = ENCODERS[part_kind(config.encoder)](config.encoder, observed, config.slots, dim)
        self.decoder = DECODERS[part_kind(config.decoder)](config.decoder, observed, config.slots, dim)
        self._recorded: Recording | None = None
        self.prefix = RetainedPrefix(config.slots, dim, config.prefix)
        self.whiten = whitener(config.whiten, config.slots * dim)
        self.state = StateDynamics(config.state, config.slots * dim) if config.state else None
        self.target = nn.Linear(config.slots * dim, config.target) if config.target else None
        self.task = nn.Linear(TASK_WIDTH, config.task * dim) if config.task else None

    @property
    def dim(self) -> int:
        """Channels of one slot."""
        return self.bottleneck.dim  # type: ignore[return-value]

    def observed(self, frames: Clips) -> Observed:
        """Clips as this LAM observes them; give the same to :meth:`encode` and :meth:`attempts`, and features are computed once."""
        if isinstance(frames, Observed):
            return frames
        return Observed(self.space, frames, self._recorded.paired if self._recorded else None)

    # ------------------------------------------------------------------------------------------- from frames to latents

    def embed(self, frames: Float[Tensor, "n c h w"]) -> Embedded:
        """Features of single frames, whatever pairs they will belong to."""
        first = self.encoder.embed(self.space(frames))  # type: ignore[operator]
        second = self.encoder.embed(self.space.target(frames)) if self.space.moving else first  # type: ignore[operator]
        return Embedded(first, second)

    def pair(self, first: Embedded, second: Embedded, words: Float[Tensor, "b w"] | None = None) -> Latent:
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
            firsts, seconds = embedded(view.seen_in_both, starts), embedded(view.ahead_in_both, ends)
        else:
            firsts = seconds = embedded(view.seen_in_both, sorted({*starts, *ends}))
        rows = [(firsts[i][:b], seconds[j][:b]) for i, j in pairs] + [(firsts[i][b:], seconds[j][b:]) for i, j in twins]
        first, second = (torch.cat(side) for side in zip(*rows, strict=True))
        told = None if words is None else words.repeat(len(rows), 1)
        latent = self.pair(Embedded(first, first), Embedded(second, second), told)
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

    def attempts(
        self, frames: Clips, latents: Mapping[Pair, Latent], keep: Int[Tensor, "b"], draws: Draws
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
        self, frames: Clips, latents: Mapping[Pair, Latent], keep: Int[Tensor, "b"], draws: Draws
    ) -> Float[Tensor, "b"]:
        """decoder.loss(o_i, prefix of z_ij, o_j) of each sample, averaged over the pairs. ``keep``: one k for each sample."""
        return self.attempts(frames, latents, keep, draws)[0].mean(1)


def neighbours(frames: int) -> list[Pair]:
    """Neighbouring frames of a clip."""
    return [(i, i + 1) for i in range(frames - 1)]


def mean_aux(latents: Mapping[Pair, Latent]) -> dict[str, Float[Tensor, "b"]]:
    """The bottleneck's own losses, averaged over the pairs."""
    aux = [latent.aux for latent in latents.values()]
    return {name: torch.stack([a[name] for a in aux]).mean(0) for name in aux[0]}


def state_loss(lam: LAM, clip: Clip, latents: Mapping[Pair, Latent]) -> dict[str, Float[Tensor, "b"]]:
    """The proprioceptive forward model's loss under the name "state", averaged over the pairs; empty for a LAM without one.

    Raises LaminaError if the clip has no proprioception.
    """
    if lam.state is None:
        return {}
    if clip.proprio is None:
        raise LaminaError(
            "this LAM has a proprioceptive forward model, and the data gives no proprioception: name it in DataConfig"
        )
    q = clip.proprio
    terms = [lam.state.loss(q[:, i], latent.post, q[:, j]) for (i, j), latent in latents.items()]
    return {"state": torch.stack(terms).mean(0)}


def triplets(frames: int) -> list[tuple[int, int, int]]:
    """Neighbouring frames a < b < c of a clip. Raises LaminaError for a clip of fewer than three."""
    if frames < 3:
        raise LaminaError(f"this method needs clips of three frames or more, got {frames}: set --frames 3")
    return [(i, i + 1, i + 2) for i in range(frames - 2)]


def pair_losses(lam: LAM, clip: Clip, draws: Draws) -> dict[str, Float[Tensor, "b"]]:
    """Reconstruction of every neighbouring pair of a clip through a drawn prefix, the bottleneck's own terms, and the state's.

    The whole objective of every LAM that adds nothing to it (FlexLAM Eq. 1; LAPO, LAPA, villa-X).
    """
    frames = lam.observed(to_float(clip.frames))
    latents = lam.encode(frames, neighbours(frames.shape[1]))
    keep = lam.prefix.draw(draws, len(frames))
    reconstruction = lam.reconstruction(frames, latents, keep, draws)
    return {"reconstruction": reconstruction, **mean_aux(latents), **state_loss(lam, clip, latents)}


@dataclass(frozen=True)
class Provenance:
    """What a model card and a label must state: where this model comes from."""

    method: str = "unknown"
    data: tuple[str, ...] = ()
    gap_seconds: tuple[Seconds, Seconds] = (0.1, 0.2)
    code_version: str = __version__
    steps: Whole = 0
    metrics: dict[str, float] = field(default_factory=dict)
    frames: Count = 2  # that its objective ties together: 2 of a pair, 3 of a triplet, each a gap after the one before

    def __post_init__(self) -> None:
        if not 0 < self.gap_seconds[0] <= self.gap_seconds[1] < math.inf:
            raise LaminaError(f"gap_seconds must be 0 < shortest <= longest, got {self.gap_seconds}")

    @property
    def label_gap(self) -> float:
        """The one gap, in seconds, at which this model labels and is probed: the middle of its training range."""
        return sum(self.gap_seconds) / 2


class LatentActionModel(nn.Module, PyTorchModelHubMixin):
    """A trained LAM for users: uint8 pictures in, latents and uint8 pictures out.

        model = LatentActionModel.from_pretrained("runs/doom")
        latent = model.encode(src, dst)           # src, dst: uint8 [b c h w] -> Latent with .post [b k d], .index [b k]
        frames = model.decode(src, latent, k=4)   # uint8 [b c h w], from the first 4 slots

    Loading runs no code: a JSON config and safetensors.
    """

    def __init__(self, config: LAMConfig, provenance: Provenance | None = None, lam: LAM | None = None):
        super().__init__()
        self.lam = lam or LAM(config)
        self.provenance = provenance or Provenance()

    @property
    def config(self) -> LAMConfig:
        return self.lam.config

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def column(self) -> str:
        """The column of a labelled dataset that holds this model's latent action."""
        return "latent_action" if self.config.action_side == "quantised" else "latent_action.continuous"

    def read(self, frames: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        """Frames as the LAM inside takes them: at its size (by the one function that resizes, lamina.data.resize), float of [-1, 1], on its
        device. Raises LaminaError for another dtype or number of channels."""
        channels, *size = self.config.image
        if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[1] != channels:
            raise LaminaError(
                f"this model reads uint8 frames of shape (b, {channels}, height, width), got {frames.dtype} {tuple(frames.shape)}: "
                "convert them first"
            )
        return to_float(resize(frames, (size[0], size[1])).to(self.device))

    @torch.no_grad()
    def encode(
        self,
        src: UInt8[Tensor, "b c h w"],
        dst: UInt8[Tensor, "b c h w"],
        words: Float[Tensor, "b w"] | None = None,
    ) -> Latent:
        """The latent that leads from ``src`` to ``dst``, frames of any size; ``lam.action`` of it is the latent action, as ``lamina label``
        writes it. ``words``: of the task, for a model that reads them. Raises LaminaError for frames of another dtype.
        """
        first, second = self.lam.embed(torch.cat([self.read(src), self.read(dst)])).halves()
        return self.lam.pair(first, second, words)

    @torch.no_grad()
    def decode(
        self,
        src: UInt8[Tensor, "b c h w"],
        latent: Latent | Float[Tensor, "b k d"],
        k: int | None = None,
        seed: int = 0,
    ) -> UInt8[Tensor, "b c h w"]:
        """The frame expected after ``latent`` from ``src``. ``k``: slots kept, all by default; ``seed``: of a flow's noise.

        Raises LaminaError for a model that predicts features and so has no picture to show.
        """
        if self.config.space != "pixels":
            raise LaminaError(f"this model predicts {self.config.space}, not pixels: it has no picture to show")
        frames = self.read(src)
        z = (latent.post if isinstance(latent, Latent) else latent).to(frames.device)
        z = self.lam.prefix(z, self.config.slots if k is None else k)
        return to_uint8(self.lam.decoder.sample(frames, z, Draws(seed, device=frames.device)))  # type: ignore[operator]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> LatentActionModel:
        """A model from a folder, a run folder or the hub. ``options``: map_location, and the hub's (revision, token, ...).

        Raises LaminaError if there is none, or if its files are damaged or of another version.
        """
        # The mixin's own would read config.json first, unchecked.
        return cls._from_pretrained(model_id=str(pretrained_model_name_or_path), **options)

    # What the hub mixin calls; save_pretrained and push_to_hub are its own.

    def _save_pretrained(self, save_directory: Path) -> None:
        save_directory.mkdir(parents=True, exist_ok=True)
        save_weights(save_directory / "model.safetensors", self.lam.state_dict(), _record(self.config, self.provenance))
        self._write_config(save_directory)

    def _write_config(self, folder: Path) -> None:
        config = {
            "format": FORMAT,
            "lamina": __version__,
            "model": self.config.to_dict(),
            "provenance": dataclasses.asdict(self.provenance),
        }
        write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")

    def write_metrics(self, folder: Path, metrics: dict[str, float]) -> None:
        """State ``metrics`` in the provenance and the model card of a saved model, whose weights stay as they are.

        One that is not finite is no figure, and is left out.
        """
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        self.provenance = dataclasses.replace(self.provenance, metrics=finite)
        self._write_config(folder)
        write_text(folder / "README.md", str(self.generate_model_card()))

    @classmethod
    def _from_pretrained(cls, *, model_id: str, map_location: str = "cpu", strict: bool = True, **hub: Any) -> Any:  # type: ignore[override]
        folder = Path(model_id)
        if (folder / "model" / "config.json").is_file():
            folder = folder / "model"  # a run folder
        if folder.is_dir():
            config_file, weights = (folder / name for name in ("config.json", "model.safetensors"))
        else:
            options: dict[str, Any] = {
                k: hub.get(k) for k in ("revision", "cache_dir", "force_download", "token", "local_files_only")
            }
            try:
                config_file, weights = (
                    Path(hf_hub_download(model_id, name, **options)) for name in ("config.json", "model.safetensors")
                )
            except Exception as error:  # the hub raises many kinds; each means that there is no such model to be had
                raise LaminaError(
                    f"{model_id}: neither a run folder nor a model on the hub ({type(error).__name__})"
                ) from error
        config, provenance = read_config(config_file)
        lam = loaded(lambda: LAM(config), config_file, weights, _record(config, provenance))
        return cls(config, provenance, lam).to(map_location).eval()

    def _columns(self) -> str:
        slots = range(self.config.slots)[self.config.latent_action]
        which = (
            "all slots"
            if len(slots) == self.config.slots
            else f"slots {slots[0]} to {slots[-1]} of {self.config.slots}"
        )
        side = "after" if self.config.action_side == "quantised" else "before"
        text = f"use `{self.column}` ({which}, {len(slots) * self.lam.dim} numbers, {side} the quantiser)"
        quantised = self.lam.bottleneck.codebook_size is not None
        text += "; `latent_action.index` holds the codes" if quantised else ""
        return text + "; rows with `latent_action.valid` false have no frame a gap later"

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        p = self.provenance
        rows = [f"| {as_words(name)} | {value:.4g} |" for name, value in p.metrics.items()]
        metrics = "\n".join(rows) or "| not evaluated | |"
        text = f"""---
{ModelCardData(library_name="lamina", tags=["latent-action-model", "lamina"]).to_yaml()}
---
# Latent action model ({as_words(p.method)})

Encodes a pair of frames as {self.config.slots} slots of {self.lam.dim} channels and decodes the second frame from the first.

- data: {", ".join(map(as_words, p.data)) or "unknown"}
- gap between the two frames: {p.gap_seconds[0]:g} to {p.gap_seconds[1]:g} seconds
- image: {self.config.image[1]}x{self.config.image[2]}, {self.config.image[0]} channels
- training steps: {p.steps}
- code version: lamina {as_words(p.code_version)}
- columns of a dataset that `lamina label` writes: {self._columns()}

| metric | value |
|---|---|
{metrics}

    from lamina import LatentActionModel
    model = LatentActionModel.from_pretrained("this repository")
    latent = model.encode(src, dst)
"""
        return ModelCard(text)


def as_words(text: str) -> str:
    """A name that anybody may have chosen, as markdown shows it: one line without formatting, links, HTML, or what moves a cursor."""
    plain = "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(text.split()))
    return re.sub(r"[\\`*{}\[\]<>|~&$#]|(?<![^\W_])_|_(?![^\W_])", lambda found: f"&#{ord(found[0])};", plain)


def _record(config: LAMConfig, provenance: Provenance) -> dict[str, Any]:
    """What a model's numbers mean, beside their shapes; kept with the weights, so that a config that was changed is noticed."""
    return {"model": config.to_dict(), "gap_seconds": list(provenance.gap_seconds), "frames": provenance.frames}


def model_folder(run: Path) -> Path:
    """Where a run keeps its model (or the folder itself). Raises LaminaError if there is none."""
    for folder in (run / "model", run):
        if (folder / "config.json").is_file() and (folder / "model.safetensors").is_file():
            return folder
    raise LaminaError(f"{run}: no trained model here; run: lamina train METHOD --data PATH --out {run}")


def read_config(path: Path) -> tuple[LAMConfig, Provenance]:
    """Config and provenance of a saved model. Raises LaminaError for a missing, damaged or newer file."""
    if not path.exists():
        raise LaminaError(f"{path}: no such file; is {path.parent} a model folder?")
    values = read_json(path, "save the model again")
    if values.get("format") != FORMAT:
        raise LaminaError(
            f"{path}: model format {values.get('format')!r:.60}, lamina {__version__} reads format {FORMAT}; train it again or change "
            "versions"
        )
    for name in ("model", "provenance"):
        if not isinstance(values.get(name), dict):
            raise LaminaError(f"{path}: is not a saved model's config, '{name}' is missing; has the training finished?")
    try:
        return LAMConfig.from_dict(values["model"]), checked(Provenance, values["provenance"], "provenance")
    except LaminaError as error:
        raise LaminaError(f"{path}: {error}") from error
