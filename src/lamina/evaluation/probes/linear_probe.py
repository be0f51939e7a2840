"""Linear probe: ridge regression from latents to actions, scored on held-out episodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from lamina.images import to_float
from lamina.inference.encode import in_batches
from lamina.intervals import Estimate, bootstrap_mean, bootstrap_ratio
from lamina.models.features import PretrainedFeatures
from lamina.types import ActionSpec


@dataclass(frozen=True)
class LinearScore:
    """``nmse``: squared error over the action's variance around the training mean, 1 = as good as the mean action, 0 = perfect.

    ``accuracy``: of the first discrete dimension, by the largest output; None without one.
    """

    nmse: Estimate
    accuracy: Estimate | None


def linear_probe(
    train_x: Float[Tensor, "n i"],
    train_y: Float[Tensor, "n e"],
    test_x: Float[Tensor, "m i"],
    test_y: Float[Tensor, "m e"],
    episode: Int[Tensor, "m"],
    spec: ActionSpec,
) -> LinearScore:
    """Fit on the training split, score on the test split. ``*_y``: actions as one-hot and standardised vectors."""
    from sklearn.linear_model import RidgeCV  # here: sklearn takes a second to import
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(train_x)
    ridge = RidgeCV(alphas=[0.1, 1, 10, 100, 1000, 10_000]).fit(scaler.transform(train_x), train_y)
    predicted = torch.from_numpy(ridge.predict(scaler.transform(test_x)).reshape(len(test_x), -1))
    error = (predicted - test_y).square().sum(1).double().numpy()
    spread = (train_y.mean(0) - test_y).square().sum(1).double().numpy()
    accuracy = None
    if spec.discrete:
        n = spec.discrete[0]
        right = predicted[:, :n].argmax(1) == test_y[:, :n].argmax(1)
        accuracy = bootstrap_mean(right, episode)
    return LinearScore(bootstrap_ratio(error, spread, episode.numpy()), accuracy)


def pixel_features(
    train: UInt8[Tensor, "n t c h w"], test: UInt8[Tensor, "m t c h w"], width: int
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "m d"]]:
    """Principal components, fitted on the training split, of the first frame and of the change: a reference without a model.

    ``width`` components in all, the width of the latent, so that the comparison is at equal width.
    """

    def small(frames: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b c 24 24"]:
        return torch.nn.functional.interpolate(to_float(frames), (24, 24), mode="area")

    return _pair_components(small, train, test, width)


def plain_features(
    space: PretrainedFeatures, train: UInt8[Tensor, "n t c h w"], test: UInt8[Tensor, "m t c h w"], width: int
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "m d"]]:
    """As :func:`pixel_features`, of a frozen encoder's features, averaged over areas to a grid of at most 7x7 places: what a LAM on these
    features is to be compared with."""
    assert space.grid is not None
    grid = min(space.grid[0], 7), min(space.grid[1], 7)

    def small(frames: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b d y x"]:
        return torch.nn.functional.adaptive_avg_pool2d(space.plain(frames), grid).cpu()

    return _pair_components(small, train, test, width)


def _pair_components(
    small: Callable[[Tensor], Float[Tensor, "b ..."]],
    train: UInt8[Tensor, "n t c h w"],
    test: UInt8[Tensor, "m t c h w"],
    width: int,
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "m d"]]:
    """Principal components of what ``small`` makes of the first frame, and of its change to the second: ``width`` in all."""

    from sklearn.decomposition import PCA  # here: sklearn takes a second to import

    def halves(frames: UInt8[Tensor, "n t c h w"]) -> list[Float[Tensor, "n p"]]:
        first, second = (in_batches(small, frames[:, n], size=256).flatten(1) for n in (0, 1))
        return [first, second - first]

    out_train, out_test = [], []
    for a, b, n in zip(halves(train), halves(test), (width - width // 2, width // 2), strict=True):
        pca = PCA(max(1, min(n, len(a) - 1)), whiten=True, random_state=0).fit(a)
        out_train.append(torch.from_numpy(pca.transform(a)).float())
        out_test.append(torch.from_numpy(pca.transform(b)).float())
    return torch.cat(out_train, 1), torch.cat(out_test, 1)
