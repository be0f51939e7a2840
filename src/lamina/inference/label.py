"""Stage 3: latent actions as columns of a LeRobot dataset. One row a frame; each frame is decoded and embedded once."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lamina.data.dataset import Data
from lamina.data.episodes import Episode
from lamina.data.lerobot.labels import check_shown, write_labelled
from lamina.data.lerobot.shards import Shard, merge_shards, write_shard
from lamina.data.lerobot.staging import Columns, Engine, Staging, empty_labels
from lamina.data.sampling import open_source, source_camera
from lamina.data.shots import Shots
from lamina.device import Precision, pick_device
from lamina.errors import LaminaError
from lamina.files import Scratch, checkpoint_hash, locked
from lamina.inference.labeller import SHOT, Labeller, action_columns
from lamina.inference.ray_engine import Cluster, RayEngine
from lamina.inference.table import EpisodeColumns, LatentTable
from lamina.models.adaptive import Length, check_length
from lamina.models.hub import LatentActionModel, model_folder
from lamina.progress import progress_bar


@dataclass(frozen=True)
class LabelOptions:
    """What is labelled, and with which columns; the same for every job that labels a part of one dataset."""

    camera: str | None = None
    """default: the first"""
    continuous: bool | None = None
    """with the latent before the quantiser; default: where that is the model's latent action"""
    shots: Shots = "auto"
    """how cuts are found, which no pair crosses; auto: in plain video"""
    k: Length = None
    """slots that are kept: a number, "auto" for the rule of the run (:mod:`lamina.models.adaptive`), or such a rule; default: all"""
    precision: Precision = "fp32"


def _checkpoint(run: Path | LatentActionModel) -> str:
    """sha256 of a model's weights, as its file has them."""
    if not isinstance(run, LatentActionModel):
        return checkpoint_hash(model_folder(run))
    with Scratch() as folder:
        run.save_pretrained(folder)
        return checkpoint_hash(Path(folder))


def label(
    run: Path | LatentActionModel,
    data: Data,
    out: Path | None = None,
    device: str = "auto",
    options: LabelOptions = LabelOptions(),
    cluster: Cluster | None = None,
) -> LatentTable:
    """The latent action of every frame of ``data`` by a run's model, or by a model; with ``out`` also written there as a LeRobot dataset.

    Columns, of the slots that are the model's latent action (K of d channels):

    - ``latent_action``: K d floats after the quantiser, slot by slot;
    - ``latent_action.continuous``: the same before the quantiser, if asked for, or where the model's latent action is that;
    - ``latent_action.index``: K codes, where there is a codebook;
    - ``latent_action.valid``: False where the episode, or the shot, ends before the gap, or has a hole there;
    - ``latent_action.shot``: the number of the shot in its episode, from 0, where cuts are looked for;
    - ``latent_action.k``: the slots that the row keeps, where ``options.k`` is given. Slots behind it hold the null latent and code -1.

    Interrupted, it resumes when run again. ``cluster``: label by Ray (``out`` is needed then); what is written is the same.
    Raises LaminaError for a damaged model or video, an ``out`` that exists, a disk that refuses.
    """
    if cluster is not None and isinstance(data, str):
        data = os.path.abspath(data)  # workers have another working directory
    labeller = _labeller(run, data, device, options)
    source = labeller.source
    if out is not None:
        with locked(out):
            write_labelled(labeller.plan(_checkpoint(run)), out, _engine(labeller, cluster, device))
        return _written(labeller, out)
    if cluster is not None:
        raise LaminaError("labels that Ray makes are written to a dataset: give out")
    features, missing = labeller.features(), check_shown(source, labeller.camera)
    parts = {n: empty_labels(source.episodes[n], features) for n in missing}
    shown = [episode for episode in source.episodes if episode.number not in missing]
    with _shown(labeller.each, shown) as engine:
        parts |= {episode.number: columns for episode, columns in engine(shown)}
    found = {name: np.concatenate([parts[e.number][name] for e in source.episodes]) for name in features}
    return _table(labeller, source.episodes, found)


def label_shard(
    run: Path | LatentActionModel,
    data: Data,
    out: Path,
    shard: Shard,
    device: str = "auto",
    options: LabelOptions = LabelOptions(),
) -> LatentTable:
    """Label one of several shards of ``data``, each by a job of its own, on any machine -> a part beside ``out``, whose folder is the
    table's path and whose rows are the shard's.

    :func:`merge` makes the dataset that :func:`label` would write. Raises what that raises, and LaminaError for a part of another model.
    """
    labeller = _labeller(run, data, device, options)
    episodes, features = shard.episodes(labeller.source), labeller.features()
    with _shown(labeller.each, episodes) as engine:
        part = write_shard(labeller.plan(_checkpoint(run)), out, shard, engine)
    return _table(labeller, episodes, EpisodeColumns(episodes, features, Staging(part, part, features).column), part)


def merge(run: Path | LatentActionModel, data: Data, out: Path, options: LabelOptions = LabelOptions()) -> LatentTable:
    """Make one dataset of the parts that :func:`label_shard` left; the options are those that they were made with.

    Raises LaminaError for parts that are missing, or of another model, data or options; nothing is written then.
    """
    labeller = _labeller(run, data, "cpu", options)
    merge_shards(labeller.plan(_checkpoint(run)), out)
    return _written(labeller, out)


def _labeller(run: Path | LatentActionModel, data: Data, device: str, options: LabelOptions) -> Labeller:
    device = pick_device(device)
    model = run if isinstance(run, LatentActionModel) else LatentActionModel.from_pretrained(str(run))
    model = model.to(device).eval()
    source = open_source(data)
    length = check_length(options.k, model.config, model.lam.dim, None if isinstance(run, LatentActionModel) else run)
    columns, camera = action_columns(model, options.continuous), source_camera(source, options.camera)
    return Labeller(model, source, camera, columns, options.precision, options.shots, length)


def _written(labeller: Labeller, out: Path) -> LatentTable:
    """The table of a dataset that was written."""
    dataset = open_source(out)
    columns = EpisodeColumns(dataset.episodes, labeller.features(), dataset.column)
    return _table(labeller, dataset.episodes, columns, out)


def _table(
    labeller: Labeller, episodes: Sequence[Episode], columns: Mapping[str, np.ndarray], path: Path | None = None
) -> LatentTable:
    lengths = [episode.length for episode in episodes]
    number = np.repeat(np.array([episode.number for episode in episodes], int), lengths)
    frame = np.concatenate([np.zeros(0, int), *map(np.arange, lengths)])
    return LatentTable(columns, number, frame, len(labeller.slots), labeller.model.column, path)


@contextmanager
def _engine(labeller: Labeller, cluster: Cluster | None, device: str) -> Iterator[Engine]:
    """What labels episodes, with a progress bar; a cluster is started, or joined, when this is entered."""
    with ExitStack() as stack:
        each: Engine = labeller.each
        if cluster is not None:
            each = stack.enter_context(RayEngine(labeller, cluster, cluster.device(device)))
        yield stack.enter_context(_shown(each, labeller.source.episodes))


@contextmanager
def _shown(engine: Engine, episodes: Sequence[Episode]) -> Iterator[Engine]:
    """An engine with a progress bar in frames, of which ``episodes`` have all."""
    total = sum(episode.length for episode in episodes)
    with progress_bar(total, "label", "frame", unit_scale=True) as bar:

        def counting(episodes: Sequence[Episode]) -> Iterator[tuple[Episode, Columns]]:
            cuts = 0
            for episode, columns in engine(episodes):
                bar.update(episode.length)
                if SHOT in columns:
                    cuts += int(columns[SHOT][-1, 0])
                    bar.set_postfix(cuts=cuts, refresh=False)
                yield episode, columns

        yield counting
