"""The ten statistics that LeRobotDataset v3.0 keeps of every feature, by episode and for the whole set."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
PIXELS = 150
STATISTICS = ("min", "max", "mean", "std", "count", *QUANTILES)
Statistics = dict[str, np.ndarray]


def column_statistics(values: Shaped[np.ndarray, "t d"]) -> Statistics:
    """Statistics of a numeric feature, [d] each and count [1]; zeros with count 0 if there is no row.

    The extremes of whole numbers are whole numbers, as LeRobot has them.
    """
    x = values.astype(np.float64)
    exact = values if values.dtype.kind in "iu" else x
    if len(x) == 0:
        zeros = {s: np.zeros(x.shape[1]) for s in STATISTICS}
        none = np.zeros(x.shape[1], exact.dtype)
        return {**zeros, "min": none, "max": none, "count": np.array([0])}
    return {
        "min": exact.min(0),
        "max": exact.max(0),
        "mean": x.mean(0),
        "std": x.std(0),
        "count": np.array([len(x)]),
        **dict(zip(QUANTILES, np.quantile(x, list(QUANTILES.values()), axis=0), strict=True)),
    }


def pixel_histogram(frame: UInt8[np.ndarray, "h w c"]) -> Int[np.ndarray, "c 256"]:
    """How often each 8-bit value occurs in each channel; large frames are thinned to about PIXELS a side."""
    step = max(1, round(max(frame.shape[:2]) / PIXELS))
    channels = frame[::step, ::step].reshape(-1, frame.shape[2]).T
    return np.stack([np.bincount(c, minlength=256) for c in channels])


def pixel_statistics(histogram: Int[np.ndarray, "c 256"], frames: int) -> Statistics:
    """Statistics of pictures in [0, 1] from counts of their 8-bit values, [c, 1, 1] each and count [1] = frames."""
    levels = np.arange(256) / 255.0
    total = histogram.sum(1)
    mean = histogram @ levels / total
    cumulative = np.cumsum(histogram, axis=1)

    def quantile(q: float) -> Float[np.ndarray, "c"]:
        return np.array([levels[np.searchsorted(c, q * c[-1])] for c in cumulative])

    values = {
        "min": np.array([levels[np.flatnonzero(h)[0]] for h in histogram]),
        "max": np.array([levels[np.flatnonzero(h)[-1]] for h in histogram]),
        "mean": mean,
        "std": np.sqrt(np.maximum(histogram @ levels**2 / total - mean**2, 0.0)),
        **{name: quantile(q) for name, q in QUANTILES.items()},
    }
    return {"count": np.array([frames]), **{name: v[:, None, None] for name, v in values.items()}}


def merge_statistics(a: Statistics | None, b: Statistics) -> Statistics:
    """Statistics of two sets together. Quantiles are averaged by count, as LeRobot does; all others are exact."""
    if a is None or a["count"][0] == 0:
        return b
    if b["count"][0] == 0:
        return a
    count = a["count"] + b["count"]
    wa, wb = a["count"][0] / count[0], b["count"][0] / count[0]
    mean = wa * a["mean"] + wb * b["mean"]
    variance = wa * (a["std"] ** 2 + (a["mean"] - mean) ** 2) + wb * (b["std"] ** 2 + (b["mean"] - mean) ** 2)
    return {
        "min": np.minimum(a["min"], b["min"]),
        "max": np.maximum(a["max"], b["max"]),
        "mean": mean,
        "std": np.sqrt(variance),
        "count": count,
        **{q: wa * a[q] + wb * b[q] for q in QUANTILES},
    }
