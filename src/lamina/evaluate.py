"""Stage 4: every probe on held-out episodes, with its controls, and a verdict in plain words -> RUN/evaluation.json."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lamina import __version__, codes
from lamina.align import (
    ActionHead,
    TranslatorConfig,
    action_spec,
    encode_clip,
    labelled,
    load_translator,
    observe,
    probe_data,
)
from lamina.bootstrap import Estimate, bootstrap_mean, bootstrap_ratio
from lamina.data import DataConfig, feature_width, gather, open_source
from lamina.errors import LaminaError
from lamina.files import checkpoint_hash, write_text
from lamina.lam import LAM, LatentActionModel, model_folder
from lamina.paired import LEAST, same_states
from lamina.pictures import composed_picture, prefix_picture, swap_picture, transfer_picture
from lamina.probes.encoders import of_model, untrained
from lamina.probes.exogenous import SwapScore, Views, swap, views
from lamina.probes.leakage import leakages
from lamina.probes.linear import LinearScore, linear_probe, pixel_features
from lamina.probes.reconstruction import ReconstructionScore, reconstruct
from lamina.probes.structural import STATE, held_out, horizon_rows, measure_model, places, structure_rows
from lamina.probes.trajectory import Trajectory, trajectories
from lamina.probes.translation import TranslationScore, controls, score_translator
from lamina.probes.verdict import in_order, judge_exogenous, judge_leakage, verdict
from lamina.shapes import ActionSpec, Clip, to_float


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


def evaluate(run: Path, path: str, config: EvaluateConfig) -> Path:
    """Probe RUN's model (and translator, if it has one) on the test split of ``path``; writes RUN/evaluation.json and pictures."""
    folder = model_folder(run)
    model = LatentActionModel.from_pretrained(str(folder))
    prefixes = prefixes_of(model.config.slots)
    source = open_source(path)
    paired = config.paired or next((c for c in source.cameras if c.endswith(".paired") and c != config.camera), None)
    data = dataclasses.replace(probe_data(model, path, config.camera, config.action), paired=paired)
    test = gather(data, "test", config.transitions)
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
        prefix_picture(model, test, prefixes, run / "pictures" / "prefix.png")
        transfer_picture(model, test, run / "pictures" / "transfer.png")
    bar.update()
    structure = structural_probes(model, data, config.structure, run / "pictures", notes)
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
            "path": path,
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
        spec = action_spec(data)
        linear = linear_probes(model, gather(data, "train", config.linear), test, spec, prefixes)
        bar.update()
        if (run / "translator" / "translator.json").exists():
            scores, note = translator_probes(run, model, test, spec, prefixes)
            translation += scores
            record |= {"labels": note["labels"], "label_episodes": note["label_episodes"]}
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
    record["structure_pictures"] = [COMPOSED] if structure and pictures else []
    record["pictures"] = list(PICTURES) if pictures else []
    record["notes"] = notes
    findings = verdict(
        reconstruction, small, translation, test, record.get("labels", 0), record["codes"]["warnings"], structure
    )
    seen = None
    if paired:
        seen = swap(model, small) if pictures else views(model, small)
        record["exogenous"] = exogenous_rows(seen, small)
    if isinstance(seen, SwapScore):
        swap_picture({"": seen}, run / "pictures" / "swap.png")
        record["pictures"].append(SWAP)
    alike = same_states(test) if paired and len(test) >= LEAST else None
    findings += judge_leakage(leaks)
    findings += judge_exogenous(seen, small, alike, test.action is not None)
    record["verdict"] = in_order(findings)
    write_text(run / "evaluation.json", json.dumps(record, indent=1) + "\n")
    model.write_metrics(folder, headline(reconstruction, translation))
    return run / "evaluation.json"


def exogenous_rows(seen: Views, clip: Clip) -> list[dict[str, Any]]:
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
    subject = of_model(model, places(model)[0])
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
    clips = [gather(dataclasses.replace(plain, data=(path,), camera=camera), "test", limit) for path, camera in places]
    found = leakages([of_model(model), untrained(model)], clips)
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
    model: LatentActionModel, train: Clip, test: Clip, spec: ActionSpec, prefixes: tuple[int, ...]
) -> list[tuple[str, str, int | None, LinearScore]]:
    """The linear probe on every prefix and on the controls, as (name, role, k, score)."""
    assert train.action is not None and test.action is not None
    head = ActionHead(spec)
    head.calibrate(train.action[:, 0])
    y, test_y = head.embed(train.action[:, 0]), head.embed(test.action[:, 0])

    def probe(a: Tensor, b: Tensor) -> LinearScore:
        return linear_probe(a.flatten(1), y, b.flatten(1), test_y, test.episode, spec)

    z, test_z = encode_clip(model.lam, train), encode_clip(model.lam, test)
    with torch.no_grad():
        rows: list[tuple[str, str, int | None, LinearScore]] = [
            (model.provenance.method, "model", k, probe(model.lam.prefix(z, k), model.lam.prefix(test_z, k)))
            for k in prefixes
        ]
    torch.manual_seed(1)
    random = LAM(model.config)
    full = model.config.slots
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
    run: Path, model: LatentActionModel, test: Clip, spec: ActionSpec, prefixes: tuple[int, ...]
) -> tuple[list[TranslationScore], dict[str, Any]]:
    """RUN's translators on the test split, frozen and joint, and the controls, trained on the same labels."""
    translator, note = load_translator(run / "translator")
    if translator.action.spec.discrete != spec.discrete or translator.action.spec.continuous != spec.continuous:
        raise LaminaError(
            f"{run / 'translator'}: was trained for other actions than this dataset has; align again on it"
        )
    items = labelled(model.lam, test)
    if note["observation"]:
        items = dataclasses.replace(items, observation=observe(model.lam, test))
    name = model.provenance.method
    scores = score_translator(translator, model.lam.prefix, items, prefixes, name, "model")
    if (run / "joint" / "translator.json").exists():
        joint = LatentActionModel.from_pretrained(str(run / "joint" / "model"))
        head, _ = load_translator(run / "joint")
        scores += score_translator(
            head, joint.lam.prefix, labelled(joint.lam, test), prefixes, f"{name}, joint", "model"
        )
    tasks = tuple(note.get("tasks", ()))
    labelled_data = dataclasses.replace(probe_data(model, note["data"], note["camera"], note["action"]), tasks=tasks)
    labels = gather(labelled_data, "train", note["labels"], seed=note["seed"], require_action=True)
    scores += controls(model.lam, labels, test, spec, TranslatorConfig(**note["config"]), note["seed"], note["steps"])
    return scores, note


def training_curve(path: Path) -> dict[str, Any]:
    """Steps and losses of RUN/log.jsonl, thinned to at most 400 points; empty if there is no log."""
    if not path.exists():
        return {"steps": [], "loss": [], "validation": {"steps": [], "loss": []}}
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    kept = rows[:: max(1, len(rows) // 400)]
    held = [row for row in rows if "validation/reconstruction" in row]
    validation = {"steps": [r["step"] for r in held], "loss": [r["validation/reconstruction"] for r in held]}
    return {"steps": [r["step"] for r in kept], "loss": [r["loss"] for r in kept], "validation": validation}


def translator_curve(path: Path) -> dict[str, Any]:
    """Steps, training and validation loss of a translator's log; empty if there is none."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    rows = [row for row in rows if "validation/action" in row]
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
