"""The Health tab: what is known about a run, measured on the page's own transitions and read from the run's records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from lamina.errors import LaminaError
from lamina.evaluation.doctor import DoctorConfig, examine
from lamina.evaluation.record import Evaluation, Finding
from lamina.files import read_json
from lamina.inference.subject import subject_of
from lamina.models.code_usage import slot_use
from lamina.play.stage import Stage
from lamina.training.diagnostics import MIN_GAIN_DB, DegenerateLatents, latent_diagnostics

DECODED = 128  # transitions that are decoded for it


def examined(stage: Stage) -> dict[str, Any]:
    """The findings of ``lamina doctor``, each with the thing to try. Takes about a minute."""
    every = stage.camera == "all"  # the doctor looks through one camera
    config = DoctorConfig(camera=None if every else stage.camera, device=stage.model.device.type)  # type: ignore[arg-type]
    diagnosis = examine(stage.run, stage.source, config)
    found = [Finding(level=f.level, text=" ".join(filter(None, [f.text, f.advice]))) for f in diagnosis.findings]
    title = f"What lamina doctor found on camera {stage.source.cameras[0]}" if every else "What lamina doctor found"
    return _part(title, [*found, *(Finding(level="note", text=text) for text in diagnosis.notes)])


def health(stage: Stage) -> dict[str, Any]:
    """For the page: findings by their source, the use of the codebook, facts of the run, and what has not been measured."""
    parts: list[dict[str, Any]] = []
    missing: list[str] = []
    parts.append(
        _part(
            f"Measured now, on {min(DECODED, len(stage.clip))} transitions of the {stage.split} split", measured(stage)
        )
    )
    try:
        record = evaluation(stage)
    except LaminaError as error:
        missing.append(str(error))
        record = None
    if record is not None:
        verdict = list(record.verdict or ())
        parts.append(
            _part(f"What lamina evaluate found ({record.data.path if record.data else 'data unknown'})", verdict)
        )
    if stage.translator is None:
        missing.append(stage.unread)
    if stage.spec is None:
        missing.append("This data has no actions, so keys and map are not labelled with any.")
    return {"parts": parts, "missing": missing, "codes": codes(stage), "facts": facts(stage)}


def _part(title: str, findings: Sequence[Finding]) -> dict[str, Any]:
    return {"title": title, "findings": [{"level": finding.level, "text": finding.text} for finding in findings]}


def evaluation(stage: Stage) -> Evaluation:
    """The run's evaluation. Raises LaminaError where there is none, or it is damaged."""
    path = stage.run / "evaluation.json"
    again = f"lamina evaluate {stage.run} --data {stage.data}"
    if not path.exists():
        raise LaminaError(f"Not evaluated, so nothing is compared with the controls: {again}")
    try:
        return Evaluation.from_dict(read_json(path, again))
    except LaminaError as error:
        raise LaminaError(f"{path}: damaged record ({error}); {again}") from error


def measured(stage: Stage) -> list[Finding]:
    """Whether the decoder uses the latent, whether it does more than copy, and whether codes are in use."""
    clip = stage.clip[torch.linspace(0, len(stage.clip) - 1, min(DECODED, len(stage.clip))).long()]
    try:
        figures, warnings = latent_diagnostics(stage.model.lam, clip, stage.seed)(stage.model.lam)
    except DegenerateLatents as error:
        return [Finding(level="bad", text=f"{error}.")]
    found = []
    gains = figures["gain_over_another_latent_db"], figures["gain_over_the_mean_latent_db"]
    if min(gains) >= MIN_GAIN_DB:
        text = (
            f"The decoder uses the latent: the right one reconstructs {gains[0]:+.1f} dB better than another transition's, "
            f"{gains[1]:+.1f} dB better than the mean latent."
        )
        found.append(Finding(level="good", text=text))
    found += [Finding(level="warn", text=f"{text[:1].upper()}{text[1:].rstrip('.')}.") for text in warnings]
    return [*found, copying(stage)]


def copying(stage: Stage) -> Finding:
    """The prediction against the first frame again."""
    rows = torch.linspace(0, len(stage.clip) - 1, min(DECODED, len(stage.clip))).long()
    src, dst = stage.clip.frames[rows, 0], stage.clip.frames[rows, 1]
    subject = subject_of(stage.model).quantised
    model = float(subject.error(src, subject.latents(src, dst), dst).mean())
    copied = float((subject.target(src) - subject.target(dst)).square().mean())
    gain = 10 * torch.log10(torch.tensor(max(copied, 1e-12) / max(model, 1e-12))).item()
    text = f"Predictions are {abs(gain):.1f} dB {'closer to' if gain > 0 else 'further from'} the next frame than the first frame again is"
    if gain > MIN_GAIN_DB:
        return Finding(level="good", text=f"{text}.")
    return Finding(level="bad", text=f"{text}: the decoder copies, or worse. Lengthen --gap, or train longer.")


def codes(stage: Stage) -> list[dict[str, Any]]:
    """Use of the codebook in each slot; empty for a model without one."""
    size = stage.model.lam.bottleneck.slot_codes
    if stage.latents.index is None or size is None:
        return []
    return [asdict(use) for use in slot_use(stage.latents.index[: len(stage.clip)], size)]


def facts(stage: Stage) -> list[tuple[str, str]]:
    """The run in figures."""
    model = stage.model
    config, provenance = model.config, model.provenance
    size = model.lam.bottleneck.slot_codes
    parameters = sum(p.numel() for p in model.parameters())
    return [
        ("Method", provenance.method),
        ("Trained on", ", ".join(provenance.data) or "unknown"),
        ("Training steps", f"{provenance.steps:,}"),
        ("Time between frames", f"{provenance.gap_seconds[0]:g} to {provenance.gap_seconds[1]:g} s"),
        (
            "Latent",
            f"{config.slots} slots of {model.lam.dim} numbers" + (f", {size} codes each" if size else ", continuous"),
        ),
        ("Frames", f"{config.image[1]} x {config.image[2]} pixels"),
        ("Parameters", f"{parameters / 1e6:.1f} million"),
        ("Shown here", f"{len(stage.clip)} transitions of the {stage.split} split of {stage.data}"),
    ]
