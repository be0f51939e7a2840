"""Encoding for labels by an exported graph: torch against torch.compile, ONNX Runtime and OpenVINO, one thread, CPU seconds.

    pip install onnx onnxscript onnxruntime openvino
    python bench/exported.py

Pairs of windows of eight frames, encoder and quantiser, from uint8 frames to codes. `tiny` is what `lamina train flexlam --size tiny`
makes, `matched` the transformer of bench/model.py. The last column is the share of the codes' numbers that differ from torch's in fp32.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import openvino
import torch
from model import FRAMES, PAIRS, SIDE, cpu_seconds, lamina
from torch import Tensor, nn

from lamina.methods import flexlam
from lamina.models.decoders.pixel import PixelDecoder
from lamina.models.lam import LAM
from lamina.types import Clip


class Codes(nn.Module):
    """Frames (uint8 [n 8 3 h w]) to the quantised codes of their neighbouring pairs."""

    def __init__(self, lam: LAM):
        super().__init__()
        self.lam = lam.eval()

    def forward(self, frames: Tensor) -> Tensor:
        shape = frames.shape[:2]
        clip = Clip(
            frames, torch.zeros(shape), torch.zeros(shape, dtype=torch.long), torch.zeros(shape[0], dtype=torch.long)
        )
        return torch.cat([pair.post for pair in self.lam.encode(self.lam.view(clip), PAIRS).own.values()])


def ways(codes: Codes, frames: Tensor, folder: Path) -> dict[str, Callable[[], np.ndarray]]:
    """Every way to compute the codes of ``frames``."""
    path = folder / "codes.onnx"
    torch.onnx.export(codes, (frames,), str(path), dynamo=True, verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options)
    name, given = session.get_inputs()[0].name, frames.numpy()
    compiled, core = torch.compile(codes, dynamic=False), openvino.Core()
    found: dict[str, Callable[[], np.ndarray]] = {
        "torch": lambda: codes(frames).numpy(),
        "torch.compile": lambda: compiled(frames).numpy(),
        "ONNX Runtime": lambda: session.run(None, {name: given})[0],
    }
    for precision in ("f32", "bf16"):
        hints = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": precision}
        graph = core.compile_model(core.read_model(path), "CPU", hints)
        found[f"OpenVINO, {precision}"] = lambda graph=graph: graph([given])[0]  # type: ignore[misc]

    def by_autocast() -> np.ndarray:
        with torch.autocast("cpu", torch.bfloat16):
            return codes(frames).float().numpy()

    return found | {"torch, bf16": by_autocast}


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"{'model':<8} {'by':<16} {'pairs / CPU-s':>14} {'times torch':>12} {'other codes':>12}")
    tiny = LAM(flexlam.build(flexlam.Config(size="tiny", image=(SIDE, SIDE))))
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        for label, lam, windows in (("tiny", tiny, 8), ("matched", lamina(PixelDecoder), 2)):
            frames = torch.randint(0, 256, (windows, FRAMES, 3, SIDE, SIDE), dtype=torch.uint8)
            works = ways(Codes(lam), frames, Path(folder))
            expected = works["torch"]()
            seconds = cpu_seconds(*works.values())
            for (name, work), second in zip(works.items(), seconds, strict=True):
                other = float((work() != expected).mean())
                print(
                    f"{label:<8} {name:<16} {windows * len(PAIRS) / second:>14.0f} {seconds[0] / second:>12.2f} {other:>12.2%}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
