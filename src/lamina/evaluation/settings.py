"""Options of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass

from lamina.data.sampling import ActionsOf
from lamina.device import DeviceName, Precision
from lamina.options import check_options


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
    """camera of a LeRobot dataset; default: that of the alignment, else the first"""
    paired: str | None = None
    """camera with the paired view (same states, other exogenous state); default: a camera named "paired", if any"""
    action: str | None = None
    """feature that holds the actions; default: that of the alignment, else action"""
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
