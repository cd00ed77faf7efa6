"""Rows in, completions out, in the order in which they finish."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import Any, Unpack

from paddlenlp_codegen_task import checks
from paddlenlp_codegen_task.batch.rows import Refused, Row, row_seed
from paddlenlp_codegen_task.decoding.events import Event, Failed, Finished
from paddlenlp_codegen_task.decoding.request import Request
from paddlenlp_codegen_task.generation_config import GenerationConfig
from paddlenlp_codegen_task.generator import CodeGenerator
from paddlenlp_codegen_task.options import GenerationOptions
from paddlenlp_codegen_task.requests import Call, Completion, Infill


@dataclass(frozen=True)
class Completed:
    """A row, and its num_return_sequences completions."""

    row: Row
    completions: list[Completion]


Outcome = Completed | Refused


class Completing:
    """Completes rows with a generator, no more at a time than keep all its places taken.

    Iterating gives what each row has come to, as soon as it has: rows are taken in a thread of
    their own, so that they may take their time to come. A row that cannot be completed is Refused,
    as are those that are so already, and the others go on.

    With the option `seed`, each row has one of its own that is derived from it and the row's id:
    the same rows give the same texts in any order and beside any others, in fp32.

    Attributes:
        stopped: whether `stop` has ended the iteration.
    """

    def __init__(
        self,
        generator: CodeGenerator,
        rows: Iterable[Row | Refused],
        **options: Unpack[GenerationOptions],
    ) -> None:
        """Prepare to complete rows; nothing runs before the first is asked for.

        Args:
            generator: what completes them.
            rows: any number of them.
            **options: fields of GenerationConfig, for rows without such of their own.

        Raises:
            TypeError, ValueError: an option is not possible.
        """
        self._generator, self._rows = generator, rows
        self._call = generator.call(**options)
        # Rows as they come, _END after the last, an error in their place; what ends; _STOP.
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._room = threading.Semaphore(0)
        self._over = self.stopped = False  # _over: no row is begun any more

    @property
    def config(self) -> GenerationConfig:
        """The options of rows without such of their own."""
        return self._call.config

    def stop(self) -> None:
        """End the iteration once what has finished by now is given; may be called from anywhere."""
        self._over = True  # no row is asked for in place of those that are yet to be given
        self._inbox.put(_STOP)

    def put(self, request: Request, events: list[Event]) -> bool:
        """See Sink."""
        for event in events:
            if isinstance(event, (Finished, Failed)):
                self._inbox.put(event)
        return False

    def __iter__(self) -> Generator[Outcome, None, None]:
        """What the rows come to.

        Raises:
            RuntimeError: the model has failed, and not only on one row.
        """
        engine, limit = self._generator.engine, self._generator.batch_size
        running: dict[Request, tuple[Row, Call]] = {}
        sequences = 0  # of what runs
        asked = 0  # rows that are yet to come
        there_are_more = True
        threading.Thread(target=self._feed, name="codegen-batch", daemon=True).start()
        try:
            while running or there_are_more:
                while (
                    there_are_more
                    and not self._over
                    and (
                        len(running) + asked < 2
                        or sequences + asked * self._call.samples < 2 * limit
                    )
                ):
                    asked += 1
                    self._room.release()
                came = self._inbox.get()
                if came is _STOP:
                    self.stopped = True
                    return
                if came is _END:
                    there_are_more = False
                elif isinstance(came, (Finished, Failed)):
                    row, call = running.pop(came.request)
                    sequences -= call.samples
                    yield _outcome(row, call, came)
                elif isinstance(came, Row):
                    asked -= 1
                    if self._over:
                        self.stopped = True  # though the last row may end this before _STOP does
                        continue
                    try:
                        call, request = self._request(came)
                    except (TypeError, ValueError) as error:
                        yield _refused(came, error)
                        continue
                    engine.submit([request], self)
                    running[request] = came, call
                    sequences += call.samples
                elif isinstance(came, Refused):
                    asked -= 1
                    yield came
                else:
                    raise came
        finally:
            self._over = True
            self._room.release()
            engine.cancel(running)

    def _feed(self) -> None:
        """Take rows as there is room for them; in a thread of its own."""
        try:
            for row in self._rows:
                self._room.acquire()
                if self._over:
                    return
                self._inbox.put(row)
            self._inbox.put(_END)
        except BaseException as error:
            self._inbox.put(error)

    def _request(self, row: Row) -> tuple[Call, Request]:
        """What a row asks for.

        Raises:
            TypeError, ValueError: it cannot be.
        """
        config, call = self._call.config, self._call
        infill = isinstance(row.prompt, Infill)
        if row.options or infill:
            call = self._generator.call(config.with_options(row.options), infill=infill)
        request = call.request(row.prompt, 0)
        if config.seed is not None and row.options.get("seed") is None:
            request.seed = row_seed(config.seed, row.id)
        return call, request


_STOP, _END = object(), object()


def _outcome(row: Row, call: Call, event: Finished | Failed) -> Outcome:
    """What becomes of a row.

    Raises:
        RuntimeError: its error is not its own.
    """
    if isinstance(event, Finished):
        return Completed(row, call.completions(event.request, event.rows))
    if isinstance(event.error, (ValueError, FloatingPointError)):
        return _refused(row, event.error)
    # Of the runtime, or of memory: the same may come of every other row.
    name, message = checks.kind(event.error), checks.line(str(event.error))
    raise RuntimeError(f"id {checks.shown(row.id)}: {name}: {message}") from event.error


def _refused(row: Row, error: Exception) -> Refused:
    """A row with what an error says of "prompt 0"."""
    message = checks.line(str(error))
    if message.startswith("prompt 0"):
        message = "the prompt" + message.removeprefix("prompt 0")
    return Refused(message, row.id, row.line)
