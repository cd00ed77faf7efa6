"""The engine, for asyncio: what a request comes to, awaited, and nothing left of who goes away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from paddlenlp_codegen_task.decoding.events import Event, Failed, Finished, Text
from paddlenlp_codegen_task.decoding.request import Request
from paddlenlp_codegen_task.decoding.scheduler import Scheduler
from paddlenlp_codegen_task.engine import Engine
from paddlenlp_codegen_task.generator import CodeGenerator
from paddlenlp_codegen_task.requests import Call
from paddlenlp_codegen_task.serving.metrics import Metrics, Snapshot
from paddlenlp_codegen_task.serving.protocol import RequestError

T = TypeVar("T")

UNREAD = 64  # hand-overs of one request that its reader has not taken, at which it is held back


class Overloaded(RequestError):
    """As much waits as may."""

    def __init__(self) -> None:
        """Say so."""
        message = "the server has as many requests as it takes: try again later"
        super().__init__(message, status=429, kind="rate_limit_error", code="rate_limit_exceeded")


class TimedOut(RequestError):
    """A request has taken longer than it may."""

    def __init__(self, seconds: float) -> None:
        """Say how long that is."""
        message = f"the request was not done within {seconds:g} seconds"
        super().__init__(message, status=504, kind="timeout_error", code="timeout")


class Stopped(RequestError):
    """The server stops, and the request had not ended."""

    def __init__(self) -> None:
        """Say so."""
        message = "the server has stopped before the request was done"
        super().__init__(message, status=503, kind="server_error")


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
        metrics: what is counted.
    """

    def __init__(
        self, generator: CodeGenerator, max_rows: int, request_timeout: float | None = None
    ) -> None:
        """Run on a generator.

        Args:
            generator: what completes.
            max_rows: sequences that are accepted at a time: those that run, and those that wait.
            request_timeout: seconds that each call may take, waiting included; None for any.
        """
        self.generator = generator
        self.max_rows = max_rows
        self.request_timeout = request_timeout
        self.rows = 0
        self.draining = False
        self.metrics = Metrics(generator.name)
        self._sinks: set[_Sink] = set()
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
            TimedOut, Stopped: it was given up.
            Exception: what the first request that failed has failed with.
        """
        rows = call.samples * len(requests)
        if self.rows + rows > self.max_rows:
            raise Overloaded
        loop, timer = asyncio.get_running_loop(), None
        sink = _Sink(loop, self._engine)
        if self.request_timeout is not None:
            error = TimedOut(self.request_timeout)
            timer = loop.call_later(self.request_timeout, sink.fail, error)
        number = {request: n for n, request in enumerate(requests)}
        watch, end = self.metrics.begin(call, len(requests)), "abort"
        self.rows += rows
        self._sinks.add(sink)
        try:
            self._engine.submit(requests, sink)
            left = len(requests)
            while left:
                for event in await sink.take():
                    if isinstance(event, Failed):
                        raise event.error
                    if isinstance(event, Finished):
                        left -= 1
                        watch.finished(event)
                    yield Piece(number[event.request], event)
        except Exception as error:  # not of a reader that goes away
            end = "timeout" if isinstance(error, TimedOut) else "error"
            raise
        finally:
            self.rows -= rows
            self._sinks.discard(sink)
            if timer is not None:
                timer.cancel()
            watch.end(end)
            self._engine.cancel(requests)

    def stop(self) -> None:
        """Have everything that runs end with an error."""
        for sink in self._sinks:
            sink.fail(Stopped())

    async def measure(self) -> Metrics:
        """The metrics, with what the scheduler knows now."""
        if self.alive:
            self.metrics.look(await self.inspect(Snapshot.of))
        return self.metrics

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
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
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
        self._arrivals: list[tuple[Request, bool]] = []  # since the last `take`; whether held back
        self._error: Exception | None = None
        # Hand-overs of each request. Each is written by one thread only.
        self._given: dict[Request, int] = {}
        self._taken: dict[Request, int] = {}

    def put(self, request: Request, events: list[Event]) -> bool:
        """See engine.Sink."""
        given = self._given[request] = self._given.get(request, 0) + 1
        unread = given - self._taken.get(request, 0)
        hold = unread > UNREAD and not isinstance(events[-1], (Finished, Failed))
        # A loop that is closed raises, and the engine gives the request up.
        self._loop.call_soon_threadsafe(self._arrive, request, events, hold)
        return hold

    def _arrive(self, request: Request, events: list[Event], held: bool) -> None:
        self._events += events
        self._arrivals.append((request, held))
        self._arrived.set()

    def fail(self, error: Exception) -> None:
        """Have `take` raise this."""
        self._error = error
        self._arrived.set()

    async def take(self) -> list[Event]:
        """Wait for events; all that have arrived."""
        await self._arrived.wait()
        if self._error is not None:
            raise self._error
        self._arrived.clear()
        events, self._events = self._events, []
        for request, held in self._arrivals:
            self._taken[request] = self._taken.get(request, 0) + 1
            if held:
                self._engine.release(request)
        self._arrivals.clear()
        return events
