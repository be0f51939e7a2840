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
from torch import Tensor

from lamina.data.dataset import Data, name_of
from lamina.data.paired import MIN_TRANSITIONS, same_states
from lamina.data.sampling import ActionsOf, DataConfig, count_transitions, feature_width, open_source
from lamina.data.stream import sample_split
from lamina.device import DeviceName, Precision, autocast, pick_device
from lamina.errors import LaminaError
from lamina.evaluation.pictures import composed_picture, prefix_picture, swap_picture, transfer_picture
from lamina.evaluation.probes.exogenous import PairedLatents, SwapScore, swap, views
from lamina.evaluation.probes.leakage import leakages
from lamina.evaluation.probes.linear_probe import LinearScore, linear_probe, pixel_features, plain_features
from lamina.evaluation.probes.reconstruction import ReconstructionScore, distance_by, reconstruct
from lamina.evaluation.probes.structure import STATE, held_out, horizon_rows, measure_sides, structure_rows, unlabelled
from lamina.evaluation.probes.trajectory import Trajectory, trajectories
from lamina.evaluation.probes.translation import (
    TranslationScore,
    controls,
    encode_labels,
    features_row,
    fit_translator,
    prefix_of,
    score_translator,
)
from lamina.evaluation.record import Evaluation, evaluation_of
from lamina.evaluation.verdict import in_order, judge_exogenous, judge_leakage, summary, verdict
from lamina.files import Scratch, checkpoint_hash, disk_errors, locked, partial_path, write_text
from lamina.inference.encode import in_batches
from lamina.inference.subject import RANDOM, Subject, subject_of
from lamina.intervals import Estimate, bootstrap_mean, bootstrap_ratio
from lamina.models import code_usage as codes
from lamina.models.feature_cache import kept_features
from lamina.models.features import PretrainedFeatures, is_pretrained
from lamina.models.heads import ActionHead, Translator, TranslatorConfig
from lamina.models.hub import LatentActionModel, model_folder
from lamina.options import check_options
from lamina.progress import progress_bar
from lamina.training.alignment import TranslatorNote, load_translator
from lamina.training.heads import head_training
from lamina.training.labelled import ActionTarget, actions_of, parse_labels, probe_data, warn_multi_action
from lamina.training.log import read_log
from lamina.training.settings import TrainConfig
from lamina.types import ActionSpec, Clip
from lamina.version import __version__


@dataclass(frozen=True)
class EvaluateConfig:
    """Options of an evaluation: how much held-out data the probes see, and which."""

    transitions: int = 1024
    """test transitions for translators, linear probes and code statistics"""
    reconstructions: int = 256
    """test transitions that are decoded"""
    linear: int = 4096
    """training transitions whose actions the linear probe may see"""
    structure: int = 256
    """test windows for the probes of the latent's structure; 0 leaves them out"""
    environments: tuple[str, ...] = ()
    """other environments for the leakage probe: datasets or videos, or DATASET:CAMERA"""
    camera: str | None = None
    """camera of a LeRobot dataset; default: the first"""
    paired: str | None = None
    """camera with the paired view (same states, other exogenous state); default: a camera named "paired", if any"""
    action: str = "action"
    """feature that holds the actions"""
    labels: str | None = None
    """number (120) or share (5%) of labelled transitions to train a translator on, if the run has none"""
    translator_steps: int = 600
    """training steps of that translator and of its controls"""
    actions: ActionsOf | None = None
    """which of the actions in the gap of a latent are predicted: first, mean or chunk; default: as in the alignment, else the first"""
    pretrained: str | None = None
    """pretrained encoder, as --space of `lamina train` names it, for two references: its plain features of the pair of frames, and a
    perceptual distance of predicted pictures; default: that of the model's own space, if it is pretrained"""
    seed: int = 0
    """of the choice of labels and of that translator's training"""
    scratch_steps: int | None = None
    """training steps of the inverse dynamics model and the observation-only control; default: as many as the translator's"""
    device: DeviceName = "auto"
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        check_options(self)


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


def prefixes_of(slots: int) -> tuple[int, ...]:
    """1, 2, 4, ... and K: the prefix lengths that are reported."""
    return tuple(sorted({2**i for i in range(slots.bit_length()) if 2**i <= slots} | {slots}))


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
    aligned = _aligned(run.path if run else None, config)
    actions = config.actions or (aligned[1].actions if aligned else "first")
    prefixes = prefixes_of(subject.slots) if subject.prefix else (subject.slots,)
    source = open_source(path)
    paired = config.paired or next((c for c in source.cameras if c.endswith(".paired") and c != config.camera), None)
    gap = subject.label_gap
    data = DataConfig(
        (path,),
        subject.image,
        gap=(gap, gap),
        camera=config.camera,
        paired=paired,
        action=config.action,
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
    structure = structural_probes(subject, data, config.structure, drawn, notes)
    bar.update()
    leaks = leakage_probes(subject, data, config.environments, config.transitions)

    record: dict[str, Any] = {
        "format": 1,
        "lamina": __version__,
        "method": subject.name,
        "run": str(run.path if run else out),
        "checkpoint": checkpoint_hash(run.model_path) if run else None,
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
        notes.append("This data has no actions: the translator and the linear probe were not run.")
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
            trained = aligned_translators(run, path, test, target, aligned, config)
        elif config.labels:
            trained = new_translator(subject, data, test, target, config)
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


def _aligned(run: Path | None, config: EvaluateConfig) -> tuple[Translator, TranslatorNote] | None:
    """RUN's translator and its note, where there is one. Raises LaminaError for options that do not fit it."""
    folder = run / "translator" if run else None
    if folder is None or not (folder / "translator.json").exists():
        return None
    translator, note = load_translator(folder)
    if config.labels:
        raise LaminaError(f"{folder}: is trained already; leave out --labels, or delete that folder")
    if config.actions not in (None, note.actions):
        raise LaminaError(
            f"{folder}: was aligned to the {note.actions} of a gap's actions; leave out --actions, or align again"
        )
    return translator, note


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
    subject: Subject, data: DataConfig, limit: int, pictures: Path, notes: list[str]
) -> dict[str, Any] | None:
    """The structural probes' record, and their picture; None, with a note why, where the video is too short or ``limit`` is 0."""
    if limit == 0:
        return None
    try:
        held = held_out(data, subject, limit)
    except LaminaError as error:
        notes.append(f"The latent's structure was not measured: {error}.")
        return None
    if subject.pictures:
        composed_picture(subject, held.triplets, pictures / "composed.png")
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


def linear_probes(
    subject: Subject,
    train: Clip,
    test: Clip,
    spec: ActionSpec,
    filling: Clip,
    features: PretrainedFeatures | None = None,
) -> list[tuple[str, str, int | None, LinearScore]]:
    """The linear probe on every prefix of the latent action and on the controls, as (name, role, k, score).

    ``filling``: transitions that fill the statistics of the random-weights encoder. ``features``: whose plain features are a reference.
    """
    assert train.action is not None and test.action is not None
    head = ActionHead(spec)
    head.calibrate(train.action[:, 0])
    y, test_y = head.embed(train.action[:, 0]), head.embed(test.action[:, 0])
    (src, dst), (test_src, test_dst) = ((clip.frames[:, 0], clip.frames[:, 1]) for clip in (train, test))

    def probe(a: Tensor, b: Tensor) -> LinearScore:
        return linear_probe(a.flatten(1), y, b.flatten(1), test_y, test.episode, spec)

    z, test_z = subject.slotted(src, dst), subject.slotted(test_src, test_dst)
    full, prefix = z.shape[1], prefix_of(subject, z)
    lengths = prefixes_of(full) if subject.prefix else (full,)
    with torch.no_grad():
        rows: list[tuple[str, str, int | None, LinearScore]] = [
            (subject.name, "model", k, probe(prefix(z, k), prefix(test_z, k))) for k in lengths
        ]
    order, test_order = (torch.randperm(len(x), generator=torch.Generator().manual_seed(0)) for x in (z, test_z))
    rows.append(("shuffled latents", "control", full, probe(z[order], test_z[test_order])))
    still = probe(subject.actions(src, src), subject.actions(test_src, test_src))
    rows.append(("copy-frame", "control", None, still))
    if subject.control:
        random = subject.control(filling, 1)
        rows.append((RANDOM, "control", full, probe(random.actions(src, dst), random.actions(test_src, test_dst))))
    pixels = pixel_features(train.frames, test.frames, z[0].numel())
    rows.append(("plain pixels of the pair", "reference", None, probe(*pixels)))
    if features is not None:
        plain = plain_features(features, train.frames, test.frames, z[0].numel())
        rows.append((features_row(features), "reference", None, probe(*plain)))
    return rows


@dataclass(frozen=True)
class TrainedTranslators:
    """The scores of a model's translators on the test split, and all that it takes to train controls in the same way.

    ``record``: the number of labels and the training curve, for evaluation.json.
    """

    subject: Subject
    scores: list[TranslationScore]
    labels: Clip
    heads: TranslatorConfig
    training: TrainConfig
    record: dict[str, Any]


def aligned_translators(
    run: _Run,
    path: Data,
    test: Clip,
    actions: ActionTarget,
    aligned: tuple[Translator, TranslatorNote],
    config: EvaluateConfig,
) -> TrainedTranslators:
    """RUN's translators, frozen and joint."""
    translator, note = aligned
    expected = (actions.spec.discrete, actions.spec.continuous, actions.steps)
    if (translator.spec.discrete, translator.spec.continuous, translator.steps) != expected:
        raise LaminaError(
            f"{run.path / 'translator'}: was trained for other actions than this dataset has; align again on it"
        )
    subject = subject_of(run.model, note.side)

    def scores_of(translator: Translator, read: Subject, note: TranslatorNote, name: str) -> list[TranslationScore]:
        items = encode_labels(read, test, bool(note.observation))
        prefix = prefix_of(read, items.z)
        return score_translator(translator, prefix, items, prefixes_of(note.slots), name, "model")

    scores = scores_of(translator, subject, note, subject.name)
    if (run.path / "joint" / "translator.json").exists():
        joint = LatentActionModel.from_pretrained(str(run.path / "joint" / "model")).to(run.model.device)
        head, joint_note = load_translator(run.path / "joint")
        if (head.spec, head.steps) == (translator.spec, translator.steps):
            read = subject_of(joint, joint_note.side)
            scores += scores_of(head, read, joint_note, f"{subject.name}, joint")
    source = path if name_of(path) == note.data else note.data  # a Dataset cannot be opened by its name
    data = probe_data(run.model, source, note.camera, note.action, note.actions)
    data = dataclasses.replace(data, tasks=note.tasks)
    training = note.train_config(device=config.device, precision=config.precision)
    labels = sample_split(data, "train", note.labels, seed=training.seed, require_action=True)
    curve = translator_curve(run.path / "translator" / "training" / "log.jsonl")
    record = {"labels": note.labels, "label_episodes": note.label_episodes, "translator_curve": curve}
    return TrainedTranslators(subject, scores, labels, note.config, training, record)


def new_translator(
    subject: Subject, data: DataConfig, test: Clip, actions: ActionTarget, config: EvaluateConfig
) -> TrainedTranslators:
    """A translator trained on ``config.labels`` transitions of the training split with the defaults of `lamina align`."""
    training = head_training(config.translator_steps, config.seed, device=config.device, precision=config.precision)
    heads = TranslatorConfig()
    number = parse_labels(config.labels or "", count_transitions(data, "train"))
    data = dataclasses.replace(data, paired=None)
    labels = sample_split(data, "train", number, seed=training.seed, require_action=True)
    items, test_items = encode_labels(subject, labels), encode_labels(subject, test)
    prefix = prefix_of(subject, items.z)
    with Scratch() as scratch:
        translator = fit_translator(prefix, items, actions, heads, training, Path(scratch))
        curve = translator_curve(Path(scratch) / "log.jsonl")
    lengths = prefixes_of(prefix.slots) if subject.prefix else (items.z.shape[1],)
    scores = score_translator(translator, prefix, test_items, lengths, subject.name, "model")
    record = {"labels": len(labels), "label_episodes": len(labels.episode.unique()), "translator_curve": curve}
    return TrainedTranslators(subject, scores, labels, heads, training, record)


def score_controls(
    trained: TrainedTranslators,
    test: Clip,
    actions: ActionTarget,
    config: EvaluateConfig,
    filling: Clip,
    features: PretrainedFeatures | None = None,
) -> tuple[list[TranslationScore], dict[str, Any]]:
    """The controls of a translator, trained as it was, and the training budget of all."""
    training, heads = trained.training, trained.heads
    steps = config.scratch_steps or training.steps
    scratch = dataclasses.replace(training, steps=steps, checkpoint_every=steps)
    scores = controls(trained.subject, trained.labels, test, actions, heads, training, filling, scratch, features)
    shared = {"batch": training.batch, "lr": training.lr, "validate_every": training.validate_every}
    return scores, {"steps": training.steps, "scratch_steps": steps, "condition": heads.condition, **shared}


def training_curve(path: Path) -> dict[str, Any]:
    """Steps and losses of RUN/log.jsonl, thinned to at most 400 points; empty if there is no log."""
    rows = read_log(path)
    kept = rows[:: max(1, len(rows) // 400)]
    held = [row for row in rows if "validation/reconstruction" in row]
    validation = {"steps": [r["step"] for r in held], "loss": [r["validation/reconstruction"] for r in held]}
    return {"steps": [r["step"] for r in kept], "loss": [r["loss"] for r in kept], "validation": validation}


def translator_curve(path: Path) -> dict[str, Any]:
    """Steps, training and validation loss of a translator's log; empty if there is none."""
    rows = [row for row in read_log(path) if "validation/action" in row]
    steps, train = [row["step"] for row in rows], [row["loss"] for row in rows]
    return {"steps": steps, "train": train, "validation": [row["validation/action"] for row in rows]}


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
