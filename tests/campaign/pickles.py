"""Pickle programs, made up and mutated, in each of the files that hold pickles.

None runs anything, none takes more time and memory than its length explains, and what reads as a
value is what Python's own unpickler makes of it.
"""

from __future__ import annotations

import base64
import io
import pickle
import struct
import sys
import time
import zipfile
from pathlib import Path
from random import Random
from typing import Any

from .outcomes import Failure, Outcome, check, one_line

FLOOR = 300
LIMIT = 40.0  # four readings, 10 seconds each

SECONDS = 1.0  # of processor time, for a short program
SECONDS_A_MB = 2.0
BYTES = 48 << 20  # of memory, for a short program
BYTES_A_BYTE = 16

Segments = list[tuple[bytes, int]]  # a program: pieces, each repeated so many times

NAMES = [
    *(("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_parameter")),
    *(("collections", "OrderedDict"), ("torch", "FloatStorage"), ("torch", "LongStorage")),
    *(("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode"), ("builtins", "tuple")),
    *(("numpy.core.multiarray", "_reconstruct"), ("numpy.core.multiarray", "scalar")),
    ("numpy.core.numeric", "_frombuffer"),
]
DANGEROUS = [
    *(("posix", "system"), ("os", "mkdir"), ("builtins", "eval"), ("builtins", "exec")),
    *(("builtins", "getattr"), ("builtins", "__import__"), ("subprocess", "Popen")),
    *(("campaign.pickles", "spring"), ("collections", "OrderedDict.__init__.__globals__")),
    *(("torch.hub", "load"), ("numpy", "load"), ("operator", "attrgetter"), ("nt", "system")),
    *(("types", "CodeType"), ("functools", "partial"), ("a\nb", "c"), ("", ""), ("é" * 99, "x")),
]
BOMBS = [
    *(b"]", b"}", b")", b"(", b"N", b"]\x94", b"}\x94", b"N\x85", b"]\x85\x94", b"(t", b"(l"),
    *(b"]h\0a", b"h\0h\0\x86q\0", b"h\0\x85q\0", b"(h\0h\0h\0tq\0", b"K\x01a", b"N0", b"\x80\x02"),
    *(b"\x8c\x01a", b"X\0\0\0\0", b"\x8a\xff" + b"\x7f" * 255, b"G" + b"\x7f" * 8, b"C\0"),
    *(b"\x95" + b"\xff" * 8, b"ccollections\nOrderedDict\n)R", b"ctorch\nFloatStorage\n", b"}]s"),
    *(
        b"]]a",
        b"(]]e",
        b"\x8c\x01aNs",
        b"(Nu",
        b"}}b",
        b"((((",
        b"N\x94",
        b"q\0",
        b"r\xff\xff\xff\0",
    ),
]


def spring(*_: object) -> None:
    """What no pickle may call."""
    raise Failure("a pickle has called a function")


def draw(random: Random) -> dict[str, Any]:
    """A program of one of five sorts, and how many bytes of it are cut off."""
    sorts = {"soup": _soup, "value": _value, "tensors": _tensors, "danger": _danger, "bomb": _bomb}
    sort = random.choice([*sorts, "mutant", "mutant"])
    if sort == "mutant":
        edits = [[random.randrange(1 << 20), random.randrange(256)] for _ in range(4)]
        base = random.choice(["torch", "paddle2", "paddle4"])
        return {"sort": sort, "base": base, "edits": edits[random.randrange(4) :]}
    program = [[base64.b64encode(piece).decode(), count] for piece, count in sorts[sort](random)]
    return {"sort": sort, "program": program}


def _number(random: Random) -> bytes:
    return random.choice(
        [
            b"K" + bytes([random.randrange(256)]),
            b"M" + struct.pack("<H", random.randrange(1 << 16)),
            b"J" + struct.pack("<i", random.randrange(-(1 << 31), 1 << 31)),
            b"\x8a\x09" + bytes(random.randrange(256) for _ in range(9)),
        ]
    )


def _text(random: Random, text: str | None = None) -> bytes:
    if text is None:
        letters = [random.choice("abé\n\0汉'") for _ in range(random.randrange(9))]
        text = random.choice(["", "storage", "cpu", "f4", "<", "latin1", "UnpackBigParamInfor@@"])
        text = text or "".join(letters)
    return b"X" + struct.pack("<I", len(text.encode())) + text.encode()


def _soup(random: Random) -> Segments:
    """Instructions that may or may not go together."""
    codes = b"\x80\x95N\x88\x89JKM\x8aGX\x8c\x8dTUCB\x8e\x96]})(t\x85\x86\x87aesu0qr\x94hjc\x93RbQ."
    codes += b"IFSVLpPgildoi2\x81\x82\x83\x84\x8f\x90\x91\x92\x97\x98\xff"
    parts = [b"\x80\x02", b"(", b"]", b"}"][: random.randrange(5)]
    for _ in range(random.randrange(1, 60)):
        match random.randrange(6):
            case 0:
                parts.append(_number(random))
            case 1:
                parts.append(_text(random))
            case 2:
                parts.append(_global(random, random.choice(NAMES)))
            case _:
                code = bytes([random.choice(codes)])
                parts.append(code + bytes(random.randrange(4) for _ in range(random.randrange(3))))
    return [(b"".join(parts) + b".", 1)]


def _value(random: Random, depth: int = 0) -> Segments:
    """A program that makes a plain value."""
    return [(b"\x80\x02" + _of_value(random, depth) + b".", 1)]


def _of_value(random: Random, depth: int) -> bytes:
    items = [] if depth > 3 else [depth + 1] * random.randrange(4)
    match random.randrange(9):
        case 0:
            return b"(" + b"".join(_of_value(random, one) for one in items) + b"t"
        case 1:
            return b"](" + b"".join(_of_value(random, one) for one in items) + b"e"
        case 2:
            entries = (_text(random) + _of_value(random, one) for one in items)
            return b"}(" + b"".join(entries) + b"u"
        case 3 | 4:
            return _text(random)
        case 5 | 6:
            return _number(random)
        case 7:
            return b"G" + struct.pack(">d", random.uniform(-9, 9))
        case _:
            return random.choice([b"N", b"\x88", b"\x89", b")", b"]", b"}", b"]q\1h\1\x86"])


def _global(random: Random, name: tuple[str, str]) -> bytes:
    if random.randrange(2):
        return b"c" + "\n".join([*name, ""]).encode()
    return _text(random, name[0]) + _text(random, name[1]) + b"\x93"


def _tensors(random: Random) -> Segments:
    """Calls of what stands for tensors and arrays, with arguments that may be anything."""
    parts = [b"\x80\x02}("]
    for number in range(random.randrange(1, 4)):
        parts.append(_text(random, f"t{number}"))
        storage = b"(" + _text(random, "storage") + _global(random, ("torch", "FloatStorage"))
        storage += _text(random, "0") + _text(random, "cpu") + _number(random) + b"tQ"
        shape = b"(" + b"".join(_number(random) for _ in range(random.randrange(11))) + b"t"
        arguments = [storage, _number(random), shape, shape, b"\x89", b"N"]
        if random.randrange(2):
            arguments = [_text(random), _global(random, ("numpy", "dtype")), shape, _text(random)]
        if random.randrange(2):
            arguments[random.randrange(len(arguments))] = _of_value(random, 2)
        parts += [_global(random, random.choice(NAMES)), b"(", *arguments, b"tR"]
        if random.randrange(2):
            parts += [b"(K\x01", shape, _of_value(random, 2), b"\x89", _text(random), b"tb"]
    return [(b"".join(parts) + b"u.", 1)]


def _danger(random: Random) -> Segments:
    """A call of something that a checkpoint must not call, by each instruction that calls."""
    module, name = random.choice(DANGEROUS)
    loaded = _global(random, (module, name))
    lines = f"{module}\n{name}\n".encode()
    argument = _text(random, "sentinel")
    call = random.choice(
        [
            loaded + argument + b"\x85R",
            loaded + b")\x81",
            loaded + b")}\x92",
            b"(" + loaded + argument + b"o",
            b"(" + argument + b"i" + lines,
            loaded + b")\x81" + b"}" + argument + b"Nsb",
            b"\x82\x01",
            b"}" + loaded + b"Ns",
            _text(random) + loaded + b"\x85Q",
            b"P" + lines,
        ]
    )
    before = _of_value(random, 2) + b"0" if random.randrange(2) else b""
    return [(b"\x80\x02" + before + call + b".", 1)]


def _bomb(random: Random) -> Segments:
    """A few instructions again and again, up to some millions of bytes."""
    size = random.choice([1000, 30_000, 300_000, 3_000_000])
    parts: Segments = [(random.choice([b"", b"N", b"]q\0", b"}", b"(", b")q\0", b"(((("]), 1)]
    for _ in range(random.randrange(1, 4)):
        piece = b"".join(random.choice(BOMBS) for _ in range(random.randrange(1, 4)))
        parts.append((piece, max(1, size // len(piece))))
    return [*parts, (random.choice([b".", b"t.", b"e.", b"\x85R.", b"Q.", b"s.", b"b.", b""]), 1)]


class Attacker:
    """Reads programs as they are, and as the files of torch and Paddle hold them."""

    def __init__(self, folder: Path) -> None:
        """Write the files whose pickles are mutated, and listen to what Python itself reports."""
        import checkpoints

        from .models import config, tensors

        weights = {name: values for name, values in tensors().items() if "ln_" in name}
        self._bases: dict[str, bytes] = {}
        if not (folder / "paddle4").exists():
            checkpoints.write_torch(folder / "torch", weights, config())
            checkpoints.write_paddle(folder / "paddle2", weights, config(), protocol=2)
            checkpoints.write_paddle(folder / "paddle4", weights, config())
        with zipfile.ZipFile(folder / "torch" / "pytorch_model.bin") as archive:
            self._torch = {name: archive.read(name) for name in archive.namelist()}
        self._bases["torch"] = next(v for k, v in self._torch.items() if k.endswith("data.pkl"))
        for name in ("paddle2", "paddle4"):
            self._bases[name] = (folder / name / "model_state.pdparams").read_bytes()
        self._watched: list[str] | None = None  # while a program is read
        sys.addaudithook(self._notice)
        plain = {"sort": "value", "program": [[base64.b64encode(b"}.").decode(), 1]]}
        self._imported = False
        self.attack(plain)  # what has to be imported for it is, from now on
        self._imported = True
        check(self.attack(plain) == Outcome.WORKED, "an empty dictionary is refused")

    def attack(self, given: dict[str, Any]) -> Outcome:
        """Read one program in every way there is."""
        from paddlenlp_codegen_task.model import torch_file
        from paddlenlp_codegen_task.model.paddle_file import read_paddle_file
        from paddlenlp_codegen_task.model.torch_file import read_torch_file
        from paddlenlp_codegen_task.model.unpickle import unpickle

        if given["sort"] == "mutant":
            mutated = bytearray(self._bases[given["base"]])
            for place, value in given["edits"]:
                mutated[place % len(mutated)] = value
            program = bytes(mutated)
        else:
            program = b"".join(base64.b64decode(one) * count for one, count in given["program"])
        legacy = b"".join(pickle.dumps(value, 2) for value in _LEGACY)
        keys = pickle.dumps(["0"], 2) + (4).to_bytes(8, "little") + bytes(16)
        files = [
            (read_torch_file, self._zipped(program)),
            (read_torch_file, legacy + program + keys),
            (read_paddle_file, program),
        ]
        value = self._measured(
            lambda file: unpickle(file, torch_file._ALLOWED, lambda _: None), program
        )
        if given["sort"] == "value" and not isinstance(value, Exception):
            # Safe to unpickle: no instruction of a plain value calls anything.
            check(repr(value) == repr(pickle.loads(program)), "reads another value than pickle")
        found = [value, *(self._measured(read, content) for read, content in files)]
        refused = all(isinstance(one, Exception) for one in found)
        return Outcome.REFUSED if refused else Outcome.WORKED

    def _zipped(self, program: bytes) -> bytes:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            for name, content in self._torch.items():
                archive.writestr(name, program if name.endswith("data.pkl") else content)
        return file.getvalue()

    def _measured(self, read: Any, content: bytes) -> Any:
        """What a reader returns, or how it refuses; a Failure if that runs things or costs much."""
        from paddlenlp_codegen_task.model.checkpoint import CheckpointError

        file = io.BytesIO(content)
        before = _memory(reset=True)
        began = time.process_time()
        self._watched = []
        try:
            try:
                found = read(file)
            finally:
                watched, self._watched = self._watched, None
        except CheckpointError as error:
            one_line(error)
            found = error
        took = time.process_time() - began
        grown = _memory() - before
        check(not watched, f"something has run: {watched[:3]}")
        size = len(content)
        check(
            took < min(10.0, SECONDS + SECONDS_A_MB * size / 1e6),
            f"{size:,} bytes took {took:.1f} s",
        )
        check(
            grown < BYTES + BYTES_A_BYTE * size,
            f"{size:,} bytes took {grown / 1e6:,.0f} MB of memory",
        )
        return found

    def _notice(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Note what a program brings about: imports, files, processes, code."""
        # Reading an archive opens nothing, and none of these is reported by plain calls.
        if self._imported and self._watched is not None and event not in _HARMLESS:
            self._watched.append(f"{event} {arguments}"[:200])


_LEGACY = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
_HARMLESS = {"object.__getattr__", "sys._getframe", "builtins.id"}


def _memory(reset: bool = False) -> int:
    """The most bytes of memory that this process has held since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM"))
