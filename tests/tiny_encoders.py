"""Encoders of random weights, a few kilobytes each, saved as a repository of the hub would have them: 32 pixels, patches of 4 or 8."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

IMAGE = 32
VIT = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "image_size": IMAGE, "patch_size": 4,
}  # fmt: skip


def _saved(folder: Path, model: Any, seed: int, preprocessing: dict[str, Any] | None = None) -> Path:
    torch.manual_seed(seed)
    for parameter in model.parameters():  # the usual deviation, 0.02, makes so small a model almost a constant
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    told = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.3], "size": {"height": IMAGE, "width": IMAGE}}
    (folder / "preprocessor_config.json").write_text(json.dumps({**told, **(preprocessing or {})}))
    return folder


def dinov2(folder: Path, seed: int = 0) -> Path:
    """A class token and 8x8 patches."""
    from transformers import Dinov2Config, Dinov2Model

    return _saved(folder, Dinov2Model(Dinov2Config(**{**VIT, "image_size": 56, "mlp_ratio": 2})), seed)


def dinov3(folder: Path, seed: int = 0) -> Path:
    """A class token, two registers, and 8x8 patches, which rotary embeddings place."""
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    return _saved(folder, DINOv3ViTModel(DINOv3ViTConfig(**VIT, num_register_tokens=2)), seed)


def siglip(folder: Path, seed: int = 0) -> Path:
    """Two towers; the one for pictures has 8x8 patches and a head that no token depends on."""
    from transformers import SiglipConfig, SiglipModel

    text = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "vocab_size": 32,
    }
    return _saved(folder, SiglipModel(SiglipConfig(vision_config=VIT, text_config=text)), seed)


def videomae(folder: Path, seed: int = 0) -> Path:
    """Clips of four frames in tubes of two: 2 times 4x4 tokens."""
    from transformers import VideoMAEConfig, VideoMAEModel

    config = VideoMAEConfig(**{**VIT, "patch_size": 8}, num_frames=4, tubelet_size=2, use_mean_pooling=False)
    return _saved(folder, VideoMAEModel(config), seed)


def vjepa2(folder: Path, seed: int = 0) -> Path:
    """Clips in tubes of two frames, placed by rotary embeddings: 4x4 tokens for four frames that stand still, twice."""
    from transformers import VJEPA2Config, VJEPA2Model

    config = VJEPA2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, crop_size=IMAGE, patch_size=8, frames_per_clip=4,
        tubelet_size=2, pred_hidden_size=24, pred_num_attention_heads=2, pred_num_hidden_layers=1, pred_num_mask_tokens=1,
    )  # fmt: skip
    return _saved(folder, VJEPA2Model(config), seed, {"crop_size": {"height": IMAGE, "width": IMAGE}})


def timm_vit(folder: Path, seed: int = 0) -> Path:
    """A ViT of timm: a class token and 8x8 patches."""
    import timm
    from safetensors.torch import save_file

    options = {"img_size": IMAGE, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=3, **options)
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    told = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3], "input_size": [3, IMAGE, IMAGE]}
    config = {"architecture": "vit_tiny_patch16_224", "num_classes": 3, "model_args": options, "pretrained_cfg": told}
    (folder / "config.json").write_text(json.dumps(config))
    return folder
