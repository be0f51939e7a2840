"""Data in memory: a latent action model, its alignment and a torch Dataset of (frame, latent, action) from arrays."""

from types import SimpleNamespace

import numpy as np

import lamina

rng = np.random.default_rng(0)


def episode(length=60, size=32):
    """A bright square that an action moves left or right."""
    actions = rng.integers(0, 2, length)
    frames, place = np.zeros((length, size, size, 3), np.uint8), size // 2
    for t, action in enumerate(actions):
        frames[t, 12:20, max(0, place - 4) : place + 4] = 255
        place = int(np.clip(place + (2 if action else -2), 4, size - 4))
    return SimpleNamespace(frames=frames, actions=actions)


data = lamina.InMemoryDataset([episode() for _ in range(20)], fps=10)
run = lamina.train("flexlam", data, out="runs/square", steps=200, image=(32, 32), gap=(0.1, 0.1), size="debug")
heads = lamina.align(run, data, labels=128, steps=200)
table = lamina.label(run, data)
samples = lamina.LatentDataset(run, data)
print(heads.validation_loss, table.latents.shape, samples[0].latent.shape)
