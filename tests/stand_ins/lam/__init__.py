"""The interface of villa-X's package ``lam``, with pooled differences of pixels in the place of the network."""

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class IgorModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(resolution=16, num_learned_tokens=4, n_codes=32)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1))

    @classmethod
    def from_pretrained(cls, pretrained_model_path: str, strict: bool = True) -> "IgorModel":
        assert pretrained_model_path == "checkpoint"
        return cls().eval()

    def preprocess(self, images: Tensor) -> Tensor:
        """uint8 [... c h w] -> normalised [... c 16 16]."""
        assert images.dtype == torch.uint8 and images.shape[-3] == 3
        small = F.interpolate(images.flatten(0, -4).float(), (16, 16), mode="area").view(*images.shape[:-2], 16, 16)
        return (small / 255 - self.mean) / self.std

    @torch.inference_mode()
    def idm(self, clips: Tensor, *, return_dict: bool = False, return_vq_tokens: bool = True):
        """[b t c h w] -> latents [b t-1 1 n*d] after the quantiser, or a dict with the codes [b*(t-1)*n] too."""
        assert clips.ndim == 5
        frames = self.preprocess(clips)
        change = F.avg_pool2d((frames[:, 1:] - frames[:, :-1]).flatten(0, 1), 4).flatten(1)
        tokens = [x[:, None] for x in change.view(len(clips), -1, change.shape[1])]
        vq_tokens = (torch.stack(tokens) * 64).round() / 64
        indices = vq_tokens.view(-1, 4, 12).mean(-1).mul(4).round().long().remainder(32).flatten()
        if not return_dict:
            return vq_tokens if return_vq_tokens else tokens
        return {"tokens": tokens, "vq_tokens": vq_tokens, "indices": indices}

    @torch.inference_mode()
    def apply_latent_action(self, images: Tensor, la: Tensor) -> Tensor:
        """[b c h w] and [b 1 n*d] -> uint8 [b c 16 16]; a batch of one loses its axis."""
        assert la.shape[1:] == (1, 48)
        change = F.interpolate(la.view(-1, 3, 4, 4), (16, 16))
        pixels = (self.preprocess(images) + change) * self.std + self.mean
        found = (pixels * 255).clamp(0, 255).to(torch.uint8)
        return found.squeeze(0) if len(found) == 1 else found
