"""The interface of LAPA's package ``laq_model``, with the change of brightness in four corners in the place of the network."""

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LatentActionQuantization(nn.Module):
    def __init__(
        self, *, dim, quant_dim, codebook_size, image_size, patch_size, spatial_depth, temporal_depth,
        dim_head=64, heads=8, channels=3, attn_dropout=0.0, ff_dropout=0.0, code_seq_len=1,
    ) -> None:  # fmt: skip
        super().__init__()
        assert code_seq_len == 4
        self.image_size, self.size = (image_size, image_size), codebook_size
        self.scale = nn.Parameter(torch.ones(()))
        codebooks = torch.randn(codebook_size, quant_dim, generator=torch.Generator().manual_seed(0))
        self.vq = SimpleNamespace(codebooks=nn.Parameter(codebooks))

    def load(self, path: str) -> None:
        assert path == "checkpoint.pt"

    def inference(self, video: Tensor, step=0, mask=None, return_only_codebook_ids=False, user_action_token_num=None):
        """[b c 2 h w] in [0, 1] -> codes [b 4]."""
        assert video.ndim == 5 and video.shape[1:3] == (3, 2) and tuple(video.shape[3:]) == self.image_size
        assert video.min() >= 0 and video.max() <= 1 and return_only_codebook_ids
        change = F.adaptive_avg_pool2d((video[:, :, 1] - video[:, :, 0]).mean(1), 2).flatten(1) * self.scale
        return ((change + 1) / 2 * (self.size - 1)).round().long()
