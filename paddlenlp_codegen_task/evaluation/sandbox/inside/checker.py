"""The process of a problem's checks: it holds the tests and says how they ended.

The program is another process, in a sandbox of its own; the tests get stand-ins for its functions
and plain values as results. What the prompt itself defines beside the function (helpers that tests
use) is run here anew, so a program that redefines a helper changes nothing for the tests.

Where values are not plain, objects stay in the program's process and the tests get a stand-in:

- A function can be called, and an iterator gone through, whatever the problem: no plain value can
  be called, so a test that does so wants that. It equals nothing but itself, has no attributes and
  takes part in no operation: an object whose `__eq__` is always true, or that answers a test's
  `in` or `<`, gains nothing.
- Only where the prompt defines a class, attributes and operators of the program's objects are the
  program's to answer, for these are what such a problem asks to be written. Then a program whose
  `__eq__` is always true passes tests that do no more than compare two of its objects; it passes
  none that looks at a plain value. Comparison of an object with a plain value is always false.

The verdict is never in the program's process, and neither is an expected value, but for what tests
themselves pass as an argument.
"""

from __future__ import annotations

import _ast

from .peer import Peer, ProgramError, described
from .plain import NotPlain, Reference, encode, write_frame
from .program import load, seed, syntax

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

NAME = "checks"  # of the module that the prompt and the tests are
_MODULES = ("math", "_operator")  # whose functions tests may pass to a program
_FUNCTIONS = (type(described), type(Peer.ask.__get__(object())))  # functions and methods
_OPERATIONS = "add sub mul matmul truediv floordiv mod pow and_ or_ xor lshift rshift"
_COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")


class Remote:
    """A function or an iterator in the program's process."""

    def __init__(self, handle: int, peer: Peer) -> None:
        self._handle, self._peer = handle, peer

    def __call__(self, *arguments: object, **keywords: object) -> object:
        """Call it there."""
        return self._peer.ask("call", self, list(arguments), keywords)

    def __iter__(self) -> Remote:
        found = self._peer.ask("iter", self)
        return found if isinstance(found, Remote) else iter(found)

    def __contains__(self, value: object) -> bool:
        # One that goes through all values that there are would hold the expected one as well.
        raise TypeError(f"argument of type {type(self).__name__!r} is no container")

    def __next__(self) -> object:
        return self._peer.ask("next", self)


class RemoteObject(Remote):
    """An object in the program's process, for a problem that asks for a class."""

    def __getattr__(self, name: str) -> object:
        return self._peer.ask("getattr", self, name)

    def __setattr__(self, name: str, value: object) -> None:
        if name in ("_handle", "_peer"):
            object.__setattr__(self, name, value)
        else:
            self._peer.ask("setattr", self, name, value)

    def __instancecheck__(self, value: object) -> bool:
        return isinstance(value, RemoteObject) and self._peer.ask("isinstance", value, self) is True

    def __contains__(self, value: object) -> bool:
        return any(one is value or one == value for one in self)

    def __len__(self) -> int:
        return int(self._peer.ask("len", self))

    def __bool__(self) -> bool:
        return bool(self._peer.ask("operator", "truth", self))

    def __getitem__(self, key: object) -> object:
        return self._peer.ask("operator", "getitem", self, key)

    def __setitem__(self, key: object, value: object) -> None:
        self._peer.ask("operator", "setitem", self, key, value)

    def __neg__(self) -> object:
        return self._peer.ask("operator", "neg", self)

    def __abs__(self) -> object:
        return self._peer.ask("operator", "abs", self)

    def __str__(self) -> str:
        return str(self._peer.ask("str", self))

    def __repr__(self) -> str:
        return str(self._peer.ask("repr", self))

    def __hash__(self) -> int:
        return self._handle


def _forward(name: str) -> Callable[[RemoteObject, object], object]:
    def operate(self: RemoteObject, other: object) -> object:
        return self._peer.ask("operator", name, self, other)

    def compare(self: RemoteObject, other: object) -> object:
        # With a plain value that a test expects, what is equal is not the program's to say.
        return operate(self, other) if isinstance(other, RemoteObject) else NotImplemented

    return compare if name in _COMPARISONS else operate


def _reflect(name: str) -> Callable[[RemoteObject, object], object]:
    def operate(self: RemoteObject, other: object) -> object:
        return self._peer.ask("operator", name, other, self)

    return operate


for _name in (*_OPERATIONS.split(), *_COMPARISONS):
    setattr(RemoteObject, f"__{_name.strip('_')}__", _forward(_name))
for _name in _OPERATIONS.split():
    setattr(RemoteObject, f"__r{_name.strip('_')}__", _reflect(_name))


class Checks:
    """One problem's prompt and tests, beside a program."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.job = job
        self.callbacks: list[Callable[..., object]] = []
        self.peer = Peer(job["read"], job["write"], self.answer, self.other, self.referent)
        self.prompt, tree = parsed(job["prompt"])
        self.classes = [node.name for node in tree.body if isinstance(node, _ast.ClassDef)]

    def other(self, value: object) -> object:
        """What goes to the program for an argument that is not plain (see `plain.encode`)."""
        if isinstance(value, Remote):
            return Reference(value._handle)
        passed = isinstance(value, _FUNCTIONS) or (
            isinstance(value, type(len)) and value.__module__ in _MODULES
        )
        if not passed:
            kind = type(value).__name__
            raise NotPlain(f"the tests pass a {kind}, which does not go over to the program")
        self.callbacks.append(value)  # type: ignore[arg-type]
        return Reference(-len(self.callbacks))

    def referent(self, handle: int) -> object:
        """The test's function, or a stand-in, for a reference of the program's."""
        if handle < 0:
            if -handle > len(self.callbacks):
                raise ValueError("no such function")
            return self.callbacks[-handle - 1]
        return (RemoteObject if self.classes else Remote)(handle, self.peer)

    def answer(self, call: list[Any]) -> object:
        """The program calls a function that the tests have passed to it; it can do nothing else."""
        match call:
            case ["callback", int(handle), list(arguments), dict(keywords)] if handle < 0:
                function: Any = self.referent(handle)
                return function(*arguments, **keywords)
        raise ValueError("no such call")

    def run(self) -> None:
        """Raises what the checks raise, if they fail."""
        names = load(self.prompt, NAME)
        self.peer.wait()
        entry_point = self.job["entry_point"]
        for name in {entry_point, *self.classes}:
            names[name] = self.peer.ask("global", name)
        candidate = names[entry_point]
        test = compile(self.job["test"], f"<{NAME}>", "exec", dont_inherit=True)
        exec(test, names)
        seed()
        check = names.get("check")
        if not callable(check):
            raise ProgramError("the tests define no check(candidate)")
        check(candidate)

    def outcome(self) -> tuple[bool, str]:
        """Whether the checks passed, and if not why."""
        try:
            self.run()
            failure = None
        except BaseException as error:  # of the tests or, through them, of the program
            failure = error
        if self.peer.broken is not None:  # whatever the tests made of that
            return False, self.peer.broken
        if failure is None:
            return True, ""
        if self.peer.raised is not None and self.peer.raised[0] is failure:
            return False, self.peer.raised[1]
        name, message = described(failure)
        if isinstance(failure, ProgramError):
            return False, message
        return False, f"{name}: {message}" if message else name


def parsed(prompt: str) -> tuple[str, _ast.Module]:
    """A program's beginning, made whole where it ends at a function without a docstring.

    Raises:
        SyntaxError: it is no program's beginning.
    """
    try:
        return prompt, syntax(prompt, NAME)
    except SyntaxError:
        whole = prompt.rstrip() + "\n"
        indent = whole.splitlines()[-1] if whole.strip() else ""
        whole += " " * (len(indent) - len(indent.lstrip()) + 4) + "pass\n"
        return whole, syntax(whole, NAME)


def main(job: dict[str, Any]) -> None:
    """Check, and write whether all is well and why not to `job["result"]`."""
    try:
        outcome = Checks(job).outcome()
    except SyntaxError as error:
        outcome = (False, f"the prompt is no program's beginning: {error.msg}")
    write_frame(job["result"], encode(outcome))
