"""Train a small autoencoder of the kind that `lamina train flexlam_real --vae` takes, for trials where the published one is too large.

It is diffusers' AutoencoderKL with one latent for 4x4 pixels, and is saved as that library saves it. Published autoencoders also have a
perceptual and an adversarial loss; this one has the absolute error and a small Kullback-Leibler term.

    python bench/small_autoencoder.py data/doom runs/vae
"""

from __future__ import annotations

import sys
import time

import torch
from diffusers import AutoencoderKL

from lamina.data.sampling import DataConfig
from lamina.data.stream import ClipStream
from lamina.images import to_float


def train(
    data: list[str], out: str, image: tuple[int, int] = (64, 88), steps: int = 4000, minutes: float = 60.0
) -> None:
    """Train on single frames of ``data``, for ``steps`` steps of 8 or until ``minutes`` have passed, and save the result in ``out``."""
    torch.manual_seed(0)
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3, block_out_channels=(8, 16, 32),
        layers_per_block=1, latent_channels=16, norm_num_groups=4, use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    stream = iter(ClipStream(DataConfig(tuple(data), image, gap=(0.1, 1.0), workers=0), 4, seed=0))
    began = time.monotonic()
    for step in range(steps):
        pictures = to_float(next(stream).frames).flatten(0, 1)
        posterior = model.encode(pictures).latent_dist
        error = (model.decode(posterior.sample()).sample - pictures).abs().mean()
        loss = error + 1e-6 * posterior.kl().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == steps - 1:
            print(
                f"step {step}: mean absolute error {127.5 * error.item():.2f} of 255, {time.monotonic() - began:.0f} s",
                flush=True,
            )
        if time.monotonic() - began > 60 * minutes:
            break
    # What the flow works in has mean 0 and deviation 1.
    with torch.no_grad():
        latents = torch.cat(
            [model.encode(to_float(next(stream).frames).flatten(0, 1)).latent_dist.mean for _ in range(16)]
        )
    model.register_to_config(scaling_factor=1 / latents.std().item(), shift_factor=latents.mean().item())
    model.save_pretrained(out)


if __name__ == "__main__":
    data, out = (sys.argv[1:-1], sys.argv[-1]) if len(sys.argv) > 2 else (["data/doom"], "runs/vae")
    train(data, out)
