"""A client of servers that stream: HTTP/1.1 on one connection that is kept, and little work.

It shares a machine of few cores with what it measures, so it is sockets and nothing else.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Answer:
    """What became of one request. Times are time.monotonic's, which all processes share.

    Attributes:
        status: of the answer; 0 if there was none.
        sent: when the request began to be sent.
        first: when the first bytes of the answer's body were there; None if none were.
        last: when it had ended.
        texts: of the events.
        usage: what the server counted, if it said so.
        ended: whether the server said that the answer was whole.
        hung_up: whether this client left before.
        problem: what went wrong on the connection, if anything did.
    """

    prompt: str
    status: int = 0
    sent: float = 0.0
    first: float | None = None
    last: float = 0.0
    texts: list[str] = field(default_factory=list)
    usage: dict[str, Any] | None = None
    ended: bool = False
    hung_up: bool = False
    problem: str | None = None

    @property
    def first_seconds(self) -> float:
        """From the request to the answer's first byte."""
        assert self.first is not None
        return self.first - self.sent

    @property
    def seconds(self) -> float:
        """From the request to the answer's end."""
        return self.last - self.sent


class Connection:
    """One client, which has one request at a time."""

    def __init__(self, port: int, path: str, body: Mapping[str, Any]) -> None:
        """A client of 127.0.0.1.

        Args:
            port: where it listens.
            path: of the route that completes.
            body: fields of each request, beside its prompt.
        """
        self._port = port
        self._path = path
        self._body = dict(body)
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(
        self, prompt: str, seconds: float | None = None, only_first: bool = False
    ) -> Answer:
        """Have a prompt completed.

        Args:
            prompt: what to complete.
            seconds: after which this client hangs up; None for never.
            only_first: whether it hangs up once the answer has begun.
        """
        answer = Answer(prompt)
        try:
            async with asyncio.timeout(seconds) as patience:
                await self._ask(answer, only_first)
        except (OSError, asyncio.IncompleteReadError) as error:
            if patience.expired():
                answer.hung_up = True
            else:
                answer.problem = repr(error)
        answer.last = time.monotonic()
        if answer.hung_up or answer.problem:
            self.close()
        return answer

    async def _ask(self, answer: Answer, only_first: bool) -> None:
        content = json.dumps({**self._body, "prompt": answer.prompt}).encode()
        head = (
            f"POST {self._path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(content)}\r\n\r\n"
        )
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._reader, self._writer
        assert reader is not None
        answer.sent = time.monotonic()
        writer.write(head.encode() + content)
        lines = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
        answer.status = int(lines[0].split()[1])
        unread = b""
        async for part in _parts(reader, lines):
            if answer.first is None:
                answer.first = time.monotonic()
                if only_first and answer.status == 200:
                    answer.hung_up = True
                    return
            *events, unread = (unread + part.replace(b"\r\n", b"\n")).split(b"\n\n")
            if answer.status == 200:
                for event in events:
                    _note(answer, event)
        if b"connection: close" in lines:
            self.close()

    def close(self) -> None:
        """Hang up, whatever is under way."""
        if self._writer is not None:
            self._writer.transport.abort()
            self._reader = self._writer = None


async def _parts(reader: asyncio.StreamReader, lines: list[bytes]) -> AsyncIterator[bytes]:
    """The body of an answer with these (lower-case) header lines, as it comes."""
    if b"transfer-encoding: chunked" in lines:
        while size := int((await reader.readuntil(b"\n")).split(b";")[0], 16):
            yield (await reader.readexactly(size + 2))[:-2]
        await reader.readuntil(b"\n")
        return
    [length] = [line for line in lines if line.startswith(b"content-length:")]
    yield await reader.readexactly(int(length.split(b":")[1]))


def _note(answer: Answer, event: bytes) -> None:
    content = event.removeprefix(b"data: ")
    if content.endswith(b"[DONE]"):
        answer.ended = True
        return
    values = json.loads(content)
    if "error" in values:
        answer.problem = str(values["error"])
        return
    answer.texts += [choice["text"] for choice in values["choices"]]
    answer.usage = values.get("usage") or answer.usage


async def closed_loop(
    connect: Callable[[], Connection],
    prompts: Iterable[str],
    clients: int,
    enough: int = 0,
    spread: float = 0.0,
) -> list[Answer]:
    """Have prompts completed by so many clients, each of which asks again once it has an answer.

    Args:
        connect: makes a client.
        prompts: all that is asked.
        clients: how many ask.
        enough: answers after which the others are given up; 0 for all.
        spread: seconds over which they come; 0 for all at once.

    Returns:
        The answers, as they came.
    """
    left = iter(prompts)
    answers: list[Answer] = []
    done = asyncio.Event()

    async def client(number: int) -> None:
        await asyncio.sleep(spread * number / clients)
        connection = connect()
        try:
            for prompt in left:
                answers.append(await connection.ask(prompt))
                if len(answers) == enough:
                    done.set()
        finally:
            connection.close()

    everything = asyncio.gather(*(client(number) for number in range(clients)))
    watch = asyncio.ensure_future(done.wait())
    await asyncio.wait({everything, watch}, return_when=asyncio.FIRST_COMPLETED)
    watch.cancel()
    if everything.done():
        await everything  # for what it may have raised
    else:
        everything.cancel()
        await asyncio.gather(everything, return_exceptions=True)
    return answers[: enough or None]


@dataclass
class Load:
    """What clients that come at random have seen.

    Attributes:
        answers: of all of them.
        seen: seconds since the beginning, and what `look` gave then.
    """

    answers: list[Answer] = field(default_factory=list)
    seen: list[tuple[float, int]] = field(default_factory=list)


async def open_loop(
    connect: Callable[[], Connection],
    prompts: Iterable[str],
    per_second: float,
    seconds: float,
    patience: float,
    look: Callable[[], int],
) -> Load:
    """Have prompts completed by clients that come at random, whatever became of those before.

    Args:
        connect: makes a client.
        prompts: one of each client; enough of them.
        per_second: clients that come.
        seconds: for so long; then what was accepted is waited for.
        patience: every third client hangs up, at any time up to this after it came.
        look: asked now and then.
    """
    rng = random.Random(0)
    load = Load()
    start = time.monotonic()

    async def client(prompt: str, leaves: float | None) -> None:
        connection = connect()
        load.answers.append(await connection.ask(prompt, leaves))
        connection.close()

    async def watch() -> None:
        while True:
            load.seen.append((time.monotonic() - start, look()))
            await asyncio.sleep(min(1.0, seconds / 60))

    watcher = asyncio.create_task(watch())
    clients: list[asyncio.Task[None]] = []
    left, due = iter(prompts), start
    while due < start + seconds:
        leaves = rng.uniform(0, patience) if rng.random() < 1 / 3 else None
        clients.append(asyncio.create_task(client(next(left), leaves)))
        due += rng.expovariate(per_second)
        await asyncio.sleep(due - time.monotonic())
    watcher.cancel()
    await asyncio.gather(*clients)
    return load
