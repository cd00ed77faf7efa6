"""Looking into a generator's engine, which works in a thread of its own."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from paddlenlp_codegen_task import CodeGenerator
from paddlenlp_codegen_task.decoding.events import Forward
from paddlenlp_codegen_task.decoding.scheduler import Scheduler

PATIENCE = 60.0  # seconds, after which what is waited for is taken never to come

T = TypeVar("T")


def look(generator: CodeGenerator, at: Callable[[Scheduler], T]) -> T:
    """What a function gives of the scheduler between two steps.

    After all that this thread has asked of the engine before, as that takes things in turn.
    """
    found: queue.SimpleQueue[T] = queue.SimpleQueue()
    generator.engine.run(lambda scheduler: found.put(at(scheduler)))
    return found.get(timeout=PATIENCE)


def at_work(generator: CodeGenerator) -> int:
    """How many requests have not ended, and rows have a slot."""
    return look(generator, lambda scheduler: len(scheduler.requests) + scheduler.slots.used)


def gather(generator: CodeGenerator, count: int) -> None:
    """Have the engine rest until `count` things more are asked of it, to start them together."""
    inbox = generator.engine._loop.inbox

    def wait(_: Scheduler) -> None:
        until(lambda: inbox.qsize() >= count)

    generator.engine.run(wait)


def until(holds: Callable[[], Any], patience: float = PATIENCE) -> None:
    """Wait until something holds, which another thread or process brings about."""
    deadline = time.monotonic() + patience
    while not holds():
        assert time.monotonic() < deadline, "it never comes"
        time.sleep(0.001)


@contextmanager
def steps_of(generator: CodeGenerator) -> Iterator[list[Forward]]:
    """A list to which a generator's steps are appended."""
    made: list[Forward] = []
    generator.add_step_hook(made.append)
    try:
        yield made
    finally:
        generator.remove_step_hook(made.append)
