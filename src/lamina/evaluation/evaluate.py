"""Stage 4: every probe on held-out episodes, with its controls, and a verdict in plain words -> RUN/evaluation.json."""

from __future__ import annotations

import copy
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
from tqdm import tqdm

from lamina.data.dataset import Data, name_of
from lamina.data.paired import MIN_TRANSITIONS, same_states
from lamina.data.sampling import ActionsOf, DataConfig, feature_width, open_source
from lamina.data.stream import sample_split
from lamina.device import DeviceName, Precision, autocast, pick_device
from lamina.errors import LaminaError
from lamina.evaluation.pictures import composed_picture, prefix_picture, swap_picture, transfer_picture
from lamina.evaluation.probes.exogenous import PairedLatents, SwapScore, swap, views
from lamina.evaluation.probes.leakage import leakages
from lamina.evaluation.probes.linear_probe import LinearScore, linear_probe, pixel_features
from lamina.evaluation.probes.reconstruction import ReconstructionScore, reconstruct
from lamina.evaluation.probes.structure import STATE, held_out, horizon_rows, measure_model, structure_rows, unlabelled
from lamina.evaluation.probes.trajectory import Trajectory, trajectories
from lamina.evaluation.probes.translation import TranslationScore, controls, score_translator
from lamina.evaluation.verdict import in_order, judge_exogenous, judge_leakage, summary, verdict
from lamina.files import checkpoint_hash, disk_errors, locked, partial_path, to_json, write_text
from lamina.images import to_float
from lamina.inference.encode import encode_clip, observe
from lamina.inference.subject import random_weights_subject, subject_of
from lamina.intervals import Estimate, bootstrap_mean, bootstrap_ratio
from lamina.models import code_usage as codes
from lamina.models.calibration import random_weights
from lamina.models.heads import ActionHead, Translator, TranslatorConfig
from lamina.models.hub import LatentActionModel, model_folder
from lamina.options import check_options
from lamina.training.alignment import load_translator, training_of
from lamina.training.labelled import ActionTarget, actions_of, encode_labels, probe_data, warn_multi_action
from lamina.training.log import read_log
from lamina.types import ActionSpec, Clip
from lamina.version import __version__


@dataclass(frozen=True)
class EvaluateConfig:
    """How much held-out data the probes see."""

    transitions: int = 1024
    """test transitions for translators, linear probes and code statistics"""
    reconstructions: int = 256
    """test transitions that are decoded"""
    linear: int = 4096
    """training transitions whose actions the linear probe may see"""
    structure: int = 256
    """test windows for the probes of the latent's structure; 0 leaves them out"""
    environments: tuple[str, ...] = ()
    """other places than --data, for the leakage probe: datasets or videos, or DATASET:CAMERA"""
    camera: str | None = None
    paired: str | None = None
    """camera that shows the same states under another exogenous state; default: the one called paired, where there is one"""
    action: str = "action"
    actions: ActionsOf | None = None
    """of the actions taken in the gap of a latent: first, mean or chunk; default: as the translator was aligned, else the first"""
    scratch_steps: int | None = None
    """steps of the inverse dynamics model and the observation-only control, which train an encoder of their own; default: as many as
    the translator had"""
    device: DeviceName = "auto"
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        check_options(self)


#: Episodes whose norm trajectory is drawn, and at how many frames.
EPISODES, POINTS = 3, 60
#: What the pictures of a run show.
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


def evaluate(run: Path, path: Data, config: EvaluateConfig) -> Path:
    """Probe RUN's model (and translator, if it has one) on the test split of ``path``; writes RUN/evaluation.json and pictures."""
    device = pick_device(config.device)
    out, pictures = run / "evaluation.json", run / "pictures"
    drawn = partial_path(pictures)
    with locked(out), autocast(device, config.precision):
        shutil.rmtree(drawn, ignore_errors=True)  # what a killed evaluation left
        try:
            record, model, metrics = _evaluate(run, path, config, device, drawn)
            for picture in record["pictures"] + record["structure_pictures"]:
                content = (drawn / Path(picture["file"]).name).read_bytes()
                picture["sha256"] = hashlib.sha256(content).hexdigest()
            write_text(drawn / out.name, to_json(record, indent=1) + "\n")
            # Nothing from here on needs room on the disk: pictures and record change together, or not at all.
            with disk_errors(out):
                shutil.rmtree(pictures, ignore_errors=True)
                drawn.replace(pictures)
                (pictures / out.name).replace(out)
        finally:
            shutil.rmtree(drawn, ignore_errors=True)
        model.write_metrics(model_folder(run), metrics)
    return out


def _evaluate(
    run: Path, path: Data, config: EvaluateConfig, device: str, drawn: Path
) -> tuple[dict[str, Any], LatentActionModel, dict[str, float]]:
    """The record, with pictures in the folder ``drawn``; the model; and its headline figures."""
    folder = model_folder(run)
    model = LatentActionModel.from_pretrained(str(folder)).to(device)
    aligned = load_translator(run / "translator") if (run / "translator" / "translator.json").exists() else None
    actions = config.actions or (aligned[1]["actions"] if aligned else "first")
    if aligned and actions != aligned[1]["actions"]:
        raise LaminaError(
            f"{run / 'translator'}: was aligned to the {aligned[1]['actions']} of a gap's actions; leave out --actions, or align again"
        )
    if aligned and aligned[1]["data"] == name_of(path):
        aligned[1]["data"] = path  # the labels of a Dataset cannot be opened by its name
    prefixes = prefixes_of(model.config.slots)
    source = open_source(path)
    paired = config.paired or next((c for c in source.cameras if c.endswith(".paired") and c != config.camera), None)
    data = dataclasses.replace(probe_data(model, path, config.camera, config.action, actions), paired=paired)
    test = sample_split(data, "test", config.transitions)
    bar = tqdm(total=6, desc="evaluate", unit="probe", dynamic_ncols=True)
    notes = []
    if len(test.episode.unique()) < 5:
        notes.append("The test split has fewer than 5 episodes: intervals are over transitions and too narrow.")

    small = test[torch.linspace(0, len(test) - 1, min(len(test), config.reconstructions)).long()]
    pictures = model.config.space == "pixels"
    reconstruction = reconstruct(model, small, prefixes) if pictures else []
    if not pictures:
        notes.append(f"This model predicts {model.config.space}, not pixels: there is no picture to show or to score.")
    elif reconstruction[0].lpips is None:
        notes.append("LPIPS is not available: its weights are not on this machine.")
    bar.update()
    if pictures:
        prefix_picture(model, test, prefixes, drawn / "prefix.png")
        transfer_picture(model, test, drawn / "transfer.png")
    bar.update()
    structure = structural_probes(model, data, config.structure, drawn, notes)
    bar.update()
    leaks = leakage_probes(model, data, config.environments, config.transitions)

    record: dict[str, Any] = {
        "format": 1,
        "lamina": __version__,
        "method": model.provenance.method,
        "run": str(run),
        "checkpoint": checkpoint_hash(folder),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "data": {
            "path": name_of(path),
            "split": "test",
            "episodes": len(test.episode.unique()),
            "transitions": len(test),
            "fps": source.fps,
            "trained_on": list(model.provenance.data),
        },
        "gap_seconds": list(model.provenance.gap_seconds),
        "slots": model.config.slots,
        "prefixes": list(prefixes),
        "codes": code_statistics(model, test),
        "reconstruction": [_reconstruction_row(s, small) for s in reconstruction],
        "structure": structure,
        "leakage": leaks,
        "training": training_curve(run / "log.jsonl"),
    }
    bar.update()
    translation: list[TranslationScore] = []
    linear: list[tuple[str, str, int | None, LinearScore]] = []
    if test.action is None:
        notes.append("This data has no actions: the translator and the linear probe were not run.")
    else:
        spanned = actions_of(data)
        warn_multi_action(data, spanned)
        notes.append(_told(data, spanned))
        lengths = prefixes_of(model.config.action_length)
        filling = unlabelled(data)
        linear = linear_probes(model, sample_split(data, "train", config.linear), test, spanned.label, lengths, filling)
        bar.update()
        if aligned:
            scores, budget = translator_probes(run, model, test, spanned, aligned, config, filling)
            translation += scores
            note = aligned[1]
            record |= {"labels": note["labels"], "label_episodes": note["label_episodes"], "budget": budget}
            record["translator_curve"] = translator_curve(run / "translator" / "training" / "log.jsonl")
        else:
            notes.append(f"No translator yet: run lamina align {run} --data DATASET, then evaluate again.")
    bar.update(6 - bar.n)
    bar.close()
    record["translator"] = [_translation_row(s, test) for s in translation]
    record["linear"] = [
        {"name": name, "role": role, "k": k, "nmse": s.nmse.to_dict(), "accuracy": _maybe(s.accuracy)}
        for name, role, k, s in linear
    ]
    record["structure_pictures"] = [dict(COMPOSED)] if structure and pictures else []
    record["pictures"] = [dict(picture) for picture in PICTURES] if pictures else []
    record["notes"] = notes
    findings = verdict(
        reconstruction, small, translation, test, record.get("labels", 0), record["codes"]["warnings"], structure
    )
    seen = None
    if paired:
        seen = swap(model, small) if pictures else views(model, small)
        record["exogenous"] = exogenous_rows(seen, small)
    if isinstance(seen, SwapScore):
        swap_picture({"": seen}, drawn / "swap.png")
        record["pictures"].append(dict(SWAP))
    alike = same_states(test) if paired and len(test) >= MIN_TRANSITIONS else None
    findings += judge_leakage(leaks)
    findings += judge_exogenous(seen, small, alike, test.action is not None)
    record["verdict"], record["summary"] = in_order(findings), summary(findings)
    return record, model, headline(reconstruction, translation)


def _told(data: DataConfig, actions: ActionTarget) -> str:
    """Which actions the labels are, in a sentence."""
    if actions.spanned == 1:
        return f"A latent spans {data.gap[0]:g} s: one action."
    which = {"first": "the first of them", "mean": "their mean", "chunk": "all of them"}[data.actions]
    return f"A latent spans {data.gap[0]:g} s, in which {actions.spanned} actions are taken; what is read off it is {which}."


def exogenous_rows(seen: PairedLatents, clip: Clip) -> list[dict[str, Any]]:
    """What part of the latent's variance is exogenous, and the PSNRs of the swap where there are pictures, as rows of the record."""
    psnrs = seen.psnrs() if isinstance(seen, SwapScore) else {}
    rows: list[dict[str, Any]] = [
        {"name": name, "role": "model", "k": None, "psnr": bootstrap_mean(values, clip.episode).to_dict()}
        for name, values in psnrs.items()
    ]
    shares = {
        "another exogenous state of the next frame": seen.future_share(clip.episode),
        "another exogenous state of both frames": seen.inconsistency(clip.episode),
    }
    return rows + [{"name": n, "role": "model", "k": None, "share": e.to_dict()} for n, e in shares.items()]


def structural_probes(
    model: LatentActionModel, data: DataConfig, limit: int, pictures: Path, notes: list[str]
) -> dict[str, Any] | None:
    """The structural probes' record, and their picture; None, with a note why, where the video is too short or ``limit`` is 0."""
    if limit == 0:
        return None
    try:
        held = held_out(data, model.provenance, limit)
    except LaminaError as error:
        notes.append(f"The latent's structure was not measured: {error}.")
        return None
    subject = subject_of(model)
    if model.config.space == "pixels":
        composed_picture(subject, held.triplets, pictures / "composed.png")
    records = measure_model(model, held)
    source = open_source(data.data[0])
    state = STATE if feature_width(data, STATE) is not None else None
    paths = trajectories(subject, source, model.config.image[1:], data.camera, state, limit=EPISODES, points=POINTS)
    return {
        "stride_seconds": held.stride, "seen": held.seen, "rows": structure_rows(records),
        "over_horizons": horizon_rows(records), "records": records,
        "trajectories": [_trajectory_row(path) for path in paths],
    }  # fmt: skip


def _trajectory_row(path: Trajectory) -> dict[str, Any]:
    lines = {"seconds": path.seconds, "length": path.length, "displacement": path.displacement}
    row: dict[str, Any] = {name: [] if v is None else np.round(v, 4).tolist() for name, v in lines.items()}
    return row | {"r": None if np.isnan(path.r) else path.r}


def leakage_probes(
    model: LatentActionModel, data: DataConfig, environments: Sequence[str], limit: int
) -> list[dict[str, Any]]:
    """How well a classifier tells where a latent is from, and the controls, as rows of the record; empty without other environments.

    Raises LaminaError without xgboost, or where a place has no test split of its own.
    """
    if not environments:
        return []
    places = [(data.data[0], data.camera), *map(_place, environments)]
    plain = dataclasses.replace(data, action=None, paired=None)
    clips = [
        sample_split(dataclasses.replace(plain, data=(path,), camera=camera), "test", limit) for path, camera in places
    ]
    found = leakages([subject_of(model), random_weights_subject(model, unlabelled(data))], clips)
    roles = dict(zip(found, ("model", "control", "reference"), strict=True))
    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "role": roles[name],
            "k": None,
            "leak": got.accuracy.to_dict(),
            "leak_unseen": _maybe(got.unseen),
        }
        for name, got in found.items()
    ]
    chance = 1 / len(places)
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


def code_statistics(model: LatentActionModel, clip: Clip) -> dict[str, Any]:
    """Use of the codebook by each slot over the test transitions; empty for a LAM without a codebook."""
    latent = [model.encode(clip.frames[i : i + 256, 0], clip.frames[i : i + 256, 1]) for i in range(0, len(clip), 256)]
    if latent[0].index is None:
        return {"codebook": None, "slots": [], "warnings": []}
    size: int = model.lam.bottleneck.codebook_size  # type: ignore[assignment]
    uses = codes.slot_use(torch.cat([part.index for part in latent if part.index is not None]), size)
    slots = [{"slot": u.slot, "usage": u.usage, "perplexity": u.perplexity, "dead": u.dead} for u in uses]
    return {"codebook": size, "slots": slots, "warnings": codes.warnings(uses)}


def linear_probes(
    model: LatentActionModel, train: Clip, test: Clip, spec: ActionSpec, prefixes: tuple[int, ...], filling: Clip
) -> list[tuple[str, str, int | None, LinearScore]]:
    """The linear probe on every prefix of the latent action and on the controls, as (name, role, k, score). ``filling``: transitions that
    fill the statistics of the random-weights encoder."""
    assert train.action is not None and test.action is not None
    head = ActionHead(spec)
    head.calibrate(train.action[:, 0])
    y, test_y = head.embed(train.action[:, 0]), head.embed(test.action[:, 0])

    def probe(a: Tensor, b: Tensor) -> LinearScore:
        return linear_probe(a.flatten(1), y, b.flatten(1), test_y, test.episode, spec)

    z, test_z = encode_clip(model.lam, train), encode_clip(model.lam, test)
    prefix = copy.deepcopy(model.lam.prefix).cpu()
    with torch.no_grad():
        rows: list[tuple[str, str, int | None, LinearScore]] = [
            (model.provenance.method, "model", k, probe(prefix(z, k), prefix(test_z, k))) for k in prefixes
        ]
    random = random_weights(model.config, filling, seed=1).to(model.device)
    full = model.config.action_length
    order, test_order = (torch.randperm(len(x), generator=torch.Generator().manual_seed(0)) for x in (z, test_z))
    rows.append(("shuffled latents", "control", full, probe(z[order], test_z[test_order])))
    rows.append(("copy-frame", "control", None, probe(observe(model.lam, train), observe(model.lam, test))))
    rows.append(
        ("random-weights encoder", "control", full, probe(encode_clip(random, train), encode_clip(random, test)))
    )
    pixels = pixel_features(to_float(train.frames), to_float(test.frames), z[0].numel())
    rows.append(("plain pixels of the pair", "reference", None, probe(*pixels)))
    return rows


def translator_probes(
    run: Path,
    model: LatentActionModel,
    test: Clip,
    actions: ActionTarget,
    aligned: tuple[Translator, dict[str, Any]],
    config: EvaluateConfig,
    filling: Clip,
) -> tuple[list[TranslationScore], dict[str, Any]]:
    """RUN's translators on the test split, frozen and joint, and the controls, trained on the same labels; and their training budgets."""
    translator, note = aligned
    expected = (actions.spec.discrete, actions.spec.continuous, actions.steps)
    if (translator.spec.discrete, translator.spec.continuous, translator.steps) != expected:
        raise LaminaError(
            f"{run / 'translator'}: was trained for other actions than this dataset has; align again on it"
        )
    prefixes, side, observed = prefixes_of(note["slots"]), note["side"], bool(note["observation"])
    items = encode_labels(model.lam, test, side, observed)
    name = model.provenance.method
    scores = score_translator(translator, model.lam.prefix, items, prefixes, name, "model")
    if (run / "joint" / "translator.json").exists():
        joint = LatentActionModel.from_pretrained(str(run / "joint" / "model")).to(model.device)
        head, joint_note = load_translator(run / "joint")
        if (head.spec, head.steps) == (translator.spec, translator.steps):
            again = encode_labels(joint.lam, test, joint_note["side"], bool(joint_note["observation"]))
            scores += score_translator(
                head, joint.lam.prefix, again, prefixes_of(joint_note["slots"]), f"{name}, joint", "model"
            )
    tasks = tuple(note["tasks"])
    labelled_data = probe_data(model, note["data"], note["camera"], note["action"], note["actions"])
    training = training_of(note, device=config.device, precision=config.precision)
    labels = sample_split(
        dataclasses.replace(labelled_data, tasks=tasks),
        "train",
        note["labels"],
        seed=training.seed,
        require_action=True,
    )
    steps = config.scratch_steps or training.steps
    scratch = dataclasses.replace(training, steps=steps, checkpoint_every=steps)
    heads = TranslatorConfig(**note["config"])
    scores += controls(model.lam, labels, test, actions, heads, training, filling, side, scratch)
    shared = {"batch": training.batch, "lr": training.lr, "validate_every": training.validate_every}
    budget = {"steps": training.steps, "scratch_steps": steps, "condition": heads.condition, **shared}
    return scores, budget


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
        for name, v in (("psnr", s.psnr), ("ssim", s.ssim), ("lpips", s.lpips))
    }
    return {"name": s.name, "role": s.role, "k": s.k, **means}


def _translation_row(s: TranslationScore, clip: Clip) -> dict[str, Any]:
    episode = np.asarray(clip.episode)
    nmse = None if s.error is None or s.spread is None else bootstrap_ratio(s.error, s.spread, episode).to_dict()
    accuracy = None if s.right is None else bootstrap_mean(s.right, episode).to_dict()
    loss = bootstrap_mean(s.loss, episode).to_dict()
    return {"name": s.name, "role": s.role, "k": s.k, "loss": loss, "accuracy": accuracy, "nmse": nmse}
