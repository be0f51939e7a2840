"""An encoder of one's own, registered by name and saved with the model: ``import own_encoder`` before the model is loaded elsewhere."""

from dataclasses import dataclass

import torch
from torch import nn

import lamina


class PatchEncoder(nn.Module):
    """Patches of each frame as tokens [n p d]; a pair is compared by its tokens' difference."""

    @dataclass(frozen=True)
    class Config:
        width: int = 64
        patch: int = 8

    def __init__(self, config, observation, slots, dim):
        super().__init__()
        self.patches = nn.Conv2d(observation[0], config.width, config.patch, config.patch)
        self.read = nn.Linear(2 * config.width, slots * dim)
        self.slots = slots

    def embed(self, frames):
        return self.patches(frames).flatten(2).transpose(1, 2)

    def compare(self, first, second):
        pooled = torch.cat([first.mean(1), (second - first).abs().mean(1)], dim=1)
        return self.read(pooled).unflatten(1, (self.slots, -1))


lamina.register_encoder("patches", PatchEncoder)

if __name__ == "__main__":
    run = lamina.train("flexlam", "data/doom", out="runs/patches", encoder="patches", steps=200)
    print(run.model().config.encoder)
