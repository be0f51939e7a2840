"""Throughput of labelling an mp4 end to end, and the share of a training step spent waiting for data.

    python bench/pipeline.py         wall seconds; stop all other work first

Labelling: decoding alone, encoding alone, and both together as in `lamina label`. The target is 80% of the slower one.
Training: `data_wait` of the log, the share of each step between requesting and receiving a batch, median over the run.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch

from lamina import methods
from lamina.data.sampling import DataConfig, open_source
from lamina.inference.encode import CHUNK, encode_episode, frame_pairs
from lamina.inference.label import label
from lamina.models.hub import LatentActionModel, Provenance
from lamina.training.pretraining import pretrain
from lamina.training.recipe import recipe
from lamina.training.settings import TrainConfig

FPS, ROUNDS = 30, 2


def write_video(path: Path, height: int, width: int, frames: int) -> None:
    """Write a video of moving smooth noise, which is as costly to decode as a panning camera."""
    rng = np.random.default_rng(0)
    canvas = np.kron(rng.integers(0, 255, (height // 8, width // 4, 3)), np.ones((16, 16, 1))).astype(np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(FPS))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for t in range(frames):
            x, y = (3 * t) % (canvas.shape[1] - width), (t // 2) % (canvas.shape[0] - height)
            picture = np.ascontiguousarray(canvas[y : y + height, x : x + width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def seconds(work: object) -> float:
    began = time.perf_counter()
    work()  # type: ignore[operator]
    return time.perf_counter() - began


def labelling(folder: Path, model_options: dict[str, object], side: tuple[int, int], count: int) -> str:
    flexlam = methods.load("flexlam")
    config = flexlam.build(flexlam.Config(**model_options))
    model = LatentActionModel(config, Provenance("flexlam")).eval()
    run = folder / "run"
    model.save_pretrained(run)
    videos = folder / "videos"
    videos.mkdir(exist_ok=True)
    write_video(videos / "a.mp4", *side, count)
    source = open_source(videos)
    (episode,) = source.episodes
    size = config.image[1:]
    frames = np.zeros((CHUNK, *size, 3), np.uint8)
    partner, _ = frame_pairs(episode.times, model.provenance.label_gap)

    def decode() -> None:
        for start in range(0, episode.length, CHUNK):
            source.frames(episode, source.cameras[0], start, min(start + CHUNK, episode.length), size)

    def encode() -> None:
        chunks = (frames[: min(CHUNK, episode.length - i)] for i in range(0, episode.length, CHUNK))
        encode_episode(model, chunks, partner)

    def both() -> None:
        out = folder / f"out-{time.monotonic_ns()}"
        label(run, str(videos), out)

    rates = {
        name: count / statistics.median(seconds(work) for _ in range(ROUNDS))
        for name, work in (("decode", decode), ("encode", encode), ("both", both))
    }
    share = rates["both"] / min(rates["decode"], rates["encode"])
    return (
        f"{side[1]}x{side[0]} h264, {model_options['size']} {config.image[1]} px: decode {rates['decode']:.0f}, "
        f"encode {rates['encode']:.0f}, label {rates['both']:.0f} frames/s = {share:.0%} of the slower"
    )


def waiting(folder: Path) -> str:
    flexlam = methods.load("flexlam")
    options = flexlam.Config(size="tiny", image=(48, 48), decoder="unet")
    data = DataConfig((str(folder / "videos"),), options.image)
    config = TrainConfig(steps=60, batch=64, device="cpu", log_every=1, validate_every=60, checkpoint_every=60)
    run = folder / "training"
    pretrain(run, recipe("flexlam", flexlam, options), data, config)
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()][10:]
    waits = [row["data_wait"] for row in rows]
    rate = statistics.median(row["samples_per_second"] for row in rows)
    return (
        f"training, tiny 48 px, batch 64: {rate:.0f} pairs/s, waiting for data {statistics.median(waits):.2%} of a step"
    )


def main() -> None:
    # One core computes, the other one decodes.
    torch.set_num_threads(1)
    print(f"{os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        small = {"size": "small", "image": (64, 64), "encoder": "transformer"}
        # Long enough that opening the model and closing the files take little of the time; the small encoder is 40 times slower.
        for number, (options, count) in enumerate(((small, 600), ({"size": "tiny"}, 3000))):
            place = folder / str(number)
            place.mkdir()
            print(labelling(place, options, (480, 640), count), flush=True)  # type: ignore[arg-type]
        print(waiting(folder / "0"), flush=True)


if __name__ == "__main__":
    main()
