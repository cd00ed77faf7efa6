"""A server in a thread of its own, and how tests talk to it."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from fastapi import FastAPI

from paddlenlp_codegen_task import CodeGenerator
from paddlenlp_codegen_task.decoding.scheduler import Scheduler
from paddlenlp_codegen_task.serving.app import create_app
from paddlenlp_codegen_task.serving.run import Server, listen
from paddlenlp_codegen_task.serving.settings import Settings

PATIENCE = 60.0  # seconds after which a test that waits has failed
# Of no use here, but httpx makes one for each call otherwise, which takes longer than a request.
_TLS = ssl.create_default_context()


@dataclass
class Running:
    """A server that runs.

    Attributes:
        url: "http://127.0.0.1:PORT".
        app: what it serves; its state has engine, settings and completions.
        server: uvicorn's.
        generator: what it completes with.
    """

    url: str
    app: FastAPI
    server: Server
    generator: CodeGenerator

    def post(self, body: Any, path: str = "/v1/completions", **options: Any) -> httpx.Response:
        """Send JSON."""
        return httpx.post(self.url + path, json=body, timeout=PATIENCE, verify=_TLS, **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        """Ask for something."""
        return httpx.get(self.url + path, timeout=PATIENCE, verify=_TLS, **options)

    def scheduler(self) -> Scheduler:
        """The scheduler, to be looked at while nothing runs."""
        found: list[Scheduler] = []
        self.generator.engine.run(found.append)
        wait_until(lambda: bool(found))
        return found[0]


def wait_until(holds: Callable[[], bool], seconds: float = PATIENCE) -> None:
    """Wait for something to become so, and fail if it does not."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it does not come about"
        time.sleep(0.005)


@contextmanager
def running(generator: CodeGenerator, settings: Settings | None = None) -> Iterator[Running]:
    """Serve a generator on a free port, in a thread."""
    settings = settings or Settings()
    listener = listen("127.0.0.1", 0)
    app = create_app(generator, settings)
    server = Server(app, settings.drain_seconds, listener)
    thread = threading.Thread(target=server.serve_until_stopped, daemon=True)
    thread.start()
    try:
        wait_until(lambda: server.started or not thread.is_alive())
        yield Running(f"http://127.0.0.1:{listener.getsockname()[1]}", app, server, generator)
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        listener.close()
    assert not thread.is_alive()
