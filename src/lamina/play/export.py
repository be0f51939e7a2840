"""A session as a file: its film (mp4), its latents (JSON), or a Rerun recording (rrd)."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from lamina.data.lerobot.writer import VideoEncoding, write_video
from lamina.errors import LaminaError
from lamina.files import Scratch, to_json
from lamina.play.pictures import data_uri, from_data_uri
from lamina.play.session import Player, Session, words
from lamina.version import __version__

SIDE = 256  # pixels that the shorter side of a film has at least
FILM = VideoEncoding(crf=16, g=30)
FORMAT = 1  # of a saved session
LARGEST_SESSION = 16 * 2**20  # bytes of a saved session


def film(player: Player, session: Session) -> bytes:
    """The session as an mp4, from its start frame on, as fast as the gap of the model; small frames are enlarged without smoothing."""
    frames: list[UInt8[np.ndarray, "h w 3"]] = []
    for step in player.roll(session):
        frame = step.frame.permute(1, 2, 0).numpy()
        scale = -(-SIDE // min(frame.shape[:2]))
        frames.append(frame.repeat(scale, 0).repeat(scale, 1))
    rate = min(60.0, max(1.0, 1 / player.stage.model.provenance.label_gap))
    with Scratch() as folder:
        path = Path(folder) / "session.mp4"
        write_video(path, frames, round(rate, 2), FILM)
        return path.read_bytes()


def saved(player: Player, session: Session) -> bytes:
    """The session as JSON: everything that repeats it, and for each move the latent that the decoder read (before its prefix was cut),
    k, the seed of its noise, and the real action that was read off it."""
    stage = player.stage
    steps = player.roll(session)
    moves = [
        {
            "move": word,
            "k": move.k,
            "seed": player.noise(number),
            "latent": latent.post[0].tolist(),
            "index": None if latent.index is None else latent.index[0].tolist(),
            "reading": None if step.reading is None else list(step.reading.shown),
        }
        for number, (word, move, latent, step) in enumerate(
            zip(words(session.moves), session.moves, player.latents(session), steps[1:], strict=True)
        )
    ]
    start: dict[str, Any] = {"word": session.start, "frame": data_uri(steps[0].frame)}
    if session.start.startswith("d"):
        row = stage.clip[int(session.start[1:]) : int(session.start[1:]) + 1]
        start |= {"data": stage.data, "episode": int(row.episode[0]), "row": int(row.index[0, 0])}
    content = {
        "format": FORMAT,
        "lamina": __version__,
        "run": str(stage.run),
        "fingerprint": stage.fingerprint,
        "seed": stage.seed,
        "gap_seconds": stage.model.provenance.label_gap,
        "start": start,
        "moves": moves,
    }
    return (to_json(content, indent=1) + "\n").encode()


def opened(player: Player, content: bytes) -> Session:
    """A session that :func:`saved` wrote. Raises LaminaError for another file, and for a session of another run, data or seed."""
    try:
        values = json.loads(content)
        kind, fingerprint = values["format"], values["fingerprint"]
        start, moves = values["start"], [move["move"] for move in values["moves"]]
        word, frame = start["word"], start["frame"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise LaminaError("this file is no saved session") from error
    if kind != FORMAT:
        raise LaminaError(f"a session of format {kind!r:.20}; this version reads format {FORMAT}")
    if fingerprint != player.stage.fingerprint:
        raise LaminaError("this session is of another run, data or seed; start `lamina play` with those")
    if isinstance(word, str) and word.startswith("u") and isinstance(frame, str):
        word = player.upload(from_data_uri(frame))
    return player.session(word, moves)


def has_rerun() -> bool:
    """Whether recordings can be made: the extra ``rerun`` is installed."""
    return find_spec("rerun") is not None


def recording(player: Player, session: Session) -> bytes:
    """The session as a Rerun recording: frames, latents and what was read off them, over the number of the step.

    Raises LaminaError without the library.
    """
    try:
        import rerun
    except ImportError as error:
        raise LaminaError("a recording needs the rerun library: pip install 'lamina[rerun]'") from error
    stream = rerun.RecordingStream("lamina play", make_default=False, make_thread_default=False)
    target = rerun.binary_stream(recording=stream)
    latents = [None, *player.latents(session)]
    for number, (step, latent) in enumerate(zip(player.roll(session), latents, strict=True)):
        stream.set_time("step", sequence=number)
        stream.log("frame", rerun.Image(step.frame.permute(1, 2, 0).numpy()))
        if latent is not None:
            move = session.moves[number - 1]
            kept = player.stage.model.lam.prefix(latent.post.to(player.stage.model.device), move.k)[0]
            stream.log(
                "latent", rerun.Tensor(kept.detach().to(torch.float32).cpu().numpy(), dim_names=("slot", "channel"))
            )
            stream.log("move", rerun.TextLog(str(move)))
        for shown in step.reading.shown if step.reading else ():
            stream.log(
                f"action/{shown['name']}",
                rerun.Scalars(float(shown["probability"] if "probability" in shown else shown["value"])),
            )
    content = target.read(flush=True)
    if not content:
        raise LaminaError("rerun returned an empty recording")
    return bytes(content)
