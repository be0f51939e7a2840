"""Stage 3: latent actions as columns of a LeRobot dataset. One row a frame; each frame is decoded and embedded once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lamina.data.dataset import Data, Dataset
from lamina.data.episodes import Episode
from lamina.data.lerobot.labels import check_shown, write_labelled
from lamina.data.lerobot.staging import Columns, empty_labels
from lamina.data.sampling import open_source, source_camera
from lamina.device import Precision, pick_device
from lamina.files import Scratch, checkpoint_hash, locked
from lamina.inference.labeller import Labeller, action_columns
from lamina.inference.table import EpisodeColumns, LatentTable
from lamina.models.hub import LatentActionModel, model_folder


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
    precision: Precision = "fp32",
    camera: str | None = None,
    continuous: bool | None = None,
) -> LatentTable:
    """The latent action of every frame of ``data`` by a run's model, or by a model; with ``out`` also written there as a LeRobot dataset.

    Columns, of the slots that are the model's latent action (K of d channels):

    - ``latent_action``: K d floats after the quantiser, slot by slot;
    - ``latent_action.continuous``: the same before the quantiser, if ``continuous`` (default: where the model's latent action is that);
    - ``latent_action.index``: K codes, where there is a codebook;
    - ``latent_action.valid``: False where the episode ends before the gap.

    Interrupted, it resumes when run again.
    Raises LaminaError for a damaged model or video, an ``out`` that exists, a disk that refuses.
    """
    device = pick_device(device)
    model = run if isinstance(run, LatentActionModel) else LatentActionModel.from_pretrained(str(run))
    model = model.to(device).eval()
    source = open_source(data)
    camera = source_camera(source, camera)
    labeller = Labeller(model, source, camera, action_columns(model, continuous), precision)
    plan = labeller.plan(None if out is None else _checkpoint(run))
    names = tuple(plan.features)
    with _progress(source) as bar:

        def engine(episodes: Sequence[Episode]) -> Iterator[tuple[Episode, Columns]]:
            for episode, columns in labeller.each(episodes):
                bar.update(episode.length)
                yield episode, columns

        if out is None:
            missing = check_shown(source, camera)
            parts = {n: empty_labels(source.episodes[n], plan.features) for n in missing}
            parts |= {
                e.number: columns for e, columns in engine([e for e in source.episodes if e.number not in missing])
            }
            found: Mapping[str, np.ndarray] = {
                name: np.concatenate([parts[e.number][name] for e in source.episodes]) for name in names
            }
        else:
            with locked(out):
                write_labelled(plan, out, engine)
            source = open_source(out)
            found = EpisodeColumns(source, names)
    lengths = [episode.length for episode in source.episodes]
    rows = np.repeat(np.arange(len(lengths)), lengths), np.concatenate([np.arange(length) for length in lengths])
    return LatentTable(found, *rows, len(labeller.slots), model.column, out)


def _progress(source: Dataset) -> tqdm:
    total = sum(episode.length for episode in source.episodes)
    return tqdm(total=total, unit="frame", unit_scale=True, desc="label", dynamic_ncols=True)
