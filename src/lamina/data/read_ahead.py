"""Frames of whole episodes, decoded ahead by a thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import UInt8

from lamina.data.dataset import Dataset
from lamina.data.episodes import Episode


class ReadAhead:
    """Frames of whole episodes in order, decoded by a thread while the caller works on earlier ones.

    ``ahead(episode)`` yields its frames in arrays of at most ``chunk``. The thread continues with the following episodes,
    so short ones do not make the caller wait. Memory: ``chunks`` + 2 arrays.
    """

    def __init__(
        self, source: Dataset, camera: str, size: tuple[int, int] | None, chunk: int = 64, chunks: int = 4
    ) -> None:
        self.source, self.camera, self.size, self.chunk, self.chunks = source, camera, size, chunk, chunks
        self.thread: threading.Thread | None = None
        self.missing = source.missing_episodes(camera)  # passed over
        self.expected = -1  # position of the episode that the thread delivers next

    def __call__(self, episode: Episode) -> Iterator[UInt8[np.ndarray, "n h w 3"]]:
        position = episode.number
        if self.thread is None or self.expected != position:
            self.close()
            self._begin(position)
        self.expected = -1  # a caller that leaves early finds the queue in the middle of an episode
        for start in range(0, episode.length, self.chunk):
            frames = self.queue.get()
            if isinstance(frames, Exception):
                self.close()
                raise frames
            if start + self.chunk >= episode.length:
                self.expected = self._following(position + 1)
            yield frames

    def _following(self, position: int) -> int:
        while position in self.missing:
            position += 1
        return position

    def _begin(self, position: int) -> None:
        self.queue: queue.Queue[Any] = queue.Queue(self.chunks)
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._decode, args=(position, self.queue, self.stopping), daemon=True)
        self.thread.start()

    def _decode(self, position: int, out: queue.Queue[Any], stopping: threading.Event) -> None:
        for episode in self.source.episodes[position:]:
            if episode.number in self.missing and episode.number != position:
                continue
            for start in range(0, episode.length, self.chunk):
                try:
                    stop = min(start + self.chunk, episode.length)
                    item: Any = self.source.frames(episode, self.camera, start, stop, self.size)
                except Exception as error:  # raised again where the frames are asked for
                    item = error
                while not stopping.is_set():
                    try:
                        out.put(item, timeout=0.1)
                        break
                    except queue.Full:
                        continue
                if stopping.is_set() or isinstance(item, Exception):
                    return

    def close(self) -> None:
        """Stop the thread."""
        if self.thread is not None:
            self.stopping.set()
            self.thread.join()
            self.thread = None
