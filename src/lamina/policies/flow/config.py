"""Options of the flow policy, and the shapes of what it reads and generates."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from lamina.errors import LaminaError
from lamina.models.config import NETWORK_SIZES, SizeName
from lamina.options import check_options
from lamina.records import Count, CountOrZero, Image, Seconds
from lamina.types import ActionSpec

Form = Literal["alam", "villa_x"]
Generation = Literal["joint", "two_stage"]
Framework = Literal["flow", "diffusion"]
Tune = Literal["frozen", "lora", "whole"]
Intervention = Literal["none", "freeze", "block", "shuffle"]


@dataclass(frozen=True)
class FlowConfig:
    """What the policy generates, what it reads, and how large it is."""

    size: Literal[SizeName, "paper"] = "tiny"
    """width, depth and channels of all networks; paper: 300 million parameters beside the encoder, as in pi0 and ALAM"""
    form: Form = "alam"
    """alam: a latent of every view beside every action, in one network; villa_x: two experts, a plan of latents that lie end to end, and
    attention from the actions to it that is dropped at random in training"""
    latents: Literal["lam", "none"] = "lam"
    """lam: generate the LAM's continuous latents with the actions; none: the actions alone"""
    generation: Generation = "joint"
    """joint: latents and actions at once; two_stage: first the latents, then actions that see the finished latents"""
    framework: Framework = "flow"
    """flow: flow matching, Euler steps; diffusion: noise prediction, DDIM steps (needs the diffusers library)"""
    chunk: int | None = None
    """H, actions that a decision generates; default: 8, villa_x 4"""
    replan: int | None = None
    """r, actions that are carried out before the next decision; default: half of the chunk"""
    latent_steps: int | None = None
    """N, latents that a decision generates; default: one beside every action, villa_x 6"""
    latent_gap: float | None = None
    """seconds between the two frames of a latent; default: the LAM's label gap. At a high control rate that is longer than one step"""
    latent_numbers: int | None = None
    """numbers of a latent that are generated: along the directions that the decoder's pictures depend on most. Default: the whole latent"""
    flow_steps: int = 8
    """Euler or DDIM steps of a decision"""
    latent_weight: float = 1.0
    """weight of the loss of each view's latents"""
    action_weight: float = 1.0
    """weight of the loss of the actions"""
    labels: int | None = None
    """episodes with actions, for each task; the other episodes train the latents alone. Default: all"""
    share: float = 0.5
    """share of labelled rows in a batch, where there are unlabelled episodes and latents"""
    hide: float | None = None
    """share of the training rows whose actions see no latent, so that they do not lean on them alone; default: 0, villa_x 0.5"""
    context: int = 1
    """frames of history of each camera, one a decision"""
    proprio: str = "auto"
    """feature with the proprioception; auto: observation.state where the data has it; none"""
    task: bool = True
    """read what is to be done, in words"""
    action: str = "auto"
    """feature with the actions; auto: expert_action where the data has it (the expert's choice where noise was added), else action"""
    shift: float = 0.0625
    """augmentation: largest random shift of the pictures, as a share of their side; 0: none"""
    backbone: str = "conv"
    """what reads the pictures: conv, a small network for each camera; or a vision-language model, the folder or hub id of a transformers
    model that reads pictures and words (PaliGemma, SmolVLM)"""
    tune: Tune = "frozen"
    """what of the vision-language model is trained. frozen: nothing; lora: low-rank adapters of its linear layers; whole: all of it"""
    lora_rank: int = 16
    """rank of the adapters of --tune lora"""

    def __post_init__(self) -> None:
        check_options(self)

    def check(self) -> None:
        """Raises LaminaError for options that do not go together."""
        if self.steps_of_latents != self.actions and self.form == "alam":
            raise LaminaError(
                f"the alam form has a latent beside every action: --latent-steps {self.latent_steps} is not the chunk's {self.actions}"
            )
        if self.executed > self.actions:
            raise LaminaError(f"--replan {self.executed} is more than the {self.actions} actions of a chunk")
        if self.backbone == "conv" and self.tune != "frozen":
            raise LaminaError(f"--tune {self.tune} is for a vision-language model: choose a --backbone")
        if self.backbone != "conv" and Path(self.backbone).is_dir():  # a policy is loaded in any working folder
            object.__setattr__(self, "backbone", str(Path(self.backbone).resolve()))

    @property
    def actions(self) -> int:
        """H."""
        return self.chunk or (4 if self.form == "villa_x" else 8)

    @property
    def executed(self) -> int:
        """r."""
        return self.replan or max(1, self.actions // 2)

    @property
    def steps_of_latents(self) -> int:
        """N."""
        return self.latent_steps or (6 if self.form == "villa_x" else self.actions)

    @property
    def hidden(self) -> float:
        """Share of the training rows whose actions see no latent. villa-X §3.2: one half."""
        return self.hide if self.hide is not None else (0.5 if self.form == "villa_x" else 0.0)

    @property
    def dimensions(self) -> Dimensions:
        """Those of the size: twice the layers of a LAM's networks, and half as many channels again, in multiples of 8."""
        if self.size == "paper":
            # pi0's width and MLPs. Its 18 layers would be 420 million here, where every layer is modulated by the time and has its own keys
            # and values of the context; 13 layers are the 300 million of the papers.
            return Dimensions(1024, 8, 13, 128, expansion=4)
        size = NETWORK_SIZES[self.size]
        return Dimensions(size.width, size.heads, 2 * size.layers, 8 * math.ceil(1.5 * size.channels / 8))


@dataclass(frozen=True)
class Dimensions:
    """Of the networks."""

    width: int
    heads: int
    layers: int
    channels: int
    expansion: int = 2  # of the experts' MLPs: twice that costs a third more time in small networks


Names = Annotated[tuple[str, ...], Field(max_length=10_000)]


@dataclass(frozen=True)
class FlowShapes:
    """What a policy was made for. Frames are those of its data, ``fps`` of them a second."""

    image: Image
    cameras: Names
    discrete: Annotated[tuple[Count, ...], Field(max_length=1024)]
    continuous: CountOrZero
    names: Names  # of the action's dimensions
    proprio: CountOrZero  # numbers; 0: none
    latent: CountOrZero  # numbers of one latent; 0: none
    gap: Count  # frames between the two of a latent
    stride: Count  # frames from one latent to the next
    fps: Seconds
    tasks: Names  # of the training data, in words
    columns: tuple[str, str]  # features with the actions and the proprioception ("" = none)
    fingerprint: str  # of the LAM (lamina.policies.encoded.fingerprint)

    @property
    def spec(self) -> ActionSpec:
        return ActionSpec(self.discrete, self.continuous, self.names)
