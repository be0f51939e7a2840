"""What a page plays with: a model, held-out transitions with their latents, nine clusters of them, and the translator."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from torch import Tensor

from lamina.data.dataset import Data, Dataset, name_of
from lamina.data.sampling import open_source
from lamina.data.stream import sample_split
from lamina.device import pick_device
from lamina.errors import LaminaError, warn
from lamina.evaluation.probes.structure import sum_side
from lamina.files import checkpoint_hash
from lamina.models.heads import Translator
from lamina.models.hub import LatentActionModel, model_folder, translator_folder
from lamina.training.alignment import TranslatorNote, load_translator
from lamina.training.labelled import probe_data
from lamina.types import ActionSpec, Clip, Latent

KEYS = 9  # clusters, one for each digit of the keyboard
EXAMPLES = 4  # transitions that the page shows of each cluster
TRANSITIONS = 384

#: A latent as a sum of latents of transitions: (factor, number of the transition) of each.
Terms = tuple[tuple[float, int], ...]


@dataclass(frozen=True)
class Cluster:
    """The latents behind one key. ``medoid``: the transition nearest to the centre; its latent is what the key applies."""

    medoid: int
    examples: tuple[int, ...]
    members: Int[np.ndarray, "n"]
    label: str


@dataclass(frozen=True)
class Reading:
    """A real action as the translator reads it: ``action`` [a], fed back at the next step, and what is shown of it."""

    action: Float[Tensor, "a"]
    shown: tuple[dict[str, Any], ...]


@dataclass(frozen=True, eq=False)
class Stage:
    """A model, n held-out transitions (``clip``: two or three frames each, a gap apart) and their ``latents``.

    The latents are those of frames 0 and 1 of every clip; where clips have a third frame, those of frames 1 and 2 come after them, so that
    transition n + i is the one that follows transition i.
    """

    run: Path
    model: LatentActionModel
    clip: Clip
    latents: Latent
    clusters: tuple[Cluster, ...]
    data: str
    source: Dataset
    camera: str | None
    split: str
    tasks: tuple[str, ...]
    spec: ActionSpec | None
    translator: Translator | None
    unread: str  # why no real action is read; "" where there is a translator
    note: TranslatorNote | None
    seed: int
    fingerprint: str

    @classmethod
    def load(
        cls,
        run: Path,
        data: Data | None = None,
        *,
        camera: str | None = None,
        transitions: int = TRANSITIONS,
        seed: int = 0,
        device: str = "auto",
    ) -> Stage:
        """The stage of a run folder. ``data``: default: what the run was trained on; ``camera``: default: that of the alignment, else the
        first; ``seed``: of the clusters and of a flow's noise. Real actions are those that the run's translator was aligned to; it reads
        none off the pictures of a camera that it was not aligned on, nor where the data have actions of another layout.

        Raises LaminaError for a missing or damaged model, one that decodes no pictures, and data that cannot be read.
        """
        model = LatentActionModel.from_pretrained(str(run)).to(pick_device(device)).eval()
        config = model.config
        if config.space != "pixels":
            raise LaminaError(
                f"{run}: predicts {config.space}, not pixels: it has no picture to show; play another run"
            )
        if config.task:
            raise LaminaError(
                f"{run}: decodes with an instruction, which a page of frames does not have; play its second stage"
            )
        source = open_source(data if data is not None else _trained_on(run, model))
        translator, note = _translator(run, model)
        unread = f"No translator, so no real action is read: lamina align {run} --data {name_of(source)} --labels 5%"
        given, action = (note.camera, note.action) if note else (None, "action")
        spec = source.action_spec(action)
        own, shown = (_cameras(source, name) for name in (given, camera or given))
        if translator and set(own) <= set(source.cameras) and not set(shown) <= set(own):
            aligned = ", ".join(own)
            unread = f"The translator was aligned on camera '{aligned}', so it reads no real action here: leave out --camera {camera}"
            warn(f"{translator_folder(run)}: {unread}")
            translator = None
        elif (
            translator
            and spec
            and (translator.spec.discrete, translator.spec.continuous) != (spec.discrete, spec.continuous)
        ):
            unread = f"The translator was aligned to other actions than {name_of(source)} has, so it reads no real action here."
            warn(f"{translator_folder(run)}: {unread}")
            translator = None
        camera = camera or given
        clip, split = _transitions(model, source, camera, None if spec is None else action, transitions, seed)
        pairs = [(clip.frames[:, t], clip.frames[:, t + 1]) for t in range(clip.frames.shape[1] - 1)]
        latents = Latent.cat([model.encode(src, dst).to("cpu") for src, dst in pairs])
        digest = hashlib.sha256(checkpoint_hash(model_folder(run)).encode())
        digest.update(f"{seed} {len(clip)} ".encode() + clip.frames.numpy().tobytes())
        return cls(
            run=run,
            model=model,
            clip=clip,
            latents=latents,
            clusters=clusters(model, latents[: len(clip)], clip, spec, seed),
            data=name_of(source),
            source=source,
            camera=camera,
            split=split,
            tasks=tuple(source.episodes[n].task for n in clip.episode.tolist()),
            spec=spec,
            translator=translator,
            unread="" if translator else unread,
            note=note,
            seed=seed,
            fingerprint=digest.hexdigest()[:12],
        )

    @cached_property
    def change(self) -> Float[np.ndarray, "n"]:
        """Mean absolute change of the pixels in every transition."""
        first, second = self.clip.frames[:, 0].float(), self.clip.frames[:, 1].float()
        return (first - second).abs().flatten(1).mean(1).numpy()

    @property
    def moving(self) -> Int[np.ndarray, "m"]:
        """The half of the transitions in which most changes: what a page shows to choose from."""
        return np.sort(self.change.argsort(kind="stable")[len(self.clip) // 2 :])

    @property
    def prefixes(self) -> tuple[int, ...]:
        """The prefix lengths that the page offers: 1, 2, 4, ... K; K alone for a model that was trained with all slots."""
        slots = self.model.config.slots
        if self.model.config.prefix == "full":
            return (slots,)
        return tuple(sorted({2**i for i in range(slots.bit_length()) if 2**i <= slots} | {slots}))

    def latent(self, terms: Terms) -> Latent:
        """The sum of latents of transitions, each with its factor; of one alone with factor 1 its own latent.

        Sums are taken on the side of the quantiser where the model's latents add up (:func:`sum_side`): before it, the sum is quantised
        (ALAM, structured prefixes); after it, the decoder reads the sum as it is (AC-LAM). Prefixes are cut after the sum.
        """
        if len(terms) == 1 and terms[0][0] == 1.0:
            number = terms[0][1]
            return self.latents[number : number + 1]
        pre, post = (
            torch.stack([factor * side[number] for factor, number in terms]).sum(0, keepdim=True)
            for side in (self.latents.pre, self.latents.post)
        )
        if sum_side(self.model) == "continuous":
            with torch.no_grad():
                return self.model.lam.quantise(pre.to(self.model.device)).to("cpu")
        return Latent(pre, post)

    @torch.no_grad()
    def read(
        self, latent: Latent, k: int, previous: Float[Tensor, "a"], frame: UInt8[Tensor, "c h w"]
    ) -> Reading | None:
        """The real action that the translator reads off the first ``k`` slots, at ``frame``, after the ``previous`` action."""
        if self.translator is None or self.note is None:
            return None
        model, translator, side = self.model, self.translator, self.note.side
        here = latent.to(model.device)
        z = model.lam.prefix(model.lam.action(here, side), k)
        observation = None
        if "observation" in translator.condition:  # as lamina.inference.encode.observe: the frame against itself
            features = model.lam.embed(model.read(frame[None]))
            observation = model.lam.action(model.lam.pair(features, features), side).flatten(1)
        output = translator(z, previous[None].to(model.device), observation)
        spec = translator.spec
        every = spec.unpack(translator.action.read(output).cpu().numpy())[0]
        logits, _ = translator.action.split(output.float())
        shown: list[dict[str, Any]] = []
        for i, classes in enumerate(spec.discrete):
            chances = logits[i][0].softmax(-1).cpu()
            best = chances.topk(min(3 if len(spec.discrete) == 1 else 1, classes))
            for chance, n in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                shown.append({"name": class_name(spec, i, n), "probability": chance})
        d = len(spec.discrete)
        for i, value in enumerate(every[0, d:].tolist(), d):
            shown.append({"name": dimension_name(spec, i), "value": value})
        return Reading(torch.from_numpy(every[-1].astype(np.float32)), tuple(shown))

    def flat(self) -> Float[np.ndarray, "n d"]:
        """The latent action of every transition as a vector."""
        return self.model.lam.action(self.latents[: len(self.clip)]).flatten(1).numpy()

    def map(self, method: str = "pca") -> Float[np.ndarray, "n 2"]:
        """The latent actions in two dimensions, each scaled to [-1, 1]. ``method``: pca, or umap where it is installed."""
        flat = self.flat()
        if method not in ("pca", "umap"):
            raise LaminaError(f"a map by '{method:.20}': choose pca or umap")
        if method == "pca":
            places = np.zeros((len(flat), 2))
            axes = min(2, *flat.shape)
            places[:, :axes] = PCA(axes, random_state=self.seed).fit_transform(flat)
        else:
            try:
                from umap import UMAP
            except ImportError as error:
                raise LaminaError("a UMAP needs its library: pip install umap-learn") from error
            if len(flat) < 8:
                raise LaminaError(f"a UMAP needs more than {len(flat)} transitions")
            places = UMAP(n_neighbors=min(15, len(flat) - 1), random_state=self.seed, n_jobs=1).fit_transform(flat)
        low, high = places.min(0), places.max(0)
        return (2 * (places - low) / np.maximum(high - low, 1e-9) - 1).astype(np.float32)

    def colours(self) -> list[dict[str, Any]]:
        """What the points of the map can be coloured by: classes, each with its names, or numbers."""
        key = np.zeros(len(self.clip), dtype=int)
        for n, cluster in enumerate(self.clusters):
            key[cluster.members] = n
        found: list[dict[str, Any]] = [
            {"name": "key", "names": [str(n + 1) for n in range(len(self.clusters))], "values": key.tolist()}
        ]
        if self.spec is not None and self.clip.action is not None:
            action = self.clip.action[:, 0].numpy()
            for i, classes in enumerate(self.spec.discrete):
                name = "action" if self.spec.dim == 1 else f"action: {dimension_name(self.spec, i)}"
                names = [class_name(self.spec, i, n) for n in range(classes)]
                found.append({"name": name, "names": names, "values": action[:, i].astype(int).tolist()})
            for i in range(len(self.spec.discrete), self.spec.dim):
                found.append({"name": f"action: {dimension_name(self.spec, i)}", "values": action[:, i].tolist()})
        names = sorted(set(self.tasks))
        if len(names) > 1:
            found.append({"name": "task", "names": names, "values": [names.index(task) for task in self.tasks]})
        length = torch.from_numpy(self.flat()).norm(dim=1)
        return [*found, {"name": "norm of the latent", "values": length.tolist()}]

    def action_text(self, number: int) -> str:
        """The real action of a transition in words; "" where the data has none."""
        if self.spec is None or self.clip.action is None:
            return ""
        return describe(self.spec, self.clip.action[number, 0].numpy())


def _trained_on(run: Path, model: LatentActionModel) -> str:
    """The data that a run was trained on. Raises LaminaError where it is not there."""
    for path in model.provenance.data:
        if Path(path).exists():
            return path
    raise LaminaError(f"{run}: the data that it was trained on is not here; name some by --data PATH")


def _transitions(
    model: LatentActionModel, source: Dataset, camera: str | None, action: str | None, count: int, seed: int
) -> tuple[Clip, str]:
    """Transitions of the test split, else of the training split, with the frame after them where episodes are long enough."""
    pairs = replace(probe_data(model, source, camera), action=action)
    refused: LaminaError | None = None
    for split in ("test", "train"):
        for frames in (3, 2):
            try:
                clip = sample_split(replace(pairs, frames=frames), split, count, seed)
            except LaminaError as error:
                refused = error
                continue
            if split == "train":
                warn(f"{source.name}: has no held-out transitions; those of the training split are shown")
            return clip, split
    assert refused is not None
    raise refused


def _cameras(source: Dataset, camera: str | None) -> tuple[str, ...]:
    """The cameras of ``source`` that a choice means: the first one for None, "all", or that of a name."""
    return source.cameras if camera == "all" else source.cameras[:1] if camera is None else (camera,)


def _translator(run: Path, model: LatentActionModel) -> tuple[Translator | None, TranslatorNote | None]:
    """The translator of a run that was aligned. Raises LaminaError for one that belongs to another model."""
    folder = translator_folder(run)
    if not (folder / "translator.json").exists():
        return None, None
    translator, note = load_translator(folder)
    if note.latent != model.config.action_length * model.lam.dim:
        raise LaminaError(f"{folder}: reads {note.latent} numbers, not this model's latents; align again")
    return translator.to(model.device), note


def clusters(
    model: LatentActionModel, latents: Latent, clip: Clip, spec: ActionSpec | None, seed: int = 0
) -> tuple[Cluster, ...]:
    """Up to nine clusters of the latent actions (k-means), the largest first."""
    flat = model.lam.action(latents).flatten(1).numpy().astype(np.float64)
    count = min(KEYS, len(np.unique(flat.round(6), axis=0)))
    fit = KMeans(count, n_init=4, random_state=seed).fit(flat)
    action = None if clip.action is None else clip.action[:, 0].numpy()
    found = []
    for number in range(count):
        members = np.flatnonzero(fit.labels_ == number)
        near = members[np.linalg.norm(flat[members] - fit.cluster_centers_[number], axis=1).argsort(kind="stable")]
        label = "" if spec is None or action is None else cluster_label(spec, action[members], action)
        found.append(Cluster(int(near[0]), _different(near, clip.episode.numpy()), members, label))
    return tuple(sorted(found, key=lambda cluster: (-len(cluster.members), cluster.medoid)))


def _different(near: Int[np.ndarray, "n"], episode: Int[np.ndarray, "m"]) -> tuple[int, ...]:
    """The first of ``near``, of different episodes as far as there are any."""
    _, first = np.unique(episode[near], return_index=True)
    ahead = np.sort(first)
    order = [*ahead, *np.setdiff1d(np.arange(len(near)), ahead)]
    return tuple(int(near[n]) for n in order[:EXAMPLES])


def cluster_label(spec: ActionSpec, own: Float[np.ndarray, "n a"], every: Float[np.ndarray, "m a"]) -> str:
    """What the real actions of a cluster have in common: the most frequent class with its share, else the two continuous dimensions that
    are furthest from the mean of ``every`` action, in standard deviations."""
    if spec.discrete:
        counts = np.bincount(own[:, 0].astype(int), minlength=spec.discrete[0])
        return f"{class_name(spec, 0, int(counts.argmax()))} {100 * counts.max() / len(own):.0f}%"
    score = (own.mean(0) - every.mean(0)) / np.maximum(every.std(0), 1e-6)
    largest = np.abs(score).argsort()[::-1][:2]
    # The minus sign, not a hyphen, after which a browser breaks the line.
    shown = [(dimension_name(spec, int(i)), f"{score[i]:+.1f}σ".replace("-", "\N{MINUS SIGN}")) for i in largest]
    return ", ".join(f"{name} {value}" for name, value in shown)


def dimension_name(spec: ActionSpec, i: int) -> str:
    """The name of a dimension of an action, or its number."""
    return spec.names[i] if len(spec.names) == spec.dim else f"a{i}"


def class_name(spec: ActionSpec, i: int, n: int) -> str:
    """The name of a class: LeRobot's names of a single discrete dimension may be those of its classes."""
    if spec.dim == 1 and len(spec.names) == spec.discrete[0]:
        return spec.names[n]
    return str(n) if spec.dim == 1 else f"{dimension_name(spec, i)} = {n}"


def describe(spec: ActionSpec, action: Float[np.ndarray, "a"]) -> str:
    """An action in words."""
    d = len(spec.discrete)
    parts: Sequence[str] = [class_name(spec, i, int(action[i])) for i in range(d)]
    return ", ".join(
        [*parts, *(f"{dimension_name(spec, i)}\N{NO-BREAK SPACE}{action[i]:+.2f}" for i in range(d, spec.dim))]
    )
