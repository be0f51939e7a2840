"""What a frame costs on its way into a labelled dataset, stage by stage, and how long N workers take: the figures of docs/scale.md.

    python bench/scale.py [SECONDS]      seconds of video in each of the files, 30 by default; two workers label 4 of them

Every stage runs alone on one thread, in CPU seconds. The workers are processes that label a shard each: the CPU seconds of each one, with
its start, and the wall seconds of all, which on a busy machine say little.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import torch

from lamina import methods
from lamina.data.lerobot.shards import Shard
from lamina.data.sampling import open_source
from lamina.data.shots import Classical
from lamina.data.video import index_video
from lamina.inference.encode import CHUNK, encode_episode, frame_pairs
from lamina.inference.label import label, merge
from lamina.models.hub import LatentActionModel, Provenance

FPS, SIZE, FILES, WORKERS = 30, (480, 640), 4, 2
WORK = "import sys; from pathlib import Path; from lamina.data.lerobot.shards import Shard; from lamina.inference.label import label_shard;"
WORK += "import torch; torch.set_num_threads(1); a = sys.argv;"
WORK += "label_shard(Path(a[1]), a[2], Path(a[3]), Shard.parse(a[4]), device='cpu')"


def write_clip(path: Path, seconds: int, seed: int) -> None:
    """A camera that pans over a large smooth picture, with a key frame every 250 frames, as most video on the internet has."""
    height, width = SIZE
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.integers(0, 255, (1, 3, 12, 40))).float()
    wide = torch.nn.functional.interpolate(coarse, (height, 4 * width), mode="bicubic").clamp(0, 255)[0]
    picture = wide.permute(1, 2, 0).byte().numpy()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "veryfast", "g": "250"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for n in range(seconds * FPS):
            begin = 2 * n % (3 * width)
            shown = np.ascontiguousarray(picture[:, begin : begin + width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(shown, format="rgb24")))
        container.mux(stream.encode())


def cpu(work: Callable[[], object]) -> float:
    """CPU seconds of this process."""
    began = time.process_time()
    work()
    return time.process_time() - began


def cpu_of(command: list[str]) -> float:
    """CPU seconds of another process."""
    job = subprocess.Popen(command)
    usage = os.wait4(job.pid, 0)[2]
    return usage.ru_utime + usage.ru_stime


def save_model(folder: Path, size: str) -> LatentActionModel:
    flexlam = methods.load("flexlam")
    model = LatentActionModel(flexlam.build(flexlam.Config(size=size, image=(64, 64))), Provenance("flexlam")).eval()
    model.save_pretrained(folder)
    return model


def workers(run: Path, videos: Path, out: Path, count: int) -> tuple[float, list[float]]:
    """Wall seconds in which ``count`` processes label their shards, from the start to the end of the last, and the CPU seconds of each."""
    began = time.perf_counter()
    jobs = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", WORK, run, videos, out, str(Shard(n + 1, count))],
            stderr=subprocess.DEVNULL,
        )
        for n in range(count)
    ]
    spent = []
    for job in jobs:
        _, status, usage = os.wait4(job.pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        spent.append(usage.ru_utime + usage.ru_stime)
    return time.perf_counter() - began, spent


def main() -> None:
    seconds = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        videos = folder / "videos"
        videos.mkdir()
        for n in range(FILES):
            write_clip(videos / f"{n}.mp4", seconds, n)
        model = save_model(folder / "tiny", "tiny")
        small = save_model(folder / "small", "small")
        source = open_source(str(videos))
        episode, frames = source.episodes[0], source.episodes[0].length
        pictures = source.frames(episode, "video", 0, frames, (64, 64))
        partner, _ = frame_pairs(episode.times, model.provenance.label_gap)

        def chunks() -> list[np.ndarray]:
            return [pictures[n : n + CHUNK] for n in range(0, frames, CHUNK)]

        some = slice(0, min(frames, 256))
        stages = {
            "index (demux)": (cpu(lambda: index_video(videos / "1.mp4")), frames),
            "decode 640x480, resize to 64": (
                cpu(lambda: source.frames(source.episodes[1], "video", 0, frames, (64, 64))),
                frames,
            ),
            "find cuts, classical": (cpu(lambda: Classical()(pictures)), frames),
            "encode, tiny": (cpu(lambda: encode_episode(model, chunks(), partner)), frames),
            "encode, small": (
                cpu(lambda: encode_episode(small, [pictures[some]], np.minimum(partner[some], some.stop - 1))),
                some.stop,
            ),
        }
        for name, (took, count) in stages.items():
            print(
                f"{name:<30} {1e3 * took / count:8.3f} CPU-ms a frame  {count / max(took, 1e-9):8.0f} frames a CPU-second"
            )
        alone = cpu(lambda: label(folder / "tiny", str(videos), folder / "local", device="cpu"))
        start = cpu_of([sys.executable, "-c", "import lamina.inference.label"])
        print(
            f"the local engine, in this process: {alone:.1f} CPU-s for {FILES * frames} frames; importing: {start:.1f}"
        )
        for count in (1, WORKERS):
            took, spent = workers(folder / "tiny", videos, folder / f"out-{count}", count)
            each = ", ".join(f"{seconds:.1f}" for seconds in spent)
            print(
                f"{count} worker(s): {each} CPU-s, {FILES * frames / max(spent):.0f} frames a second on idle cores; {took:.1f} s here"
            )
        print(f"merge: {cpu(lambda: merge(folder / 'tiny', str(videos), folder / f'out-{WORKERS}')):.2f} CPU-s")
        files = {p: p.stat().st_size for p in (folder / "local").rglob("*.parquet")}
        same = all(
            (folder / f"out-{WORKERS}" / p.relative_to(folder / "local")).read_bytes() == p.read_bytes() for p in files
        )
        labels, video = (
            sum(sizes) / (FILES * frames) for sizes in (files.values(), (p.stat().st_size for p in videos.iterdir()))
        )
        print(f"storage a frame: {labels:.0f} bytes of labels, {video:.0f} of video; tables the same: {same}")


if __name__ == "__main__":
    main()
