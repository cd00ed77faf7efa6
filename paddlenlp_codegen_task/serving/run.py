"""Runs the server until it is told to stop."""

from __future__ import annotations

import asyncio
import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI

from paddlenlp_codegen_task.serving.async_engine import AsyncEngine


class Server(uvicorn.Server):
    """Lets running requests end before it does."""

    def __init__(self, app: FastAPI, drain_seconds: float, listener: socket.socket) -> None:
        """Serve `app` on a socket that listens."""
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=max(1, round(drain_seconds)),
            lifespan="off",
        )
        super().__init__(config)
        self._engine: AsyncEngine = app.state.engine
        self._listener = listener

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal: take nothing new, end what runs."""
        self._engine.draining = True
        super().handle_exit(sig, frame)

    def serve_until_stopped(self) -> None:
        """Serve, until a signal says stop and what ran has ended, or its time is over."""
        asyncio.run(self.serve([self._listener]))


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens, before anything slow is done.

    Raises:
        OSError: the address is in use, or none of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
    except OSError:
        listener.close()
        raise
    return listener
