"""What whoever runs the server asks it: whether it is well, and what it does."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client.exposition import choose_encoder
from starlette.middleware.cors import CORSMiddleware

from paddlenlp_codegen_task.serving.async_engine import AsyncEngine
from paddlenlp_codegen_task.serving.gate import Gate, Traffic
from paddlenlp_codegen_task.serving.settings import Settings


def add_routes(app: FastAPI, engine: AsyncEngine) -> None:
    """Answer probes."""

    @app.get("/health")
    async def health() -> Response:
        if engine.alive and not engine.draining:
            return JSONResponse({"status": "ok"})
        return JSONResponse({"status": "stopping" if engine.alive else "failed"}, 503)

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        measured = await engine.measure()
        encode, media_type = choose_encoder(request.headers.get("accept", ""))
        return Response(
            encode(measured.registry), media_type=None, headers={"content-type": media_type}
        )


def add_gate(app: FastAPI, engine: AsyncEngine, settings: Settings) -> None:
    """Have every request pass the gate, and before it what browsers ask."""
    app.state.traffic = Traffic()
    app.add_middleware(Gate, engine=engine, settings=settings, traffic=app.state.traffic)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"],
        )
