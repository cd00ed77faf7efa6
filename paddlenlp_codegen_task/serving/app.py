"""The server's routes."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ValidationError

from paddlenlp_codegen_task.generator import CodeGenerator
from paddlenlp_codegen_task.serving import operations, page
from paddlenlp_codegen_task.serving.async_engine import AsyncEngine, Overloaded
from paddlenlp_codegen_task.serving.completions import Completions, Job, overloaded
from paddlenlp_codegen_task.serving.gate import Gone
from paddlenlp_codegen_task.serving.protocol import CompletionRequest, RequestError
from paddlenlp_codegen_task.serving.settings import Settings

logger = logging.getLogger(__name__)

Model = TypeVar("Model", bound=BaseModel)
T = TypeVar("T")

DONE = b"data: [DONE]\n\n"


def create_app(generator: CodeGenerator, settings: Settings | None = None) -> FastAPI:
    """Return an ASGI application that completes code; it does not close the generator.

    Args:
        generator: what completes.
        settings: what is allowed; None for the defaults.
    """
    settings = settings or Settings()
    engine = AsyncEngine(
        generator, generator.batch_size + settings.max_waiting, settings.request_timeout
    )
    completions = Completions(engine, settings)
    app = FastAPI(title="paddlenlp-codegen", docs_url=None, redoc_url=None)
    app.state.engine, app.state.settings, app.state.completions = engine, settings, completions

    @app.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> Response:
        headers = {"Retry-After": "1"} if error.status in (429, 503) else None
        return JSONResponse(error.body(), error.status, headers)

    @app.post("/v1/completions")
    async def complete(request: Request) -> Response:
        asked = await read(request, CompletionRequest, settings)
        job = await completions.job(asked)
        if asked.stream:
            return await event_stream(completions, job)
        return JSONResponse(await unless_gone(request, completions.answer(job)))

    page.add_routes(app)
    operations.add_routes(app, engine)
    operations.add_gate(app, engine, settings)
    return app


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
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        field = str(first["loc"][0]) if first["loc"] else None
        problem = f"{where}: {first['msg']}" if where else str(first["msg"])
        raise RequestError(problem[:300].replace("\n", " "), field) from None


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


async def event_stream(completions: Completions, job: Job) -> Response:
    """An answer by server-sent events; what fails before its first part has a status."""
    parts = completions.stream(job)
    try:
        first = await anext(parts, None)
    except Overloaded:
        raise overloaded() from None
    return StreamingResponse(_events(first, parts), media_type="text/event-stream")


async def _events(first: Any, parts: AsyncGenerator[Any, None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(parts):
        try:
            if first is not None:
                yield _event(first)
            async for part in parts:
                yield _event(part)
        except RequestError as error:
            yield _event(error.body())
        except Exception as error:
            logger.warning("a stream has failed: %r", error)
            message = RequestError(
                f"{type(error).__name__}: {error}", status=500, kind="server_error"
            )
            yield _event(message.body())
            return
    yield DONE


def _event(body: Any) -> bytes:
    return b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n"
