"""Whether a completed program is right, in a way that the program cannot reach.

A program and its checks are two processes, each in a sandbox of its own, that know of each other a
pair of pipes with plain values (see sandbox/inside/checker.py). The verdict comes from the checks'
process, over a pipe that the program does not have.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass

from paddlenlp_codegen_task import checks
from paddlenlp_codegen_task.evaluation.sandbox.inside import plain
from paddlenlp_codegen_task.evaluation.sandbox.jail import Running, Sandbox, read_frame

_LONGEST = 200  # characters of a result


@dataclass(frozen=True)
class Verdict:
    """How a program did.

    Attributes:
        passed: all checks went through.
        result: "passed", "timed out" or "failed: " and why; one line that is safe to print.
        seconds: that it took.
    """

    passed: bool
    result: str
    seconds: float


@dataclass(frozen=True)
class Printed:
    """What a program printed last.

    Attributes:
        value: the first argument of its last call of print: numbers, strings, lists, dicts, sets.
        printed: there is such a value.
        result: "printed" or why there is none; one line that is safe to print.
        seconds: that it took.
    """

    value: object
    printed: bool
    result: str
    seconds: float


def check_function(
    sandbox: Sandbox, program: str, entry_point: str, test: str, prompt: str
) -> Verdict:
    """Run a problem's tests on a program's function.

    Args:
        sandbox: where both run.
        program: the prompt with its completion.
        entry_point: the name of the function, or class, that the program defines.
        test: source that defines `check(candidate)`; what the prompt defines it may use.
        prompt: the beginning of the program.

    Raises:
        SandboxUnavailable: a process could not be started; nothing is said about the program.
    """
    begun = time.monotonic()
    deadline = begun + sandbox.limits.seconds
    checked = {"prompt": prompt, "test": test, "entry_point": entry_point}
    with contextlib.ExitStack() as stack:
        pipes = [stack.enter_context(_Pipe()) for _ in range(3)]
        calls, answers, verdict = pipes
        # A program that cannot be encoded (a lone surrogate) is left to the interpreter to refuse.
        running = [
            stack.enter_context(
                sandbox.start("program", {"source": program}, read=calls.read, write=answers.write)
            ),
            stack.enter_context(
                sandbox.start(
                    "checker", checked,
                    read=answers.read, write=calls.write, result=verdict.write,
                )
            ),
        ]  # fmt: skip
        for descriptor in (calls, answers):
            descriptor.close()
        verdict.close_write()
        outcome = _outcome(verdict.read, deadline)
        if outcome != (True, ""):
            _check_started(running)
    seconds = time.monotonic() - begun
    match outcome:
        case (True, ""):
            return Verdict(True, "passed", seconds)
        case (False, str(reason)):
            return Verdict(False, checks.line(f"failed: {reason}", _LONGEST), seconds)
        case str(reason):
            return Verdict(False, reason, seconds)
    raise AssertionError("the checker's process says what it is written to say")


def last_printed(sandbox: Sandbox, program: str) -> Printed:
    """Run a program and tell the value that it printed last.

    As the multi-turn benchmark's checker does it, a last statement that has a value is printed as
    well, and an exception after a print does no harm.

    Raises:
        SandboxUnavailable: the process could not be started; nothing is said about the program.
    """
    begun = time.monotonic()
    deadline = begun + sandbox.limits.seconds
    with _Pipe() as result:
        with sandbox.start("printing", {"source": program}, result=result.write) as running:
            result.close_write()
            outcome = _outcome(result.read, deadline)
            if isinstance(outcome, str):
                _check_started([running])
        seconds = time.monotonic() - begun
    match outcome:
        case [True, value, str()]:
            return Printed(value, True, "printed", seconds)
        case [False, _, str(reason)]:
            return Printed(None, False, checks.line(f"failed: {reason}", _LONGEST), seconds)
        case str(reason):
            return Printed(None, False, reason, seconds)
    return Printed(None, False, "failed: no plain value", seconds)  # a program can write anything


def _outcome(descriptor: int, deadline: float) -> object:
    """What a process has written, or how it failed to."""
    try:
        return plain.decode(read_frame(descriptor, deadline))
    except TimeoutError:
        return "timed out"
    except EOFError:
        return "failed: ended before its end"
    except ValueError:
        return "failed: no plain value"


def _check_started(running: list[Running]) -> None:
    """Raise SandboxUnavailable if it is not the program that failed."""
    for one in running:
        one.kill()
        one.check_started()


class _Pipe:
    """A pipe whose ends are closed once."""

    def __init__(self) -> None:
        self.read, self.write = os.pipe()

    def __enter__(self) -> _Pipe:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close what is open of it."""
        self.close_write()
        if self.read >= 0:
            os.close(self.read)
            self.read = -1

    def close_write(self) -> None:
        """Close the end that another process writes to."""
        if self.write >= 0:
            os.close(self.write)
            self.write = -1
