"""LAPA's latent action quantisation as a subject (arXiv 2410.11758, github.com/LatentActionPretraining/LAPA, whose package ``laq_model``
must be installed).

LAPA=checkpoint.pt lamina evaluate --subject lapa:subject --data DATASET --out DIR
"""

import os

import torch
from torch import Tensor

from lamina.inference.subject import Subject


def subject(checkpoint: str | None = None, codebook_size: int = 8, slots: int = 4, layers: int = 8) -> Subject:
    """The vectors of the codes, [n slots 32]. Its decoder predicts from its own pair alone, so the subject has none."""
    from laq_model import LatentActionQuantization

    side = 256
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = LatentActionQuantization(
        dim=1024, quant_dim=32, codebook_size=codebook_size, image_size=side, patch_size=32, spatial_depth=layers,
        temporal_depth=layers, dim_head=64, heads=16, code_seq_len=slots,
    )  # fmt: skip
    model.load(checkpoint or os.environ["LAPA"])
    model = model.to(device).eval()

    def index(src: Tensor, dst: Tensor) -> Tensor:
        video = (
            torch.stack([src, dst], dim=2).to(device).float() / 255
        )  # [n 3 2 h w] in [0, 1], the earlier frame first
        return model.inference(video, return_only_codebook_ids=True)

    def encode(src: Tensor, dst: Tensor) -> Tensor:
        return model.vq.codebooks[index(src, dst)]

    return Subject("LAPA", encode, slots=slots, index=index, codebook_size=codebook_size, image=(side, side))
