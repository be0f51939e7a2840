"""The record of an evaluation, evaluation.json: one definition for the writer and for the report.

Records of format 1 differ in what they hold: every part is optional, and a part that is absent or null was not measured. Unknown fields
and values of another type are refused.
"""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator

from lamina.files import to_json
from lamina.records import validated

Role = Literal["model", "reference", "control"]
Steps = tuple[int, ...] | None
Numbers = tuple[float | None, ...] | None  # null: not a number


class Part(BaseModel):
    """A part of the record; unset fields are not written."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Value(Part):
    """A mean with its 95% interval; null where it is not a number."""

    mean: float | None
    low: float | None
    high: float | None


class Row(Part):
    """A row of a table: one method at one budget ``k``; null: at any."""

    name: str
    role: Role
    k: int | None = None


class ReconstructionRow(Row):
    psnr: Value | None = None
    ssim: Value | None = None
    lpips: Value | None = None
    perceptual: Value | None = None  # distance in the features of Evaluation.pretrained


class TranslationRow(Row):
    loss: Value | None = None
    accuracy: Value | None = None
    nmse: Value | None = None


class LinearRow(Row):
    nmse: Value | None = None
    accuracy: Value | None = None


class ExogenousRow(Row):
    psnr: Value | None = None
    # of the latent, over that between unrelated transitions; records before 2026-12 call it a share
    change: Value | None = Field(None, validation_alias=AliasChoices("change", "share"))


class LeakageRow(Row):
    leak: Value | None = None
    leak_unseen: Value | None = None


class StructureRow(Row):
    displacement: Value | None = None
    composition: Value | None = None
    identity: Value | None = None
    inverse: Value | None = None
    composition_raw: Value | None = None
    identity_raw: Value | None = None
    inverse_raw: Value | None = None
    offset: Value | None = None
    composition_centred: Value | None = None
    identity_centred: Value | None = None
    inverse_centred: Value | None = None
    composition_read: Value | None = None
    identity_read: Value | None = None
    inverse_read: Value | None = None
    gain_another: Value | None = None
    gain_mean: Value | None = None
    margin: Value | None = None


class HorizonRow(Row):
    """``k``: the horizon in strides."""

    addition: Value | None = None
    reversal: Value | None = None
    addition_read: Value | None = None
    reversal_read: Value | None = None
    addition_raw: Value | None = None
    reversal_raw: Value | None = None
    direct: Value | None = None
    cumulative: Value | None = None


class Data(Part):
    path: str | None = None
    split: str | None = None
    episodes: int | None = None
    transitions: int | None = None
    fps: float | None = None
    trained_on: tuple[str, ...] | None = None


class CodeUse(Part):
    slot: int | None = None
    usage: float | None = None
    perplexity: float | None = None
    dead: float | None = None


class Codes(Part):
    codebook: int | None = None
    slots: tuple[CodeUse, ...] | None = None
    warnings: tuple[str, ...] | None = None


class Error(Part):
    """A mean error, and the same over the mean norm of the latent."""

    raw: Value | None = None
    relative: Value | None = None


Scores = dict[Literal["psnr", "ssim", "lpips"], Value | None]


class Horizon(Part):
    t: int
    seen: bool | None = None
    addition: Error | None = None
    reversal: Error | None = None
    addition_read: Error | None = None
    reversal_read: Error | None = None
    length: Value | None = None
    direct: Scores | None = None
    cumulative: Scores | None = None
    copy_frame: Scores | None = Field(None, alias="copy")


class Errors(Part):
    composition: Error | None = None
    identity: Error | None = None
    inverse: Error | None = None


class StructureRecord(Part):
    """The structural probes of one subject; ``void``: why its scores are invalid."""

    place: Literal["pre", "post"] | None = None
    role: Role
    name: str
    void: str | None = None
    use: dict[Literal["another", "mean", "copy"], Value] | None = None
    spread: float | None = None
    composition: Error | None = None
    identity: Error | None = None
    inverse: Error | None = None
    displacement: Value | None = None
    offset: Value | None = None
    centred: Errors | None = None
    read: Errors | None = None
    horizons: tuple[Horizon, ...] | None = None
    transfer: dict[Literal["agreement", "by_chance", "margin", "moved"], Value] | None = None


class Lines(Part):
    """Lines over one axis, the first field: each has a value for every point of the axis, or none at all."""

    @model_validator(mode="after")
    def _check_lengths(self) -> Lines:
        (_, axis), *lines = self
        for name, values in lines:
            if isinstance(values, tuple) and values and len(values) != len(axis or ()):
                raise ValueError(f"{name} has {len(values)} values for {len(axis or ())} steps")
        return self


class Trajectory(Lines):
    seconds: Numbers = None
    length: Numbers = None
    displacement: Numbers = None
    r: float | None = None


class Structure(Part):
    stride_seconds: float | None = None
    seen: int | None = None
    rows: tuple[StructureRow, ...] | None = None
    over_horizons: tuple[HorizonRow, ...] | None = None
    records: tuple[StructureRecord, ...] | None = None
    trajectories: tuple[Trajectory, ...] | None = None


class Curve(Lines):
    steps: Steps = None
    loss: Numbers = None


class TrainingCurve(Curve):
    validation: Curve | None = None


class TranslatorCurve(Lines):
    steps: Steps = None
    train: Numbers = None
    validation: Numbers = None


class Budget(Part):
    """How the translator, and every control, was trained."""

    steps: int
    scratch_steps: int
    condition: str = ""
    batch: int
    lr: float
    validate_every: int


class Picture(Part):
    file: str
    title: str = ""
    caption: str = ""
    sha256: str | None = None


class Finding(Part):
    level: Literal["bad", "warn", "good", "note"]
    text: str


class Evaluation(Part):
    """What `lamina evaluate` measured."""

    format: Literal[1]
    lamina: str | None = None
    method: str | None = None
    run: str | None = None
    checkpoint: str | None = None
    created: str | None = None
    data: Data | None = None
    gap_seconds: tuple[float, ...] | None = None
    slots: int | None = None
    prefixes: tuple[int, ...] | None = None
    codes: Codes | None = None
    pretrained: str | None = None  # encoder of the plain features and of the perceptual distance
    reconstruction: tuple[ReconstructionRow, ...] | None = None
    structure: Structure | None = None
    leakage: tuple[LeakageRow, ...] | None = None
    training: TrainingCurve | None = None
    labels: int | None = None
    label_episodes: int | None = None
    budget: Budget | None = None
    translator_curve: TranslatorCurve | None = None
    translator: tuple[TranslationRow, ...] | None = None
    linear: tuple[LinearRow, ...] | None = None
    structure_pictures: tuple[Picture, ...] | None = None
    pictures: tuple[Picture, ...] | None = None
    notes: tuple[str, ...] | None = None
    exogenous: tuple[ExogenousRow, ...] | None = None
    verdict: tuple[Finding, ...] | None = None
    summary: str | None = None

    @classmethod
    def from_dict(cls, values: Any) -> Evaluation:
        """A record as JSON has it. Raises LaminaError, which names the first field that is wrong."""
        return validated(cls, values)

    def to_json(self) -> str:
        """The record as JSON, its fields in the order of their definition; what is not a finite number is null."""
        return to_json(self.model_dump(exclude_unset=True, by_alias=True), indent=1)


def evaluation_of(values: dict[str, Any]) -> Evaluation:
    """The record of what was measured, from numbers of any kind."""
    return Evaluation.from_dict(json.loads(to_json(values)))
