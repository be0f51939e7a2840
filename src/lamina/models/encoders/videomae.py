"""VideoMAE over the pair, with K query slots: the encoder of FlexLAM's real-video model (arXiv 2606.19408, §5.4, App. E).

VideoMAE (Tong et al. 2022; version 2: Wang et al. 2023) cuts a video into tubelets of 2 frames and patches. A pair of frames is one
tubelet a patch, whose projection is a sum of one term for each frame: so every frame is embedded once, whatever its pairs. K learned
tokens join the sequence of patches, and what they have become after the last layer is the latent.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from lamina.errors import LaminaError
from lamina.models.layers import patch_count, position_embedding
from lamina.models.published import Pretrained, fill, library
from lamina.records import Count, Layers

TUBELET = 2  # frames
#: Mean and deviation of the pictures that VideoMAE was trained on (ImageNet's), for pixels in [0, 1].
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class VideoMAEEncoder(nn.Module):
    """Raises LaminaError where transformers is missing, for pictures that the patch does not divide, and for channels other than 3."""

    position: Tensor

    @dataclass(frozen=True)
    class Config:
        patch: Count = 16
        width: Count = 1024
        heads: Count = 16
        layers: Layers = 24
        hidden: Count = 4096  # of the MLP
        rows: Count = 14  # of patches of the pictures that the position embeddings are made for
        columns: Count = 14
        eps: float = 1e-6  # of the layer norms

    def __init__(self, config: Config, observation: tuple[int, int, int], slots: int, dim: int):
        super().__init__()
        with library("--encoder videomae", "transformers"):
            from transformers import VideoMAEConfig, VideoMAEModel
        channels, height, width = observation
        if channels != 3:
            raise LaminaError(f"--encoder videomae reads RGB frames, these have {channels} channels")
        patch_count(observation, config.patch, config.width, config.heads)
        self.config = config
        self.model: Any = VideoMAEModel(
            VideoMAEConfig(
                image_size=(height, width), patch_size=config.patch, num_channels=3, num_frames=TUBELET, tubelet_size=TUBELET,
                hidden_size=config.width, num_hidden_layers=config.layers, num_attention_heads=config.heads,
                intermediate_size=config.hidden, layer_norm_eps=config.eps, use_mean_pooling=False,
            )
        )  # fmt: skip
        grid = (height // config.patch, width // config.patch)
        self.register_buffer("position", positions((config.rows, config.columns), grid, config.width), persistent=False)
        self.slots = position_embedding(slots, config.width)
        self.head = nn.Linear(config.width, dim)

    @property
    def units(self) -> list[nn.Module]:
        """The repeated layers (:func:`lamina.models.layers.repeated`)."""
        return list(self.model.encoder.layer)

    def embed(self, frames: Float[Tensor, "n c h w"]) -> Float[Tensor, "n p f"]:
        """Each frame's terms of the tubelets' projection: as the first frame of a pair and as the second, side by side in the last axis."""
        mean, deviation = (frames.new_tensor(v).view(-1, 1, 1) for v in (MEAN, DEVIATION))
        pictures = ((frames + 1) / 2 - mean) / deviation
        weight = self.model.embeddings.patch_embeddings.projection.weight
        both = torch.cat(weight.unbind(2))
        return rearrange(F.conv2d(pictures, both, stride=self.config.patch), "n f y x -> n (y x) f")

    def compare(self, first: Float[Tensor, "n p f"], second: Float[Tensor, "n p f"]) -> Float[Tensor, "n k d"]:
        """Slots of pairs, from the features of their frames."""
        width = self.config.width
        bias = self.model.embeddings.patch_embeddings.projection.bias
        patches = first[..., :width] + second[..., width:] + bias + self.position
        tokens = torch.cat([patches, self.slots.to(patches.dtype).expand(len(patches), -1, -1)], dim=1)
        for layer in self.model.encoder.layer:
            tokens = layer(tokens)
        return self.head(self.model.layernorm(tokens[:, -len(self.slots) :]))


def positions(pretrained: tuple[int, int], grid: tuple[int, int], width: int) -> Float[Tensor, "p d"]:
    """VideoMAE's position embeddings of the first tubelet, interpolated from its own grid of patches to ``grid`` (rows, columns).

    Sines and cosines of the number of the patch (Vaswani et al. 2017, §3.5), counted row by row.
    """
    rows, columns = pretrained
    number = torch.arange(rows * columns, dtype=torch.float64)
    power = torch.arange(0, width, 2, dtype=torch.float64) / width
    angles = number[:, None] / 10_000 ** power[None]
    table = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :width]
    picture = rearrange(table.float(), "(y x) d -> 1 d y x", y=rows)
    if grid != pretrained:
        picture = F.interpolate(picture, grid, mode="bicubic", align_corners=False)
    return rearrange(picture, "1 d y x -> (y x) d")


# ------------------------------------------------------------------------------------------------- pretrained weights


def read_config(source: Pretrained) -> VideoMAEEncoder.Config:
    """The config of published weights of a VideoMAE, in the form of transformers or of OpenGVLab (version 2).

    Raises LaminaError for a model of another kind, another activation, another tubelet or other channels.
    """
    found = source.config()
    if str(found.get("model_type", "")).lower() == "videomae":
        named = {
            "patch": "patch_size", "width": "hidden_size", "heads": "num_attention_heads", "layers": "num_hidden_layers",
            "hidden": "intermediate_size", "image": "image_size", "tubelet": "tubelet_size", "channels": "num_channels",
        }  # fmt: skip
        # The library's own defaults, which a config.json may leave out.
        default = {
            "patch": 16, "width": 768, "heads": 12, "layers": 12, "hidden": 3072, "image": 224, "tubelet": TUBELET,
            "channels": 3,
        }  # fmt: skip
        if found.get("hidden_act", "gelu") != "gelu":
            raise source.wrong(
                f"a VideoMAE with the activation {found['hidden_act']!s:.20}, and gelu is what is computed here"
            )
        values = {name: found.get(theirs, default[name]) for name, theirs in named.items()}
        eps = found.get("layer_norm_eps", 1e-12)
    elif isinstance(inner := found.get("model_config"), dict) and "embed_dim" in inner:
        if inner.get("cos_attn") or inner.get("init_values") or inner.get("use_learnable_pos_emb"):
            raise source.wrong(
                "a VideoMAE-v2 with cosine attention, layer scale or learned positions, which is not read here"
            )
        width = inner["embed_dim"]
        values = {
            "patch": inner.get("patch_size", 16), "width": width, "heads": inner.get("num_heads", 12),
            "layers": inner.get("depth", 12), "hidden": int(width * inner.get("mlp_ratio", 4)),
            "image": inner.get("img_size", 224), "tubelet": inner.get("tubelet_size", TUBELET), "channels": inner.get("in_chans", 3),
        }  # fmt: skip
        eps = 1e-6
    else:
        raise source.wrong(f"a model of type {found.get('model_type')!r:.40}, not a VideoMAE")
    image, patch = values.pop("image"), values["patch"]
    if values.pop("tubelet") != TUBELET or values.pop("channels") != 3 or not isinstance(patch, int):
        raise source.wrong("needs square patches, tubelets of 2 frames and 3 channels")
    rows, columns = (side // patch for side in ((image, image) if isinstance(image, int) else image))
    return VideoMAEEncoder.Config(**values, rows=rows, columns=columns, eps=eps)


def load(encoder: VideoMAEEncoder, source: Pretrained) -> None:
    """Fill the layers with published weights; query slots and the last linear layer stay as they are.

    Raises LaminaError for weights of another architecture.
    """
    # A model that was fine-tuned to classify has its last norm behind the mean of all tokens, or none.
    fill(encoder.model, converted(source.tensors()), source, optional=("layernorm.",))


#: Names of VideoMAE-v2's repository (OpenGVLab), and what transformers calls the same tensors.
V2_NAMES = (
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^blocks\.(\d+)\.norm1\.", r"encoder.layer.\1.layernorm_before."),
    (r"^blocks\.(\d+)\.norm2\.", r"encoder.layer.\1.layernorm_after."),
    (r"^blocks\.(\d+)\.attn\.q_bias$", r"encoder.layer.\1.attention.attention.query.bias"),
    (r"^blocks\.(\d+)\.attn\.v_bias$", r"encoder.layer.\1.attention.attention.value.bias"),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"encoder.layer.\1.attention.output.dense."),
    (r"^blocks\.(\d+)\.mlp\.fc1\.", r"encoder.layer.\1.intermediate.dense."),
    (r"^blocks\.(\d+)\.mlp\.fc2\.", r"encoder.layer.\1.output.dense."),
    (r"^(fc_norm|norm)\.", "layernorm."),
    # transformers before version 5
    (r"\.attention\.attention\.q_bias$", ".attention.attention.query.bias"),
    (r"\.attention\.attention\.v_bias$", ".attention.attention.value.bias"),
)
#: What the encoder alone does not have: the decoder and mask token of pretraining, the head of a classifier.
UNUSED = re.compile(
    r"^(decoder\.|encoder_to_decoder\.|mask_token$|head\.|classifier\.|position_embeddings$|pos_embed$|embeddings\.position_embeddings$)"
)


def converted(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a VideoMAE under the names of transformers' VideoMAEModel, from those of OpenGVLab's VideoMAE-v2 or of transformers.

    Query, key and value, one matrix there, are three here. Tensors that the encoder does not have are left out.
    """
    # A published model sits in another under one of these names; a pretraining checkpoint's "encoder." would hide transformers' own.
    prefix = next((p for p in ("videomae.", "model.", "module.") if any(name.startswith(p) for name in tensors)), "")
    bare = {name.removeprefix(prefix): value for name, value in tensors.items()}
    if any(name.startswith("encoder.blocks.") for name in bare):
        bare = {name.removeprefix("encoder."): value for name, value in bare.items()}
    found: dict[str, Tensor] = {}
    for name, value in bare.items():
        if UNUSED.match(name):
            continue
        if packed := re.fullmatch(r"blocks\.(\d+)\.attn\.qkv\.weight", name):
            layer = f"encoder.layer.{packed[1]}.attention.attention"
            found |= {
                f"{layer}.{part}.weight": v for part, v in zip(("query", "key", "value"), value.chunk(3), strict=True)
            }
            continue
        for pattern, replacement in V2_NAMES:
            name = re.sub(pattern, replacement, name)
        found[name] = value
    return found
