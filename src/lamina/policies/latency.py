"""Time of one decision for each number of predicted codes (FlexLAM App. B.6)."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from lamina.policies.token_policy import TokenPolicy

ROUND = 10  # timed decisions of one k in a row


def decision_times(
    policy: TokenPolicy, ks: Sequence[int], warmup: int = 20, timed: int = 100
) -> dict[int, list[float]]:
    """Wall-clock milliseconds of ``timed`` calls of ``act_batch`` with a full context, for each k.

    Everything from the uint8 frame to the action is timed. The context is filled first; each k then decides ``warmup`` times
    untimed. The timed decisions come in rounds of every k, so that other load on the machine affects all alike.
    """
    for k in ks:
        policy.check_k(k)
    ks = sorted(set(ks))
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
            decide(k)  # untimed: after another k the processor's caches are cold
            taken[k] += [decide(k) for _ in range(min(ROUND, timed - start))]
    return taken
