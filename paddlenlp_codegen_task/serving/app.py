"""The server's routes."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from paddlenlp_codegen_task.generator import CodeGenerator
from paddlenlp_codegen_task.serving import about, dialects, operations, page
from paddlenlp_codegen_task.serving.async_engine import AsyncEngine
from paddlenlp_codegen_task.serving.completions import Completions
from paddlenlp_codegen_task.serving.protocol import CompletionRequest, RequestError
from paddlenlp_codegen_task.serving.refusals import refusal
from paddlenlp_codegen_task.serving.settings import Settings
from paddlenlp_codegen_task.serving.transport import OPENAI, read, streamed, unless_gone


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
        status, body = refusal(request.scope, error)
        return JSONResponse(body, status, headers)

    @app.exception_handler(HTTPException)
    async def astray(request: Request, error: HTTPException) -> Response:
        told = RequestError(f"{request.method}: {error.detail}", status=error.status_code)
        status, body = refusal(request.scope, told)
        return JSONResponse(body, status, error.headers)

    @app.post("/v1/completions")
    async def complete(request: Request) -> Response:
        asked = await read(request, CompletionRequest, settings)
        job = await completions.job(asked)
        if asked.stream:
            return await streamed(request, completions.stream(job), OPENAI)
        return JSONResponse(await unless_gone(request, completions.answer(job)))

    about.add_routes(app, completions)
    dialects.add_routes(app, completions)
    page.add_routes(app)
    operations.add_routes(app, engine)
    operations.add_gate(app, engine, settings)
    return app
