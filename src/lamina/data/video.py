"""Video files: an exact index of their frames, decoding forward, and a folder of them as a source."""

from __future__ import annotations

import gc
import os
import warnings
from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Literal

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from jaxtyping import Float, UInt8

from lamina.data.episodes import DecodeError, Episode, compact_times, split_episodes
from lamina.data.resize import resize_frames
from lamina.errors import LaminaError, LaminaWarning
from lamina.shapes import ActionSpec

SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm")
FAILURES = (av.error.FFmpegError, OSError, ValueError, EOFError, MemoryError)
OPEN_FILES = 4  # decoders kept open per process
SCANNED = 600  # packets that tell the distance of key frames
# Small pictures are scaled twice as fast without threads; an older PyAV has none, and no such argument.
ONE_THREAD = {"threads": 1} if "threads=" in (VideoReformatter.reformat.__doc__ or "") else {}
KEY_DISTANCE = 32  # key frames nearer than this are as good as random access


@dataclass(frozen=True)
class FrameIndex:
    """What the packets of a video say, without decoding: when its frames show and where decoding can start."""

    start: float  # seconds: presentation time of the first frame in the file
    times: Float[np.ndarray, "t"]  # seconds from the first frame
    keys: np.ndarray | None  # frame numbers of the key frames, thinned; None where they are close together
    rate: float | None  # frames per second that the header states
    height: int
    width: int


def index_video(path: Path) -> FrameIndex:
    """Read every packet's time stamp (nothing is decoded). Raises DecodeError for a damaged or truncated file."""
    level = av.logging.get_level()
    av.logging.set_level(av.logging.ERROR)
    try:
        with av.logging.Capture() as messages, av.open(str(path)) as container:
            index = _index(container, path)
    except FAILURES as error:
        if isinstance(error, LaminaError):
            raise
        raise DecodeError(f"{path}: cannot be read as video ({_reason(error)}); remove or re-encode it") from error
    finally:
        av.logging.set_level(level)
    # The Matroska demuxer steps over damage and goes on; all it does is to complain.
    complaints = [text for _, name, text in messages if "matroska" in name or "Truncating packet" in text]
    if complaints:
        raise DecodeError(f"{path}: is damaged or truncated ({complaints[0].splitlines()[0]}); remove or re-encode it")
    return index


def _index(container: av.container.InputContainer, path: Path) -> FrameIndex:
    if not container.streams.video:
        raise DecodeError(f"{path}: holds no video stream; remove it")
    stream = container.streams.video[0]
    if stream.codec_context is None:
        raise DecodeError(f"{path}: no decoder for its codec here; re-encode it: ffmpeg -i IN OUT.mp4")
    stamps: list[int] = []
    keys: list[int] = []
    hidden = 0
    for packet in container.demux(stream):
        if packet.size == 0:
            continue
        if packet.is_discard or _hidden(stream.codec_context.name, packet):
            hidden += 1
            continue
        if packet.pts is None:
            raise DecodeError(f"{path}: has frames without a time stamp; remux it: ffmpeg -i IN -c copy OUT.mkv")
        if packet.is_corrupt:
            raise DecodeError(f"{path}: is truncated after {len(stamps)} frames; remove or re-encode it")
        stamps.append(packet.pts)
        if packet.is_keyframe:
            keys.append(packet.pts)
    if not stamps:
        raise DecodeError(f"{path}: holds no frame; remove it")
    if "mp4" in container.format.name and len(stamps) + hidden < stream.frames:
        raise DecodeError(f"{path}: is truncated, {len(stamps)} of {stream.frames} frames; remove or re-encode it")
    pts = np.unique(np.array(stamps, dtype=np.int64))
    if len(pts) < len(stamps):
        raise DecodeError(f"{path}: has several frames at one time; re-encode it: ffmpeg -i IN -fps_mode vfr OUT.mp4")
    seconds = pts * float(stream.time_base or 1)
    _check_duration(container, path, float(seconds[-1]))
    context = stream.codec_context
    return FrameIndex(
        start=float(seconds[0]),
        times=seconds - seconds[0],
        keys=_thin(np.searchsorted(pts, np.array(sorted(keys), dtype=np.int64)), len(pts)),
        rate=float(stream.average_rate) if stream.average_rate else None,
        height=context.height,
        width=context.width,
    )


def _hidden(codec: str, packet: av.Packet) -> bool:
    """VP8 stores its alternate reference frames, which are never shown, as packets of their own (RFC 6386, 9.1)."""
    return codec in ("vp8", "libvpx") and not (bytes(packet)[0] >> 4) & 1


def _check_duration(container: av.container.InputContainer, path: Path, last: float) -> None:
    """Matroska has no frame count; a file that ends long before its stated duration has lost its end."""
    if len(container.streams) == 1 and container.duration is not None and "matroska" in container.format.name:
        stated = container.duration / 1e6
        if last < stated - max(1.0, 0.05 * stated):
            raise DecodeError(f"{path}: is truncated, {last:.1f} of {stated:.1f} s; remove or re-encode it")


def video_facts(path: Path) -> tuple[str, str, bool]:
    """(codec, pixel format, whether there is sound) of a video file."""
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        return context.codec.canonical_name, context.pix_fmt or "", bool(container.streams.audio)


def key_distance(path: Path) -> int | None:
    """Frames between key frames at the head of a file; None where they are close together, or it cannot be read."""
    try:
        with av.open(str(path)) as container:
            packets = list(islice(container.demux(container.streams.video[0]), SCANNED))
    except (*FAILURES, IndexError):
        return None  # reported when the file is decoded
    keys = np.flatnonzero([p.is_keyframe for p in packets if p.size])
    distance = int(np.median(np.diff(keys))) if len(keys) > 1 else len(packets)
    return distance if distance > KEY_DISTANCE else None


def _thin(keys: np.ndarray, length: int) -> np.ndarray | None:
    if len(keys) * KEY_DISTANCE >= length:
        return None
    return keys.astype(np.int32)


def _reason(error: BaseException) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]


class _Decoder:
    """One open video file that decodes forward and seeks only when it must."""

    def __init__(self, path: Path) -> None:
        self.container = av.open(str(path))
        if not self.container.streams.video or self.container.streams.video[0].codec_context is None:
            raise ValueError("no video stream that can be decoded here")
        self.stream = self.container.streams.video[0]
        # One thread: workers already use every core, and frame threads cost CPU time and delay after each seek.
        self.stream.thread_type = "NONE"
        # Damage must be an error; by default the decoder would paint over it.
        self.stream.codec_context.options = {"err_detect": "explode"}
        self.base = float(self.stream.time_base or 1)
        self.reformatter = VideoReformatter()
        self.packets: Iterator[av.Packet] = iter(())
        self.decoded: Iterator[av.VideoFrame] = iter(())
        self.ahead: av.VideoFrame | None = None  # decoded, not yet delivered
        self.position = -np.inf  # seconds of the frame ahead

    def read(
        self, times: Float[np.ndarray, "n"], size: tuple[int, int] | None, tolerance: float
    ) -> UInt8[np.ndarray, "n h w 3"]:
        out: np.ndarray | None = None
        for row, time in enumerate(times.tolist()):
            image = self._image(self._frame(time, tolerance), size if out is None or size else out.shape[1:3])
            if out is None:
                out = np.empty((len(times), *image.shape), dtype=np.uint8)
            out[row] = image
        if out is None:
            raise ValueError("no frames were asked for")
        return out

    def _frame(self, time: float, tolerance: float) -> av.VideoFrame:
        if not time - 1.0 <= self.position <= time + tolerance:
            self._seek(time, tolerance)
        try:
            return self._forward(time, tolerance)
        except av.error.InvalidDataError:
            # In an open group of pictures the frames after a key frame may name ones before it. Starting one key frame
            # earlier tells that from damage.
            self._seek(time, tolerance, earlier=True)
            return self._forward(time, tolerance)

    def _forward(self, time: float, tolerance: float) -> av.VideoFrame:
        while self.position < time - tolerance:
            self._advance()
        if self.ahead is None or self.position > time + tolerance:
            raise ValueError(f"no frame at {time:.3f} s")
        return self.ahead

    def _advance(self) -> None:
        self.ahead, self.position = None, np.inf
        for frame in self.decoded:
            if frame.is_corrupt:
                raise ValueError(f"damaged frame at {frame.time or 0.0:.3f} s")
            if frame.pts is not None:
                self.ahead, self.position = frame, float(frame.time)
                return

    def _seek(self, time: float, tolerance: float, earlier: bool = False) -> None:
        """Begin at the last key frame that shows at or before ``time``, or at the one before that."""
        first = int((time + tolerance) / self.base)
        key = self._begin(first, latest=first)
        trusted: int = key.pts  # type: ignore[assignment]
        if earlier:
            key = self._begin((trusted if key.dts is None else key.dts) - 1, latest=trusted - 1)
        self.decoded = self._decode(key, trusted)
        self.ahead, self.position = None, -np.inf

    def _begin(self, target: int, latest: int) -> av.Packet:
        """Seek to a key frame that shows at ``latest`` or before. Containers seek by decoding time: a try can miss."""
        for back in (0.0, 1.0, 10.0, np.inf):
            origin = self.stream.start_time or 0
            self.container.seek(
                origin if back == np.inf else max(target - int(back / self.base), origin), stream=self.stream
            )
            self.packets = iter(self.container.demux(self.stream))
            packet = next(self.packets)
            if packet.pts is not None and packet.pts <= latest:
                return packet
        raise ValueError(f"no frame at {target * self.base:.3f} s")

    def _decode(self, key: av.Packet, trusted: int) -> Iterator[av.VideoFrame]:
        """All frames from a key frame on in the order they show; those before ``trusted`` may lack what they need."""
        for packet in chain([key], self.packets):
            try:
                yield from self.stream.decode(packet)
            except av.error.InvalidDataError:
                if packet.pts is None or packet.pts >= trusted:
                    raise

    def close(self) -> None:
        """Close the file and let go of the decoder at once: its generators refer back to it."""
        self.container.close()
        self.packets, self.decoded, self.ahead = iter(()), iter(()), None

    def _image(self, frame: av.VideoFrame, size: tuple[int, ...] | None) -> UInt8[np.ndarray, "h w 3"]:
        # Colours first, at the picture's own size: a picture that arrives as RGB elsewhere is then resized from the same pixels.
        image = self.reformatter.reformat(frame, format="rgb24", **ONE_THREAD).to_ndarray()
        if frame.rotation % 90 == 0 and frame.rotation:
            image = np.rot90(image, frame.rotation // 90)
        return resize_frames(image[None], size)[0]  # type: ignore[arg-type]


_decoders: OrderedDict[Path, _Decoder] = OrderedDict()
_inherited: list[OrderedDict[Path, _Decoder]] = []


def _after_fork() -> None:
    """A forked worker shares its parent's file offsets but not its threads: it must neither use what the parent has open
    nor free it, which would wait for threads that are not there. Freezing keeps the garbage collector off as well."""
    global _decoders
    _inherited.append(_decoders)
    _decoders = OrderedDict()
    gc.freeze()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def decode(
    path: Path, times: Float[np.ndarray, "n"], size: tuple[int, int] | None, tolerance: float
) -> UInt8[np.ndarray, "n h w 3"]:
    """The frames of one file at ``times`` (seconds of its own clock, ascending), RGB, resized to (height, width).

    Each must show within ``tolerance`` seconds of its time. Grey, alpha and any other pixel format become RGB, alpha is
    dropped, and a rotation that the file states is applied. Calls that go on where the last one ended do not seek.
    Raises DecodeError.
    """
    decoder = _decoders.pop(path, None)
    try:
        decoder = decoder or _Decoder(path)
        frames = decoder.read(times, size, tolerance)
    except FAILURES as error:
        if decoder is not None:
            decoder.close()
        raise DecodeError(f"{path}: cannot be decoded ({_reason(error)}); remove or re-encode it") from error
    _decoders[path] = decoder
    while len(_decoders) > OPEN_FILES:
        _decoders.popitem(last=False)[1].close()
    return frames


@dataclass(frozen=True, eq=False)
class VideoFolder:
    """A folder of video files (searched through all its subfolders), or one file: every file is an episode."""

    root: Path
    files: tuple[Path, ...]
    starts: tuple[float, ...]  # seconds: presentation time of each file's first frame
    sizes: tuple[tuple[int, int], ...]  # height and width of each file
    fps: float
    episodes: tuple[Episode, ...]
    kind: Literal["video", "lerobot"] = "video"
    cameras: tuple[str, ...] = ("video",)
    action: ActionSpec | None = None
    columns: tuple[str, ...] = ()

    def action_spec(self, name: str) -> ActionSpec | None:
        """None: plain video has no actions."""
        return None

    def frames(
        self, episode: Episode, camera: str, start: int, stop: int, size: tuple[int, int] | None = None
    ) -> UInt8[np.ndarray, "n h w 3"]:
        """See :meth:`lamina.data.episodes.Source.frames`."""
        times = self.starts[episode.number] + episode.times[start:stop]
        return decode(self.files[episode.number], times, size, tolerance=min(1e-3, 0.25 / episode.fps))

    def seconds(self, episode: Episode, camera: str) -> float:
        """See :meth:`lamina.data.episodes.Source.seconds`."""
        return float(episode.times[-1]) + 1.0 / episode.fps

    def column(self, episode: Episode, name: str) -> Float[np.ndarray, "t d"]:
        """Raises LaminaError: plain video has no features."""
        raise LaminaError(f"{self.root}: is plain video and has no feature '{name}'; use a LeRobot dataset")


def open_folder(root: Path, number: int = 0, max_bad: int = 8) -> VideoFolder:
    """Index a folder of video, or one file. A bad file is named in a warning and left out, up to ``max_bad``."""
    inside = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    paths = [root] if root.is_file() else inside
    if not paths:
        raise LaminaError(f"{root}: holds no video ({' '.join(SUFFIXES)}) and no meta/info.json of a LeRobot dataset")
    good: list[tuple[Path, FrameIndex]] = []
    bad: list[DecodeError] = []
    for path in paths:
        try:
            good.append((path, index_video(path)))
        except DecodeError as error:
            bad.append(error)
    if len(bad) > max_bad or not good:
        more = f" (and {len(bad) - 1} more files of {root} are bad)" if len(bad) > 1 else ""
        raise LaminaError(f"{bad[0]}{more}")
    for failure in bad:
        warnings.warn(f"left out: {failure}", LaminaWarning, stacklevel=2)
    episodes = []
    for n, (path, index) in enumerate(good):
        fps, stamps = compact_times(index.times, index.rate)
        episodes.append(Episode(number, n, str(path), len(index.times), fps, (), stamps, index.keys))
    names = [p.name if root.is_file() else p.relative_to(root).as_posix() for p, _ in good]
    return VideoFolder(
        root=root,
        files=tuple(p for p, _ in good),
        starts=tuple(i.start for _, i in good),
        sizes=tuple((i.height, i.width) for _, i in good),
        fps=Counter(round(e.fps, 3) for e in episodes).most_common(1)[0][0],
        episodes=split_episodes(episodes, names, root),
    )
