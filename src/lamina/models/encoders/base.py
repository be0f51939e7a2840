"""The interface of an encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class Encoder(Protocol):
    """Inverse dynamics as a torch module: two frames -> K slots of d channels. Each frame is embedded once, whatever its pairs.

    ``Config`` is a frozen dataclass of the encoder's options, each with a default. Features may have any shape behind the batch axis:
    tokens [n p f], feature maps [n f y x].
    """

    @property
    def Config(self) -> Any:
        """A nested class, which a Protocol can only declare as a property."""

    def __init__(self, config: Any, observation: tuple[int, int, int], slots: int, dim: int) -> None:
        """``observation``: channels, height and width of the frames; ``slots`` and ``dim``: K and d."""

    def embed(self, frames: Float[Tensor, "n c h w"]) -> Float[Tensor, "n ..."]:
        """Features of single frames."""
        ...

    def compare(self, first: Float[Tensor, "n ..."], second: Float[Tensor, "n ..."]) -> Float[Tensor, "n k d"]:
        """Slots of pairs, from the features of their frames."""
        ...

    def state_dict(self) -> Mapping[str, Any]:
        """As every torch module has it."""
        ...
