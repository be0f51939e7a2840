"""A trained model with where it comes from: saving, loading, the Hugging Face hub and the model card."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelCardData, PyTorchModelHubMixin, hf_hub_download
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from lamina.errors import LaminaError
from lamina.files import read_json, write_text
from lamina.images import resize, to_float, to_uint8
from lamina.models.config import LAMConfig
from lamina.models.features import is_pretrained
from lamina.models.lam import LAM
from lamina.records import Count, NonNegative, Seconds, validated
from lamina.rng import Rng
from lamina.types import Latent
from lamina.version import __version__
from lamina.weights import load_module, save_weights

FORMAT = 1  # of config.json and model.safetensors; raised when an old file can no longer be read


@dataclass(frozen=True)
class Provenance:
    """Where a model comes from, as its model card and labels state it."""

    method: str = "unknown"
    data: tuple[str, ...] = ()
    gap_seconds: tuple[Seconds, Seconds] = (0.1, 0.2)
    code_version: str = __version__
    steps: NonNegative = 0
    metrics: dict[str, float] = field(default_factory=dict)
    frames: Count = 2  # that its objective ties together: 2 of a pair, 3 of a triplet, each a gap after the one before
    span: Seconds | None = None  # the longest time from the first of these frames to the last; None: as the gaps allow

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
        """Frames as the LAM inside takes them: at its size (by the one function that resizes, lamina.images), float of [-1, 1], on its
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
        language: Float[Tensor, "b e"] | None = None,
    ) -> Latent:
        """The latent of the transition from ``src`` to ``dst``, frames of any size; ``lam.action(latent)`` is what ``lamina label`` writes.

        ``language``: instruction vectors, for a model that is conditioned on them. Raises LaminaError for frames of another dtype.
        """
        first, second = self.lam.embed(torch.cat([self.read(src), self.read(dst)])).halves()
        return self.lam.pair(first, second, language)

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
        return to_uint8(self.lam.decoder.sample(frames, z, Rng(seed, device=frames.device)))

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

        Values that are not finite are left out.
        """
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        self.provenance = dataclasses.replace(self.provenance, metrics=finite)
        self._write_config(folder)
        write_text(folder / "README.md", str(self.generate_model_card()))

    @classmethod
    def _from_pretrained(cls, *, model_id: str, map_location: str = "cpu", strict: bool = True, **hub: Any) -> Any:
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
            except Exception as error:  # the hub raises many types; each means that the model cannot be loaded
                raise LaminaError(
                    f"{model_id}: neither a run folder nor a model on the hub ({type(error).__name__})"
                ) from error
        config, provenance = read_config(config_file)
        lam = load_module(lambda: LAM(config), config_file, weights, _record(config, provenance))
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
        return text + "; rows with `latent_action.valid` false have no frame a gap later in their episode and shot"

    def _space(self) -> str:
        """What it needs beside its own weights, for the model card."""
        if not is_pretrained(self.config.space):
            return ""
        return f"- sees and predicts features of the pretrained encoder {as_words(self.config.space)}, which is not part of this model\n"

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
{self._space()}- training steps: {p.steps}
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
    """Untrusted text for markdown: one line without formatting, links, HTML or control characters."""
    plain = "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(text.split()))
    return re.sub(r"[\\`*{}\[\]<>|~&$#]|(?<![^\W_])_|_(?![^\W_])", lambda found: f"&#{ord(found[0])};", plain)


def _record(config: LAMConfig, provenance: Provenance) -> dict[str, Any]:
    """The settings that the weights belong to; saved with them, so that a config that was changed is noticed."""
    return {"model": config.to_dict(), "gap_seconds": list(provenance.gap_seconds), "frames": provenance.frames}


def model_folder(run: Path) -> Path:
    """Where a run keeps its model (or the folder itself). Raises LaminaError if there is none."""
    for folder in (run / "model", run):
        if (folder / "config.json").is_file() and (folder / "model.safetensors").is_file():
            return folder
    raise LaminaError(f"{run}: no trained model here; run: lamina train METHOD --data PATH --out {run}")


def translator_folder(run: Path) -> Path:
    """Where a run keeps its translator, if it is aligned; a joint alignment keeps model and translator in one folder."""
    return run if (run / "translator.json").is_file() else run / "translator"


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
        return LAMConfig.from_dict(values["model"]), validated(Provenance, values["provenance"], "provenance")
    except LaminaError as error:
        raise LaminaError(f"{path}: {error}") from error
