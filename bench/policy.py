"""Time per decision of the token policy for every k, compared with transformers' generate on the same weights; and the flow policy's speed.

    python bench/policy.py [--threads 1] [--sizes tiny small]          wall time; stop all other work first
    python bench/policy.py --only flow                                 the flow policy alone

Flow policy: two cameras of 64 px, H = 8, 8 Euler steps, batch 1; training on batches of 64 in memory. Targets: a decision in at most 25 ms
on one core, and 10 training steps a second on two.

Protocol of FlexLAM App. B.6: 20 decisions of warm-up, 100 timed, batch 1, K = 64 slots, a full context of 34 frames, random weights.
A decision spans everything from the uint8 frame to the action. The reference uses the same LAM, observation tokens, codes and translator.
Its transformer is Qwen3ForCausalLM with the same weights, and generate predicts the codes greedily, in two ways:
    cached        the history is in a static cache, which is reset after each decision. A static cache cannot drop old keys, so it cannot
                  follow a sliding context as Lamina's does.
    from scratch  generate's default: the whole context is computed for each decision
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lamina import methods
from lamina.images import to_float
from lamina.models.heads import Translator, TranslatorConfig
from lamina.models.hub import LatentActionModel
from lamina.policies.base import Observations
from lamina.policies.flow.config import FlowConfig, FlowShapes
from lamina.policies.flow.context import Context
from lamina.policies.flow.model import FlowBatch, FlowModel, flow_losses
from lamina.policies.flow.policy import FlowPolicy
from lamina.policies.latency import decision_times
from lamina.policies.token_model import TokenConfig, TokenModel
from lamina.policies.token_policy import TokenPolicy
from lamina.rng import Rng
from lamina.types import ActionSpec

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
SIDE, SLOTS = 64, 64
WARMUP, TIMED, ROUNDS = 20, 100, 5


def parts(size: str) -> tuple[LatentActionModel, TokenModel, Translator]:
    """A FlexLAM, a token model and a translator of one size, with random weights."""
    torch.manual_seed(0)
    method = methods.load("flexlam")
    model = LatentActionModel(method.build(method.Config(size=size, image=(SIDE, SIDE), slots=SLOTS)))
    codes: int = model.lam.bottleneck.codebook_size  # type: ignore[assignment]
    tokens = TokenModel(TokenConfig(size=size), (3, SIDE, SIDE), SLOTS, codes)  # type: ignore[arg-type]
    translator = Translator(SLOTS * model.lam.dim, ActionSpec((18,)), TranslatorConfig(size=size))  # type: ignore[arg-type]
    return model, tokens, translator


class Peer:
    """The reference policy, which predicts codes with generate. Its history is random and as long as a full context."""

    def __init__(self, model: LatentActionModel, tokens: TokenModel, translator: Translator):
        from transformers import StaticCache

        from qwen3 import qwen3

        self.lam, self.tokens, self.translator = model.lam.eval(), tokens.eval(), translator.eval()
        self.core = qwen3(tokens.core, tokens.code.weight, tokens.head.weight, "sdpa")
        c = tokens.config
        frames = range(1, c.context)  # one of the possible positions of the context relative to the stride
        length = (c.context - 2) * tokens.slots + sum(u % c.stride == 0 for u in frames) * tokens.patches
        self.history = torch.randn(1, length, c.core().width)
        self.full = length + 2 * tokens.slots + tokens.patches
        self.cache = StaticCache(config=self.core.config, max_cache_len=self.full)
        with torch.inference_mode():
            self.core(inputs_embeds=self.history, past_key_values=self.cache, use_cache=True)
        self.features: Tensor | None = None

    @torch.inference_mode()
    def act(self, frame: np.ndarray, k: int, cached: bool) -> np.ndarray:
        lam, tokens = self.lam, self.tokens
        picture = torch.from_numpy(frame)[None]
        features = lam.embed(to_float(picture.permute(0, 3, 1, 2)))
        before = features if self.features is None else self.features
        block = lam.pair(before, features).index
        self.features = features
        context = torch.cat([self.history, tokens.embed(block), tokens.observe(picture)], dim=1)
        options = {"max_new_tokens": k, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
        if cached:
            for layer in self.cache.layers:
                layer.cumulative_length.fill_(self.history.shape[1])
            codes = self.core.generate(inputs_embeds=context, past_key_values=self.cache, **options)
        else:
            codes = self.core.generate(inputs_embeds=context, cache_implementation="static", **options)
        assert codes.shape == (1, k)
        filled = torch.zeros(1, tokens.slots, dtype=torch.long)
        filled[:, :k] = codes
        z = lam.prefix(lam.index_to_codes(filled), k)
        action = self.translator.action
        return action.read(self.translator(z, torch.zeros(1, action.spec.dim))).numpy()


def flow_speed(size: str, latents: str) -> tuple[list[float], dict[str, list[float]]]:
    """Milliseconds of a decision of the flow policy, and of a training step in each precision."""
    config = FlowConfig(size=size, latents=latents)  # type: ignore[arg-type]
    cameras, numbers = ("third", "wrist"), 64 if latents == "lam" else 0
    shapes = FlowShapes(
        (3, SIDE, SIDE), cameras, (), 4, (), 4, numbers, 8, 1, 80.0, ("reach",), ("action", "observation.state"), ""
    )
    torch.manual_seed(0)
    model = FlowModel(config, shapes)
    rows = 64
    frames = torch.randint(0, 256, (rows, 2, 1, 3, SIDE, SIDE), dtype=torch.uint8)
    context = Context(frames, torch.randn(rows, 1, 4), ("reach",) * rows)
    valid = torch.ones(rows, config.actions, dtype=torch.bool)
    latent = torch.randn(rows, config.actions, 2, numbers)
    batch = FlowBatch(context, torch.randn(rows, config.actions, 4), valid, latent, valid)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step(bf16: bool) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            losses = flow_losses(model, batch, Rng(0))
        sum(loss.mean() for loss in losses.values()).backward()  # type: ignore[union-attr]
        optimizer.step()
        optimizer.zero_grad()

    steps: dict[str, list[float]] = {"fp32": [], "bf16": []}
    for _ in range(4):  # taking turns, so that other load on the machine affects both
        for precision, taken in steps.items():
            taken += milliseconds(partial(step, precision == "bf16"), 5)
    policy = FlowPolicy(model)
    seen = {camera: frames[:1, i, 0].permute(0, 2, 3, 1).numpy() for i, camera in enumerate(cameras)}
    observations = Observations(seen, np.zeros((1, 4), np.float32), ("reach",))
    return milliseconds(partial(policy.act, observations), TIMED), steps


def flow_table(sizes: list[str]) -> None:
    """Print the flow policy's speed."""
    print(
        f"{'size':<6} {'latents':<8} {'decision, ms (median)':>22} {'training, steps/s: fp32':>24} {'bf16 (median)':>16}"
    )
    for size in sizes:
        for latents in ("none", "lam"):
            decisions, steps = flow_speed(size, latents)
            rates = {precision: 1e3 / statistics.median(taken) for precision, taken in steps.items()}
            print(
                f"{size:<6} {latents:<8} {statistics.fmean(decisions):>14.1f} ({statistics.median(decisions):.1f}) "
                f"{rates['fp32']:>24.1f} {rates['bf16']:>16.1f}",
                flush=True,
            )


def milliseconds(work: Callable[[], object], times: int) -> list[float]:
    """Milliseconds of each of ``times`` calls, after one call of warm-up."""
    taken = []
    work()
    for _ in range(times):
        began = time.perf_counter()
        work()
        taken.append(1e3 * (time.perf_counter() - began))
    return taken


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments.add_argument("--sizes", nargs="+", default=["tiny", "small"])
    arguments.add_argument("--ks", type=int, nargs="+", default=[1, 4, 16, 64])
    arguments.add_argument("--only", choices=("tokens", "flow"))
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    if options.only != "tokens":
        flow_table(options.sizes)
    if options.only != "flow":
        token_table(options)


def token_table(options: argparse.Namespace) -> None:
    """Print the token policy's milliseconds beside the reference's."""
    print(f"{options.threads} thread(s), torch {torch.__version__}; ms a decision, mean (median)")
    print(
        f"{'size':<6} {'k':>3} {'lamina':>16} {'k = 64 / k':>10} {'generate, cached':>18} {'x':>6} {'from scratch':>16} {'x':>6}"
    )
    for size in options.sizes:
        model, tokens, translator = parts(size)
        policy, peer = TokenPolicy(model, tokens, translator), Peer(model, tokens, translator)
        ours = decision_times(policy, options.ks, WARMUP, TIMED)
        longest = statistics.fmean(ours[max(ours)])
        frame = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        for k in sorted(options.ks):
            # Measured again, interleaved with the reference, so that other load on the machine affects both.
            again, cached, scratch = [], [], []
            for _ in range(ROUNDS):
                again += milliseconds(partial(policy.act, frame, k), TIMED // ROUNDS)
                cached += milliseconds(partial(peer.act, frame, k, True), 4)
                scratch += milliseconds(partial(peer.act, frame, k, False), 1)
            mine = statistics.fmean(again)
            mean, median = statistics.fmean(ours[k]), statistics.median(ours[k])
            print(
                f"{size:<6} {k:>3} {mean:>8.2f} ({median:.2f}) {longest / mean:>9.2f}x "
                f"{statistics.fmean(cached):>9.2f} ({statistics.median(cached):.2f}) {statistics.fmean(cached) / mine:>5.1f}x "
                f"{statistics.fmean(scratch):>9.2f} ({statistics.median(scratch):.2f}) {statistics.fmean(scratch) / mine:>5.1f}x",
                flush=True,
            )


if __name__ == "__main__":
    main()
