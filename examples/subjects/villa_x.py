"""villa-X's latent action model as a subject (arXiv 2507.23682, github.com/microsoft/villa-x, whose package ``lam`` must be installed).

VILLA_X=folder/of/the/checkpoint lamina evaluate --subject villa_x:subject --data DATASET --out DIR
"""

import os

import torch
from torch import Tensor

from lamina.images import to_float
from lamina.inference.subject import Subject


def subject(folder: str | None = None) -> Subject:
    """Quantised latents of 4 slots, with their codes and the decoder of pictures; runs on a GPU where there is one."""
    from lam import IgorModel

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = IgorModel.from_pretrained(folder or os.environ["VILLA_X"]).to(device)
    slots, side = model.config.num_learned_tokens, model.config.resolution

    def idm(src: Tensor, dst: Tensor) -> dict[str, Tensor]:
        clips = torch.stack([src, dst], dim=1).to(device)  # uint8 [n 2 3 h w], the earlier frame first
        return model.idm(clips, return_dict=True)

    def encode(src: Tensor, dst: Tensor) -> Tensor:
        return idm(src, dst)["vq_tokens"].flatten(1)  # [n 1 1 k*d] -> [n k*d]

    def index(src: Tensor, dst: Tensor) -> Tensor:
        return idm(src, dst)["indices"].view(len(src), slots)

    def decode(src: Tensor, z: Tensor) -> Tensor:
        pixels = model.apply_latent_action(
            src.to(device), z[:, None].to(device)
        )  # uint8; a single one has no batch axis
        return to_float(pixels.view(src.shape))

    return Subject(
        "villa-X", encode, decode, slots=slots, index=index, codebook_size=model.config.n_codes, image=(side, side)
    )
