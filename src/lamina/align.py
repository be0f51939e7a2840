"""Stage 2: tie latent actions to real ones with few labels (FlexLAM §4.2, §6.3).

The translator is an Hourglass MLP on the flattened, null-filled K slots and the previous action, trained over the model's own p(k).
The inverse dynamics model (IDM) is the same head on an encoder of its own, without a bottleneck.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lamina.data import ClipStream, DataConfig, count_transitions, gather, open_source, parse_data
from lamina.draws import Draws
from lamina.encoder import ENCODERS
from lamina.errors import LaminaError
from lamina.files import disk_errors, partial_path, sync, write_text
from lamina.lam import LAM, LAMConfig, LatentActionModel, load_weights, part_kind
from lamina.shapes import ActionSpec, Clip, to_float
from lamina.sizes import SizeName
from lamina.train import Losses, TrainConfig, fit

FORMAT = 1  # of translator.json; raised when an old file can no longer be read
Condition = Literal["latent", "latent+previous", "latent+previous+observation"]


class Hourglass(nn.Module):
    """Hourglass MLP (Chen et al. 2025): residual stream at the wide width, each block narrows and widens again. [b i] -> [b o]."""

    def __init__(
        self, inputs: int, outputs: int, width: int = 512, narrow: int = 128, layers: int = 3, dropout: float = 0.1
    ):
        super().__init__()
        self.inputs = nn.Linear(inputs, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, narrow), nn.GELU(), nn.Dropout(dropout), nn.Linear(narrow, width)
            )
            for _ in range(layers)
        )
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, outputs))

    def forward(self, x: Float[Tensor, "b i"]) -> Float[Tensor, "b o"]:
        x = self.inputs(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


class ActionHead(nn.Module):
    """What is common to all who predict actions: how an action is fed back, predicted, scored and read off.

    Discrete dimensions: one-hot in, logits out, cross-entropy. Continuous ones are standardised by ``mean`` and ``std`` [a_c] of the labels
    and scored by squared error.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: ActionSpec):
        super().__init__()
        self.spec = spec
        self.width = spec.width
        self.register_buffer("mean", torch.zeros(spec.continuous))
        self.register_buffer("std", torch.ones(spec.continuous))

    def calibrate(self, action: Float[Tensor, "n a"]) -> None:
        """Take mean and standard deviation of the continuous dimensions from the labels."""
        if not self.spec.continuous:
            return
        continuous = action[:, len(self.spec.discrete) :]
        self.mean.copy_(continuous.mean(0))
        self.std.copy_(continuous.std(0, correction=0).clamp_min(1e-6))

    def embed(self, action: Float[Tensor, "b a"]) -> Float[Tensor, "b e"]:
        """One-hot discrete and standardised continuous dimensions."""
        hot, continuous = self.spec.one_hot(action).tensor_split([sum(self.spec.discrete)], dim=-1)
        return torch.cat([hot, (continuous - self.mean) / self.std], dim=-1)

    def split(self, output: Float[Tensor, "b e"]) -> tuple[list[Float[Tensor, "b n"]], Float[Tensor, "b c"]]:
        """Logits of each discrete dimension, and the standardised continuous ones."""
        *logits, continuous = output.split([*self.spec.discrete, self.spec.continuous], dim=-1)
        return logits, continuous

    def loss(self, output: Float[Tensor, "b e"], action: Float[Tensor, "b a"]) -> Float[Tensor, "b"]:
        """Mean over the dimensions of cross-entropy (nats) and squared error (in units of the labels' variance)."""
        logits, continuous = self.split(output.float())
        terms = [F.cross_entropy(x, action[:, i].long(), reduction="none") for i, x in enumerate(logits)]
        if self.spec.continuous:
            target = self.embed(action)[:, sum(self.spec.discrete) :]
            terms += list((continuous - target).square().unbind(-1))
        return torch.stack(terms).mean(0)

    def read(self, output: Float[Tensor, "b e"]) -> Float[Tensor, "b a"]:
        """The most likely action."""
        logits, continuous = self.split(output.float())
        best = [x.argmax(-1).float() for x in logits]
        return torch.cat([torch.stack(best, -1) if best else continuous[:, :0], continuous * self.std + self.mean], -1)


#: Width of the translator at each ``--size``; its blocks narrow to a quarter.
WIDTHS: dict[str, int] = {"debug": 64, "tiny": 256, "small": 512, "base": 1024}


@dataclass(frozen=True)
class TranslatorConfig:
    """The translator's shape and what it reads."""

    condition: Condition = "latent+previous"
    """App. D.1; latent+previous is the paper's choice"""
    size: SizeName = "small"
    width: int | None = None
    """derived from --size"""
    narrow: int | None = None
    """derived: a quarter of the width"""
    layers: int = 3
    dropout: float = 0.1

    def widths(self) -> tuple[int, int]:
        """Wide and narrow width of the Hourglass MLP."""
        wide = self.width or WIDTHS[self.size]
        return wide, self.narrow or wide // 4


class Translator(nn.Module):
    """g(null-filled latent, previous action[, features of o_t]) -> action."""

    def __init__(
        self, latent: int, spec: ActionSpec, config: TranslatorConfig = TranslatorConfig(), observation: int = 0
    ):
        super().__init__()
        self.action = ActionHead(spec)
        self.condition = config.condition
        inputs = latent
        inputs += self.action.width if "previous" in config.condition else 0
        inputs += observation if "observation" in config.condition else 0
        self.mlp = Hourglass(inputs, self.action.width, *config.widths(), config.layers, config.dropout)

    def forward(
        self,
        z: Float[Tensor, "b ..."],
        previous: Float[Tensor, "b a"],
        observation: Float[Tensor, "b o"] | None = None,
    ) -> Float[Tensor, "b e"]:
        parts = [z.float().flatten(1)]
        if "previous" in self.condition:
            parts.append(self.action.embed(previous))
        if "observation" in self.condition:
            assert observation is not None
            parts.append(observation.float().flatten(1))
        return self.mlp(torch.cat(parts, dim=-1))


class InverseDynamics(nn.Module):
    """IDM: the LAM's encoder from scratch, no bottleneck, the translator's head; trained on the labels alone (§6.3).

    ``pairs=False`` shows it the first frame twice: the observation-only control.
    """

    def __init__(self, config: LAMConfig, spec: ActionSpec, pairs: bool = True):
        super().__init__()
        self.pairs = pairs
        dim = 64
        self.encoder = ENCODERS[part_kind(config.encoder)](config.encoder, config.image, config.slots, dim)
        self.translator = Translator(config.slots * dim, spec)

    @property
    def action(self) -> ActionHead:
        return self.translator.action

    def forward(self, frames: Float[Tensor, "b t c h w"], previous: Float[Tensor, "b a"]) -> Float[Tensor, "b e"]:
        first = self.encoder.embed(frames[:, 0])  # type: ignore[operator]
        second = self.encoder.embed(frames[:, 1]) if self.pairs else first  # type: ignore[operator]
        return self.translator(self.encoder.compare(first, second), previous)  # type: ignore[operator]


@dataclass(frozen=True)
class Labelled:
    """Labelled transitions as the translator sees them. ``z`` is before the prefix; ``clip`` keeps the frames."""

    z: Float[Tensor, "n k d"]
    previous: Float[Tensor, "n a"]
    action: Float[Tensor, "n a"]
    episode: Int[Tensor, "n"]
    clip: Clip | None = None
    observation: Float[Tensor, "n o"] | None = None

    def __len__(self) -> int:
        return len(self.z)

    def _map(self, function: Callable[[Any], Any]) -> Labelled:
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        changed: dict[str, Any] = {name: function(v) for name, v in values.items() if v is not None}
        return dataclasses.replace(self, **changed)

    def __getitem__(self, rows: Any) -> Labelled:
        return self._map(lambda value: value[rows])

    def to(self, device: Any) -> Labelled:
        return self._map(lambda value: value.to(device))


class Minibatches:
    """Endless shuffled minibatches of something that fits in memory; epoch order is a function of (seed, epoch)."""

    def __init__(self, items: Any, batch: int, seed: int):
        self.items, self.batch, self.seed, self.drawn = items, min(batch, len(items)), seed, 0

    def __iter__(self) -> Iterator[Any]:
        per_epoch = len(self.items) // self.batch
        while True:
            epoch, place = divmod(self.drawn, per_epoch)
            order = torch.randperm(
                len(self.items), generator=torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            )
            self.drawn += 1
            yield self.items[order[place * self.batch : (place + 1) * self.batch]]

    def state_dict(self) -> dict[str, int]:
        return {"drawn": self.drawn}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.drawn = state["drawn"]

    def close(self) -> None:
        """Nothing is open."""


def parse_labels(text: str, transitions: int) -> int:
    """ "120" or "5%" as a number of labelled transitions. Raises LaminaError for anything else, or more than there are."""
    try:
        share = text.endswith("%")
        number = round(float(text[:-1]) / 100 * transitions) if share else int(text)
    except (ValueError, OverflowError) as error:
        raise LaminaError(f"--labels {text}: give a number of transitions (120) or a share (5%)") from error
    if not 8 <= number <= transitions:
        raise LaminaError(
            f"--labels {text}: is {number} of {transitions} transitions; give at least 8 and no more than there are"
        )
    return number


@torch.no_grad()
def encode_clip(lam: LAM, clip: Clip, batch: int = 256) -> Float[Tensor, "n k d"]:
    """The post-quantiser latent of each clip's first pair, on the CPU."""
    device = next(lam.parameters()).device
    lam.eval()
    parts = [clip.frames[i : i + batch, :2] for i in range(0, len(clip), batch)]
    return torch.cat([lam.encode(to_float(frames.to(device)), [(0, 1)])[0, 1].post.float().cpu() for frames in parts])


def labelled(lam: LAM, clip: Clip) -> Labelled:
    """Encode a clip with actions once, for all the translators that will be trained on it. Raises LaminaError without actions."""
    if clip.action is None or clip.previous_action is None:
        raise LaminaError("this data has no actions: --data must be a LeRobot dataset with an action feature")
    return Labelled(encode_clip(lam, clip), clip.previous_action[:, 0], clip.action[:, 0], clip.episode, clip)


def split_labels(items: Labelled, seed: int = 0, held: float = 0.25) -> tuple[Labelled, Labelled]:
    """Divide the labelled transitions by episode: about ``held`` of them choose the checkpoint, the rest train.

    The labels that choose are part of the budget: a translator that had a validation set for free would not have few labels.
    """
    episodes = items.episode.unique()
    order = episodes[torch.randperm(len(episodes), generator=torch.Generator().manual_seed(seed))]
    chosen: list[Tensor] = []
    for episode in order[:-1]:
        if sum(int(m.sum()) for m in chosen) >= held * len(items):
            break
        chosen.append(items.episode == episode)
    by_time = torch.arange(len(items)) >= round((1 - held) * len(items))
    mask = torch.stack(chosen).any(0) if chosen else by_time  # a single episode is divided by time
    return items[~mask], items[mask]


class Best:
    """Keeps the weights of the lowest validation loss in one file, so that a resumed run still knows them, and the loss."""

    def __init__(self, path: Path):
        self.path, self.loss = path, float("inf")
        if path.exists():
            try:
                with safe_open(path, "pt") as file:
                    self.loss = float(file.metadata()["loss"])
            except SafetensorError as error:
                raise LaminaError(f"{path}: damaged ({error}); delete {path.parent} and align again") from error

    def offer(self, module: nn.Module, loss: float) -> None:
        if loss < self.loss:
            self.loss = loss
            state = {k: v.detach().cpu().contiguous() for k, v in module.state_dict().items()}
            partial = partial_path(self.path)
            with disk_errors(self.path):
                save_file(state, partial, metadata={"loss": repr(loss)})
                sync(partial)
                partial.replace(self.path)

    def restore(self, module: nn.Module) -> None:
        load_weights(module, self.path)


def fit_head(
    module: nn.Module,
    losses: Losses,
    train: Any,
    held: Any,
    config: TrainConfig,
    run: Path,
    weights: dict[str, float] | None = None,
    stream: Callable[[], Any] | None = None,
    title: str | None = None,
) -> float:
    """Train ``module`` with the shared loop and leave it at its best validation loss, which is returned.

    ``losses(module, batch, draws)["action"]`` is what validation averages, with the same draws every time.
    """
    best = Best(run / "best.safetensors")

    @torch.no_grad()
    def validate(current: nn.Module) -> tuple[dict[str, float], list[str]]:
        device = next(current.parameters()).device
        loss = float(losses(current, held.to(device), Draws(0, device=device))["action"].mean())
        best.offer(current, loss)
        return {"action": loss}, []

    def open_stream(shards: int, shard: int | None) -> Any:
        return stream() if stream else Minibatches(train, config.batch // config.accumulate, config.seed)

    fit(run, module, losses, weights or {"action": 1.0}, open_stream, config, validate, title)
    best.restore(module)
    return best.loss


def translator_losses(prefix: nn.Module) -> Losses:
    """The loss of a translator on latents whose prefix is drawn from the LAM's own p(k), k >= 0 (§4.2)."""

    def losses(module: Translator, batch: Labelled, draws: Draws) -> dict[str, Tensor]:
        law = prefix.to(batch.z.device)  # where the loop put the batch
        z = law(batch.z, law.draw(draws, len(batch)))  # type: ignore[operator]
        return {"action": module.action.loss(module(z, batch.previous, batch.observation), batch.action)}

    return losses


def idm_losses(module: InverseDynamics, batch: Labelled, draws: Draws) -> dict[str, Tensor]:
    """The action loss of an inverse dynamics model."""
    assert batch.clip is not None
    return {"action": module.action.loss(module(to_float(batch.clip.frames), batch.previous), batch.action)}


def quick(steps: int, seed: int, lr: float = 3e-4, batch: int = 64) -> TrainConfig:
    """Training options of a small head on cached latents: no averaging (the best checkpoint is chosen), rare checkpoints."""
    return TrainConfig(
        steps=steps, batch=batch, lr=lr, warmup=50, weight_decay=0.05, ema=0.0, seed=seed, device="cpu",
        checkpoint_every=steps, validate_every=10, log_every=10,
    )  # fmt: skip


def train_translator(
    lam: LAM,
    train: Labelled,
    held: Labelled,
    spec: ActionSpec,
    config: TranslatorConfig,
    training: TrainConfig,
    run: Path | None = None,
) -> tuple[Translator, float]:
    """A translator for a frozen LAM, and its validation loss. ``run`` keeps log and checkpoints (a temporary folder by default)."""
    torch.manual_seed(training.seed)
    observation = 0 if train.observation is None else train.observation.shape[-1]
    translator = Translator(train.z.shape[1] * train.z.shape[2], spec, config, observation)
    translator.action.calibrate(train.action)
    prefix = copy.deepcopy(lam.prefix).requires_grad_(False)
    with TemporaryDirectory() as scratch:
        title = "align" if run else None
        folder = run or Path(scratch)
        loss = fit_head(translator, translator_losses(prefix), train, held, training, folder, title=title)
    return translator.to(train.z.device).eval(), loss


def train_idm(
    config: LAMConfig, train: Labelled, held: Labelled, spec: ActionSpec, training: TrainConfig, pairs: bool = True
) -> tuple[InverseDynamics, float]:
    """An inverse dynamics model from scratch on the labels alone, and its validation loss."""
    torch.manual_seed(training.seed)
    module = InverseDynamics(config, spec, pairs)
    module.action.calibrate(train.action)
    with TemporaryDirectory() as scratch:
        loss = fit_head(module, idm_losses, train, held, training, Path(scratch))
    return module.eval(), loss


class Joint(nn.Module):
    """A LAM and its translator, trained together: the action loss reaches encoder and bottleneck (§6.3)."""

    def __init__(self, lam: LAM, translator: Translator):
        super().__init__()
        self.lam, self.translator = lam, translator


@dataclass(frozen=True)
class JointBatch:
    """Labelled transitions for the action loss, unlabelled ones that keep the LAM a LAM."""

    labels: Labelled
    video: Clip | None = None

    def to(self, device: Any) -> JointBatch:
        return JointBatch(self.labels.to(device), self.video.to(device) if self.video else None)


class JointStream:
    """Pairs of labelled minibatch and unlabelled batch."""

    def __init__(self, labels: Minibatches, video: ClipStream):
        self.labels, self.video = labels, video

    def __iter__(self) -> Iterator[JointBatch]:
        for labels, video in zip(self.labels, self.video, strict=False):
            yield JointBatch(labels, video)

    def state_dict(self) -> dict[str, Any]:
        return {"labels": self.labels.state_dict(), "video": self.video.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.labels.load_state_dict(state["labels"])
        self.video.load_state_dict(state["video"])

    def close(self) -> None:
        """Stop the processes that decode."""
        self.video.close()


def joint_losses(reconstruction: Losses) -> Losses:
    """The action loss through encoder, bottleneck and drawn prefix, beside the method's own losses on unlabelled video."""

    def losses(module: Joint, batch: JointBatch, draws: Draws) -> dict[str, Tensor]:
        lam, labels = module.lam, batch.labels
        assert labels.clip is not None
        z = lam.encode(to_float(labels.clip.frames), [(0, 1)])[0, 1].post
        output = module.translator(lam.prefix(z, lam.prefix.draw(draws, len(z))), labels.previous)
        terms = {"action": module.translator.action.loss(output, labels.action)}
        return terms | (reconstruction(lam, batch.video, draws) if batch.video else {})

    return losses


def train_joint(
    lam: LAM,
    train: Labelled,
    held: Labelled,
    spec: ActionSpec,
    config: TranslatorConfig,
    training: TrainConfig,
    losses: Losses,
    weights: dict[str, float],
    video: DataConfig,
    run: Path,
) -> tuple[Translator, float]:
    """A translator and the LAM (changed in place) that was tuned with it, at their best validation loss, which is returned (§6.3).

    ``losses`` and ``weights`` are the method's own, on unlabelled pairs of ``video``. The labelled transitions need their frames.
    """
    train_small, held_small = dataclasses.replace(train, clip=None), dataclasses.replace(held, clip=None)
    start, _ = train_translator(lam, train_small, held_small, spec, config, quick(400, training.seed))
    joint = Joint(lam.requires_grad_(True), start)
    lam.prefix.null.requires_grad_(lam.config.prefix != "full")

    def stream() -> JointStream:
        batch = training.batch // training.accumulate
        return JointStream(Minibatches(train, batch, training.seed), ClipStream(video, batch, training.seed))

    everything = {"action": 1.0, **weights}
    loss = fit_head(
        joint, joint_losses(losses), train, JointBatch(held), training, run, everything, stream, "align jointly"
    )
    return joint.translator.eval(), loss


@dataclass(frozen=True)
class AlignConfig:
    """How latents are tied to actions."""

    labels: str = "5%"
    """number of labelled transitions (120) or share of the training split (5%); a quarter of them choose the checkpoint"""
    joint: bool = False
    """let the action loss update encoder and bottleneck too"""
    translator: TranslatorConfig = TranslatorConfig()
    tasks: tuple[str, ...] = ()
    """tasks that the labels come from; default: evenly from all"""
    camera: str | None = None
    action: str = "action"


def probe_data(model: LatentActionModel, path: str, camera: str | None = None, action: str = "action") -> DataConfig:
    """How a model reads data for labels and probes: its own picture size, pairs at its one label gap."""
    gap = model.provenance.label_gap
    return DataConfig((path,), model.config.image[1:], gap=(gap, gap), camera=camera, action=action)


def align(
    run: Path,
    path: str,
    config: AlignConfig,
    training: TrainConfig,
    losses: Losses | None = None,
    weights: dict[str, float] | None = None,
    needs: Mapping[str, Any] = {},
) -> Path:
    """Train the translator of RUN's model on a few labels of the training split and save it.

    Frozen: RUN/translator. Joint: RUN/joint, with the model that moved with it; this needs the method's ``losses`` and ``weights``, and
    the fields of DataConfig that those read (``needs``).
    Raises LaminaError for data without actions, too few labels, or a folder that is there already without ``resume``.
    """
    folder = run / ("joint" if config.joint else "translator")
    model = LatentActionModel.from_pretrained(str(run))
    data = dataclasses.replace(probe_data(model, path, config.camera, config.action), tasks=config.tasks)
    number = parse_labels(config.labels, count_transitions(data, "train"))
    if (folder / "translator.json").exists() and not training.resume:
        raise LaminaError(f"{folder}: aligned already; add --resume to go on, or delete that folder")
    clip = gather(data, "train", number, seed=training.seed, require_action=True)
    spec = action_spec(data)
    items = labelled(model.lam, clip)
    if config.translator.condition.endswith("observation"):
        items = dataclasses.replace(items, observation=observe(model.lam, clip))
    train, held = split_labels(items, training.seed)
    # The translator is small and its latents are cached: it reads no video while it trains.
    train_small, held_small = dataclasses.replace(train, clip=None), dataclasses.replace(held, clip=None)
    scratch = folder / "training"
    if not training.resume:  # what a killed alignment left
        shutil.rmtree(scratch, ignore_errors=True)
    if config.joint:
        if losses is None or weights is None:
            raise LaminaError("joint alignment needs the method's own losses")
        video = dataclasses.replace(data, gap=model.provenance.gap_seconds, tasks=(), **needs)
        translator, loss = train_joint(
            model.lam, train, held, spec, config.translator, training, losses, weights, video, scratch
        )
    else:
        translator, loss = train_translator(
            model.lam, train_small, held_small, spec, config.translator, training, scratch
        )
    note = note_of(
        items,
        spec,
        config.translator,
        path,
        training.seed,
        training.steps,
        loss,
        config.camera,
        config.action,
        config.tasks,
    )
    if config.joint:
        model.save_pretrained(folder / "model")
    save_translator(folder, translator, note)
    return folder


def note_of(
    items: Labelled,
    spec: ActionSpec,
    config: TranslatorConfig,
    data: str,
    seed: int,
    steps: int,
    validation: float,
    camera: str | None = None,
    action: str = "action",
    tasks: tuple[str, ...] = (),
) -> dict[str, Any]:
    """What translator.json says of a translator that was trained on ``items``."""
    return {
        "format": FORMAT,
        "data": data,
        "camera": camera,
        "action": action,
        "tasks": list(tasks),
        "labels": len(items),
        "label_episodes": len(items.episode.unique()),
        "spec": dataclasses.asdict(spec),
        "config": dataclasses.asdict(config),
        "latent": items.z.shape[1] * items.z.shape[2],
        "observation": 0 if items.observation is None else items.observation.shape[-1],
        "seed": seed,
        "steps": steps,
        "validation_loss": validation,
    }


def action_spec(data: DataConfig) -> ActionSpec:
    """The actions of the one source of ``data``. Raises LaminaError if it has none."""
    spec = open_source(parse_data(data.data[0])[0]).action
    if spec is None:
        raise LaminaError(f"{data.data[0]}: has no actions; --data must be a LeRobot dataset with an action feature")
    return spec


@torch.no_grad()
def observe(lam: LAM, clip: Clip) -> Float[Tensor, "n o"]:
    """What the encoder says of o_t alone: the latent of the frame against itself."""
    still = dataclasses.replace(clip, frames=clip.frames[:, :1].expand(-1, 2, -1, -1, -1))
    return encode_clip(lam, still).flatten(1)


def save_translator(folder: Path, translator: Translator, note: dict[str, Any]) -> None:
    """RUN/translator/: translator.safetensors, then translator.json, whose presence says that both are whole."""
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: value.contiguous() for name, value in translator.state_dict().items()}
        save_file(state, folder / "translator.safetensors")
    write_text(folder / "translator.json", json.dumps(note, indent=2) + "\n")


def load_translator(folder: Path) -> tuple[Translator, dict[str, Any]]:
    """A saved translator and its note. Raises LaminaError if there is none or it is damaged."""
    path = folder / "translator.json"
    try:
        note = json.loads(path.read_text())
        if note["format"] != FORMAT:
            raise ValueError(f"format {note['format']}, this version of lamina reads {FORMAT}")
        spec = note["spec"]
        actions = ActionSpec(tuple(spec["discrete"]), spec["continuous"], tuple(spec["names"]))
        config = TranslatorConfig(**note["config"])
        translator = Translator(note["latent"], actions, config, note["observation"])
    except FileNotFoundError as error:
        raise LaminaError(f"{folder}: no translator here; run: lamina align {folder.parent} --data DATASET") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LaminaError(f"{path}: damaged ({error}); delete {folder} and align again") from error
    load_weights(translator, folder / "translator.safetensors")
    return translator.eval(), note
