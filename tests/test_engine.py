"""The engine's thread: what one caller does reaches no other, and nothing ever hangs."""

from __future__ import annotations

import gc
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_runtime import EOS, VOCAB, FakeRuntime, Letters, next_token
from sampler_probe import request

from paddlenlp_codegen_task import CodeGenerator
from paddlenlp_codegen_task.decoding.events import Event, Failed, Finished, Text
from paddlenlp_codegen_task.decoding.request import Batch, Request
from paddlenlp_codegen_task.decoding.scheduler import Scheduler
from paddlenlp_codegen_task.decoding.stopping import StopChecker
from paddlenlp_codegen_task.engine import Engine, Mailbox
from paddlenlp_codegen_task.truncation import Truncator

SECONDS = 60.0  # that anything may take; nothing here is timed, but for what would never end


def eventually(holds: Callable[[], bool]) -> bool:
    """Whether something comes to hold."""
    deadline = time.monotonic() + SECONDS
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    return True


def make(prompt: list[int], limit: int = 9, **options: Any) -> Request:
    return request(VOCAB, prompt, eos_token_id=EOS, max_length=limit, batch=Batch(1), **options)


def lasting(limit: int, **options: Any) -> Request:
    """A request that knows no end of text: it takes all its tokens."""
    one = request(VOCAB, [4, 7], max_length=limit, batch=Batch(1), **options)
    one.stops = lambda: StopChecker(Letters(), Truncator(None).scanner())
    return one


class Running:
    """An engine over a fake runtime."""

    def __init__(self, batch_size: int = 4) -> None:
        self.runtime = FakeRuntime()
        self.freed = 0
        self.scheduler = Scheduler(self.runtime, batch_size)
        self.engine = Engine(self.scheduler, self._free)
        self.gate = threading.Event()  # while it is not set, a step waits within the runtime
        self.gate.set()
        self.inside = threading.Event()
        self.runtime.on_forward = self._wait

    def _free(self) -> None:
        self.freed += 1

    def _wait(self, slot: int, token_ids: Any, output: Any) -> Any:
        self.inside.set()
        assert self.gate.wait(SECONDS)
        return output

    def finish(self, one: Request, mailbox: Mailbox) -> Event:
        while True:
            for event in mailbox.take():
                if event.request is one and not isinstance(event, Text):
                    return event


@pytest.fixture
def running() -> Iterator[Running]:
    made = Running()
    yield made
    made.gate.set()
    made.engine.close("the test is over")


def test_requests_of_many_threads(running: Running):
    found: dict[int, Event] = {}

    def run(n: int) -> None:
        one, mailbox = make([n + 1, 2]), Mailbox(running.engine)
        running.engine.submit([one], mailbox)
        found[n] = running.finish(one, mailbox)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert all(isinstance(found[n], Finished) for n in range(20))


def test_a_sink_that_raises_gives_up_its_request_alone(
    running: Running, caplog: pytest.LogCaptureFixture
):
    class Broken:
        def put(self, one: Request, events: list[Event]) -> bool:
            raise OSError("gone")

    bad = lasting(50, streamed=True)
    good, mailbox = lasting(50), Mailbox(running.engine)
    with caplog.at_level(logging.WARNING):
        running.engine.submit([bad], Broken())
        running.engine.submit([good], mailbox)
        assert isinstance(running.finish(good, mailbox), Finished)
    assert "its sink raised OSError('gone')" in caplog.text
    assert eventually(lambda: not running.scheduler.requests)


def test_a_reader_that_stops_holds_back_its_own_request_only(running: Running):
    slow, fast = Mailbox(running.engine, limit=8), Mailbox(running.engine, limit=8)
    one, other = lasting(2000, streamed=True), make([3, 5], 40)
    running.engine.submit([one], slow)
    assert eventually(lambda: slow._held is one and running.scheduler.slots.used == 0)
    given = slow._given
    assert 8 <= given < 1000  # some of its two thousand tokens, and then no more
    running.engine.submit([other], fast)
    assert isinstance(running.finish(other, fast), Finished)
    assert slow._given == given
    events: list[Event] = []
    while not events or isinstance(events[-1], Text):  # it goes on where it was
        events += slow.take()
    texts = "".join(event.text for event in events if isinstance(event, Text))
    [row] = events[-1].rows  # type: ignore[union-attr]
    tokens: list[int] = []
    while len(tokens) < 2000:
        tokens.append(next_token([*one.prompt_ids, *tokens]))
    assert row.token_ids == tokens
    assert texts == row.stops.text


def test_texts_that_wait_for_their_reader_s_turn_are_given_before_the_engine_rests(
    running: Running, monkeypatch: pytest.MonkeyPatch
):
    """Two streams; one is held back while texts of the other are kept for its next turn."""
    monkeypatch.setattr("paddlenlp_codegen_task.engine.HAND_OUTS", 1e-3)  # turns take for ever
    boxes = [Mailbox(running.engine, limit=2) for _ in range(2)]
    requests = [lasting(50, streamed=True) for _ in boxes]
    running.engine.submit(requests[:1], boxes[0])
    running.engine.submit(requests[1:], boxes[1])
    for one, box in zip(requests, boxes, strict=True):
        assert isinstance(running.finish(one, box), Finished)


def test_a_reader_just_as_fast_never_misses_its_release(running: Running):
    """The reader empties the box while the engine finds it full."""
    for _ in range(30):
        mailbox = Mailbox(running.engine, limit=1)  # each event fills it
        one = lasting(20, streamed=True)
        running.engine.submit([one], mailbox)
        assert isinstance(running.finish(one, mailbox), Finished)


def test_cancelling_frees_the_slot(running: Running):
    mailbox = Mailbox(running.engine)
    one = lasting(2000)
    running.engine.submit([one], mailbox)
    assert eventually(lambda: running.scheduler.slots.used == 1)
    running.engine.cancel([one, make([1])])  # one that was never submitted does not matter
    assert eventually(lambda: not running.scheduler.requests)
    assert running.scheduler.slots.used == 0


def test_cancelling_ends_a_step_that_nobody_else_needs(running: Running):
    mailbox = Mailbox(running.engine)
    one, other = lasting(2000), lasting(2000)
    running.engine.submit([one, other], mailbox)
    assert eventually(lambda: running.scheduler.slots.used == 2)
    running.gate.clear()
    running.inside.clear()
    assert running.inside.wait(SECONDS)
    running.engine.cancel([one])  # the other runs beside it
    assert running.runtime.interrupts == 0
    running.inside.clear()
    running.gate.set()
    assert eventually(lambda: running.scheduler.slots.used == 1)
    running.gate.clear()
    running.inside.clear()
    assert running.inside.wait(SECONDS)
    running.engine.cancel([make([1])])
    running.engine.cancel([one])
    assert running.runtime.interrupts == 0
    running.engine.cancel([other, one])
    assert running.runtime.interrupts == 1
    running.gate.set()
    assert eventually(lambda: not running.scheduler.requests)


def test_a_failure_of_the_runtime_is_told_to_each(running: Running):
    boxes = [Mailbox(running.engine) for _ in range(3)]
    requests = [lasting(500) for _ in boxes]
    for one, box in zip(requests, boxes, strict=True):
        running.engine.submit([one], box)
    assert eventually(lambda: running.scheduler.slots.used == 3)

    def fail(*_: Any) -> Any:
        raise MemoryError("no room")

    running.runtime.on_forward = fail
    errors = [running.finish(one, box) for one, box in zip(requests, boxes, strict=True)]
    assert len({id(one.error) for one in errors if isinstance(one, Failed)}) == 3
    running.runtime.on_forward = None
    after = make([1, 2])
    running.engine.submit([after], boxes[0])
    assert isinstance(running.finish(after, boxes[0]), Finished)


def test_a_fault_of_the_engine_itself_leaves_nobody_waiting(
    running: Running, caplog: pytest.LogCaptureFixture
):
    def fault() -> list[Event]:
        raise SystemError("a fault")

    running.scheduler.step = fault  # type: ignore[method-assign]
    one, mailbox = make([1, 2]), Mailbox(running.engine)
    running.engine.submit([one], mailbox)
    event = running.finish(one, mailbox)
    assert isinstance(event, Failed)
    assert "the engine has failed: SystemError('a fault')" in str(event.error)
    assert eventually(lambda: running.freed == 1)
    with pytest.raises(RuntimeError, match="the engine has failed"):
        running.engine.submit([make([1])], mailbox)


# Closing.


def assert_closed(running: Running) -> None:
    with pytest.raises(RuntimeError, match="over and out"):
        running.engine.submit([make([1])], Mailbox(running.engine))
    assert eventually(lambda: running.freed == 1)


def test_closing_before_anything_ran(running: Running):
    running.engine.close("over and out")
    running.engine.close("again")
    assert running.freed == 1
    assert_closed(running)


def test_closing_amid_a_step(running: Running):
    running.gate.clear()
    one, mailbox = lasting(50), Mailbox(running.engine)
    running.engine.submit([one], mailbox)
    assert running.inside.wait(SECONDS)
    closers = [
        threading.Thread(target=running.engine.close, args=("over and out",)) for _ in range(3)
    ]
    for thread in closers:
        thread.start()
    assert running.freed == 0  # not while the step runs
    running.gate.set()
    event = running.finish(one, mailbox)
    assert isinstance(event, Failed)
    assert str(event.error) == "over and out"
    for thread in closers:
        thread.join(SECONDS)
        assert not thread.is_alive()
    assert running.freed == 1
    assert_closed(running)


def test_closing_in_the_engine_s_own_thread(running: Running):
    running.scheduler.hooks.append(lambda _: running.engine.close("over and out"))
    one, mailbox = lasting(50), Mailbox(running.engine)
    running.engine.submit([one], mailbox)
    assert isinstance(running.finish(one, mailbox), Failed)
    assert_closed(running)


def test_closing_races_with_submitting():
    """Whoever comes at any time is told, by an exception or by an event."""
    for _ in range(100):
        running = Running()
        told: list[Any] = []

        def submit(running: Running = running, told: list[Any] = told) -> None:
            one, mailbox = make([1, 2]), Mailbox(running.engine)
            try:
                running.engine.submit([one], mailbox)
            except RuntimeError as error:
                told.append(error)
            else:
                told.append(running.finish(one, mailbox))

        threads = [threading.Thread(target=submit) for _ in range(3)]
        for thread in threads:
            thread.start()
        running.engine.close("over and out")
        for thread in threads:
            thread.join(SECONDS)
        assert len(told) == 3
        assert running.freed == 1


def test_an_engine_that_is_dropped_frees_what_it_runs_on():
    running = Running()
    one, mailbox = make([1, 2]), Mailbox(running.engine)
    running.engine.submit([one], mailbox)
    running.finish(one, mailbox)
    engine, mailbox = running.engine, None  # type: ignore[assignment]
    del running.engine, engine
    gc.collect()
    assert eventually(lambda: running.freed == 1)


# Processes of their own: signals, forks, and the end of the interpreter.

HEAD = """
import faulthandler, os, signal, sys, threading, time
faulthandler.dump_traceback_later(100, exit=True)
from paddlenlp_codegen_task import CodeGenerator
LONG = {"max_length": 200, "truncation": None, "ignore_eos": True}
generator = CodeGenerator.from_pretrained(
    "builtin", home_path=sys.argv[1], device="cpu", num_threads=1
)
SHORT = {"max_length": 20, "seed": 1, "truncation": None}
expected = generator.generate("def add(a, b):", **SHORT)
"""


def run_process(code: str, home_path: Path) -> str:
    """Run code after HEAD in a new process; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", HEAD + code, str(home_path)],
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_interrupt_reaches_whom_it_interrupts(builtin: CodeGenerator, home_path: Path):
    found = run_process(
        """
class Alarm(Exception):
    pass

def handler(*_):
    raise Alarm

signal.signal(signal.SIGALRM, handler)
errors, counts = [], [0]

def other():
    try:
        while not stop.is_set():
            assert generator.generate("def add(a, b):", **SHORT) == expected
            counts[0] += 1
    except BaseException as error:
        errors.append(error)

stop = threading.Event()
thread = threading.Thread(target=other, daemon=True)
thread.start()
pieces = generator.stream("x = 1", **LONG)
next(pieces)
caught = 0
for n in range(40):
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.003 + 0.0007 * n)
        generator.generate("import os", **LONG)
    except Alarm:
        caught += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
rest = "".join(pieces)
stop.set()
thread.join()
assert not errors, errors
assert counts[0] > 0
assert rest
print(caught)
""",
        home_path,
    )
    assert int(found) > 30


def test_interrupts_by_the_dozen_with_other_threads_at_work(
    builtin: CodeGenerator, home_path: Path
):
    found = run_process(
        """
errors = []

def other(n):
    try:
        while not stop.is_set():
            if n % 2:
                assert generator.generate("def add(a, b):", **SHORT) == expected
            else:
                text = "".join(generator.stream("def add(a, b):", **SHORT))
                assert text == expected[0][0].text
    except BaseException as error:
        errors.append(error)

stop = threading.Event()
threads = [threading.Thread(target=other, args=(n,), daemon=True) for n in range(4)]
for thread in threads:
    thread.start()
caught = 0
for n in range(60):
    timer = threading.Timer(0.001 + 0.0005 * n, os.kill, (os.getpid(), signal.SIGINT))
    try:
        timer.start()
        while True:
            generator.generate("import os", **LONG)
    except KeyboardInterrupt:
        caught += 1
    timer.join()
stop.set()
for thread in threads:
    thread.join()
assert not errors, errors
assert generator.generate("def add(a, b):", **SHORT) == expected
print(caught)
""",
        home_path,
    )
    assert int(found) == 60


def test_closing_in_a_signal_handler(builtin: CodeGenerator, home_path: Path):
    found = run_process(
        """
signal.signal(signal.SIGALRM, lambda *_: generator.close())
signal.setitimer(signal.ITIMER_REAL, 0.05)
try:
    while True:
        generator.generate(["import os"] * 4, **LONG)
except RuntimeError as error:
    print(error)
generator.close()
""",
        home_path,
    )
    assert found.strip() == "this generator is closed"


def test_closing_from_the_garbage_collector(builtin: CodeGenerator, home_path: Path):
    found = run_process(
        """
import gc

class Owner:
    def __init__(self, generator):
        self.generator = generator
        self.me = self  # so that only the collector finds it

    def __del__(self):
        self.generator.close()

owner = Owner(generator)
pieces = generator.stream("x = 1", **LONG)
next(pieces)
del owner
gc.collect()
try:
    print(sum(1 for _ in pieces) < 200)
except RuntimeError as error:
    print(error)
""",
        home_path,
    )
    assert found.strip() == "this generator is closed"


def test_the_process_can_end_while_it_generates(builtin: CodeGenerator, home_path: Path):
    run_process(
        """
def work():
    while True:
        generator.generate(["import os"] * 4, **LONG)

for _ in range(3):
    threading.Thread(target=work, daemon=True).start()
time.sleep(0.2)
""",
        home_path,
    )


CHILD = """
def in_child(run):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            answer = run()
        except BaseException as error:
            answer = repr(error)
        os.write(writing, str(answer).encode())
        os._exit(0)
    os.close(writing)
    answer = b""
    while part := os.read(reading, 10_000):
        answer += part
    os.close(reading)
    os.waitpid(child, 0)
    return answer.decode()
"""


def test_an_idle_generator_goes_on_in_a_forked_child(builtin: CodeGenerator, home_path: Path):
    found = run_process(
        CHILD
        + """
def run():
    return generator.generate("def add(a, b):", **SHORT) == expected

for _ in range(5):
    print(in_child(run))
    print(run())

def thread_too():
    threading.Thread(target=generator.close).start()
    return run()

print("closed" in in_child(lambda: (generator.close(), run())))
print(run())
""",
        home_path,
    )
    assert found.split() == ["True"] * 12


def test_forking_a_generator_that_runs_is_an_error_in_the_child(
    builtin: CodeGenerator, home_path: Path
):
    found = run_process(
        CHILD
        + """
stop = threading.Event()

def work():
    while not stop.is_set():
        generator.generate(["import os"] * 4, **LONG)

thread = threading.Thread(target=work)
pieces = generator.stream("x = 1", **LONG)
next(pieces)
thread.start()

def run():
    return generator.generate("def add(a, b):", **SHORT) == expected

def go_on():
    return sum(1 for _ in pieces)

def end():
    generator.close()
    return "closed"

for _ in range(4):
    time.sleep(0.02)
    print("forked" in in_child(run))
    print("forked" in in_child(go_on))
    print(in_child(end) == "closed")
stop.set()
thread.join()
print("".join(pieces) != "")
print(run())
""",
        home_path,
    )
    assert found.split() == ["True"] * 14
