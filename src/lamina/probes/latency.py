"""How long does one decision take, for each number of predicted codes? (FlexLAM App. B.6)"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from lamina.policy.latent import LatentPolicy

ROUND = 10  # timed decisions of one k in a row


def decision_latency(policy: LatentPolicy, ks: Sequence[int], warmup: int = 20, timed: int = 100) -> dict[str, Any]:
    """Wall-clock milliseconds of one ``act_batch`` with a full context, for each k: a JSON-able record.

    Everything from the uint8 frame to the action is timed. The context is filled first; each k then decides ``warmup`` times untimed. The
    ``timed`` decisions come in rounds in which every k has its turn, so that what else the machine does meets them all.
    ``latency[k]``: mean, its standard error and median, ms; ``speedup[k]``: mean of the largest k over mean of k.
    """
    ks = sorted({policy.check_k(k) for k in ks})
    height, width = policy.image[1:]
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (16, policy.batch, height, width, 3), dtype=np.uint8)
    decided = 0

    def decide(k: int) -> float:
        nonlocal decided
        decided += 1
        began = time.perf_counter()
        policy.act_batch(frames[decided % len(frames)], k)  # returns an array, so an accelerator has finished
        return 1e3 * (time.perf_counter() - began)

    policy.reset()
    context = policy.tokens.config.context
    for _ in range(context + policy.tokens.config.stride):
        decide(ks[0])
    for k in ks:
        for _ in range(warmup):
            decide(k)
    taken: dict[int, list[float]] = {k: [] for k in ks}
    for start in range(0, timed, ROUND):
        for k in ks:
            decide(k)  # the first one after another k finds other things in the caches of the processor
            taken[k] += [decide(k) for _ in range(min(ROUND, timed - start))]
    mean = {k: float(np.mean(taken[k])) for k in ks}
    return {
        "latency": {
            str(k): {
                "mean": mean[k],
                "standard_error": float(np.std(taken[k], ddof=1) / len(taken[k]) ** 0.5) if timed > 1 else None,
                "median": float(np.median(taken[k])),
            }
            for k in ks
        },
        "speedup": {str(k): mean[ks[-1]] / mean[k] for k in ks},
        "unit": "ms",
        "decisions": timed,
        "warmup": warmup,
        "batch": policy.batch,
        "context": context,
        "slots": policy.tokens.slots,
        "patches": policy.tokens.patches,
        "device": str(policy.device),
        "threads": torch.get_num_threads(),
    }
