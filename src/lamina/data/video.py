"""Video files: an exact index of their frames, decoding forward, and a folder of them as a source."""

from __future__ import annotations

import gc
import os
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple, cast

import av
import numpy as np
from av.stream import Disposition
from av.video.reformatter import VideoReformatter
from jaxtyping import Float, Int, UInt8

from lamina.data.dataset import Dataset
from lamina.data.episodes import DecodeError, Episode, compact_times, split_episodes
from lamina.data.paths import check_regular, contents, dataset_around, is_dataset, walk
from lamina.errors import LaminaError, warn
from lamina.files import reason
from lamina.images import resize_frames

SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm")
OTHER_SUFFIXES = (".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv", ".3gp", ".ogv", ".mxf", ".vob")
# Containers that are accepted, by their content and not by the name of the file. Play lists are not: they lead to other files or the net.
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,mxf,nut"
PICTURES = "png_pipe,apng,jpeg_pipe,jpegls_pipe,webp_pipe,bmp_pipe,tiff_pipe,ppm_pipe,pgm_pipe,gif"
FAILURES = (av.error.FFmpegError, OSError, ValueError, EOFError, MemoryError)
OPEN_FILES = 4  # decoders kept open per process
SCANNED = 600  # packets from which the distance of key frames is estimated
# Small pictures are scaled twice as fast without threads; an older PyAV has none, and no such argument.
ONE_THREAD = {"threads": 1} if "threads=" in (VideoReformatter.reformat.__doc__ or "") else {}
KEY_DISTANCE = 32  # key frames nearer than this are as good as random access


class FrameClock(NamedTuple):
    """The presentation times of a file's frames, stored as a rate where they are regular."""

    start: float  # seconds: presentation time of the first picture in the file
    fps: float  # pictures per second
    stamps: Float[np.ndarray, "t"] | None  # seconds from the first picture; None: exactly i / fps
    tolerance: float  # seconds by which a picture may miss its time: too little to be taken for its neighbour

    def at(self, numbers: Int[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
        """Seconds, on the file's own clock, of the pictures with these numbers."""
        return self.start + (numbers / self.fps if self.stamps is None else self.stamps[numbers])


@dataclass(frozen=True)
class FrameIndex:
    """Presentation times and key frames of a video, from its packets, without decoding."""

    start: float  # seconds: presentation time of the first frame in the file
    times: Float[np.ndarray, "t"]  # seconds from the first frame
    keys: np.ndarray | None  # frame numbers of the key frames, thinned; None where they are close together
    rate: float | None  # frames per second that the header states
    tick: float  # seconds: what the container rounds times to
    codec: str  # name of the codec
    format: str  # name of the container
    cut: bool = False  # whether packets are in it that an edit list hides

    @property
    def clock(self) -> FrameClock:
        """The times, in short."""
        fps, stamps = compact_times(self.times, self.rate, self.tick)
        return FrameClock(self.start, fps, stamps, 0.25 * (1.0 / fps if stamps is None else np.diff(stamps).min()))


@contextmanager
def failures(path: Path, what: str, remedy: str = "remove or re-encode it") -> Iterator[None]:
    """Convert an error of the video library, or of the file system, into a DecodeError: the file, ``what`` failed, why, the ``remedy``."""
    try:
        yield
    except FAILURES as error:
        if isinstance(error, LaminaError):
            raise
        raise DecodeError(f"{path}: {what} ({reason(error)}); {remedy}") from error


def open_video(file: Path | BytesIO, formats: str = CONTAINERS) -> av.container.InputContainer:
    """Open a video, or a picture. A name is never read as an address, and a play list is no video. Raises FAILURES, or DecodeError."""
    if isinstance(file, Path):
        check_regular(file, DecodeError)
    # Without "file:", a colon in a relative path would be the end of a protocol's name.
    name = f"file:{file}" if isinstance(file, Path) else file
    limits = {"format_whitelist": formats, "protocol_whitelist": "file"}
    return cast(av.container.InputContainer, av.open(name, container_options=limits, metadata_errors="replace"))


def video_stream(container: av.container.InputContainer) -> av.VideoStream:
    """The stream with the pictures: not a cover or a thumbnail; the one that the file marks as its default, else the first.

    Raises ValueError if there is none that can be decoded here.
    """
    moving = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not moving:
        raise ValueError("holds no video stream")
    stream = next((s for s in moving if s.disposition & Disposition.default), moving[0])
    if stream.codec_context is None:
        raise ValueError("no decoder for its codec here")
    return stream


def index_video(path: Path, quick: bool = False) -> FrameIndex:
    """Read every packet's time stamp (nothing is decoded). Raises DecodeError for a damaged or truncated file.

    ``quick``: the header of an mp4 with regular frames is believed, so that the file need not be read. A frame at another time is then
    noticed when it is decoded.
    """
    level = av.logging.get_level()
    av.logging.set_level(av.logging.ERROR)
    try:
        with failures(path, "cannot be read as video"), av.logging.Capture() as messages, open_video(path) as container:
            index = (_skim(container, path) if quick else None) or _index(container, path)
    finally:
        av.logging.set_level(level)
    # The Matroska demuxer skips damaged parts and only writes a message.
    damage = [text for _, name, text in messages if "matroska" in name or "Truncating packet" in text]
    if damage:
        raise DecodeError(f"{path}: is damaged or truncated ({damage[0].splitlines()[0]}); remove or re-encode it")
    return index


def _skim(container: av.container.InputContainer, path: Path) -> FrameIndex | None:
    """The index of a regular mp4 from its header; None where the header is not enough."""
    stream = video_stream(container)
    entries = getattr(stream, "index_entries", ())  # PyAV has them from version 16 on
    if "mp4" not in container.format.name or not 0 < len(entries) == stream.frames or stream.start_time is None:
        return None
    table = np.array([(e.timestamp, e.is_keyframe, e.is_discard, e.pos + e.size) for e in entries], dtype=np.int64)
    # Decoding times are as regular as the times of showing; a muxer rounds either to its ticks.
    steps = np.diff(table[:, 0])
    if table[:, 2].any() or (len(steps) and (steps.min() < 1 or np.ptp(steps) > 1)):
        return None
    if table[:, 3].max() > path.stat().st_size:
        raise DecodeError(f"{path}: is truncated; remove or re-encode it")
    base = float(stream.time_base or 1)
    return _frame_index(
        container, stream, stream.start_time * base, (table[:, 0] - table[0, 0]) * base, np.flatnonzero(table[:, 1])
    )


def _index(container: av.container.InputContainer, path: Path) -> FrameIndex:
    stream = video_stream(container)
    stamps: list[int] = []
    keys: list[int] = []
    hidden = 0
    cut = False
    for packet in container.demux(stream):
        if packet.size == 0:
            continue
        if packet.is_discard or _hidden(stream.codec_context.name, packet):
            hidden += 1
            cut |= packet.is_discard
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
    found = np.searchsorted(pts, np.array(sorted(keys), dtype=np.int64))
    return replace(_frame_index(container, stream, float(seconds[0]), seconds - seconds[0], found), cut=cut)


def _frame_index(
    container: av.container.InputContainer, stream: av.VideoStream, start: float, times: np.ndarray, keys: np.ndarray
) -> FrameIndex:
    return FrameIndex(
        start=start,
        times=times,
        keys=keys.astype(np.int32) if len(keys) * KEY_DISTANCE < len(times) else None,
        rate=float(stream.average_rate) if stream.average_rate else None,
        tick=float(stream.time_base or 1),
        codec=stream.codec_context.codec.canonical_name,
        format=container.format.name,
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
    with open_video(path) as container:
        context = video_stream(container).codec_context
        return context.codec.canonical_name, context.pix_fmt or "", bool(container.streams.audio)


def key_distance(path: Path) -> int | None:
    """Frames between key frames at the head of a file; None where they are close together, or it cannot be read."""
    try:
        with open_video(path) as container:
            packets = list(islice(container.demux(video_stream(container)), SCANNED))
    except FAILURES:
        return None  # reported when the file is decoded
    keys = np.flatnonzero([p.is_keyframe for p in packets if p.size])
    distance = int(np.median(np.diff(keys))) if len(keys) > 1 else len(packets)
    return distance if distance > KEY_DISTANCE else None


class _Decoder:
    """One open video file, or picture, that decodes forward and seeks only when it must."""

    def __init__(self, file: Path | BytesIO, formats: str = CONTAINERS) -> None:
        self.container = open_video(file, formats)
        self.stream = video_stream(self.container)
        # One thread: workers already use every core, and frame threads cost CPU time and delay after each seek.
        self.stream.thread_type = "NONE"
        # Damage must be an error; by default the decoder would conceal it.
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

    def first(self, size: tuple[int, int] | None) -> UInt8[np.ndarray, "h w 3"]:
        """The first picture."""
        for frame in self.container.decode(self.stream):
            return self._image(frame, size)
        raise ValueError("holds no picture")

    def _frame(self, time: float, tolerance: float) -> av.VideoFrame:
        if not time - 1.0 <= self.position <= time + tolerance:
            self._seek(time, tolerance)
        try:
            return self._forward(time, tolerance)
        except av.error.InvalidDataError:
            # In an open group of pictures the frames after a key frame may name ones before it. Starting one key frame
            # earlier distinguishes that from damage.
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
        """Close the file and release the decoder at once: its generators refer back to it."""
        self.container.close()
        self.packets, self.decoded, self.ahead = iter(()), iter(()), None

    def _image(self, frame: av.VideoFrame, size: tuple[int, ...] | None) -> UInt8[np.ndarray, "h w 3"]:
        # Colours first, at the picture's own size: a picture that arrives as RGB elsewhere is then resized from the same pixels.
        image = self.reformatter.reformat(frame, format="rgb24", **ONE_THREAD).to_ndarray()
        return resize_frames(_upright(image, _display_matrix(frame))[None], size)[0]  # type: ignore[arg-type]


UPRIGHT = np.eye(2, dtype=np.int8)


def _display_matrix(frame: av.VideoFrame) -> Int[np.ndarray, "2 2"]:
    """The display matrix of a file: row: x or y as stored, column: x or y as shown, -1 where it is reversed.

    Only quarter turns and mirror images, as phones write them; any other matrix counts as the identity.
    """
    stated: Any = frame.side_data.get("DISPLAYMATRIX")
    if stated is None:
        return UPRIGHT
    exact = np.frombuffer(bytes(stated), dtype=np.int32).reshape(3, 3)[:2, :2] / 65536
    matrix = exact.round()
    quarter = (np.abs(matrix).sum(0) == 1).all() and (np.abs(matrix).sum(1) == 1).all()
    return matrix.astype(np.int8) if quarter and np.abs(exact - matrix).max() < 0.01 else UPRIGHT


def _upright(image: UInt8[np.ndarray, "h w 3"], matrix: Int[np.ndarray, "2 2"]) -> UInt8[np.ndarray, "h w 3"]:
    """A stored picture as it is to be shown."""
    if matrix[0, 0] == 0:
        image = image.swapaxes(0, 1)
    across, down = matrix.sum(0)
    return image[::down, ::across]


_decoders: OrderedDict[tuple[Path, int, int, int], _Decoder] = OrderedDict()
_inherited: list[OrderedDict[tuple[Path, int, int, int], _Decoder]] = []


def _after_fork() -> None:
    """A forked worker shares its parent's file offsets but not its threads: it must neither use the parent's decoders nor free them, which
    would wait for threads that do not exist. Freezing keeps the garbage collector from doing so."""
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
    status = check_regular(path, DecodeError)
    key = (path, status.st_ino, status.st_size, status.st_mtime_ns)  # a file that was replaced is another one
    with failures(path, "cannot be decoded"):
        decoder = _decoders.pop(key, None) or _Decoder(path)
        try:
            frames = decoder.read(times, size, tolerance)
        except BaseException:
            decoder.close()
            raise
    _decoders[key] = decoder
    while len(_decoders) > OPEN_FILES:
        _decoders.popitem(last=False)[1].close()
    return frames


def decode_picture(data: bytes, size: tuple[int, int] | None) -> UInt8[np.ndarray, "h w 3"]:
    """A picture in any usual format, RGB, resized to (height, width). Raises FAILURES."""
    decoder = _Decoder(BytesIO(data), PICTURES)
    try:
        return decoder.first(size)
    finally:
        decoder.close()


class VideoFile(NamedTuple):
    """A video file whose frames are indexed."""

    path: Path
    clock: FrameClock
    codec: str
    format: str  # name of the container
    cut: bool  # whether packets are in it that an edit list hides


@dataclass(frozen=True, eq=False)
class VideoFolder(Dataset):
    """A folder of video files (searched through all its subfolders), or one file: every file is an episode."""

    root: Path
    files: tuple[VideoFile, ...]
    episodes: tuple[Episode, ...] = ()
    cameras: tuple[str, ...] = ("video",)

    @property
    def name(self) -> str:
        return str(self.root)

    @property
    def fps(self) -> float:
        """The most frequent rate of the files."""
        return Counter(round(e.fps, 3) for e in self.episodes).most_common(1)[0][0]

    def content(self) -> str:
        """:func:`lamina.data.paths.contents` of the files."""
        return contents([file.path for file in self.files])

    def frames(
        self, episode: Episode, camera: str, start: int, stop: int, size: tuple[int, int] | None = None
    ) -> UInt8[np.ndarray, "n h w 3"]:
        path, clock, *_ = self.files[episode.number]
        times = clock.at(np.arange(start, min(stop, episode.length)))
        return decode(path, times, size, clock.tolerance)

    def column(self, episode: Episode, name: str) -> Float[np.ndarray, "t d"]:
        """Raises LaminaError: plain video has no features."""
        raise LaminaError(f"{self.root}: is plain video and has no feature '{name}'; use a LeRobot dataset")


def find_videos(root: Path) -> list[Path]:
    """The video files of a folder in the order of their names, each once, even if several links lead to it.

    LeRobot datasets in it, its labels for instance, are left out with a warning. Raises LaminaError if it holds nothing else: read as plain
    video, their episodes would run into one another and their actions be lost.
    """
    datasets: list[Path] = []

    def enter(folder: Path) -> bool:
        if is_dataset(folder):
            datasets.append(folder)
        return not is_dataset(folder)

    once: dict[tuple[int, int] | Path, Path] = {}
    others: list[Path] = []
    for path in walk(root, enter):
        if path.suffix.lower() in OTHER_SUFFIXES:
            others.append(path)
        if path.suffix.lower() in SUFFIXES:
            status = path.stat() if path.exists() else None
            once.setdefault((status.st_dev, status.st_ino) if status else path, path)
    datasets.sort()
    if datasets and not once:
        more = f" (and {len(datasets) - 3} more)" if len(datasets) > 3 else ""
        named = " ".join(f"--data {d}" for d in datasets[:3])
        raise LaminaError(
            f"{root}: holds {len(datasets)} LeRobot dataset(s) and is none itself; name them: {named}{more}"
        )
    if datasets:
        warn(
            f"{root}: the LeRobot dataset(s) in it are left out ({len(datasets)}, the first is {datasets[0]}); name them to read them"
        )
    if others:
        warn(
            f"{min(others)}: is not read ({len(others)} such file(s)), only {' '.join(SUFFIXES)} are; "
            "remux it: ffmpeg -i IN -c copy OUT.mkv"
        )
    return sorted(once.values(), key=lambda p: p.parts)


def open_folder(root: Path, max_bad: int = 8) -> VideoFolder:
    """Index a folder of video, or one file. A bad file is named in a warning and left out, up to ``max_bad``."""
    around = dataset_around(root)
    if around is not None:
        raise LaminaError(f"{root}: lies in the LeRobot dataset {around}; name that, its episodes would run together")
    paths = [root] if root.is_file() else find_videos(root) if root.is_dir() else []
    if not paths:
        raise LaminaError(f"{root}: holds no video ({' '.join(SUFFIXES)}) and no meta/info.json of a LeRobot dataset")
    files: list[VideoFile] = []
    episodes: list[Episode] = []
    bad: list[DecodeError] = []
    for path in paths:
        try:
            index = index_video(path)
        except DecodeError as error:
            bad.append(error)
            continue
        clock = index.clock
        episodes.append(Episode(len(files), str(path), len(index.times), clock.fps, (), clock.stamps, index.keys))
        files.append(VideoFile(path, clock, index.codec, index.format, index.cut))
    if len(bad) > max_bad or not files:
        more = f" (and {len(bad) - 1} more files of {root} are bad)" if len(bad) > 1 else ""
        raise LaminaError(f"{bad[0]}{more}")
    for failure in bad:
        warn(f"left out: {failure}")
    names = [path.name if root.is_file() else path.relative_to(root).as_posix() for path, *_ in files]
    return VideoFolder(root, tuple(files), split_episodes(episodes, names, root))
