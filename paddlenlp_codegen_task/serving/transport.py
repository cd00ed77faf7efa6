"""Bodies in and answers out, for every dialect: what is read, written, and given up."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ValidationError

from paddlenlp_codegen_task import checks
from paddlenlp_codegen_task.serving.gate import Gone
from paddlenlp_codegen_task.serving.protocol import RequestError, refused
from paddlenlp_codegen_task.serving.settings import Settings

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

logger = logging.getLogger(__name__)

Model = TypeVar("Model", bound=BaseModel)
T = TypeVar("T")
Parts = AsyncGenerator[dict[str, Any], None]


async def read(request: Request, model: type[Model], settings: Settings) -> Model:
    """Read a request's body.

    Raises:
        RequestError: it is too long, no JSON, or not what is asked for.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > settings.max_body_bytes:
            raise RequestError(
                f"the body must have {settings.max_body_bytes} bytes at most", status=413
            )
    try:
        return model.model_validate_json(bytes(body))
    except ValidationError as error:
        raise refused(error) from None


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Do something for a client, and give it up when the client hangs up."""
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_hung_up(request))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise Gone
    finally:
        watch.cancel()
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def event(body: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n"


def line(body: dict[str, Any]) -> bytes:
    """One line of newline-delimited JSON."""
    return json.dumps(body, ensure_ascii=False).encode() + b"\n"


@dataclass(frozen=True)
class Framing:
    """How a stream is written.

    Attributes:
        media_type: of all of it.
        write: a part of it.
        fault: what tells of an error that comes after its first part.
        end: what comes last.
    """

    media_type: str
    write: Callable[[dict[str, Any]], bytes]
    fault: Callable[[RequestError], dict[str, Any]]
    end: bytes = b""


OPENAI = Framing("text/event-stream", event, RequestError.body, b"data: [DONE]\n\n")


async def streamed(request: Request, parts: Parts, framing: Framing) -> Response:
    """An answer in parts; what fails before the first of them has a status."""
    first = await unless_gone(request, _first(parts))
    return _Streamed(first, parts, framing)


class _Streamed(StreamingResponse):
    """Gives up what it streams as soon as its client is gone, not when memory is collected."""

    def __init__(self, first: dict[str, Any] | None, parts: Parts, framing: Framing) -> None:
        self._parts = parts
        self._written = _written(first, parts, framing)
        super().__init__(self._written, media_type=framing.media_type)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            # What is written may never have been asked for its first part.
            await self._written.aclose()
            await self._parts.aclose()


async def _first(parts: Parts) -> dict[str, Any] | None:
    return await anext(parts, None)


async def _written(
    first: dict[str, Any] | None, parts: Parts, framing: Framing
) -> AsyncGenerator[bytes, None]:
    async with aclosing(parts):
        try:
            if first is not None:
                yield framing.write(first)
            async for part in parts:
                yield framing.write(part)
        except RequestError as error:
            yield framing.write(framing.fault(error))
        except Exception as error:
            # An error's text may have a prompt's in it.
            logger.warning("a stream has failed: %s", type(error).__name__)
            message = checks.line(f"{type(error).__name__}: {error}", 300)
            failed = RequestError(message, status=500, kind="server_error")
            yield framing.write(framing.fault(failed))
    yield framing.end
