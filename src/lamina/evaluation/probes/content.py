"""Content: what can be read off the latent beside the change: the scene, the goal, the time step.

An encoder sees both frames, so a latent can say where the agent is, or which episode this is, and still reconstruct well. Two questions:

- still: how much of the latent's variance the latent of (o, o) already tells. Nothing happens between a frame and itself, so this is the
  share that does not describe a change.
- told: how much of the scene, the goal and the time step the latent tells, as a share of their variance on held-out episodes. The control
  is the change of the pixels at equal width: what happens between two frames can say something of each of them.

A map is fitted on the training split and scored on the test split: a ridge regression on the numbers of the latent and on their radial
basis functions, since a place is seldom a linear function of a latent.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from lamina.data.dataset import Dataset
from lamina.data.sampling import DataConfig
from lamina.inference.subject import Subject
from lamina.intervals import UNDEFINED, Estimate, bootstrap_ratio
from lamina.types import Clip

SIDE = 8  # pixels along each side of the small pictures that stand for a scene or a goal
PIXELS = 24  # ... of those that stand for the change
WIDTH = 128  # numbers of a latent, or of the change, that are read
NEGLIGIBLE = 1e-6  # share of the variance of a principal component that is left out
COMPONENTS = 3  # principal components of them that are predicted
#: Radial basis functions, and their width as a share of one over the number of standardised inputs.
CENTRES, GAMMA = 100, 0.5
#: Regularisations that are tried, and the parts of the training episodes that choose one.
ALPHAS, FOLDS = (0.1, 1.0, 10.0, 100.0, 1000.0, 10_000.0), 4
#: Stretches of video that the training and the test split need, each, for a question about whole episodes.
ENOUGH = (8, 3)


@dataclass(frozen=True)
class Told:
    """Shares of the variance of a property, told by the latent and by the change of the pixels."""

    latent: Estimate
    change: Estimate


@dataclass(frozen=True)
class Content:
    """``still``: share of the latent's variance that the latent of no change tells. ``told``: of "scene", "goal" and "time step"; a
    property that these episodes cannot answer is absent."""

    still: Estimate
    told: dict[str, Told]


def share_told(
    train_x: Float[Tensor, "n i"],
    train_y: Float[Tensor, "n e"],
    train_episode: Int[Tensor, "n"],
    test_x: Float[Tensor, "m i"],
    test_y: Float[Tensor, "m e"],
    test_episode: Int[Tensor, "m"],
) -> Estimate:
    """Share of the variance of y around its training mean that a map of x tells on held-out samples (R^2): 1: all of it; 0: as good as the
    mean; below: worse. NaN where y never varies."""
    from sklearn.kernel_approximation import Nystroem  # here: sklearn takes a second to import
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import GroupKFold
    from sklearn.preprocessing import StandardScaler

    if float(test_y.std(0, correction=0).max()) <= 1e-6 * max(1.0, float(test_y.abs().max())):
        return UNDEFINED
    scaler = StandardScaler().fit(train_x)
    a, b = scaler.transform(train_x), scaler.transform(test_x)
    basis = Nystroem(gamma=GAMMA / a.shape[1], n_components=min(CENTRES, len(a)), random_state=0).fit(a)
    a, b = (np.concatenate([x, basis.transform(x)], 1) for x in (a, b))
    # What is the same all through an episode is learnt by heart unless whole episodes choose the regularisation.
    folds = min(FOLDS, len(train_episode.unique()))
    apart = list(GroupKFold(folds).split(a, groups=train_episode)) if folds > 1 else None
    ridge = RidgeCV(alphas=ALPHAS, cv=apart).fit(a, train_y.numpy())
    wrong = np.square(ridge.predict(b).reshape(test_y.shape) - test_y.numpy()).sum(1)
    spread = (train_y.mean(0) - test_y).square().sum(1).double().numpy()
    return bootstrap_ratio(wrong, spread, test_episode.numpy()).complement()


def content(subject: Subject, source: Dataset, data: DataConfig, train: Clip, test: Clip) -> Content:
    """What the latents of the first pairs tell. ``train``, ``test``: samples of these splits of ``source``, read as ``data`` says."""
    clips = {"train": train, "test": test}
    pairs = [(clip.frames[:, 0], clip.frames[:, 1]) for clip in clips.values()]
    own = [subject.actions(first, second) for first, second in pairs]
    width = min(WIDTH, own[0].shape[1])
    z = _limited(own)
    still = _limited([subject.actions(first, first) for first, _ in pairs])
    fitted, held = (_small(second, PIXELS) - _small(first, PIXELS) for first, second in pairs)
    change = _components(fitted, held, width)

    def share(x: tuple[Tensor, Tensor], y: tuple[Tensor, Tensor]) -> Estimate:
        return share_told(x[0], y[0], train.episode, x[1], y[1], test.episode)

    told = {}
    for name, values in _properties(source, data, clips).items():
        latent, pixels = (share(x, values) for x in (z, change))
        if np.isfinite(latent.mean):
            told[name] = Told(latent, pixels)
    return Content(share(still, z), told)


def _limited(latents: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Latents of the training and the test split, long ones as their first principal components."""
    train, test = latents
    return (train, test) if train.shape[1] <= WIDTH else _components(train, test, WIDTH)


def _properties(source: Dataset, data: DataConfig, clips: dict[str, Clip]) -> dict[str, tuple[Tensor, Tensor]]:
    """The scene, goal and time step of every sample of the training and the test split, where there are enough stretches of video."""
    camera = data.camera or source.cameras[0]
    scenes, goals, times, counts = {}, {}, {}, {}
    for split, clip in clips.items():
        stretches = [(e, start, stop) for e in source.episodes for name, start, stop in e.splits if name == split]
        index, episode = clip.index[:, 0].numpy(), clip.episode.numpy()
        number = np.array(
            [
                next(n for n, (e, a, b) in enumerate(stretches) if e.number == own and a <= at < b)
                for own, at in zip(episode.tolist(), index.tolist(), strict=True)
            ]
        )
        small = _small(clip.frames[:, 0])
        scene, goal = torch.empty_like(small), torch.empty_like(small)
        for n in np.unique(number).tolist():
            own = torch.from_numpy(number == n)
            e, _, stop = stretches[n]
            last = torch.from_numpy(source.frames(e, camera, stop - 1, stop, data.size)).permute(0, 3, 1, 2)
            scene[own] = small[own].median(0).values  # what stays, without the agent that passes by
            goal[own] = _small(last)[0] - scene[own]
        starts = np.array([e.times[start] for e, start, _ in stretches])
        scenes[split], goals[split] = scene, goal
        times[split] = torch.from_numpy(clip.time[:, 0].numpy() - starts[number]).float()[:, None]
        counts[split] = len(np.unique(number))
    found = {"time step": (times["train"], times["test"])}
    if counts["train"] >= ENOUGH[0] and counts["test"] >= ENOUGH[1]:
        found |= {
            name: _components(pictures["train"], pictures["test"], COMPONENTS)
            for name, pictures in (("scene", scenes), ("goal", goals))
        }
    return found


def _small(frames: Tensor, side: int = SIDE) -> Float[Tensor, "n p"]:
    return F.interpolate(frames.float(), (side, side), mode="area").flatten(1)


def _components(train: Tensor, test: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """At most ``number`` principal components, fitted on the training split; those without variance are left out."""
    from sklearn.decomposition import PCA  # here: sklearn takes a second to import

    pca = PCA(min(number, len(train) - 1, train.shape[1]), random_state=0).fit(train.numpy())
    kept = max(1, int((pca.explained_variance_ratio_ > NEGLIGIBLE).sum()))
    first, second = (torch.from_numpy(pca.transform(x.numpy())[:, :kept]).float() for x in (train, test))
    return first, second
