"""What every request passes: its id, its key, how long it may take, and its line in the log."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
import traceback
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from starlette.requests import ClientDisconnect

from paddlenlp_codegen_task import checks
from paddlenlp_codegen_task.serving.async_engine import AsyncEngine
from paddlenlp_codegen_task.serving.keys import Keys
from paddlenlp_codegen_task.serving.metrics import Tally, tally
from paddlenlp_codegen_task.serving.protocol import RequestError
from paddlenlp_codegen_task.serving.refusals import refusal
from paddlenlp_codegen_task.serving.settings import Settings

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger(__name__)

# Answered although the server is stopping; asked so often that their lines are for debugging.
PROBES = frozenset({"/health", "/metrics", "/version"})
LONGEST_PATH = 200  # characters, in the log
GRACE = 5.0  # seconds beyond the request's time: what is still there then is cut off
CLOSED = 499  # of a client that has gone before its answer; nginx's number

_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class Gone(Exception):
    """The client has hung up."""


@dataclass
class Traffic:
    """How many requests are being answered."""

    running: int = 0


@dataclass
class _Exchange:
    """A request, and how far its answer is.

    Attributes:
        id: tells it from others, in the log and in the answer.
        status: of the answer; 0 before it has begun.
        complete: whether all of the answer has been sent.
        received: whether all of the request is here.
        task: that answers it.
        cut: why it was given up; None if it was not.
        tally: its tokens.
    """

    id: str
    task: asyncio.Task[object] | None
    status: int = 0
    complete: bool = False
    received: bool = False
    cut: RequestError | None = None
    tally: Tally = field(default_factory=Tally)
    begun: float = field(default_factory=time.monotonic)


class Gate:
    """Stands before an application; it alone turns errors that nobody expected into answers."""

    def __init__(
        self, app: ASGIApp, engine: AsyncEngine, settings: Settings, traffic: Traffic
    ) -> None:
        """Let in what may pass to `app`, and count it in `traffic`."""
        self._app, self._engine, self._settings = app, engine, settings
        self._traffic = traffic
        self._keys = Keys(settings.api_keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(_request_id(scope), asyncio.current_task())
        mine = tally.set(exchange.tally)
        self._traffic.running += 1
        try:
            await self._answer(scope, receive, send, exchange)
        finally:
            self._traffic.running -= 1
            tally.reset(mine)
            self._tell(scope, exchange)

    async def _answer(
        self, scope: Scope, receive: Receive, send: Send, exchange: _Exchange
    ) -> None:
        sending = self._sending(send, exchange)
        if (wrong := self._refusal(scope)) is not None:
            await send_error(scope, sending, wrong)
            return
        try:
            await self._within_time(scope, self._receiving(receive, exchange), sending, exchange)
        except (Gone, ClientDisconnect):  # the latter amid the body
            return
        except Exception as error:
            # An error's text may have a prompt's in it.
            place = traceback.extract_tb(error.__traceback__)[-1]
            name = type(error).__name__
            logger.error("id=%s failed: %s at %s:%d", exchange.id, name, place.name, place.lineno)
            logger.debug("id=%s", exchange.id, exc_info=True)
            failed = RequestError(f"the server has failed: {name}", status=500, kind="server_error")
            exchange.cut = failed
        if exchange.cut is not None and not exchange.status:
            await send_error(scope, sending, exchange.cut)

    def _refusal(self, scope: Scope) -> RequestError | None:
        """Why a request is not let in."""
        path = scope["path"]
        if not self._keys.allow(scope["method"], path, scope["headers"]):
            return RequestError(
                "a key is required, and this is none of the server's: send it as 'Authorization: "
                "Bearer KEY' or 'api-key: KEY'",
                status=401,
                code="invalid_api_key",
            )
        if path in PROBES or (self._engine.alive and not self._engine.draining):
            return None
        what = "is stopping" if self._engine.alive else "has failed"
        return RequestError(
            f"the server {what}, and takes no requests", status=503, kind="server_error"
        )

    async def _within_time(
        self, scope: Scope, receive: Receive, send: Send, exchange: _Exchange
    ) -> None:
        """Answer, and give up when it has taken far too long: a stream ends itself before."""
        seconds, timer = self._settings.request_timeout, None
        if seconds is not None:
            error = RequestError(
                f"the request was not done within {seconds:g} seconds",
                status=504,
                kind="timeout_error",
                code="timeout",
            )
            timer = _Timer(seconds + GRACE, exchange, error)
        try:
            await self._app(scope, receive, send)
        except asyncio.CancelledError:
            if exchange.cut is None or exchange.task is None or exchange.task.uncancel():
                raise
        finally:
            if timer is not None:
                timer.cancel()

    def _receiving(self, receive: Receive, exchange: _Exchange) -> Receive:
        """`receive`, which gives up on a body that does not come."""
        error = RequestError("the rest of the body did not come", status=408, code="timeout")

        async def receive_some() -> Message:
            if exchange.received:
                return await receive()
            timer = _Timer(self._settings.unread_seconds, exchange, error)
            try:
                message = await receive()
            finally:
                timer.cancel()
            exchange.received = not message.get("more_body", False)
            return message

        return receive_some

    def _sending(self, send: Send, exchange: _Exchange) -> Send:
        """`send`, which gives up on a client that reads nothing, and marks answers."""
        error = RequestError("the client reads nothing", status=408, code="timeout")

        async def send_some(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", exchange.id.encode()),
                ]
            timer = _Timer(self._settings.unread_seconds, exchange, error)
            try:
                await send(message)
            finally:
                timer.cancel()
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                exchange.complete = True

        return send_some

    def _tell(self, scope: Scope, exchange: _Exchange) -> None:
        """Count an answer, and write its line; no line has anything of a prompt or a key."""
        status = exchange.status
        if not exchange.complete:
            status = CLOSED if exchange.cut is None else exchange.cut.status
        route = getattr(scope.get("route"), "path", "none")
        self._engine.metrics.answered(str(route), status)
        raw = scope.get("raw_path") or scope["path"].encode()
        path = checks.line(raw.decode("ascii", "replace"), LONGEST_PATH)
        client = scope.get("client")
        logger.log(
            logging.DEBUG if scope["path"] in PROBES else logging.INFO,
            "%s %s %d %.1f ms prompt=%d cached=%d generated=%d client=%s id=%s",
            scope["method"],
            path,
            status,
            1000 * (time.monotonic() - exchange.begun),
            exchange.tally.prompt,
            exchange.tally.cached,
            exchange.tally.generated,
            client[0] if client else "-",
            exchange.id,
        )


class _Timer:
    """Gives an exchange up, unless it is cancelled before.

    It cancels the task of all the exchange, not a task of that: a group of tasks goes on where one
    of them is cancelled.
    """

    def __init__(self, seconds: float, exchange: _Exchange, error: RequestError) -> None:
        """Give `exchange` up for this reason after so many seconds."""
        self._exchange, self._error = exchange, error
        self._handle = asyncio.get_running_loop().call_later(seconds, self._expire)

    def cancel(self) -> None:
        """Let it be."""
        self._handle.cancel()

    def _expire(self) -> None:
        if self._exchange.cut is None and self._exchange.task is not None:
            self._exchange.cut = self._error
            self._exchange.task.cancel()


async def send_error(scope: Scope, send: Send, error: RequestError) -> None:
    """Answer with an error, and have the connection closed: its body may not have been read."""
    status, told = refusal(scope, error)
    body = json.dumps(told).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if error.status in (429, 503):
        headers.append((b"retry-after", b"1"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _request_id(scope: Scope) -> str:
    """What the client calls its request, if that can be an id; else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _ID.fullmatch(value):
            return str(value.decode())
    return f"req-{uuid.uuid4().hex[:16]}"
