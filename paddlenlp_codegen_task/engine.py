"""One thread that steps: requests go in by an inbox, what becomes of each comes out by its sink."""

from __future__ import annotations

import atexit
import logging
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from paddlenlp_codegen_task.decoding.events import Event, Failed, Text
from paddlenlp_codegen_task.decoding.request import Request
from paddlenlp_codegen_task.decoding.scheduler import Scheduler

logger = logging.getLogger(__name__)

# Handing out wakes a reader, which takes its time from the step that runs. So all readers together
# are woken so many times a second, and one that is woken gets all there is.
HAND_OUTS = 1000
CLOSE_SECONDS = 10.0  # that closing waits for the step which runs
FORKED = (
    "this generator was at work when the process forked, and cannot go on in the child: load one "
    "there, or fork while it is idle"
)


class Sink(Protocol):
    """Where the events of requests go. The engine's thread calls it, so it must not wait."""

    def put(self, request: Request, events: list[Event]) -> bool:
        """Take what one step has brought; return whether the request is to be held back.

        A request that is held back goes on after `Engine.release`.
        """


class Engine:
    """Runs a scheduler in a thread of its own. All methods may be called from any thread, from
    signal handlers, and while the garbage collector runs; none waits for a step, but `close`.
    """

    def __init__(self, scheduler: Scheduler, free: Callable[[], None]) -> None:
        """Run `scheduler`, which nothing else may use any more.

        Args:
            scheduler: its steps are made as long as it has work.
            free: called once, at the end, to give back what the scheduler runs on.
        """
        self._loop = _Loop(scheduler, free)
        key = id(self._loop)
        _loops[key] = weakref.ref(self._loop, lambda _: _loops.pop(key, None))
        weakref.finalize(self, self._loop.stop, "this generator is gone").atexit = False

    @property
    def closed(self) -> str | None:
        """Why nothing runs any more; None while it may."""
        return self._loop.closed

    def submit(self, requests: Sequence[Request], sink: Sink) -> None:
        """Have requests run; what becomes of them goes to `sink`.

        Raises:
            RuntimeError: the engine is closed.
        """
        loop = self._loop  # what waits in the inbox must not hold the engine
        loop.post(lambda: loop.add(requests, sink))

    def cancel(self, requests: Iterable[Request]) -> None:
        """Give requests up; those that have ended, or were never submitted, do not matter.

        A step that runs for none but these is ended.
        """
        loop, ended = self._loop, list(requests)
        if ended:
            loop.inbox.put(lambda: loop.cancel(ended))
            # Whoever types has asked for something else by now, which waits for that step.
            loop.scheduler.interrupt(ended)

    def release(self, request: Request) -> None:
        """Have a request go on that its sink had held back."""
        loop = self._loop
        loop.inbox.put(lambda: loop.scheduler.release(request))

    def run(self, change: Callable[[Scheduler], None]) -> None:
        """Change something about the scheduler, between two steps, in its thread.

        Raises:
            RuntimeError: the engine is closed.
        """
        loop = self._loop
        loop.post(lambda: change(loop.scheduler))

    def close(self, reason: str) -> None:
        """End everything: requests, later ones too, fail with a RuntimeError that says why.

        Waits for the step that runs, CLOSE_SECONDS at most; what the engine holds is freed then.
        """
        self._loop.stop(reason)
        self._loop.wait()


class _Loop:
    """What the engine's thread works with. It knows nothing of the engine, whose end it outlives.

    Attributes:
        inbox: what to do between two steps; its queue can be put to from anywhere, by interrupted
            and interrupting code of one thread alike.
        closed: why nothing runs any more; None while it may.
    """

    def __init__(self, scheduler: Scheduler, free: Callable[[], None]) -> None:
        self.scheduler = scheduler
        self.inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.closed: str | None = None
        self._free: Callable[[], None] | None = free
        self._sinks: dict[Request, Sink] = {}
        self._kept: dict[Request, list[Event]] = {}  # texts, until the reader's turn comes
        self._turns: dict[Request, float] = {}  # when that is, of each that is streamed
        self._stepping = threading.Lock()  # who has it is the engine's thread, for good
        self._thread: int | None = None
        self._idle = True
        self._ending = self._ended = False

    def post(self, action: Callable[[], None]) -> None:
        """Have something done in the thread, which is started if there is none."""
        if self.closed is not None:
            raise RuntimeError(self.closed)
        self.inbox.put(action)
        # Should two threads be started at once, the second finds the lock taken, and ends.
        if not self._stepping.locked():
            threading.Thread(target=self._run, name="codegen-engine", daemon=True).start()
        if self._ending:  # perhaps after the inbox was emptied for the last time
            self._refuse()

    def add(self, requests: Sequence[Request], sink: Sink) -> None:
        """Take up requests; in the thread."""
        for request in requests:
            self._sinks[request] = sink
            try:
                self.scheduler.add(request)
            except Exception as error:
                self._give(request, [Failed(request, error)], ended=True)

    def cancel(self, requests: Iterable[Request]) -> None:
        """Give requests up; in the thread."""
        for request in requests:
            self.scheduler.cancel(request)
            for known in (self._sinks, self._kept, self._turns):
                known.pop(request, None)

    def stop(self, reason: str) -> None:
        """Have everything end, and soon."""
        if self.closed is None:
            self.closed = reason
        self.inbox.put(lambda: None)
        if self._stepping.acquire(blocking=False):  # nobody steps, so nobody else would do it
            self._thread = threading.get_ident()
            self._end()

    def wait(self) -> None:
        """Wait for the end, but not in the thread that brings it, and not for ever.

        By looking again and again: a lock could be held by the very code that a signal, or the
        garbage collector, has interrupted to come here.
        """
        if self._thread == threading.get_ident():
            return
        deadline = time.monotonic() + CLOSE_SECONDS
        while not self._ended and time.monotonic() < deadline:
            time.sleep(0.0005)

    def forking(self) -> None:
        """Before a fork: let the thread come to rest if it has nothing to do."""
        deadline = time.monotonic() + CLOSE_SECONDS
        while not (self._idle or self._sinks or self._ended) and time.monotonic() < deadline:
            time.sleep(0.0002)

    def forked(self) -> None:
        """Begin anew in a child process, where no thread is but the one that forked."""
        if not self.inbox.empty():
            self._idle = False
            self._empty_inbox()
        sinks, self._sinks = self._sinks, {}
        self.inbox = queue.SimpleQueue()
        self._stepping = threading.Lock()
        self._thread = None
        if not self._idle and not self._ended:
            self.closed = FORKED
            # The runtime was amid a step of a thread that is not here: nothing can be freed.
            self._free, self._ending, self._ended = None, True, True
        for request, sink in sinks.items():
            sink.put(request, [Failed(request, RuntimeError(FORKED))])

    def _run(self) -> None:
        if not self._stepping.acquire(blocking=False):
            return
        self._thread = threading.get_ident()
        try:
            while self.closed is None:
                if not self.scheduler.has_work:
                    self._idle = not self._sinks
                    action = self.inbox.get()
                    self._idle = False
                    action()
                    del action  # it may hold the last reference to what a caller has dropped
                self._empty_inbox()
                if self.closed is None:
                    self._hand_out(self.scheduler.step())
        except BaseException as error:  # a fault of the engine itself: nobody may wait for ever
            self.closed = self.closed or f"the engine has failed: {error!r}"
            logger.exception("the engine has failed")
        finally:
            self._end()

    def _empty_inbox(self) -> None:
        while True:
            try:
                action = self.inbox.get_nowait()
            except queue.Empty:
                return
            action()

    def _refuse(self) -> None:
        """Fail what there is, and what waits in the inbox."""
        self._empty_inbox()
        sinks, self._sinks = self._sinks, {}
        for request, sink in sinks.items():
            try:
                sink.put(request, [Failed(request, RuntimeError(self.closed))])
            except Exception as error:
                logger.warning("a sink raised %r while the engine was closed", error)

    def _hand_out(self, events: Sequence[Event]) -> None:
        """Give requests' events to their sinks, all of one at once, when it is their turn."""
        for event in events:
            self._kept.setdefault(event.request, []).append(event)
        if not self._kept:
            return
        now = time.monotonic()
        at_once = not self.scheduler.has_work  # no later step would do it
        for request, kept in list(self._kept.items()):
            ended = not isinstance(kept[-1], Text)
            if ended or at_once or now >= self._turns.get(request, now):
                del self._kept[request]
                if ended:
                    self._turns.pop(request, None)
                else:
                    self._turns[request] = now + max(len(self._turns), 1) / HAND_OUTS
                self._give(request, kept, ended)

    def _give(self, request: Request, events: list[Event], ended: bool) -> None:
        """Give events to a request's sink, and hold the request back if that says so."""
        sink = self._sinks.pop(request, None) if ended else self._sinks.get(request)
        if sink is None:
            return
        try:
            full = sink.put(request, events)
        except Exception as error:
            logger.warning("a request is given up, since its sink raised %r", error)
            self.cancel([request])
            return
        if full:
            self.scheduler.hold(request)

    def _end(self) -> None:
        """Fail what is there, and free everything."""
        self._ending = True
        self._refuse()
        free, self._free = self._free, None
        try:
            if free is not None:
                free()
        finally:
            self._ended = True


_loops: dict[int, weakref.ref[_Loop]] = {}  # of this process, by their id


def _all_loops() -> list[_Loop]:
    return [loop for reference in list(_loops.values()) if (loop := reference()) is not None]


def _before_fork() -> None:
    for loop in _all_loops():
        loop.forking()


def _after_fork() -> None:
    for loop in _all_loops():
        loop.forked()


def _at_exit() -> None:
    """End all threads: one that comes back from a step must find an interpreter."""
    loops = _all_loops()
    for loop in loops:
        loop.stop("the process is ending")
    for loop in loops:
        loop.wait()


os.register_at_fork(before=_before_fork, after_in_child=_after_fork)
atexit.register(_at_exit)


class Mailbox:
    """A sink that a thread reads.

    A request whose events lie there unread, `limit` of them, is held back until it has been read.
    """

    def __init__(self, engine: Engine, limit: int | None = None) -> None:
        self._engine = engine
        self._limit = limit
        self._queue: queue.SimpleQueue[list[Event]] = queue.SimpleQueue()
        self._held: Request | None = None
        # Each is written by one thread only.
        self._given = 0
        self._taken = 0

    def put(self, request: Request, events: list[Event]) -> bool:
        """See Sink."""
        self._given += len(events)
        self._queue.put(events)
        if self._limit is None:
            return False
        # First said, then looked at: the reader may just be taking the last of them.
        self._held = request
        if self._given - self._taken < self._limit:
            self._held = None
        return self._held is not None

    def take(self) -> list[Event]:
        """Wait for events."""
        events = self._queue.get()
        self._taken += len(events)
        held = self._held
        if held is not None and self._limit and self._given - self._taken <= self._limit // 4:
            self._held = None
            self._engine.release(held)
        return events
