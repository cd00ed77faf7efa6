"""The engine, for asyncio: what a request comes to, awaited, and nothing left of who goes away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

from paddlenlp_codegen_task.decoding.events import Event, Failed, Finished, Text
from paddlenlp_codegen_task.decoding.request import Request
from paddlenlp_codegen_task.decoding.scheduler import Scheduler
from paddlenlp_codegen_task.engine import Engine
from paddlenlp_codegen_task.generator import CodeGenerator
from paddlenlp_codegen_task.requests import Call

T = TypeVar("T")

UNREAD = 64  # hand-overs of one request that its reader has not taken, at which it is held back


class Overloaded(Exception):
    """As much waits as may."""


@dataclass(frozen=True)
class Piece:
    """Something new of one of several prompts.

    Attributes:
        prompt: the number of the prompt.
        event: text, or the end of all its rows.
    """

    prompt: int
    event: Text | Finished


class AsyncEngine:
    """Runs requests of many clients on a generator's engine.

    Attributes:
        rows: sequences that were accepted and have not ended.
        draining: nothing new is accepted.
    """

    def __init__(self, generator: CodeGenerator, max_rows: int) -> None:
        """Accept so many sequences at a time: those that run, and those that wait."""
        self.generator = generator
        self.max_rows = max_rows
        self.rows = 0
        self.draining = False
        self._engine: Engine = generator.engine

    @property
    def alive(self) -> bool:
        """Whether anything can still run."""
        return self._engine.closed is None

    async def run(self, call: Call, requests: Sequence[Request]) -> AsyncGenerator[Piece, None]:
        """Run the requests of one call, and yield what becomes of them.

        Leaving the iterator, in whatever way, gives up what has not ended.

        Raises:
            Overloaded: too much runs and waits; nothing has been submitted then.
            Exception: what the first request that failed has failed with.
        """
        rows = call.samples * len(requests)
        if self.rows + rows > self.max_rows:
            raise Overloaded
        sink = _Sink(asyncio.get_running_loop(), self._engine)
        number = {request: n for n, request in enumerate(requests)}
        self.rows += rows
        try:
            self._engine.submit(requests, sink)
            left = len(requests)
            while left:
                for event in await sink.take():
                    if isinstance(event, Failed):
                        raise event.error
                    left -= isinstance(event, Finished)
                    yield Piece(number[event.request], event)
        finally:
            self.rows -= rows
            self._engine.cancel(requests)

    async def finish(self, call: Call, requests: Sequence[Request]) -> list[Finished]:
        """Run the requests of one call to their end; what each has come to, in order."""
        found: dict[int, Finished] = {}
        async with aclosing(self.run(call, requests)) as pieces:
            async for piece in pieces:
                if isinstance(piece.event, Finished):
                    found[piece.prompt] = piece.event
        return [found[n] for n in range(len(requests))]

    async def inspect(self, look: Callable[[Scheduler], T]) -> T:
        """Ask the scheduler something, between two steps."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()

        def give(value: Any, error: Exception | None) -> None:
            if not answer.done():
                answer.set_result(value) if error is None else answer.set_exception(error)

        def run(scheduler: Scheduler) -> None:
            try:
                value, error = look(scheduler), None
            except Exception as raised:
                value, error = None, raised
            loop.call_soon_threadsafe(give, value, error)

        self._engine.run(run)
        return await answer


class _Sink:
    """Takes events in the engine's thread, and has them read in the event loop's."""

    def __init__(self, loop: asyncio.AbstractEventLoop, engine: Engine) -> None:
        self._loop = loop
        self._engine = engine
        self._arrived = asyncio.Event()
        self._events: list[Event] = []
        self._held: set[Request] = set()
        # Hand-overs. Each is written by one thread only.
        self._given = self._arrivals = self._taken = 0

    def put(self, request: Request, events: list[Event]) -> bool:
        """See engine.Sink."""
        self._given += 1
        hold = self._given - self._taken > UNREAD and not isinstance(events[-1], (Finished, Failed))
        # A loop that is closed raises, and the engine gives the request up.
        self._loop.call_soon_threadsafe(self._arrive, request, events, hold)
        return hold

    def _arrive(self, request: Request, events: list[Event], held: bool) -> None:
        self._events += events
        self._arrivals += 1
        if held:
            self._held.add(request)
        self._arrived.set()

    async def take(self) -> list[Event]:
        """Wait for events; all that have arrived."""
        await self._arrived.wait()
        self._arrived.clear()
        events, self._events = self._events, []
        self._taken = self._arrivals
        for request in self._held:
            self._engine.release(request)
        self._held.clear()
        return events
