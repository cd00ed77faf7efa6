"""Runs the server until it is told to stop."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import signal
import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI

from paddlenlp_codegen_task.decoding.prefix_cache import PrefixCache
from paddlenlp_codegen_task.decoding.scheduler import Scheduler
from paddlenlp_codegen_task.generator import CodeGenerator
from paddlenlp_codegen_task.runtime import device
from paddlenlp_codegen_task.serving.async_engine import AsyncEngine
from paddlenlp_codegen_task.serving.gate import Traffic

logger = logging.getLogger(__name__)

PREFIX_SHARE = 0.25  # of the free memory; what runs takes half of it where it is the host's, too
LAST_WORDS = 1.0  # seconds for the errors of requests whose time to end is over


class Server(uvicorn.Server):
    """Lets running requests end before it does."""

    def __init__(self, app: FastAPI, drain_seconds: float, listener: socket.socket) -> None:
        """Serve `app` on a socket that listens."""
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=1,  # of who does not read: all others have ended
            lifespan="off",
        )
        super().__init__(config)
        self._engine: AsyncEngine = app.state.engine
        self._traffic: Traffic = app.state.traffic
        self._drain_seconds = drain_seconds
        self._listener = listener

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal: take nothing new, end what runs; the second one ends the process.

        Uvicorn's own would have the process die of the first signal once it has stopped.
        """
        if self.should_exit:
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)
            os._exit(128 + sig)  # the first process of a container does not die of a signal
        self._engine.draining = self.should_exit = True

    async def main_loop(self) -> None:
        """Answer, until it is time to stop; then nothing but that time is over, or up."""
        await super().main_loop()
        self._engine.draining = True
        running, seconds = self._traffic.running, self._drain_seconds
        logger.info("stopping: %d requests have %g seconds to end", running, seconds)
        if not await self._quiet(self._drain_seconds):
            self._engine.stop()
            await self._quiet(LAST_WORDS)

    async def _quiet(self, seconds: float) -> bool:
        """Wait until nothing is being answered, so long at most; return whether it is so."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while self._traffic.running and loop.time() < deadline:
            await asyncio.sleep(0.02)
        return not self._traffic.running

    def serve_until_stopped(self) -> None:
        """Serve, until a signal says stop and what ran has ended, or its time is over."""
        asyncio.run(self.serve([self._listener]))


def keep_prefixes(generator: CodeGenerator, servers: int = 1) -> None:
    """Give what is served a prefix cache: PREFIX_SHARE of the host's memory that is free now.

    Args:
        generator: what is served.
        servers: that share the host, each of which takes as much.
    """
    most = int((device.free_bytes(None) or 0) * PREFIX_SHARE / servers)
    logger.info("the prefix cache may take %s bytes", f"{most:,}")

    def keep(scheduler: Scheduler) -> None:
        scheduler.slots.prefix_cache = PrefixCache(most)

    generator.engine.run(keep)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens, before anything slow is done.

    Raises:
        OSError: the address is in use, or none of this machine's.
    """
    where = f"http://{host}:{port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise OSError(f"cannot listen at {where}: {error.strerror}") from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise OSError(f"cannot listen at {where}: {error.strerror}") from error
    return listener


def url(listener: socket.socket) -> str:
    """Where a server that listens here is found."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_public(listener: socket.socket) -> bool:
    """Whether other machines may reach it."""
    return not ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback
