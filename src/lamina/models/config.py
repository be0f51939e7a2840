"""The config of a LAM, the names of its parts, and the sizes of networks."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from lamina.errors import LaminaError
from lamina.models.bottlenecks import BOTTLENECKS
from lamina.models.bottlenecks.prefix import PrefixDistribution
from lamina.models.bottlenecks.whitening import Whitening
from lamina.models.decoders import DECODERS
from lamina.models.encoders import ENCODERS
from lamina.models.features import SpaceName
from lamina.models.registry import Registry
from lamina.records import Count, CountOrZero, Extent, Image, validated
from lamina.version import __version__

Side = Literal["quantised", "continuous"]
Pairing = Literal["free", "antisymmetric", "difference"]


@dataclass(frozen=True)
class LAMConfig:
    """Everything that decides the shape of a LAM. The type of a part's config says which part it is."""

    image: Image  # channels, height, width
    slots: Extent
    encoder: Any
    bottleneck: Any
    decoder: Any
    prefix: PrefixDistribution = "full"
    whiten: Whitening = "none"
    #: How a latent follows from its two frames (:meth:`lamina.models.lam.LAM.pair`).
    pairing: Pairing = "free"
    space: Annotated[SpaceName, Field(min_length=1, max_length=1024)] = "pixels"
    #: Size of the proprioception that follows from the latent; 0: there is no proprioceptive forward model.
    state: CountOrZero = 0
    #: Numbers that a linear head reads off the latent in training; 0: no head.
    target: CountOrZero = 0
    #: Slots that an instruction vector replaces; 0: none.
    task: CountOrZero = 0
    #: First slot of the latent action, and the one after its last; None: all.
    action_slots: tuple[CountOrZero, Count] | None = None
    #: The latent action is what comes out of the quantiser, or what goes into it.
    action_side: Side = "quantised"

    @property
    def latent_action(self) -> slice:
        """The slots that are the latent action. Other slots (UniVLA's second half) are read by the decoder alone."""
        return slice(*(self.action_slots or (0, self.slots)))

    @property
    def action_length(self) -> int:
        """Slots of the latent action."""
        return len(range(self.slots)[self.latent_action])

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values; parts carry their name under "kind"."""
        values: dict[str, Any] = {"image": list(self.image), "slots": self.slots, "prefix": self.prefix}
        values |= {
            name: v
            for name in ("whiten", "pairing", "space", "state", "target", "task", "action_slots", "action_side")
            if (v := getattr(self, name)) != getattr(LAMConfig, name)
        }
        for part, kinds in _PARTS.items():
            config = getattr(self, part)
            values[part] = {"kind": kinds.name_of(config), **dataclasses.asdict(config)}
        return json.loads(json.dumps(values))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LAMConfig:
        """The inverse of :meth:`to_dict`.

        Raises LaminaError for a field or a part that this version does not know, and for a value of another type or out of all bounds.
        """
        parts: dict[str, Any] = {}
        for part, kinds in _PARTS.items():
            settings = dict(values[part]) if isinstance(values.get(part), Mapping) else {}
            kind = settings.pop("kind", None)
            if not isinstance(kind, str) or kind not in kinds:
                if part == "encoder" and isinstance(kind, str) and kind.isidentifier():
                    raise LaminaError(
                        f"this model's encoder '{kind:.60}' is not installed: import the file that registers it, or install the package "
                        "that does"
                    )
                raise LaminaError(f"model.{part}: no kind that lamina {__version__} knows, got {kind!r:.60}")
            parts[part] = validated(kinds[kind].Config, settings, f"model.{part}")
        return dataclasses.replace(validated(cls, {**values, **dict.fromkeys(parts)}, "model"), **parts)


_PARTS: dict[str, Registry[Any]] = {"encoder": ENCODERS, "bottleneck": BOTTLENECKS, "decoder": DECODERS}


SizeName = Literal["debug", "tiny", "small", "base"]


@dataclass(frozen=True)
class NetworkSize:
    width: int  # of every transformer
    heads: int
    layers: int  # a frame, a pair, and in the decoder: the three stacks have the same depth
    channels: int  # of convolutional encoder and U-Net


NETWORK_SIZES: dict[str, NetworkSize] = {
    "debug": NetworkSize(width=32, heads=2, layers=1, channels=8),
    "tiny": NetworkSize(width=128, heads=4, layers=2, channels=16),
    "small": NetworkSize(width=384, heads=6, layers=3, channels=32),
    "base": NetworkSize(width=768, heads=12, layers=6, channels=64),
}
