"""The Python API: one function for each stage, with the options of the command line as keyword arguments."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from lamina import images, methods
from lamina.data.dataset import Dataset
from lamina.data.lerobot.shards import Shard
from lamina.data.sampling import DataConfig
from lamina.data.shots import Shots
from lamina.device import DeviceName, Precision, pick_device
from lamina.errors import LaminaError
from lamina.evaluation import evaluate as evaluation
from lamina.evaluation.doctor import Diagnosis, DoctorConfig, examine
from lamina.evaluation.record import Evaluation
from lamina.evaluation.report.page import write_report
from lamina.evaluation.settings import EvaluateConfig
from lamina.inference import label as labelling
from lamina.inference.label import LabelOptions
from lamina.inference.subject import Subject
from lamina.inference.table import LatentTable
from lamina.methods.base import Method, with_decoder
from lamina.models.adaptive import AdaptiveK, Length
from lamina.models.heads import Translator, TranslatorConfig
from lamina.models.hub import LatentActionModel, translator_folder
from lamina.policies.base import Policy, policy_kind
from lamina.training import alignment
from lamina.training.adaptive import AdaptiveConfig
from lamina.training.adaptive import adaptive_k as fit_adaptive_k
from lamina.training.alignment import AlignConfig, load_translator
from lamina.training.heads import head_training
from lamina.training.joint import JointObjective
from lamina.training.pretraining import pretrain
from lamina.training.recipe import Recipe, filled_in, recipe, recipe_of
from lamina.training.settings import TrainConfig

#: A dataset: the path of a video folder or LeRobot dataset (PATH:weight sets its share of the samples), or a Dataset; or several of them.
Data = str | Path | Dataset | Sequence[str | Path | Dataset]

#: Fields of DataConfig that a caller of :func:`train` may set; the others follow from the method.
DATA_OPTIONS = ("camera", "paired", "tasks", "shots", "shuffle", "workers", "max_bad")


@dataclass(frozen=True)
class Run:
    """A run folder, as :func:`train` leaves it; it can be given wherever a path can."""

    path: Path

    def __fspath__(self) -> str:
        return str(self.path)

    def model(self) -> LatentActionModel:
        """The trained model. Raises LaminaError if there is none."""
        return LatentActionModel.from_pretrained(self.path)

    def translator(self) -> Translator | None:
        """The translator from latent to real actions, if the run was aligned."""
        folder = translator_folder(self.path)
        return load_translator(folder)[0] if (folder / "translator.json").exists() else None


@dataclass(frozen=True)
class Alignment:
    """What :func:`align` leaves: the folder, the translator's validation loss (nats or squared error in units of the variance)."""

    path: Path
    validation_loss: float

    def translator(self) -> Translator:
        """The trained translator."""
        return load_translator(self.path)[0]


def train(
    method: str | Path | Method,
    data: Data,
    *,
    out: str | os.PathLike[str],
    steps: int = 3000,
    image: tuple[int, int] | None = None,
    gap: float | tuple[float, float] = (0.1, 0.2),
    resume: bool = False,
    init: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Run:
    """Train a latent action model on video without action labels and save it in the folder ``out``.

    ``method``: the name of a method, the path of a file that defines one, or an object that is one. ``image``: height and width that
    frames are resized to; by default the method's own. ``gap``: shortest and longest time between the frames of a pair, seconds, or one
    time. ``init``: a run whose weights to start from. ``options``: fields of the method's Config and of TrainConfig, and camera, paired,
    tasks, shots, shuffle, workers, max_bad of DataConfig; as options of ``lamina train`` they are described by ``lamina train METHOD
    --help``.

    Raises LaminaError for an option that does not exist, for data or settings that cannot be used, and where ``out`` holds another run.
    """
    name, chosen = _method(method)
    config, training = _with_options(
        f"train({name!r})",
        options if image is None else {"image": tuple(image), **options},
        chosen.Config(),
        TrainConfig(steps=steps, lr=1e-3, resume=resume),
        others=DATA_OPTIONS,
    )
    reading = {option: options[option] for option in DATA_OPTIONS if option in options}
    sources = _sources(data)
    if "workers" not in reading and all(isinstance(source, Dataset) for source in sources):
        reading["workers"] = 0  # frames in memory need no processes that decode them
    plan, read = prepared(name, chosen, config, data_config(config, sources, gap, **reading), training)
    pretrain(Path(out), plan, read, training, None if init is None else Path(init))
    return Run(Path(out))


def data_config(
    config: Any, sources: Sequence[str | Dataset], gap: float | tuple[float, float], **options: Any
) -> DataConfig:
    """How a method with options ``config`` reads ``sources``; ``gap``: a range, or one length."""
    span, gaps = getattr(config, "span", None), (gap, gap) if isinstance(gap, int | float) else tuple(gap)
    return DataConfig(tuple(sources), config.image, config.frames, gaps, span=span, **options)  # type: ignore[arg-type]


def prepared(
    name: str | Path, method: Method, config: Any, data: DataConfig, training: TrainConfig
) -> tuple[Recipe, DataConfig]:
    """The recipe of a method, with what only the data and the device can tell, and the data that it reads."""
    config, data = filled_in(with_decoder(config, pick_device(training.device)), data, training)
    return recipe(name, method, config), data


def align(
    run: Run | str | os.PathLike[str],
    data: str | Path | Dataset,
    *,
    labels: int | str = "5%",
    steps: int = 600,
    joint: bool = False,
    resume: bool = False,
    method: str | Path | None = None,
    **options: Any,
) -> Alignment:
    """Train the translator from latent to real actions on few labelled transitions of ``data`` -> RUN/translator (``joint``: RUN/joint).

    ``labels``: their number, or a share of the training split ("5%"). ``method``: for joint alignment of a run whose method came from a
    file of your own: that file. ``options``: fields of AlignConfig, TranslatorConfig and TrainConfig.

    Raises LaminaError for an option that does not exist, data without actions, too few labels, and a run that is aligned already.
    """
    config, translator, training = _with_options(
        "align()",
        options,
        AlignConfig(labels=str(labels), joint=joint),
        options.get("translator", TranslatorConfig()),
        head_training(steps, 0, device="auto", resume=resume),
    )
    return align_with(run, _source(data), dataclasses.replace(config, translator=translator), training, method)


def align_with(
    run: Run | str | os.PathLike[str],
    data: str | Dataset,
    config: AlignConfig,
    training: TrainConfig,
    method: str | Path | None = None,
) -> Alignment:
    """:func:`align` with its options as dataclasses."""
    run = Path(run)
    objective = None
    if config.joint:
        plan, trained_on = recipe_of(run, method)
        needs: dict[str, Any] = {
            name: trained_on[name] for name in ("frames", "span", "paired", "proprio") if name in trained_on
        }
        needs["targets"] = tuple(trained_on.get("targets", ()))
        objective = JointObjective(plan.losses, plan.weights, needs)
    folder = alignment.align(run, data, config, training, objective)
    return Alignment(folder, load_translator(folder)[1].validation_loss)


def label(
    run: Run | str | os.PathLike[str] | LatentActionModel,
    data: str | Path | Dataset,
    *,
    out: str | os.PathLike[str] | None = None,
    camera: str | None = None,
    continuous: bool | None = None,
    shots: Shots = "auto",
    shard: str | None = None,
    merge: bool = False,
    engine: Literal["local", "ray"] = "local",
    address: str | None = None,
    workers: int = 2,
    gpus: float = 0.0,
    device: DeviceName = "auto",
    precision: Precision = "fp32",
    k: Length = None,
) -> LatentTable:
    """The latent action of every frame of ``data``, one row a frame.

    ``out``: also written there, as new columns of a LeRobot dataset (see ``lamina label --help``); video is linked, never re-encoded.
    ``continuous``: with the latent before the quantiser; default: where that is the model's latent action. ``shots``: how cuts are found,
    which no pair crosses (default: in plain video). ``k``: slots that are kept, a number, or "auto" for the rule of :func:`adaptive_k`;
    ``table.k`` says how many each row keeps; default: all.

    Many jobs, on any machines: ``shard`` = "3/10" labels the third of ten parts and returns its rows, with the part's folder as their path;
    when all ten are there, ``merge`` makes the dataset ``out`` of them. ``engine`` = "ray": ``workers`` actors of a Ray cluster label, each
    with its share ``gpus`` of a GPU; ``address`` (HOST:PORT) is that of a running cluster, default: a local one. Either way the dataset
    is the one that a single job writes.

    Raises LaminaError for a damaged model or video, an ``out`` that exists, options that do not go together, parts that are missing or of
    other labels, a cluster that does not answer, a disk that refuses.
    """
    model = run if isinstance(run, LatentActionModel) else Path(run)
    source, folder = _source(data), None if out is None else Path(out)
    options = LabelOptions(camera, continuous, shots, k, precision)
    if shard is not None and merge:
        raise LaminaError("--shard and --merge: first label every shard, then merge; give one of them")
    if engine not in ("local", "ray"):
        raise LaminaError(f"--engine {engine}: choose local or ray")
    if engine == "ray" and (shard is not None or merge):
        raise LaminaError("--engine ray divides the work itself: leave out --shard and --merge")
    if engine == "local" and address is not None:
        raise LaminaError("--address is that of a Ray cluster: add --engine ray")
    if folder is None and (shard is not None or merge or engine == "ray"):
        raise LaminaError("labels of shards and of Ray are written to a dataset: give --out")
    if folder is not None and shard is not None:
        return labelling.label_shard(model, source, folder, Shard.parse(shard), device, options)
    if folder is not None and merge:
        return labelling.merge(model, source, folder, options)
    cluster = labelling.Cluster(address, max(1, workers), gpus) if engine == "ray" else None
    return labelling.label(model, source, folder, device, options, cluster)


def adaptive_k(
    run: Run | str | os.PathLike[str],
    data: str | Path | Dataset,
    *,
    tokens: float | None = None,
    device: DeviceName = "auto",
    **options: Any,
) -> AdaptiveK:
    """Fit the rule that chooses the prefix length of each latent action -> RUN/adaptive_k, for ``k="auto"``.

    It keeps what the action needs that the run's translator reads or, in a run that is not aligned, what the decoder's picture needs.
    ``data``: what the run was trained on, with actions for the former. ``tokens``: mean number of slots to keep, default: a quarter of
    them. ``options``: fields of AdaptiveConfig. Raises LaminaError for a LAM without retained prefixes, and a rule that is there already.
    """
    (config,) = _with_options("adaptive_k()", options, AdaptiveConfig(tokens=tokens))
    return fit_adaptive_k(Path(run), _source(data), config, device)


def evaluate(
    subject: Run | str | os.PathLike[str] | Subject,
    data: str | Path | Dataset,
    *,
    out: str | os.PathLike[str] | None = None,
    labels: int | str | None = None,
    **options: Any,
) -> Evaluation:
    """Probe a model on the test split of ``data``, beside its controls; writes evaluation.json, report.html and pictures.

    ``subject``: a run, or a :class:`Subject`, which any encoder of frame pairs can be. ``out``: the folder to write to, by default that
    of the run; for another subject nothing is written without it. ``labels``: for a Subject, train a translator on so many
    labelled transitions (a number, or a share such as "5%"). ``options``: fields of EvaluateConfig.
    Raises LaminaError for data that cannot be read or has no test split, and for a damaged model.
    """
    config = EvaluateConfig(labels=None if labels is None else str(labels))
    (config,) = _with_options("evaluate()", options, config)
    chosen = subject if isinstance(subject, Subject) else Path(subject)
    folder = None if out is None else Path(out)
    found = evaluation.evaluate(chosen, _source(data), config, folder)
    written = folder or (None if isinstance(chosen, Subject) else chosen)
    if written is not None:
        write_report(written)
    return found


def doctor(subject: Run | str | os.PathLike[str] | Subject, data: str | Path | Dataset, **options: Any) -> Diagnosis:
    """What is wrong with a model, on the test split of ``data``; no actions are needed. ``print`` shows it in words.

    ``options``: fields of DoctorConfig. Raises LaminaError for data that cannot be read or has no test split, and for a damaged model.
    """
    (config,) = _with_options("doctor()", options, DoctorConfig())
    return examine(subject if isinstance(subject, Subject) else Path(subject), _source(data), config)


def train_policy(
    run: Run | str | os.PathLike[str],
    data: Data,
    *,
    kind: str = "tokens",
    camera: str | Sequence[str] = (),
    resume: bool = False,
    **options: Any,
) -> Policy:
    """Train a policy on the latent actions of a run -> RUN/policy, and return it.

    ``kind``: "tokens", a sequence model of the codes, which acts where the run was aligned; the other kinds, their options and
    defaults: ``lamina policy --kind KIND --help``. ``camera``: the one or those that it reads, default: the kind's own choice.
    ``options``: fields of the kind's config and of TrainConfig.
    Raises LaminaError for a LAM without what the kind needs, a policy that is there already, data that cannot be read.
    """
    chosen = policy_kind(kind)
    training = TrainConfig(**chosen.training, resume=resume)
    config, training = _with_options(f"train_policy({kind!r})", options, chosen.config(), training)
    cameras = (camera,) if isinstance(camera, str) else tuple(camera)
    chosen.train(Path(run), _sources(data), config, training, cameras)
    return Policy.from_run(Path(run), device=training.device)


def resize(
    frames: UInt8[Tensor, "*b c h w"] | UInt8[np.ndarray, "*b h w c"], size: tuple[int, int]
) -> UInt8[Tensor, "*b c h2 w2"] | UInt8[np.ndarray, "*b h2 w2 c"]:
    """Frames in another (height, width), exactly as training and labelling resize them. Tensors have their channels first, arrays last."""
    if isinstance(frames, Tensor):
        return images.resize(frames.reshape(-1, *frames.shape[-3:]), size).reshape(*frames.shape[:-2], *size)
    return images.resize_frames(frames.reshape(-1, *frames.shape[-3:]), size).reshape(
        *frames.shape[:-3], *size, frames.shape[-1]
    )


def _method(method: str | Path | Method) -> tuple[str | Path, Method]:
    """The name or path of a method, and the method."""
    if isinstance(method, str | Path):
        return method, methods.load(method)
    name = str(getattr(method, "__name__", type(method).__name__)).rpartition(".")[2]
    return name, methods.check_method(name, method)


def _sources(data: Data) -> list[str | Dataset]:
    return [_source(one) for one in ([data] if isinstance(data, str | Path | Dataset) else data)]


def _source(data: str | Path | Dataset) -> str | Dataset:
    return data if isinstance(data, Dataset) else os.fspath(data)


def _with_options(where: str, options: dict[str, Any], *configs: Any, others: Sequence[str] = ()) -> list[Any]:
    """``configs``, dataclasses, with the values that ``options`` give for their fields.

    Raises LaminaError for an option that is no field of any of them and not among the ``others``.
    """
    known = [*others, *(field.name for config in configs for field in dataclasses.fields(config))]
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise LaminaError(f"{where} has no option '{name}'" + (f"; did you mean {near[0]}?" if near else ""))
    fields = ({field.name for field in dataclasses.fields(config)} for config in configs)
    return [
        dataclasses.replace(config, **{name: value for name, value in options.items() if name in names})
        for config, names in zip(configs, fields, strict=True)
    ]
