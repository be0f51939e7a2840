"""`lamina adaptive-k` fits the rule that chooses the prefix length of each latent action, and writes RUN/adaptive_k
(:mod:`lamina.models.adaptive`)."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lamina.data.dataset import Data
from lamina.data.sampling import open_source
from lamina.data.stream import sample_split
from lamina.device import pick_device
from lamina.errors import LaminaError
from lamina.files import Scratch, checkpoint_hash, locked, sha256
from lamina.models.adaptive import FLOOR, NAME, AdaptiveK, Changed, RemainingChange, check_prefixes, save_rule
from lamina.models.feature_cache import kept_features
from lamina.models.heads import Translator
from lamina.models.hub import LatentActionModel, model_folder, translator_folder
from lamina.models.lam import LAM
from lamina.options import check_options
from lamina.rng import Rng
from lamina.training.alignment import load_translator
from lamina.training.heads import fit_head, head_training
from lamina.training.labelled import LabelledTransitions, encode_labels, probe_data
from lamina.types import Clip, TensorRecord

BATCH = 64  # pairs that are decoded at once, at one prefix length
HELD = 0.25  # share of the episodes that choose the checkpoint and the threshold


@dataclass(frozen=True)
class AdaptiveConfig:
    """How the rule is fitted."""

    tokens: float | None = None
    """mean number of slots that the threshold is calibrated to, on training episodes; default: a quarter of the longest, at least 1"""
    most: int | None = None
    """the longest prefix, against which is measured what a shorter one leaves out; default: all slots. With few labels the whole code may
    be worse than some prefix: then take that one's length"""
    of: Literal["auto", "action", "picture"] = "auto"
    """what the slots that are left out must not change: the action that the run's translator reads, or the decoder's picture, which needs
    no labels; auto: action where the run is aligned"""
    transitions: int = 2048
    """training transitions that the rule is fitted to; of action it reads the action before each of them, where the translator does"""
    steps: int = 1000
    """training steps of the rule's network"""
    seed: int = 0
    camera: str | None = None
    """camera of a LeRobot dataset; default: that of the alignment where the action decides, else the first"""

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True)
class PrefixChanges(TensorRecord):
    """Quantised latents, and how far what is made of each prefix k = 1 .. K-1 is from what is made of the whole latent."""

    z: Float[Tensor, "n k d"]
    change: Float[Tensor, "n m"]
    episode: Int[Tensor, "n"]

    def __len__(self) -> int:
        return len(self.z)


def adaptive_k(run: Path, path: Data, config: AdaptiveConfig = AdaptiveConfig(), device: str = "auto") -> AdaptiveK:
    """Fit the rule of RUN's model on training transitions of ``path``, write it to RUN/adaptive_k and return it.

    Raises LaminaError for a LAM without retained prefixes, a rule that is there already, slots that change nothing, a mean length that the
    model does not have; of the action also for a run that is not aligned or reads latents before the quantiser, and data without actions.
    """
    folder = run / NAME
    with locked(folder), kept_features():
        model = LatentActionModel.from_pretrained(str(run)).to(pick_device(device))
        check_prefixes(model.config)
        if (folder / "rule.json").exists():
            raise LaminaError(f"{folder}: there is a rule already; delete that folder to fit it again")
        slots = model.config.slots
        most = slots if config.most is None else config.most
        if not 2 <= most <= slots:
            raise LaminaError(f"--most must be from 2 to the model's {slots} slots, got {most}")
        aligned = translator_folder(run)
        of: Changed = "action" if (aligned / "translator.json").exists() else "picture"
        of = of if config.of == "auto" else config.of
        translator, note = load_translator(aligned) if of == "action" else (None, None)
        camera = note.camera_of(open_source(path), config.camera, aligned) if note else config.camera
        data = replace(probe_data(model, path, camera), action=note.action if note else None)
        clip = sample_split(data, "train", config.transitions, seed=config.seed, require_action=translator is not None)
        if translator is None or note is None:
            items = picture_changes(model.lam, clip, most)
        else:
            if note.side != "quantised":
                raise LaminaError(
                    f"{aligned}: reads latents before the quantiser, and k = auto needs codes; add --of picture"
                )
            observed = "observation" in translator.condition
            labelled = encode_labels(model.lam, clip, "quantised", observed)
            items = action_changes(translator, model.lam, labelled, most)
        reader = sha256(aligned / "translator.safetensors") if of == "action" else None
        rule = replace(fit_rule(items, config, checkpoint_hash(model_folder(run))), of=of, translator=reader)
        save_rule(folder, rule)
    return rule


@torch.no_grad()
def action_changes(translator: Translator, lam: LAM, items: LabelledTransitions, most: int) -> PrefixChanges:
    """What each shorter prefix leaves out of the translator's reading of the first ``most`` slots of ``items``, whose own actions are not
    read; on the CPU."""
    translator, prefix = translator.cpu().eval(), copy.deepcopy(lam.prefix).cpu()

    def read(k: int) -> Tensor:
        return translator(prefix(items.z, k), items.previous, items.observation)

    whole = read(most)
    left = [translator.action.change(whole, read(k)).clamp_min(0) for k in range(1, most)]
    return PrefixChanges(items.z[:, :most], torch.stack(left, dim=1), items.episode)


@torch.no_grad()
def picture_changes(lam: LAM, clip: Clip, most: int) -> PrefixChanges:
    """The first ``most`` slots of the latent of each clip's first pair, and what each shorter prefix leaves out of the decoder's prediction
    from them; on the CPU."""
    device = next(lam.parameters()).device
    lam.eval()
    codes, changes = [], []
    for rows in torch.arange(len(clip)).split(BATCH):
        view = lam.view(clip[rows].to(device))
        z, src = lam.encode(view, [(0, 1)]).own[0, 1].post, view.inputs([0])

        def predicted(k: int, z: Tensor = z, src: Tensor = src) -> Tensor:
            # Every prefix meets the same noise of a flow, so that predictions differ by their prefix alone.
            return lam.decoder.sample(src, lam.prefix(z, k), Rng(0, device=device)).float()

        whole = predicted(most)
        left = [(predicted(k) - whole).square().flatten(1).mean(1) for k in range(1, most)]
        codes.append(z[:, :most].float().cpu())
        changes.append(torch.stack(left, dim=1).cpu())
    return PrefixChanges(torch.cat(codes), torch.cat(changes), clip.episode.cpu())


def fit_rule(items: PrefixChanges, config: AdaptiveConfig, checkpoint: str) -> AdaptiveK:
    """The rule for a LAM with these prefixes. ``checkpoint``: sha256 of its weights.

    The network minimises y exp(-s) + s, whose minimum exp(s) is the mean of y given what it reads, whatever the unit of y (the gamma
    deviance). Raises LaminaError as :func:`adaptive_k`.
    """
    slots = items.z.shape[1]
    tokens = max(1.0, slots / 4) if config.tokens is None else config.tokens
    if not 1 <= tokens <= slots:
        raise LaminaError(f"--tokens must be from 1 to the longest prefix, {slots} slots, got {tokens:g}")
    scale = items.change.mean(0)
    if not bool((scale > 0).all()):
        raise LaminaError(
            "the slots behind a prefix change nothing, so there is nothing to choose: train longer, and look at lamina doctor"
        )
    mask = held_out(items.episode, config.seed)
    torch.manual_seed(config.seed)
    head = RemainingChange(slots, items.z.shape[2])
    head.scale.copy_(scale)

    def losses(module: RemainingChange, batch: PrefixChanges, rng: Rng) -> dict[str, Float[Tensor, "b"]]:
        s, y = module(batch.z), batch.change / module.scale + FLOOR
        return {"action": (y * (-s).exp() + s).mean(1)}

    with Scratch() as scratch:
        training = replace(
            head_training(config.steps, config.seed, lr=1e-3), validate_every=max(10, config.steps // 20)
        )
        fit_head(head, losses, items[~mask], items[mask], training, Path(scratch), title="adaptive k")
    rule = AdaptiveK(head.cpu().eval(), 0.0, float(slots), checkpoint)
    return calibrated(rule, items[mask].z, tokens)


def held_out(episode: Int[Tensor, "n"], seed: int) -> Bool[Tensor, "n"]:
    """About a quarter of the transitions, by episode; of a single episode the last ones."""
    episodes = episode.unique()
    if len(episodes) == 1:
        return torch.arange(len(episode)) >= round((1 - HELD) * len(episode))
    order = episodes[torch.randperm(len(episodes), generator=torch.Generator().manual_seed(seed))]
    return torch.isin(episode, order[: max(1, round(HELD * len(order)))])


def calibrated(rule: AdaptiveK, z: Float[Tensor, "n k d"], tokens: float) -> AdaptiveK:
    """``rule`` with the lowest threshold at which the mean length of the codes ``z`` is at most ``tokens``, 1 .. K."""
    remaining = torch.stack([rule.remaining(z, k) for k in range(1, z.shape[1])], dim=1)
    # A length changes only where the threshold passes one of these numbers; the mean length falls as it rises.
    edges = torch.cat([remaining.flatten().unique(), torch.tensor([torch.inf])])

    def at(place: int) -> AdaptiveK:
        return replace(rule, threshold=float(edges[place]))

    low, high = 0, len(edges) - 1
    while low < high:
        middle = (low + high) // 2
        if float(at(middle).lengths(z).float().mean()) <= tokens:
            high = middle
        else:
            low = middle + 1
    found = at(low)
    if found.threshold == torch.inf:  # one slot for all: a number that is written as JSON
        found = replace(found, threshold=2 * float(edges[-2]))
    return replace(found, tokens=float(found.lengths(z).float().mean()))
