"""The door of a server on Ray: takes requests, and has each answered by the replica it belongs to.

Serve chooses a replica by what it sees of a request before its body has been read, so the body is
read here, and the choice is of a second call, which knows the prompt. What stands at the door knows
no model and keeps nothing: there may be as many of it as there are machines.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount

from paddlenlp_codegen_task import checks
from paddlenlp_codegen_task.distributed import routing
from paddlenlp_codegen_task.serving import ollama, tgi
from paddlenlp_codegen_task.serving.async_engine import Overloaded, TimedOut
from paddlenlp_codegen_task.serving.gate import GRACE, LONGEST_PATH, send_error
from paddlenlp_codegen_task.serving.keys import Keys
from paddlenlp_codegen_task.serving.protocol import RequestError
from paddlenlp_codegen_task.serving.refusals import dialect
from paddlenlp_codegen_task.serving.settings import Settings
from paddlenlp_codegen_task.serving.transport import OPENAI, Framing

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

logger = logging.getLogger(__name__)

ATTEMPTS = 3  # replicas that are tried while nothing of the answer has been sent
ASK_SECONDS = 5.0  # for what all replicas are asked at once
# What of ASGI's scope is the request's own; all else is of this process.
_OWN = (
    *("type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string"),
    *("root_path", "headers", "client", "server"),
)
_FRAMINGS = {"openai": OPENAI, "tgi": tgi.EVENTS, "ollama": ollama.LINES}


def create_app(model: DeploymentHandle[Any], settings: Settings) -> Starlette:
    """Return an ASGI application that has a deployment of `Model` answer.

    Args:
        model: the deployment.
        settings: what is allowed.
    """
    middleware = []
    if settings.cors_origins:
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=settings.cors_origins,
                allow_methods=["GET", "POST"],
                allow_headers=["*"],
                expose_headers=["x-request-id", "retry-after"],
            )
        )
    return Starlette(routes=[Mount("/", Door(model, settings))], middleware=middleware)


class Door:
    """An ASGI application: reads a request, finds where it belongs, and passes the answer on."""

    def __init__(self, model: DeploymentHandle[Any], settings: Settings) -> None:
        """Pass what `settings` allow to `model`."""
        self._model, self._settings = model, settings
        self._keys = Keys(settings.api_keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1000})
            return
        answer = _Answer(scope, send)
        try:
            await self._answer(scope, receive, answer)
        except RequestError as error:
            path = checks.line(scope["path"], LONGEST_PATH)
            logger.info("%s %s %d %s", scope["method"], path, error.status, error)
            await answer.fail(error)

    async def _answer(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        method, path = scope["method"], scope["path"]
        if not self._keys.allow(method, path, scope["headers"]):
            raise RequestError(
                "a key is required, and this is none of the server's: send it as 'Authorization: "
                "Bearer KEY' or 'api-key: KEY'",
                status=401,
                code="invalid_api_key",
            )
        if method == "GET" and path in ("/health", "/metrics"):
            response = await (self._health() if path == "/health" else self._metrics(scope))
            await response(scope, receive, answer.send)
            return
        body = await self._read(receive)
        client = scope.get("client") or ("",)
        key = routing.key(client[0], scope["headers"], body)
        own = {name: scope[name] for name in _OWN if name in scope}
        seconds = self._settings.request_timeout
        try:
            # The replica keeps the time itself; it knows nothing of what was spent waiting for it.
            async with asyncio.timeout(None if seconds is None else seconds + GRACE):
                await self._passed(own, body, key, answer)
        except TimeoutError:
            assert seconds is not None
            raise TimedOut(seconds) from None

    async def _read(self, receive: Receive) -> bytes:
        body, most = bytearray(), self._settings.max_body_bytes
        more = True
        while more:
            try:
                async with asyncio.timeout(self._settings.unread_seconds):
                    message = await receive()
            except TimeoutError:
                raise RequestError(
                    "the rest of the body did not come", status=408, code="timeout"
                ) from None
            if message["type"] == "http.disconnect":
                raise RequestError("the client has hung up", status=408)
            body += message.get("body", b"")
            if len(body) > most:
                raise RequestError(f"the body must have {most} bytes at most", status=413)
            more = message.get("more_body", False)
        return bytes(body)

    async def _passed(
        self, scope: Mapping[str, Any], body: bytes, key: str, answer: _Answer
    ) -> None:
        """Have a replica answer; another one where it dies before it has begun to."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                await self._answered(scope, body, key, answer)
                return
            except BackPressureError:
                raise Overloaded from None
            except DeploymentUnavailableError:
                raise RequestError(
                    "the server is stopping, or has failed, and takes no requests",
                    status=503,
                    kind="server_error",
                ) from None
            except RayTaskError as error:
                logger.error("the replica has failed: %s", type(error.cause).__name__)
                raise RequestError(
                    "the server has failed", status=500, kind="server_error"
                ) from None
            except RayError as error:
                logger.warning("attempt %d: %s", attempt, type(error).__name__)
                if answer.begun or attempt == ATTEMPTS:
                    raise RequestError(
                        "the server has stopped before the request was done",
                        status=503,
                        kind="server_error",
                    ) from None

    async def _answered(
        self, scope: Mapping[str, Any], body: bytes, key: str, answer: _Answer
    ) -> None:
        handle = self._model.options(method_name="answer", stream=True, session_id=key)
        response: Any = handle.remote(scope, body)  # a generator, as `stream` says
        try:
            async for messages in response:
                for message in messages:
                    await answer.send(message)
        finally:
            response.cancel()  # of a client that is gone; nothing where it has ended

    async def _health(self) -> Response:
        found = [status for _, status in await self._ask("health")]
        if "ok" in found:
            return JSONResponse({"status": "ok"})
        return JSONResponse({"status": found[0] if found else "failed"}, 503)

    async def _metrics(self, scope: Scope) -> Response:
        registry = CollectorRegistry()
        registry.register(_OfReplicas(await self._ask("metrics")))
        encode, media_type = choose_encoder(Request(scope).headers.get("accept", ""))
        return Response(encode(registry), headers={"content-type": media_type})

    async def _ask(self, method: str) -> Sequence[tuple[str, Any]]:
        """What each replica that answers says: its name, and that; however busy it is."""
        try:
            response = self._model.broadcast(method)
            found = await response.results_async(timeout_s=ASK_SECONDS, return_exceptions=True)
        except (DeploymentUnavailableError, RayError, TimeoutError) as error:
            logger.warning("the replicas do not say their %s: %s", method, type(error).__name__)
            return []
        return [one for one in found if not isinstance(one, BaseException)]


class _Answer:
    """An answer, as far as it has been sent."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope, self._send = scope, send
        self.begun = False
        self._streams: Framing | None = None

    async def send(self, message: Message) -> None:
        """Send a part of it."""
        if message["type"] == "http.response.start":
            self.begun = True
            framing = _FRAMINGS[dialect(self._scope["path"])]
            kind = dict(message["headers"]).get(b"content-type", b"")
            if kind.startswith(framing.media_type.encode()):
                self._streams = framing
            # Serve's proxy adds this one itself.
            kept = [one for one in message["headers"] if one[0] != b"x-request-id"]
            message = {**message, "headers": kept}
        await self._send(message)

    async def fail(self, error: RequestError) -> None:
        """Tell of an error, in the client's words.

        Raises:
            RequestError: it cannot be told any more: the connection is to be broken.
        """
        if not self.begun:
            await send_error(self._scope, self._send, error)
        elif self._streams is not None:
            streams = self._streams
            body = streams.write(streams.fault(error)) + streams.end
            await self._send({"type": "http.response.body", "body": body})
        else:
            raise error


class _OfReplicas(Collector):
    """What replicas count, each with its name."""

    def __init__(self, found: Sequence[tuple[str, Sequence[Metric]]]) -> None:
        self._found = found

    def collect(self) -> Sequence[Metric]:
        """The metrics."""
        whole: dict[str, Metric] = {}
        for replica, metrics in self._found:
            for metric in metrics:
                all_of_it = whole.setdefault(
                    metric.name,
                    Metric(metric.name, metric.documentation, metric.type, metric.unit),
                )
                all_of_it.samples += [
                    one._replace(labels={**one.labels, "replica": replica})
                    for one in metric.samples
                ]
        return list(whole.values())
