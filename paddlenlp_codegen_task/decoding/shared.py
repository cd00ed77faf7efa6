"""One scheduler for several threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from paddlenlp_codegen_task.decoding.scheduler import Job, Scheduler


class SharedScheduler:
    """Lets threads run jobs on one scheduler: whoever finds nobody at it makes a step for all."""

    def __init__(self, scheduler: Scheduler) -> None:
        """Share `scheduler`, which is then used while `holding` only."""
        self._scheduler = scheduler
        self._lock = threading.Lock()
        self._turn = threading.Condition()
        self._turns = 0  # times that the lock was held and given back
        self._closed: str | None = None  # why nothing runs any more

    def steps(self, job: Job) -> Iterator[None]:
        """Run a job step by step, beside other threads' jobs; give it up if this is closed."""
        with self.holding():
            if self._closed is not None:
                raise RuntimeError(self._closed)
            self._scheduler.submit(job)
        try:
            while not job.done:
                turns = self._turns
                with self.holding(wait=False) as held:
                    if held and not job.done:  # another thread's step may have ended it
                        self._scheduler.step()
                if not held:  # another thread makes the step, for this one too
                    with self._turn:
                        while self._turns == turns:
                            self._turn.wait()
                if job.error is None:
                    yield
            if job.error is not None:
                raise job.error
        finally:
            job.cancelled = True
            # Whoever holds the lock is about to make a step, which frees the slots as well. It may
            # be this very thread, if the garbage collector closes an iterator.
            with self.holding(wait=False) as held:
                if held:
                    self._scheduler.drop_cancelled()

    @contextmanager
    def holding(self, wait: bool = True) -> Iterator[bool]:
        """Hold the lock and tell those who wait for that to end; False if it cannot be had."""
        if not self._lock.acquire(blocking=wait):
            yield False
            return
        try:
            yield True
        finally:
            self._lock.release()
            with self._turn:
                self._turns += 1
                self._turn.notify_all()

    def close(self, reason: str) -> None:
        """End all jobs, those submitted later too, with a RuntimeError that says why."""
        with self.holding():
            self._closed = reason
            self._scheduler.fail(RuntimeError(reason))
