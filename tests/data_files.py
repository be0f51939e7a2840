"""Small video files and datasets whose every frame says which one it is."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from lamina.data import LeRobotWriter

BITS = 12


def picture(number: int, height: int = 32, width: int = 48) -> np.ndarray:
    """A picture [h, w, 3] that shows ``number`` in black and white columns, which survive encoding and resizing."""
    bits = np.array([number >> b & 1 for b in range(BITS)], dtype=np.uint8)
    columns = bits[np.arange(width) * BITS // width]
    return np.broadcast_to((16 + 223 * columns)[None, :, None], (height, width, 3)).astype(np.uint8)


def read_number(image: np.ndarray) -> int:
    """The number that a picture [h, w, 3] shows."""
    width = image.shape[1]
    middles = (np.arange(BITS) * 2 + 1) * width // (2 * BITS)
    levels = image[image.shape[0] // 2, middles].mean(-1)
    assert (np.abs(levels - 127.5) > 40).all(), f"unreadable picture: {levels}"
    return int(((levels > 127.5) << np.arange(BITS)).sum())


def write_video(
    path: Path,
    frames: int = 40,
    fps: float = 10,
    size: tuple[int, int] = (32, 48),
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    pts: list[int] | None = None,
    offset: int = 0,
) -> Path:
    """A video whose frame i shows offset + i, at i / fps seconds or at ``pts`` milliseconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001), options=options or {})
        stream.height, stream.width, stream.pix_fmt = *size, pix_fmt
        if pts is not None:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(offset + i, *size), format="rgb24").reformat(format=pix_fmt)
            frame.pts = i if pts is None else pts[i]
            frame.time_base = Fraction(1, 1000) if pts is not None else 1 / Fraction(fps).limit_denominator(1001)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def camera(height: int = 32, width: int = 48) -> dict:
    return {"dtype": "video", "shape": [height, width, 3], "names": ["height", "width", "channels"]}


def write_dataset(
    root: Path, lengths: list[int], fps: float = 10, splits: list[str] | None = None, **cameras: dict
) -> Path:
    """A LeRobot dataset. Episode e, frame i: the camera shows 100 e + i, the second one 2000 + that, any of ``cameras``
    the same as the first; the action is (100 e + i) % 5, the state [e, i]."""
    features = {
        "action": {"dtype": "int64", "shape": [1], "names": ["move"], "num_classes": 5},
        "observation.state": {"dtype": "float32", "shape": [2], "names": ["episode", "frame"]},
        "observation.images.front": camera(),
        "observation.images.twin": camera(),
        **cameras,
    }
    with LeRobotWriter(root, fps, features) as writer:
        for e, length in enumerate(lengths):
            number = 100 * e + np.arange(length)
            writer.add_episode(
                {
                    "action": number % 5,
                    "observation.state": np.stack([np.full(length, e), np.arange(length)], 1).astype(np.float32),
                },
                {
                    "observation.images.front": (picture(n) for n in number),
                    "observation.images.twin": np.stack([picture(2000 + n) for n in number]),
                    **{name: (picture(n, *f["shape"][:2]) for n in number) for name, f in cameras.items()},
                },
                task=f"task {e % 2}",
                split=splits[e] if splits else "train",
            )
    return root
