"""`lamina doctor`: what is wrong with a latent action model, in under two minutes; with a number, its control and one thing to try.

It asks what is asked most: are codes dead, is the latent ignored, does the decoder copy the frame, or draw even what never follows; does
the latent say the scene, the goal or the time step in the place of the change. No action labels are needed. `lamina evaluate` measures how
good a latent is; this says whether it is one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lamina.data.dataset import Data, Dataset, name_of
from lamina.data.sampling import DataConfig, open_source
from lamina.data.stream import sample_split
from lamina.device import DeviceName, Precision, autocast, pick_device
from lamina.evaluation.probes.algebra import MIN_DISPERSION, spread
from lamina.evaluation.probes.content import Content, Told, content
from lamina.evaluation.probes.structure import unlabelled
from lamina.evaluation.probes.unrelated import Unrelated, unrelated
from lamina.evaluation.probes.usage import MIN_USAGE_DB, LatentUse, latent_use
from lamina.files import to_json
from lamina.inference.encode import in_batches
from lamina.inference.subject import RANDOM, Subject, subject_of
from lamina.intervals import Estimate, bootstrap_ratio
from lamina.models import code_usage as codes
from lamina.models.hub import LatentActionModel
from lamina.options import check_options
from lamina.training.labelled import probe_data
from lamina.types import Clip
from lamina.version import __version__

Level = Literal["bad", "warn", "good"]
LEVELS: dict[Level, str] = {"bad": "FAILED", "warn": "TAKE CARE", "good": "passed"}

#: Share of the change that predictions from two latents must differ by; below it the decoder does not react to its latent.
REACTS = 0.02
#: Share of a frame that never follows which a decoder may draw: above the first it is a warning, above the second a failure.
UNRELATED = 0.5, 0.8
#: Share of the latent that may be told without any change, likewise.
STILL = 0.25, 0.5
#: How much more of a property the latent must tell than the change of the pixels does.
BEYOND = 0.1
#: Share of dead codes that is a warning.
DEAD = 0.8
#: Distance of a latent from itself, encoded beside other transitions, as a share of that from another transition's; above it, a failure.
OWN = 0.01


@dataclass(frozen=True)
class DoctorConfig:
    """Options of an examination."""

    transitions: int = 512
    """test transitions that are encoded; twice as many training transitions fit the maps"""
    decoded: int = 128
    """test transitions that are decoded, about six times each"""
    camera: str | None = None
    """camera of a LeRobot dataset; default: the first"""
    device: DeviceName = "auto"
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True)
class Finding:
    """The answer to one question. ``value`` in ``unit`` beside ``control``, the same measurement of what ``control_name`` says, or the
    bound that a sound model keeps. ``advice``: the one thing to try; empty where nothing is wrong."""

    name: str
    level: Level
    text: str
    unit: str
    value: Estimate
    control_name: str
    control: Estimate
    advice: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """All findings, failures first; ``notes``: what could not be asked, and why."""

    subject: str
    data: str
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    seconds: float

    @property
    def healthy(self) -> bool:
        """Nothing failed and nothing needs care."""
        return all(finding.level == "good" for finding in self.findings)

    def __getitem__(self, name: str) -> Finding:
        """The finding of that name."""
        return next(finding for finding in self.findings if finding.name == name)

    def to_json(self) -> str:
        """The diagnosis as JSON; null where a value is not a number."""
        return to_json({"format": 1, "lamina": __version__, **asdict(self), "healthy": self.healthy}, indent=1)

    def __str__(self) -> str:
        """In words, as the command prints it."""
        count = {level: sum(f.level == level for f in self.findings) for level in LEVELS}
        told = ", ".join(f"{number} {LEVELS[level].lower()}" for level, number in count.items() if number)
        lines = [f"{self.subject} on {self.data}: {told} ({self.seconds:.0f} s)"]
        for f in self.findings:
            lines += ["", f"{LEVELS[f.level]:>9}  {f.name}: {f.text}"]
            lines.append(f"{'':11}{_figure(f.value, f.unit)}; {f.control_name}: {_figure(f.control, f.unit)}")
            lines += [f"{'':11}Try: {f.advice}"] if f.advice else []
        lines += ["", *(f"Note: {note}" for note in self.notes)] if self.notes else []
        return "\n".join(lines)


def _figure(value: Estimate, unit: str) -> str:
    """ "1.25 dB (1.10 to 1.40)", "12% (8% to 15%)"."""

    def text(number: float) -> str:
        if not math.isfinite(number):
            return "not a number"
        shown = f"{number:.0%}" if unit == "share" else f"{number:.2f}"
        return shown.removeprefix("-") if not any(digit in shown for digit in "123456789") else shown

    ranged = math.isfinite(value.low) and math.isfinite(value.high) and value.low != value.high
    interval = f" ({text(value.low)} to {text(value.high)})" if ranged else ""
    return text(value.mean) + ("" if unit == "share" else f" {unit}") + interval


def exactly(value: float) -> Estimate:
    """A value without an interval: a bound, or a count."""
    return Estimate(value, value, value)


def examine(
    subject: Subject | str | Path, path: Data, config: DoctorConfig | None = None, name: str | None = None
) -> Diagnosis:
    """Examine a model on the test split of ``path``. ``subject``: a run folder, or any Subject. ``name``: what the diagnosis calls it.

    Raises LaminaError for a damaged model, data that cannot be read, and a dataset of which nothing is held out.
    """
    config = config or DoctorConfig()
    began = time.perf_counter()
    device = pick_device(config.device)
    if not isinstance(subject, Subject):
        model = LatentActionModel.from_pretrained(str(subject)).to(device)
        probe_data(model, path)  # raises for a model that cannot read videos
        name = name or str(subject)
        subject = subject_of(model)
    gap = subject.label_gap
    data = DataConfig((path,), subject.image, gap=(gap, gap), camera=config.camera, action=None)
    with autocast(device, config.precision):
        source = open_source(path)
        test = sample_split(data, "test", config.transitions)
        train = sample_split(data, "train", 2 * config.transitions)
        found, notes = _examine(subject, source, data, train, test, config)
    order = list(LEVELS)
    findings = tuple(sorted(found, key=lambda f: order.index(f.level)))
    return Diagnosis(name or subject.name, name_of(path), findings, tuple(notes), time.perf_counter() - began)


def _examine(
    subject: Subject, source: Dataset, data: DataConfig, train: Clip, test: Clip, config: DoctorConfig
) -> tuple[list[Finding], list[str]]:
    notes = []
    if len(test.episode.unique()) < 5:
        notes.append("fewer than 5 test episodes: intervals are over transitions and too narrow.")
    src, dst = test.frames[:, 0], test.frames[:, 1]
    z = subject.quantised.latents(src, dst)
    varied = spread(z)
    found = [judge_spread(varied), judge_own(subject, test, z)]
    if subject.index is not None and subject.codebook_size is not None:
        found.append(judge_codes(subject, test, unlabelled(data)))
    else:
        notes.append("there is no codebook: the use of its codes was not measured.")
    if subject.decode is None:
        notes.append("there is no decoder: ignored latents, copies and unrelated pairs cannot be told.")
    else:
        small = test[torch.linspace(0, len(test) - 1, min(len(test), config.decoded)).long()]
        found += judge_decoder(subject.quantised, small)
    if varied < MIN_DISPERSION:
        notes.append("the latent is constant, so nothing can be read off it: scene, goal and time step were not asked.")
        return found, notes
    read = content(subject, source, data, train, test)
    absent = [name for name in ADVICE if name not in read.told]
    if absent:
        notes.append(f"too few episodes, or none that differ, to ask for: {', '.join(absent)}.")
    return [*found, *judge_content(read)], notes


# ------------------------------------------------------------------------------------------------------------ the questions


def judge_spread(varied: float) -> Finding:
    """Is the latent the same for every transition?"""
    constant = varied < MIN_DISPERSION
    return Finding(
        "constant latent",
        "bad" if constant else "good",
        "the latent is the same for every transition." if constant else "latents of different transitions differ.",
        "share", exactly(varied), "a collapsed latent has less than", exactly(MIN_DISPERSION),
        "train again with a lower --lr, or with --whiten batch, which keeps latents from shrinking." if constant else "",
    )  # fmt: skip


def judge_own(subject: Subject, test: Clip, z: Float[Tensor, "n d"]) -> Finding:
    """Does a latent belong to its transition alone? Encoded once more in the opposite order, it has to be the same."""
    again = subject.quantised.latents(test.frames[:, 0].flip(0), test.frames[:, 1].flip(0)).flip(0)
    apart = (z - again).double().square().sum(1).numpy()
    other = (z - z.roll(len(z) // 2, 0)).double().square().sum(1).numpy()
    share = bootstrap_ratio(apart, other, test.episode.numpy())
    mixed = bool(share.mean > OWN)  # not for a constant latent, whose share is not a number
    return Finding(
        "latents of other transitions",
        "bad" if mixed else "good",
        "the latent of a transition depends on the transitions that are encoded beside it."
        if mixed
        else "a latent depends on its own two frames alone.",
        "share", share, "distance from another transition's latent", exactly(1.0),
        "put the model into evaluation mode (no batch statistics), and check that latents are not permuted." if mixed else "",
    )  # fmt: skip


def judge_codes(subject: Subject, test: Clip, filling: Clip) -> Finding:
    """Are codes dead, or slots constant?"""

    def uses(read: Subject) -> list[codes.SlotUse]:
        assert read.index is not None and read.codebook_size is not None
        index: Int[Tensor, "n k"] = in_batches(read.index, test.frames[:, 0], test.frames[:, 1], size=256)
        return codes.slot_use(index, read.codebook_size)

    def dead(found: list[codes.SlotUse]) -> float:
        return sum(use.dead for use in found) / len(found)

    assert subject.codebook_size is not None
    whole = subject.codebook_size <= len(test)  # else no more codes than transitions can occur, and shares are of these
    own = uses(subject)
    random = uses(subject.control(filling, 1)) if subject.control else None
    constant = sum(use.perplexity < codes.COLLAPSED for use in own)
    unused = dead(own) > DEAD and (random is None or dead(own) > dead(random) + BEYOND)
    level: Level = "bad" if constant == len(own) else "warn" if codes.warnings(own) or unused else "good"
    advice = {
        "bad": "lengthen --gap, so that copying the frame is a bad guess, or train longer with a lower --lr.",
        "warn": "use a smaller codebook, or train longer." if unused else "use fewer --slots.",
        "good": "",
    }
    return Finding(
        "dead codes",
        level,
        f"a slot uses {1 - dead(own):.0%} of {'its codes' if whole else 'the codes that so few transitions can show'}; {constant} of "
        f"{len(own)} slots always say the same code.",
        "share", exactly(dead(own)),
        f"{RANDOM}, dead codes" if random else "much would be above", exactly(dead(random) if random else DEAD),
        advice[level],
    )  # fmt: skip


def judge_decoder(subject: Subject, clip: Clip) -> Iterator[Finding]:
    """Is the latent used, is the frame copied, is drawn what never follows?"""
    src, dst = clip.frames[:, 0], clip.frames[:, 1]
    use = latent_use(subject, src, dst, clip.episode)
    yield judge_use(use, reaction(subject, clip))
    yield judge_copy(use)
    yield judge_unrelated(unrelated(subject, clip))


def reaction(subject: Subject, clip: Clip) -> Estimate:
    """How far predictions from the right and from another transition's latent differ: their mean squared difference over that of the two
    frames, of pictures or of the features that are predicted."""
    src, dst = clip.frames[:, 0], clip.frames[:, 1]
    z = subject.latents(src, dst)
    draw, see = (subject.draw, lambda frames: frames) if subject.pictures else (subject.predicted, subject.target)
    right, other = (draw(src, x).double() for x in (z, z.roll(len(z) // 2, 0)))
    apart = (right - other).square().flatten(1).mean(1)
    change = (see(src).double() - see(dst).double()).square().flatten(1).mean(1).cpu()
    return bootstrap_ratio(apart.numpy(), change.numpy(), clip.episode.numpy())


def judge_use(use: LatentUse, reacts: Estimate) -> Finding:
    """Ignored latent, or one that does not belong to its transition."""
    gain = min(use.another, use.mean, key=lambda estimate: estimate.low)
    rival = "another transition's latent" if gain is use.another else "the mean latent"
    level: Level = "good" if use.used else "bad"
    text, advice = f"the decoder uses the latent: the right one predicts better than {rival}.", ""
    if not use.used and reacts.mean > REACTS:
        text = (
            f"the prediction follows the latent, but the right latent is no better than {rival}: it does not belong to its "
            "transition, or the model overfits."
        )
        advice = "check the order of frames and latents; then evaluate on the training data: if it is good there, use more data."
    elif not use.used:
        text = "the latent is ignored: the prediction is the same whatever the latent says."
        advice = "lengthen --gap, so that the next frame cannot be guessed from the first."
    return Finding(
        "ignored latent", level, text, "dB", gain, "a used latent gains more than", exactly(MIN_USAGE_DB), advice
    )


def judge_copy(use: LatentUse) -> Finding:
    """Decoder that copies."""
    copies = not use.copy.low > 0
    return Finding(
        "copied frame",
        "bad" if copies else "good",
        "predictions are no better than a copy of the first frame."
        if copies
        else "predictions are better than a copy of the first frame.",
        "dB", use.copy, "a copy of the frame", exactly(0.0),
        "train longer; if it stays, lengthen --gap until something visible happens in it." if copies else "",
    )  # fmt: skip


def judge_unrelated(found: Unrelated) -> Finding:
    """Decoder that reconstructs even cuts and unrelated pairs."""
    warned, failed = (found.unrelated.low > bound for bound in UNRELATED)
    text = "most of a frame that never follows cannot be drawn from its latent."
    if warned:
        text = (
            f"the decoder draws {found.unrelated.mean:.0%} of a frame of another episode from its latent: the code has room for the whole "
            "next frame, so it need not hold the change."
        )
    return Finding(
        "unrelated pairs",
        "bad" if failed else "warn" if warned else "good",
        text,
        "share", found.unrelated, "frames that do follow", found.following,
        "shorten the code: fewer --slots or a smaller --codebook-size." if warned else "",
    )  # fmt: skip


#: What to try where the latent says a property of the episode in the place of the change.
ADVICE = {
    "scene": "train with --robust-target 0.01 --target flow, or with --cross-exogenous 1 where there are paired views.",
    "goal": "hide what marks the goal, or use clips that end before it; then train with --robust-target 0.01 --target flow.",
    "time step": "hide counters and clocks in the picture, or crop them away (--augment 0.3).",
}
SAYS = {
    "scene": "where it was taken (what stays in the pictures of its episode)",
    "goal": "where its episode ends (what the last picture shows beside the scene)",
    "time step": "when in its episode it was taken",
}


def judge_content(read: Content) -> Iterator[Finding]:
    """Latent that says the scene, the goal or the time step rather than the change."""
    warned, failed = (read.still.low > bound for bound in STILL)
    told = {name: told for name, told in read.told.items() if _beyond(told)}
    which = f" Of that it tells {', '.join(told)}." if told and warned else ""
    yield Finding(
        "state in the latent",
        "bad" if failed else "warn" if warned else "good",
        f"what the latent says is to {max(0.0, read.still.mean):.0%} there without any change, in the latent of a frame and itself.{which}"
        if warned
        else "little of the latent is there without a change.",
        "share", read.still, "a latent of the change alone", exactly(0.0),
        "use a shorter code (fewer --slots), or train with --robust-target 0.01 --target flow." if warned else "",
    )  # fmt: skip
    for name, property_ in read.told.items():
        beyond = warned and _beyond(property_)
        yield Finding(
            name,
            "bad" if beyond and failed else "warn" if beyond else "good",
            f"the latent says {SAYS[name]}, which the change does not tell."
            if beyond
            else f"the latent does not stand for {SAYS[name].partition(' (')[0]}.",
            "share", property_.latent, "told by the change of the pixels", property_.change,
            ADVICE[name] if beyond else "",
        )  # fmt: skip


def _beyond(told: Told) -> bool:
    """The latent tells more of a property than the change of the pixels, beyond doubt."""
    return told.latent.low > max(told.change.high, 0.0) + BEYOND
