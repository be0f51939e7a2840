"""The server behind the page. It listens on 127.0.0.1 alone, and answers only to addresses that hold its random token.

Nothing of a request is executed or written to disk. Sizes of requests are limited, uploads are checked before they are decoded, and the
content security policy keeps the page from loading anything from elsewhere. All sessions are in the requests (:mod:`lamina.play.session`),
so any number of windows can be open.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import queue
import secrets
import socket
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from lamina.data.dataset import Data
from lamina.errors import LaminaError
from lamina.evaluation.probes.structure import sum_side
from lamina.files import to_json
from lamina.play import export
from lamina.play.health import examined, health
from lamina.play.pictures import LARGEST_SIDE, LARGEST_UPLOAD, data_uri, png
from lamina.play.session import Player, Session, Step
from lamina.play.stage import TRANSITIONS, Stage
from lamina.version import __version__

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import RedirectResponse, Response
    from starlette.routing import Route
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
except ImportError as error:
    raise LaminaError("lamina play needs starlette and uvicorn: pip install 'lamina[play]'") from error

HOST = "127.0.0.1"
PORT = 8484
LARGEST_REQUEST = 256 * 1024  # bytes of a request that is no upload
SESSIONS = 16  # of one request, at most
ASSETS = {
    "": ("index.html", "text/html"),
    "play.css": ("play.css", "text/css"),
    "play.js": ("play.js", "text/javascript"),
}
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
T = TypeVar("T")


class Refusal(LaminaError):
    """A request that cannot be answered, with its HTTP status."""

    def __init__(self, text: str, status: int):
        super().__init__(text)
        self.status = status


class Worker:
    """One thread that does the work of requests in turn. It ends with the process, whatever it is at."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        while True:
            self._jobs.get()()

    async def __call__(self, function: Callable[..., T], *arguments: Any) -> T:
        """The result of ``function``, or what it raises."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def settle(how: Callable[[Any], None], value: Any) -> None:
            if not future.done():
                how(value)

        def job() -> None:
            try:
                outcome = future.set_result, function(*arguments)
            except Exception as error:
                outcome = future.set_exception, error  # type: ignore[assignment]
            with suppress(RuntimeError):  # the server has ended meanwhile
                loop.call_soon_threadsafe(settle, *outcome)

        self._jobs.put(job)
        return await future


class Guard:
    """Lets through what was asked of 127.0.0.1 with the token, and adds :data:`HEADERS` to every answer."""

    def __init__(self, app: ASGIApp, token: str):
        self.app, self.token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = {name for name, _ in message["headers"]}
                more = [(name.encode(), value.encode()) for name, value in HEADERS.items() if name.encode() not in own]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        given = scope["path"].split("/")[1]
        if host.rpartition(":")[0] not in (HOST, "localhost"):
            refusal = "this server answers to 127.0.0.1 alone"
        elif not hmac.compare_digest(given.encode(), self.token.encode()):
            refusal = "not found; open the whole address that lamina play has printed"
        elif headers.get(b"origin", f"http://{host}".encode()) != f"http://{host}".encode():
            refusal = "requests of other pages are refused"
        else:
            await self.app(scope, receive, answer)
            return
        await Response(refusal, 404, media_type="text/plain")(scope, receive, answer)


def answer_json(content: Any, status: int = 200) -> Response:
    """A JSON answer; what is no finite number is null."""
    return Response(to_json(content), status, media_type="application/json")


def application(player: Player, token: str) -> ASGIApp:
    """The page and what it asks for, below /TOKEN/."""
    stage = player.stage
    work, slow = Worker(), Worker()
    cached: dict[str, Any] = {}
    files = {
        name: resources.files("lamina.play").joinpath("page", file).read_bytes() for name, (file, _) in ASSETS.items()
    }

    async def asset(request: Request) -> Response:
        name = request.path_params.get("name", "")
        return Response(files[name], media_type=ASSETS[name][1])

    async def tell(_: Request) -> Response:
        return answer_json(about(player))

    async def frame(request: Request) -> Response:
        n, t = request.path_params["n"], request.path_params["t"]
        if not (n < len(stage.clip) and t < stage.clip.frames.shape[1]):
            raise Refusal("there is no such frame", 404)
        kept = {"cache-control": "private, max-age=3600"}
        return Response(png(stage.clip.frames[n, t]), media_type="image/png", headers=kept)

    async def upload(request: Request) -> Response:
        if not request.headers.get("content-type", "").startswith("image/"):
            raise Refusal("the upload is no picture; choose a PNG, JPEG or WebP file", 415)
        content = await body(
            request, LARGEST_UPLOAD, f"the upload has more than {LARGEST_UPLOAD // 2**20} MB; choose a smaller picture"
        )
        return answer_json({"start": await work(player.upload, content)})

    async def roll(request: Request) -> Response:
        asked = await sent(request)
        sessions = asked.get("sessions")
        if not isinstance(sessions, list) or not 0 < len(sessions) <= SESSIONS:
            raise LaminaError(f"a request holds 1 to {SESSIONS} sessions")
        found = [session_of(one) for one in sessions]
        return answer_json(await work(rolled, player, found, asked.get("every") is True))

    def session_of(values: Any) -> Session:
        values = values if isinstance(values, dict) else {}
        return player.session(values.get("start"), values.get("moves"))

    async def save(request: Request) -> Response:
        make, kind, name = {
            "mp4": (export.film, "video/mp4", "session.mp4"),
            "json": (export.saved, "application/json", "session.json"),
            "rrd": (export.recording, "application/octet-stream", "session.rrd"),
        }[request.path_params["kind"]]
        content = await slow(make, player, session_of(await sent(request)))
        return Response(content, media_type=kind, headers={"content-disposition": f'attachment; filename="{name}"'})

    async def reopen(request: Request) -> Response:
        content = await body(request, export.LARGEST_SESSION, "this file is no saved session")
        session = await work(export.opened, player, content)
        return answer_json({"start": session.start, "moves": [str(move) for move in session.moves]})

    async def once(key: str, make: Callable[[], Any]) -> Any:
        if key not in cached:
            cached[key] = await slow(make)
        return cached[key]

    async def map_(request: Request) -> Response:
        method = request.path_params["method"]
        places = await once(f"map {method}", lambda: stage.map(method).tolist())
        return answer_json({"places": places, "colours": await once("colours", stage.colours)})

    async def check(_: Request) -> Response:
        return answer_json(await once("health", lambda: health(stage)))

    async def examine(_: Request) -> Response:
        return answer_json(await once("doctor", lambda: examined(stage)))

    async def refused(_: Request, error: Exception) -> Response:
        return answer_json({"error": str(error)}, error.status if isinstance(error, Refusal) else 400)

    async def gone(_: Request, error: Exception) -> Response:
        return Response(status_code=400)

    def route(path: str, endpoint: Callable[[Request], Awaitable[Response]], method: str = "GET") -> Route:
        return Route(f"/{token}/{path}", endpoint, methods=[method])

    async def enter(_: Request) -> Response:
        return RedirectResponse(f"/{token}/")

    app = Starlette(
        routes=[
            Route(f"/{token}", enter),
            route("", asset),
            *(Route(f"/{token}/{name}", _named(asset, name)) for name in ASSETS if name),
            route("about", tell),
            route("frame/{n:int}/{t:int}.png", frame),
            route("upload", upload, "POST"),
            route("roll", roll, "POST"),
            *(
                Route(f"/{token}/save/{kind}", _named(save, kind, "kind"), methods=["POST"])
                for kind in ("mp4", "json", "rrd")
            ),
            route("open", reopen, "POST"),
            route("map/{method}", map_),
            route("health", check),
            route("doctor", examine),
        ],
        exception_handlers={LaminaError: refused, ClientDisconnect: gone},
    )
    return Guard(app, token)


def _named(
    endpoint: Callable[[Request], Awaitable[Response]], value: str, name: str = "name"
) -> Callable[[Request], Awaitable[Response]]:
    async def call(request: Request) -> Response:
        request.scope["path_params"] = {name: value}
        return await endpoint(request)

    return call


async def body(request: Request, most: int, refusal: str) -> bytes:
    """The content of a request, read no further than ``most`` bytes. Raises Refusal for more."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise Refusal(refusal, 413)
        parts.append(part)
    return b"".join(parts)


async def sent(request: Request) -> dict[str, Any]:
    """The JSON object of a request. Raises LaminaError for anything else."""
    content = await body(request, LARGEST_REQUEST, "the request is too large")
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise LaminaError("the request is no JSON") from error
    if not isinstance(values, dict):
        raise LaminaError("the request is no JSON object")
    return values


def rolled(player: Player, sessions: Sequence[Session], every: bool) -> dict[str, Any]:
    """For each session its last step, or ``every`` one, with the milliseconds that the last new move took."""

    def shown(step: Step) -> dict[str, Any]:
        return {"frame": data_uri(step.frame), "reading": None if step.reading is None else list(step.reading.shown)}

    found = [[shown(step) for step in player.roll(session)[0 if every else -1 :]] for session in sessions]
    return {"steps": found, "milliseconds": player.milliseconds}


def about(player: Player) -> dict[str, Any]:
    """What the page needs to know before it shows anything."""
    stage = player.stage
    clip = stage.clip
    return {
        "version": __version__,
        "run": str(stage.run),
        "method": stage.model.provenance.method,
        "data": stage.data,
        "split": stage.split,
        "seed": stage.seed,
        "fingerprint": stage.fingerprint,
        "image": list(stage.model.config.image[1:]),
        "slots": stage.model.config.slots,
        "prefixes": list(stage.prefixes),
        "gap": stage.model.provenance.label_gap,
        "following": clip.frames.shape[1] > 2,
        "unread": stage.unread,
        "sums": "before" if sum_side(stage.model) == "continuous" else "after",
        "rerun": export.has_rerun(),
        "umap": find_spec("umap") is not None,
        "upload": {"bytes": LARGEST_UPLOAD, "side": LARGEST_SIDE},
        "moving": stage.moving.tolist(),
        "first": int(max((cluster.medoid for cluster in stage.clusters), key=stage.change.__getitem__)),
        "keys": [
            {
                "medoid": cluster.medoid,
                "examples": list(cluster.examples),
                "share": len(cluster.members) / len(clip),
                "label": cluster.label,
            }
            for cluster in stage.clusters
        ],
        "transitions": [
            {"episode": episode, "row": row, "action": stage.action_text(n), "task": stage.tasks[n]}
            for n, (episode, row) in enumerate(zip(clip.episode.tolist(), clip.index[:, 0].tolist(), strict=True))
        ],
    }


def listen(port: int) -> socket.socket:
    """A socket on 127.0.0.1; 0: any free port. Raises LaminaError where the port is in use."""
    server = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        server.bind((HOST, port))
        server.listen(128)
    except OSError as error:
        server.close()
        raise LaminaError(
            f"port {port} of {HOST} is in use, perhaps by another lamina play; choose another by --port"
        ) from error
    return server


def server_of(player: Player, token: str) -> uvicorn.Server:
    """The server, which is run on a socket of :func:`listen`."""
    config = uvicorn.Config(
        application(player, token),
        log_level="error",
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=1,
    )
    return uvicorn.Server(config)


def play(
    run: Path,
    data: Data | None = None,
    *,
    camera: str | None = None,
    port: int = PORT,
    transitions: int = TRANSITIONS,
    seed: int = 0,
    device: str = "auto",
) -> None:
    """Serve the page until Ctrl-C; prints its address. Raises LaminaError as :meth:`Stage.load` does, and for a port in use."""
    socket_ = listen(port)  # before a model is loaded in vain
    try:
        stage = Stage.load(run, data, camera=camera, transitions=transitions, seed=seed, device=device)
        token = secrets.token_urlsafe(16)
        print(f"{len(stage.clip)} transitions of the {stage.split} split of {stage.data}")
        print(f"http://{HOST}:{socket_.getsockname()[1]}/{token}/   (Ctrl-C ends it)", flush=True)
        # Ctrl-C stops the server, which raises it again afterwards, or not, if its loop has ended by then.
        with suppress(KeyboardInterrupt):
            server_of(Player(stage), token).run(sockets=[socket_])
        print("ended", flush=True)
    finally:
        socket_.close()
