"""Streams: what they say is what `generate` says, and nothing is left of who goes away."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from running_server import PATIENCE, Running, running, wait_until

from paddlenlp_codegen_task import CodeGenerator
from paddlenlp_codegen_task.decoding.events import Failed, Finished, Text
from paddlenlp_codegen_task.decoding.scheduler import Scheduler
from paddlenlp_codegen_task.runtime.base import StepOutput
from paddlenlp_codegen_task.serving import async_engine
from paddlenlp_codegen_task.serving.async_engine import UNREAD, AsyncEngine, Overloaded
from paddlenlp_codegen_task.serving.settings import Settings

LONG = {"prompt": "x = [", "max_tokens": 900, "ignore_eos": True, "temperature": 0, "stream": True}
STEP_SECONDS = 0.02  # of a step that is to be seen


def events(text: str) -> list[Any]:
    """The events of a stream but for the last, which says that it is done."""
    assert text.endswith("\n\n")
    lines = text[:-2].split("\n\n")
    assert all(line.startswith("data: ") and "\n" not in line for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


prompts = st.sampled_from(["def f(x):\n", 'print("你好 🦊', "x", "class A:\n    def", "é" * 9])
bodies = st.fixed_dictionaries(
    {
        "prompt": prompts | st.lists(prompts, min_size=1, max_size=3),
        "max_tokens": st.integers(0, 24),
        "temperature": st.sampled_from([0, 0.5, 1.0, 2.0]),
        "seed": st.integers(0, 50),
    },
    optional={
        "n": st.integers(1, 3),
        "stop": st.sampled_from(["e", "\n", ["()", "re", "你"], []]),
        "logprobs": st.integers(0, 3),
        "echo": st.booleans(),
        "top_k": st.sampled_from([0, 1, 5]),
        "truncation": st.sampled_from([None, "python"]),
        "frequency_penalty": st.sampled_from([-1.0, 1.0]),
        "ignore_eos": st.booleans(),
        "stream_options": st.sampled_from([None, {"include_usage": True}, {}]),
        "logit_bias": st.sampled_from([{"163": 20}, {}]),  # bytes that begin a character
    },
)


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(bodies)
def test_a_stream_says_what_the_whole_answer_says(server: Running, body: dict[str, Any]):
    """Half a character that was told too early would be another one in the joined text."""
    whole = server.post(body)
    assert whole.status_code == 200, whole.text
    expected = whole.json()
    answer = server.post({**body, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    parts = events(answer.text)
    with_usage = bool((body.get("stream_options") or {}).get("include_usage"))
    if with_usage:
        last = parts.pop()
        assert last["choices"] == []
        # What the first of the two has left in the prefix cache is the only difference.
        for one in (last["usage"], expected["usage"]):
            del one["prompt_tokens_details"]
        assert last["usage"] == expected["usage"]
    assert len({(one["id"], one["created"], one["model"]) for one in parts}) == 1
    for choice in expected["choices"]:
        mine = [one["choices"][0] for one in parts if one["choices"][0]["index"] == choice["index"]]
        assert "".join(one["text"] for one in mine) == choice["text"]
        assert [one["finish_reason"] for one in mine[:-1]] == [None] * (len(mine) - 1)
        assert mine[-1]["finish_reason"] == choice["finish_reason"]
        for one in mine[:-1]:
            assert one["text"]
        if choice["logprobs"] is None:
            assert all(one["logprobs"] is None for one in mine)
            continue
        for name in ("tokens", "text_offset"):
            joined = [value for one in mine for value in one["logprobs"][name]]
            assert joined == choice["logprobs"][name]
        own = [value for one in mine for value in one["logprobs"]["token_logprobs"]]
        pairs = list(zip(own, choice["logprobs"]["token_logprobs"], strict=True))
        known = [pair for pair in pairs if None not in pair]
        assert all(pair == (None, None) for pair in pairs if None in pair)
        assert [a for a, _ in known] == pytest.approx([b for _, b in known], abs=1e-3)
    for one in parts:
        assert len(one["choices"]) == 1
        assert ("usage" in one) == with_usage
        assert one.get("usage") is None


@pytest.mark.parametrize("logprobs", [None, 1])
def test_text_comes_as_soon_as_it_is_there(slow: Running, logprobs: int | None):
    """Not all at once at the end: a step is slow here."""
    times = []
    body = {**LONG, "max_tokens": 20, "logprobs": logprobs}
    url = slow.url + "/v1/completions"
    with httpx.stream("POST", url, json=body, timeout=PATIENCE) as answer:
        times += [time.monotonic() for _ in answer.iter_raw()]
    assert times[-1] - times[0] > 5 * STEP_SECONDS


# A generator whose steps take a while, so that there is a time at which to go away.


@pytest.fixture(scope="module")
def slow_generator(new_generator: Callable[..., CodeGenerator]) -> CodeGenerator:
    generator = new_generator(batch_size=2)
    generator.add_step_hook(lambda _: time.sleep(STEP_SECONDS))
    return generator


@pytest.fixture(scope="module")
def slow(slow_generator: CodeGenerator) -> Iterator[Running]:
    with running(slow_generator, Settings(max_waiting=8)) as one:
        yield one


def left(server: Running) -> tuple[int, int, int]:
    """Rows that are accepted, requests that have not ended, rows that run."""
    found: list[tuple[int, int]] = []

    def look(scheduler: Scheduler) -> None:
        found.append((len(scheduler.requests), scheduler.slots.used))

    server.generator.engine.run(look)
    wait_until(lambda: bool(found))
    return server.app.state.engine.rows, *found[0]


def connect(server: Running, body: dict[str, Any], buffer: int | None = None) -> socket.socket:
    """Send a request by hand; the system is to keep `buffer` bytes that are not read."""
    data = json.dumps(body).encode()
    connection = socket.socket()
    if buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    connection.settimeout(PATIENCE)
    connection.connect(server.server._listener.getsockname())
    head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    connection.sendall(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
    return connection


class Steps:
    """Counts a generator's steps."""

    def __init__(self, generator: CodeGenerator) -> None:
        self.count = 0
        self._generator = generator

    def __call__(self, _: Any) -> None:
        self.count += 1

    def __enter__(self) -> Steps:
        self._generator.add_step_hook(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._generator.remove_step_hook(self)


def assert_soon_nothing_is_left(server: Running) -> None:
    """Of a client that has gone: nothing, long before its answer would have ended."""
    with Steps(server.generator) as steps:
        wait_until(lambda: left(server) == (0, 0, 0))
    # The system tells of a closed connection when it likes; its answer had hundreds of steps left.
    assert steps.count < 100


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("options", [{}, {"n": 4}, {"prompt": ["a", "b", "c"]}], ids=str)
def test_who_hangs_up_leaves_nothing(slow: Running, stream: bool, options: dict[str, Any]):
    connection = connect(slow, {**LONG, "stream": stream, **options})
    wait_until(lambda: left(slow)[2] > 0)
    connection.close()
    assert_soon_nothing_is_left(slow)


@pytest.mark.parametrize("seed", range(6))
def test_who_hangs_up_at_any_byte_leaves_nothing(slow: Running, seed: int):
    take = int(np.random.default_rng(seed).integers(0, 3000))
    connection = connect(slow, LONG)
    while take > 0:
        take -= len(connection.recv(take))
    connection.close()
    wait_until(lambda: left(slow)[0] in (0, 1))
    time.sleep(3 * STEP_SECONDS)  # it may not have been taken up yet
    assert_soon_nothing_is_left(slow)


@pytest.mark.parametrize("stream", [True, False])
def test_who_hangs_up_while_it_waits_leaves_nothing(slow: Running, stream: bool):
    running = [connect(slow, LONG) for _ in range(2)]
    wait_until(lambda: left(slow)[2] == 2)
    waiting = connect(slow, {**LONG, "stream": stream})
    wait_until(lambda: left(slow) == (3, 3, 2))
    waiting.close()
    wait_until(lambda: left(slow) == (2, 2, 2))
    for one in running:
        one.close()
    assert_soon_nothing_is_left(slow)


def test_who_hangs_up_amid_its_body_leaves_nothing(slow: Running):
    data = json.dumps(LONG).encode()
    for length in (0, 1, len(data) - 1):
        address = slow.server._listener.getsockname()
        connection = socket.create_connection(address, timeout=PATIENCE)
        head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(data)}\r\n\r\n"
        connection.sendall(head.encode() + data[:length])
        connection.close()
    time.sleep(0.1)
    assert left(slow) == (0, 0, 0)
    assert slow.post({"prompt": "x", "max_tokens": 1}).status_code == 200


def test_a_full_queue_is_429_before_anything_is_streamed(slow: Running):
    """Also with an echo, which would be there at once."""
    held = [connect(slow, {**LONG, "n": 5}) for _ in range(2)]
    wait_until(lambda: left(slow)[0] == 10)
    for stream in (True, False):
        answer = slow.post({**LONG, "stream": stream, "echo": True})
        assert answer.status_code == 429
        assert answer.headers["retry-after"]
        assert answer.json()["error"]["code"] == "rate_limit_exceeded"
    for one in held:
        one.close()
    assert_soon_nothing_is_left(slow)


def test_a_failure_amid_a_stream_is_an_event(
    slow: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    runtime = slow.scheduler()._runtime
    forward, steps = runtime.forward, 0

    def fail(*arguments: Any) -> StepOutput:
        nonlocal steps
        steps += 1
        if steps > 4:
            raise RuntimeError("the device\nis gone")
        return forward(*arguments)

    monkeypatch.setattr(runtime, "forward", fail)
    answer = slow.post(LONG)
    assert answer.status_code == 200
    *parts, last = events(answer.text)
    assert parts
    assert all(one["choices"] for one in parts)
    assert last["error"]["type"] == "server_error"
    assert "\n" not in last["error"]["message"]
    monkeypatch.setattr(runtime, "forward", forward)
    assert slow.post({"prompt": "x", "max_tokens": 1}).status_code == 200
    assert left(slow) == (0, 0, 0)


def test_a_failure_of_one_is_of_nobody_else(slow: Running, monkeypatch: pytest.MonkeyPatch):
    """Logits that are no numbers."""
    expected = slow.post({"prompt": "y", "max_tokens": 30, "temperature": 0}).json()["choices"]
    runtime = slow.scheduler()._runtime
    forward, steps = runtime.forward, 0

    def spoil(*arguments: Any) -> StepOutput:
        nonlocal steps
        output = forward(*arguments)
        if len(output.logsumexp) == 2:
            steps += 1
            if steps == 3:
                output.logsumexp[0] = np.nan  # of who came first
        return output

    broken = connect(slow, LONG)
    wait_until(lambda: left(slow)[2] == 1)
    monkeypatch.setattr(runtime, "forward", spoil)
    answer = slow.post({"prompt": "y", "max_tokens": 30, "temperature": 0})
    assert answer.json()["choices"] == expected
    received = b""
    while b"[DONE]" not in received:
        received += broken.recv(4096)
    broken.close()
    error = re.findall(rb'data: (\{"error".*\})\n\n', received)
    assert len(error) == 1
    assert "not numbers" in json.loads(error[0])["error"]["message"]
    assert received.index(error[0]) < received.index(b"[DONE]")


def test_who_reads_nothing_holds_up_only_itself(
    serve: Callable[..., Running], generator: CodeGenerator
):
    """Its requests are held back when so much is unread, and give their places up."""
    server = serve(Settings(max_waiting=100))
    # What the system itself would keep for who does not read: as little as it can.
    server.server._listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 12)
    lazy = [connect(server, {**LONG, "logprobs": 20}, 1 << 12) for _ in range(10)]
    scheduler = server.scheduler()
    wait_until(lambda: len(scheduler._admission._held) >= 8)
    # More of them than there are places: all others would wait for ever if they kept those.
    for seed in range(3):
        answer = server.post({"prompt": "def f(", "max_tokens": 20, "seed": seed, "stream": True})
        assert events(answer.text)
    for one in lazy:
        one.close()
    wait_until(lambda: left(server) == (0, 0, 0))


# The engine for asyncio, without HTTP.


def run_with(generator: CodeGenerator, work: Callable[[AsyncEngine], Any], rows: int = 10) -> Any:
    async def main() -> Any:
        return await work(AsyncEngine(generator, rows))

    return asyncio.run(main())


def requests_of(generator: CodeGenerator, count: int, **options: Any) -> Any:
    given = {"max_length": 300, "ignore_eos": True, "truncation": None, "streamed": True, **options}
    call = generator.call(**given)
    return call, [call.request(f"x{n} = ", n) for n in range(count)]


def idle(generator: CodeGenerator) -> bool:
    found: list[bool] = []
    generator.engine.run(lambda s: found.append(not s.requests and not s.slots.used))
    wait_until(lambda: bool(found))
    return found[0]


def test_a_run_that_is_never_begun_takes_no_place(generator: CodeGenerator):
    async def work(engine: AsyncEngine) -> None:
        for _ in range(30):
            pieces = engine.run(*requests_of(generator, 1))
            await pieces.aclose()
            del pieces
        dropped = engine.run(*requests_of(generator, 1))
        del dropped
        assert engine.rows == 0

    run_with(generator, work)
    assert idle(generator)


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5])
def test_a_run_that_is_cancelled_at_any_time_leaves_nothing(generator: CodeGenerator, turns: int):
    """Between submitting and the first event, too."""

    async def work(engine: AsyncEngine) -> None:
        tasks = [
            asyncio.ensure_future(engine.finish(*requests_of(generator, 2, streamed=False)))
            for _ in range(4)
        ]
        for _ in range(turns):
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(one, asyncio.CancelledError) for one in found)
        assert engine.rows == 0

    run_with(generator, work)
    wait_until(lambda: idle(generator))


def test_places_are_counted_by_rows(generator: CodeGenerator):
    async def work(engine: AsyncEngine) -> None:
        with pytest.raises(Overloaded):
            await engine.finish(*requests_of(generator, 4, num_return_sequences=3))
        assert engine.rows == 0
        pieces = engine.run(*requests_of(generator, 3, num_return_sequences=3))
        await anext(pieces)
        assert engine.rows == 9
        with pytest.raises(Overloaded):
            await engine.finish(*requests_of(generator, 2))
        assert engine.rows == 9
        await pieces.aclose()
        assert engine.rows == 0

    run_with(generator, work)
    wait_until(lambda: idle(generator))


def test_each_request_is_held_back_by_what_is_unread_of_it():
    """Not by what is unread of others of the same call; and each that is held is released."""

    class Recorder:
        def __init__(self) -> None:
            self.released: list[Any] = []

        def release(self, request: Any) -> None:
            self.released.append(request)

    async def main() -> None:
        engine = Recorder()
        sink = async_engine._Sink(asyncio.get_running_loop(), engine)  # type: ignore[arg-type]
        many: list[Any] = [object() for _ in range(3 * UNREAD)]

        def text(request: Any) -> list[Any]:
            return [Text(request, 0, "x", None)]

        assert not any(sink.put(one, text(one)) for one in many)
        first, second = many[:2]
        held = [sink.put(first, text(first)) for _ in range(2 * UNREAD)]
        assert held == [False] * (UNREAD - 1) + [True] * (UNREAD + 1)
        assert not sink.put(first, [Finished(first, [])])
        assert not sink.put(second, [Failed(second, RuntimeError())])
        await asyncio.sleep(0)
        taken = await sink.take()
        assert len(taken) == 3 * UNREAD + 2 * UNREAD + 2
        assert set(engine.released) == {first}
        assert not any(sink.put(one, text(one)) for one in many for _ in range(UNREAD - 1))

    asyncio.run(main())


def test_a_reader_that_rests_gets_all_of_it(generator: CodeGenerator):
    """Several requests of one call, held back and released again and again."""

    async def work(engine: AsyncEngine) -> None:
        call, requests = requests_of(generator, 3, seed=1)
        texts, n = ["", "", ""], 0
        async for piece in engine.run(call, requests):
            n += 1
            if n % 50 == 0:
                time.sleep(0.3)  # the loop itself rests, as when it is overloaded
            if isinstance(piece.event, Text):
                texts[piece.prompt] += piece.event.text
        expected = generator.generate(
            [f"x{n} = " for n in range(3)],
            max_length=300, ignore_eos=True, truncation=None, seed=1,
        )  # fmt: skip
        assert texts == [one.text for [one] in expected]

    run_with(generator, work)


def test_a_loop_that_has_closed_harms_no_engine(generator: CodeGenerator):
    """What it had asked for is given up, and others go on."""
    loop = asyncio.new_event_loop()
    _, requests = requests_of(generator, 2)
    sink = async_engine._Sink(loop, generator.engine)
    generator.engine.submit(requests, sink)
    loop.close()
    wait_until(lambda: idle(generator))

    closing = asyncio.new_event_loop()
    engine = AsyncEngine(generator, 10)

    async def ask() -> None:
        blocked = threading.Event()
        generator.engine.run(lambda _: blocked.wait(PATIENCE))
        task = asyncio.ensure_future(engine.inspect(lambda scheduler: 1))
        await asyncio.sleep(0)
        task.cancel()
        closing.call_soon(blocked_later.append, blocked)

    blocked_later: list[threading.Event] = []
    closing.run_until_complete(ask())
    closing.run_until_complete(asyncio.sleep(0))
    closing.close()
    [blocked] = blocked_later
    blocked.set()
    assert generator.generate("x", max_length=1)
    assert generator.engine.closed is None


def test_what_cannot_be_told_when_it_is_refused_harms_no_engine(
    generator: CodeGenerator, monkeypatch: pytest.MonkeyPatch
):
    """A request that the scheduler does not take, of a loop that has closed."""
    scheduler: list[Scheduler] = []
    generator.engine.run(scheduler.append)
    wait_until(lambda: bool(scheduler))

    def refuse(_: Any) -> None:
        raise MemoryError("no room")

    loop = asyncio.new_event_loop()
    sink = async_engine._Sink(loop, generator.engine)
    loop.close()
    _, requests = requests_of(generator, 1)
    with monkeypatch.context() as patched:
        patched.setattr(scheduler[0], "add", refuse)
        generator.engine.submit(requests, sink)
        assert idle(generator)
    assert generator.generate("x", max_length=1)
    assert generator.engine.closed is None
