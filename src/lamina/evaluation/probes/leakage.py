"""Leakage probe: the accuracy of an XGBoost classifier that predicts the environment from the latent (AC-LAM Table 2, App. C).

A latent of motion alone predicts the environment only as far as motion does. Controls: chance, and the latents of a random-weights
encoder. Reference: a thumbnail of the first frame, 8x8 pixels: what little of a picture tells the environment.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lamina.errors import LaminaError
from lamina.inference.subject import Subject
from lamina.intervals import Estimate, bootstrap_mean
from lamina.types import Clip

TEST = 0.2
THUMBNAIL = "8x8 thumbnail of the first frame"


@dataclass(frozen=True)
class Leakage:
    """Accuracy of the environment on the held-out fifth. ``accuracy``: a random fifth of the samples, as in the paper; samples of one
    episode can then be on both sides. ``unseen``: of episodes without a training sample; None with fewer than two a class.
    """

    accuracy: Estimate
    unseen: Estimate | None


def leakages(subjects: Sequence[Subject], clips: Sequence[Clip], seed: int = 0) -> dict[str, Leakage]:
    """Leakage of each subject's latents of the clips' first pairs, and of a thumbnail of the first frame, by name.

    ``clips``: one an environment, of one frame size; as many transitions of each as the smallest has, evenly spread.
    """
    least = min(map(len, clips))
    clips = [clip[torch.linspace(0, len(clip) - 1, least).long()] for clip in clips]
    label = np.repeat(np.arange(len(clips)), least)
    # Episodes of two clips are two episodes, also where they have the same number.
    _, episode = np.unique(
        np.c_[label, np.concatenate([clip.episode.numpy() for clip in clips])], axis=0, return_inverse=True
    )

    def read(z: Iterable[Tensor]) -> Leakage:
        return leakage(np.concatenate([part.flatten(1).numpy() for part in z]), label, episode.ravel(), seed)

    found = {s.name: read(s.actions(c.frames[:, 0], c.frames[:, 1]) for c in clips) for s in subjects}
    return found | {THUMBNAIL: read(F.interpolate(c.frames[:, 0].float(), (8, 8), mode="area") for c in clips)}


def leakage(
    z: Float[np.ndarray, "n d"], environment: Int[np.ndarray, "n"], episode: Int[np.ndarray, "n"], seed: int = 0
) -> Leakage:
    """Train and score the classifier. Raises LaminaError without xgboost, and for fewer than two environments."""
    classes, label = np.unique(environment, return_inverse=True)
    if len(classes) < 2:
        raise LaminaError(
            f"leakage is measured between environments, and the data has {len(classes)}; give two or more"
        )
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(z))
    test = np.zeros(len(z), bool)
    test[order[: round(TEST * len(z))]] = True
    unseen = _episodes_apart(label, episode, rng)
    return Leakage(
        accuracy=_accuracy(z, label, episode, test, seed),
        unseen=None if unseen is None else _accuracy(z, label, episode, unseen, seed),
    )


def _episodes_apart(
    label: Int[np.ndarray, "n"], episode: Int[np.ndarray, "n"], rng: np.random.Generator
) -> Bool[np.ndarray, "n"] | None:
    """Rows of a fifth of each class's episodes, at least one of each."""
    test = np.zeros(len(label), bool)
    for number in range(label.max() + 1):
        own = np.unique(episode[label == number])
        if len(own) < 2:
            return None
        test |= np.isin(episode, rng.choice(own, max(1, round(TEST * len(own))), replace=False))
    return test


def _accuracy(
    z: Float[np.ndarray, "n d"],
    label: Int[np.ndarray, "n"],
    episode: Int[np.ndarray, "n"],
    test: Bool[np.ndarray, "n"],
    seed: int,
) -> Estimate:
    try:
        from xgboost import XGBClassifier
    except ImportError as error:
        raise LaminaError(f"the leakage probe needs xgboost ({error}): pip install 'lamina[leakage]'") from error
    model = XGBClassifier(
        n_estimators=100, max_depth=4, learning_rate=0.3, tree_method="hist", n_jobs=1, random_state=seed
    )
    model.fit(z[~test], label[~test])
    return bootstrap_mean(model.predict(z[test]) == label[test], episode[test])
