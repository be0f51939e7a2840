"""Published weights of other libraries: their config and tensors, by the path of a folder or by the id of a repository on the hub.

Only JSON and safetensors are read, so loading runs no code. Nothing is fetched unless a hub id is given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lamina.errors import LaminaError
from lamina.files import json_of, reason
from lamina.weights import first_non_finite

#: Names of weight files: those of transformers and of diffusers.
WEIGHTS = ("model.safetensors", "diffusion_pytorch_model.safetensors")


@contextmanager
def library(option: str, name: str) -> Iterator[None]:
    """Within, a library of the extra "real" is imported. Raises LaminaError where it is not installed."""
    try:
        yield
    except ImportError as error:
        raise LaminaError(f"{option} needs the {name} library: pip install 'lamina[real]'") from error


@dataclass(frozen=True)
class Pretrained:
    """Published weights. ``option``: the option that named them, for messages; ``part``: their folder in a repository of several models
    ("vae"), which a local folder may lack."""

    option: str
    name: str
    part: str = ""

    def config(self) -> dict[str, Any]:
        """The content of config.json. Raises LaminaError if there is none."""
        path = self._file("config.json")
        if path is None:
            raise LaminaError(
                f"{self}: no such folder with a config.json, and not to be had from the hub; download the repository with its "
                "safetensors files and give the folder's path"
            )
        try:
            return json_of(path)
        except (OSError, ValueError) as error:
            raise LaminaError(f"{self}: config.json cannot be read ({reason(error)})") from error

    def tensors(self) -> dict[str, Tensor]:
        """All tensors, in float32. Raises LaminaError if they are missing, damaged or not finite."""
        try:
            tensors: dict[str, Tensor] = {}
            for path in self._weight_files():
                tensors |= load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise LaminaError(f"{self}: its weights are damaged ({reason(error)}); download them again") from error
        tensors = {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}
        if bad := first_non_finite(tensors):
            raise LaminaError(f"{self}: '{bad}' is not finite; download the weights again")
        return tensors

    def wrong(self, what: str) -> LaminaError:
        """The error for weights of another kind."""
        return LaminaError(f"{self}: {what}")

    def __str__(self) -> str:
        return f"{self.option} {self.name}"

    def _weight_files(self) -> list[Path]:
        for name in WEIGHTS:
            if (path := self._file(name)) is not None:
                return [path]
            if (index := self._file(f"{name}.index.json")) is not None:
                found = [self._file(str(shard)) for shard in sorted(set(json_of(index)["weight_map"].values()))]
                if None not in found:
                    return [path for path in found if path is not None]
        raise LaminaError(
            f"{self}: no weights there in safetensors files ({', '.join(WEIGHTS)}); convert or download them"
        )

    def _file(self, name: str) -> Path | None:
        """A file of the folder or of the hub's repository; None if there is none."""
        folder = Path(self.name).expanduser()
        if folder.is_dir() or folder.is_absolute():
            places = (folder / self.part / name, folder / name)
            return next((path for path in places if path.is_file()), None)
        for place in dict.fromkeys((f"{self.part}/{name}" if self.part else name, name)):
            try:
                return Path(hf_hub_download(self.name, place))
            except Exception:  # the hub raises many types; each means that the file is not to be had
                continue
        return None


def fill(module: nn.Module, tensors: Mapping[str, Tensor], source: Pretrained, optional: tuple[str, ...] = ()) -> None:
    """Load ``tensors`` into ``module``. Names that begin with one of ``optional`` may be missing and then keep their value.

    Raises LaminaError, and has loaded nothing, for a tensor that is missing, is not one of the module's, or has another shape.
    """
    own = module.state_dict()
    lost = sorted(name for name in own if name not in tensors and not name.startswith(optional))
    if lost:
        raise source.wrong(f"weights of another architecture: '{lost[0]}' is missing ({len(lost)} of {len(own)} are)")
    if foreign := sorted(tensors.keys() - own.keys()):
        raise source.wrong(f"weights of another architecture: '{foreign[0]}' has no place here")
    for name, value in tensors.items():
        if own[name].shape != value.shape:
            raise source.wrong(
                f"weights of another architecture: '{name}' is {list(value.shape)}, not {list(own[name].shape)}"
            )
    module.load_state_dict(dict(tensors), strict=False)
