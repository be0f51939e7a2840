"""Frames of whole episodes, decoded ahead by a thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import numpy as np
from jaxtyping import UInt8

from lamina.data.dataset import Dataset
from lamina.data.episodes import Episode


class ReadAhead:
    """Frames of whole episodes in order, decoded by a thread while the caller works on earlier ones.

    ``ahead(episode)`` yields its frames in arrays of at most ``chunk``. The thread continues with the following episodes,
    so short ones do not make the caller wait. ``episodes``: those that will be asked for, in their order (default: all of them). Memory:
    ``chunks`` + 1 arrays.
    """

    def __init__(
        self,
        source: Dataset,
        camera: str,
        size: tuple[int, int] | None,
        chunk: int = 64,
        chunks: int = 4,
        episodes: Sequence[Episode] | None = None,
    ) -> None:
        self.source, self.camera, self.size, self.chunk, self.chunks = source, camera, size, chunk, chunks
        self.missing = source.missing_episodes(camera)  # passed over
        self._order = source.episodes if episodes is None else episodes
        self._place = {episode.number: place for place, episode in enumerate(self._order)}
        self._thread = ThreadPoolExecutor(1)
        self._parts: Iterator[tuple[Episode, int]] = iter(())  # to be decoded next: episode, first frame
        self._ahead: deque[tuple[int, int, Future[np.ndarray]]] = deque()  # number of the episode, first frame, frames

    def __call__(self, episode: Episode) -> Iterator[UInt8[np.ndarray, "n h w 3"]]:
        if not self._ahead or self._ahead[0][:2] != (episode.number, 0):
            self.close()
            self._thread = ThreadPoolExecutor(1)
            self._parts = self._from(episode)
        for _ in range(0, episode.length, self.chunk):
            for following, start in islice(self._parts, self.chunks + 1 - len(self._ahead)):
                stop = min(start + self.chunk, following.length)
                frames = self._thread.submit(self.source.frames, following, self.camera, start, stop, self.size)
                self._ahead.append((following.number, start, frames))
            yield self._ahead.popleft()[2].result()

    def _from(self, first: Episode) -> Iterator[tuple[Episode, int]]:
        place = self._place.get(first.number)
        for episode in [first] if place is None else self._order[place:]:
            if episode.number == first.number or episode.number not in self.missing:
                yield from ((episode, start) for start in range(0, episode.length, self.chunk))

    def close(self) -> None:
        """Stop the thread."""
        self._thread.shutdown(cancel_futures=True)
        self._ahead.clear()
