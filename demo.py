"""The pipeline end to end in about five minutes on two cores: `make demo`.

Collects 3,000 frames of a scripted expert, trains a LAM on the frames alone, labels them, aligns the latents with 5% of the action labels,
and evaluates on held-out episodes. The last lines print the result, the path of the report and how to open a page on
which the latent actions can be tried; in a terminal, that page is served until Ctrl-C.
"""

import json
import shutil
import sys
import time
from pathlib import Path

from lamina.cli import main

DEMO = Path("demo")
STEPS = [
    # Half of the actions are random: the frame nearly determines the expert's action, so controls could predict it without a latent.
    ["collect", "my_way_home", "--out", "demo/data", "--frames", "3000", "--size", "48", "48", "--noise", "0.5"],
    # A U-Net on every device: a rectified-flow decoder needs more steps than are possible in five minutes.
    ["train", "flexlam", "--data", "demo/data", "--out", "demo/run", "--image", "48", "48", "--decoder", "unet",
     "--slots", "8", "--steps", "2200", "--batch", "32", "--lr", "2e-3"],
    ["label", "demo/run", "demo/data", "--out", "demo/labelled"],
    ["align", "demo/run", "--data", "demo/data", "--labels", "5%"],
    ["evaluate", "demo/run", "--data", "demo/data"],
]  # fmt: skip

if __name__ == "__main__":
    began = time.monotonic()
    if DEMO.exists():
        shutil.rmtree(DEMO)
    for step in STEPS:
        print(f"\n$ lamina {' '.join(step)}", flush=True)
        if status := main(step):
            sys.exit(status)
    record = json.loads((DEMO / "run" / "evaluation.json").read_text())
    print(f"\n{time.monotonic() - began:.0f} s in all. {record['summary']}")
    print(f"The report: {(DEMO / 'run' / 'report.html').resolve()}")
    page = ["play", "demo/run", "--data", "demo/data"]
    print(f"A page on which its latent actions can be tried: {sys.executable} -m lamina.cli {' '.join(page)}")
    if sys.stdout.isatty():
        sys.exit(main([*page, "--port", "0"]))
