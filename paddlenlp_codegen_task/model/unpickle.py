"""Reads a pickle of tensors without running any of it.

A pickle is a program for a stack machine that may call anything importable. This is that machine
with the means to do harm left out: it knows only the instructions that saved tensors need, calls
only stand-ins its caller lists, and leaves large byte strings in the file, so that a checkpoint
of any size unpickles in little memory. Unlike `pickle.Unpickler` it cannot be made to reserve
memory that the file does not fill, nor to hash or compare crafted values; and since a program of a
byte makes an object of a hundred, it runs no more instructions than checkpoints have, for which a
second and some 50 MB are enough. The instructions are described in the standard library's
pickletools.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import BinaryIO

from paddlenlp_codegen_task.model.stored_tensor import CheckpointError

# Tensor names and keywords are shorter; a longer text holds an array (see paddle_file.py).
_LONGEST_TEXT = 256
# A tensor takes some 40 instructions, in a model of 34 layers with its buffers 20,000 in all.
_MOST_INSTRUCTIONS = 2**19
# Containers are filled from the stack 1,000 items at a time, within one another.
_MOST_ON_STACK = 2**13
# Of containers within one another, and of a call's arguments: checkpoints have 5, and 9.
_DEEPEST = 32
_MOST_ARGUMENTS = 16


@dataclass(frozen=True, slots=True)
class Span:
    """A byte string left in the pickle's file, or a long text if `is_text`: UTF-8 there."""

    offset: int
    nbytes: int
    is_text: bool = False


class StandIn:
    """What an allowed class makes instead of its own objects."""

    def build(self, state: object) -> None:
        """Take the state saved with the object; CheckpointError if it is not as expected."""
        raise CheckpointError("damaged: state for an object that has none")


def unpickle(
    file: BinaryIO,
    allowed: Mapping[tuple[str, str], object],
    persistent_load: Callable[[object], object] | None = None,
) -> object:
    """Read one pickle (protocol 2 to 5) from `file`, which is left right behind it.

    Args:
        file: seekable, at the start of the pickle.
        allowed: what stands in for a global, by module and name. Functions are called with the
            arguments in the pickle and must bear any; everything else is just a value.
        persistent_load: called for an object that is kept outside of the pickle, with its id.

    Returns:
        None, bool, int, float, str, Span, list, tuple, dict, or what `allowed` and
        `persistent_load` return.

    Raises:
        CheckpointError: the pickle is truncated or damaged, holds anything else, or is larger or
            nested deeper than those of checkpoints.
    """
    machine = _Machine(file, allowed, persistent_load)
    try:
        return machine.run()
    except CheckpointError:
        raise
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, struct.error) as error:
        raise CheckpointError(f"damaged: not a valid pickle ({type(error).__name__})") from error


class _Machine:
    def __init__(
        self,
        file: BinaryIO,
        allowed: Mapping[tuple[str, str], object],
        persistent_load: Callable[[object], object] | None,
    ) -> None:
        self.file = file
        self.allowed = allowed
        self.persistent_load = persistent_load
        self.stack: list[object] = []
        self.marked: list[list[object]] = []  # the stacks below each open mark
        self.below = 0  # values in these, and the marks
        self.memo: dict[int, object] = {}
        self.here = file.tell()  # kept, since asking takes a system call
        self.frame_end = 0
        self.end = file.seek(0, 2)
        file.seek(self.here)

    def run(self) -> object:
        for _ in range(_MOST_INSTRUCTIONS):
            if (code := self.read(1)) == b".":
                value = self.stack.pop()
                if self.here < self.frame_end:
                    raise CheckpointError("damaged: a frame goes on behind its pickle")
                _require_shallow(value)
                return value
            instruction = _INSTRUCTIONS.get(code)
            if instruction is None:
                raise CheckpointError(f"damaged: not a pickle of tensors (instruction {code!r})")
            instruction(self)
            if len(self.stack) + self.below > _MOST_ON_STACK:
                raise CheckpointError("damaged: not a pickle of tensors (too much on its stack)")
        raise CheckpointError("damaged: not a pickle of tensors (too many instructions)")

    def read(self, count: int) -> bytes:
        self.require(count)
        self.here += count
        return self.file.read(count)

    def require(self, count: int) -> None:
        if count > self.end - self.here:
            raise CheckpointError("truncated: the file ends within its pickle")
        if self.here < self.frame_end < self.here + count:
            raise CheckpointError("damaged: a frame ends within an instruction")

    def begin_frame(self, count: int) -> None:
        """Frames are for reading ahead; here their lengths tell damage, as they do in pickle."""
        if self.here < self.frame_end:
            raise CheckpointError("damaged: a frame begins within another")
        self.require(count)
        self.frame_end = self.here + count

    def number(self, layout: str) -> int:
        value: int = struct.unpack(layout, self.read(struct.calcsize(layout)))[0]
        return value

    def line(self) -> str:
        line = self.file.readline(_LONGEST_TEXT)
        self.here += len(line)
        return line.removesuffix(b"\n").decode()

    def push(self, value: object) -> None:
        self.stack.append(value)

    def push_text(self, layout: str, encoding: str = "utf-8") -> None:
        count = self.number(layout)
        if count > _LONGEST_TEXT:
            self.push_span(count, is_text=encoding == "utf-8")
        else:
            self.push(self.read(count).decode(encoding))

    def push_span(self, count: int, is_text: bool = False) -> None:
        self.require(count)
        self.push(Span(self.here, count, is_text))
        self.here = self.file.seek(self.here + count)

    def push_mark(self) -> None:
        self.marked.append(self.stack)
        self.below += len(self.stack) + 1
        self.stack = []

    def pop_mark(self) -> list[object]:
        items, self.stack = self.stack, self.marked.pop()
        self.below -= len(self.stack) + 1
        return items

    def push_tuple(self, count: int) -> None:
        if len(self.stack) < count:
            raise IndexError
        items = tuple(self.stack[-count:])
        self.stack[-count:] = [items]

    def append(self, items: list[object]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise TypeError
        target.extend(items)

    def set_items(self, items: list[object]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise TypeError
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Hashing a nested tuple could take for ever, or overflow the interpreter's C stack;
            # chosen integers could all collide.
            if not isinstance(key, str):
                raise CheckpointError("damaged: a key that is no text")
            target[key] = value

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def push_global(self, module: object, name: object) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise TypeError
        if (module, name) not in self.allowed:
            wanted = f"{module}.{name}"[:_LONGEST_TEXT]
            wanted = wanted if wanted.isprintable() else ascii(wanted)
            raise CheckpointError(f"refused to load {wanted}: a checkpoint may hold tensors only")
        self.push(self.allowed[module, name])

    def push_stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.push_global(module, name)

    def push_persistent(self) -> None:
        identity = self.stack.pop()
        if self.persistent_load is None:
            raise TypeError
        if isinstance(identity, tuple) and len(identity) > _MOST_ARGUMENTS:
            raise TypeError  # as in `reduce`
        self.push(self.persistent_load(identity))

    def reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        # Only `allowed` puts callables on the stack: no value made here is one.
        if not callable(function) or not isinstance(arguments, tuple):
            raise TypeError
        # One tuple may be passed again and again, and is copied each time.
        if len(arguments) > _MOST_ARGUMENTS:
            raise TypeError
        self.push(function(*arguments))

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, StandIn):
            target.build(state)
        elif not isinstance(target, dict):  # an OrderedDict's attributes: a state_dict's _metadata
            raise TypeError


_CONTAINERS = frozenset({dict, list, tuple})


def _require_shallow(value: object) -> None:
    """Raise CheckpointError if containers are nested too deeply, or within themselves.

    Level by level, each container once a level: what shares its parts would take for ever else.
    """
    level = [value]
    for _ in range(_DEEPEST):
        inner: dict[int, object] = {}
        for container in level:
            if isinstance(container, (dict, list, tuple)):
                items = container.values() if isinstance(container, dict) else container
                inner |= {id(item): item for item in items if type(item) in _CONTAINERS}
        if not inner:
            return
        level = list(inner.values())
    raise CheckpointError("damaged: not a pickle of tensors (nested too deeply)")


_INSTRUCTIONS: dict[bytes, Callable[[_Machine], object]] = {
    b"\x80": lambda m: m.read(1),  # protocol version
    b"\x95": lambda m: m.begin_frame(m.number("<Q")),
    b"N": lambda m: m.push(None),
    b"\x88": lambda m: m.push(True),
    b"\x89": lambda m: m.push(False),
    b"J": lambda m: m.push(m.number("<i")),
    b"K": lambda m: m.push(m.number("<B")),
    b"M": lambda m: m.push(m.number("<H")),
    b"\x8a": lambda m: m.push(int.from_bytes(m.read(m.number("<B")), "little", signed=True)),
    b"G": lambda m: m.push(struct.unpack(">d", m.read(8))[0]),
    b"X": lambda m: m.push_text("<I"),
    b"\x8c": lambda m: m.push_text("<B"),
    b"\x8d": lambda m: m.push_text("<Q"),
    b"T": lambda m: m.push_text("<I", "latin-1"),  # Python 2 strings
    b"U": lambda m: m.push_text("<B", "latin-1"),
    b"C": lambda m: m.push_span(m.number("<B")),
    b"B": lambda m: m.push_span(m.number("<I")),
    b"\x8e": lambda m: m.push_span(m.number("<Q")),
    b"\x96": lambda m: m.push_span(m.number("<Q")),
    b"]": lambda m: m.push([]),
    b"}": lambda m: m.push({}),
    b")": lambda m: m.push(()),
    b"(": lambda m: m.push_mark(),
    b"t": lambda m: m.push(tuple(m.pop_mark())),
    b"\x85": lambda m: m.push_tuple(1),
    b"\x86": lambda m: m.push_tuple(2),
    b"\x87": lambda m: m.push_tuple(3),
    b"a": lambda m: m.append([m.stack.pop()]),
    b"e": lambda m: m.append(m.pop_mark()),
    b"s": lambda m: m.set_items([m.stack.pop(), m.stack.pop()][::-1]),
    b"u": lambda m: m.set_items(m.pop_mark()),
    b"0": lambda m: m.stack.pop(),
    b"q": lambda m: m.put(m.number("<B")),
    b"r": lambda m: m.put(m.number("<I")),
    b"\x94": lambda m: m.put(len(m.memo)),
    b"h": lambda m: m.push(m.memo[m.number("<B")]),
    b"j": lambda m: m.push(m.memo[m.number("<I")]),
    b"c": lambda m: m.push_global(m.line(), m.line()),
    b"\x93": lambda m: m.push_stack_global(),
    b"R": lambda m: m.reduce(),
    b"b": lambda m: m.build(),
    b"Q": lambda m: m.push_persistent(),
}
