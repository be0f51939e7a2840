"""A training step with every core's thread, alone and beside one other computing process, by OpenMP's number of spins.

    python bench/threads.py

Stop all other work first. Each line is a process of its own, because OpenMP reads the setting once.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

STEP = """
import time, torch
from lamina.methods import flexlam
from lamina.models.lam import LAM
from lamina.rng import Rng
from lamina.types import Clip

config = flexlam.Config(size="tiny", image=(48, 48), decoder="unet", slots=8)
lam, losses = LAM(flexlam.build(config)), flexlam.losses(config)
frames = torch.randint(0, 256, (32, 2, 3, 48, 48), dtype=torch.uint8)
clip = Clip(frames, torch.zeros(32, 2), torch.zeros(32, 2, dtype=torch.long), torch.zeros(32, dtype=torch.long))

def step(n):
    losses(lam, lam.view(clip), Rng(0, n)).terms["reconstruction"].mean().backward()
    lam.zero_grad()

step(0)
began, done = time.perf_counter(), 0
while time.perf_counter() - began < 5:
    step(done)
    done += 1
print(f"{1000 * (time.perf_counter() - began) / done:.1f}")
"""


def measured(spins: str) -> str:
    """Milliseconds of a step."""
    environment = {**os.environ, "GOMP_SPINCOUNT": spins} if spins else os.environ
    return subprocess.run(
        [sys.executable, "-c", STEP], env=environment, capture_output=True, text=True, check=True
    ).stdout.strip()


def main() -> None:
    print("GOMP_SPINCOUNT, ms a step alone, ms a step beside another process")
    for spins in ("", "3000"):
        alone = measured(spins)
        with subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=True) as other:
            time.sleep(1)
            beside = measured(spins)
            other.kill()
        print(spins or "not set", alone, beside, sep=", ")


if __name__ == "__main__":
    main()
