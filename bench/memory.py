"""Peak memory over the amount of video.

    python bench/memory.py

Peak resident memory of a process that trains (draws batches), of its decoding process, and of a process that labels (reads frames
ahead): on a set of video, on 10 times more files, and on files that are 10 times longer.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import psutil

SIDE, FPS, FRAMES, FILES, TIMES = 256, 30, 1500, 6, 10
BATCHES = 400


def write_video(path: Path) -> None:
    rng = np.random.default_rng(0)
    canvas = rng.integers(0, 255, (SIDE // 4, SIDE // 2, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(FPS), options={"preset": "veryfast"})
        stream.height = stream.width = SIDE
        stream.pix_fmt = "yuv420p"
        for t in range(FRAMES):
            x, y = (2 * t) % SIDE, (t // 3) % SIDE
            picture = np.ascontiguousarray(canvas[y : y + SIDE, x : x + SIDE])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def lengthen(path: Path, out: Path, times: int) -> None:
    """Write a video that repeats the packets of ``path`` ``times`` times, without encoding them again."""
    with av.open(str(out), "w") as target:
        copy = None
        for n in range(times):
            with av.open(str(path)) as source:
                stream = source.streams.video[0]
                copy = copy or target.add_stream_from_template(stream)
                shift = round(n * FRAMES / FPS / stream.time_base)
                for packet in source.demux(stream):
                    if packet.size:
                        packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, copy
                        target.mux(packet)


def megabytes(process: psutil.Process) -> float:
    return process.memory_info().rss / 2**20


def measure(work: str, root: str) -> None:
    """Runs in a separate process: prints the number of frames and the peak memory of this process and its child."""
    from lamina.data.read_ahead import ReadAhead
    from lamina.data.sampling import DataConfig, open_source
    from lamina.data.stream import ClipStream

    here = psutil.Process()
    own = child = 0.0
    source = open_source(root)
    if work == "train":
        stream = ClipStream(DataConfig((root,), workers=1), 64, seed=0)
        for _ in range(BATCHES):
            next(stream)
            own = max(own, megabytes(here))
            child = max([child, *(megabytes(c) for c in here.children())])
        stream.close()
    else:
        ahead = ReadAhead(source, source.cameras[0], (64, 64))
        for episode in source.episodes:
            for _ in ahead(episode):
                own = max(own, megabytes(here))
        ahead.close()
    print(sum(e.length for e in source.episodes), own, child)


def main() -> None:
    if len(sys.argv) == 3:
        measure(*sys.argv[1:])
        return
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch) / "base.mp4"
        write_video(base)
        sets = {
            "few": Path(scratch) / "few",
            "more files": Path(scratch) / "more",
            "longer files": Path(scratch) / "longer",
        }
        for folder in sets.values():
            folder.mkdir()
        for n in range(FILES):
            os.link(base, sets["few"] / f"{n}.mp4")
            lengthen(base, sets["longer files"] / f"{n}.mp4", TIMES)
        for n in range(FILES * TIMES):
            os.link(base, sets["more files"] / f"{n}.mp4")
        print(
            f"{SIDE} px h264, delivered at 64 px in batches of 64, shuffle buffer of 2,048 samples; MB at the highest\n"
        )
        print("| set | frames | training process | its decoding process | labelling process |")
        print("|---|---|---|---|---|")
        for name, folder in sets.items():
            figures = {}
            for work in ("train", "label"):
                command = [sys.executable, __file__, work, str(folder)]
                figures[work] = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
            frames, own, child = figures["train"]
            print(
                f"| {name} | {int(frames):,} | {float(own):.0f} | {float(child):.0f} | {float(figures['label'][1]):.0f} |"
            )


if __name__ == "__main__":
    main()
