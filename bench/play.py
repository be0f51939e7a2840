"""Frames a second of `lamina play`: steps of Drive as a browser asks for them, over HTTP, each with its PNG and the reading of its action.

    python bench/play.py [--threads 2] [--sizes tiny small] [--steps 200]      wall time; stop all other work first

FlexLAM with a U-Net at 64 px, random weights, K = 16. A session of 25 steps is driven again and again from other starts, so that no
frame is known beforehand. Target: 10 frames a second on two cores for the size tiny.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from lamina import methods
from lamina.data.memory import InMemoryDataset
from lamina.models.hub import LatentActionModel
from lamina.play.server import HOST, listen, server_of
from lamina.play.session import Player
from lamina.play.stage import Stage

SIDE, SLOTS, LENGTH = 64, 16, 25


def frames_a_second(size: str, steps: int) -> tuple[float, float, float]:
    """Frames a second of steps one after the other; the median step, and the decoder's part of it, milliseconds."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    episodes = [SimpleNamespace(frames=rng.integers(0, 256, (20, SIDE, SIDE, 3), dtype=np.uint8)) for _ in range(20)]
    method = methods.load("flexlam")
    config = method.build(method.Config(size=size, image=(SIDE, SIDE), slots=SLOTS, decoder="unet"))
    with tempfile.TemporaryDirectory() as folder:
        LatentActionModel(config).save_pretrained(folder)
        stage = Stage.load(Path(folder), InMemoryDataset(episodes), transitions=64)
    socket_ = listen(0)
    player = Player(stage)
    server = server_of(player, "bench")
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket_]}, daemon=True)
    thread.start()
    connection = http.client.HTTPConnection(HOST, socket_.getsockname()[1])
    taken, decoded = [], []
    for number in range(steps + 10):
        start, moves = number // LENGTH, number % LENGTH + 1
        session = {"start": f"d{start}", "moves": [f"{(start + n) % len(stage.clip)}@{SLOTS}" for n in range(moves)]}
        began = time.perf_counter()
        connection.request("POST", "/bench/roll", json.dumps({"sessions": [session]}))
        answer = json.loads(connection.getresponse().read())
        taken.append(time.perf_counter() - began)
        decoded.append(answer["milliseconds"])
    connection.close()
    server.should_exit = True
    thread.join()
    socket_.close()
    taken, decoded = taken[10:], decoded[10:]  # warm
    return steps / sum(taken), 1e3 * statistics.median(taken), statistics.median(decoded)


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--sizes", nargs="+", default=["tiny", "small"])
    arguments.add_argument("--steps", type=int, default=200)
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{options.threads} thread(s), torch {torch.__version__}")
    print(f"{'size':<6} {'frames a second':>16} {'step, ms (median)':>18} {'decoder, ms (median)':>21}")
    for size in options.sizes:
        rate, step, decoder = frames_a_second(size, options.steps)
        print(f"{size:<6} {rate:>16.1f} {step:>18.1f} {decoder:>21.1f}", flush=True)


if __name__ == "__main__":
    main()
