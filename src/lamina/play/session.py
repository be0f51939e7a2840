"""Sessions: a start frame and moves, and the frames that the decoder rolls on to.

A session is a few words, such as start "d17" (the first frame of transition 17) and moves "4@8" (the latent of transition 4, its first 8
slots) or "1x4~-0.5x9@8" (a sum). Its frames follow from these words, the run, its data and the seed, so a session can be repeated from its
link; a server keeps frames only to be fast.
"""

from __future__ import annotations

import hashlib
import math
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lamina.errors import LaminaError
from lamina.play.pictures import read_upload
from lamina.play.stage import Reading, Stage, Terms
from lamina.types import Latent

MOVES = 1000  # of a session, at most
TERMS = 8  # of a sum, at most
FACTOR = 8.0  # largest size of a factor
CACHE = 128 * 2**20  # bytes of frames that are kept
UPLOADS = 64  # start frames that are kept
TERM = re.compile(r"(?:(-?\d{1,3}(?:\.\d{1,4})?)x)?(\d{1,6})")


@dataclass(frozen=True)
class Move:
    """One step: a sum of latents of transitions, cut to its first ``k`` slots."""

    terms: Terms
    k: int

    def __str__(self) -> str:
        plain = len(self.terms) == 1 and self.terms[0][0] == 1.0
        terms = [str(number) if plain else f"{factor:g}x{number}" for factor, number in self.terms]
        return "~".join(terms) + f"@{self.k}"


@dataclass(frozen=True)
class Session:
    """A start frame and the moves from there."""

    start: str
    moves: tuple[Move, ...] = ()


@dataclass(frozen=True, eq=False)
class Step:
    """The frame after a move, the translator's reading of the move, and the action that the next reading is conditioned on."""

    frame: UInt8[Tensor, "c h w"]
    reading: Reading | None
    previous: Float[Tensor, "a"]


class Player:
    """Rolls sessions on a :class:`Stage`. Calls from several threads take turns."""

    def __init__(self, stage: Stage):
        self.stage = stage
        self._uploads: OrderedDict[str, UInt8[Tensor, "c h w"]] = OrderedDict()
        self._steps: OrderedDict[Session, Step] = OrderedDict()
        self._most = max(64, CACHE // math.prod(stage.model.config.image))
        self._turn = threading.Lock()
        self.milliseconds = 0.0  # that the last move took

    def session(self, start: object, moves: object) -> Session:
        """A session from its words. Raises LaminaError for words that say nothing here."""
        if (
            not isinstance(start, str)
            or not isinstance(moves, list)
            or not all(isinstance(word, str) for word in moves)
        ):
            raise LaminaError("a session is a start and a list of moves, all of them words")
        if len(moves) > MOVES:
            raise LaminaError(f"a session has at most {MOVES} moves, not {len(moves)}; start another one")
        return Session(self._start(start), tuple(map(self._move, moves)))

    def _start(self, word: str) -> str:
        count = len(self.stage.clip)
        if re.fullmatch(r"d\d{1,6}", word) and int(word[1:]) < count:
            return word
        if word in self._uploads:
            return word
        if re.fullmatch(r"u[0-9a-f]{16}", word):
            raise LaminaError(
                "the uploaded start frame is not on this server; upload it again, or open the saved session"
            )
        raise LaminaError(f"no start frame '{word:.20}'; there are d0 to d{count - 1}")

    def _move(self, word: str) -> Move:
        sum_, at, k = word[:200].partition("@")
        words = sum_.split("~")
        found = [TERM.fullmatch(term) for term in words]
        slots, count = self.stage.model.config.slots, len(self.stage.latents)
        if not at or not re.fullmatch(r"\d{1,4}", k) or not all(found) or len(words) > TERMS:
            raise LaminaError(f"no move '{word:.20}'; one is 17@{slots} or 1x17~-0.5x4@{slots}")
        if not self.stage.prefixes[0] <= int(k) <= slots:
            raise LaminaError(f"no move '{word:.20}'; k can be {self.stage.prefixes[0]} to {slots}")
        terms = tuple((float(match[1] or 1), int(match[2])) for match in found if match)
        if any(abs(factor) > FACTOR or number >= count for factor, number in terms):
            raise LaminaError(
                f"no move '{word:.20}'; transitions are 0 to {count - 1}, factors -{FACTOR:g} to {FACTOR:g}"
            )
        return Move(terms, int(k))

    def upload(self, content: bytes) -> str:
        """The word of an uploaded start frame. Raises LaminaError for what is no picture, or too large."""
        _, height, width = self.stage.model.config.image
        frame = read_upload(content, (height, width))
        word = "u" + hashlib.sha256(content).hexdigest()[:16]
        with self._turn:
            self._uploads[word] = frame
            while len(self._uploads) > UPLOADS:
                self._uploads.popitem(last=False)
        return word

    def first(self, start: str) -> Step:
        """The start frame as a step. Before an upload, the action is zero or class 0, as it is at an episode's first row."""
        stage = self.stage
        if start in self._uploads:
            frame, previous = self._uploads[start], None
        elif start.startswith("d"):
            number = int(start[1:])
            frame = stage.clip.frames[number, 0]
            previous = None if stage.clip.previous_action is None else stage.clip.previous_action[number, 0]
        else:
            raise LaminaError(
                "the uploaded start frame is not on this server; upload it again, or open the saved session"
            )
        width = 0 if stage.translator is None else stage.translator.spec.dim
        if previous is None or len(previous) != width:  # data with other actions than those that the translator knows
            previous = torch.zeros(width)
        return Step(frame, None, previous)

    def latents(self, session: Session) -> list[Latent]:
        """The latent of every move, before its prefix is cut."""
        return [self.stage.latent(move.terms) for move in session.moves]

    def noise(self, number: int) -> int:
        """The seed of a flow decoder's noise at the move of that number."""
        return self.stage.seed + number

    def roll(self, session: Session) -> list[Step]:
        """The start and the step after every move."""
        with self._turn:
            steps = [self.first(session.start)]
            for number, move in enumerate(session.moves):
                key = Session(session.start, session.moves[: number + 1])
                step = self._steps.pop(key, None)
                if step is None:
                    began = time.perf_counter()
                    step = self._next(steps[-1], move, self.noise(number))
                    self.milliseconds = 1e3 * (time.perf_counter() - began)
                self._steps[key] = step  # last used, dropped last
                steps.append(step)
            while len(self._steps) > self._most:
                self._steps.popitem(last=False)
        return steps

    def _next(self, before: Step, move: Move, seed: int) -> Step:
        latent = self.stage.latent(move.terms)
        frame = self.stage.model.decode(before.frame[None], latent, move.k, seed)[0].cpu()
        reading = self.stage.read(latent, move.k, before.previous, before.frame)
        return Step(frame, reading, before.previous if reading is None else reading.action)


def words(moves: Sequence[Move]) -> list[str]:
    """Moves as words, which :meth:`Player.session` reads."""
    return [str(move) for move in moves]
