"""Tiny VideoMAE, Stable Diffusion 3 and autoencoder of random weights, saved as their libraries and OpenGVLab publish them; and a training
of flexlam_real that test_real.py runs under torchrun."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

WIDTH, HEADS, LAYERS, PATCH = 24, 2, 2, 4


def videomae(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """As transformers saves a VideoMAE: 16 frames of 8x8, so 2x2 patches of 4 pixels."""
    from transformers import VideoMAEConfig, VideoMAEModel

    settings: dict[str, Any] = {
        "image_size": 8, "patch_size": PATCH, "hidden_size": WIDTH, "num_attention_heads": HEADS, "num_hidden_layers": LAYERS,
        "intermediate_size": 4 * WIDTH, "use_mean_pooling": False, "layer_norm_eps": 1e-6, **changes,
    }  # fmt: skip
    torch.manual_seed(seed)
    VideoMAEModel(VideoMAEConfig(**settings)).save_pretrained(folder)
    return folder


def v2_state(width: int, layers: int, patch: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of OpenGVLab's VideoMAE-v2, an encoder with the mean of its tokens as output."""
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embed.proj.weight": (width, 3, 2, patch, patch),
        "patch_embed.proj.bias": (width,),
        "fc_norm.weight": (width,),
        "fc_norm.bias": (width,),
    }
    for n in range(layers):
        shapes |= {
            f"blocks.{n}.norm1.weight": (width,), f"blocks.{n}.norm1.bias": (width,),
            f"blocks.{n}.attn.q_bias": (width,), f"blocks.{n}.attn.v_bias": (width,),
            f"blocks.{n}.attn.qkv.weight": (3 * width, width),
            f"blocks.{n}.attn.proj.weight": (width, width), f"blocks.{n}.attn.proj.bias": (width,),
            f"blocks.{n}.norm2.weight": (width,), f"blocks.{n}.norm2.bias": (width,),
            f"blocks.{n}.mlp.fc1.weight": (4 * width, width), f"blocks.{n}.mlp.fc1.bias": (4 * width,),
            f"blocks.{n}.mlp.fc2.weight": (width, 4 * width), f"blocks.{n}.mlp.fc2.bias": (width,),
        }  # fmt: skip
    return {f"model.{name}": shape for name, shape in shapes.items()}


def videomae_v2(folder: Path) -> Path:
    """As OpenGVLab publishes VideoMAE-v2."""
    generator = torch.Generator().manual_seed(0)
    shapes = v2_state(WIDTH, LAYERS, PATCH)
    folder.mkdir()
    save_file(
        {n: torch.randn(s, generator=generator) * 0.2 + ("norm" in n) for n, s in shapes.items()},
        folder / "model.safetensors",
    )
    inner = {
        "img_size": 8, "patch_size": PATCH, "in_chans": 3, "embed_dim": WIDTH, "depth": LAYERS, "num_heads": HEADS, "mlp_ratio": 4,
        "tubelet_size": 2, "init_values": 0.0, "use_learnable_pos_emb": False, "cos_attn": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps({"model_type": "VideoMAEv2_Tiny", "model_config": inner}))
    return folder


def sd3(folder: Path, seed: int = 0, channels: int = 4, **changes: Any) -> Any:
    """As diffusers saves an SD3Transformer2DModel; returns the model."""
    from diffusers import SD3Transformer2DModel

    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "sample_size": 8, "patch_size": 2, "in_channels": channels, "out_channels": channels, "num_layers": 2, "attention_head_dim": 8,
        "num_attention_heads": 2, "joint_attention_dim": 20, "caption_projection_dim": 16, "pooled_projection_dim": 12,
        "pos_embed_max_size": 12, "dual_attention_layers": (0,), "qk_norm": "rms_norm", **changes,
    }  # fmt: skip
    model = SD3Transformer2DModel(**settings)
    model.save_pretrained(folder)
    return model.eval()


def autoencoder(folder: Path, seed: int = 0, channels: int = 4, **changes: Any) -> Any:
    """As diffusers saves an AutoencoderKL with a latent for 2x2 pixels; returns the model."""
    from diffusers import AutoencoderKL

    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2, "block_out_channels": (8, 8),
        "layers_per_block": 1, "latent_channels": channels, "norm_num_groups": 4, "scaling_factor": 1.7, "shift_factor": 0.1,
        "use_quant_conv": False, "use_post_quant_conv": False, **changes,
    }  # fmt: skip
    model = AutoencoderKL(**settings)
    model.save_pretrained(folder)
    return model.eval()


if __name__ == "__main__":
    from parallel import train

    torch.set_num_threads(1)
    dataset, out = Path(sys.argv[1]), Path(sys.argv[2])
    train(out, dataset, "flexlam_real", parallel="fsdp2", recompute=True, accumulate=2, ema_offload=True)
    torch.distributed.destroy_process_group()
