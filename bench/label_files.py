"""Labelling time over the number of files: many short clips, labelled end to end.

    python bench/label_files.py [FILES]      wall seconds; 10,000 files by default, and a tenth of them for comparison

Clips have three frames, so that the cost per file dominates. The target is 10,000 files in under two minutes.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path

import av
import numpy as np

from lamina import methods
from lamina.inference.label import label
from lamina.models.hub import LatentActionModel, Provenance

FRAMES, DIFFERENT, TARGET = 3, 20, 120.0


def write_clip(path: Path, seed: int) -> None:
    """Three frames of noise, 32 by 32."""
    rng = np.random.default_rng(seed)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for _ in range(FRAMES):
            picture = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def folder_of(root: Path, files: int) -> Path:
    """A folder of ``files`` clips in separate files. There are only DIFFERENT different clips."""
    root.mkdir()
    for n in range(min(files, DIFFERENT)):
        write_clip(root / f"{n:06d}.mp4", n)
    for n in range(DIFFERENT, files):
        shutil.copyfile(root / f"{n % DIFFERENT:06d}.mp4", root / f"{n:06d}.mp4")
    return root


def main() -> None:
    files = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        flexlam = methods.load("flexlam")
        config = flexlam.build(flexlam.Config(size="debug", image=(32, 32)))
        LatentActionModel(config, Provenance("flexlam")).eval().save_pretrained(folder / "run")
        for count in (files // 10, files):
            videos = folder_of(folder / f"videos-{count}", count)
            began = time.perf_counter()
            label(folder / "run", str(videos), folder / f"out-{count}")
            took = time.perf_counter() - began
            print(f"{count} files: {took:.1f} s, {1000 * took / count:.2f} ms a file")
        if files >= 10_000:
            print(f"target of {TARGET:.0f} s {'met' if took < TARGET else 'MISSED'}")


if __name__ == "__main__":
    main()
