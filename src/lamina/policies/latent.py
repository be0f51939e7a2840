"""Latent behaviour cloning as a kind of policy: pi(z | o) on every frame without labels, and the run's translator (App. D of *Why Latent
Actions Fail*).

    lamina policy RUN --kind latent --data DATASET

The network regresses the latent of the next transition from the present frame and the one of the decision before
(:mod:`lamina.policies.cloning`). It decides once a label gap, as the translator was aligned; works with the latents of any method, on the
side of the quantiser that the translator reads.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lamina.data.augment import shifted
from lamina.data.dataset import Data, name_of
from lamina.data.sampling import open_source
from lamina.data.shots import detector_name
from lamina.data.stream import evenly_spaced
from lamina.device import pick_device
from lamina.errors import LaminaError
from lamina.files import locked
from lamina.losses.reconstruction import squared_error
from lamina.models.adaptive import AdaptiveK, Length, check_length
from lamina.models.config import Side
from lamina.models.features import FITTED_FRAMES, fit_space
from lamina.models.heads import Translator
from lamina.models.hub import LatentActionModel, translator_folder
from lamina.options import check_options
from lamina.policies.base import PolicyKind, named, only_one, save_parts
from lamina.policies.cloning import FramePairRegressor, FramePairs, FramePolicy
from lamina.policies.encoded import fingerprint, run_detector
from lamina.policies.windows import LATENTS, Steps, encode_windows, open_steps
from lamina.records import Seconds, read_note
from lamina.rng import Rng
from lamina.training.alignment import load_translator
from lamina.training.heads import fit_head
from lamina.training.settings import TrainConfig, fixed_options, keep_settings
from lamina.version import __version__
from lamina.weights import load_module

FORMAT = 1  # of config.json and model.safetensors; raised when an old file can no longer be read
NAME = "latent"
HELD = 2048  # validation transitions, at most, that choose the checkpoint


@dataclass(frozen=True)
class LatentConfig:
    """How latents are regressed. The network has the shape of the LAM's encoder."""

    shift: float = 0.0625
    """augmentation: largest random shift of the pictures, as a share of their side; 0: none"""

    def __post_init__(self) -> None:
        check_options(self)


class LatentPairs:
    """The pairs of frames and the latents of encoded steps, read from disk when they are asked for."""

    def __init__(self, steps: Steps):
        self.steps = steps
        begins = np.zeros(len(steps), bool)
        begins[steps.bounds[:-1]] = True
        self.before = np.arange(len(steps)) - ~begins  # an episode's first frame stands in for the one before it

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, rows: Any) -> FramePairs:
        chosen = np.asarray(rows)
        frames = np.stack([self.steps.frames[self.before[chosen]], self.steps.frames[chosen]], axis=1)
        target = torch.from_numpy(np.array(self.steps.actions[chosen]))
        return FramePairs(torch.from_numpy(frames).permute(0, 1, 4, 2, 3).contiguous(), target)


def train_latent_policy(
    run: Path, sources: Sequence[Data], config: LatentConfig, training: TrainConfig, cameras: Sequence[str] = ()
) -> Path:
    """Train pi(z | o) on the frames of one dataset and camera, without any action; returns RUN/policy.

    Weights of the lowest validation loss are kept. RUN/policy/latents/ keeps the encoded data for the next time, checkpoints/ and log.jsonl
    are the loop's, config.json (written last) and model.safetensors the result. Raises LaminaError for a policy that is there already
    without ``resume``, a resumed run with other settings, data that cannot be read.
    """
    path, camera = only_one(sources, "dataset"), only_one(cameras, "camera") if cameras else None
    folder = run / "policy"
    with locked(folder):
        model = LatentActionModel.from_pretrained(str(run)).to(pick_device(training.device))
        if (folder / "config.json").exists() and not training.resume:
            raise LaminaError(f"{folder}: trained already; add --resume to go on, or delete that folder")
        lam, source = fingerprint(model.lam), open_source(path)
        side, find = side_of(run, model), run_detector(run, source)
        settings = {
            "latent_policy": dataclasses.asdict(config), "train": fixed_options(training), "data": source.fingerprint(),
            "camera": camera, "lam": lam, "side": side,
        }  # fmt: skip
        settings |= {"shots": detector_name(find)} if find else {}
        if not training.resume:  # what a killed run left
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
            (folder / "best.safetensors").unlink(missing_ok=True)
        keep_settings(folder / "training.json", settings, training.resume)
        index = encode_windows(model, source, folder / LATENTS, lam, camera, training.precision, side, find)
        train, held = (LatentPairs(open_steps(folder / LATENTS, split, LATENTS)) for split in ("train", "validation"))
        torch.manual_seed(training.seed)
        regressor = FramePairRegressor(model.config, train.steps.actions.shape[1])
        regressor.calibrate(torch.from_numpy(np.array(train.steps.actions)))
        fit_space(regressor.space, train[evenly_spaced(len(train), FITTED_FRAMES)].frames[:, 1])

        def losses(module: FramePairRegressor, batch: FramePairs, draws: Rng) -> dict[str, Float[Tensor, "b"]]:
            frames = batch.frames
            if module.training and config.shift:
                frames = shifted(frames[:, None], config.shift, draws)[:, 0]
            return {"action": squared_error(module.standardised(frames), module.standardise(batch.target))}

        fixed = held[evenly_spaced(len(held), HELD)]
        loss = fit_head(regressor, losses, train, fixed, training, folder, title="train latent policy")
        note: dict[str, Any] = {"data": name_of(path), "camera": camera, "steps": training.steps, "seed": training.seed}
        note |= {"validation": {"latent": loss}, "lam": lam, "side": side}
        save_latent_policy(folder, regressor.cpu(), index["decision_seconds"], note)
    return folder


def side_of(run: Path, model: LatentActionModel) -> Side:
    """The side of the quantiser that the run's translator reads; where the run is not aligned yet, that of its latent action."""
    folder = translator_folder(run)
    aligned = (folder / "translator.json").exists()
    return load_translator(folder)[1].side if aligned else model.config.action_side


@dataclass(frozen=True)
class _Note:
    """What RUN/policy/config.json says that is needed to play."""

    decision_seconds: Seconds | None
    lam: str
    side: Side
    outputs: int
    camera: str | None = None


def save_latent_policy(
    folder: Path, regressor: FramePairRegressor, decision_seconds: float | None, note: dict[str, Any]
) -> None:
    """FOLDER/model.safetensors, then config.json, whose presence says that both are whole."""
    note = note | {"decision_seconds": decision_seconds, "outputs": regressor.head.out_features}
    meaning = {name: note[name] for name in ("lam", "side", "outputs")}
    config = {"kind": NAME, "format": FORMAT, "lamina": __version__, **note}
    save_parts(folder, regressor.state_dict(), meaning, config)


class LatentPolicy(FramePolicy):
    """pi(z | o) and a translator, for ``batch`` episodes at once; reads one camera."""

    read: LatentReader

    @property
    def kept(self) -> Int[np.ndarray, "b"] | None:  # type: ignore[override]
        return self.read.kept

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
    ) -> LatentPolicy:
        """The policy of a run folder: RUN/model, RUN/policy and RUN/translator (or RUN/joint, which holds all three).

        ``k``: slots that the translator reads (all by default); a rule reads the predicted latents, which are means over what may follow
        and not codes.

        Raises LaminaError for a missing or damaged part, a policy of another LAM, a translator of the other side of the quantiser, and a
        ``temperature``: this policy is deterministic, so ``seed`` changes nothing. It computes in fp32, whatever ``precision`` is.
        """
        if temperature:
            raise LaminaError("a latent policy is deterministic; leave out the temperature")
        run, place = Path(run), pick_device(device)
        model = LatentActionModel.from_pretrained(str(run), map_location=place).eval()
        translator, aligned = load_translator(translator_folder(run))
        path = run / "policy" / "config.json"
        remedy = f"delete {path.parent} and train the policy again"
        note, record = read_note(path, _Note, {"format": FORMAT}, remedy)
        if note.lam != fingerprint(model.lam):
            raise LaminaError(f"{path.parent}: was trained with another LAM; train a policy for this one")
        width = model.config.action_length * model.lam.dim
        if note.side != aligned.side or note.outputs != width:
            raise LaminaError(
                f"{path.parent}: predicts {note.outputs} numbers of {note.side} latents, and the run's translator reads {width} of "
                f"{aligned.side} ones; train the policy again"
            )
        if aligned.low is None:  # by an older version, which cut every action to this
            translator.action.low.fill_(-1)
            translator.action.high.fill_(1)
        regressor = load_module(
            lambda: FramePairRegressor(model.config, note.outputs),
            path,
            path.with_name("model.safetensors"),
            {name: record[name] for name in ("lam", "side", "outputs")},
        )
        if k == "auto":
            k = check_length(k, model.config, model.lam.dim, run)
        reader = LatentReader(model, translator.to(place).eval(), note.side, model.config.slots if k is None else k)
        return cls(
            regressor.to(place).eval(), reader, translator.spec, model.config.image, batch, note.decision_seconds,
            chunk=translator.steps, device=place, cameras=named(note.camera),
        )  # fmt: skip


class LatentReader:
    """Turns predicted latents into actions: prefix, then the translator with what it was conditioned on."""

    kept: np.ndarray | None = None  # slots that it read of each row's last latent

    def __init__(self, model: LatentActionModel, translator: Translator, side: Side, k: int | AdaptiveK):
        if isinstance(k, AdaptiveK):
            check_length(k, model.config, model.lam.dim, None)
            if side != "quantised":
                raise LaminaError("k=auto reads quantised latents, and this policy predicts those before the quantiser")
            k = k.to(model.device)
        elif not 1 <= k <= model.config.slots or (k < model.config.slots and model.lam.config.prefix == "full"):
            raise LaminaError(
                f"k must be from 1 to the {model.config.slots} slots of a LAM with retained prefixes, got {k}"
            )
        self.model, self.translator, self.side, self.k = model, translator, side, k

    def __call__(
        self, output: Float[Tensor, "b o"], previous: Float[Tensor, "b a"], present: Tensor
    ) -> Float[Tensor, "b c"]:
        """The packed actions (:meth:`ActionSpec.pack`) of predicted latents, after the ``previous`` action, in the ``present`` frames."""
        lam = self.model.lam
        z = output.unflatten(1, (-1, lam.dim))
        keep = self.k.lengths(z) if isinstance(self.k, AdaptiveK) else torch.full((len(z),), self.k, device=z.device)
        z, self.kept = lam.prefix(z, keep), keep.cpu().numpy()
        observation = None
        if "observation" in self.translator.condition:  # as lamina.inference.encode.observe: the frame against itself
            features = lam.embed(self.model.read(present))
            observation = lam.action(lam.pair(features, features), self.side).flatten(1)
        return self.translator.action.choose(self.translator(z, previous, observation))


KIND = PolicyKind(
    title="regresses the next latent from two frames (latent behaviour cloning), the translator reads it; any method, one camera",
    config=LatentConfig,
    training={"steps": 3000, "batch": 64, "lr": 1e-3, "ema": 0.0, "validate_every": 200},
    train=train_latent_policy,
    policy=LatentPolicy,
)
