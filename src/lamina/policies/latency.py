"""How long does one decision take, for each number of predicted codes? (FlexLAM App. B.6)"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from lamina.policies.token_policy import TokenPolicy

ROUND = 10  # timed decisions of one k in a row


def decision_latency(policy: TokenPolicy, ks: Sequence[int], warmup: int = 20, timed: int = 100) -> dict[int, float]:
    """Mean wall-clock milliseconds of a decision, for each k. See :func:`decision_times`."""
    return {k: float(np.mean(times)) for k, times in decision_times(policy, ks, warmup, timed).items()}


def decision_times(
    policy: TokenPolicy, ks: Sequence[int], warmup: int = 20, timed: int = 100
) -> dict[int, list[float]]:
    """Wall-clock milliseconds of ``timed`` calls of ``act_batch`` with a full context, for each k.

    Everything from the uint8 frame to the action is timed. The context is filled first; each k then decides ``warmup`` times
    untimed. The timed decisions come in rounds in which every k has its turn, so that what else the machine does meets them all.
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
    for _ in range(policy.tokens.config.context + policy.tokens.config.stride):
        decide(ks[0])
    for k in ks:
        for _ in range(warmup):
            decide(k)
    taken: dict[int, list[float]] = {k: [] for k in ks}
    for start in range(0, timed, ROUND):
        for k in ks:
            decide(k)  # the first one after another k finds other things in the caches of the processor
            taken[k] += [decide(k) for _ in range(min(ROUND, timed - start))]
    return taken
