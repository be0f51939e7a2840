"""Encoding and training speed at a fixed size: width 384, 64 tokens per frame, 6 heads, 3+3 encoder and 3 decoder layers.

    python bench/model.py            one thread; prints a table in CPU seconds, not wall time

Lamina trains and encodes windows of eight frames, so that seven pairs share their embeddings. The reference has LAPA's architecture, made
of torch.nn.TransformerEncoder: each pair embeds both of its frames and reads them with three joint layers. Matrix products of the same
run show the speed of the processor in each precision: without AVX-512 bf16 or AMX, bf16 is slower than fp32.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lamina.images import to_float
from lamina.losses.reconstruction import total
from lamina.methods import ac_lam, alam, lapa
from lamina.models.bottlenecks.fsq import FSQ
from lamina.models.config import LAMConfig
from lamina.models.decoders.flow import FlowDecoder
from lamina.models.decoders.pixel import PixelDecoder
from lamina.models.encoders.transformer import TransformerEncoder
from lamina.models.lam import LAM
from lamina.models.layers import patchify
from lamina.rng import Rng
from lamina.types import Clip

WINDOWS, FRAMES, SIDE, WIDTH, HEADS, LAYERS, SLOTS = 2, 8, 64, 384, 6, 3, 16
PAIRS = [(i, i + 1) for i in range(FRAMES - 1)]
ROUNDS = 5


def cpu_seconds(*works: Callable[[], object]) -> list[float]:
    """Median CPU seconds per call of each function; calls are interleaved over ROUNDS rounds, after a warm-up."""
    for work in works:
        work()
    figures: list[list[float]] = [[] for _ in works]
    for _ in range(ROUNDS):
        for figure, work in zip(figures, works, strict=True):
            began = time.process_time()
            work()
            figure.append(time.process_time() - began)
    return [statistics.median(figure) for figure in figures]


class PairwiseReference(nn.Module):
    """LAPA's architecture from torch's layers: frame layers on both frames, joint layers on the pair, pixel decoder."""

    def __init__(self) -> None:
        super().__init__()

        def stack() -> nn.Module:
            layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, 0.0, "gelu", batch_first=True, norm_first=True)
            return nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)

        self.patch = nn.Linear(3 * 64, WIDTH)
        self.frame, self.joint, self.decoder = stack(), stack(), stack()
        self.latent, self.back, self.head = nn.Linear(WIDTH, 5), nn.Linear(5, WIDTH), nn.Linear(WIDTH, 3 * 64)

    def encode(self, src: Tensor, dst: Tensor) -> Tensor:
        first, second = (self.frame(self.patch(patchify(x, 8))) for x in (src, dst))
        return self.latent(self.joint(torch.cat([first, second], dim=1))[:, -SLOTS:])

    def loss(self, src: Tensor, dst: Tensor) -> Tensor:
        tokens = torch.cat([self.back(self.encode(src, dst)), self.patch(patchify(src, 8))], dim=1)
        return (self.head(self.decoder(tokens)[:, SLOTS:]) - patchify(dst, 8)).square().mean()


def training_step(module: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def matrix_speed(dtype: torch.dtype) -> float:
    """GFLOP/s of a matrix product with the models' shapes."""
    a, b = torch.randn(2048, WIDTH).to(dtype), torch.randn(WIDTH, 4 * WIDTH).to(dtype)
    return 2 * 2048 * WIDTH * 4 * WIDTH / cpu_seconds(lambda: a @ b)[0] / 1e9


def lamina(decoder: type[nn.Module]) -> LAM:
    return LAM(
        LAMConfig(
            (3, SIDE, SIDE),
            SLOTS,
            TransformerEncoder.Config(8, WIDTH, HEADS, LAYERS, LAYERS),
            FSQ.Config(),
            decoder.Config(8, WIDTH, HEADS, LAYERS),  # type: ignore[operator]
            "uniform",
        )
    )


def reconstruction(lam: LAM, clip: Clip, keep: Tensor) -> Tensor:
    """The loss of a LAM on the pairs of windows, encoding included."""
    view = lam.view(clip)
    return lam.reconstruction(view, lam.encode(view, PAIRS).own, keep, Rng(0)).mean()


def triplets() -> None:
    """Time of a training step on triplets relative to one on pairs, with the same batch size and codebook (target: at most 2.2)."""
    print(f"\n{'one training step of 16 samples':<62} {'CPU-s':>8} {'of one pair':>12}")
    options: dict[str, Any] = {
        "width": WIDTH,
        "heads": HEADS,
        "layers": LAYERS,
        "image": (SIDE, SIDE),
        "encoder": "transformer",
        "slots": 32,
        "code_dim": 4,
        "codebook_size": 7,
    }
    steps: dict[str, Callable[[], None]] = {}
    for label, method, config in (
        ("one pair", lapa, lapa.Config(**options)),
        ("four pairs of a triplet (ALAM), one of them decoded", alam, alam.Config(**options, decoded="one")),
        ("four pairs of a triplet (ALAM), three of them decoded", alam, alam.Config(**options)),
        (
            "three pairs of a triplet and their sum (AC-LAM), all decoded",
            ac_lam,
            ac_lam.Config(**options, proprio=None),
        ),
    ):
        lam = LAM(method.build(config)).train()
        shape = (16, config.frames)
        pictures = torch.randint(0, 256, (*shape, 3, SIDE, SIDE), dtype=torch.uint8)
        clip = Clip(
            pictures, torch.zeros(shape), torch.zeros(shape, dtype=torch.long), torch.zeros(16, dtype=torch.long)
        )
        losses, weights = method.losses(config), method.weights(config)
        steps[label] = training_step(
            lam,
            lambda lam=lam, clip=clip, f=losses, w=weights: total(f(lam, lam.view(clip), Rng(0)).terms, w),  # type: ignore[misc]
        )
    seconds = cpu_seconds(*steps.values())
    for label, own in zip(steps, seconds, strict=True):
        print(f"{label:<62} {own:>8.3f} {own / seconds[0]:>12.2f}", flush=True)


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    pictures, zeros = torch.randint(0, 256, (WINDOWS, FRAMES, 3, SIDE, SIDE)), torch.zeros(WINDOWS, FRAMES)
    clip = Clip(pictures.to(torch.uint8), zeros, zeros.long(), zeros[:, 0].long())
    frames = to_float(clip.frames)
    src, dst = frames[:, :-1].flatten(0, 1), frames[:, 1:].flatten(0, 1)
    pairs = WINDOWS * len(PAIRS)
    keep = torch.full((WINDOWS,), SLOTS)
    print(f"{'model':<44} {'precision':<9} {'encoded pairs / CPU-s':>22} {'training CPU-s / pair':>22}")
    for name, bf16 in (("fp32", False), ("bf16", True)):

        def precise(work: Callable[[], Tensor], bf16: bool = bf16) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                return work()

        def row(
            label: str, module: nn.Module, encode: Callable[[], Tensor], loss: Callable[[], Tensor], name: str = name
        ) -> None:
            with torch.inference_mode():
                encoded = pairs / cpu_seconds(lambda: precise(encode))[0]
            trained = cpu_seconds(training_step(module, lambda: precise(loss)))[0] / pairs
            print(f"{label:<44} {name:<9} {encoded:>22.1f} {trained:>22.4f}", flush=True)

        for decoder in (PixelDecoder, FlowDecoder):
            lam = lamina(decoder)
            row(
                f"Lamina, windows of 8, {decoder.__name__}",
                lam,
                lambda lam=lam: lam.encode(lam.view(clip), PAIRS).own[0, 1].post,  # type: ignore[misc]
                lambda lam=lam: reconstruction(lam, clip, keep),  # type: ignore[misc]
            )
        peer = PairwiseReference()
        row(
            "reference: LAPA's layout, torch.nn",
            peer,
            lambda peer=peer: peer.encode(src, dst),  # type: ignore[misc]
            lambda peer=peer: peer.loss(src, dst),  # type: ignore[misc]
        )
    triplets()
    for dtype in (torch.float32, torch.bfloat16):
        print(f"matrix products of this processor, one thread, {dtype}: {matrix_speed(dtype):.0f} GFLOP/s")


if __name__ == "__main__":
    main()
