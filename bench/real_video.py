"""Reconstruction of held-out transitions at k = 5, 20, 80, as Table 1 of FlexLAM has it, and the prefix sweep as a picture.

python bench/real_video.py RUN PICTURE DATA [DATA ...]
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from lamina.data.sampling import DataConfig
from lamina.data.stream import sample_split
from lamina.evaluation.pictures import prefix_picture
from lamina.evaluation.probes.reconstruction import psnr, reconstruct, ssim
from lamina.images import to_float, to_uint8
from lamina.inference.subject import subject_of
from lamina.models.hub import LatentActionModel
from lamina.types import Clip

PREFIXES = (0, 5, 20, 80)
TRANSITIONS = 48  # of each dataset's test split at most


def main(run: str, picture: str, *datasets: str) -> None:
    model = LatentActionModel.from_pretrained(run)
    subject, gap = subject_of(model), model.provenance.label_gap
    rows: list[Clip] = []
    print(f"{'data':<10}{'predicted from':<20}{'n':>5}{'PSNR, dB':>10}{'SSIM':>8}{'LPIPS':>8}")
    for path in datasets:
        clip = sample_split(DataConfig((path,), subject.image, gap=(gap, gap), workers=0), "test", TRANSITIONS)
        rows.append(clip)
        for score in reconstruct(subject, clip, PREFIXES):
            name = f"k = {score.k}" if score.role == "model" else score.name
            perceptual = "-" if score.lpips is None else f"{score.lpips.mean():.3f}"
            print(
                f"{Path(path).name:<10}{name:<20}{len(clip):>5}{score.psnr.mean():>10.2f}{score.ssim.mean():>8.3f}{perceptual:>8}"
            )
        # What the frozen autoencoder leaves of the second frame: nothing that works in its latents can be better.
        autoencoder, after = getattr(model.lam.decoder, "autoencoder", None), clip.frames[:, 1]
        if autoencoder is not None:
            with torch.no_grad():
                best = to_uint8(autoencoder.decode(autoencoder(to_float(after))))
            print(
                f"{Path(path).name:<10}{'autoencoder alone':<20}{len(clip):>5}{psnr(best, after).mean():>10.2f}"
                f"{ssim(best, after).mean():>8.3f}{'-':>8}"
            )
    plain = [Clip(clip.frames, clip.time, clip.index, clip.episode + 1000 * n) for n, clip in enumerate(rows)]
    prefix_picture(subject, Clip.cat(plain), (0, 1, *PREFIXES[1:]), Path(picture), rows=6)


if __name__ == "__main__":
    main(*sys.argv[1:])
