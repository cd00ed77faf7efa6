"""Who starts next: calls in turn, within the limits of each and of all, within memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from paddlenlp_codegen_task.decoding.request import Batch, Request, Row, new_row


@dataclass(eq=False)
class Start:
    """Rows of one request that start together, new ones or such as were set back."""

    request: Request
    rows: list[Row]


@dataclass(eq=False)
class _Line:
    """One call: its requests that have rows to start, in order, and what of it there is."""

    limit: int
    waiting: deque[Request] = field(default_factory=deque)
    requests: int = 0  # that have not ended
    running: int = 0  # rows


# Whether a number of rows of a request, of so many tokens at most, may start now.
Accepts = Callable[[Request, int, int], bool]


class Admission:
    """Those that wait.

    `batch_size` rows run at once, and of one call no more than it asks for; a call that asks for
    more than `batch_size` brings the rest as places of its own, so that nobody else's limit moves.
    Calls take turns, a start each; one that lacks nothing but room lets none pass. So whoever waits
    does so for as many starts as there are calls before it, and for rows to end.
    Rows that were set back come first of all: they were there before.
    """

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._lines: dict[Batch, _Line] = {}
        self._turns: deque[Batch] = deque()  # those with requests that wait, the next one first
        self._started: dict[Request, int] = {}  # rows of each request, so far
        self._set_back: list[Start] = []  # the oldest first
        self._held: dict[Request, list[Start]] = {}
        self._age = 0

    @property
    def waiting(self) -> bool:
        """Whether anything may start."""
        return bool(self._turns or self._set_back)

    @property
    def requests(self) -> int:
        """How many requests have rows that wait."""
        return len(self._set_back) + sum(len(line.waiting) for line in self._lines.values())

    def expected(self) -> int:
        """How many rows would run if all that wait did, as far as the limits allow."""
        found = 0
        for line in self._lines.values():
            wanted = line.running + sum(one.samples - self._started[one] for one in line.waiting)
            found += min(wanted, line.limit)
        return found

    def add(self, request: Request) -> None:
        """Have a request wait for its turn."""
        line = self._lines.setdefault(request.batch, _Line(request.batch.limit))
        if request.beams:
            line.limit = max(line.limit, request.samples)
        line.requests += 1
        self._started[request] = 0
        self._wait(request, line)

    def remove(self, request: Request) -> None:
        """Forget a request, of which nothing runs any more."""
        line = self._lines[request.batch]
        self._stop_waiting(request, line)
        self._held.pop(request, None)
        del self._started[request]
        line.requests -= 1
        if not line.requests:
            del self._lines[request.batch]

    def clear(self) -> None:
        """Forget everything."""
        self._lines.clear()
        self._turns.clear()
        self._started.clear()
        self._set_back.clear()
        self._held.clear()

    def unstarted(self, request: Request) -> bool:
        """Whether rows of a request have yet to start for the first time."""
        return self._started[request] < request.samples

    def left(self, row: Row) -> None:
        """A row that ran is gone."""
        self._lines[row.request.batch].running -= 1

    def set_back(self, start: Start) -> None:
        """Have rows that ran start again, before all others."""
        self._lines[start.request.batch].running -= len(start.rows)
        self._set_back.append(start)
        self._set_back.sort(key=lambda one: one.rows[0].age)

    def hold(self, request: Request) -> None:
        """Let nothing of a request start until it is released."""
        starts = [one for one in self._set_back if one.request is request]
        self._stop_waiting(request, self._lines[request.batch])
        self._held[request] = starts

    def release(self, request: Request) -> None:
        """End `hold`."""
        starts = self._held.pop(request)
        self._set_back = sorted([*self._set_back, *starts], key=lambda one: one.rows[0].age)
        if self._started[request] < request.samples:
            self._wait(request, self._lines[request.batch], first=True)

    def held(self, request: Request) -> bool:
        """Whether a request waits to be released."""
        return request in self._held

    def next(self, accepts: Accepts) -> Start | None:
        """Take what starts next, if it may; it counts as running from now on."""
        free = self._batch_size - sum(map(self._shared, self._lines.values()))
        if self._set_back:
            start = self._set_back[0]
            line, count = self._lines[start.request.batch], len(start.rows)
            tokens = max(len(row.history) for row in start.rows)
            if self._of_shared(line, count) > free or not accepts(start.request, count, tokens):
                return None
            line.running += count
            return self._set_back.pop(0)
        for batch in self._turns:
            line = self._lines[batch]
            request = line.waiting[0]
            count = request.samples if request.beams else 1
            if line.running + count > line.limit:
                continue  # it waits for its own rows
            if self._of_shared(line, count) > free:
                free = 0  # nobody takes a place before it, but of its own
                continue
            if not accepts(request, count, len(request.prompt_ids)):
                return None
            return self._take(request, count)
        return None

    def successor(self, request: Request) -> Row | None:
        """The next row of a request, to go on in the place of one that ends.

        None if there is none, or others wait for a place.
        """
        if self._set_back or list(self._turns) != [request.batch]:
            return None
        if self._lines[request.batch].waiting[0] is not request:
            return None
        return self._take(request, 1).rows[0]

    def _take(self, request: Request, count: int) -> Start:
        """The next rows of a request run; its call's next turn comes after all others'."""
        line, first = self._lines[request.batch], self._started[request]
        rows = [new_row(request, first + n, self._age + n) for n in range(count)]
        self._age += count
        line.running += count
        self._started[request] += count
        self._turns.remove(request.batch)
        if self._started[request] == request.samples:
            line.waiting.popleft()
        if line.waiting:
            self._turns.append(request.batch)
        return Start(request, rows)

    def _wait(self, request: Request, line: _Line, first: bool = False) -> None:
        (line.waiting.appendleft if first else line.waiting.append)(request)
        if request.batch not in self._turns:
            self._turns.append(request.batch)

    def _stop_waiting(self, request: Request, line: _Line) -> None:
        self._set_back = [one for one in self._set_back if one.request is not request]
        if request in line.waiting:
            line.waiting.remove(request)
            if not line.waiting:
                self._turns.remove(request.batch)

    def _shared(self, line: _Line) -> int:
        """Places that a call takes of those that are for all."""
        return max(line.running - max(line.limit - self._batch_size, 0), 0)

    def _of_shared(self, line: _Line, count: int) -> int:
        """Places for all that so many rows more would take."""
        own = max(line.limit - self._batch_size, 0)
        return max(line.running + count - own, 0) - self._shared(line)
