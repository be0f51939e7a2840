"""Frozen pretrained encoders of pictures: the networks behind a pretrained ``--space``.

    efficientnet-lite0    ImageNet weights from a package (lamina.models.efficientnet)
    a folder, or the id of a repository that is in the local cache of the Hugging Face hub
                          a model of the transformers library (DINOv2, DINOv3, SigLIP, VideoMAE, V-JEPA 2, ViT, ...): config.json with
                          "model_type", preprocessor_config.json, weights in safetensors
                          a model of timm: config.json with "architecture" and "pretrained_cfg", weights in safetensors

Nothing is downloaded, no code of a repository runs, and weights are read from safetensors only. A picture is resized to the size that the
model was trained at and normalised by the model's own mean and deviation; what it gives is the last layer's tokens on their own grid. A
video encoder sees a frame as a clip that stands still, and its tokens are averaged over time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lamina.device import full_precision
from lamina.errors import LaminaError
from lamina.files import json_of, reason
from lamina.images import resize
from lamina.models import efficientnet
from lamina.types import ImageSize
from lamina.weights import digest, first_non_finite

EFFICIENTNET = "efficientnet-lite0"
CHUNK = 8  # pictures at once on a CPU: more is slower, since they no longer fit its caches
#: Parts of published models whose weights may be missing, because no token depends on them.
UNUSED = ("pooler", "head", "classifier", "predictor", "mask_token", "decoder")


class PretrainedEncoder(nn.Module):
    """A frozen network of pictures with its preprocessing.

    ``channels`` and ``grid``: of its features; ``fingerprint``: sha256 of weights, preprocessing and what is read off the network.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        read: Callable[[nn.Module, Tensor], Tensor],
        size: ImageSize,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        settings: Any,
    ):
        super().__init__()
        self.name, self.size, self.read = name, size, read
        self.network = network.float().eval().requires_grad_(False)
        state = network.state_dict()
        if bad := first_non_finite(state):
            raise LaminaError(f"--space {name}: its weight '{bad}' is not finite; get the model again")
        self.mean, self.std = torch.tensor(mean).view(-1, 1, 1), torch.tensor(std).view(-1, 1, 1)
        record = {"size": list(size), "mean": list(mean), "std": list(std), "settings": settings}
        self.fingerprint = digest({key: value.cpu() for key, value in state.items()}, record)
        shape = self(torch.zeros(1, 3, *size, dtype=torch.uint8)).shape
        self.channels, self.grid = int(shape[1]), (int(shape[2]), int(shape[3]))

    @torch.no_grad()
    def forward(self, pictures: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n d y x"]:
        """Features of pictures of any size, float32, on their device."""
        self.network.to(pictures.device)
        mean, std = self.mean.to(pictures.device), self.std.to(pictures.device)
        found = []
        # float32 whatever the caller computes in: features must not depend on who asks for them.
        with full_precision(pictures.device):
            for part in pictures.split(CHUNK if pictures.device.type == "cpu" else 64):
                pixels = (resize(part, self.size).float() / 255 - mean) / std
                found.append(self.read(self.network, pixels).float())
        return torch.cat(found)


def open_encoder(name: str) -> PretrainedEncoder:
    """The encoder of that name, opened once in a process.

    Raises LaminaError for a name that is no encoder, weights that are not on this machine (with the command that gets them), a library
    that is missing, and weights that do not fit their config.
    """
    # A build on the meta device (a plan, a check of memory) needs the real shapes of the features.
    with torch.device("cpu"):
        if name == EFFICIENTNET:
            return _efficientnet()
        folder = _folder(name)
        files = (folder / "config.json", *sorted(folder.glob("*.safetensors")))
        return _from_folder(name, folder, tuple((f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files))


@lru_cache(maxsize=1)
def _efficientnet() -> PretrainedEncoder:
    size, mean, std = efficientnet.SIZE, efficientnet.MEAN, efficientnet.STD

    def read(network: Any, pixels: Tensor) -> Tensor:
        return network.features(pixels.contiguous(memory_format=torch.channels_last))

    network: Any = efficientnet.load()
    network = network.to(memory_format=torch.channels_last)  # twice as fast for its depthwise convolutions
    return PretrainedEncoder(EFFICIENTNET, network, read, size, mean, std, {"blocks": efficientnet.FEATURE_BLOCKS})


def _folder(name: str) -> Path:
    """The folder with a model's files: at a path, or in the local cache of the hub."""
    path = Path(name)
    if path.is_dir():
        return path
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise LaminaError(
            f"--space {name}: no such folder; give pixels, features, ema, {EFFICIENTNET}, the folder of a transformers or timm model, or "
            "its id on the hub"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except Exception as error:  # the hub raises many types; each means that it is not here
        raise LaminaError(
            f"--space {name}: neither a folder nor in this machine's cache of the hub; get it by: hf download {name}"
        ) from error


@lru_cache(maxsize=2)
def _from_folder(name: str, folder: Path, files: tuple[tuple[str, int, int], ...]) -> PretrainedEncoder:
    """``files``: names, sizes and times, so that files that were replaced are read again."""
    settings = _json(name, folder / "config.json")
    if len(files) < 2:
        raise LaminaError(
            f"--space {name}: has no weights in safetensors; save the model with them (other formats can hold code, and are not read)"
        )
    if "model_type" in settings:
        return _transformers(name, folder, settings)
    if "architecture" in settings:
        return _timm(name, folder, settings)
    raise LaminaError(
        f"--space {name}: its config.json names neither a transformers model_type nor a timm architecture"
    )


def _json(name: str, path: Path) -> dict[str, Any]:
    try:
        return json_of(path)
    except (OSError, ValueError) as error:
        raise LaminaError(f"--space {name}: {path.name} cannot be read ({reason(error)})") from error


@contextmanager
def _opening(name: str, library: str) -> Iterator[None]:
    """Within, a library opens a model: its errors become one line."""
    try:
        yield
    except LaminaError:
        raise
    except ImportError as error:
        raise LaminaError(f"--space {name} needs {library}: pip install {library} ({reason(error)})") from error
    except Exception as error:  # libraries raise many types for a damaged or unknown model
        raise LaminaError(f"--space {name}: {library} cannot open it: {reason(error)}") from error


# ------------------------------------------------------------------------------------------------------- transformers


@contextmanager
def quiet() -> Iterator[None]:
    """Within, the transformers library prints no progress. Raises ImportError where it is missing."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _transformers(name: str, folder: Path, settings: dict[str, Any]) -> PretrainedEncoder:
    with _opening(name, "transformers"):
        from transformers import AutoModel

        with quiet():
            opened: Any = AutoModel.from_pretrained(
                folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, local_files_only=True,
                output_loading_info=True,
            )  # fmt: skip
        model, told = opened
        lost = sorted(map(str, [*told["missing_keys"], *told["mismatched_keys"]]))
        network = getattr(model, "vision_model", model)  # SigLIP and CLIP also have a tower for words
        prefix = "vision_model." if network is not model else ""
        lost = [key for key in lost if key.startswith(prefix) and not any(part in key for part in UNUSED)]
        if lost:
            raise LaminaError(f"--space {name}: its weights are not those of its config: '{lost[0]}'")
        config = network.config
        size, mean, std = _preprocessing(name, folder, config)
        video = hasattr(config, "tubelet_size")
        frames = int(getattr(config, "num_frames", config.tubelet_size)) if video else 1
        more = {"skip_predictor": True} if "skip_predictor" in type(network).forward.__code__.co_varnames else {}
        argument = network.main_input_name
        patch = getattr(config, "patch_size", None)
        rows, columns = (patch, patch) if isinstance(patch, int) else patch or (1, 1)
        grid = size[0] // rows, size[1] // columns

        def read(network: nn.Module, pixels: Tensor) -> Tensor:
            clip = pixels[:, None].expand(-1, frames, -1, -1, -1) if video else pixels
            states = network(**{argument: clip}, **more).last_hidden_state
            return states if states.ndim == 4 else on_grid(states, grid, frames // config.tubelet_size if video else 1)

        return PretrainedEncoder(name, network, read, size, mean, std, {"config": settings, "frames": frames})


def on_grid(states: Float[Tensor, "n m d"], grid: tuple[int, int], times: int = 1) -> Float[Tensor, "n d y x"]:
    """Tokens on their grid, averaged over ``times`` of a clip; class and register tokens, which come first, are left out.

    Raises LaminaError for fewer tokens than the grid has places.
    """
    count = times * math.prod(grid)
    if states.shape[1] < count:
        raise LaminaError(f"a model with {states.shape[1]} tokens has none for each of {grid[0]}x{grid[1]} patches")
    tokens = states[:, states.shape[1] - count :].unflatten(1, (times, *grid))
    return tokens.mean(1).permute(0, 3, 1, 2)


def _preprocessing(name: str, folder: Path, config: Any) -> tuple[ImageSize, tuple[float, ...], tuple[float, ...]]:
    """The size, mean and deviation of pictures that a model of transformers was trained with."""
    names = ("preprocessor_config.json", "video_preprocessor_config.json")
    path = next((folder / file for file in names if (folder / file).is_file()), folder / names[0])
    told = _json(name, path)
    size = told.get("crop_size") or told.get("size") or getattr(config, "image_size", None)
    if isinstance(size, dict):
        size = (size.get("height", size.get("shortest_edge")), size.get("width", size.get("shortest_edge")))
    height, width = (size, size) if isinstance(size, int) else (*(size or ()), None, None)[:2]
    mean, std = told.get("image_mean"), told.get("image_std")
    if told.get("do_normalize") is False:
        mean, std = [0.0] * 3, [1.0] * 3
    if not (isinstance(height, int) and isinstance(width, int) and height > 0 and width > 0):
        raise LaminaError(f"--space {name}: {path.name} names no size of its pictures")
    if not all(isinstance(v, list) and len(v) == 3 and all(isinstance(x, int | float) for x in v) for v in (mean, std)):
        raise LaminaError(f"--space {name}: {path.name} names no image_mean and image_std of three colours")
    assert mean is not None and std is not None
    return (height, width), tuple(map(float, mean)), tuple(map(float, std))


# --------------------------------------------------------------------------------------------------------------- timm


def _timm(name: str, folder: Path, settings: dict[str, Any]) -> PretrainedEncoder:
    with _opening(name, "timm"):
        try:
            import timm
        except (RuntimeError, OSError) as error:  # a torchvision of another torch raises either
            raise ImportError(f"torchvision does not fit torch: {reason(error)}") from error
        told = {**settings, **settings.get("pretrained_cfg", {})}
        options = settings.get("model_args", {})
        network: Any = timm.create_model(settings["architecture"], pretrained=False, **{**options, "num_classes": 0})
        if not hasattr(network, "forward_intermediates"):
            raise LaminaError(f"--space {name}: timm's {settings['architecture']} does not give its features on a grid")
        state: dict[str, Tensor] = {}
        for path in sorted(folder.glob("*.safetensors")):
            try:
                state |= load_file(path)
            except (OSError, SafetensorError) as error:
                raise LaminaError(f"{path}: damaged or cut short ({reason(error)}); get the model again") from error
        lost = network.load_state_dict(state, strict=False).missing_keys
        if lost := sorted(key for key in lost if not any(part in key for part in UNUSED)):
            raise LaminaError(f"--space {name}: its weights are not those of its config: '{lost[0]}'")
        _, height, width = told["input_size"]

        def read(network: Any, pixels: Tensor) -> Tensor:
            return network.forward_intermediates(
                pixels, indices=1, norm=True, output_fmt="NCHW", intermediates_only=True
            )[-1]

        mean, std = (tuple(map(float, told[key])) for key in ("mean", "std"))
        return PretrainedEncoder(name, network, read, (height, width), mean, std, {"config": settings})
