"""Stage 4: all probes that a model allows on held-out episodes, with controls, and a verdict -> RUN/evaluation.json."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lamina.data.dataset import Data, name_of
from lamina.data.paired import MIN_TRANSITIONS, same_states
from lamina.data.sampling import DataConfig, feature_width, open_source
from lamina.data.stream import sample_split
from lamina.device import autocast, pick_device
from lamina.errors import LaminaError
from lamina.evaluation.actions import (
    aligned_translators,
    kept_translator,
    linear_probes,
    new_translator,
    score_controls,
)
from lamina.evaluation.pictures import composed_picture, prefix_picture, swap_picture, transfer_picture
from lamina.evaluation.probes.exogenous import PairedLatents, SwapScore, swap, views
from lamina.evaluation.probes.leakage import leakages
from lamina.evaluation.probes.linear_probe import LinearScore
from lamina.evaluation.probes.reconstruction import ReconstructionScore, distance_by, reconstruct
from lamina.evaluation.probes.structure import (
    STATE,
    held_out,
    horizon_rows,
    measure_sides,
    structure_rows,
    sum_side,
    unlabelled,
)
from lamina.evaluation.probes.trajectory import Trajectory, trajectories
from lamina.evaluation.probes.translation import TranslationScore, prefixes_of
from lamina.evaluation.record import Evaluation, evaluation_of
from lamina.evaluation.settings import EvaluateConfig
from lamina.evaluation.verdict import in_order, judge_exogenous, judge_leakage, summary, verdict
from lamina.files import Scratch, checkpoint_hash, disk_errors, locked, partial_path, write_text
from lamina.inference.encode import in_batches
from lamina.inference.subject import Subject, subject_of
from lamina.intervals import Estimate, bootstrap_mean, bootstrap_ratio
from lamina.models import code_usage as codes
from lamina.models.feature_cache import kept_features
from lamina.models.features import PretrainedFeatures, is_pretrained
from lamina.models.hub import LatentActionModel, model_folder
from lamina.progress import progress_bar
from lamina.training.labelled import ActionTarget, actions_of, probe_data, warn_multi_action
from lamina.training.log import read_log
from lamina.types import Clip
from lamina.version import __version__

#: Episodes whose norm trajectory is drawn, and at how many frames.
EPISODES, POINTS = 3, 60
#: The pictures that are drawn, with titles and captions.
PICTURES = [
    {
        "file": "pictures/prefix.png",
        "title": "One transition, decoded over growing prefixes",
        "caption": "Held-out transitions. From left: the frame, what came next, and the prediction from the first k slots.",
    },
    {
        "file": "pictures/transfer.png",
        "title": "A latent applied to another frame",
        "caption": "The latent of the source pair, decoded from a frame of another episode; last: what it changed (grey: nothing).",
    },
]
COMPOSED = {
    "file": "pictures/composed.png",
    "title": "Two latents added up",
    "caption": "From left: three frames of a held-out episode, the last one decoded from its own latent, and from the sum of the two "
    "short ones; then both from a frame of another episode.",
}
SWAP = {
    "file": "pictures/swap.png",
    "title": "The next frame's exogenous state, swapped",
    "caption": "Each transition under two exogenous states. The swap is decoded from the frame and the latent of the frame and the "
    "PAIRED next frame: it should look like the next frame, not like the paired one.",
}


def evaluate(subject: Subject | str | Path, path: Data, config: EvaluateConfig, out: Path | None = None) -> Evaluation:
    """Probe a model on the test split of ``path``, with controls.

    ``subject``: a run folder, with its translator if it has one, or any Subject. Writes OUT/evaluation.json and OUT/pictures; ``out``: a
    run's own folder by default; nothing is kept of another subject's evaluation without it.
    Raises LaminaError for a damaged model, data that cannot be read, and options that do not fit the subject.
    """
    device = pick_device(config.device)
    run: _Run | None = None
    with Scratch() as scratch, autocast(device, config.precision), kept_features():
        folder = out or Path(scratch if isinstance(subject, Subject) else subject)
        target, pictures = folder / "evaluation.json", folder / "pictures"
        drawn = partial_path(pictures)
        with locked(target):
            shutil.rmtree(drawn, ignore_errors=True)  # what a killed evaluation left
            try:
                if isinstance(subject, Subject):
                    record, metrics = _evaluate(subject, None, folder, path, config, drawn)
                else:
                    run = _Run.load(Path(subject), device, path)
                    record, metrics = _evaluate(subject_of(run.model), run, folder, path, config, drawn)
                for picture in record["pictures"] + record["structure_pictures"]:
                    content = (drawn / Path(picture["file"]).name).read_bytes()
                    picture["sha256"] = hashlib.sha256(content).hexdigest()
                evaluation = evaluation_of(record)
                write_text(drawn / target.name, evaluation.to_json() + "\n")
                # Nothing from here on needs room on the disk: pictures and record change together, or not at all.
                with disk_errors(target):
                    shutil.rmtree(pictures, ignore_errors=True)
                    drawn.replace(pictures)
                    (pictures / target.name).replace(target)
            finally:
                shutil.rmtree(drawn, ignore_errors=True)
            if run:
                run.model.write_metrics(run.model_path, metrics)
    return evaluation


@dataclass(frozen=True)
class _Run:
    """A run folder and its model."""

    path: Path
    model_path: Path
    model: LatentActionModel

    @classmethod
    def load(cls, path: Path, device: str, data: Data) -> _Run:
        """Raises LaminaError without a model, and for one that does not read RGB frames."""
        folder = model_folder(path)
        model = LatentActionModel.from_pretrained(str(folder)).to(device)
        probe_data(model, data)
        return cls(path, folder, model)


def _evaluate(
    subject: Subject, run: _Run | None, out: Path, path: Data, config: EvaluateConfig, drawn: Path
) -> tuple[dict[str, Any], dict[str, float]]:
    """The record, with pictures in the folder ``drawn``; and the headline figures of the model card. ``run``: of a model of ours."""
    source = open_source(path)
    aligned = kept_translator(run.path if run else None, source, config)
    note = aligned[1] if aligned else None
    camera = note.camera if note else config.camera
    action = note.action if note else config.action or "action"
    actions = config.actions or (note.actions if note else "first")
    prefixes = prefixes_of(subject.slots) if subject.prefix else (subject.slots,)
    paired = config.paired or next((c for c in source.cameras if c.endswith(".paired") and c != camera), None)
    gap = subject.label_gap
    data = DataConfig(
        (path,),
        subject.image,
        gap=(gap, gap),
        camera=camera,
        paired=paired,
        action=None if note and source.action_spec(action) is None else action,
        actions=actions,
    )
    test = sample_split(data, "test", config.transitions)
    bar = progress_bar(6, "evaluate", "probe")
    notes = []
    if len(test.episode.unique()) < 5:
        notes.append("The test split has fewer than 5 episodes: intervals are over transitions and too narrow.")

    small = test[torch.linspace(0, len(test) - 1, min(len(test), config.reconstructions)).long()]
    features = pretrained_reference(subject, config)
    if features is None:
        notes.append(
            "Plain features of the pair were not measured: --pretrained efficientnet-lite0, or another encoder, adds them."
        )
    distance = distance_by(features) if features else None
    reconstruction = reconstruct(subject, small, prefixes, distance) if subject.pictures else []
    if subject.predicts != "pixels":
        notes.append(f"This model predicts {subject.predicts}, not pixels: there is no picture to show or to score.")
    elif reconstruction and reconstruction[0].lpips is None:
        notes.append("LPIPS is not available: its weights are not on this machine.")
    notes += left_out(subject) if run is None else []
    bar.update()
    if subject.pictures:
        prefix_picture(subject, test, prefixes, drawn / "prefix.png")
        transfer_picture(subject, test, drawn / "transfer.png")
    bar.update()
    composed = subject.sides.get(sum_side(run.model), subject) if run else subject
    structure = structural_probes(subject, composed, data, config.structure, drawn, notes)
    bar.update()
    leaks = leakage_probes(subject, data, config.environments, config.transitions)

    record: dict[str, Any] = {
        "format": 1,
        "lamina": __version__,
        "method": subject.name,
        "run": str(run.path if run else out),
        "checkpoint": checkpoint_hash(run.model_path) if run else subject.checkpoint,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "data": {
            "path": name_of(path),
            "split": "test",
            "episodes": len(test.episode.unique()),
            "transitions": len(test),
            "fps": source.fps,
            "trained_on": list(subject.trained_on),
        },
        "gap_seconds": list(subject.gap_seconds),
        "slots": subject.slots,
        "prefixes": list(prefixes),
        "codes": code_statistics(subject, test),
        "pretrained": Path(features.name).name if features else None,
        "reconstruction": [_reconstruction_row(s, small) for s in reconstruction],
        "structure": structure,
        "leakage": leaks,
        "training": training_curve(run.path / "log.jsonl") if run else None,
    }
    bar.update()
    translation: list[TranslationScore] = []
    linear: list[tuple[str, str, int | None, LinearScore]] = []
    if test.action is None:
        named = "actions" if action == "action" else f"actions '{action}'"
        notes.append(f"This data has no {named}: the translator and the linear probe were not run.")
    else:
        target = actions_of(data)
        warn_multi_action(data, target)
        notes.append(_actions_note(data, target))
        filling = unlabelled(data)
        seen = sample_split(data, "train", config.linear)
        linear = linear_probes(subject, seen, test, target.label, filling, features)
        bar.update()
        trained = None
        if aligned and run:
            trained = aligned_translators(run.path, run.model, path, test, target, aligned, config)
        elif config.labels:
            trained = new_translator(subject, data, test, target, config)
        elif run and (run.path / "joint" / "translator.json").exists():
            joint = run.path / "joint"
            notes.append(f"Aligned jointly, which changed the model too: run lamina evaluate {joint} --data DATASET.")
        elif run:
            notes.append(f"No translator yet: run lamina align {run.path} --data DATASET, then evaluate again.")
        else:
            notes.append("No translator: evaluate again with --labels 120, or another number of labelled transitions.")
        if trained:
            scores, record["budget"] = score_controls(trained, test, target, config, filling, features)
            translation = trained.scores + scores
            record |= trained.record
    bar.update(6 - bar.n)
    bar.close()
    record["translator"] = [_translation_row(s, test) for s in translation]
    record["linear"] = [
        {"name": name, "role": role, "k": k, "nmse": s.nmse.to_dict(), "accuracy": _maybe(s.accuracy)}
        for name, role, k, s in linear
    ]
    record["structure_pictures"] = [dict(COMPOSED)] if structure and subject.pictures else []
    record["pictures"] = [dict(picture) for picture in PICTURES] if subject.pictures else []
    record["notes"] = notes
    findings = verdict(
        reconstruction, small, translation, test, record.get("labels", 0), record["codes"]["warnings"], structure
    )
    compared = None
    if paired:
        compared = swap(subject, small) if subject.pictures else views(subject, small)
        record["exogenous"] = exogenous_rows(compared, small)
    if isinstance(compared, SwapScore):
        swap_picture({"": compared}, drawn / "swap.png")
        record["pictures"].append(dict(SWAP))
    alike = same_states(test) if paired and len(test) >= MIN_TRANSITIONS else None
    findings += judge_leakage(leaks)
    findings += judge_exogenous(compared, small, alike, test.action is not None)
    record["verdict"], record["summary"] = in_order(findings), summary(findings)
    return record, headline(reconstruction, translation)


def pretrained_reference(subject: Subject, config: EvaluateConfig) -> PretrainedFeatures | None:
    """The encoder that gives plain features and a perceptual distance; None without one. Raises LaminaError where it cannot be opened."""
    own = subject.config.space if subject.config else "pixels"
    name = config.pretrained or own
    if not is_pretrained(name):
        if config.pretrained:
            raise LaminaError(f"--pretrained {name}: is no pretrained encoder; try efficientnet-lite0")
        return None
    return PretrainedFeatures(name).to(pick_device(config.device))


def left_out(subject: Subject) -> list[str]:
    """What was not measured of a subject, or otherwise than of a model of ours, and why; one sentence each."""
    lacks = {
        "has no decoder: reconstruction, transfer, swap and the use of the latent were not measured": subject.decode is None,
        "has no codebook: the use of its codes was not measured": subject.index is None or subject.codebook_size is None,
        "has no prefixes: everything is measured on whole latents": subject.slots > 1 and subject.prefix is None,
        "has no random-weights control: how much training adds to its architecture is not known": subject.control is None,
        "names no architecture of ours: observation-only and the inverse dynamics model train Lamina's tiny encoder instead":
            subject.config is None,
    }  # fmt: skip
    return [f"{subject.name} {text}." for text, missing in lacks.items() if missing]


def _actions_note(data: DataConfig, actions: ActionTarget) -> str:
    """Which actions the labels are, in a sentence."""
    if actions.spanned == 1:
        return f"A latent spans {data.gap[0]:g} s: one action."
    which = {"first": "the first of them", "mean": "their mean", "chunk": "all of them"}[data.actions]
    return f"A latent spans {data.gap[0]:g} s, in which {actions.spanned} actions are taken; what is read off it is {which}."


def exogenous_rows(compared: PairedLatents, clip: Clip) -> list[dict[str, Any]]:
    """What other exogenous states change in the latent, and the PSNRs of the swap where there are pictures, as rows of the record."""
    psnrs = compared.psnrs() if isinstance(compared, SwapScore) else {}
    rows: list[dict[str, Any]] = [
        {"name": name, "role": "model", "k": None, "psnr": bootstrap_mean(values, clip.episode).to_dict()}
        for name, values in psnrs.items()
    ]
    changes = {
        "another exogenous state of the next frame": compared.future_change(clip.episode),
        "another exogenous state of both frames": compared.inconsistency(clip.episode),
    }
    return rows + [{"name": n, "role": "model", "k": None, "change": e.to_dict()} for n, e in changes.items()]


def structural_probes(
    subject: Subject, composed: Subject, data: DataConfig, limit: int, pictures: Path, notes: list[str]
) -> dict[str, Any] | None:
    """The structural probes' record, and their picture; None, with a note why, where the video is too short or ``limit`` is 0.

    ``composed``: the subject on the side of the quantiser on which its latents add up, for the picture."""
    if limit == 0:
        return None
    try:
        held = held_out(data, subject, limit)
    except LaminaError as error:
        notes.append(f"The latent's structure was not measured: {error}.")
        return None
    if subject.pictures:
        composed_picture(composed, held.triplets, pictures / "composed.png")
    records = measure_sides(subject, held)
    source = open_source(data.data[0])
    state = STATE if feature_width(data, STATE) is not None else None
    paths = trajectories(subject, source, subject.image, data.camera, state, limit=EPISODES, points=POINTS)
    return {
        "stride_seconds": held.stride, "seen": held.seen, "rows": structure_rows(records),
        "over_horizons": horizon_rows(records), "records": records,
        "trajectories": [_trajectory_row(path) for path in paths],
    }  # fmt: skip


def _trajectory_row(path: Trajectory) -> dict[str, Any]:
    lines = {"seconds": path.seconds, "length": path.length, "displacement": path.displacement}
    row: dict[str, Any] = {name: [] if v is None else np.round(v, 4).tolist() for name, v in lines.items()}
    return row | {"r": None if np.isnan(path.r) else path.r}


def leakage_probes(subject: Subject, data: DataConfig, environments: Sequence[str], limit: int) -> list[dict[str, Any]]:
    """The accuracy of a classifier of environments, and of its controls, as rows of the record; empty without other environments.

    Raises LaminaError without xgboost, or where an environment has no test split of its own.
    """
    if not environments:
        return []
    sources = [(data.data[0], data.camera), *map(_place, environments)]
    plain = dataclasses.replace(data, action=None, paired=None)
    clips = [
        sample_split(dataclasses.replace(plain, data=(path,), camera=camera), "test", limit) for path, camera in sources
    ]
    subjects = {"model": subject} | ({"control": subject.control(unlabelled(data), 1)} if subject.control else {})
    found = leakages(list(subjects.values()), clips)
    rows: list[dict[str, Any]] = [
        {"name": name, "role": role, "k": None, "leak": got.accuracy.to_dict(), "leak_unseen": _maybe(got.unseen)}
        for (name, got), role in zip(found.items(), [*subjects, "reference"], strict=True)
    ]
    chance = 1 / len(sources)
    level = {"mean": chance, "low": chance, "high": chance}
    return [*rows, {"name": "chance", "role": "control", "k": None, "leak": level, "leak_unseen": level}]


def _place(text: str) -> tuple[str, str | None]:
    """DATASET or DATASET:CAMERA."""
    path, _, camera = text.rpartition(":")
    return (path, camera) if path and Path(path).exists() and not Path(text).exists() else (text, None)


def headline(reconstruction: list[ReconstructionScore], translation: list[TranslationScore]) -> dict[str, float]:
    """The figures of the model card: of the model alone, over prefixes."""
    figures = {f"PSNR at k = {s.k} (dB)": float(s.psnr.mean()) for s in reconstruction if s.role == "model"}
    figures |= {f"{s.name}: action loss at k = {s.k}": float(s.loss.mean()) for s in translation if s.role == "model"}
    return figures


@torch.no_grad()
def code_statistics(subject: Subject, clip: Clip) -> dict[str, Any]:
    """Use of the codebook by each slot over the test transitions; empty for a subject without a codebook."""
    if subject.index is None or subject.codebook_size is None:
        return {"codebook": None, "slots": [], "warnings": []}
    index = in_batches(subject.index, clip.frames[:, 0], clip.frames[:, 1], size=256)
    uses = codes.slot_use(index, subject.codebook_size)
    slots = [{"slot": u.slot, "usage": u.usage, "perplexity": u.perplexity, "dead": u.dead} for u in uses]
    return {"codebook": subject.codebook_size, "slots": slots, "warnings": codes.warnings(uses)}


def training_curve(path: Path) -> dict[str, Any]:
    """Steps and losses of RUN/log.jsonl, thinned to at most 400 points; empty if there is no log."""
    rows = read_log(path)
    kept = rows[:: max(1, len(rows) // 400)]
    held = [row for row in rows if "validation/reconstruction" in row]
    validation = {"steps": [r["step"] for r in held], "loss": [r["validation/reconstruction"] for r in held]}
    return {"steps": [r["step"] for r in kept], "loss": [r["loss"] for r in kept], "validation": validation}


def _maybe(estimate: Estimate | None) -> dict[str, float] | None:
    return estimate.to_dict() if estimate else None


def _reconstruction_row(s: ReconstructionScore, clip: Clip) -> dict[str, Any]:
    means = {
        name: None if v is None else bootstrap_mean(v, clip.episode).to_dict()
        for name, v in (("psnr", s.psnr), ("ssim", s.ssim), ("lpips", s.lpips), ("perceptual", s.perceptual))
    }
    return {"name": s.name, "role": s.role, "k": s.k, **means}


def _translation_row(s: TranslationScore, clip: Clip) -> dict[str, Any]:
    episode = np.asarray(clip.episode)
    nmse = None if s.error is None or s.spread is None else bootstrap_ratio(s.error, s.spread, episode).to_dict()
    accuracy = None if s.right is None else bootstrap_mean(s.right, episode).to_dict()
    loss = bootstrap_mean(s.loss, episode).to_dict()
    return {"name": s.name, "role": s.role, "k": s.k, "loss": loss, "accuracy": accuracy, "nmse": nmse}
