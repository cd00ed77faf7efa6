"""What becomes of requests that an engine runs: pieces of text, and completions."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TypeVar

from paddlenlp_codegen_task.decoding.events import Failed, Finished, Text
from paddlenlp_codegen_task.decoding.request import Request
from paddlenlp_codegen_task.engine import Engine, Mailbox
from paddlenlp_codegen_task.requests import Call, Completion

T = TypeVar("T")

UNREAD_PIECES = 256  # of a stream, at which it waits for its reader


def pieces(
    engine: Engine, call: Call, request: Request
) -> Generator[tuple[int, str], None, list[Completion]]:
    """Run a request of a call, and yield its text as it is settled.

    Returns:
        A generator of (index of the completion, piece), whose own value is the completions.
    """
    mailbox = Mailbox(engine, UNREAD_PIECES)
    try:
        engine.submit([request], mailbox)
        while True:
            for event in mailbox.take():
                if isinstance(event, Text):
                    if event.text and event.index < call.config.num_return_sequences:
                        yield event.index, event.text
                elif isinstance(event, Finished):
                    return call.completions(request, event.rows)
                else:
                    raise event.error
    finally:
        engine.cancel([request])


def of_one(
    indexed: Generator[tuple[int, str], None, list[Completion]],
) -> Generator[str, None, Completion]:
    """The pieces of the only completion, without its index."""
    try:
        while True:
            try:
                _, text = next(indexed)
            except StopIteration as end:
                return end.value[0]  # type: ignore[no-any-return]
            yield text
    finally:
        indexed.close()


def completed(
    engine: Engine, jobs: Iterator[tuple[T, Call, Request]], limit: int
) -> Iterator[tuple[T, Finished]]:
    """As `ended`, of requests none of which may fail: the first error of one is raised."""
    for key, event in ended(engine, jobs, limit):
        if isinstance(event, Failed):
            raise event.error
        yield key, event


def ended(
    engine: Engine, jobs: Iterator[tuple[T, Call, Request]], limit: int
) -> Iterator[tuple[T, Finished | Failed]]:
    """Run requests of any calls, no more at a time than keep all places taken.

    Args:
        engine: runs them.
        jobs: taken as there is room: what tells a request from others, its call, itself. It is
            asked again even if it had none before: what has ended may lead to more.
        limit: sequences that run at once.

    Returns:
        An iterator of (what tells the request from others, what it has come to), in the order in
        which they end.
    """
    mailbox = Mailbox(engine)
    running: dict[Request, tuple[T, int]] = {}  # and how many sequences each has
    rows = 0
    try:
        while True:
            new: list[Request] = []
            while len(running) < 2 or rows < 2 * limit:
                job = next(jobs, None)
                if job is None:
                    break
                key, call, request = job
                running[request] = key, call.samples
                rows += call.samples
                new.append(request)
            if new:
                engine.submit(new, mailbox)
            if not running:
                return
            for event in mailbox.take():
                if isinstance(event, (Finished, Failed)):
                    key, samples = running.pop(event.request)
                    rows -= samples
                    yield key, event
    finally:
        engine.cancel(running)
