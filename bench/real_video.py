"""Reconstruction of held-out transitions at k = 5, 20, 80, as Table 1 of FlexLAM has it, and the prefix sweep as a picture.

python bench/real_video.py RUN PICTURE DATA [DATA ...]

The figures are also written beside the picture, as JSON.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from lamina.data.sampling import DataConfig
from lamina.data.stream import sample_split
from lamina.evaluation.pictures import prefix_picture
from lamina.evaluation.probes.reconstruction import psnr, reconstruct, ssim
from lamina.files import to_json, write_text
from lamina.images import to_float, to_uint8
from lamina.inference.subject import subject_of
from lamina.models.hub import LatentActionModel
from lamina.types import Clip

PREFIXES = (0, 5, 20, 80)
METRICS = ("psnr", "ssim", "lpips")
TRANSITIONS = 48  # of each dataset's test split at most


def main(run: str, picture: str, *datasets: str) -> None:
    model = LatentActionModel.from_pretrained(run)
    subject, gap = subject_of(model), model.provenance.label_gap
    rows: list[Clip] = []
    figures: dict[str, dict[str, dict[str, float]]] = {}
    print(f"{'data':<10}{'predicted from':<20}{'n':>5}{'PSNR, dB':>10}{'SSIM':>8}{'LPIPS':>8}")
    for path in datasets:
        clip = sample_split(DataConfig((path,), subject.image, gap=(gap, gap), workers=0), "test", TRANSITIONS)
        rows.append(clip)
        found: list[tuple[str, np.ndarray, np.ndarray, np.ndarray | None]] = []
        for score in reconstruct(subject, clip, PREFIXES):
            name = f"k = {score.k}" if score.role == "model" else score.name
            found.append((name, score.psnr, score.ssim, score.lpips))
        # What the frozen autoencoder leaves of the second frame: nothing that works in its latents can be better.
        autoencoder, after = getattr(model.lam.decoder, "autoencoder", None), clip.frames[:, 1]
        if autoencoder is not None:
            with torch.no_grad():
                best = to_uint8(autoencoder.decode(autoencoder(to_float(after))))
            found.append(("autoencoder alone", psnr(best, after).numpy(), ssim(best, after).numpy(), None))
        for name, *scores in found:
            means = {key: float(s.mean()) for key, s in zip(METRICS, scores, strict=True) if s is not None}
            figures.setdefault(Path(path).name, {})[name] = means
            shown = "".join(f"{means[key]:>8.3f}" if key in means else f"{'-':>8}" for key in METRICS[1:])
            print(f"{Path(path).name:<10}{name:<20}{len(clip):>5}{means['psnr']:>10.2f}{shown}")
    plain = [Clip(clip.frames, clip.time, clip.index, clip.episode + 1000 * n) for n, clip in enumerate(rows)]
    prefix_picture(subject, Clip.cat(plain), (0, 1, *PREFIXES[1:]), Path(picture), rows=6)
    write_text(Path(picture).with_suffix(".json"), to_json(figures, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
