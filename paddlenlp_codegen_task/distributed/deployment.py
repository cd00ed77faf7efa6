"""What Ray Serve runs: replicas that hold a model each, and the door before them."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, Mapping
from typing import TYPE_CHECKING, Any

from prometheus_client.core import Metric
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.applications import Starlette

from paddlenlp_codegen_task.distributed import ingress
from paddlenlp_codegen_task.distributed.cluster import Pool
from paddlenlp_codegen_task.export.store import is_export
from paddlenlp_codegen_task.generator import CodeGenerator
from paddlenlp_codegen_task.runtime import device
from paddlenlp_codegen_task.serving import run
from paddlenlp_codegen_task.serving.app import create_app
from paddlenlp_codegen_task.serving.settings import Settings

if TYPE_CHECKING:
    from starlette.types import Message


def load(loading: Mapping[str, Any], pool: Pool) -> CodeGenerator:
    """Load a model on the node that this runs on; what is exported is, once, in its store.

    A driver that sends its export, as that of a batch does, is not there any more when a replica
    starts later.

    Args:
        loading: options of `CodeGenerator.from_pretrained`, and `model`: a name, or a path that
            this node sees.
        pool: what a replica takes of its node.
    """
    given = {**loading, "num_threads": pool.cpus, "device": "gpu" if pool.gpus else "cpu"}
    free = None if pool.gpus else device.free_bytes(None)
    if free is not None:  # which several replicas of a node have together
        given.setdefault("kv_cache_bytes", max(1, free // 2 // pool.on_a_node))
    model = given.pop("model", None)
    if model is not None and is_export(os.path.expanduser(model)):
        return CodeGenerator.from_export(model, **given)
    return CodeGenerator.from_pretrained(model, **given)


class Model:
    """A replica: a model, and the same application as on one machine."""

    def __init__(
        self, loading: Mapping[str, Any], pool: Pool, settings: Settings, log_level: str
    ) -> None:
        """Load a model, and serve it.

        Args:
            loading: as `load` takes it.
            pool: what a replica takes of its node.
            settings: what is allowed, but for keys and origins, which the door knows.
            log_level: "debug", "info" (a line a request), "warning" or "error".
        """
        _log(log_level)
        self._generator = load(loading, pool)
        if "prefix_cache_bytes" not in loading:
            run.keep_prefixes(self._generator, pool.on_a_node)
        app = create_app(self._generator, settings)
        self._app, self._engine = app, app.state.engine
        self._name = serve.get_replica_context().replica_id.unique_id

    async def answer(
        self, scope: dict[str, Any], body: bytes
    ) -> AsyncGenerator[list[Message], None]:
        """Answer a request: the messages that ASGI's `send` would get, as they come.

        Leaving the generator is the client that has hung up.

        Args:
            scope: of the request, as ASGI has it.
            body: all of it.
        """
        messages: asyncio.Queue[Message | None] = asyncio.Queue()
        unread = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Message:
            if not unread:
                await asyncio.Event().wait()  # a disconnect cancels it all
            return unread.pop()

        async def answer() -> None:
            try:
                await self._app(scope, receive, messages.put)
            finally:
                messages.put_nowait(None)

        task = asyncio.create_task(answer())
        ended = False
        try:
            while not ended:
                together = [await messages.get()]
                while not messages.empty():
                    together.append(messages.get_nowait())
                ended = together[-1] is None
                if found := [message for message in together if message is not None]:
                    yield found
            await task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def health(self) -> tuple[str, str]:
        """Whose word it is, and "ok" or "failed"."""
        return self._name, "ok" if self._engine.alive else "failed"

    async def metrics(self) -> tuple[str, list[Metric]]:
        """Whose they are, and what has been counted."""
        measured = await self._engine.measure()
        return self._name, list(measured.registry.collect())

    def check_health(self) -> None:
        """Have Serve replace a replica that can run nothing any more.

        Raises:
            RuntimeError: it cannot.
        """
        if not self._engine.alive:
            raise RuntimeError("the engine has failed")


class Ingress:
    """The door, as Serve has it."""

    def __init__(self, model: DeploymentHandle[Any], settings: Settings, log_level: str) -> None:
        """Pass what `settings` allow to `model`."""
        _log(log_level)
        self._model, self._settings = model, settings

    def __serve_build_asgi_app__(self) -> Starlette:
        """What answers HTTP."""
        return ingress.create_app(self._model, self._settings)


def _log(level: str) -> None:
    """Write what happens to the replica's log."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("paddlenlp_codegen_task")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(level.upper())
