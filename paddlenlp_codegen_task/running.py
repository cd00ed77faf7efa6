"""What becomes of requests that an engine runs: pieces of text, and completions."""

from __future__ import annotations

from collections.abc import Generator, Iterator

from paddlenlp_codegen_task.decoding.events import Failed, Finished, Text
from paddlenlp_codegen_task.decoding.request import Request
from paddlenlp_codegen_task.engine import Engine, Mailbox
from paddlenlp_codegen_task.requests import Call, Completion

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
    engine: Engine, call: Call, requests: Iterator[tuple[int, Request]]
) -> Iterator[tuple[int, Finished]]:
    """Run requests of a call, no more at a time than keep all places taken.

    Args:
        engine: runs them.
        call: what they are of.
        requests: taken as there is room, with a number each.

    Returns:
        An iterator of (number, what the request has come to), in the order in which they finish.
    """
    mailbox = Mailbox(engine)
    window = max(2, 2 * call.batch.limit // call.samples)
    running: dict[Request, int] = {}  # with their numbers
    try:
        exhausted = False
        while True:
            new: list[Request] = []
            while not exhausted and len(running) < window:
                number, request = next(requests, (0, None))
                if request is None:
                    exhausted = True
                else:
                    running[request] = number
                    new.append(request)
            if new:
                engine.submit(new, mailbox)
            if not running:
                return
            for event in mailbox.take():
                if isinstance(event, Failed):
                    raise event.error
                if isinstance(event, Finished):
                    yield running.pop(event.request), event
    finally:
        engine.cancel(running)
