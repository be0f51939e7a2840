"""Training, saving and loading of the token model."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from einops import rearrange
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from lamina.data.augment import shifted
from lamina.data.dataset import Data, name_of
from lamina.data.sampling import open_source
from lamina.data.shots import detector_name
from lamina.device import pick_device
from lamina.errors import LaminaError
from lamina.files import locked
from lamina.models.bottlenecks.fsq import FSQ
from lamina.models.hub import LatentActionModel
from lamina.models.lam import LAM
from lamina.policies.base import save_parts
from lamina.policies.encoded import fingerprint, run_detector
from lamina.policies.token_model import TokenConfig, TokenModel
from lamina.policies.windows import Window, WindowStream, encode_windows, fixed_windows, mean_valid_steps, open_steps
from lamina.records import CodebookSize, Extent, Image, Seconds, read_note
from lamina.rng import Rng
from lamina.training.checkpoints import BestCheckpoint
from lamina.training.distributed import Processes
from lamina.training.loop import Validation, fit
from lamina.training.settings import TrainConfig, fixed_options, keep_settings
from lamina.version import __version__
from lamina.weights import load_module

FORMAT = 3  # of config.json and model.safetensors; raised when an old file can no longer be read


def token_losses(model: TokenModel, batch: Window, draws: Rng, valid_steps: float) -> dict[str, Float[Tensor, "b"]]:
    """Cross-entropy of the codes (App. B.2), one term a window.

    ``valid_steps``: the mean number of valid steps in a window (:func:`mean_valid_steps`). It is the same for all parts of a batch, so
    every code has the same weight, however full its part is; the mean over many batches is in nats a code.
    """
    if model.training and model.config.shift:
        frames = rearrange(batch.frames, "b t h w c -> b 1 t c h w")
        moved = shifted(frames, model.config.shift, draws)
        batch = dataclasses.replace(batch, frames=rearrange(moved, "b 1 t c h w -> b t h w c"))
    nats = model.cross_entropy(batch).sum((1, 2))
    return {"codes": nats / (valid_steps * model.slots)}


def token_diagnostics(windows: Window, batch: int = 8) -> Any:
    """A function ``validate(model)``: nats a code on fixed windows, over all slots and for the first alone."""

    @torch.no_grad()
    def validate(model: TokenModel) -> Validation:
        device = model.place.device
        parts = [
            Window(*(x[i : i + batch] for x in (windows.frames, windows.codes, windows.valid)))
            for i in range(0, len(windows), batch)
        ]
        nats = (
            torch.cat([model.cross_entropy(part.to(device)).sum(1).cpu() for part in parts]).sum(0)
            / windows.valid.sum()
        )
        return {"codes": float(nats.mean()), "first_slot": float(nats[0])}, []

    return validate


def check_codebook(model: LatentActionModel) -> int:
    """Size of the codebook. Raises LaminaError for a LAM without one."""
    size = model.lam.bottleneck.codebook_size
    if not size:
        raise LaminaError(
            f"this {model.provenance.method} model has no codebook, and a token model predicts codebook entries; train a LAM with FSQ or VQ"
        )
    return size


def train_token_model(
    run: Path, path: Data, config: TokenConfig, training: TrainConfig, camera: str | None = None
) -> Path:
    """Train the token model of RUN's LAM on the frames of ``path``, without any action; returns RUN/policy.

    What is kept is the average of the weights, or those of the lowest validation loss where that is lower still.
    RUN/policy/tokens/ keeps the encoded data for the next time, checkpoints/ and log.jsonl are the loop's, config.json (written last)
    and model.safetensors the result. Raises LaminaError for a LAM without a codebook, a policy that is there already without
    ``resume``, a resumed run with other settings, data that cannot be read.
    """
    with locked(run / "policy") if Processes.here().rank == 0 else nullcontext():
        return _train_token_model(run, path, config, training, camera)


def _train_token_model(run: Path, path: Data, config: TokenConfig, training: TrainConfig, camera: str | None) -> Path:
    folder = run / "policy"
    model = LatentActionModel.from_pretrained(str(run)).to(pick_device(training.device))
    codebook_size = check_codebook(model)
    if (folder / "config.json").exists() and not training.resume:
        raise LaminaError(f"{folder}: trained already; add --resume to go on, or delete that folder")
    print_of_lam, source = fingerprint(model.lam), open_source(path)
    image, slots = model.config.image, model.config.action_length
    torch.manual_seed(training.seed)
    bottleneck = model.lam.bottleneck
    levels = tuple(bottleneck.levels.tolist()) if isinstance(bottleneck, FSQ) else ()
    tokens = TokenModel(config, image, slots, codebook_size, print_of_lam, levels=levels, camera=camera)
    rank = Processes.here().rank
    settings = {
        "token_model": dataclasses.asdict(config),
        "train": fixed_options(training),
        "data": source.fingerprint(),
        "camera": camera,
        "lam": print_of_lam,
    }
    find = run_detector(run, source)
    settings |= {"shots": detector_name(find)} if find else {}
    if rank == 0:
        if not training.resume:  # what a killed run left
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
            (folder / "best.safetensors").unlink(missing_ok=True)
        keep_settings(folder / "training.json", settings, training.resume)
    index = encode_windows(
        model, source, folder / "tokens", print_of_lam, camera, training.precision, find=find, wait=rank > 0
    )
    tokens.decision_seconds = index["decision_seconds"]
    steps = open_steps(folder / "tokens", "train")
    held = fixed_windows(open_steps(folder / "tokens", "validation"), config.length, config.stride)

    def open_stream(shards: int, own: Sequence[int]) -> WindowStream:
        batch = training.batch // training.accumulate
        return WindowStream(steps, config.length, config.stride, batch, training.seed, shards, own)

    def losses(module: TokenModel, batch: Window, draws: Rng) -> dict[str, Float[Tensor, "b"]]:
        return token_losses(module, batch, draws, valid_steps)

    valid_steps = mean_valid_steps(steps, config.length, config.stride)
    validate, best = token_diagnostics(held), BestCheckpoint(folder / "best.safetensors")

    def watch(current: TokenModel) -> Validation:
        figures, messages = validate(current)
        if rank == 0:
            best.update(current, figures["codes"])
        return figures, messages

    state = fit(folder, tokens, losses, {"codes": 1.0}, open_stream, training, watch, "train tokens")
    if rank == 0:
        tokens.load_state_dict(state)
        figures, _ = validate(tokens.eval())
        kept = "average" if training.ema else "last"
        if best.loss < figures["codes"]:  # too many steps for so little data
            best.restore(tokens)
            figures, kept = validate(tokens)[0], "best"
        note = {"data": name_of(path), "steps": training.steps, "seed": training.seed}
        note |= {"validation": figures, "kept": kept}
        save_token_model(folder, tokens, note)
    return folder


@dataclass(frozen=True)
class _Note:
    """What RUN/policy/config.json says of the token model itself: the arguments of :class:`TokenModel`."""

    config: TokenConfig
    image: Image
    slots: Extent
    codebook_size: CodebookSize
    fingerprint: str
    decision_seconds: Seconds | None
    levels: Annotated[tuple[CodebookSize, ...], Field(max_length=20)]
    camera: str | None = None


#: Fields of config.json that determine the meaning of the weights; also stored in model.safetensors.
MEANING = tuple(field.name for field in dataclasses.fields(_Note) if field.name != "camera")


def save_token_model(folder: Path, model: TokenModel, note: dict[str, Any]) -> None:
    """FOLDER/model.safetensors, then config.json, whose presence says that both are whole."""
    config = {
        "format": FORMAT,
        "lamina": __version__,
        "config": dataclasses.asdict(model.config),
        "image": list(model.image),
        "slots": model.slots,
        "codebook_size": model.codebook_size,
        "levels": list(model.levels),
        "fingerprint": model.fingerprint,
        "decision_seconds": model.decision_seconds,
        "camera": model.camera,
        **note,
    }
    save_parts(folder, model.state_dict(), {name: config[name] for name in MEANING}, config)


def load_token_model(folder: Path, lam: LAM | None = None) -> TokenModel:
    """A saved token model. Raises LaminaError if there is none, if it is damaged, or if it was trained on the codes of another LAM."""
    path = folder / "config.json"
    remedy = f"delete {folder} and train the token model again"
    if not path.exists():
        raise LaminaError(f"{folder}: no token model here; train one first (lamina policy)")
    note, record = read_note(path, _Note, {"format": FORMAT}, remedy)
    meaning = {name: value for name, value in record.items() if name in MEANING}
    model = load_module(lambda: TokenModel(**vars(note)), path, folder / "model.safetensors", meaning)
    if lam is not None:
        check_lam(model, lam, str(folder))
    return model.eval()


def check_lam(model: TokenModel, lam: LAM, name: str = "this token model") -> None:
    """Raises LaminaError if ``model`` was trained on the codes of another LAM."""
    if model.fingerprint and model.fingerprint != fingerprint(lam):
        raise LaminaError(
            f"{name}: was trained on the codes of another LAM (its encoder or bottleneck differs); train a token model for this one"
        )
    if (model.slots, model.codebook_size, model.image) != (
        lam.config.action_length,
        lam.bottleneck.codebook_size,
        lam.config.image,
    ):
        raise LaminaError(
            f"{name}: predicts {model.slots} codes of {model.codebook_size} from pictures {model.image}, the LAM has "
            f"{lam.config.action_length} of {lam.bottleneck.codebook_size} and reads {lam.config.image}"
        )
